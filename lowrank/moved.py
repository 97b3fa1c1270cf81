"""Old import paths of modules that moved to public rooms; they go on working.

A path that is imported by its old name gives the module of today, the same object, with a
DeprecationWarning that names it.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "lowrank.evaluate.bench": "lowrank.evaluate.cache",
    "lowrank.launch": "lowrank.study",
    "lowrank.launch.processes": "lowrank.study.processes",
    "lowrank.launch.run": "lowrank.study.launch",
    "lowrank.launch.slurm": "lowrank.study.slurm",
    "lowrank.measure.bench": "lowrank.measure.cache",
    "lowrank.measure.team": "lowrank.measure.group",
    "lowrank.methods._adam": "lowrank.optim.adam",
    "lowrank.methods._adamw8": "lowrank.optim.adamw8bit",
    "lowrank.methods._decomposition": "lowrank.optim.decomposition",
    "lowrank.methods._factors": "lowrank.layers",
    "lowrank.methods._optimizer": "lowrank.optim.projected",
    "lowrank.methods._projection": "lowrank.optim.projection",
    "lowrank.methods._quantisation": "lowrank.optim.quantisation",
    "lowrank.methods._sharding": "lowrank.optim.sharding",
    "lowrank.metrics._alignment": "lowrank.geometry.alignment",
    "lowrank.metrics._directions": "lowrank.geometry.directions",
    "lowrank.metrics._offsets": "lowrank.geometry.offsets",
    "lowrank.metrics._probe": "lowrank.geometry.probe",
    "lowrank.report.axes": "lowrank.report.plot.axes",
    "lowrank.report.charts": "lowrank.report.plot.charts",
    "lowrank.report.raster": "lowrank.report.plot.raster",
    "lowrank.report.scene": "lowrank.report.plot.scene",
    "lowrank.report.theme": "lowrank.report.plot.theme",
    "lowrank.store.patience": "lowrank.store.retry",
    "lowrank.train.snapshot": "lowrank.train.resume",
}


class MovedModules(MetaPathFinder, Loader):
    """Finds a module by its old name and hands out the one of today."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return a specification for an old name, None for any other."""
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Import the module of today, with a warning that names it."""
        new = MOVED[spec.name]
        warnings.warn(
            f"{spec.name} has moved; import {new} instead", DeprecationWarning, stacklevel=2
        )
        module = importlib.import_module(new)
        self._own = module.__spec__, module.__loader__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Give the module its own specification back, which the import by the old name replaced."""
        module.__spec__, module.__loader__ = self._own


def install() -> None:
    """Make the old import paths work in this process."""
    if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
        # First: a folder that an upgrade left behind would be found as a namespace package.
        sys.meta_path.insert(0, MovedModules())
