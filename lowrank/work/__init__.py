"""The engine of missing work: claims, retries, failures, progress and waiting, written once.

A :class:`Stage` lists the items of work that lack rows, computes one of them and stores its rows. A
:class:`Worker` claims items, so that any number of processes on any number of machines share them,
and hands them out one after the other::

    with worker.claimed() as items:
        for item in items:
            with worker.attempt(item):
                worker.store_result(item, stage.compute(item))

There is no queue: what is missing is the difference between the rows that a study asks for and the
rows that its store holds. A worker that is killed loses the item in flight and nothing else.
"""

from lowrank.work.stage import Claimed, Item, Stage, failures
from lowrank.work.summary import WorkSummary
from lowrank.work.worker import Worker, WorkerOptions, do_missing

__all__ = [
    "Claimed",
    "Item",
    "Stage",
    "WorkSummary",
    "Worker",
    "WorkerOptions",
    "do_missing",
    "failures",
]
