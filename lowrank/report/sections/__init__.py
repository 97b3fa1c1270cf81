"""The chapters of a report, each a function from rows to a
:class:`~lowrank.report.figure.Section`.
"""
