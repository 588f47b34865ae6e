"""What counts of instructions are compared by: benchmarks/instructions.py."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
KEPT = {"here": {"enter": 100.0, "exit": 50.0}}


@pytest.fixture(scope="module")
def instructions() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "instructions", FOLDER / "instructions.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(FOLDER))  # for what benchmarks share
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(FOLDER))
    return module


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ({"enter": 100.0, "exit": 50.0}, []),
        ({"enter": 102.9, "exit": 48.6}, []),
        ({"enter": 103.1, "exit": 50.0}, ["here: enter rose by +3.1%"]),
        ({"enter": 100.0, "exit": 48.0}, ["here: exit fell by -4.0%"]),
        ({"enter": 100.0}, ["here: exit is new or gone"]),
        ({"enter": 100.0, "exit": 50.0, "x": 1.0}, ["here: x is new or gone"]),
    ],
)
def test_a_change_of_over_three_per_cent_is_told(
    instructions: ModuleType, found: dict[str, float], told: list[str]
) -> None:
    assert instructions.verdict(KEPT, {"here": found}) == told


def test_figures_of_another_compiler_do_not_count(instructions: ModuleType) -> None:
    found = {"there": {"enter": 100.0}}
    assert instructions.verdict(KEPT, found) == ["no figures are kept for there"]
    assert json.loads(instructions.merged(KEPT, found)) == {**KEPT, **found}
