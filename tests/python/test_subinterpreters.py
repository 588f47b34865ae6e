"""Interpreters beside the main one, each with a GIL of its own (3.12 and later).

None of them imports asyncio: 3.12.1 alone crashes at the end of a program that does so
in one of them. Coroutines are driven by hand.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from .helpers import run_python
from .test_session import SUBINTERPRETER, run_subinterpreters

MORE = """
import threading

def make():
    return interpreters.create()

def run_in(number, code):
    failed = interpreters.run_string(number, CODE + code)
    assert not failed, failed

def at_once(count, function):
    barrier, errors = threading.Barrier(count), []
    def call(number):
        try:
            barrier.wait(60)
            function(number)
        except BaseException as error:
            errors.append(error)
    threads = [threading.Thread(target=call, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors

def calls(session):
    result = {}
    for sample in session.result.samples:
        name = sample.stack[0].name
        result[name] = result.get(name, 0) + sample.values["calls"]
    return result

# What code in the others can use.
CODE = '''
import sys
import spanprof
from spanprof import span

class Pause:
    def __await__(self):
        yield

async def wait():
    with span("wait"):
        await Pause()
        async with span("inner"):
            await Pause()

def drive(coroutine):
    try:
        while True:
            coroutine.send(None)
    except StopIteration:
        pass

def steps():
    with span("steps"):
        while True:
            yield
'''
"""


def check(code: str, tmp_path: Path) -> None:
    run_subinterpreters(MORE + code + "\nprint('done')\n", tmp_path)


def test_rule_3_6_one_session_for_all_interpreters_at_once(tmp_path: Path) -> None:
    code = """
def work(number):
    for _ in range(3):
        run('''
CODE
with span("thread"):
    for _ in range(50):
        drive(wait())
    target = steps()
    for _ in range(50):
        next(target)
'''.replace("CODE", CODE))

with spanprof.start(track_all=True, report_interval=0.001) as session:
    at_once(4, work)
assert calls(session) == {"thread": 12, "wait": 600, "inner": 600, "steps": 12}
assert spanprof.stats().misnested == 0
assert spanprof.stats().suspensions_unseen == 0
"""
    check(code, tmp_path)


def test_rule_3_6_interpreters_import_at_the_same_time(tmp_path: Path) -> None:
    """The main one has not imported it, so that each may be the first one."""
    code = SUBINTERPRETER.replace("import spanprof\nfrom spanprof import span\n", "")
    assert "spanprof" not in code
    code += MORE
    code += """
def work(number):
    run(CODE + '''
for _ in range(2000):
    with span("a"), span("b"):
        pass
''')

for _ in range(5):
    at_once(4, work)
print("done")
"""
    if sys.version_info < (3, 12):
        pytest.skip("from 3.12 on")
    assert run_python(code, cwd=tmp_path).stdout in ("done\n", "none\n")


def test_rule_3_8_two_interpreters_start_a_session_at_once(tmp_path: Path) -> None:
    """One of them is told that there is one already."""
    code = """
def work(number):
    run(CODE + '''
for _ in range(20):
    try:
        with spanprof.start(track_all=True, record_labels=["n"]):
            with span("a", n=1):
                bytearray(1000)
    except RuntimeError as error:
        assert "already running" in str(error), error
''')

at_once(4, work)
with spanprof.start(track_all=True) as session:
    with span("after"):
        pass
assert calls(session) == {"after": 1}
"""
    check(code, tmp_path)


def test_rule_4_2_coroutines_of_another_interpreter_are_suspended(
    tmp_path: Path,
) -> None:
    code = """
spanprof._core.set_manual_clock(1000, 1000)
session = spanprof.start(track_wall=True)
with span("outside"):
    run(CODE + '''
clock = spanprof._core.set_manual_clock
coroutine = wait()
coroutine.send(None)
clock(1010, 1000)
with span("between"):
    clock(1110, 1000)
coroutine.send(None)
clock(2110, 1000)
drive(coroutine)
''')
session.stop()
spanprof._core.set_manual_clock(None, None)
values = {s.stack[0].name: s.values for s in session.result.samples}
assert values["wait"]["wall_busy"] == values["inner"]["wall_busy"] == 0
assert values["wait"]["wall_idle"] == 1110
assert values["inner"]["wall_idle"] == 1000
assert values["between"]["wall_busy"] == 100
assert values["outside"]["wall_busy"] == 1010
"""
    check(code, tmp_path)


def test_rule_6_1_reporters_run_in_the_interpreter_of_their_session(
    tmp_path: Path,
) -> None:
    code = """
number = make()
run_in(number, '''
import _thread
lock = _thread.allocate_lock()
told = []
class Tells(spanprof.Reporter):
    def span_created(self, id, metadata):
        assert type(metadata) is spanprof.SpanMetadata
        told.append(metadata.span_name)
    def flush(self):
        assert sys.modules["__main__"].__dict__ is globals()
session = spanprof.start(track_wall=True, reporters=[Tells()])
with span("there"):
    pass
''')
for _ in range(15):
    with span("here"):
        pass
try:
    spanprof.start()
except RuntimeError:
    pass
else:
    raise AssertionError("there were two sessions")
run_in(number, '''
session.stop()
assert sorted(told) == ["here"] * 15 + ["there"], told
''')
interpreters.destroy(number)
with spanprof.start() as session:
    with span("again"):
        pass
assert calls(session) == {"again": 1}
"""
    check(code, tmp_path)


def test_rule_6_5_the_interpreter_of_the_session_ends(tmp_path: Path) -> None:
    """Its session ends with it, as at the exit of a program."""
    code = """
for _ in range(3):
    run(CODE + '''
import os
class Writes(spanprof.Reporter):
    def flush(self):
        if self.ending:
            os.write(1, b"told\\\\n")
spanprof.start(track_all=True, reporters=[Writes()])
left = span("left")
left.__enter__()
target = steps()
next(target)
''')
    assert not spanprof.is_running()
    with span("between"):
        pass
"""
    check(code, tmp_path)


def test_rule_3_6_an_interpreter_ends_with_spans_open(tmp_path: Path) -> None:
    """Entered, open, suspended, and all of these kept alive until the very end."""
    code = """
LEFT = '''
left = span("left", n=[1])
left.__enter__()
opened = span("opened").open()
target = steps()
next(target)
coroutine = wait()
coroutine.send(None)
by_hand = span("by hand")
def hold():
    by_hand.__enter__()
    yield
held = hold()
next(held)
sys.kept = [left, opened, target, coroutine, by_hand, held]
'''
names = ["left", "opened", "steps", "wait", "by hand"]

def work(number):
    for _ in range(3):
        run(CODE + LEFT)
        with span("after"):
            pass

with spanprof.start(track_all=True, report_interval=0.001) as session:
    work(0)
    session.snapshot()
    at_once(3, work)
    session.snapshot()
expected = dict.fromkeys(names, 12) | {"after": 12}
assert calls(session) == expected, calls(session)
# And with what these have left behind:
with spanprof.start(track_all=True) as session:
    work(0)
assert calls(session) == dict.fromkeys(names, 3) | {"after": 3}
"""
    check(code, tmp_path)


def test_rule_3_8_an_exit_that_another_interpreter_is_in_the_way_of(
    tmp_path: Path,
) -> None:
    """The span is let go of where it belongs, not where its thread happens to be."""
    code = """
number = make()
run_in(number, "")
with spanprof.start(track_wall=True) as session:
    for _ in range(100):
        handed = [span("handed", n=1)]
        handed[0].__enter__()
        other = threading.Thread(target=lambda: handed.pop().__exit__(None, None, None))
        other.start()
        other.join()
        run_in(number, "with span('there'): pass")
        with span("here"):
            pass
assert calls(session) == {"handed": 100, "there": 100, "here": 100}
assert spanprof.stats().misnested == 100
interpreters.destroy(number)
"""
    check(code, tmp_path)


def test_rule_3_6_a_session_ends_while_others_have_watched_code(tmp_path: Path) -> None:
    """And begins again: from the main interpreter, and from another one."""
    code = """
first, second = make(), make()
BEGIN = "target, coroutine = steps(), wait(); next(target); coroutine.send(None)"
GO_ON = "next(target); drive(coroutine); del target, coroutine"
WHOLE = BEGIN + "; " + GO_ON
for _ in range(3):
    with spanprof.start(track_wall=True) as session:
        run_in(first, BEGIN)
        run_in(second, WHOLE)
    run_in(first, GO_ON)
    run_in(first, WHOLE)
    assert calls(session) == {"steps": 2, "wait": 2, "inner": 1}, calls(session)
    run_in(second, "session = spanprof.start(track_wall=True)")
    run_in(first, WHOLE)
    run_in(second, WHOLE + '''
session.stop()
names = sorted((s.stack[0].name, s.values["calls"]) for s in session.result.samples)
assert names == [("inner", 2), ("steps", 2), ("wait", 2)], names
# Its tool is free for others again; other interpreters' are not its affair.
assert sys.monitoring.get_tool(4) is None
''')
assert spanprof.stats().misnested == 0
for number in (first, second):
    interpreters.destroy(number)
"""
    check(code, tmp_path)


def test_rule_5_8_a_tool_number_is_one_interpreters_own(tmp_path: Path) -> None:
    code = """
number = make()
with spanprof.start(track_wall=True):
    sys.monitoring.use_tool_id(4, "mine")
    sys.monitoring.use_tool_id(3, "mine, too")
    def here():
        with span("here"):
            yield
    next(here())
    assert spanprof.stats().suspensions_unseen == 1
    run_in(number, '''
next(steps())
assert sys.monitoring.get_tool(4) == "spanprof"
assert sys.monitoring.get_tool(3) is None
''')
    assert spanprof.stats().suspensions_unseen == 1
interpreters.destroy(number)
"""
    check(code, tmp_path)
