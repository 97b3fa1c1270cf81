"""Make the modules of this folder importable by their names: pytest's import mode puts no folder of
tests on the path.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = str(Path(__file__).resolve().parent)
if HERE not in sys.path:
    sys.path.append(HERE)
