"""The public names: all there, lazily imported, documented, and needing nothing of lowrank else."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

from lowrank import optim


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_importing_is_light_until_a_name_is_used() -> None:
    code = (
        "import sys, lowrank.optim as o; dir(o); light = 'torch' not in sys.modules; o.GaLoreAdamW;"
        "print(light, 'torch' in sys.modules,"
        " sorted({m.split('.')[1] for m in sys.modules if m.startswith('lowrank.')}))"
    )
    assert python(code) == "True True ['errors', 'moved', 'optim']"


@pytest.mark.parametrize("name", optim.__all__)
def test_public_names_exist_and_say_what_they_do(name: str) -> None:
    found = getattr(optim, name)
    assert found.__name__ == name
    assert found.__module__.startswith("lowrank.optim.")
    assert len(inspect.getdoc(found) or "") > 40
    assert name in dir(optim)


def test_the_list_of_names_is_that_of_their_modules() -> None:
    assert sorted(optim._HOMES) == optim.__all__ == sorted(optim.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"'lowrank\.optim' has no attribute 'GaLoreAdam'"):
        _ = optim.GaLoreAdam
