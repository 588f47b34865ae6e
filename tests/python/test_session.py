"""Sessions: rules 3.6, 6.2, 6.4 and 6.5, fork, and other interpreters."""

# ruff: noqa: SIM117 (how blocks are nested is what is tested)

import contextlib
import itertools
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import spanprof
from spanprof import Profile, ProfileConfig, Reporter, span

from .helpers import ManualClock, by_path, calls, in_thread, run_python, series
from .model import Model, Values

# --- 3.6: without a session, and across its ends --------------------------------------


def test_rule_3_6_without_a_session_nothing_happens() -> None:
    assert not spanprof.is_running()
    decorated = span("d")(lambda x: x)
    before = spanprof.stats()
    s = span("s", label=1)
    with s as same:
        assert same is s
        assert not s.is_recording
        assert s.id == 0
        with s, span("t"):
            assert spanprof.current_span() is None
    s.open()
    assert not s.is_recording
    with s, s.span("child") as child:
        assert not child.is_recording
    s.close()
    assert decorated(5) == 5
    assert spanprof.stats() == before


def test_rule_3_6_errors_are_the_same_without_a_session() -> None:
    s = span("s").open()
    with pytest.raises(RuntimeError, match="already open"):
        s.open()
    with s:
        s.close()
        with pytest.raises(RuntimeError, match="closed"):
            s.__enter__()
    with pytest.raises(RuntimeError, match="closed"):
        s.__enter__()


def test_rule_3_6_with_no_metric_calls_are_counted(clock: ManualClock) -> None:
    with spanprof.start() as session, span("a") as a:
        assert a.is_recording
        clock(5, 5)
    assert by_path(session.result) == {("a",): {"calls": 1}}
    assert session.result.kinds == ("calls",)


def sequences(length: int) -> list[tuple[str, ...]]:
    """All orders of entering and leaving two spans and toggling the session."""
    found = []
    for steps in itertools.product(("session", "a", "b", "exit"), repeat=length):
        depth = 0
        for step in steps:
            depth += {"session": 0, "exit": -1}.get(step, 1)
            if depth < 0:
                break
        else:
            found.append(steps)
    return found


@pytest.mark.parametrize("form", ["with", "opened", "same object"])
def test_rule_3_6_start_and_stop_between_enter_and_exit(
    clock: ManualClock, form: str
) -> None:
    """Every order of up to five steps, against the reference model."""
    for steps in itertools.chain.from_iterable(map(sequences, range(1, 6))):
        model = Model()
        model.stacks[0] = []
        session: spanprof.Session | None = None
        entered: list[tuple[Any, spanprof.Span]] = []
        kept = []  # its death would close an opened span
        thing = model.new("x")
        shared = span("x")
        for number, step in enumerate(steps):
            if step == "session" and session is None:
                session = spanprof.start(track_wall=True, track_cpu=True)
                model.start()
            elif step == "session":
                assert session is not None
                session.stop()
                compare(session.result, model, steps)
                model.stop()
                session = None
            elif step == "exit":
                modelled, real = entered.pop()
                model.exit(0, modelled)
                real.__exit__(None, None, None)
            else:
                if form != "same object":
                    thing, shared = model.new(step), span(step)
                if form == "opened":
                    assert model.open(0, thing)
                    kept.append(shared.open())
                assert model.enter(0, thing)
                shared.__enter__()
                entered.append((thing, shared))
                assert shared.is_recording is (session is not None)
            wall, cpu = 10**number, 3 * 10**number
            clock(wall, cpu)
            model.advance(wall, cpu)
        if session is not None:
            session.stop()
            compare(session.result, model, steps)
        for _, real in reversed(entered):
            real.__exit__(None, None, None)
            assert not real.is_recording


def compare(profile: Profile, model: Model, context: object) -> None:
    found = {
        path: Values(v["calls"], v["wall_busy"], v["wall_idle"], v["cpu"])
        for path, v in by_path(profile).items()
    }
    assert found == model.nodes, context


def test_rule_3_6_decorated_function_that_stops_the_session(clock: ManualClock) -> None:
    @span("f")
    def function(action: Any) -> Any:
        clock(5)
        return action()

    session = spanprof.start(track_wall=True)
    function(spanprof.stop)
    assert series(session.result, "busy") == {("f",): 5}
    session = function(lambda: spanprof.start(track_wall=True))
    with span("after"):
        clock(7)
    session.stop()
    assert series(session.result, "busy") == {("after",): 7}


def test_rule_3_6_spans_of_an_old_session_do_not_charge_a_new_one(
    clock: ManualClock,
) -> None:
    spanprof.start(track_wall=True)
    old, opened = span("old"), span("opened").open()
    old.__enter__()
    spanprof.stop()
    with spanprof.start(track_wall=True) as session:
        clock(1)
        assert not old.is_recording
        assert not opened.is_recording
        with opened, span("new"):
            clock(20)
            old.__exit__(None, None, None)
            clock(300)
        opened.close()
        clock(4000)
    assert series(session.result, "wall") == {("new",): 320}


def test_rule_3_6_same_object_in_two_sessions_on_two_threads(
    clock: ManualClock,
) -> None:
    """What is left of the first session must not take the second's span away."""
    s = span("s")
    step = threading.Barrier(2, timeout=30)

    def other() -> None:
        s.__enter__()
        step.wait()  # 1: entered in the first session
        step.wait()  # 2: main has entered it in the second
        with span("learns of the second session"):
            pass
        s.__exit__(None, None, None)
        step.wait()  # 3

    first = spanprof.start(track_wall=True)
    thread = threading.Thread(target=other)
    thread.start()
    step.wait()
    first.stop()
    before = spanprof.stats().misnested
    with spanprof.start(track_wall=True) as second:
        s.__enter__()
        step.wait()
        step.wait()
        clock(5)
        assert s.is_recording
        assert spanprof.current_span() is s
        s.__exit__(None, None, None)
        thread.join()
        assert spanprof.stats().misnested == before
    assert series(second.result, "busy")[("s",)] == 5


def test_rule_3_6_left_by_another_thread_after_the_session(tmp_path: Path) -> None:
    """Its memory must not go while the thread that entered it may look at it."""
    code = """
import gc, sys, threading
import spanprof
from spanprof import span

def elsewhere(function, *arguments):
    thread = threading.Thread(target=function, args=arguments)
    thread.start()
    thread.join()
    del thread, function, arguments

session = spanprof.start(track_wall=True)
below, above = span("below"), span("above")
below.__enter__()
above.__enter__()
session.stop()
elsewhere(lambda s: s.__exit__(None, None, None), below)
del below
gc.collect()
fresh = [span(str(number)) for number in range(100)]  # takes its place in memory
counts = [sys.getrefcount(each) for each in fresh]
above.__exit__(None, None, None)
for each in fresh:
    each.__enter__()
for each in fresh:
    each.__exit__(None, None, None)
del each
assert [sys.getrefcount(each) for each in fresh] == counts, "a reference too few"
with spanprof.start() as session:
    for each in fresh:
        with each:
            pass
assert len(session.result) == 100
"""
    run_python(code, cwd=tmp_path)


def test_rule_3_6_many_sessions() -> None:
    for number in range(200):
        with spanprof.start(track_all=True) as session:
            for _ in range(number % 5):
                with span(f"s{number % 7}"):
                    pass
        assert sum(calls(session.result).values()) == number % 5
        assert not spanprof.is_running()


def test_rule_3_8_session_errors() -> None:
    with spanprof.start():
        with pytest.raises(RuntimeError) as info:
            spanprof.start()
        assert str(info.value) == "a session is already running"
    for keywords in ({"max_nodes": -1}, {"report_interval": -0.5}):
        with pytest.raises(ValueError, match="must not be negative"):
            spanprof.start(**keywords)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"must be a spanprof\.Reporter"):
        spanprof.start(reporters=[object()])  # type: ignore[list-item]
    with pytest.raises(RuntimeError, match="no session is running"):
        spanprof.snapshot()
    assert not spanprof.is_running()
    assert spanprof.stop()
    assert spanprof.flush()


# --- 6.2: what reporters get ----------------------------------------------------------


class Record(Reporter):
    def __init__(self) -> None:
        self.events: list[tuple[str, object]] = []
        self.threads: set[int] = set()

    def init(self, config: ProfileConfig) -> None:
        self._add("init", config)

    def profile(self, profile: Profile) -> None:
        self._add("profile", profile)

    def flush(self) -> None:
        self._add("flush", None)

    def _add(self, name: str, value: object) -> None:
        self.threads.add(threading.get_ident())
        self.events.append((name, value))

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.events]

    @property
    def profiles(self) -> list[Profile]:
        return [value for _, value in self.events if isinstance(value, Profile)]


def test_rule_6_2_flush_follows_each_report_and_is_last() -> None:
    record = Record()
    with spanprof.start(
        track_wall=True, report_interval=0, reporters=[record]
    ) as session:
        for _ in range(3):
            with span("a"):
                pass
            assert session.flush()
    assert record.names[0] == "init"
    assert record.names.count("init") == 1
    assert record.names[1:] == ["profile", "flush"] * ((len(record.names) - 1) // 2)
    assert record.names.count("flush") >= 4
    assert record.names[-1] == "flush"
    assert len(record.threads) == 1
    assert threading.get_ident() not in record.threads


def test_rule_6_2_after_flush_nothing_is_held_back(clock: ManualClock) -> None:
    record = Record()
    with spanprof.start(
        track_wall=True, report_interval=0, reporters=[record]
    ) as session:
        for step in range(1, 6):
            with span("a"):
                clock(step)
            session.flush()
            got = [series(p, "busy").get(("a",), 0) for p in record.profiles]
            assert sum(got) == sum(range(step + 1))


def test_rule_6_2_stop_delivers_open_and_running_spans(clock: ManualClock) -> None:
    record = Record()
    session = spanprof.start(track_wall=True, report_interval=0, reporters=[record])
    opened = span("opened").open()
    entered = span("entered").__enter__()
    clock(5)
    assert session.stop()
    clock(100)
    last = record.profiles[-1]
    assert by_path(last)["opened",]["wall_idle"] == 5
    assert by_path(last)["entered",]["wall_busy"] == 5
    assert by_path(last)["entered",]["calls"] == 1
    assert by_path(session.result) == by_path(
        sum(record.profiles[1:], record.profiles[0])
    )
    entered.__exit__(None, None, None)
    opened.close()
    assert record.names[-1] == "flush"


def test_rule_6_2_reports_add_up_to_the_result() -> None:
    record = Record()
    with spanprof.start(
        track_all=True, report_interval=0.002, reporters=[record]
    ) as session:
        end = time.monotonic() + 0.2
        while time.monotonic() < end:
            with span("a"), span("b"):
                sum(range(100))
    assert len(record.profiles) > 5
    total = sum(record.profiles[1:], record.profiles[0])
    assert by_path(total) == by_path(session.result)
    assert total.duration == session.result.duration
    for earlier, later in itertools.pairwise(record.profiles):
        assert earlier.start + earlier.duration == later.start


def test_rule_6_2_several_reporters_get_the_same() -> None:
    records = [Record() for _ in range(3)]
    with spanprof.start(track_wall=True, report_interval=0, reporters=records):
        with span("a"):
            pass
    for record in records[1:]:
        assert list(map(by_path, record.profiles)) == list(
            map(by_path, records[0].profiles)
        )


# --- 6.4: what is not overridden costs nothing ----------------------------------------


def test_rule_6_4_without_profile_no_values_are_collected() -> None:
    class OnlyFlush(Reporter):
        flushes = 0

        def flush(self) -> None:
            self.flushes += 1

    reporter = OnlyFlush()
    with spanprof.start(
        track_all=True, report_interval=0, reporters=[reporter]
    ) as session:
        session.flush()
        before = spanprof.stats()
        for _ in range(5):
            assert session.flush()
        after = spanprof.stats()
    assert after.snapshots == before.snapshots
    assert after.reports == before.reports + 5
    assert reporter.flushes >= 6


def test_rule_6_4_without_reporters_there_is_no_thread() -> None:
    def has(wanted: int) -> bool:
        """Whether there are so many reporter threads, or soon will be."""
        for _ in range(500):
            names = []
            for file in tasks.glob("*/comm"):
                with contextlib.suppress(OSError):  # it has just ended
                    names.append(file.read_text())
            if names.count("spanprof\n") == wanted:
                return True
            time.sleep(0.01)
        return False

    tasks = Path("/proc/self/task")
    if not tasks.exists():
        pytest.skip("counts threads by /proc")
    assert has(0)
    with spanprof.start(track_all=True):
        assert has(0)
    with spanprof.start(track_all=True, reporters=[Record()]):
        assert has(1)
    assert has(0)


# --- 6.5: the interpreter's exit ------------------------------------------------------

EXIT = """
import sys, threading, time
import spanprof

class Out(spanprof.Reporter):
    def init(self, config):
        print("init", flush=True)
    def profile(self, profile):
        for sample in profile.samples:
            print(sample.stack[0].name, sample.values["calls"], flush=True)
    def flush(self):
        print("flush", flush=True)

spanprof.start(track_all=True, report_interval=0, reporters=[Out()])
with spanprof.span("done"):
    pass
spanprof.span("entered").__enter__()
keep = spanprof.span("opened").open()
"""


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ("", 0),
        ("sys.exit(3)", 3),
        ("raise ValueError('x')", 1),
        ("raise KeyboardInterrupt", None),
        ("threading.Thread(target=lambda: time.sleep(0.1)).start()", 0),
        (
            "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
            0,
        ),
        (
            "import atexit; atexit.register(lambda: spanprof.span('late').__enter__())",
            0,
        ),
    ],
)
def test_rule_6_5_a_running_session_stops_by_itself(
    tmp_path: Path, end: str, status: int | None
) -> None:
    if status is None:  # killed by SIGINT, as without us
        status = -2 if sys.platform != "win32" else 1
    done = run_python(EXIT + end, cwd=tmp_path, status=status)
    lines = done.stdout.split("\n")
    assert lines[0] == "init"
    assert "done 1" in lines
    assert "entered 1" in lines
    assert "opened 1" in lines
    assert lines[-2] == "flush"


def test_rule_6_5_a_hanging_reporter_is_named_and_not_waited_for(
    tmp_path: Path,
) -> None:
    code = """
import time
import spanprof

class Stuck(spanprof.Reporter):
    def profile(self, profile):
        time.sleep(1000)

spanprof.start(track_all=True, report_interval=0, reporters=[Stuck()], stop_timeout=0.2)
with spanprof.span("a"):
    pass
"""
    began = time.monotonic()
    done = run_python(code, cwd=tmp_path)
    assert time.monotonic() - began < 15
    assert "Stuck" in done.stderr


def test_rule_6_5_spans_after_the_stop_at_exit(tmp_path: Path) -> None:
    """Module globals die late, with spans among them."""
    code = """
import spanprof

class Late:
    def __del__(self, span=spanprof.span):
        with span("late"):
            pass

late = Late()
opened = spanprof.span("opened", cycle=late).open()
late.cycle = opened
spanprof.start(track_all=True)
entered = spanprof.span("entered")
entered.__enter__()
again = spanprof.span("again").open()
"""
    done = run_python(code, cwd=tmp_path)
    assert done.stderr == ""


# --- fork -----------------------------------------------------------------------------

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no os.fork")

FORK = """
import json, os, sys, threading, time, warnings
import spanprof
from spanprof import span
warnings.simplefilter("ignore")

def result(profile):
    return {
        "/".join(site.name for site in reversed(sample.stack)): dict(sample.values)
        for sample in profile.samples
    }

def in_child(work):
    "Runs in a fork; what it returns, or the status."
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            with os.fdopen(writer, "w") as out:
                json.dump(work(), out)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        text = answer.read()
    _, status = os.waitpid(child, 0)
    assert status == 0, status
    return json.loads(text)
"""


@needs_fork
@pytest.mark.parametrize("on_fork", ["restart", "stop"])
def test_rule_6_6_fork_with_open_spans(tmp_path: Path, on_fork: str) -> None:
    code = """
session = spanprof.start(track_all=True, on_fork=sys.argv[1])
outer = span("outer").__enter__()
opened = span("opened").open()
for _ in range(1000):
    with span("before"):
        pass

def work():
    with span("child"):
        pass
    outer.__exit__(None, None, None)
    opened.close()
    running = spanprof.is_running()
    return [running, result(spanprof.snapshot()) if running else {}]

child = in_child(work)
with span("after"):
    pass
outer.__exit__(None, None, None)
opened.close()
session.stop()
print(json.dumps([child, result(session.result)]))
"""
    done = run_python(FORK + code, on_fork, cwd=tmp_path)
    (running, child), parent = json.loads(done.stdout)
    assert running is (on_fork == "restart")
    before = "outer/before"
    assert child.get(before, {}).get("calls", 0) == 0
    assert parent[before]["calls"] == 1000
    assert parent["outer/after"]["calls"] == 1
    if running:
        # Open spans go on, from zero: they were called in the parent.
        assert set(child) == {"outer", "outer/child", "outer/opened"}
        assert {path: values["calls"] for path, values in child.items()} == {
            "outer": 0,
            "outer/child": 1,
            "outer/opened": 0,
        }
        assert 0 < child["outer"]["wall_busy"] < parent["outer"]["wall_busy"]
        assert child["outer/opened"]["wall_idle"] > 0


@needs_fork
def test_rule_6_6_fork_while_threads_are_inside(tmp_path: Path) -> None:
    code = """
import itertools
session = spanprof.start(
    track_all=True, report_interval=0.001, reporters=[type("R", (spanprof.Reporter,), {
        "profile": lambda self, profile: None})()], record_labels=["n"])
stop = threading.Event()

def busy(number):
    for n in itertools.count():
        if stop.is_set():
            return
        with span(f"n{n % 50}", n=n % 100) as s:
            with span("in"), s.span("child"):
                pass
        o = span("opened").open()
        with o:
            pass

threads = [threading.Thread(target=busy, args=(n,)) for n in range(3)]
for thread in threads:
    thread.start()

def work():
    with span("child"):
        pass
    found = result(spanprof.snapshot())
    assert spanprof.flush(10)
    assert spanprof.stop(10)
    return found

found = []
for _ in range(20):
    with span("here"):
        found.append(in_child(work))
stop.set()
for thread in threads:
    thread.join()
session.stop()
mine = result(session.result)
print(json.dumps([found, mine]))
"""
    done = run_python(FORK + code, cwd=tmp_path, timeout=120)
    found, parent = json.loads(done.stdout)
    assert len(found) == 20
    for child in found:
        assert sum(values["calls"] for values in child.values()) <= 2
        assert any(path.endswith("child") for path in child)
    assert parent["here"]["calls"] == 20


@needs_fork
def test_rule_6_6_fork_without_a_session(tmp_path: Path) -> None:
    code = """
with spanprof.start(track_all=True):
    with span("before"):
        pass

def work():
    with spanprof.start(track_all=True) as session:
        with span("child"):
            pass
    return result(session.result)

print(json.dumps(in_child(work)))
"""
    done = run_python(FORK + code, cwd=tmp_path)
    assert list(json.loads(done.stdout)) == ["child"]


@needs_fork
def test_rule_6_6_multiprocessing(tmp_path: Path) -> None:
    code = """
import multiprocessing

def work(number):
    with span("work"):
        return number * 2

if __name__ == "__main__":
    with spanprof.start(track_all=True) as session, span("main"):
        with multiprocessing.get_context("fork").Pool(2) as pool:
            print(pool.map(work, range(20)))
    assert result(session.result)["main"]["calls"] == 1
"""
    done = run_python(FORK + code, cwd=tmp_path)
    assert done.stdout.strip() == str([2 * n for n in range(20)])


# --- other interpreters ---------------------------------------------------------------

SUBINTERPRETER = """
import sys
try:
    import _interpreters as interpreters
except ImportError:
    try:
        import _xxsubinterpreters as interpreters
    except ImportError:
        print("none")
        sys.exit()
import spanprof
from spanprof import span

def run(code):
    number = interpreters.create()
    try:
        failed = interpreters.run_string(number, "import sys\\n" + code)
    finally:
        interpreters.destroy(number)
    assert not failed, failed
"""


def run_subinterpreters(code: str, tmp_path: Path) -> None:
    if sys.version_info < (3, 12):
        pytest.skip("from 3.12 on")
    done = run_python(SUBINTERPRETER + code, cwd=tmp_path)
    if done.stdout.strip() == "none":
        pytest.skip("this interpreter makes no subinterpreters")
    assert done.stdout.strip().endswith("done"), done.stdout + done.stderr


def test_rule_3_6_subinterpreters_import_and_open_spans(tmp_path: Path) -> None:
    code = """
with spanprof.start(track_all=True) as session:
    for _ in range(3):
        run('''
import spanprof
from spanprof import span
assert spanprof._core.session_is_running()
with span("inside", label=[1]) as s:
    assert s.is_recording
    with s.span("child"): pass
@span("decorated")
def f(): pass
f()
''')
    with span("outside"):
        pass
names = {s.stack[0].name: s.values["calls"] for s in session.result.samples}
assert names == {"inside": 3, "child": 3, "decorated": 3, "outside": 1}, names
with span("after"): pass
print("done")
"""
    run_subinterpreters(code, tmp_path)


def test_rule_3_6_subinterpreters_names_never_mix(tmp_path: Path) -> None:
    """Code of an interpreter that has ended may leave its addresses to others."""
    code = """
with spanprof.start() as session:
    for number in range(30):
        run(f'''
import spanprof
with spanprof.span("name {number:03}"): pass
''')
names = sorted((s.stack[0].name, s.values["calls"]) for s in session.result.samples)
assert names == [(f"name {number:03}", 1) for number in range(30)], names
print("done")
"""
    run_subinterpreters(code, tmp_path)


def test_rule_4_1_subinterpreters_never_see_each_others_objects(
    tmp_path: Path,
) -> None:
    code = """
with spanprof.start() as session:
    with span("outside") as outside:
        run('''
import spanprof
current = spanprof.current_span()
assert current is None, current
with spanprof.span("inside") as inside:
    assert spanprof.current_span() is inside
''')
        assert spanprof.current_span() is outside
print("done")
"""
    run_subinterpreters(code, tmp_path)


# --- many small things ----------------------------------------------------------------


def test_rule_6_2_profile_of_a_block(clock: ManualClock) -> None:
    with spanprof.start(track_wall=True):
        with span("a"):
            clock(1)
            with spanprof.profile(track_wall=True) as block:
                clock(20)
                with span("b"):
                    clock(300)
            clock(4000)
    assert series(block.result, "busy") == {("a",): 20, ("a", "b"): 300}
    assert block.result.duration == 320


def test_rule_6_2_snapshots_from_several_threads() -> None:
    with spanprof.start(track_all=True) as session:
        for _ in range(20):
            with span("a"):
                profile = in_thread(session.snapshot)
        assert calls(profile)["a",] == 20
