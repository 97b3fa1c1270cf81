"""Placeholder while the chapter is written."""
from __future__ import annotations
from lowrank.report.figure import Section, Missing
def build(source, other=None):
    return Section(name=__name__.rpartition(".")[2], title=__name__.rpartition(".")[2].title(), blocks=[Missing(reason="x", command="lowrank predict FILE")])
