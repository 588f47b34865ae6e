"""A column of a CSV file is summed in C, by threads of its own, and profiled together
with the Python code that calls it::

    python examples/native/run.py               as a C extension
    python examples/native/run.py --cffi        by cffi, API mode (needs the package)

Compiles the C code first, with cc. csvsum.c has the spans, extension.c and
csvsum_cffi.py what makes a module of it.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import spanprof

HERE = Path(__file__).parent
Sum = Callable[[bytes, int, int], tuple[float, int, int]]


def compile_to(folder: Path, name: str, source: Path) -> Path:
    target = folder / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
    command = [os.environ.get("CC", "cc"), "-O2", "-shared", "-fPIC", "-pthread"]
    command += [f"-I{HERE}", f"-I{spanprof.get_include()}"]
    command += [f"-I{sysconfig.get_path('include')}"]
    command += [str(source), str(HERE / "csvsum.c"), "-o", str(target)]
    subprocess.run(command, check=True)
    return target


def load(name: str, path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def by_extension(folder: Path) -> Sum:
    name = "csvsum_extension"
    path = compile_to(folder, name, HERE / "extension.c")
    result: Sum = load(name, path).sum
    return result


def by_cffi(folder: Path) -> Sum:
    sys.path.insert(0, str(HERE))
    import csvsum_cffi

    name = "csvsum_by_cffi"
    source = folder / f"{name}.c"
    csvsum_cffi.describe(name).emit_c_code(str(source))
    result: Sum = csvsum_cffi.summing(load(name, compile_to(folder, name, source)))
    return result


@spanprof.span("write")
def write(path: Path, rows: int) -> None:
    with path.open("w") as file:
        file.write("name,price,number\n")
        file.writelines(f"thing {n},{n / 4},{n % 7}\n" for n in range(rows))


@spanprof.span("load")
def load_and_sum(path: Path, total: Sum, threads: int) -> tuple[float, int, int]:
    with spanprof.span("read"):
        text = path.read_bytes()
    return total(text, 1, threads)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cffi", action="store_true", help="instead of an extension")
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        total = by_cffi(folder) if options.cffi else by_extension(folder)
        with spanprof.start(track_cpu=True) as session:
            write(folder / "prices.csv", options.rows)
            found = load_and_sum(folder / "prices.csv", total, options.threads)
    print("sum {:.2f} of {} rows, {} without a number".format(*found))
    print(session.result)


if __name__ == "__main__":
    main()
