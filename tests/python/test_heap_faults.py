"""Live heap where it is difficult: the hazards of allocation hooks, one by one.

What extensions do without Python is in heap_faults.c.
"""

import ctypes
import gc
import os
import shutil
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import spanprof
from spanprof import span

from .helpers import (
    Values,
    by_path,
    exact_with_the_gil,
    in_thread,
    in_threads,
    run_python,
    series,
)

DUST = 500
"""Less than any block of heap_faults.c, and more than what ctypes leaves."""


@pytest.fixture(autouse=True)
def stopped() -> Iterator[None]:
    yield
    spanprof.stop()


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """heap_faults.c as a library."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("there is no C compiler")
    path = tmp_path_factory.mktemp("heap_faults") / "heap_faults.so"
    source = Path(__file__).with_name("heap_faults.c")
    subprocess.run(
        [compiler, "-O2", "-shared", "-fPIC", "-pthread", str(source), "-o", str(path)],
        check=True,
    )
    return path


LOAD = """
def load(path):
    import ctypes
    lib = ctypes.CDLL(path)  # releases the GIL around calls
    lib.make_blocks.restype = lib.make_blocks_elsewhere.restype = ctypes.c_void_p
    size = ctypes.c_size_t
    lib.make_blocks.argtypes = lib.make_blocks_elsewhere.argtypes = [size, size]
    lib.resize_blocks.argtypes = [ctypes.c_void_p, size]
    lib.resize_blocks_elsewhere.argtypes = [ctypes.c_void_p, size]
    for name in ("free_blocks", "free_blocks_elsewhere", "free_at_thread_exit",
                 "free_at_process_exit"):
        getattr(lib, name).argtypes = [ctypes.c_void_p]
    lib.churn.argtypes = [ctypes.c_long, ctypes.c_uint64]
    return lib
"""


@pytest.fixture(scope="module")
def lib(library: Path) -> ctypes.CDLL:
    names: dict[str, Callable[[str], ctypes.CDLL]] = {}
    exec(LOAD, names)
    return names["load"](str(library))


def values_of(*path: str) -> Values:
    return by_path(spanprof.snapshot())[path]


def in_use(*path: str) -> tuple[int, int]:
    values = values_of(*path)
    return values["inuse_objects"], values["inuse_space"]


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "it does not become true"
        time.sleep(0.005)


# --- 1: hooks call nothing of CPython -------------------------------------------------

HEAVY = """
import faulthandler, gc, json, random, sys, threading
import spanprof
from spanprof import span

faulthandler.enable()
gc.set_threshold(50, 5, 5)
sys.setswitchinterval(1e-5)
kept = []

def work(number):
    numbers = random.Random(number)
    mine = []
    for turn in range(150):
        with span("outer"):
            text = json.dumps({str(n): [n, n / 3, "x" * n] for n in range(60)})
            with span("inner"):
                mine.append(json.loads(text))
                mine.append(bytearray(numbers.choice([0, 1, 500, 600, 90_000])))
                ring = [mine[-1]]
                ring.append(ring)
            try:
                bytearray(2**62)
            except MemoryError:
                pass
            else:
                raise AssertionError("no MemoryError")
        mine[numbers.randrange(len(mine))] = None
    kept.append(mine)

def program():
    # Threads hand over nothing: what one made, the main thread frees.
    threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

session = spanprof.start(track_heap=True)
program()
with span("exact"):
    block = bytes(100_000)
    small = [bytes(40 + n) for n in range(100)]
now = {s.stack[0].name: s.values for s in spanprof.snapshot().samples}
assert now["outer"]["inuse_objects"] >= 0, now
assert now["inner"]["inuse_objects"] > 3 * 75 * 60, now
assert 101 <= now["exact"]["inuse_objects"] < 110, now
assert 101 <= now["exact"]["alloc_objects"] < 400, now
size = sys.getsizeof(block) + sum(map(sys.getsizeof, small)) + sys.getsizeof(small)
assert abs(now["exact"]["inuse_space"] - size) < 1500, (now, size)
kept.clear()
del block, small
gc.collect()
# Keys of dictionaries, floats and the like may stay with the interpreter.
for sample in spanprof.snapshot().samples:
    assert 0 <= sample.values["inuse_space"] < 60_000, sample.values
    assert 0 <= sample.values["inuse_objects"] < 600, sample.values
assert spanprof.stats().heap_untracked == 0
assert spanprof.stats().alloc_hooks_lost == 0
kept.append(bytearray(100))  # lives on
print("done")
"""

ALLOCATORS = ["default", "dev", "debug", "malloc", "malloc_debug", "pymalloc_debug"]
if sys.version_info >= (3, 13) and sysconfig.get_config_var("WITH_MIMALLOC"):
    ALLOCATORS += ["mimalloc", "mimalloc_debug"]


@exact_with_the_gil
@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_hazard_1_over_every_allocator(
    allocator: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The debugging ones abort if a block was not theirs, or the GIL is not held."""
    if allocator == "dev":
        done = run_python(HEAVY, cwd=tmp_path, options=("-X", "dev"))
    else:
        monkeypatch.setenv("PYTHONMALLOC", allocator)
        done = run_python(HEAVY, cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("done\n", "")


# --- 2: nesting -----------------------------------------------------------------------


@pytest.mark.parametrize("size", [480, 600, 5000, 16 << 20, (16 << 20) - 34, 1 << 25])
def test_hazard_2_a_block_of_any_size_counts_once(size: int) -> None:
    """The object allocator passes large ones on to the raw one, which we hook too.

    16 MiB is where the map keeps sizes elsewhere.
    """
    bytes(3)
    whole = sys.getsizeof(b"") + size
    gc.disable()
    try:
        with spanprof.start(track_heap=True):
            with span("a"):
                block = bytes(size)
            found = values_of("a")
            del block
            with span("b"):  # so that the thread has told what it did
                pass
            assert in_use("a") == (0, 0)
    finally:
        gc.enable()
    assert found == {
        "calls": 1,
        "alloc_objects": 1,
        "alloc_space": whole,
        "inuse_objects": 1,
        "inuse_space": whole,
        "inuse_peak_space": whole,
    }


# --- 3: addresses that are used again -------------------------------------------------


@pytest.mark.parametrize("sample_bytes", [0, 4000])
def test_hazard_3_threads_race_for_addresses(
    lib: ctypes.CDLL, sample_bytes: int
) -> None:
    """Without the GIL: blocks made, resized and freed by whoever has the address.

    Two threads with spans, one without, one that Python has never seen. A block that
    is untracked too late, or never tracked again after a failure, is left over.
    """

    def work(number: int) -> None:
        if number == 2:
            lib.churn(30_000, 7)
            return
        for turn in range(30):
            with span(f"s{(number + turn) % 3}"):
                lib.churn(1000, 100 * turn + number)

    with spanprof.start(track_heap=True, heap_sample_bytes=sample_bytes):
        lib.churn_elsewhere(1)
        try:
            in_threads(3, work)
        finally:
            lib.churn_stop()
        lib.churn_end()
        found = by_path(spanprof.snapshot())
    assert set(found) == {("s0",), ("s1",), ("s2",)}
    for values in found.values():
        # Half of what they do makes a block, of 600 to 3400 bytes.
        assert values["alloc_space"] > 20 * 300 * 600
        assert 0 <= values["inuse_space"] < DUST
        assert values["inuse_objects"] < 5
        assert values["inuse_peak_space"] > 600
    assert spanprof.stats().heap_untracked == 0


def test_hazard_3_a_failed_realloc_leaves_the_block_tracked() -> None:
    """As many times as one likes, and on threads that do not know the session."""
    python = ctypes.CDLL(None)
    size_t, pointer = ctypes.c_size_t, ctypes.c_void_p
    malloc, realloc = python.PyMem_RawMalloc, python.PyMem_RawRealloc
    malloc.restype = realloc.restype = pointer
    malloc.argtypes, realloc.argtypes = [size_t], [pointer, size_t]
    python.PyMem_RawFree.argtypes = [pointer]
    with spanprof.start(track_heap=True):
        with span("a"):
            blocks = [malloc(20_000_000), malloc(5000), malloc(0)]
        before = values_of("a")

        def fail() -> None:
            for _ in range(100):
                for block in blocks:
                    assert realloc(block, 2**62) is None
                    assert realloc(block, 2**64 - 1) is None

        fail()
        in_thread(fail)
        with span("b"):
            fail()
        assert values_of("a") == before
        assert values_of("b")["inuse_space"] < DUST
        for block, size in zip(blocks, (20_000_000, 5000, 0), strict=True):
            python.PyMem_RawFree(block)
            after = values_of("a")
            assert before["inuse_objects"] - after["inuse_objects"] == 1
            assert before["inuse_space"] - after["inuse_space"] == size
            before = after


def test_hazard_3_buffers_that_threads_resize() -> None:
    """Eight threads, switched as often as can be, resize and drop what others made."""
    shared: list[bytearray | None] = [None] * 40
    interval = sys.getswitchinterval()
    filler = bytes(3000)

    def work(number: int) -> None:
        for turn in range(400):
            with span(f"s{number % 3}"):
                place = (turn * 7 + number * 11) % len(shared)
                block, shared[place] = shared[place], None
                if block is None or turn % 5 == 0:
                    block = bytearray(600 + turn)
                elif turn % 2:
                    block += filler[: 600 + turn]
                else:
                    del block[len(block) // 3 :]
                shared[place] = block
                block = None

    sys.setswitchinterval(1e-6)
    try:
        with spanprof.start(track_heap=True):
            in_threads(8, work)
            size = sum(
                bytearray.__basicsize__ + block.__alloc__()
                for block in shared
                if block is not None
            )
            found = series(spanprof.snapshot(), "inuse_space")
            assert size <= sum(found.values()) < size + 20 * DUST
            shared.clear()
            for name in ("s0", "s1", "s2"):
                values = values_of(name)
                assert values["alloc_space"] > 400_000
                assert 0 <= values["inuse_space"] < 8 * DUST, name
    finally:
        sys.setswitchinterval(interval)


# --- 4: hooks come once and stay ------------------------------------------------------


def test_hazard_4_sessions_come_and_go_in_a_race(lib: ctypes.CDLL) -> None:
    """No session sees a block of another one, nor a free too many."""
    over = threading.Event()

    def work(number: int) -> None:
        if number:
            turn = 0
            while not over.is_set():
                turn += 1
                with span("churn"):
                    lib.churn(200, 1000 * turn + number)
            return
        try:
            for turn in range(150):
                session = spanprof.start(track_heap=turn % 4 != 3, track_wall=True)
                with span("mine"):
                    blocks = lib.make_blocks(50, 1000)
                if turn % 2:
                    found.append(values_of("mine"))
                    lib.free_blocks(blocks)
                    blocks = None
                for profile in (session.snapshot(), session.snapshot()):
                    profiles.append(profile)
                session.stop()
                profiles.append(session.result)
                if blocks is not None:
                    lib.free_blocks(blocks)
        finally:
            over.set()

    found: list[Values] = []
    profiles: list[spanprof.Profile] = []
    lib.churn_elsewhere(1)
    try:
        in_threads(3, work)
    finally:
        over.set()
        lib.churn_stop()
        lib.churn_end()
    for values in found:
        if "inuse_space" in values:
            assert 50_000 <= values["inuse_space"] < 50_000 + DUST
    churned = 0
    for profile in profiles:
        for path, values in by_path(profile).items():
            assert min(values.values()) >= 0, (path, values)
            if path == ("churn",) and "inuse_space" in values:
                assert values["inuse_space"] <= values["alloc_space"]
                # What the slots and a step of each thread hold.
                assert values["inuse_objects"] < 60
                churned += values["alloc_objects"]
    assert churned > 1000


@exact_with_the_gil
@pytest.mark.parametrize("allocator", ["default", "pymalloc_debug"])
def test_hazard_4_hooks_come_while_others_allocate(
    allocator: str,
    library: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first session of a process: the allocators change under their users."""
    code = """
import sys, threading, time
sys.setswitchinterval(1e-6)
lib = load(sys.argv[1])
lib.churn_elsewhere(2)
stop = []

def work():
    while not stop:
        [bytearray(n * 100) for n in range(20)]

threads = [threading.Thread(target=work) for _ in range(2)]
for thread in threads:
    thread.start()
import spanprof
session = spanprof.start(track_heap=True)
with spanprof.span("a"):
    blocks = lib.make_blocks(100, 1000)
before = spanprof.snapshot().totals["inuse_space"]
lib.free_blocks(blocks)
after = spanprof.snapshot().totals["inuse_space"]
session.stop()
stop.append(1)
for thread in threads:
    thread.join()
lib.churn_stop()
lib.churn_end()
assert before - after == 100_000, (before, after)
print("done")
"""
    monkeypatch.setenv("PYTHONMALLOC", allocator)
    for _ in range(3):
        done = run_python(LOAD + code, str(library), cwd=tmp_path)
        assert (done.stdout, done.stderr) == ("done\n", "")


TRACED = """
import sys, tracemalloc
import spanprof
from spanprof import span

def measured(size):
    "What a span has in use that makes a block of that size."
    with span(f"block of {size}"):
        blocks.append(bytearray(size))
    for sample in spanprof.snapshot().samples:
        if sample.stack[0].name == f"block of {size}":
            assert sample.values["inuse_space"] <= sample.values["alloc_space"]
            return sample.values["inuse_space"]
    return 0

def is_exact(size):
    return size < measured(size) < size + 1000

blocks = []
"""


def test_hazard_4_tracemalloc_comes_and_goes_after_us(tmp_path: Path) -> None:
    code = """
session = spanprof.start(track_heap=True)
assert is_exact(10_001)
tracemalloc.start(5)
assert is_exact(20_002)
assert tracemalloc.get_traced_memory()[0] > 20_000
blocks.clear()
assert session.snapshot().totals["inuse_space"] < 9_000  # tracebacks are spans' too
tracemalloc.stop()
assert is_exact(30_003)
session.stop()
tracemalloc.start()
with spanprof.start(track_heap=True):
    assert is_exact(40_004)
tracemalloc.stop()
with spanprof.start(track_heap=True):
    assert is_exact(50_005)
assert spanprof.stats().alloc_hooks_lost == 0
print("done")
"""
    done = run_python(TRACED + code, cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("done\n", "")


def test_hazard_4_tracemalloc_from_before_us(tmp_path: Path) -> None:
    """Its stop takes our hooks out: it is said, and the next session has them again.

    Until then blocks that are freed stay in the books, but nothing is negative and
    nothing is counted twice.
    """
    code = """
import logging
logging.basicConfig(format="%(name)s")
tracemalloc.start()
session = spanprof.start(track_heap=True)
assert is_exact(10_001)
tracemalloc.stop()
assert measured(20_002) == 0
blocks.clear()
assert all(v >= 0 for v in session.snapshot().totals.values())
tracemalloc.start()
session.stop()
assert spanprof.stats().alloc_hooks_lost == 1
assert all(v >= 0 for v in session.result.totals.values())
for turn in range(3):
    with spanprof.start(track_heap=True):
        for size in (30_003, 40_004, 40_005):
            assert is_exact(size)
        before = spanprof.snapshot().totals
        blocks.clear()
        after = spanprof.snapshot().totals
        gone = before["inuse_space"] - after["inuse_space"]
        assert 110_012 < gone < 112_000, (before, after)
        assert tracemalloc.is_tracing() == (turn == 0)
    if turn == 0:
        tracemalloc.stop()  # puts back what was there before our hooks came again
print("done")
"""
    done = run_python(TRACED + code, cwd=tmp_path)
    assert done.stdout == "done\n", done.stderr
    assert set(done.stderr.split()) == {"spanprof"}


# --- 5: threads without a thread state ------------------------------------------------


def test_hazard_5_blocks_freed_by_threads_that_python_has_never_seen(
    lib: ctypes.CDLL,
) -> None:
    with spanprof.start(track_heap=True):
        with span("a"):
            first = lib.make_blocks(1000, 700)
            second = lib.make_blocks(10, 17 << 20)
        whole = 1000 * 700 + 10 * (17 << 20)
        before = in_use("a")
        assert 1010 <= before[0] < 1020
        assert whole <= before[1] < whole + DUST
        lib.free_blocks_elsewhere(first)
        assert in_use("a") == (before[0] - 1000, before[1] - 700_000)
        lib.free_blocks_elsewhere(second)
        assert in_use("a") == (before[0] - 1010, before[1] - whole)
        assert values_of("a")["inuse_peak_space"] >= before[1] - 16 * 1024


def test_hazard_5_blocks_resized_by_threads_that_python_has_never_seen(
    lib: ctypes.CDLL,
) -> None:
    """That is a free. The new block is nobody's, and comes back into a span."""
    with spanprof.start(track_heap=True):
        with span("a"):
            blocks = lib.make_blocks(1000, 700)
        before = in_use("a")
        lib.resize_blocks_elsewhere(blocks, 900)
        assert in_use("a") == (before[0] - 1000, before[1] - 700_000)
        with span("b"):
            lib.resize_blocks(blocks, 650)
        after = in_use("b")
        assert 1000 <= after[0] < 1010
        assert 650_000 <= after[1] < 650_000 + DUST
        lib.free_blocks(blocks)
        assert in_use("b") == (after[0] - 1000, after[1] - 650_000)


def test_hazard_5_their_own_blocks_are_nobodys(lib: ctypes.CDLL) -> None:
    with spanprof.start(track_heap=True):
        with span("a"):
            blocks = lib.make_blocks_elsewhere(1000, 700)
        assert values_of("a")["alloc_space"] < DUST
        with span("b"):
            lib.free_blocks(blocks)
        for name in ("a", "b"):
            objects, space = in_use(name)
            assert 0 <= objects < 10
            assert 0 <= space < DUST


def test_hazard_5_they_run_while_spans_and_reporters_do(lib: ctypes.CDLL) -> None:
    class Keep(spanprof.Reporter):
        def profile(self, profile: spanprof.Profile) -> None:
            profiles.append(profile)

    profiles: list[spanprof.Profile] = []
    lib.churn_elsewhere(2)
    try:
        with spanprof.start(
            track_all=True,
            report_interval=0.01,
            heap_snapshot_interval=0,
            reporters=[Keep()],
        ) as session:
            for turn in range(60):
                with span("a"):
                    lib.churn(300, turn)
                    kept = [bytearray(n) for n in range(200)]
            lib.churn_stop()
            lib.churn_end()
            del kept
            gc.collect()
    finally:
        lib.churn_stop()
        lib.churn_end()
    values = by_path(session.result)["a",]
    assert values["alloc_space"] > 60 * 150 * 600
    assert 0 <= values["inuse_space"] < DUST
    total = sum(profiles[1:], profiles[0])
    assert by_path(total)["a",]["inuse_space"] == values["inuse_space"]
    assert by_path(total)["a",]["alloc_space"] == values["alloc_space"]
    for profile in profiles:
        assert all(values["inuse_space"] >= 0 for values in by_path(profile).values())


# --- 6: while a thread ends -----------------------------------------------------------


def test_hazard_6_blocks_freed_after_our_destructor(lib: ctypes.CDLL) -> None:
    """By a thread-local destructor of somebody else, in its last round.

    The thread's state may be another thread's by then, which is busy itself.
    """

    def end_late() -> None:
        with span("a"):
            lib.free_at_thread_exit(lib.make_blocks(3000, 1000))

    def work(number: int) -> None:
        for _ in range(15):
            in_thread(end_late)

    freed = lib.count_late_frees()
    with spanprof.start(track_heap=True):
        in_threads(3, work)
        wait_until(lambda: lib.count_late_frees() == freed + 45)
        values = values_of("a")
    assert values["alloc_space"] > 45 * 3_000_000
    assert 0 <= values["inuse_space"] < 45 * DUST
    assert values["inuse_objects"] < 45 * 5


def test_hazard_6_destructors_after_the_session(lib: ctypes.CDLL) -> None:
    """Another session runs, which has threads of its own with the same states."""
    leave = threading.Event()
    ready = threading.Semaphore(0)

    def work() -> None:
        with span("a"):
            lib.free_at_thread_exit(lib.make_blocks(100, 1000))
        ready.release()
        leave.wait(30)

    freed = lib.count_late_frees()
    threads = [threading.Thread(target=work) for _ in range(5)]
    with spanprof.start(track_heap=True) as session:
        for thread in threads:
            thread.start()
        for _ in threads:
            assert ready.acquire(timeout=30)
    with spanprof.start(track_heap=True):
        with span("a"):
            blocks = lib.make_blocks(100, 1000)
        leave.set()
        for thread in threads:
            thread.join()
        wait_until(lambda: lib.count_late_frees() == freed + 5)
        assert 100_000 <= in_use("a")[1] < 100_000 + DUST
        lib.free_blocks(blocks)
        assert in_use("a")[1] < DUST
    assert 500_000 <= series(session.result, "inuse_space")["a",] < 600_000


def test_hazard_6_threads_end_with_live_blocks_and_locals() -> None:
    kept: list[bytearray] = []
    local = threading.local()

    def work() -> None:
        with span("a"):
            kept.append(bytearray(10_000))
            local.block = bytearray(50_000)

    with spanprof.start(track_heap=True):
        for _ in range(100):
            in_thread(work)
        # Objects of a thread are freed by it, on its way out.
        wait_until(lambda: in_use("a")[1] < 1_100_000)
        assert in_use("a")[1] > 1_000_000
        kept.clear()
        assert 0 <= in_use("a")[1] < 20_000
        assert spanprof.stats().thread_states < 20


# --- 7: the interpreter ends ----------------------------------------------------------


@exact_with_the_gil
@pytest.mark.parametrize("stop", ["stopped", "running"])
@pytest.mark.parametrize("allocator", ["default", "malloc"])
def test_hazard_7_exit_with_live_blocks(
    stop: str,
    allocator: str,
    library: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of modules, of daemon threads that go on allocating, of C libraries."""
    code = """
import sys, threading, time
import spanprof
from spanprof import span

lib = load(sys.argv[1])
kept, local = [], threading.local()

def work(number):
    while True:
        with span("daemon"):
            if number:
                lib.churn(50, number)
            else:
                kept.append([bytearray(n) for n in range(100)])
                del kept[50:]

class Late:
    def __del__(self, span=span, bytearray=bytearray):
        with span("late"):
            self.block = bytearray(1000)

spanprof.start(track_heap=True)
with span("a"):
    module = [bytearray(n) for n in range(10_000)]
    module.append(module)
    local.block = bytearray(10_000)
    late = Late()
    lib.free_at_process_exit(lib.make_blocks(1000, 1000))
for number in range(3):
    threading.Thread(target=work, args=(number,), daemon=True).start()
lib.churn_elsewhere(1)
time.sleep(0.05)
if sys.argv[2] == "stopped":
    spanprof.stop()
print("done", flush=True)
"""
    monkeypatch.setenv("PYTHONMALLOC", allocator)
    for _ in range(2):
        done = run_python(LOAD + code, str(library), stop, cwd=tmp_path)
        assert (done.stdout, done.stderr) == ("done\n", "")


def test_hazard_7_subinterpreters(library: Path, tmp_path: Path) -> None:
    """They make and free, also what others made, and take their own with them."""
    code = """
import sys
try:
    import _testcapi
except ImportError:
    print("none")
    sys.exit()
import spanprof
from spanprof import span

lib = load(sys.argv[1])

def inuse(name):
    return sum(s.values["inuse_space"] for s in spanprof.snapshot().samples
               if s.stack[0].name == name)

with spanprof.start(track_heap=True) as session:
    for turn in range(3):
        with span("main"):
            blocks = lib.make_blocks(100, 1000)
        assert 100_000 <= inuse("main") < 101_000
        status = _testcapi.run_in_subinterp(f'''
import ctypes, spanprof
lib = ctypes.CDLL({sys.argv[1]!r})
lib.free_blocks(ctypes.c_void_p({blocks}))
with spanprof.span("sub"):
    kept = [bytearray(10_000) for _ in range(100)]
    kept.append(kept)
''')
        assert status == 0
        assert 0 <= inuse("main") < 3000, inuse("main")
        assert 0 <= inuse("sub") < 100_000, inuse("sub")
totals = session.result.totals
assert totals["alloc_space"] > 3 * 1_000_000
print("done")
"""
    done = run_python(LOAD + code, str(library), cwd=tmp_path)
    if done.stdout == "none\n":
        pytest.skip("this Python has no _testcapi")
    assert (done.stdout, done.stderr) == ("done\n", "")


# --- 8: fork --------------------------------------------------------------------------

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no os.fork")


@needs_fork
def test_hazard_8_a_child_frees_what_its_parent_made(
    library: Path, tmp_path: Path
) -> None:
    """It begins with nothing; the parent's values are as before."""
    code = """
import json, os, sys, threading, warnings
import spanprof
from spanprof import span

warnings.simplefilter("ignore")
lib = load(sys.argv[1])

def values():
    return {s.stack[0].name: dict(s.values) for s in spanprof.snapshot().samples}

stop = threading.Event()

def churn(number):
    while not stop.is_set():
        with span("churn"):
            lib.churn(100, number)

def child():
    # "outer" goes on, and so what is done here is its own.
    here = values().pop("outer")
    assert here["inuse_space"] < 5000, here
    assert set(values()) == {"outer"}
    lib.free_blocks(blocks)
    lib.free_blocks_elsewhere(others)
    inherited.clear()
    for v in values().values():
        assert 0 <= v["inuse_space"] < 5000 and 0 <= v["inuse_objects"] < 50, v
        assert v["inuse_peak_space"] < 100_000
    with span("child"):
        mine = lib.make_blocks(100, 1000)
        more = bytearray(20_000_000)
    now = values()["child"]
    assert 20_100_000 < now["inuse_space"] < 20_110_000, now
    if os.getppid() == parent:
        finish(os.fork())
    lib.free_blocks_elsewhere(mine)
    del more
    now = values()["child"]
    assert 0 <= now["inuse_space"] < 2000, now
    assert spanprof.snapshot().heap_peak < 20_200_000

def finish(pid):
    if pid == 0:
        assert values().get("child", {}).get("inuse_space", 0) == 0
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0

parent = os.getpid()
spanprof.start(track_heap=True)
with span("outer"):
    for turn in range(10):
        with span("a"):
            blocks = lib.make_blocks(1000, 1000)
            others = lib.make_blocks(10, 17 << 20)
            inherited = [bytearray(1000) for _ in range(1000)]
        threads = [threading.Thread(target=churn, args=(n,)) for n in range(2)]
        for thread in threads:
            thread.start()
        before = values()["a"]
        pid = os.fork()
        if pid == 0:
            try:
                child()
            except BaseException:
                import traceback
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        assert values()["a"] == before
        stop.set()
        for thread in threads:
            thread.join()
        stop.clear()
        lib.free_blocks(blocks)
        lib.free_blocks(others)
        inherited = None
        assert 0 <= values()["a"]["inuse_space"] < 20_000
print("done")
"""
    done = run_python(LOAD + code, str(library), cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("done\n", "")


# --- memory runs out ------------------------------------------------------------------

LIMITED = """
import json, resource, sys
import spanprof
from spanprof import span

def limit(room):
    "At most that much more address space, in bytes; None: as much as one likes."
    if room is not None:
        with open("/proc/self/status") as status:
            (line,) = [line for line in status if line.startswith("VmSize")]
        room += int(line.split()[1]) * 1024
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (hard if room is None else room, hard))

def values(profile):
    return {s.stack[0].name: dict(s.values) for s in profile.samples}
"""

needs_limit = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="limits are read from Linux's /proc"
)


@needs_limit
@pytest.mark.parametrize("room", [8 << 20, 48 << 20], ids=["no map", "no leaves"])
def test_hazard_13_without_room_for_the_map(room: int, tmp_path: Path) -> None:
    """Blocks are counted, not followed, and the program notices nothing."""
    code = """
block = bytearray(1000)
limit(int(sys.argv[1]))
with spanprof.start(track_heap=True) as session:
    with span("a"):
        kept = [bytes(1000) for _ in range(1000)]
        try:
            bytes(2**62)
        except MemoryError:
            pass
        else:
            raise AssertionError("no MemoryError")
    del kept[500:]
found = values(session.result)["a"]
# The numbers of the loop are objects as well.
assert 1000 <= found["alloc_objects"] < 2100, found
assert 1_000_000 < found["alloc_space"] < 1_200_000, found
assert found["inuse_objects"] == found["inuse_space"] == 0, found
untracked = spanprof.stats().heap_untracked
assert 1000 <= untracked < 2500
limit(None)
kept.clear()
with spanprof.start(track_heap=True) as session:
    with span("b"):
        kept = [bytes(1000) for _ in range(1000)]
    assert 1000 <= values(spanprof.snapshot())["b"]["inuse_objects"] < 1100
    del kept
    assert values(spanprof.snapshot())["b"]["inuse_objects"] < 10
assert spanprof.stats().heap_untracked == untracked
print("done")
"""
    done = run_python(LIMITED + code, str(room), cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("done\n", "")


@exact_with_the_gil
@needs_limit
def test_hazard_13_a_program_that_runs_out_of_memory(tmp_path: Path) -> None:
    """It gets its MemoryError, frees what it has and goes on."""
    code = """
import gc
spanprof.start(track_heap=True)
with span("warm up"):
    bytearray(1000)
limit(300 << 20)
for turn in range(3):
    with span("fill"):
        kept = []
        try:
            while True:
                kept.append(bytes(100_000))
        except MemoryError:
            reached = len(kept)
    now = values(spanprof.snapshot())["fill"]
    untracked = spanprof.stats().heap_untracked
    assert 1000 < reached < 3000, reached
    assert 0 <= now["inuse_objects"] <= reached + 20
    if not untracked:
        assert now["inuse_space"] >= reached * 100_000
    kept.clear()
    gc.collect()
    now = values(spanprof.snapshot())["fill"]
    assert 0 <= now["inuse_objects"] < 50, now
    assert 0 <= now["inuse_space"] < 50_000, now
    json.loads(json.dumps(list(range(1000))))
print("done")
"""
    done = run_python(LIMITED + code, cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("done\n", "")
