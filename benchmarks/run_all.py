"""Run the benchmarks one after another, and list the targets at the end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BENCHMARKS = (
    "span_cost",
    "sampler_cost",
    "clock_accuracy",
    "startup",
    "memory",
    "snapshot",
    "heap_cost",
    "heap_memory",
    "publication",
    "feed",
    "feed_limits",
    "callbacks",
    "suspension",
    "decorators",
    "suspended_tasks",
    "thread_churn",
    "free_threading",
)


def run(name: str) -> tuple[list[str], bool]:
    """Run one benchmark; return its target lines and whether it ended well."""
    script = Path(__file__).with_name(f"{name}.py")
    targets = []
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            if line.startswith("target "):
                targets.append(line.rstrip())
    print()
    return targets, process.returncode == 0


def main() -> int:
    names = sys.argv[1:] or BENCHMARKS
    results = {name: run(name) for name in names}
    print("all targets")
    for targets, _ in results.values():
        for target in targets:
            print(" ", target.removeprefix("target "))
    failed = [name for name, (_, ended_well) in results.items() if not ended_well]
    if failed:
        print("did not run to their end:", ", ".join(failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
