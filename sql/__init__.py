"""The named queries of ``lowrank query``: one file each, whose header declares description and
parameters.
"""
