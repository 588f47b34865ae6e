"""Memory that runs out, at each place where the core asks for some, one by one.

Each trial is a process of its own. It is forked from one in which the core has not done
anything yet, so that everything is made for the first time in it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from typing import Any

import pytest

from . import binding, library
from .binding import PPROF_NO_MEMORY, PPROF_OK, SECOND, Core, Profile, Roster, Thread
from .test_roster import Listener

LOSSES = (
    "callsites_folded",
    "heap_map_refused",
    "heap_table_refused",
    "heap_untracked",
    "labels_folded",
    "nodes_folded",
    "out_of_memory",
    "process_context_refused",
    "spans_dropped",
)
ONE, ALL = 1, 1 << 40
NOTHING_REFUSED = 77
LIMIT = 30  # seconds of a trial
BASE = 1 << 40  # of blocks, which nobody looks behind


class Shortage:
    """Of the calls for memory, those after so many are refused, as many as that."""

    def __init__(self, core: Core, after: int, calls: int) -> None:
        self.core, self.after, self.calls = core, after, calls
        self.refused = 0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        refuse = self.core.lib.spt_memory_refuse
        refuse(self.after, self.calls)
        try:
            yield
        finally:
            self.refused = refuse(0, 0)


Trial = Callable[[Core, Shortage], Any]


def losses(core: Core) -> int:
    return sum(core.stat(name) for name in LOSSES)


def known(profile: Profile) -> dict[str, binding.Values]:
    values = profile.by_name()
    assert all(value >= 0 for node in values.values() for value in node.values())
    return values


# --- what is done while memory runs out ---------------------------------------------


def spans(core: Core, shortage: Shortage) -> Any:
    """Every kind of span, on threads that have it all to make."""
    core.feed_limit(100)
    core.publish()
    threads = [core.thread(), core.thread()]
    with shortage():
        core.start()
        core.lib.spt_thread_mine()
        for thread in threads:
            one_of_each(core, thread)
        core.lib.sp_profile_free(core.lib.sp_snapshot())
        core.lib.sp_profile_free(core.lib.sp_collect_delta(core.ffi.NULL))
    for thread in threads:
        one_of_each(core, thread)
    assert core.lib.spt_thread_mine() != core.ffi.NULL
    told = sorted((record.frame, record.wall_busy) for record in core.take_spans())
    assert core.open_spans() == []
    cumulative = known(core.snapshot())
    busy = sum(node["wall_busy"] for node in cumulative.values())
    assert 56 <= busy <= 112, "what comes later is recorded"
    return told, cumulative


def one_of_each(core: Core, thread: Thread) -> None:
    """28 ns."""
    with thread.span("outer", label="value"):
        core.run(thread, 1)
        for n in range(6):
            with thread.span(f"inner{n}"):
                core.run(thread, 2)
        opened = thread.open("opened")
        thread.enter(opened)
        core.run(thread, 5)
        thread.exit(opened)
        thread.close(opened)
    bottom = thread.begin("suspended")
    core.run(thread, 7)
    if thread.recording() and bottom.state == binding.ENTERED:
        thread.suspend(bottom, 4096 + thread.key)
        core.advance(10)
        thread.resume(4096 + thread.key)
        core.run(thread, 3)
        thread.exit(bottom)


def blocks(core: Core, shortage: Shortage) -> Any:
    """Live heap by spans, told one by one."""
    core.feed_limit(100)
    thread, other = core.thread(), core.thread()
    roster, listener = Roster(core, with_heap=True), Listener()
    with shortage():
        status = core.lib.spt_start_memory(True, True, 1000, 0, True, 1, 0)
        listener.hear(roster.round("heap"))
        for n in range(4):
            with thread.span(f"a{n}"):
                make_blocks(core, thread, BASE + n * (1 << 24))
                listener.hear(roster.round("heap"))
        free_blocks(core, other)
        core.lib.sp_profile_free(core.lib.sp_collect_delta(core.ffi.NULL))
        listener.hear(roster.round("report"))
    assert status == binding.STARTED
    with thread.span("later"):
        thread.make(BASE - 64, 5)
    held = core.snapshot()
    listener.hear(roster.round("heap"))
    listener.hear(roster.round("last"))
    assert listener.gone == set(listener.scopes), "6.2"
    roster.free()
    told = sorted(sum(values.values()) for values in listener.values.values())
    core.free(BASE - 64)
    for n in range(4):
        for place in range(40):
            core.free(BASE + n * (1 << 24) + 16 * place)
    assert core.snapshot().totals()["inuse_space"] == 0, "5.6: every block was freed"
    return told, known(held)


def make_blocks(core: Core, thread: Thread, base: int) -> None:
    for place in range(40):
        thread.make(base + 16 * place, 8 + place)
    thread.move(base, base + 8, 100)
    thread.move(base + 8, base, 50)
    core.run(thread, 1)


def free_blocks(core: Core, thread: Thread) -> None:
    with thread.span("frees"):
        for place in range(20):
            core.free(BASE + 16 * place, thread)
    for place in range(20, 40):
        core.free(BASE + 16 * place)


def deep(core: Core, shortage: Shortage) -> Any:
    """Long scopes, and paths that another thread comes by for the first time."""
    core.feed_limit(1000)
    core.start()
    thread, other = core.thread(), core.thread()
    below = [thread.begin(f"a{n}") for n in range(95)]
    opened = [thread.open("opened", below[-1]) for _ in range(70)]
    roster, listener = Roster(core), Listener()
    with shortage():
        for span in opened[:2]:
            other.enter(span)
            core.run(other, 1)
        for span in opened[2:]:
            thread.enter(span)
            core.run(thread, 1)
        for _ in range(2):
            listener.hear(roster.round("report"))
    for span in reversed(opened):
        (other if span in opened[:2] else thread).exit(span)
        thread.close(span)
    for span in reversed(below):
        thread.exit(span)
    listener.hear(roster.round("report"))
    listener.hear(roster.round("last"))
    assert listener.gone == set(listener.scopes), "6.2"
    told = sum(values["wall_busy"] for values in listener.values.values())
    lengths = sorted(len(scope) for scope in listener.scopes.values())
    roster.free()
    return told, lengths, known(core.snapshot())


def profiles(core: Core, shortage: Shortage) -> Any:
    """What is made of profiles: there or not, and never wrong."""
    core.start_memory(interval=SECOND)
    thread = core.thread()
    for n in range(40):
        with thread.span(f"a{n % 20}"), thread.span("b", label=str(n)):
            core.run(thread, n)
            thread.make(BASE + 16 * n, n)
    profile = core.snapshot()
    ffi, lib = core.ffi, core.lib
    results: list[Any] = []
    with shortage():
        for sign in (1, -1):
            results.append(lib.sp_profile_merge(profile.pointer, profile.pointer, sign))
        first, rest = ffi.new("struct sp_profile **"), ffi.new("struct sp_profile **")
        split = lib.sp_profile_split(profile.pointer, 10, first, rest)
        data, length = ffi.new("unsigned char **"), ffi.new("size_t *")
        encoded = lib.sp_pprof_encode(profile.pointer, 1, b"p", data, length)
        decoded = ffi.new("struct sp_profile **")
        read = PPROF_NO_MEMORY
        if encoded == PPROF_OK:
            read = lib.sp_pprof_decode(data[0], length[0], decoded)
        results.append(lib.sp_profile_copy(profile.pointer))
    assert encoded in (PPROF_OK, PPROF_NO_MEMORY)
    assert read in (PPROF_OK, PPROF_NO_MEMORY)
    assert (read == PPROF_OK) == (decoded[0] != ffi.NULL)
    results += [decoded[0], *((first[0], rest[0]) if split == 0 else (None, None))]
    wrapped = [Profile(core, it) if it else None for it in results]
    both = [it.totals() if it is not None else None for it in wrapped]
    if both[0] is not None:
        assert both[0]["wall_busy"] == 2 * profile.totals()["wall_busy"]
    return [split, encoded, read, *both]


def columns(core: Core, shortage: Shortage) -> Any:
    """Spans as Arrow columns: all of them or none."""
    core.feed_limit(1000)
    core.start()
    thread = core.thread()
    for n in range(60):
        with thread.span(f"a{n}", label=str(n)):
            core.run(thread, n)
    ffi, lib = core.ffi, core.lib
    schema, array = ffi.new("struct ArrowSchema *"), ffi.new("struct ArrowArray *")
    with shortage():
        batch = lib.sp_feed_take()
        made = [lib.sp_arrow_schema(schema)]
        made.append(batch != ffi.NULL and lib.sp_arrow_array(batch, array))
    lengths = []
    for it, was_made in zip((schema, array), made, strict=True):
        assert (it.release != ffi.NULL) == was_made
        lengths.append(it.n_children if was_made else None)
        if was_made:
            it.release(it)
    lib.sp_feed_batch_free(batch)
    rest = len(core.take_spans())
    assert rest == (0 if batch != ffi.NULL else 60), "what was not taken stays"
    return [made, lengths]


def reporters(core: Core, shortage: Shortage) -> Any:
    """A reporter thread that cannot be made, or has nothing to tell."""
    lib = core.lib
    host = lib.spt_host_new(0, 0)
    core.feed_limit(100)
    thread = core.thread()
    final = core.ffi.new("struct sp_profile **")
    with shortage():
        status = lib.spt_host_start_fed(host, 0, True, True)
        if status == binding.STARTED:
            with thread.span("a"):
                core.run(thread, 10)
            lib.sp_flush(-1)
            lib.sp_stop(-1, final)
    assert status in (binding.STARTED, binding.START_NO_THREAD)
    assert not core.running
    if final[0] != core.ffi.NULL:
        lib.sp_profile_free(final[0])
    seen = {
        what: lib.spt_host_seen(host, what.encode())
        for what in ("lasts", "spans", "busy", "created", "told_busy", "disorder")
    }
    assert seen["disorder"] == 0
    assert seen["lasts"] == (status == binding.STARTED)
    core.feed_limit(0)
    assert lib.spt_host_start(lib.spt_host_new(0, 0), 0, True) == binding.STARTED
    core.stop()
    return status, seen


TRIALS: dict[str, Trial] = {
    trial.__name__: trial
    for trial in (spans, blocks, deep, profiles, columns, reporters)
}
SAYS_SO = {"profiles", "columns", "reporters"}
"""Trials whose calls answer that memory ran out; else a counter rises."""


# --- trials -------------------------------------------------------------------------


def in_child(core: Core, body: Callable[[], int]) -> int:
    child = os.fork()
    if child == 0:
        signal.alarm(LIMIT)
        status = 1
        try:
            status = body()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            binding.end_child(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def attempt(core: Core, name: str, after: int, calls: int, expected: str) -> int:
    """Its status is 0 if all is well."""
    core.use_injected_clock()
    shortage, before = Shortage(core, after, calls), losses(core)
    result = repr(TRIALS[name](core, shortage))
    if shortage.refused == 0:
        assert result == expected
        return NOTHING_REFUSED
    if name not in SAYS_SO:
        silent = losses(core) == before
        assert not silent or result == expected, f"lost in silence: {result}"
    return 0


def undisturbed(core: Core, name: str) -> str:
    reader, writer = os.pipe()

    def tell() -> int:
        core.use_injected_clock()
        result = TRIALS[name](core, Shortage(core, 0, 0))
        os.write(writer, repr(result).encode())
        return 0

    assert in_child(core, tell) == 0
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        return pipe.read().decode()


def run_all(name: str, calls: int) -> None:
    """In a process that has not used the core."""
    core = binding.load(library.find())
    expected = undisturbed(core, name)
    for after in count():
        status = in_child(core, partial(attempt, core, name, after, calls, expected))
        if status == NOTHING_REFUSED:
            print(f"{after} calls")
            return
        assert status == 0, f"{name}: {status} with memory for {after} calls"


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from core import test_out_of_memory
test_out_of_memory.run_all(sys.argv[2], int(sys.argv[3]))
"""


@pytest.mark.usefixtures("loaded_core")
@pytest.mark.parametrize("calls", [ONE, ALL], ids=["one", "all"])
@pytest.mark.parametrize("name", TRIALS)
def test_hazard_13_out_of_memory_anywhere(name: str, calls: int) -> None:
    """Nothing crashes or hangs, what is told is right, and every loss is counted."""
    arguments = [str(library.ROOT / "tests"), name, str(calls)]
    done = subprocess.run(
        [sys.executable, "-P", "-c", SCRIPT, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert int(done.stdout.split()[-2]) > 3, "the core asks for memory at all"
