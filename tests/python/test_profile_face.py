"""Profiles and sessions as users see them."""

import gzip
import os
import pickle
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import spanprof
from spanprof import Callsite, Profile, ProfileConfig, span

from .helpers import ManualClock, calls, in_thread, run_python, series

THIS_FILE = __file__
TARGET = __name__


def measure(clock: ManualClock, **fields: Any) -> Profile:
    """main > load(user) > read, main > load(user) > load > read; times in ns."""
    fields = {"track_wall": True, "track_cpu": True, **fields}
    session = spanprof.start(record_labels=["user", "part"], **fields)
    with session, span("main", part="outer"):
        clock(5, 1)
        for user in ("a", "b"):
            with span("load", user=user, part="inner"):
                clock(100, 20)
                with span("read", other="not recorded"):
                    clock(1000, 300)
                with span("load"):
                    clock(10_000, 4000)
    return session.result


# --- samples -----------------------------------------------------------------------


def test_samples(clock: ManualClock) -> None:
    profile = measure(clock)
    by_key = {
        (tuple(site.name for site in sample.stack), sample.labels.get("user")): sample
        for sample in profile.samples
    }
    assert len(profile) == len(profile.samples) == len(by_key) == 7
    main = by_key[("main",), None]
    assert main.labels == {"part": "outer"}
    assert main.values == {
        "calls": 1,
        "wall": 5,
        "wall_busy": 5,
        "wall_idle": 0,
        "cpu": 1,
        "cpu_system": 0,
        "cpu_user": 1,
    }
    read = by_key[("read", "load", "main"), "a"]
    assert read.labels == {"user": "a", "part": "inner"}, "the inner one wins"
    assert read.values["wall"] == 1000
    assert [type(site) for site in read.stack] == [Callsite] * 3
    site = read.stack[0]
    assert (site.name, site.target, site.file) == ("read", TARGET, THIS_FILE)
    assert "read" in Path(THIS_FILE).read_text().splitlines()[site.line - 1]
    assert str(site) == f"{TARGET}::read"


def test_values_are_those_of_the_measured_kinds(clock: ManualClock) -> None:
    for fields, kinds, names in (
        ({"track_wall": False, "track_cpu": False}, ("calls",), {"calls"}),
        (
            {"track_wall": False},
            ("calls", "cpu"),
            {"calls", "cpu", "cpu_user", "cpu_system"},
        ),
        (
            {"track_allocations": True, "track_wall": False, "track_cpu": False},
            ("calls", "alloc"),
            {"calls", "alloc_objects", "alloc_space"},
        ),
    ):
        profile = measure(clock, **fields)
        assert profile.kinds == kinds
        assert set(profile.totals) == names
        assert all(set(sample.values) == names for sample in profile.samples)


def test_totals_and_times(clock: ManualClock) -> None:
    profile = measure(clock)
    assert profile.totals["wall"] == 5 + 2 * (100 + 1000 + 10_000)
    assert profile.totals["cpu"] == 1 + 2 * (20 + 300 + 4000)
    assert profile.totals["calls"] == 7
    assert profile.duration == 22_205
    assert abs(profile.start / 1e9 - time.time()) < 60


def test_an_empty_profile(tmp_path: Path) -> None:
    with spanprof.start(track_wall=True) as session:
        pass
    profile = session.result
    assert len(profile) == 0
    assert not profile
    assert profile.samples == []
    assert profile.totals == {"calls": 0, "wall": 0, "wall_busy": 0, "wall_idle": 0}
    assert profile.top() == []
    assert "no spans were recorded" in str(profile)
    profile.write(tmp_path / "empty.pb.gz")
    assert len(Profile.read(tmp_path / "empty.pb.gz")) == 0


def test_it_cannot_be_made_by_hand() -> None:
    with pytest.raises(TypeError, match="sessions, snapshots and files"):
        Profile({})  # type: ignore[arg-type]


# --- arithmetic --------------------------------------------------------------------


def test_later_minus_earlier_plus_earlier_is_later(clock: ManualClock) -> None:
    with spanprof.start(track_wall=True, track_cpu=True) as session:
        with span("a"):
            clock(10, 1)
        first = session.snapshot()
        with span("a"):
            clock(100, 20)
            with span("b"):
                clock(1000, 300)
        second = session.snapshot()
    between = second - first
    assert series(between, "busy") == {("a",): 100, ("a", "b"): 1000}
    assert calls(between) == {("a",): 1, ("a", "b"): 1}
    assert between.duration == 1100
    assert first + between == second
    assert second - between != first, "a difference has its own time"
    assert (first + first).totals["wall"] == 20
    assert sum([first, between][1:], first) == second


def test_arithmetic_with_anything_else() -> None:
    with spanprof.start() as session:
        pass
    for other in (0, None, "profile"):
        with pytest.raises(TypeError, match="unsupported operand"):
            session.result + other
        with pytest.raises(TypeError, match="unsupported operand"):
            session.result - other
    assert session.result != 0
    with pytest.raises(TypeError, match="unhashable"):
        hash(session.result)


# --- top ---------------------------------------------------------------------------


def test_top(clock: ManualClock) -> None:
    profile = measure(clock)
    rows = profile.top()
    assert [
        (row.callsite.name, row.calls, row.self_value, row.total) for row in rows
    ] == [
        ("load", 2, 20_000, 20_000),
        ("read", 2, 2000, 2000),
        ("load", 2, 200, 22_200),
        ("main", 1, 5, 22_205),
    ]
    assert str(rows[0]) == f"{TARGET}::load: 20.0 µs self, 20.0 µs total, 2 calls"
    assert [row.callsite.name for row in profile.top(2, cumulative=True)] == [
        "main",
        "load",
    ]
    assert [row.self_value for row in profile.top(1, by="cpu")] == [8000]
    assert profile.top(0) == []
    by_calls = profile.top(1, "calls")[0]
    assert (by_calls.self_value, by_calls.unit) == (2, "count")


def test_top_counts_recursion_once(clock: ManualClock) -> None:
    def recurse(depth: int) -> None:
        with span("r"):
            clock(10)
            if depth:
                with span("between"):
                    clock(1)
                    recurse(depth - 1)

    with spanprof.start(track_wall=True) as session:
        recurse(3)
        recurse(0)
    rows = {row.callsite.name: row for row in session.result.top()}
    assert (rows["r"].calls, rows["r"].self_value, rows["r"].total) == (5, 50, 53)
    assert (rows["between"].self_value, rows["between"].total) == (3, 33)


def test_rule_3_8_top_of_what_was_not_measured(clock: ManualClock) -> None:
    profile = measure(clock, track_cpu=False)
    with pytest.raises(ValueError, match="'cpu' is not one of calls, wall, wall_busy"):
        profile.top(by="cpu")
    with pytest.raises(ValueError, match="n must not be negative: -1"):
        profile.top(-1)
    with pytest.raises(TypeError, match=r"n must be an int, not 1\.5"):
        profile.top(1.5)  # type: ignore[arg-type]
    with spanprof.start() as session, span("x"):
        pass
    assert session.result.top()[0].unit == "count"


# --- text --------------------------------------------------------------------------


def test_text(clock: ManualClock) -> None:
    profile = measure(clock)
    lines = str(profile).splitlines()
    assert lines[0].startswith("22.2 µs from 20")
    assert lines[3].split()[:4] == ["main", "part=outer", "1", "22.2"]
    assert repr(profile).startswith("<spanprof.Profile of 22.2 µs from 20")
    assert repr(profile).endswith(" UTC: calls, wall, cpu of 7 stacks>")


def test_a_file_gives_the_same_table(clock: ManualClock, tmp_path: Path) -> None:
    """Files know labels of whole stacks only: the tree is put together again."""
    profile = measure(clock)
    back: Profile | None = None
    for kind in profile.kinds:
        profile.write(tmp_path / kind, kind)
        part = Profile.read(tmp_path / kind)
        assert part.kinds == (kind,)
        back = part if back is None else back + part
    assert back == profile
    assert str(back) == str(profile)


# --- files -------------------------------------------------------------------------


def test_rule_7_4_write_is_whole_or_not_at_all_and_private(
    clock: ManualClock, tmp_path: Path
) -> None:
    profile = measure(clock, track_cpu=False)
    path = tmp_path / "profile.pb.gz"
    path.write_text("old")
    path.chmod(0o644)
    old_umask = os.umask(0o777)
    try:
        profile.write(path)
    finally:
        os.umask(old_umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_bytes() == profile.to_pprof("wall")
    assert os.listdir(tmp_path) == ["profile.pb.gz"], "no temporary is left"
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(IsADirectoryError):
        profile.write(folder)
    with pytest.raises(NotADirectoryError):
        profile.write(path / "below")
    with pytest.raises(FileNotFoundError):
        profile.write(str(tmp_path / "missing" / "x"))
    assert sorted(os.listdir(tmp_path)) == ["folder", "profile.pb.gz"]


def test_a_failed_write_leaves_the_old_file(
    clock: ManualClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = measure(clock, track_cpu=False)
    path = tmp_path / "profile.pb.gz"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        profile.write(path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["profile.pb.gz"]


def test_write_to_a_pipe(clock: ManualClock, tmp_path: Path) -> None:
    profile = measure(clock, track_cpu=False)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: results.append(pipe.read_bytes()))
    results: list[bytes] = []
    reader.start()
    profile.write(pipe)
    reader.join(60)
    assert results == [profile.to_pprof("wall")]
    assert pipe.is_fifo()


def test_write_infers_the_kind_if_there_is_one_only(
    clock: ManualClock, tmp_path: Path
) -> None:
    path = tmp_path / "x"
    with pytest.raises(ValueError, match="pass kind=, one of calls, wall, cpu"):
        measure(clock).write(path)
    assert not path.exists()
    measure(clock).write(path, "cpu")
    assert Profile.read(path).kinds == ("cpu",)
    measure(clock, track_wall=False, track_cpu=False).write(path)
    assert Profile.read(path).kinds == ("calls",)


def test_rule_3_8_pprof_of_what_was_not_measured(clock: ManualClock) -> None:
    for kind in ("alloc", "heap", "nonsense", ""):
        with pytest.raises(
            ValueError, match="kind must be one of calls, wall, cpu, not"
        ):
            measure(clock).to_pprof(kind)


def test_read_of_what_is_no_profile(clock: ManualClock, tmp_path: Path) -> None:
    whole = measure(clock).to_pprof("cpu")
    path = tmp_path / "x.pb.gz"
    for data in (
        b"",
        b"text",
        gzip.compress(b"text"),
        whole[: len(whole) // 2],
        whole[1:],
    ):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"x\.pb\.gz: ") as caught:
            Profile.read(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError):
        Profile.read(tmp_path / "missing")


def test_read_of_names_that_are_no_text(clock: ManualClock, tmp_path: Path) -> None:
    """Other tools write what they like: the file is readable, and the name shows it."""
    path = tmp_path / "x.pb.gz"
    with spanprof.start(track_wall=True) as session, span("load"):
        clock(5)
    message = gzip.decompress(session.result.to_pprof("wall"))
    assert b"load" in message
    path.write_bytes(gzip.compress(message.replace(b"load", b"l\x80\xffd")))
    profile = Profile.read(path)
    assert [sample.stack[0].name for sample in profile.samples] == ["l\\x80\\xffd"]
    assert "l\\x80\\xffd" in str(profile)


# --- sessions ----------------------------------------------------------------------


def test_a_session_from_start_to_end(clock: ManualClock) -> None:
    assert not spanprof.is_running()
    session = spanprof.start(ProfileConfig(track_cpu=True), track_wall=True)
    assert spanprof.is_running()
    assert session.is_running
    assert session.config == ProfileConfig(track_cpu=True, track_wall=True)
    assert repr(session) == "<spanprof.Session, running: calls, wall, cpu>"
    with span("a"):
        clock(7, 3)
        assert series(spanprof.snapshot(), "busy") == {("a",): 7}, "it still runs"
    with pytest.raises(RuntimeError, match="still runs"):
        _ = session.result
    assert session.flush() is True
    assert spanprof.stop() is True
    assert not spanprof.is_running()
    assert not session.is_running
    assert series(session.result, "cpu") == {("a",): 3}
    assert session.result is session.result
    with pytest.raises(RuntimeError, match="is over"):
        session.snapshot()
    assert session.stop() is True
    assert session.flush() is True


def test_without_a_session() -> None:
    assert spanprof.stop() is True
    assert spanprof.flush() is True
    assert not spanprof.is_running()
    with pytest.raises(RuntimeError, match="no session is running"):
        spanprof.snapshot()


def test_rule_3_8_second_start() -> None:
    with spanprof.start() as session:
        with pytest.raises(RuntimeError, match="a session is already running"):
            spanprof.start()
        assert session.is_running
    with spanprof.start():
        session.stop()
        assert spanprof.is_running(), "an old session stops only itself"


def test_rule_3_8_start_arguments() -> None:
    with pytest.raises(TypeError, match="config must be a ProfileConfig"):
        spanprof.start({})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="sampling"):
        spanprof.start(sampling=1)  # type: ignore[call-arg]
    for timeout, error in (
        (-1, ValueError),
        (float("nan"), ValueError),
        ("1", TypeError),
    ):
        with spanprof.start() as session:
            with pytest.raises(error, match="timeout must"):
                session.stop(timeout)  # type: ignore[arg-type]
            with pytest.raises(error, match="timeout must"):
                spanprof.flush(timeout)  # type: ignore[arg-type]
            assert session.is_running


def test_a_session_ends_with_its_block_also_by_an_exception() -> None:
    with pytest.raises(KeyError), spanprof.start() as session:
        raise KeyError
    assert len(session.result) == 0


def test_stop_from_several_threads(clock: ManualClock) -> None:
    session = spanprof.start(track_wall=True)
    with span("a"):
        clock(4)
    threads = [threading.Thread(target=session.stop) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert series(session.result, "busy") == {("a",): 4}


# --- profile() ---------------------------------------------------------------------


def test_profile_without_a_session(clock: ManualClock) -> None:
    with spanprof.profile(track_wall=True) as block:
        assert spanprof.is_running()
        with span("a"):
            clock(5)
        with pytest.raises(RuntimeError, match="has not ended"):
            _ = block.result
    assert not spanprof.is_running()
    assert series(block.result, "busy") == {("a",): 5}
    assert block.result.duration == 5
    with pytest.raises(RuntimeError, match="only once"):
        block.__enter__()


def test_profile_inside_a_session(clock: ManualClock) -> None:
    with spanprof.start(track_all=True, record_labels=["user"]) as session:
        with span("a"):
            clock(5)
            with spanprof.profile(track_wall=True, record_labels=["user"]) as block:
                clock(30)
                with span("b", user="x"):
                    clock(200)
            clock(1000)
        assert series(block.result, "busy") == {("a",): 30, ("a", "b"): 200}
        assert calls(block.result) == {("a",): 0, ("a", "b"): 1}
    assert session.result.totals["wall"] == 1235


def test_rule_3_8_profile_of_what_the_session_does_not_measure() -> None:
    with spanprof.start(track_wall=True, record_labels=["user"]):
        with pytest.raises(RuntimeError, match="does not track cpu, alloc"):
            spanprof.profile(track_all=True).__enter__()
        with pytest.raises(RuntimeError, match="does not record tenant"):
            spanprof.profile(record_labels=["user", "tenant"]).__enter__()


def test_profile_whose_session_stops_meanwhile(clock: ManualClock) -> None:
    session = spanprof.start(track_wall=True)
    with span("a"):
        clock(3)
    with spanprof.profile() as block:
        with span("a"):
            clock(50)
        session.stop()
        with span("a"):
            clock(700)
    assert series(block.result, "busy") == {("a",): 50}


def test_overlapping_blocks_keep_their_session(clock: ManualClock) -> None:
    first = spanprof.profile(track_wall=True)
    second = spanprof.profile(track_wall=True)
    first.__enter__()
    with span("a"):
        clock(1)
    in_thread(second.__enter__)
    with span("a"):
        clock(20)
    first.__exit__(None, None, None)
    assert spanprof.is_running()
    with span("a"):
        clock(300)
    in_thread(second.__exit__, None, None, None)
    assert not spanprof.is_running()
    assert series(first.result, "busy") == {("a",): 21}
    assert series(second.result, "busy") == {("a",): 320}


def test_a_block_passes_exceptions_on(clock: ManualClock) -> None:
    def fail() -> None:
        with span("a"):
            clock(2)
            raise KeyError

    with pytest.raises(KeyError), spanprof.profile(track_wall=True) as block:
        fail()
    assert series(block.result, "busy") == {("a",): 2}


# --- stats -------------------------------------------------------------------------


def test_stats() -> None:
    before = spanprof.stats()
    with spanprof.start():
        assert spanprof.stats().is_running is True
    after = spanprof.stats()
    assert after.sessions - before.sessions == 1
    assert after["misnested"] == after.misnested
    assert {"reporter_errors", "write_failures", "wall_clock"} <= set(after)
    assert len(after) == len(dict(after))
    assert "misnested" in dir(after)
    assert "sessions=" in repr(after)
    lines = str(after).splitlines()
    assert len(lines) == len(after)
    assert any(line.split() == ["is_running", "False"] for line in lines)
    with pytest.raises(AttributeError, match="no counter 'nonsense'"):
        _ = after.nonsense
    with pytest.raises(AttributeError):
        after.misnested = 1  # type: ignore[attr-defined]
    assert pickle.loads(pickle.dumps(after)) == after


# --- the package -------------------------------------------------------------------


def test_public_names() -> None:
    for name in spanprof.__all__:
        assert getattr(spanprof, name) is not None
        assert name in dir(spanprof)
    assert callable(spanprof.profile), "not the module of that name"
    assert callable(spanprof.stats)
    assert spanprof.span is spanprof.Span
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = spanprof.nonsense  # type: ignore[attr-defined]


def test_importing_it_imports_nothing_slow() -> None:
    slow = ("argparse", "dataclasses", "datetime", "inspect", "logging", "re", "typing")
    code = f"""
import sys
before = set(sys.modules)
import spanprof
with spanprof.span("x"): pass
spanprof.current_span()
print(*sorted((set(sys.modules) - before) & set({slow})))
"""
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={**os.environ, "PYTHONPATH": str(Path(spanprof.__file__).parent.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == []


def test_versions_agree() -> None:
    project = Path(THIS_FILE).parents[2] / "pyproject.toml"
    if not project.exists():
        pytest.skip("not in a source tree")
    assert f'version = "{spanprof.__version__}"' in project.read_text()


def test_rule_6_5_a_session_stops_at_exit(tmp_path: Path) -> None:
    code = """
import atexit, spanprof

class Tell(spanprof.Reporter):
    def profile(self, profile):
        print("profile", [str(s.stack[0]) for s in profile.samples], self.draining)
    def flush(self):
        print("flush", spanprof.is_running())

spanprof.start(reporters=[Tell()], report_interval=0)

@atexit.register
def late():
    with spanprof.span("late"): pass

print("end")
"""
    done = run_python(code, cwd=tmp_path)
    assert done.stdout.splitlines() == [
        "end",
        "profile ['__main__::late'] True",
        "flush False",
    ]
    assert done.stderr == ""
