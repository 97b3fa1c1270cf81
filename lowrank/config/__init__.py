"""Load study files: strict, layered and hashed.

Layers are applied in the order defaults, preset, study file, ``--set``; the later one wins. Every
layer is validated on its own, so that an error names the file and the key that the user wrote. The
resolved configuration of a run and its hash are stored with the run.
"""

from lowrank.config.loading import load_study, parse_study, read_yaml
from lowrank.config.resolve import RunConfig, resolve_runs
from lowrank.config.schema import Data, MethodEntry, MetricEntry, ModelShape, ScaleEntry, Study
from lowrank.settings import Config, Training

__all__ = [
    "Config",
    "Data",
    "MethodEntry",
    "MetricEntry",
    "ModelShape",
    "RunConfig",
    "ScaleEntry",
    "Study",
    "Training",
    "load_study",
    "parse_study",
    "read_yaml",
    "resolve_runs",
]
