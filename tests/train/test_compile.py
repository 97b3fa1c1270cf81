"""``training.compile``: the same training through compiled code."""

from __future__ import annotations

import shutil

import pytest
import torch

from lowrank.store import Store, records
from lowrank.study import Plan
