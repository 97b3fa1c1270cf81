"""The synthetic study that reports are tested with serves predictors, too."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


def load_factory() -> ModuleType:
    """tests/report/factory.py as a module."""
    name = "report_factory"
    if name not in sys.modules:
        path = Path(__file__).parents[1] / "report" / "factory.py"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture(scope="session")
def factory() -> ModuleType:
    """The factory of synthetic studies."""
    return load_factory()
