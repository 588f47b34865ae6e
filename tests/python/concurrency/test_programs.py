"""Random programs of tasks, generators, contexts, threads: rules 4.1 to 4.4, 5.1, 5.2.

Each runs on every loop that is installed, on a clock that is moved by hand. The profile
must equal the model's to the nanosecond, and all loops must give the same.
"""

import os
import random
import traceback
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from .asyncio_loops import AsyncioLoop, UvloopLoop
from .loops import BareLoop, Loop, OneContextLoop
from .programs import Program, programs
from .runtime import SEES_SUSPENSION, run_program
from .shrink import shrunk
from .trio_loops import AnyioLoop, TrioLoop

EXAMPLES = {"quick": 40, "default": 150, "thorough": 5000}
PROFILE = os.environ.get("SPANPROF_HYPOTHESIS_PROFILE", "default")

LOOPS: dict[str, Callable[[], Loop]] = {
    "bare": BareLoop,
    "asyncio": AsyncioLoop,
    "uvloop": UvloopLoop,
    "trio": TrioLoop,
    "anyio-asyncio": lambda: AnyioLoop("asyncio"),
    "anyio-trio": lambda: AnyioLoop("trio"),
}

random_programs = settings(
    max_examples=EXAMPLES.get(PROFILE, EXAMPLES["default"]),
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],
)


if SEES_SUSPENSION:  # else who shares a context sees the spans of those who wait
    LOOPS["one-context"] = OneContextLoop


def run_on_both(program: Program, loop: Loop) -> None:
    """On the bare loop as well, which must give the same; if tasks have contexts."""
    found = run_program(program, loop)
    if loop.has_contexts and not isinstance(loop, BareLoop):
        assert found == run_program(program, BareLoop()), f"{loop.name}: {program}"


def failure(program: Program, loop: Loop) -> str | None:
    """How a program fails: where, and what with."""
    try:
        run_on_both(program, loop)
    except Exception as error:
        innermost = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error)} in {innermost.name}: {innermost.line}"
    return None


def check(program: Program, loop: Loop) -> None:
    try:
        run_on_both(program, loop)
    except Exception:
        run_on_both(shrunk(program, lambda each: failure(each, loop)), loop)
        raise


@pytest.mark.xfail(
    not SEES_SUSPENSION,
    reason="spans of a suspended generator are parents of what its consumer opens",
)
@pytest.mark.parametrize("name", LOOPS)
def test_rules_4_1_to_5_2_random_programs(name: str) -> None:
    loop = LOOPS[name]()
    failed: list[Exception] = []

    # Every loop has its own programs, the same ones each time.
    @seed(random.random() if PROFILE == "thorough" else name)
    @random_programs
    @given(programs)
    def run(program: Program) -> None:
        if failed:
            return
        try:
            check(program, loop)
        except Exception as error:
            failed.append(error)

    run()
    if failed:
        raise failed[0]
