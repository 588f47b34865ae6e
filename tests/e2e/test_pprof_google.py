"""Google's pprof reads what we write: rule 7.3.

Takes the first of: ``SPANPROF_PPROF`` (a path), ``pprof`` on PATH, one built earlier or
now from github.com/google/pprof by ``go install`` (kept in the user's cache folder),
``go tool pprof``. Without any of them the tests are skipped, and say so.
"""

import os
import re
import shutil
import subprocess
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

import spanprof
from spanprof import Profile, _core, span

MODULE = "github.com/google/pprof@" + os.environ.get("SPANPROF_PPROF_VERSION", "latest")
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spanprof"

KINDS = ("calls", "wall", "cpu", "alloc", "heap")
DEFAULTS = {
    "calls": "calls",
    "wall": "wall",
    "cpu": "cpu",
    "alloc": "alloc_space",
    "heap": "inuse_space",
}


def find_pprof() -> list[str] | str:
    """The command, or why there is none."""
    chosen = os.environ.get("SPANPROF_PPROF")
    if chosen:
        return [chosen]
    found = shutil.which("pprof")
    if found:
        return [found]
    built = CACHE / "bin" / "pprof"
    if built.exists():
        return [str(built)]
    go = shutil.which("go")
    if go is None:
        return "no pprof: neither pprof nor go is on PATH"
    try:
        built.parent.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {"GOBIN": str(built.parent), "GOFLAGS": "-mod=mod"}
        subprocess.run(
            [go, "install", MODULE],
            env=environment,
            capture_output=True,
            timeout=600,
            check=True,
        )
        return [str(built)]
    except (OSError, subprocess.SubprocessError) as error:
        reason = f"`go install {MODULE}` failed: {error}"
    tool = subprocess.run([go, "tool", "pprof", "-h"], capture_output=True, check=False)
    if b"usage" in (tool.stdout + tool.stderr).lower():
        return [go, "tool", "pprof"]
    return f"no pprof: {reason}, and there is no `go tool pprof`"


@pytest.fixture(scope="session")
def command() -> list[str]:
    found = find_pprof()
    if isinstance(found, str):
        pytest.skip(found)
    return found


@pytest.fixture
def pprof(command: list[str], tmp_path: Path) -> "Pprof":
    return Pprof(command, tmp_path)


Stack = tuple[tuple[str, str, int], ...]
Key = tuple[Stack, tuple[tuple[str, str], ...]]


@dataclass
class Raw:
    """What ``-raw`` prints."""

    types: list[str]
    default: str
    samples: dict[Key, list[int]]
    header: dict[str, str]

    @property
    def totals(self) -> dict[str, int]:
        columns = list(zip(*self.samples.values(), strict=True)) or [()] * len(
            self.types
        )
        return dict(zip(self.types, map(sum, columns), strict=True))


class Pprof:
    """Runs it; what is not asked for on its standard error is an error."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self._command = command
        self._folder = folder

    def run(self, *arguments: str | Path) -> str:
        environment = os.environ | {
            "PPROF_TMPDIR": str(self._folder),
            "HOME": str(self._folder),
        }
        if "tool" in self._command:  # go keeps its build cache at home
            environment["HOME"] = os.environ.get("HOME", str(self._folder))
        done = subprocess.run(
            [*self._command, *map(str, arguments)],
            env=environment,
            cwd=self._folder,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=120,
            check=False,
        )
        told = [
            line
            for line in done.stderr.splitlines()
            if not line.startswith("Generating report in ")
        ]
        assert done.returncode == 0, done.stderr
        assert told == [], done.stderr
        return done.stdout

    def raw(self, path: Path) -> Raw:
        text = self.run("-raw", path)
        head, rest = text.split("Samples:\n")
        body, rest = rest.split("Locations\n")
        places, _ = rest.split("Mappings\n")
        header = dict(line.split(": ", 1) for line in head.splitlines())

        locations: dict[int, tuple[str, str, int]] = {}
        for line in places.splitlines():
            match = re.fullmatch(
                r" +(\d+): 0x0 M=1 (.*) (\S+?):(\d+)(?::0)? s=\d+", line
            )
            assert match, line
            number, name, file, row = match.groups()
            locations[int(number)] = (name, file, int(row))

        lines = iter(body.splitlines())
        types = next(lines).split()
        default = [each for each in types if each.endswith("[dflt]")]
        found: list[tuple[Stack, list[tuple[str, str]], list[int]]] = []
        for line in lines:
            match = re.fullmatch(r"((?: *-?\d+)+): ((?:\d+ )+)", line)
            if match:
                values = [int(each) for each in match[1].split()]
                stack = tuple(locations[int(each)] for each in match[2].split())
                found.append((stack, [], values))
            else:  # the labels of the sample above
                found[-1][1].extend(re.findall(r"(\w+):\[([^]]*)\]", line))
        samples: dict[Key, list[int]] = {}
        for stack, labels, values in found:
            add(samples, (stack, tuple(sorted(labels))), values)
        names = [each.split("/")[0] for each in types]
        return Raw(names, default[0].split("/")[0] if default else "", samples, header)


def add(samples: dict[Key, list[int]], key: Key, values: list[int]) -> None:
    """Spans of equal stacks and labels may be several samples: labels of ancestors that
    an inner span overrides tell them apart in the tree, and are not written."""
    known = samples.get(key, [0] * len(values))
    samples[key] = [a + b for a, b in zip(known, values, strict=True)]


def expected_of(profile: Profile, types: list[str]) -> dict[Key, list[int]]:
    samples: dict[Key, list[int]] = {}
    for sample in profile.samples:
        values = [sample.values[name] for name in types]
        stack = tuple((str(site), site.file, site.line) for site in sample.stack)
        if any(values):
            add(samples, (stack, tuple(sorted(sample.labels.items()))), values)
    return samples


kept: list[object] = []


def nest(depth: int, width: int) -> None:
    for number in range(width):
        with span(f"level{depth}", user=f"u{number % 3}", ignored=number):
            kept.append([object() for _ in range(20)])
            sum(range(100))
            if depth:
                nest(depth - 1, width)


@pytest.fixture(scope="module")
def profile() -> Profile:
    """Real work, of every kind, with labels and idle time."""
    with spanprof.start(track_all=True, record_labels=["user", "job"]) as session:
        nest(3, 4)
        job = span("job", job="j1").open()
        with job, span("step"):
            sum(range(1000))
        job.close()
        with ExitStack() as stack:
            for _ in range(300):
                stack.enter_context(span("deep"))
                sum(range(200))
    return session.result


def write(profile: Profile, folder: Path) -> dict[str, Path]:
    files = {kind: folder / f"{kind}.pb.gz" for kind in profile.kinds}
    for kind, path in files.items():
        profile.write(path, kind)
    return files


@pytest.mark.parametrize("kind", KINDS)
def test_rule_7_3_every_stack_and_value_is_ours(
    pprof: Pprof, profile: Profile, tmp_path: Path, kind: str
) -> None:
    raw = pprof.raw(write(profile, tmp_path)[kind])
    assert raw.default == DEFAULTS[kind]
    assert raw.samples == expected_of(profile, raw.types)
    assert len(raw.samples) > 50
    assert raw.totals == {name: profile.totals[name] for name in raw.types}
    assert raw.header["Period"] == "1"
    assert raw.header["PeriodType"].split()[0] == DEFAULTS[kind]
    began = datetime.fromtimestamp(profile.start // 10**9, UTC)
    assert raw.header["Time"].startswith(f"{began:%Y-%m-%d %H:%M:%S}")
    # It prints the first four characters of the duration, without the unit.
    duration = next(profile.duration / n for n in (1e9, 1e6) if profile.duration >= n)
    assert f"{duration:.6f}".startswith(raw.header["Duration"].rstrip("."))


@pytest.mark.parametrize("kind", KINDS)
def test_rule_7_3_every_report_without_a_warning(
    pprof: Pprof, profile: Profile, tmp_path: Path, kind: str
) -> None:
    path = write(profile, tmp_path)[kind]
    # In the unit as stored, nothing is rounded.
    unit = {"calls": "count", "alloc": "bytes", "heap": "bytes"}.get(kind, "ns")
    top = pprof.run("-top", "-nodecount=0", "-nodefraction=0", f"-unit={unit}", path)
    assert f"Type: {DEFAULTS[kind]}" in top
    header, *rows = top.splitlines()[top.splitlines().index(first_of(top)) :]
    assert header.split() == ["flat", "flat%", "sum%", "cum", "cum%"]
    flat: dict[str, float] = {}
    for row in rows:
        cells = row.split(maxsplit=5)
        flat[cells[5]] = flat.get(cells[5], 0) + value_of(cells[0])
    for name, value in flat.items():
        ours = sum(
            sample.values[DEFAULTS[kind]]
            for sample in profile.samples
            if str(sample.stack[0]) == name
        )
        assert value == ours, name
    assert sum(flat.values()) == profile.totals[DEFAULTS[kind]]

    assert "level0" in pprof.run("-traces", path)
    tags = pprof.run("-tags", path)
    assert "user: Total" in tags
    assert "u2" in tags
    assert "ignored" not in tags
    for report in ("-tree", "-peek=level", "-text", "-dot"):
        assert "level0" in pprof.run(report, path)


def first_of(top: str) -> str:
    return next(line for line in top.splitlines() if line.split()[:1] == ["flat"])


def value_of(text: str) -> float:
    match = re.fullmatch(r"(-?[\d.]+)(ns|B|count)?", text)
    assert match, text
    return float(match[1])


@pytest.mark.parametrize("kind", KINDS)
def test_rule_7_3_proto_comes_back_the_same(
    pprof: Pprof, profile: Profile, tmp_path: Path, kind: str
) -> None:
    path = write(profile, tmp_path)[kind]
    again = tmp_path / "again.pb.gz"
    pprof.run("-proto", f"-output={again}", path)
    assert pprof.raw(again).samples == pprof.raw(path).samples
    read = Profile.read(again)
    assert read.totals == Profile.read(path).totals


def test_rule_7_3_every_sample_type_can_be_chosen(
    pprof: Pprof, profile: Profile, tmp_path: Path
) -> None:
    for kind, path in write(profile, tmp_path).items():
        for name, _, of, _ in _core.SERIES:
            if of == kind:
                text = pprof.run("-top", f"-sample_index={name}", path)
                assert f"Type: {name}" in text


def test_rule_7_3_diff_base(pprof: Pprof, tmp_path: Path) -> None:
    with spanprof.start(track_all=True) as session:
        with span("a"):
            sum(range(10_000))
        first = session.snapshot()
        with span("a"), span("b"):
            sum(range(10_000))
    last = session.result
    before, after = tmp_path / "before.pb.gz", tmp_path / "after.pb.gz"
    first.write(before, "wall")
    last.write(after, "wall")
    same = pprof.run("-top", f"-diff_base={after}", after)
    assert "accounting for 0, 0%" in same
    difference = tmp_path / "difference.pb.gz"
    pprof.run("-proto", f"-base={before}", f"-output={difference}", after)
    ours = tmp_path / "ours.pb.gz"
    (last - first).write(ours, "wall")
    theirs = pprof.raw(difference)
    assert theirs.samples == pprof.raw(ours).samples
    assert theirs.samples == expected_of(last - first, theirs.types)


def test_rule_7_3_several_files_add_up(
    pprof: Pprof, profile: Profile, tmp_path: Path
) -> None:
    path = write(profile, tmp_path)["wall"]
    total = tmp_path / "total.pb.gz"
    pprof.run("-proto", f"-output={total}", path, path, path)
    assert pprof.raw(total).totals["wall"] == 3 * profile.totals["wall"]


ODD = ["ü", "日本語 🐍", "a\0b", "\ud800", "a::b<c>(d)", 'q"\\n', "%s %d", "x" * 3000]


def test_rule_7_3_odd_names(pprof: Pprof, tmp_path: Path) -> None:
    with spanprof.start(record_labels=["k"]) as session:
        for text in ODD:
            with span("odd " + text, k=text):
                pass
        with span("line\nbreak", k="tab\tline\n"):
            pass
    path = write(session.result, tmp_path)["calls"]
    for report in ("-raw", "-top", "-traces", "-tags", "-dot"):
        text = pprof.run(report, "-nodecount=0", path)
        assert "odd ü" in text or report == "-tags"
    again = tmp_path / "again.pb.gz"
    pprof.run("-proto", f"-output={again}", path)
    read = Profile.read(again)
    assert read.totals["calls"] == len(ODD) + 1
    assert {s.stack[0].name for s in read.samples} >= {"odd ü", "odd 日本語 🐍"}


def test_rule_7_3_large_and_negative_values(pprof: Pprof, tmp_path: Path) -> None:
    _core.set_manual_clock(0, 0)
    try:
        with spanprof.start(track_wall=True, track_cpu=True) as session:
            empty = session.snapshot()
            with span("long"):
                _core.set_manual_clock(2**61, 2**60)
    finally:
        spanprof.stop()
        _core.set_manual_clock(None, None)
    path = tmp_path / "x.pb.gz"
    for profile, value in ((session.result, 2**61), (empty - session.result, -(2**61))):
        profile.write(path, "wall")
        assert pprof.raw(path).totals["wall"] == value


def test_rule_7_3_an_empty_profile(pprof: Pprof, tmp_path: Path) -> None:
    with spanprof.start(track_all=True) as session:
        pass
    for path in write(session.result, tmp_path).values():
        assert pprof.raw(path).samples == {}
        pprof.run("-top", path)


def test_rule_7_3_reporter_files(pprof: Pprof, tmp_path: Path) -> None:
    folder = tmp_path / "profiles"
    with spanprof.start(
        track_all=True,
        report_interval=0,
        max_samples=7,
        reporters=[spanprof.PProfReporter(spanprof.FileBackend(folder))],
    ) as session:
        for _ in range(3):
            nest(2, 3)
            session.flush()
    for kind in set(KINDS) - {"heap"}:
        files = [path for path in sorted(folder.iterdir()) if kind in path.name]
        total = tmp_path / f"{kind}.pb.gz"
        pprof.run("-proto", f"-output={total}", *files)
        raw = pprof.raw(total)
        assert raw.samples == expected_of(session.result, raw.types)


def test_rule_7_3_the_last_report_has_what_is_in_use(
    pprof: Pprof, tmp_path: Path
) -> None:
    with spanprof.start(
        track_heap=True,
        report_interval=0,
        heap_snapshot_interval=0,
        reporters=[spanprof.PProfReporter(spanprof.FileBackend(tmp_path))],
    ) as session:
        for _ in range(3):
            nest(2, 3)
            session.flush()
    # Not a sum over the reports: the same bytes are in use at each of them.
    *_, last = sorted(tmp_path.glob("*.heap.pb.gz"))
    totals = pprof.raw(last).totals
    for name in ("inuse_objects", "inuse_space"):
        assert totals[name] == session.result.totals[name] > 0


def test_rule_7_3_samples_of_single_spans(pprof: Pprof, tmp_path: Path) -> None:
    folder = tmp_path / "profiles"
    reporter = spanprof.PProfReporter(
        spanprof.FileBackend(folder), aggregate_samples=False, kinds=["calls"]
    )
    with spanprof.start(reporters=[reporter]):
        spanprof.flush()
        with span("outer") as outer:
            ids = [outer.id]
            for _ in range(3):
                with span("inner") as inner:
                    ids.append(inner.id)
    (path,) = folder.iterdir()
    tags = pprof.run("-tags", path)
    assert all(str(id) in tags for id in ids)
    assert "Total samples = 4" in pprof.run("-top", path)
