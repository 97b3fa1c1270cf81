"""The process group of one launch (``torchrun``, ``accelerate launch``) that computes units
together.

All processes compute the same units in the same order. Where a lens maps a function over
independent evaluations, each process computes a share and all of them get every result. Every
exchange carries the error of a process that has one, so that all processes give up the unit
together and none waits for one that has failed.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

from lowrank.errors import LowrankError, StoreError
from lowrank.work.loading import rank_and_world_size

A = TypeVar("A")
T = TypeVar("T")
# How long the first process may wait for other launches; a process that dies ends the whole launch.
TIMEOUT = timedelta(days=30)


class GroupError(LowrankError):
    """A unit that some process of the group could not compute; it is raised in all of them."""


class GroupStoreError(GroupError, StoreError):
    """A :class:`GroupError` whose reason is the store."""


class ProcessGroup:
    """``world_size`` processes, of which this is number ``rank``.

    ``handle`` is the group of ``torch.distributed``; None is its default group.
    """

    def __init__(self, rank: int = 0, world_size: int = 1, handle: Any = None) -> None:
        self.rank, self.world_size, self.handle = rank, world_size, handle

    def map(self, compute: Callable[[A], T], items: Sequence[A]) -> list[T]:
        """Return ``compute`` of every item in order; process r computes items r, r + world_size, …

        Every process calls this at the same place with as many items. Raises :class:`GroupError` in
        all of them if an item fails in one.
        """
        if self.world_size == 1:
            return [compute(item) for item in items]
        try:
            share = [compute(item) for item in items[self.rank :: self.world_size]]
        except Exception as error:
            self._raise_everywhere(error)
        shares = self._gather(("map", len(items)), share)
        return [shares[i % self.world_size][i // self.world_size] for i in range(len(items))]

    def run(self, compute: Callable[[], T]) -> T:
        """Return ``compute()`` of a whole unit, after which all processes have met.

        Raises :class:`GroupError` in all of them if it fails in one.
        """
        if self.world_size == 1:
            return compute()
        try:
            found = compute()
        except GroupError:
            raise
        except Exception as error:
            self._raise_everywhere(error)
        self._gather(("end", 0), None)
        return found

    def minimum(self, sizes: Counter[str]) -> Counter[str]:
        """Return the smallest number of any process under each name of ``sizes``."""
        if self.world_size == 1:
            return sizes
        gathered = self._gather(("sizes", 0), sizes)
        return Counter({name: min(one[name] for one in gathered) for name in sizes})

    def broadcast(self, message: Any) -> Any:
        """Return the message of the first process; what the others pass is ignored."""
        if self.world_size == 1:
            return message
        import torch.distributed as dist

        sent = [message]
        dist.broadcast_object_list(sent, src=0, group=self.handle)
        return sent[0]

    def _raise_everywhere(self, error: Exception) -> NoReturn:
        sentence = (
            str(error) if isinstance(error, LowrankError) else f"{type(error).__name__}: {error}"
        )
        self._gather(("error", 0), None, sentence, isinstance(error, StoreError))
        raise AssertionError("gathering an error raises it")

    def _gather(
        self, place: tuple[str, int], body: Any, error: str = "", of_store: bool = False
    ) -> list[Any]:
        """Return the bodies of all processes at ``place``, in the order of their ranks.

        Raises :class:`GroupError` if one of them brings an error, and RuntimeError if they are not
        at the same place.
        """
        import torch.distributed as dist

        gathered: list[Any] = [None] * self.world_size
        dist.all_gather_object(gathered, (place, body, error, of_store), group=self.handle)
        for _, _, sentence, store in gathered:
            if sentence:
                raise (GroupStoreError if store else GroupError)(sentence)
        places = {where for where, *_ in gathered}
        if len(places) > 1:
            raise RuntimeError(
                f"the processes of this launch are out of step: they are at {sorted(places)}; start them again"
            )
        return [content for _, content, *_ in gathered]


SINGLE = ProcessGroup()


@contextmanager
def launched_group() -> Iterator[ProcessGroup]:
    """Give the process group of this launch; a single process where there is no launch."""
    rank, world_size = rank_and_world_size()
    if world_size == 1 or "MASTER_ADDR" not in os.environ:
        yield SINGLE
        return
    import torch.distributed as dist

    fresh = not dist.is_initialized()
    if fresh:
        dist.init_process_group("gloo", rank=rank, world_size=world_size, timeout=TIMEOUT)
    try:
        handle = None if fresh else dist.new_group(backend="gloo", timeout=TIMEOUT)
        yield ProcessGroup(rank, world_size, handle)
    finally:
        if fresh:
            dist.destroy_process_group()
