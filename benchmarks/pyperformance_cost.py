"""pyperformance under exact heap tracking: does every benchmark end well, how much
slower is it?

Needs the packages ``pyperformance`` and ``sqlalchemy``. The benchmarks are
pyperformance's own scripts; their worker processes run whole inside a span.

    python pyperformance_cost.py [NAME...]
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from math import prod
from pathlib import Path

import harness

CASES: dict[str, tuple[str, ...]] = {
    "json_loads": (),
    "json_dumps": (),
    "pickle": ("pickle",),
    "deltablue": (),
    "richards": (),
    "nbody": (),
    "async_tree": ("none",),
    "async_tree_memoization": ("memoization",),
    "sqlalchemy_declarative": (),
    "sqlalchemy_imperative": (),
}

# Loaded by every interpreter that finds it on its path. pyperf runs a benchmark in
# worker processes; those are measured.
SITE = """
import sys
if "--worker" in sys.argv:
    import spanprof
    spanprof.start(track_heap=True)
    spanprof.span("benchmark").__enter__()
"""


def script(name: str) -> Path:
    spec = importlib.util.find_spec("pyperformance")
    if spec is None or spec.origin is None:
        sys.exit("pyperformance is not installed: pip install pyperformance sqlalchemy")
    folder = Path(spec.origin).parent / "data-files" / "benchmarks"
    for base in (name, name.removesuffix("_memoization")):
        path = folder / f"bm_{base}" / "run_benchmark.py"
        if path.exists():
            return path
    sys.exit(f"pyperformance has no benchmark {name!r}")


def seconds(name: str, site: Path | None) -> float:
    """Median of a benchmark's values; the process ends with an error if it fails."""
    import pyperf  # type: ignore[import-not-found]

    root = Path(__file__).parent.parent
    paths = [str(root), os.environ.get("PYTHONPATH", "")]
    if site is not None:
        paths.insert(0, str(site))
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "result.json"
        command = [sys.executable, script(name), *CASES[name], "--fast", "--quiet"]
        subprocess.run(
            [*command, "--inherit-environ=PYTHONPATH", "-o", output],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        return float(pyperf.Benchmark.load(str(output)).median())


def main() -> None:
    harness.heading("pyperformance, exact live heap against untracked")
    names = sys.argv[1:] or list(CASES)
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "sitecustomize.py").write_text(SITE)
        print(f"{'':24}{'untracked':>12}{'exact':>12}{'times':>8}")
        for name in names:
            plain, tracked = seconds(name, None), seconds(name, Path(folder))
            ratios.append(tracked / plain)
            cells = f"{plain * 1e3:9.2f} ms{tracked * 1e3:9.2f} ms{ratios[-1]:8.2f}"
            print(f"{name:24}{cells}", flush=True)
    print(f"{'geometric mean':48}{prod(ratios) ** (1 / len(ratios)):8.2f}")


if __name__ == "__main__":
    main()
