"""The synthetic study of :mod:`factory`, filled once and copied for each test."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

from lowrank.predict import predict
from lowrank.report import write
from lowrank.store import Store


def load_factory() -> ModuleType:
    """tests/report/factory.py as a module."""
    name = "report_factory"
    if name not in sys.modules:
        path = Path(__file__).parent / "factory.py"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture(scope="session")
def factory() -> ModuleType:
    """The factory of synthetic studies."""
    return load_factory()


@pytest.fixture(scope="session")
def filled(
    factory: ModuleType, sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A store with the study ``demo``: three methods, two scales, two seeds, every lens, one run
    that diverged, predictors.
    """
    path = tmp_path_factory.mktemp("filled") / "lowrank.db"
    shutil.copy(sqlite_template, path)
    spec = factory.Synthetic(
        methods=("full_rank", "cola", "relora"),
        steps=(0, 100, 200, 300),
        layers=2,
        singular_values=6,
    )
    with Store.open(path) as store:
        factory.fill(store, spec)
        predict(
            store,
            "demo",
            schemes=("loso", "lomo"),
            models=("linear",),
            permutations=9,
            progress=False,
        )
    return path


@pytest.fixture(scope="session")
def written(filled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the report of ``demo``; not to be changed."""
    out = tmp_path_factory.mktemp("written") / "report"
    with Store.open(filled, read_only=True) as store:
        write(store, "demo", out, progress=False)
    return out
