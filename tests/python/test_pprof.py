"""The files: rules 7.1, 7.2 and 7.4. What Google's pprof makes of them is in e2e."""

# ruff: noqa: SIM117 (how blocks are nested is what is tested)

import os
import stat
import threading
import time
from pathlib import Path

import pytest

import spanprof
from spanprof import FileBackend, PProfReporter, Profile, span

from . import pprof_file
from .helpers import ManualClock, by_path, in_threads

KINDS = {
    "calls": [("calls", "count")],
    "wall": [
        ("wall", "nanoseconds"),
        ("wall_busy", "nanoseconds"),
        ("wall_idle", "nanoseconds"),
    ],
    "cpu": [
        ("cpu", "nanoseconds"),
        ("cpu_system", "nanoseconds"),
        ("cpu_user", "nanoseconds"),
    ],
    "alloc": [("alloc_objects", "count"), ("alloc_space", "bytes")],
    "heap": [
        ("inuse_objects", "count"),
        ("inuse_space", "bytes"),
        ("inuse_peak_space", "bytes"),
    ],
}
DEFAULTS = {
    "calls": "calls",
    "wall": "wall",
    "cpu": "cpu",
    "alloc": "alloc_space",
    "heap": "inuse_space",
}


def work(clock: ManualClock) -> None:
    with span("outer", user="u"):
        clock(5, 3)
        for number in range(3):
            with span("inner", user=number, other="not recorded"):
                clock(10, 1)
                kept = bytearray(1000)
        with span("inner"):
            clock(70)
    del kept
    job = span("job").open()
    clock(900)
    with job:
        clock(4)
    job.close()


def check(data: bytes, profile: Profile, kind: str) -> pprof_file.File:
    """The file holds what the profile does, sample by sample."""
    file = pprof_file.read(data)
    names = [name for name, _ in file.sample_types]
    expected = sorted(
        (
            tuple(
                (f"{s.target}::{s.name}" if s.target else s.name, s.file, s.line)
                for s in sample.stack
            ),
            tuple(sorted(sample.labels.items())),
            tuple(sample.values[name] for name in names),
        )
        for sample in profile.samples
        if any(sample.values[name] for name in names)
    )
    assert sorted((s.stack, s.labels, s.values) for s in file.samples) == expected
    assert file.sample_types == KINDS[kind]
    return file


def test_rule_7_1_and_7_2_stacks_labels_and_values(clock: ManualClock) -> None:
    with spanprof.start(track_all=True, record_labels=["user"]) as session:
        work(clock)
    profile = session.result
    assert profile.kinds == tuple(KINDS)
    for kind in KINDS:
        file = check(profile.to_pprof(kind), profile, kind)
        assert file.time_nanos == profile.start
        assert file.duration_nanos == profile.duration == 5 + 3 * 10 + 70 + 904
        assert file.period == 1
        assert file.default_sample_type == DEFAULTS[kind]
        assert file.period_type in file.sample_types
        assert file.period_type[0] == DEFAULTS[kind]
        assert len(file.mappings) == 1
        assert len(set(file.strings)) == len(file.strings)
    file = pprof_file.read(profile.to_pprof("wall"))
    assert {s.labels for s in file.samples} == {
        (("user", "u"),),
        (("user", "0"),),
        (("user", "1"),),
        (("user", "2"),),
        (),
    }
    assert abs(time.time_ns() - file.time_nanos) < 600 * 10**9


def test_rule_7_1_one_function_and_location_per_callsite(clock: ManualClock) -> None:
    with spanprof.start(track_wall=True, record_labels=["n"]) as session:
        for number in range(50):
            with span("a", n=number), span("b"):
                clock(1)
    file = pprof_file.read(session.result.to_pprof("calls"))
    assert len(file.samples) == 100
    assert len(file.functions) == file.locations == 2
    for name, system_name, path, line in file.functions:
        assert name in (f"{__name__}::a", f"{__name__}::b")
        assert system_name == name
        assert path == __file__
        assert line > 0


def test_rule_7_2_values_are_self_values(clock: ManualClock) -> None:
    with spanprof.start(track_wall=True) as session:
        with span("a"):
            clock(1)
            with span("b"):
                clock(20)
    file = pprof_file.read(session.result.to_pprof("wall"))
    assert {len(s.stack): s.values for s in file.samples} == {
        1: (1, 1, 0),
        2: (20, 20, 0),
    }


def test_rule_7_2_samples_without_value_are_left_out(clock: ManualClock) -> None:
    with spanprof.start(track_wall=True, track_cpu=True) as session:
        with span("a"):
            clock(5, 0)
    assert len(pprof_file.read(session.result.to_pprof("wall")).samples) == 1
    assert pprof_file.read(session.result.to_pprof("cpu")).samples == []


def test_rule_7_2_an_empty_profile() -> None:
    with spanprof.start(track_all=True) as session:
        pass
    for kind in KINDS:
        file = pprof_file.read(session.result.to_pprof(kind))
        assert file.samples == []
        assert file.sample_types == KINDS[kind]


def test_rule_7_2_differences_may_be_negative(clock: ManualClock) -> None:
    with spanprof.start(track_wall=True) as session:
        with span("a"):
            clock(5)
        first = session.snapshot()
        with span("a"):
            clock(3)
    difference = first - session.result
    check(difference.to_pprof("wall"), difference, "wall")
    assert pprof_file.read(difference.to_pprof("wall")).samples[0].values == (-3, -3, 0)


def test_rule_7_2_large_values(clock: ManualClock) -> None:
    with spanprof.start(track_wall=True) as session:
        with span("a"):
            clock(2**62)
    check(session.result.to_pprof("wall"), session.result, "wall")


ODD = ["ü", "日本", "🐍", "a::b", "", 'q"\\', "\t\n", "x" * 5000]


def test_rule_7_1_odd_text(clock: ManualClock) -> None:
    with spanprof.start(track_wall=True, record_labels=["k", "ü"]) as session:
        for text in ODD:
            with span("n" + text, k=text, ü=text):
                clock(1)
    file = pprof_file.read(session.result.to_pprof("wall"))
    assert {s.stack[0][0] for s in file.samples} == {f"{__name__}::n{t}" for t in ODD}
    assert {dict(s.labels)["k"] for s in file.samples} == set(ODD)


@pytest.mark.parametrize(
    ("name", "shown"),
    [("a\0b", r"a\x00b"), ("\ud800", r"\ud800"), ("x\udfffy", r"x\udfffy")],
    ids=ascii,
)
def test_rule_7_1_text_that_no_format_takes_is_escaped(name: str, shown: str) -> None:
    with spanprof.start(record_labels=["k"]) as session:
        with span(name, k=name):
            pass
    file = pprof_file.read(session.result.to_pprof("calls"))
    (sample,) = file.samples
    assert sample.stack[0][0] == f"{__name__}::{shown}"
    assert sample.labels == (("k", shown),)


def test_rule_7_1_deep_stacks(clock: ManualClock) -> None:
    depth = 500

    def recurse(left: int) -> None:
        with span("r"):
            clock(1)
            if left > 1:
                recurse(left - 1)

    with spanprof.start(track_wall=True) as session:
        recurse(depth)
    file = check(session.result.to_pprof("wall"), session.result, "wall")
    assert sorted(len(s.stack) for s in file.samples) == list(range(1, depth + 1))


def test_rule_7_2_written_and_read_again(clock: ManualClock, tmp_path: Path) -> None:
    with spanprof.start(track_all=True, record_labels=["user"]) as session:
        work(clock)
    for kind in KINDS:
        path = tmp_path / f"{kind}.pb.gz"
        session.result.write(path, kind)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        again = Profile.read(path)
        names = [name for name, _ in KINDS[kind]]
        expected = {
            key: {name: values[name] for name in names}
            for key, values in by_path(session.result).items()
            if any(values[name] for name in names)
        }
        found = by_path(again)
        # A file of one kind knows of the others nothing, of the calls as well.
        assert {
            key: {name: values[name] for name in names} for key, values in found.items()
        } == expected
        assert again.start == session.result.start
        assert again.duration == session.result.duration


# --- 7.4 ------------------------------------------------------------------------------


def test_rule_7_4_reporter_files(clock: ManualClock, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "profiles"
    before = os.umask(0)
    try:
        with spanprof.start(
            track_all=True,
            report_interval=0,
            heap_snapshot_interval=0,
            record_labels=["user"],
            reporters=[PProfReporter(FileBackend(folder))],
        ) as session:
            for _ in range(3):
                work(clock)
                assert session.flush()
                # What a reader finds at any time is whole.
                for path in folder.iterdir():
                    assert not path.name.endswith(".tmp")
                    pprof_file.read(path.read_bytes())
    finally:
        os.umask(before)
    files = sorted(folder.iterdir())
    assert len({path.name for path in files}) == len(files)
    for path in files:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    totals = dict.fromkeys(("wall_busy", "cpu", "alloc_space", "calls"), 0)
    for kind in KINDS:
        mine = [path for path in files if kind in path.name]
        assert len(mine) >= 3, "their names tell the kind"
        times = []
        for path in mine:  # in the order of their names
            file = pprof_file.read(path.read_bytes())
            times.append(file.time_nanos)
            names = [name for name, _ in file.sample_types]
            for sample in file.samples:
                for name, value in zip(names, sample.values, strict=True):
                    if name in totals:
                        totals[name] += value
        assert times == sorted(times), "names sort by time"
    expected = session.result.totals
    assert totals == {name: expected[name] for name in totals}


def test_rule_7_4_max_samples_drops_nothing(clock: ManualClock, tmp_path: Path) -> None:
    with spanprof.start(
        track_wall=True,
        report_interval=0,
        max_samples=10,
        reporters=[PProfReporter(FileBackend(tmp_path))],
    ) as session:
        for number in range(105):
            with span(f"n{number}"):
                clock(number + 1)
    files = [pprof_file.read(path.read_bytes()) for path in tmp_path.iterdir()]
    assert all(len(file.samples) <= 10 for file in files)
    total = sum(
        sample.values[0]
        for file in files
        for sample in file.samples
        if file.sample_types[0][0] == "wall"
    )
    assert total == session.result.totals["wall"] == sum(range(106))


def test_rule_7_4_an_unwritable_folder_harms_nothing(
    clock: ManualClock, tmp_path: Path
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    before = spanprof.stats().write_failures
    try:
        backend = FileBackend(blocked / "profiles")
    except OSError:
        return  # told at once
    with spanprof.start(
        track_wall=True, report_interval=0, reporters=[PProfReporter(backend)]
    ) as session:
        with span("a"):
            clock(5)
    assert session.result.totals["wall"] == 5
    assert spanprof.stats().write_failures > before
    assert blocked.read_text() == "not a folder"


def test_rule_7_4_writers_in_one_folder_never_collide(tmp_path: Path) -> None:
    backends = [FileBackend(tmp_path) for _ in range(4)]
    data = b"x" * 1000
    now = time.time_ns()

    def write(number: int) -> None:
        for _ in range(50):
            backends[number].save_profile("wall", now, now + 1, data)

    in_threads(4, write)
    files = list(tmp_path.iterdir())
    assert len(files) == 200
    assert all(path.read_bytes() == data for path in files)
    assert threading.active_count() >= 1
