"""The processes of one launch (``torchrun``, ``accelerate launch``) that compute a unit of work
together.

All of them compute the same units in the same order; where a lens spreads independent evaluations,
each does a share and all get all. Every meeting carries an error where a process has one, so that
all give up a unit together: none waits for one that has failed.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

from lowrank.errors import LowrankError, StoreError
from lowrank.work.loading import launched

A = TypeVar("A")
T = TypeVar("T")
PATIENCE = timedelta(
    days=30
)  # that the first process may wait for other launches; one that dies ends the launch itself


class TeamError(LowrankError):
    """A unit that some process of the team could not compute; all of them know."""


class TeamStoreError(TeamError, StoreError):
    """As :class:`TeamError`, where the reason is the store."""


class Team:
    """``world`` processes, of which this is number ``rank``; ``group`` is None for one alone."""

    def __init__(self, rank: int = 0, world: int = 1, group: Any = None) -> None:
        self.rank, self.world, self.group = rank, world, group

    def spread(self, compute: Callable[[A], T], items: Sequence[A]) -> list[T]:
        """``compute`` of every item in their order; process r does items r, r + world, …"""
        if self.world == 1:
            return [compute(item) for item in items]
        try:
            own = [compute(item) for item in items[self.rank :: self.world]]
        except Exception as error:
            self._give_up(error)
        parts = self._meet(("spread", len(items)), own)
        return [parts[i % self.world][i // self.world] for i in range(len(items))]

    def together(self, compute: Callable[[], T]) -> T:
        """``compute()`` of a whole unit, which all processes end together; :class:`TeamError` where
        one of them fails.
        """
        if self.world == 1:
            return compute()
        try:
            found = compute()
        except TeamError:
            raise
        except Exception as error:
            self._give_up(error)
        self._meet(("end", 0), None)
        return found

    def smallest(self, sizes: Counter[str]) -> Counter[str]:
        """The smallest of each process's numbers."""
        if self.world == 1:
            return sizes
        found = self._meet(("sizes", 0), sizes)
        return Counter({name: min(one[name] for one in found) for name in sizes})

    def tell(self, what: Any) -> Any:
        """What the first process says; the others give anything."""
        if self.world == 1:
            return what
        import torch.distributed as dist

        said = [what]
        dist.broadcast_object_list(said, src=0, group=self.group)
        return said[0]

    def _give_up(self, error: Exception) -> NoReturn:
        sentence = (
            str(error) if isinstance(error, LowrankError) else f"{type(error).__name__}: {error}"
        )
        self._meet(("error", 0), None, sentence, isinstance(error, StoreError))
        raise AssertionError("a meeting with an error raises")

    def _meet(
        self, place: tuple[str, int], body: Any, error: str = "", of_store: bool = False
    ) -> list[Any]:
        """What every process brings to ``place``, in the order of their ranks; raises where one
        brings an error.
        """
        import torch.distributed as dist

        brought: list[Any] = [None] * self.world
        dist.all_gather_object(brought, (place, body, error, of_store), group=self.group)
        for _, _, sentence, store in brought:
            if sentence:
                raise (TeamStoreError if store else TeamError)(sentence)
        places = {where for where, *_ in brought}
        if len(places) > 1:
            raise RuntimeError(
                f"the processes of this launch lost step: they are at {sorted(places)}; start them again"
            )
        return [content for _, content, *_ in brought]


SOLO = Team()


@contextmanager
def joined() -> Iterator[Team]:
    """The team of this launch; one process alone where it is not part of a launch."""
    rank, world = launched()
    if world == 1 or "MASTER_ADDR" not in os.environ:
        yield SOLO
        return
    import torch.distributed as dist

    fresh = not dist.is_initialized()
    if fresh:
        dist.init_process_group("gloo", rank=rank, world_size=world, timeout=PATIENCE)
    try:
        yield Team(rank, world, None if fresh else dist.new_group(backend="gloo", timeout=PATIENCE))
    finally:
        if fresh:
            dist.destroy_process_group()
