"""The end of a session and of the interpreter, whatever reporters do meanwhile.

Programs of their own: what is at stake is how they end.
"""

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from .helpers import python_environment, run_python

PROGRAM = """
import atexit, ctypes, json, os, signal, sys, threading, time, warnings
import spanprof
from spanprof import span

warnings.simplefilter("ignore")

def out(**fields):
    os.write(1, (json.dumps({"pid": os.getpid()} | fields) + "\\n").encode())

class Faulty(spanprof.Reporter):
    "Does `fault` at each call but init()."
    def profile(self, profile): self.fault("profile")
    def spans(self, batch): self.fault("spans")
    def flush(self): self.fault("flush")

class Tell(spanprof.Reporter):
    "Comes after the faulty one, and tells what it got."
    def init(self, config):
        self.calls, self.names, self.order = 0, [], ["init"]
    def profile(self, profile):
        self.calls += profile.totals["calls"]
        self.order.append("profile")
    def spans(self, batch):
        self.names += [each.name for each in batch]
        self.order.append("spans")
    def flush(self):
        self.order.append("flush")
        if self.ending:
            out(calls=self.calls, names=sorted(self.names), last=self.order[-1])

tell = Tell()
parent = os.getpid()
"""


def lines_of(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def one_line(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    (line,) = lines_of(done)
    return line


# --- what reporters do ----------------------------------------------------------------

FAULTS = {
    "nothing": "pass",
    "an error": "raise LookupError('from the reporter')",
    "SystemExit": "sys.exit(7)",
    "KeyboardInterrupt": "raise KeyboardInterrupt",
    "GeneratorExit": "raise GeneratorExit",
    "a BaseException": "raise type('Odd', (BaseException,), {})",
    "spans": "span('own').open(); span('own').__enter__()",
    "stop": "spanprof.stop()",
    "flush": "spanprof.flush()",
    "snapshot": "spanprof.snapshot()",
    "start": "spanprof.start()",
    "fork and _exit": """
        pid = os.fork()
        if pid == 0: os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0, out(failed=1)""",
    "fork and go on": """
        pid = os.fork()
        if pid: assert os.waitpid(pid, 0)[1] == 0, out(failed=1)""",
    "fork and raise": """
        pid = os.fork()
        if pid == 0: raise LookupError
        assert os.waitpid(pid, 0)[1] == 256, out(failed=1)""",
    "fork and sys.exit": """
        pid = os.fork()
        if pid == 0: sys.exit(5)
        assert os.waitpid(pid, 0)[1] == 5 << 8, out(failed=1)""",
}

ENDS = {
    "the end": ("", 0),
    "stop": ("spanprof.stop()", 0),
    "an error": ("raise ValueError('of the program')", 1),
    "sys.exit": ("sys.exit(3)", 3),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("fault", FAULTS)
def test_rule_6_5_all_is_told_once_whatever_a_reporter_does(
    tmp_path: Path, fault: str, end: str
) -> None:
    code = f"""
def fault(self, method):
    if method in ("profile", "flush"):
        {FAULTS[fault]}

Faulty.fault = fault
spanprof.start(track_all=True, report_interval=0, reporters=[Faulty(), tell])
for name in "abc":
    with span(name):
        pass
spanprof.flush()
with span("d"):
    pass
{ENDS[end][0]}
"""
    done = run_python(PROGRAM + code, cwd=tmp_path, status=ENDS[end][1], timeout=30)
    line = one_line(done)
    names = list("abc" if fault == "stop" else "abcd")
    assert line["names"] == names
    assert line["calls"] == len(names)
    assert line["last"] == "flush"


@pytest.mark.parametrize("method", ["init", "spans"])
@pytest.mark.parametrize("fault", ["an error", "SystemExit", "stop", "flush"])
def test_rule_6_5_faults_in_other_methods(
    tmp_path: Path, fault: str, method: str
) -> None:
    code = f"""
def fault(*arguments):
    if not done:
        done.append(1)
        {FAULTS[fault]}

done = []
started = threading.Event()
faulty = spanprof.CallbackReporter(
    **{{"{method}": fault}} | {{"flush": lambda: started.wait(60)}})
spanprof.start(track_all=True, report_interval=0, reporters=[faulty, tell])
started.set()
for name in "abc":
    with span(name):
        pass
sys.exit(2)
"""
    line = one_line(run_python(PROGRAM + code, cwd=tmp_path, status=2, timeout=30))
    if fault != "stop" or method != "init":  # which comes at any time
        assert line["names"] == list("abc")
        assert line["calls"] == 3
    assert line["last"] == "flush"


def test_rule_5_7_a_reporters_memory_is_nobodys(tmp_path: Path) -> None:
    code = """
kept = []
Faulty.fault = lambda self, method: kept.append(bytearray(1 << 30))
session = spanprof.start(track_all=True, report_interval=0, reporters=[Faulty()])
with span("a"):
    for _ in range(3):
        spanprof.flush()
        kept.clear()
session.stop()
out(**session.result.totals)
"""
    line = one_line(run_python(PROGRAM + code, cwd=tmp_path))
    assert line["alloc_space"] < 100_000
    assert line["inuse_space"] < 100_000


def test_rule_6_7_a_child_of_a_reporter_is_not_profiled(tmp_path: Path) -> None:
    """Nor does it call reporters, for what is told there is the parent's."""
    code = """
def fault(self, method):
    if method == "profile" and not os.fork():
        with span("of the child"):
            spanprof.flush()
        out(running=spanprof.is_running())
        if sys.argv[1] == "exit":
            os._exit(0)

Faulty.fault = fault
spanprof.start(track_all=True, report_interval=0, reporters=[Faulty(), tell])
with span("a"):
    pass
spanprof.stop()
os.wait()
"""
    for how in ("return", "exit"):
        lines = lines_of(run_python(PROGRAM + code, how, cwd=tmp_path))
        child, parent = sorted(lines, key=lambda line: "calls" in line)
        assert child == {"pid": child["pid"], "running": False}
        assert parent["names"] == ["a"]
        assert parent["pid"] != child["pid"]


def test_rule_6_5_a_session_that_the_last_report_starts(tmp_path: Path) -> None:
    code = """
class Chain(Tell):
    def __init__(self, number):
        self.number = number
    def flush(self):
        super().flush()
        if self.ending and self.number:
            spanprof.start(track_all=True, reporters=[Chain(self.number - 1)])

spanprof.start(track_all=True, reporters=[Chain(3)])
"""
    assert len(lines_of(run_python(PROGRAM + code, cwd=tmp_path))) == 4


# --- reporters that do not come back --------------------------------------------------

HANGS = {
    "sleep": "time.sleep(1000)",
    "Python": "while True: pass",
    "a lock": "lock.acquire()",
    "an event": "threading.Event().wait()",
    "a C call without the GIL": "ctypes.CDLL(None).sleep(1000)",
    "a read": "os.read(reader, 1)",
    "a join": "thread.join()",
    "a child": "os.waitpid(child, 0)",
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("hang", HANGS)
def test_rule_6_5_a_hang_delays_the_end_by_no_more_than_told(
    tmp_path: Path, hang: str, end: str
) -> None:
    code = f"""
lock = threading.Lock()
lock.acquire()
reader, writer = os.pipe()
child = os.fork()
if child == 0:
    os.close(writer)
    os.read(reader, 1)  # until the parent's end
    os._exit(0)
thread = threading.Thread(target=time.sleep, args=(1000,), daemon=True)
thread.start()

def fault(self, method):
    if method == "profile":
        {HANGS[hang]}

Faulty.fault = fault
spanprof.start(
    track_all=True, report_interval=0, stop_timeout=0.2, reporters=[tell, Faulty()])
with span("a"):
    pass
{ENDS[end][0]}
"""
    began = time.monotonic()
    done = run_python(PROGRAM + code, cwd=tmp_path, status=ENDS[end][1], timeout=60)
    assert time.monotonic() - began < 30
    assert re.search(r"Faulty\.profile\(\) has not returned for [\d.]+ s", done.stderr)
    assert "Fatal" not in done.stderr


def test_rule_6_5_a_reporter_comes_back_while_the_interpreter_ends(
    tmp_path: Path,
) -> None:
    """At any moment of it: modules are gone, or the interpreter is."""
    code = """
def fault(self, method):
    if method == "flush":
        delay()

Faulty.fault = fault
delay = {
    "sleep": lambda: time.sleep(pause),
    "without the GIL": lambda: ctypes.CDLL(None).usleep(int(pause * 1e6)),
}[sys.argv[1]]
pause = float(sys.argv[2])
spanprof.start(
    track_all=True, report_interval=0, stop_timeout=0, reporters=[Faulty()])
with span("a"):
    pass
"""
    for how in ("sleep", "without the GIL"):
        for number in range(10):
            run_python(PROGRAM + code, how, str(number * 0.002), cwd=tmp_path)


# --- threads --------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["", "sys.exit(3)", "raise LookupError"])
def test_rule_6_5_daemon_threads_that_open_spans_at_exit(
    tmp_path: Path, end: str
) -> None:
    """What they had ended when the program did is told."""
    code = f"""
def work():
    keep = span("open").open()
    while True:
        with keep, span("a"), span("b"):
            pass
        ready.release()

class Count(Tell):
    def init(self, config):
        self.calls, self.told = 0, 0
    def spans(self, batch):
        self.told += len(batch)
    def flush(self):
        if self.ending:
            out(calls=self.calls, told=self.told)

ready = threading.Semaphore(0)
spanprof.start(track_all=True, report_interval=0.01, reporters=[Count()],
               max_pending_spans=10_000_000)
for _ in range(3):
    threading.Thread(target=work, daemon=True).start()
for _ in range(3000):
    ready.acquire()
{end}
"""
    status = {"": 0, "sys.exit(3)": 3}.get(end, 1)
    line = one_line(run_python(PROGRAM + code, cwd=tmp_path, status=status))
    assert line["told"] >= 2 * 3000
    assert line["told"] < line["calls"], "what is told is in the profile"


def test_rule_6_5_threads_that_go_on_after_the_main_thread(tmp_path: Path) -> None:
    """The interpreter waits for them, and so does the session."""
    code = """
def work():
    threading.main_thread().join()
    for name in "abc":
        with span(name):
            pass

spanprof.start(track_all=True, report_interval=0, reporters=[tell])
threading.Thread(target=work).start()
"""
    line = one_line(run_python(PROGRAM + code, cwd=tmp_path))
    assert line["names"] == list("abc")


def test_rule_6_5_two_threads_stop_while_the_interpreter_ends(tmp_path: Path) -> None:
    code = """
Faulty.fault = lambda self, method: time.sleep(0.01)
spanprof.start(track_all=True, report_interval=0, reporters=[Faulty(), tell])
for _ in range(4):
    threading.Thread(target=spanprof.stop, daemon=True).start()
with span("a"):
    pass
"""
    assert one_line(run_python(PROGRAM + code, cwd=tmp_path))["last"] == "flush"


# --- many interpreters ----------------------------------------------------------------


def test_rule_6_5_many_interpreters(tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "stress" / "interpreters.py"
    done = subprocess.run(
        [sys.executable, str(script), "50"],
        cwd=tmp_path,
        env=python_environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
