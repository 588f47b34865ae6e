"""Which lines of the core the tests have run: of each file, and the untested ones.

``python coverage_report.py BUILD_DIRECTORY [LEAST_PERCENT]`` reads what gcov knows of
the core's library in that directory, built with ``-Db_coverage=true``. Its status is 1
if fewer than that many percent of all lines were run.

A header's line counts once, and as run if any unit that includes it has run it. What
no unit of the library makes code of (an inline function that only the extension module
calls) is not among the lines. Generated code is left out.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "csrc" / "core"
UNTESTED = Path(__file__).with_name("untested.txt")

Lines = dict[int, int]
"""How often each line that has code was run, by its number from 1."""


def gcov() -> str:
    """The gcov of the compiler that is used, or the one that GCOV names."""
    compiler = os.environ.get("CC", "gcc").split()[0]
    version = re.search(r"gcc(-\d+)?$", compiler)
    return os.environ.get("GCOV") or "gcov" + ((version and version[1]) or "")


def read(directory: Path) -> dict[Path, Lines]:
    """The lines of the core's files, added up over all units."""
    notes = sorted(
        str(file.relative_to(directory)) for file in directory.rglob("*.gcno")
    )
    if not notes:
        sys.exit(f"{directory} was not built with -Db_coverage=true")
    done = subprocess.run(
        [gcov(), "--json-format", "--stdout", *notes],
        cwd=directory,
        stdin=subprocess.DEVNULL,
        capture_output=True,  # stderr: that a file has no functions, which is so
        check=False,
    )
    if done.returncode != 0:
        sys.exit(done.stderr.decode())
    files: dict[Path, Lines] = {}
    for unit in done.stdout.splitlines():
        for file in json.loads(unit)["files"]:
            path = (directory / file["file"]).resolve()
            if path.parent != CORE:
                continue
            lines = files.setdefault(path, {})
            for line in file["lines"]:
                number = line["line_number"]
                lines[number] = lines.get(number, 0) + line["count"]
    return files


def untested(lines: Lines) -> Iterator[tuple[int, int]]:
    """First and last of the lines in a row that were not run. Lines without code do
    not part them."""
    first = last = 0
    for number in sorted(lines):
        if lines[number] == 0:
            first, last = first or number, number
        elif first:
            yield first, last
            first = 0
    if first:
        yield first, last


def reasons() -> dict[str, str]:
    """Why some lines are not tested, by the text of the first of them in a row."""
    known = {}
    for line in UNTESTED.read_text().splitlines():
        if line and not line.startswith("#"):
            place, reason = line.split(" -- ")
            known[place] = reason
    return known


def print_table(files: Mapping[Path, Lines]) -> float:
    """Returns how many percent of all lines were run."""
    print(f"{'file':24}{'lines':>8}{'covered':>9}{'percent':>9}")
    all_lines = all_covered = 0
    for path in sorted(files):
        count = len(files[path])
        covered = sum(runs > 0 for runs in files[path].values())
        all_lines, all_covered = all_lines + count, all_covered + covered
        print(f"{path.name:24}{count:8}{covered:9}{100 * covered / count:9.1f}")
    percent = 100 * all_covered / max(all_lines, 1)
    print(f"{'csrc/core':24}{all_lines:8}{all_covered:9}{percent:9.1f}")
    return percent


def print_untested(files: Mapping[Path, Lines]) -> None:
    known = reasons()
    used = set()
    for path in sorted(files):
        source = path.read_text().splitlines()
        for first, last in untested(files[path]):
            look = source[first - 1].strip()
            place = f"{path.name}: {look}"
            used.add(place)
            reason = f"  ({known[place]})" if place in known else ""
            print(f"{path.relative_to(ROOT)}:{first}-{last}  {look[:60]}{reason}")
    for place in sorted(known.keys() - used):
        print(f"{UNTESTED.name} gives a reason for what is tested or gone: {place}")


def main() -> None:
    directory = Path(sys.argv[1]).resolve()
    least = float(sys.argv[2]) if len(sys.argv) > 2 else 0.0
    files = read(directory)
    print("\nlines that no test has run:")
    print_untested(files)
    print()
    percent = print_table(files)
    if percent < least:
        sys.exit(
            f"{percent:.1f} % of the lines are covered, which is below {least:g} %"
        )


if __name__ == "__main__":
    main()
