"""Rule 6.6 with the ways in which programs make children: fork, multiprocessing, pools.

Every span of every process must be told exactly once: a line of JSON each.
"""

import json
from collections import Counter
from pathlib import Path

import pytest

from .helpers import run_python

PROGRAM = """
import multiprocessing, os, sys, threading, warnings
from concurrent.futures import ProcessPoolExecutor
import spanprof
from spanprof import span

warnings.simplefilter("ignore")

def start():
    spanprof.start(track_wall=True, report_interval=0, record_labels=["n"],
                   reporters=[spanprof.JsonLinesReporter("spans.jsonl")])

def work(number):
    with span("work", n=number), span("inner"):
        pass
    return os.getpid()

def tell_of(pids):
    print(*pids)
"""

METHODS = ["fork", "spawn", "forkserver"]


def spans_of(directory: Path) -> Counter[tuple[str, int]]:
    """How many spans were told, by name and process; no two of them are the same."""
    text = (directory / "spans.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    ids = Counter((line["id"], line["pid"]) for line in lines)
    assert set(ids.values()) <= {1}
    return Counter((line["name"], line["pid"]) for line in lines)


def by_name(directory: Path) -> dict[str, int]:
    total: Counter[str] = Counter()
    for (name, _), number in spans_of(directory).items():
        total[name] += number
    return dict(total)


def pids_of(directory: Path, name: str) -> set[int]:
    return {pid for known, pid in spans_of(directory) if known == name}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("end", ["", "sys.exit(2)", "raise LookupError"])
def test_rule_6_6_processes_of_multiprocessing(
    tmp_path: Path, method: str, end: str
) -> None:
    """They end by os._exit, without exit handlers."""
    code = f"""
def run(number):
    if not spanprof.is_running():  # as it is after a fork
        start()
    for _ in range(100):
        work(number)
    {end}

if __name__ == "__main__":
    start()
    context = multiprocessing.get_context("{method}")
    with span("main"):
        work(0)
        children = [context.Process(target=run, args=(n,)) for n in range(4)]
        for child in children:
            child.start()
        for child in children:
            child.join()
        work(0)
    tell_of(child.pid for child in children)
"""
    done = run_python(PROGRAM + code, cwd=tmp_path)
    pids = set(map(int, done.stdout.split()))
    spans = spans_of(tmp_path)
    (main,) = pids_of(tmp_path, "main")
    assert spans == {
        ("main", main): 1,
        **{(name, main): 2 for name in ("work", "inner")},
        **{(name, pid): 100 for name in ("work", "inner") for pid in pids},
    }


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["executor", "pool"])
def test_rule_6_6_pools(tmp_path: Path, method: str, kind: str) -> None:
    code = f"""
def begin():
    if not spanprof.is_running():
        start()

if __name__ == "__main__":
    start()
    context = multiprocessing.get_context("{method}")
    work(-1)
    if "{kind}" == "executor":
        with ProcessPoolExecutor(2, mp_context=context, initializer=begin) as pool:
            pids = list(pool.map(work, range(200)))
    else:
        pool = context.Pool(2, initializer=begin)
        pids = pool.map(work, range(200))
        pool.close()  # terminate() would kill
        pool.join()
    work(-1)
    tell_of(pids)
"""
    done = run_python(PROGRAM + code, cwd=tmp_path)
    spans = spans_of(tmp_path)
    expected = Counter(map(int, done.stdout.split()))
    (main,) = pids_of(tmp_path, "work") - set(expected)
    expected[main] = 2
    for name in ("work", "inner"):
        found = {pid: number for (known, pid), number in spans.items() if known == name}
        assert found == expected


@pytest.mark.parametrize("method", METHODS)
def test_rule_6_6_a_session_at_import_in_every_process(
    tmp_path: Path, method: str
) -> None:
    """Before multiprocessing has told the child that it is one."""
    code = f"""
if not spanprof.is_running():
    start()

if __name__ == "__main__":
    context = multiprocessing.get_context("{method}")
    child = context.Process(target=work, args=(1,))
    child.start()
    child.join()
    work(2)
    tell_of([child.pid])
"""
    done = run_python(PROGRAM + code, cwd=tmp_path)
    assert by_name(tmp_path) == {"work": 2, "inner": 2}
    assert int(done.stdout) in pids_of(tmp_path, "work")


def test_rule_6_6_children_of_children(tmp_path: Path) -> None:
    code = """
def run(depth):
    work(depth)
    if depth:
        child = context.Process(target=run, args=(depth - 1,))
        child.start()
        child.join()
    work(depth)

if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    start()
    run(3)
"""
    run_python(PROGRAM + code, cwd=tmp_path)
    spans = spans_of(tmp_path)
    assert len(spans) == 8
    assert set(spans.values()) == {2}


def test_rule_6_6_exit_handlers_of_a_child_are_still_told(tmp_path: Path) -> None:
    """Its finalizers come before the end of the session."""
    code = """
from multiprocessing.util import Finalize

def run():
    Finalize(None, work, (1,), exitpriority=0)
    Finalize(None, work, (2,), exitpriority=-10)

if __name__ == "__main__":
    start()
    child = multiprocessing.get_context("fork").Process(target=run)
    child.start()
    child.join()
    assert child.exitcode == 0
"""
    run_python(PROGRAM + code, cwd=tmp_path)
    assert by_name(tmp_path) == {"work": 2, "inner": 2}


def test_rule_6_6_the_main_process_is_stopped_at_its_exit(tmp_path: Path) -> None:
    """Not when multiprocessing ends there, whose exit handler may come first."""
    code = """
import atexit

if __name__ == "__main__":
    atexit.register(work, 1)
    start()
    spanprof.stop()
    atexit.register(work, 2)
    from multiprocessing import util
    start()
    atexit.register(work, 3)
"""
    run_python(PROGRAM + code, cwd=tmp_path)
    assert by_name(tmp_path) == {"work": 2, "inner": 2}


def test_rule_6_6_sessions_in_a_child_leave_nothing_behind(tmp_path: Path) -> None:
    code = """
from multiprocessing import util

def run():
    for _ in range(20):
        with spanprof.start():
            pass
    print(len(util._finalizer_registry), flush=True)

if __name__ == "__main__":
    child = multiprocessing.get_context("fork").Process(target=run)
    child.start()
    child.join()
"""
    assert int(run_python(PROGRAM + code, cwd=tmp_path).stdout) <= 2


def test_rule_6_6_nothing_is_imported_for_it(tmp_path: Path) -> None:
    code = """
import os, sys
import spanprof
before = set(sys.modules)
spanprof.start(reporters=[spanprof.CallbackReporter(profile=print)])
if os.fork():
    os.wait()
assert not [name for name in sys.modules if name.startswith("multiprocessing")]
spanprof.stop()
"""
    run_python(code, cwd=tmp_path)


@pytest.mark.parametrize("end", ["", "sys.exit(3)", "raise LookupError"])
def test_rule_6_6_os_fork(tmp_path: Path, end: str) -> None:
    code = f"""
start()
work(0)
with span("across"):
    pids = []
    for n in range(4):
        pid = os.fork()
        if pid == 0:
            for _ in range(100):
                work(n)
            break
        pids.append(pid)
if pid == 0:
    {end or "sys.exit()"}
for pid in pids:
    os.waitpid(pid, 0)
work(0)
tell_of(pids)
"""
    done = run_python(PROGRAM + code, cwd=tmp_path)
    pids = set(map(int, done.stdout.split()))
    spans = spans_of(tmp_path)
    (main,) = pids_of(tmp_path, "work") - pids
    for name in ("work", "inner"):
        assert spans[name, main] == 2
        assert {pid: spans[name, pid] for pid in pids} == dict.fromkeys(pids, 100)


@pytest.mark.parametrize(
    "reporter",
    [
        "spanprof.JsonLinesReporter('lines')",
        "spanprof.PProfReporter(spanprof.FileBackend('profiles', keep=1))",
        "spanprof.PProfReporter(spanprof.PyroscopeBackend('http://localhost:9', 'a'))",
        "spanprof.LogReporter()",
        "spanprof.TableReporter(open('table', 'w'))",
        "spanprof.TableReporter(console=rich.console.Console(force_terminal=True))",
        "spanprof.CallbackReporter(profile=lambda profile: profile.nothing)",
    ],
)
def test_rule_6_6_the_reporter_thread_imports_nothing(
    tmp_path: Path, reporter: str
) -> None:
    """A child that is forked in the middle of it could never import that module."""
    pytest.importorskip("rich")
    code = f"""
import sys
import rich.console
import spanprof
reporter = {reporter}
session = spanprof.start(track_all=True, report_interval=0, reporters=[reporter],
                         stop_timeout=30)
before = set(sys.modules)
for _ in range(3):
    with spanprof.span("näme"):
        pass
    spanprof.flush()
session.stop()
print(sorted(set(sys.modules) - before), file=sys.stderr)
"""
    done = run_python(code, cwd=tmp_path)
    assert done.stderr.splitlines()[-1] == "[]"


def test_rule_6_6_what_multiprocessing_knows_is_the_same_in_a_child(
    tmp_path: Path,
) -> None:
    """CPython's own tests compare it."""
    program = """
import spanprof

session = spanprof.start(track_wall=True)

import multiprocessing
from multiprocessing import util

def child(pipe):
    pipe.send(len(util._afterfork_registry))

if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    for _ in range(2):
        here, there = context.Pipe(False)
        process = context.Process(target=child, args=(there,))
        process.start()
        print(here.recv() - len(util._afterfork_registry))
        process.join()
"""
    assert run_python(program, cwd=tmp_path).stdout == "0\n0\n"
