"""Find methods, metric families (lenses) and data sources: each is one file in a package.

The file's stem is the registered name; there is no central list. Modules named ``base`` or starting
with an underscore are support code. Third parties register classes with a Python entry point in the
registry's group. A name that is registered twice is an error; nothing is shadowed.
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
    """A lazy lookup of ``attribute`` in the modules of ``package``.

    Listing names imports none of the modules. ``what`` names the kind of entry in error messages,
    and ``base`` is the dotted path of the class that every entry must subclass.
    """

    what: str
    package: str
    attribute: str
    base: str

    def names(self) -> list[str]:
        """Return all registered names, sorted.

        Raises :class:`LowrankError` if an entry point has the name of a built-in entry.
        """
        own, foreign = self._own(), self._foreign()
        clash = own & foreign.keys()
        if clash:
            raise LowrankError(
                f"the entry point '{min(clash)}' of group '{self.package}' shadows a built-in {self.what}; rename it"
            )
        return sorted(own | foreign.keys())

    def get(self, name: str) -> type[T]:
        """Return the class registered as ``name``.

        Raises :class:`UnknownNameError` with the nearest known name if there is none, and
        :class:`LowrankError` if the class does not subclass the registry's base.
        """
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
    """Return the entry points of ``group``.

    Finding them reads the metadata of every package on ``path`` (10 ms or more), hence the cache.
    """
    return {point.name: point for point in entry_points(group=group)}
