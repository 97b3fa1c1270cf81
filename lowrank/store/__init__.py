"""Every run, checkpoint and number as rows of SQLite or PostgreSQL."""

from lowrank.store.api import Store

__all__ = ["Store"]
