"""Reporters: when they are called, what they may do, and what goes to files."""

import logging
import os
import re
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import spanprof
from spanprof import FileBackend, PProfReporter, Profile, Reporter, logs, span

from .helpers import ManualClock, calls, in_thread, messages, run_python, series


class Recorder(Reporter):
    """Keeps its calls; runs ``during`` in the method of that name."""

    def __init__(self, **during: Callable[[], object]) -> None:
        self.calls: list[str] = []
        self.profiles: list[Profile] = []
        self.threads: set[int] = set()
        self.configs: list[spanprof.ProfileConfig] = []
        self.draining_seen: list[bool] = []
        self.begun = threading.Event()
        self.during = during

    def _note(self, name: str) -> None:
        self.calls.append(name)
        self.threads.add(threading.get_native_id())
        self.during.get(name, lambda: None)()

    def init(self, config: spanprof.ProfileConfig) -> None:
        self.configs.append(config)
        self.begun.set()
        self._note("init")

    def profile(self, profile: Profile) -> None:
        self.profiles.append(profile)
        self.draining_seen.append(self.draining)
        self._note("profile")

    def flush(self) -> None:
        self._note("flush")


def fail() -> None:
    raise LookupError("from the reporter")


# --- when they are called ----------------------------------------------------------


def test_init_comes_first_and_soon() -> None:
    reporter = Recorder()
    with spanprof.start(reporters=[reporter], track_cpu=True) as session:
        assert reporter.begun.wait(60), "before the first report is due"
        assert reporter.configs == [session.config]
    assert reporter.calls == ["init", "profile", "flush"]
    with spanprof.start(reporters=[reporter]):
        pass
    assert reporter.calls == ["init", "profile", "flush"] * 2


def test_rule_6_2_flush_after_each_report_and_last_at_stop(clock: ManualClock) -> None:
    reporter = Recorder()
    with spanprof.start(reporters=[reporter], report_interval=0, track_wall=True):
        with span("a"):
            clock(10)
            assert spanprof.flush()
            assert reporter.calls == ["init", "profile", "flush"]
            assert series(reporter.profiles[0], "busy") == {("a",): 10}
            clock(200)
        assert spanprof.flush()
        assert calls(reporter.profiles[1]) == {("a",): 0}
        with span("b"):
            clock(3000)
    assert reporter.calls == ["init", *["profile", "flush"] * 3]
    assert [profile.totals["wall"] for profile in reporter.profiles] == [10, 200, 3000]
    assert reporter.draining_seen == [True] * 3


def test_rule_6_2_a_reporter_can_tell_the_end() -> None:
    seen: list[bool] = []
    reporter = Recorder(
        **{name: lambda: seen.append(reporter.ending) for name in ("init", "flush")}
    )
    for _ in range(2):
        with spanprof.start(reporters=[reporter]):
            spanprof.flush()
    assert seen == [False, False, True] * 2


def test_rule_6_2_after_stop_nothing_is_held_back(clock: ManualClock) -> None:
    reporter = Recorder()
    session = spanprof.start(reporters=[reporter], track_wall=True)
    open_span = span("open").open()
    with span("entered"):
        clock(70)
        session.stop()
    open_span.close()
    total = sum((p for p in reporter.profiles[1:]), reporter.profiles[0])
    assert total == session.result
    assert series(total, "wall") == {("open",): 70, ("entered",): 70}


def test_reports_at_the_interval_add_up() -> None:
    reporter = Recorder()
    session = spanprof.start(
        reporters=[reporter], track_wall=True, track_cpu=True, report_interval=0.01
    )
    deadline = time.monotonic() + 60
    while reporter.calls.count("flush") < 4 and time.monotonic() < deadline:
        with span("a"), span("b"):
            time.sleep(0.001)
    session.stop()
    assert reporter.calls == ["init", *["profile", "flush"] * len(reporter.profiles)]
    assert reporter.draining_seen == [*[False] * (len(reporter.profiles) - 1), True]
    total = sum((p for p in reporter.profiles[1:]), reporter.profiles[0])
    assert total == session.result


def test_they_are_called_on_one_thread_in_order() -> None:
    first, second = Recorder(), Recorder()
    order: list[str] = []
    first.during = {"profile": lambda: order.append("first")}
    second.during = {"profile": lambda: order.append("second")}
    with spanprof.start(reporters=(each for each in (first, second))):
        spanprof.flush()
    assert first.threads == second.threads
    assert len(first.threads) == 1
    assert threading.get_native_id() not in first.threads
    assert order == ["first", "second"] * 2


def test_rule_6_4_what_is_not_overridden_costs_nothing() -> None:
    def threads() -> int:
        return len(os.listdir("/proc/self/task"))

    before = threads()
    with spanprof.start():
        assert threads() == before, "no thread without reporters"

    class OnlyFlush(Reporter):
        flushed = 0

        def flush(self) -> None:
            self.flushed += 1

    reporter = OnlyFlush()
    with spanprof.start(reporters=[reporter, Reporter()]):
        snapshots = spanprof.stats().snapshots
        spanprof.flush()
        spanprof.flush()
        assert spanprof.stats().snapshots == snapshots, "nobody wants a profile"
    assert reporter.flushed == 3


def test_a_method_of_the_object_counts_as_overridden() -> None:
    reporter = Reporter()
    seen: list[Profile] = []
    reporter.profile = seen.append  # type: ignore[method-assign,assignment]
    with spanprof.start(reporters=[reporter]):
        pass
    assert len(seen) == 1


def test_rule_6_7_reporters_are_not_profiled(clock: ManualClock) -> None:
    def work() -> None:
        with span("in a reporter"):
            clock(1000)

    reporter = Recorder(init=work, profile=work, flush=work)
    session = spanprof.start(reporters=[reporter], track_wall=True)
    with session, span("mine"):
        spanprof.flush()
    assert set(calls(session.result)) == {("mine",)}


def test_rule_3_8_a_reporter_that_is_none() -> None:
    class Duck:
        def profile(self, profile: Profile) -> None: ...

    for reporters, message in (
        ([Duck()], "a reporter must be a spanprof.Reporter, not <"),
        ([Recorder(), None], "a reporter must be a spanprof.Reporter, not None"),
        ([Recorder], "a reporter must be an object, not a class: Recorder()?"),
        (Recorder(), "reporters must be an iterable of reporters, not <"),
        (None, "reporters must be an iterable of reporters, not None"),
    ):
        with pytest.raises(TypeError) as caught:
            spanprof.start(reporters=reporters)  # type: ignore[arg-type]
        assert str(caught.value).startswith(message)
    assert not spanprof.is_running()


# --- what they may do --------------------------------------------------------------


@pytest.mark.parametrize("method", ["init", "profile", "flush"])
@pytest.mark.parametrize("error", [LookupError, SystemExit, KeyboardInterrupt])
def test_rule_6_3_an_exception_is_logged_and_counted_and_harms_nobody(
    method: str, error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    def raise_it() -> None:
        raise error("from the reporter")

    bad, good = Recorder(**{method: raise_it}), Recorder()
    before = spanprof.stats().reporter_errors
    with spanprof.start(reporters=[bad, good]) as session, span("a"):
        pass
    assert good.calls == bad.calls == ["init", "profile", "flush"]
    assert calls(good.profiles[0]) == calls(session.result) == {("a",): 1}
    assert spanprof.stats().reporter_errors == before + 1
    (record,) = [each for each in caplog.records if each.name == "spanprof"]
    assert record.levelno == logging.ERROR
    assert record.getMessage() == f"Recorder.{method}() failed"
    assert record.exc_info is not None
    assert record.exc_info[0] is error


def test_rule_6_3_the_log_is_limited_and_tells_how_much_it_left_out(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("spanprof.logs.time.monotonic", lambda: now)
    reporter = Recorder(profile=fail)
    with spanprof.start(reporters=[reporter], report_interval=0):
        for _ in range(20):
            spanprof.flush()
        now = 61.0
        spanprof.flush()
        assert len(messages(caplog)) == 6
        assert messages(caplog)[-1].endswith("(15 more like this were not logged)")
        for _ in range(9):
            spanprof.flush()
    assert messages(caplog)[-1] == "reporters failed: 6 more were not logged"
    assert len(messages(caplog)) == 11


def test_rule_6_3_a_failing_log_handler_harms_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            fail()

    handler = Handler()
    logs.logger.addHandler(handler)
    try:
        reporter = Recorder(profile=fail)
        with spanprof.start(reporters=[reporter]):
            spanprof.flush()
        assert reporter.calls == ["init", *["profile", "flush"] * 2]
    finally:
        logs.logger.removeHandler(handler)


@pytest.mark.parametrize("method", ["init", "profile", "flush"])
@pytest.mark.parametrize("action", ["stop", "flush", "snapshot", "stats", "is_running"])
def test_calls_from_a_reporter_do_not_deadlock(method: str, action: str) -> None:
    results: list[object] = []

    def act() -> None:
        try:
            results.append(getattr(spanprof, action)())
        except RuntimeError as error:  # a snapshot when the session is over
            results.append(error)

    reporter = Recorder(**{method: act})
    session = spanprof.start(reporters=[reporter], stop_timeout=60)
    with span("a"):
        pass
    assert reporter.begun.wait(60)
    began = time.monotonic()
    session.flush()
    session.stop()
    assert time.monotonic() - began < 30
    assert results
    assert reporter.calls[0] == "init"
    assert reporter.calls[-1] == "flush"


def test_a_session_started_by_a_reporter() -> None:
    started: list[spanprof.Session] = []
    done = threading.Event()

    def restart() -> None:
        if not started:
            spanprof.stop()
            started.append(spanprof.start())
            done.set()

    first = spanprof.start(reporters=[Recorder(profile=restart)])
    spanprof.flush()
    assert done.wait(60)
    assert not first.is_running
    assert started[0].is_running
    spanprof.stop()


def test_a_flush_that_takes_too_long_says_so() -> None:
    release = threading.Event()
    reporter = Recorder(flush=lambda: release.wait(60))
    with spanprof.start(reporters=[reporter]) as session:
        assert spanprof.flush(timeout=0.01) is False
        assert session.flush(0) is False
        release.set()
        assert spanprof.flush() is True


def test_rule_6_5_a_stop_does_not_wait_for_a_reporter_that_hangs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    release = threading.Event()
    reporter = Recorder(profile=lambda: release.wait(60))
    session = spanprof.start(reporters=[reporter], stop_timeout=0.05)
    with span("a"):
        pass
    before = spanprof.stats().reporter_timeouts
    began = time.monotonic()
    assert session.stop() is False
    assert time.monotonic() - began < 30
    assert session.stop() is False
    (message,) = messages(caplog)
    assert re.match(r"Recorder\.profile\(\) has not returned for 0\.\d s", message)
    assert spanprof.stats().reporter_timeouts == before + 1
    assert calls(session.result) == {("a",): 1}
    with spanprof.start(reporters=[Recorder()]) as other:
        assert other.flush(), "the one that hangs has a thread of its own"
    release.set()


def test_rule_6_5_exit_does_not_wait_for_a_reporter_that_hangs(tmp_path: Path) -> None:
    code = """
import spanprof, time

class Slow(spanprof.Reporter):
    def flush(self):
        time.sleep(60)

class Quick(spanprof.Reporter):
    def profile(self, profile):
        print(len(profile), flush=True)

spanprof.start(reporters=[Quick(), Slow()], stop_timeout=0.2)
with spanprof.span("a"): pass
"""
    began = time.monotonic()
    done = run_python(code, cwd=tmp_path)
    assert time.monotonic() - began < 30
    assert done.stdout == "1\n"
    assert re.match(r"Slow\.flush\(\) has not returned for 0\.\d s", done.stderr)


def test_rule_6_5_a_busy_reporter_at_exit(tmp_path: Path) -> None:
    """Pure Python that never blocks, and goes on while the interpreter ends."""
    code = """
import spanprof

class Busy(spanprof.Reporter):
    def profile(self, profile):
        while True: pass

spanprof.start(reporters=[Busy()], stop_timeout=0.1)
"""
    assert "Busy.profile() has not returned" in run_python(code, cwd=tmp_path).stderr


# --- fork --------------------------------------------------------------------------

FORK = """
import os, spanprof, sys
from spanprof import span

class Tell(spanprof.Reporter):
    def init(self, config):
        self.calls = ["init"]
    def profile(self, profile):
        self.calls += sorted(s.stack[0].name for s in profile.samples)
    def flush(self):
        if self.draining:
            os.write(1, f"{who} {' '.join(self.calls)}\\n".encode())

who = "parent"
session = spanprof.start(reporters=[Tell()], on_fork=sys.argv[1], report_interval=0)
with span("before"): pass
pid = os.fork()
if pid == 0:
    who = "child"
    with span("in the child"): pass
else:
    os.waitpid(pid, 0)
    with span("in the parent"): pass
print(who, spanprof.is_running(), flush=True)
session.stop()
print(who, sorted(s.stack[0].name for s in session.result.samples), flush=True)
"""


def test_rule_6_6_a_session_restarts_in_a_child(tmp_path: Path) -> None:
    done = run_python(FORK, "restart", cwd=tmp_path)
    assert done.stdout.splitlines() == [
        "child True",
        "child init in the child",
        "child ['in the child']",
        "parent True",
        "parent init before in the parent",
        "parent ['before', 'in the parent']",
    ]


def test_rule_6_6_a_session_stops_in_a_child(tmp_path: Path) -> None:
    done = run_python(FORK, "stop", cwd=tmp_path)
    assert done.stdout.splitlines() == [
        "child False",
        "child []",
        "parent True",
        "parent init before in the parent",
        "parent ['before', 'in the parent']",
    ]


def test_rule_6_6_forks_from_many_threads(tmp_path: Path) -> None:
    code = """
import os, spanprof, threading, warnings
from spanprof import span
warnings.simplefilter("ignore")

class Quiet(spanprof.Reporter):
    def profile(self, profile): pass

spanprof.start(track_all=True, reporters=[Quiet()], report_interval=0.001)
failed = []

def work():
    for _ in range(15):
        with span("a"), span("b"):
            spanprof.snapshot()
            spanprof.stats()
            pid = os.fork()
            if pid == 0:
                with span("c"): pass
                ok = spanprof.flush(30) and len(spanprof.snapshot()) == 2
                os._exit(0 if ok and spanprof.stop(30) else 1)
        if os.waitpid(pid, 0)[1]:
            failed.append(pid)

threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(len(failed))
"""
    assert run_python(code, cwd=tmp_path).stdout == "0\n"


def test_a_profile_block_over_a_fork(tmp_path: Path) -> None:
    code = """
import os, spanprof
from spanprof import span

spanprof.start()
with span("a"): pass
with spanprof.profile() as block:
    with span("a"): pass
    pid = os.fork()
    if pid == 0:
        with span("child"): pass
    else:
        os.waitpid(pid, 0)
print([(s.stack[0].name, s.values["calls"]) for s in block.result.samples], flush=True)
"""
    done = run_python(code, cwd=tmp_path)
    assert done.stdout.splitlines() == ["[('child', 1)]", "[('a', 1)]"]


# --- PProfReporter -----------------------------------------------------------------


class Memory:
    """A backend; fails as often as it is told to."""

    def __init__(self, failures: int = 0) -> None:
        self.saved: list[tuple[str, int, int, bytes]] = []
        self.failures = failures
        self.tries = 0

    def save_profile(self, kind: str, start: int, end: int, data: bytes) -> None:
        self.tries += 1
        if self.failures:
            self.failures -= 1
            raise OSError("try again")
        self.saved.append((kind, start, end, data))

    def profiles(self, kind: str, folder: Path) -> list[Profile]:
        result = []
        for number, (saved, _, _, data) in enumerate(self.saved):
            if saved == kind:
                path = folder / f"{number}"
                path.write_bytes(data)
                result.append(Profile.read(path))
        return result

    def __repr__(self) -> str:
        return "Memory()"


def test_every_tracked_kind_is_written_at_every_report(
    clock: ManualClock, tmp_path: Path
) -> None:
    memory = Memory()
    kept = []
    with spanprof.start(
        reporters=[PProfReporter(memory)],
        track_all=True,
        report_interval=0,
        heap_snapshot_interval=0,
    ) as session:
        spanprof.flush()
        assert memory.saved == [], "nothing to write"
        for _ in range(2):
            with span("a"):
                clock(10, 3)
                kept.append(bytearray(1000))
            spanprof.flush()
    kinds = ["calls", "wall", "cpu", "alloc", "heap"]
    # At the end once more: what is still in use is not over with the last report.
    assert [kind for kind, *_ in memory.saved] == kinds * 3
    del memory.saved[-len(kinds) :]
    for kind, start, end, _ in memory.saved:
        assert isinstance(kind, str)
        assert session.result.start <= start <= end
        assert end <= session.result.start + session.result.duration
    both = memory.profiles("wall", tmp_path)
    assert [profile.totals["wall"] for profile in both] == [10, 10]
    assert both[0].start + both[0].duration == both[1].start


def test_kinds_may_be_chosen(clock: ManualClock) -> None:
    memory = Memory()
    reporter = PProfReporter(memory, kinds=["cpu", "alloc"])
    with spanprof.start(reporters=[reporter], track_cpu=True), span("a"):
        clock(1, 1)
    assert [kind for kind, *_ in memory.saved] == ["cpu"]
    for kinds, error in ((["memory"], ValueError), ("cpu", TypeError)):
        with pytest.raises(error, match="kinds must be"):
            PProfReporter(memory, kinds=kinds)
    for backend in (None, "directory"):
        with pytest.raises(TypeError, match="must have a method save_profile"):
            PProfReporter(backend)  # type: ignore[arg-type]


def many(clock: ManualClock, names: range) -> None:
    for name in names:
        with span(f"s{name}"):
            clock(name + 1, 1)


def test_max_samples_are_written_and_the_rest_comes_next(
    clock: ManualClock, tmp_path: Path
) -> None:
    """At the interval: the heaviest now. Nothing is dropped, and at a flush or the
    end all of it goes out."""
    memory = Memory()
    reporter = PProfReporter(memory, kinds=["wall"])
    config = spanprof.ProfileConfig(max_samples=10, track_wall=True)
    with spanprof.start(config) as session:
        reporter.init(config)
        before = spanprof.snapshot()
        for number in range(3):
            many(clock, range(25 * number, 25 * number + 25))
            now = spanprof.snapshot()
            reporter.profile(now - before)
            reporter.flush()
            before = now
            sizes = [len(each) for each in memory.profiles("wall", tmp_path)]
            assert sizes == [10] * (number + 1)
    reporter.draining = True
    reporter.flush()
    written = memory.profiles("wall", tmp_path)
    assert [len(each) for each in written] == [10] * 7 + [5]
    heaviest = {f"s{name}" for name in range(15, 25)}
    assert {name for (name,) in series(written[0], "wall")} == heaviest
    total = sum(written[1:], written[0])
    assert series(total, "wall") == series(session.result, "wall")


def test_max_samples_through_a_session(clock: ManualClock, tmp_path: Path) -> None:
    memory = Memory()
    reporter = PProfReporter(memory)
    with spanprof.start(
        reporters=[reporter], track_wall=True, max_samples=10, report_interval=0
    ) as session:
        many(clock, range(25))
        spanprof.flush()
        assert len(memory.profiles("wall", tmp_path)) == 3, "a flush holds nothing back"
        many(clock, range(12))
    written = memory.profiles("wall", tmp_path)
    assert [len(each) for each in written] == [10, 10, 5, 10, 2]
    total = sum(written[1:], written[0])
    assert series(total, "wall") == series(session.result, "wall")
    assert reporter.written == len(memory.saved) == 10


def test_max_samples_0_is_no_limit(clock: ManualClock, tmp_path: Path) -> None:
    memory = Memory()
    with spanprof.start(reporters=[PProfReporter(memory)], max_samples=0):
        many(clock, range(1500))
    assert [len(each) for each in memory.profiles("calls", tmp_path)] == [1500]


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    pauses: list[float] = []
    monkeypatch.setattr("spanprof.reporters.pprof.time.sleep", pauses.append)
    return pauses


def test_rule_7_4_a_failed_write_is_tried_again(
    no_pause: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    memory = Memory(failures=2)
    before = spanprof.stats()
    with spanprof.start(reporters=[PProfReporter(memory)]), span("a"):
        pass
    after = spanprof.stats()
    assert len(memory.saved) == 1
    assert no_pause == sorted(no_pause), "the pauses grow"
    assert len(no_pause) == 2
    assert sum(no_pause) < 1
    assert after.write_retries - before.write_retries == 2
    assert after.write_failures == before.write_failures
    assert after.profiles_written - before.profiles_written == 1
    assert messages(caplog) == []


def test_rule_7_4_a_write_that_fails_for_good_is_counted_and_logged(
    no_pause: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    memory = Memory(failures=1000)
    reporter, good = PProfReporter(memory), Recorder()
    before = spanprof.stats()
    with spanprof.start(reporters=[reporter, good], track_all=True, report_interval=0):
        for _ in range(3):
            with span("a"):
                pass
            spanprof.flush()
            assert len(good.profiles) > 0
        memory.failures = 0
        with span("a"):
            pass
    after = spanprof.stats()
    assert after.write_failures - before.write_failures == reporter.lost >= 9
    assert after.reporter_errors == before.reporter_errors
    assert len(no_pause) == 2, "one try each, once it is known to fail"
    assert reporter.written == len(memory.saved) >= 3
    assert (
        "profile could not be written to Memory(): OSError: try again"
        in (messages(caplog)[0])
    )
    assert len(messages(caplog)) == 1, "and no more than that in a minute"


# --- FileBackend -------------------------------------------------------------------

NAME = re.compile(r"(\d{8}T\d{6}\.\d{9})Z-(\d+)-(\d{6,})\.(\w+)\.pb\.gz")
KEPT_NAME = re.compile(r"\d{8}T\d{6}\.\d{9}Z-\d+-\d{6,}-[0-9a-f]{16}\.\w+\.pb\.gz")


def test_rule_7_4_files(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    reporter = PProfReporter(FileBackend(folder))
    with spanprof.start(reporters=[reporter], track_all=True) as session, span("a"):
        kept = bytes(1000)
    del kept
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    kinds = set()
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        match = NAME.fullmatch(path.name)
        assert match is not None
        assert int(match[2]) == os.getpid()
        kinds.add(match[4])
        assert Profile.read(path).kinds == (match[4],)
        moment = time.strftime(
            "%Y%m%dT%H%M%S", time.gmtime(session.result.start // 10**9)
        )
        assert abs(int(match[1][9:15]) - int(moment[9:])) <= 1 or match[1] > moment
    assert kinds == {"calls", "wall", "cpu", "alloc", "heap"}


def test_rule_7_4_names_sort_by_time_and_differ(tmp_path: Path) -> None:
    backend = FileBackend(tmp_path)
    moments = [
        0,
        1,
        999_999_999,
        10**9,
        1_700_000_000_000_000_000,
        1_700_000_000_000_000_001,
    ]
    for moment in moments:
        backend.save_profile("cpu", moment, moment + 5, str(moment).encode())
    for _ in range(20):
        backend.save_profile("cpu", moments[-1], moments[-1], b"last")
        FileBackend(tmp_path).save_profile("cpu", moments[-1], moments[-1], b"last")
    names = sorted(os.listdir(tmp_path))
    assert len(names) == 46
    assert [(tmp_path / name).read_bytes() for name in names[:6]] == [
        str(moment).encode() for moment in moments
    ]
    assert names[0].startswith("19700101T000000.000000000Z-")


def test_rule_7_4_processes_share_a_directory(tmp_path: Path) -> None:
    code = f"""
import spanprof, sys
for n in range(50):
    spanprof.FileBackend({str(tmp_path)!r}).save_profile("cpu", 7, 8, b"x" * 1000)
"""
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(spanprof.__file__).parent.parent),
    }
    processes = [
        subprocess.Popen([sys.executable, "-c", code], env=environment)
        for _ in range(3)
    ]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    files = list(tmp_path.iterdir())
    assert len(files) == 150
    assert {path.stat().st_size for path in files} == {1000}


def test_keep_the_newest(tmp_path: Path) -> None:
    (tmp_path / "somebody else's.cpu.pb.gz").write_text("x")
    backend = FileBackend(tmp_path, keep=2)
    for moment in range(5):
        for kind in ("cpu", "wall"):
            backend.save_profile(kind, moment, moment, str(moment).encode())
        if moment == 3:
            next(tmp_path.glob("*000000002Z*.cpu.*")).unlink()
    kept = [path for path in tmp_path.iterdir() if KEPT_NAME.fullmatch(path.name)]
    assert sorted(path.read_text() for path in kept) == ["3", "3", "4", "4"]
    assert (tmp_path / "somebody else's.cpu.pb.gz").exists()
    for keep, error in ((0, ValueError), (-1, ValueError), ("1", TypeError)):
        with pytest.raises(error, match="keep must"):
            FileBackend(tmp_path, keep=keep)  # type: ignore[arg-type]


def test_keep_leaves_the_files_of_others(tmp_path: Path) -> None:
    """Also those of another backend, run or container with the same process number."""
    for backend in (FileBackend(tmp_path), FileBackend(tmp_path, keep=1)):
        for moment in (2, 1, 3):
            backend.save_profile("cpu", moment, moment, b"")
    other = FileBackend(tmp_path, keep=2)
    for moment in range(5):
        other.save_profile("cpu", moment, moment, b"")
    assert len(os.listdir(tmp_path)) == 3 + 1 + 2


def test_keep_counts_over_forks(tmp_path: Path) -> None:
    """However many children come and go, as in a server that recycles its workers."""
    folder = tmp_path / "profiles"
    code = """
import os, spanprof, sys
backend = spanprof.FileBackend(sys.argv[1], keep=3)
backend.save_profile("cpu", 0, 0, b"parent")
for number in range(1, 9):
    pid = os.fork()
    if pid == 0:
        backend.save_profile("cpu", number, number, b"%d" % number)
        backend.save_profile("wall", number, number, b"%d" % number)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
backend.save_profile("cpu", 9, 9, b"parent")
"""
    run_python(code, str(folder), cwd=tmp_path)
    texts = {
        kind: [path.read_text() for path in sorted(folder.glob(f"*.{kind}.*"))]
        for kind in ("cpu", "wall")
    }
    assert texts == {"cpu": ["7", "8", "parent"], "wall": ["6", "7", "8"]}


def test_keep_and_a_write_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = FileBackend(tmp_path, keep=1)
    backend.save_profile("cpu", 1, 1, b"old")
    monkeypatch.setattr(os, "replace", lambda *_: fail())
    with pytest.raises(LookupError):
        backend.save_profile("cpu", 2, 2, b"new")
    (path,) = tmp_path.iterdir()
    assert path.read_text() == "old", "deleted only when there is a newer one"


def test_old_files_that_cannot_be_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    backend = FileBackend(tmp_path, keep=1)
    before = spanprof.stats().delete_failures
    with monkeypatch.context() as patch:

        def refuse(path: str) -> None:
            raise PermissionError(13, "not yours", path)

        patch.setattr(os, "unlink", refuse)
        for moment in range(3):
            backend.save_profile("cpu", moment, moment, b"")
    assert spanprof.stats().delete_failures - before == 1 + 2
    (message,) = messages(caplog)
    assert message.startswith("an old profile could not be deleted: PermissionError: ")
    assert len(os.listdir(tmp_path)) == 3
    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", refuse)
        backend.save_profile("cpu", 3, 3, b"")
    assert spanprof.stats().delete_failures - before == 4
    backend.save_profile("cpu", 4, 4, b"")
    assert len(os.listdir(tmp_path)) == 1, "all of them later"


def test_rule_7_4_nothing_is_left_of_a_failed_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = FileBackend(tmp_path)
    monkeypatch.setattr(os, "replace", lambda *_: fail())
    with pytest.raises(LookupError):
        backend.save_profile("cpu", 1, 2, b"data")
    assert os.listdir(tmp_path) == []


def test_rule_7_4_a_directory_that_cannot_be_written(
    tmp_path: Path, no_pause: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    reporter = PProfReporter(FileBackend(blocker / "folder"))
    with spanprof.start(reporters=[reporter], track_wall=True) as session, span("a"):
        pass
    assert (reporter.written, reporter.lost) == (0, 2)
    assert isinstance(reporter.last_error, NotADirectoryError)
    assert calls(session.result) == {("a",): 1}
    assert "NotADirectoryError" in messages(caplog)[0]


def test_a_directory_that_is_taken_away_is_made_again(tmp_path: Path) -> None:
    backend = FileBackend(tmp_path / "folder")
    for _ in range(2):
        backend.save_profile("cpu", 1, 2, b"data")
        (written,) = (tmp_path / "folder").iterdir()
        written.unlink()
        (tmp_path / "folder").rmdir()


def test_the_directory_is_that_of_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    backend = FileBackend("folder")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    backend.save_profile("cpu", 1, 2, b"data")
    assert len(list((tmp_path / "folder").iterdir())) == 1
    assert repr(backend) == f"FileBackend({str(tmp_path / 'folder')!r})"


def test_sessions_from_other_threads(clock: ManualClock) -> None:
    reporter = Recorder()
    session = in_thread(lambda: spanprof.start(reporters=[reporter], track_wall=True))
    with span("a"):
        clock(5)
    in_thread(session.stop)
    assert series(reporter.profiles[0], "busy") == {("a",): 5}
