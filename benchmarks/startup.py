"""What it costs to import spanprof, and to start and stop a session."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from statistics import median
from time import perf_counter

import harness

ROUNDS = 31


def milliseconds(work: Callable[[], object]) -> float:
    start = perf_counter()
    work()
    return (perf_counter() - start) * 1e3


def interpreter(code: str) -> float:
    # -P: the installed package, and not one that lies in the current directory.
    command = [sys.executable, "-P", "-c", code]
    return milliseconds(lambda: subprocess.run(command, check=True))


def sessions(with_reporter: bool) -> list[float]:
    """Milliseconds to start and stop a session in which nothing happens."""
    import spanprof

    with tempfile.TemporaryDirectory() as folder:

        def session() -> None:
            reporters = (
                [spanprof.PProfReporter(spanprof.FileBackend(folder))]
                if with_reporter
                else []
            )
            spanprof.start(track_all=True, reporters=reporters)
            spanprof.stop()

        session()
        return [milliseconds(session) for _ in range(ROUNDS)]


def main() -> None:
    harness.heading("start-up")
    imports, starts = [], []
    for _ in range(ROUNDS):
        bare = interpreter("pass")
        starts.append(bare)
        imports.append(interpreter("import spanprof") - bare)
    print(f"the interpreter alone starts in {median(starts):.1f} ms")
    harness.report(
        "import spanprof",
        "adds at most 10 ms",
        f"{median(imports):.1f} ms",
        median(imports) <= 10,
    )
    for name, with_reporter in (("no reporter", False), ("pprof reporter", True)):
        taken = sessions(with_reporter)
        harness.report(
            f"start and stop, idle, {name}",
            "at most 5 ms",
            f"median {median(taken):.2f} ms, worst {max(taken):.2f} ms",
            median(taken) <= 5,
        )


if __name__ == "__main__":
    main()
