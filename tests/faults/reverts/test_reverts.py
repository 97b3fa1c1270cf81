"""Every revert still applies, and names a test that exists; `make reverts` runs them."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]


def module() -> Any:
    spec = importlib.util.spec_from_file_location(
        "reverts_check", Path(__file__).with_name("check.py")
    )
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded  # dataclasses look their module up
    spec.loader.exec_module(loaded)
    return loaded


CHECK = module()


@pytest.mark.parametrize("revert", CHECK.reverts(), ids=lambda revert: revert.name)
def test_a_revert_applies_and_its_test_exists(revert: Any) -> None:
    assert CHECK.applies(revert, ROOT, check=True) == ""
    path, _, name = revert.test.partition("::")
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert name.partition("[")[0] in functions
