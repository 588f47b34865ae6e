"""What several test files need."""

import contextvars
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import pytest

import spanprof
from spanprof import _core

IS_FREE_THREADED = not getattr(sys, "_is_gil_enabled", lambda: True)()

SUSPENDS = sys.version_info >= (3, 12)
"""Whether spans of coroutines and generators are suspended with them."""

needs_suspension = pytest.mark.skipif(
    not SUSPENDS, reason="3.11 cannot tell of suspensions: their time counts as busy"
)

exact_with_the_gil = pytest.mark.skipif(
    IS_FREE_THREADED,
    reason="free-threaded builds have other allocators, and free some blocks later",
)

THREADS_INHERIT = bool(getattr(sys.flags, "thread_inherit_context", False))
"""Whether threads begin in a copy of the context of whoever starts them (3.14)."""

T = TypeVar("T")

Path_ = tuple[str, ...]
Values = dict[str, int]


def by_path(profile: spanprof.Profile) -> dict[Path_, Values]:
    """Values of each stack of names, outermost first: ``("a", "b")`` is b in a."""
    result: dict[Path_, Values] = {}
    for sample in profile.samples:
        path = tuple(callsite.name for callsite in reversed(sample.stack))
        known = result.setdefault(path, dict.fromkeys(sample.values, 0))
        for name, value in sample.values.items():
            known[name] += value
    return result


def series(profile: spanprof.Profile, name: str) -> dict[Path_, int]:
    """One series of :func:`by_path`; ``busy`` and ``idle`` for short."""
    name = {"busy": "wall_busy", "idle": "wall_idle"}.get(name, name)
    return {path: values[name] for path, values in by_path(profile).items()}


def calls(profile: spanprof.Profile) -> dict[Path_, int]:
    return series(profile, "calls")


class ManualClock:
    """Both clocks of the core, moved by hand. For every thread at once."""

    def __init__(self) -> None:
        self.wall = 1_000_000
        self.cpu = 500_000

    def __enter__(self) -> Self:
        _core.set_manual_clock(self.wall, self.cpu)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        spanprof.stop()
        _core.set_manual_clock(None, None)

    def __call__(self, wall: int, cpu: int = 0) -> None:
        """Let time pass."""
        self.wall += wall
        self.cpu += cpu
        _core.set_manual_clock(self.wall, self.cpu)


def bare_thread(run: Callable[..., object], *arguments: Any) -> threading.Thread:
    """A thread that inherits no context, whatever others do."""
    if THREADS_INHERIT:
        empty: dict[str, Any] = {"context": contextvars.Context()}
        return threading.Thread(target=run, args=arguments, **empty)
    return threading.Thread(target=run, args=arguments)


def wait_for_its_end(thread: threading.Thread) -> None:
    """The system's thread ends a little later, and gives its state back then."""
    task = Path(f"/proc/self/task/{thread.native_id}")
    deadline = time.monotonic() + 10
    while task.exists() and time.monotonic() < deadline:
        time.sleep(0.0001)


def in_thread(function: Callable[..., T], *arguments: Any) -> T:
    """Call a function on a new thread; its result, or what it raises."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(function(*arguments))
        except BaseException as error:
            errors.append(error)

    thread = bare_thread(run)
    thread.start()
    thread.join(60)
    assert not thread.is_alive(), "the thread hangs"
    wait_for_its_end(thread)
    if errors:
        raise errors[0]
    return results[0]


def in_threads(count: int, function: Callable[[int], T]) -> list[T]:
    """Call ``function(number)`` on several threads that start together."""
    barrier = threading.Barrier(count)
    results: dict[int, T] = {}
    errors: list[BaseException] = []

    def run(number: int) -> None:
        barrier.wait(60)
        try:
            results[number] = function(number)
        except BaseException as error:
            errors.append(error)

    threads = [bare_thread(run, n) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive(), "a thread hangs"
    if errors:
        raise errors[0]
    return [results[number] for number in range(count)]


def in_child(function: Callable[[], object]) -> None:
    """Call a function in a child by fork; that it has not raised is asserted."""
    with warnings.catch_warnings():
        # A thread of an earlier test may be about to end.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        status = 1
        try:
            function()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What spanprof has logged."""
    return [each.getMessage() for each in caplog.records if each.name == "spanprof"]


def python_environment() -> dict[str, str]:
    """Variables with which a program can import the same spanprof as we do."""
    package = Path(spanprof.__file__).parent
    return os.environ | {"PYTHONPATH": str(package.parent), "PYTHONFAULTHANDLER": "1"}


def run_python(
    code: str,
    *arguments: str,
    cwd: Path,
    stdin: str = "",
    options: tuple[str, ...] = (),
    timeout: float = 60,
    status: int = 0,
) -> subprocess.CompletedProcess[str]:
    """Run a program that can import the same spanprof as we do."""
    script = cwd / "program.py"
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, *options, str(script), *arguments],
        cwd=cwd,
        env=python_environment(),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == status, f"{done.returncode}: {done.stdout}\n{done.stderr}"
    return done


def burn_cpu(nanoseconds: int) -> int:
    """Use that much CPU time of this thread; what it was in fact."""
    began = now = time.thread_time_ns()
    while now - began < nanoseconds:
        now = time.thread_time_ns()
    return now - began
