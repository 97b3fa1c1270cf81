"""One registry for methods and metric lenses: a file in a package is an entry, its stem is the
name.

There is no central list. A module whose name starts with an underscore, or ``base``, is support
code. Outsiders add entries with a Python entry point in the registry's group; a clash of names is
an error, never a shadowing.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar, cast

from lowrank.errors import LowrankError, UnknownNameError

T = TypeVar("T")


@dataclass(frozen=True)
class Registry(Generic[T]):
    """Lazy lookup of ``attribute`` in the modules of ``package``; listing names imports none of
    them.
    """

    what: str
    package: str
    attribute: str
    base: str

    def names(self) -> list[str]:
        """All registered names, sorted."""
        own, foreign = self._own(), self._foreign()
        clash = own & foreign.keys()
        if clash:
            raise LowrankError(
                f"the entry point '{min(clash)}' of group '{self.package}' shadows a built-in {self.what}; rename it"
            )
        return sorted(own | foreign.keys())

    def get(self, name: str) -> type[T]:
        """The class registered as ``name``; an unknown name raises with the nearest known one."""
        if name not in self.names():
            raise UnknownNameError(self.what, name, self.names())
        foreign = self._foreign()
        if name in foreign:
            found = foreign[name].load()
        else:
            found = getattr(importlib.import_module(f"{self.package}.{name}"), self.attribute)
        base = self._base()
        if not (isinstance(found, type) and issubclass(found, base)):
            raise LowrankError(
                f"the {self.what} '{name}' must be a subclass of {base.__module__}.{base.__name__}"
            )
        return cast(type[T], found)

    def _base(self) -> type:
        module, _, attribute = self.base.rpartition(".")
        return cast(type, getattr(importlib.import_module(module), attribute))

    def _own(self) -> set[str]:
        paths = importlib.import_module(self.package).__path__
        return {
            m.name
            for m in pkgutil.iter_modules(paths)
            if not m.name.startswith("_") and m.name != "base"
        }

    def _foreign(self) -> dict[str, EntryPoint]:
        return _entry_points(self.package, tuple(sys.path))


@cache
def _entry_points(group: str, path: tuple[str, ...]) -> dict[str, EntryPoint]:
    """The entry points of a group; finding them reads the metadata of every package on ``path``, 10
    ms or more.
    """
    return {point.name: point for point in entry_points(group=group)}
