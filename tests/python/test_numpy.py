"""Memory of numpy's arrays: counted once, and owned by the span that made them."""

from __future__ import annotations

import asyncio
import contextvars
import ctypes
import gc
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import spanprof
from spanprof import _core, span
from spanprof.integrations import numpy as integration

from .helpers import in_child, in_thread, in_threads
from .test_session import run_subinterpreters

np: Any = pytest.importorskip("numpy")

ROOM = 2000
"""Bytes for the array objects themselves."""


def inuse(name: str) -> int:
    return sum(
        sample.values["inuse_space"]
        for sample in spanprof.snapshot().samples
        if sample.stack[0].name == name
    )


MAKERS = {
    "empty": lambda n: np.empty(n, np.uint8),
    "zeros": lambda n: np.zeros(n, np.uint8),
    "ones": lambda n: np.ones(n, np.uint8),
    "arange": lambda n: np.arange(n, dtype=np.uint8),
    "copy": lambda n: SOURCE[:n].copy(),
}
SOURCE = np.ones(40_000_000, np.uint8)


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("size", [100, 5000, 1_000_000, 40_000_000])
def test_rule_5_6_an_array_is_its_spans_until_it_is_freed(
    maker: str, size: int
) -> None:
    with spanprof.start(track_heap=True):
        with span("a"):
            array = MAKERS[maker](size)
        assert size <= inuse("a") < size + ROOM, "once"
        view = array[10:20]
        del array
        assert inuse("a") >= size, "a view holds it"
        with span("b"):
            del view
        assert inuse("a") < ROOM
        assert inuse("b") == 0


@pytest.mark.parametrize("maker", MAKERS)
def test_rule_5_6_to_the_byte(maker: str) -> None:
    sizes = [5000, 5001, 70_000, 1_000_000, 16_777_213, 16_777_216, 40_000_000]
    objects = set()
    with spanprof.start(track_heap=True):
        for size in [5000, *sizes]:
            with span("a"):
                array = MAKERS[maker](size)
            objects.add(inuse("a") - size)
            del array
    objects.discard(min(objects))  # its shape may come from numpy's own cache
    assert len(objects) <= 1
    assert max(objects, default=0) < 250


def test_rule_5_6_resize_is_a_realloc() -> None:
    with spanprof.start(track_heap=True):
        with span("a"):
            array = np.zeros(1000, np.uint8)
        with span("b"):
            array.resize(3_000_000, refcheck=False)
        assert inuse("a") < ROOM
        assert 3_000_000 <= inuse("b") < 3_000_000 + ROOM
        array.resize(10, refcheck=False)
        assert inuse("b") < ROOM, "outside all spans: nobody's"
        del array


def test_rule_5_6_on_every_thread_that_opens_spans() -> None:
    def work(number: int) -> Any:
        with span("work"):
            return np.zeros(1_000_000 + number, np.uint8)

    with spanprof.start(track_heap=True), ThreadPoolExecutor(3) as pool:
        arrays = list(pool.map(work, range(20)))
        assert 20_000_000 <= inuse("work") < 20_000_000 + 20 * ROOM
        in_thread(arrays.clear)  # a thread without spans
        gc.collect()  # without the GIL, objects wait for the thread that made them
        assert inuse("work") < 20 * ROOM


def test_rule_5_6_threads_free_each_others() -> None:
    def work(number: int) -> None:
        with span("work"):
            for i in range(2000):
                size = 1 << (i + number) % 18
                arrays[(i * 7 + number) % len(arrays)] = np.zeros(size, np.uint8)

    arrays: list[Any] = [None] * 50
    with spanprof.start(track_heap=True) as session:
        in_threads(4, work)
        arrays.clear()
        gc.collect()
        assert 0 <= inuse("work") < 10 * ROOM
    (sample,) = session.result.samples
    made = sum(1 << (i + number) % 18 for i in range(2000) for number in range(4))
    assert made <= sample.values["alloc_space"] < made + 8000 * 400


def test_rule_5_5_arrays_from_before_and_after() -> None:
    before = np.ones(1_000_000, np.uint8)
    session = spanprof.start(track_heap=True)
    with span("a"):
        del before
        kept = np.ones(2_000_000, np.uint8)
    assert 2_000_000 <= inuse("a") < 2_000_000 + ROOM
    session.stop()
    with spanprof.start(track_heap=True):
        with span("a"):
            del kept
        assert inuse("a") == 0


def test_many_sessions() -> None:
    kept = []
    for number in range(100):
        with spanprof.start(track_heap=True), span("a"):
            kept.append(np.ones(10_000, np.uint8))
            assert 10_000 <= inuse("a") < 10_000 + ROOM, number
            if number % 3 == 0:
                kept.clear()


def test_allocations_alone_are_counted_once() -> None:
    with spanprof.start(track_allocations=True) as session, span("a"):
        for _ in range(10):
            np.empty(1_000_000, np.uint8)
    (sample,) = session.result.samples
    assert 10_000_000 <= sample.values["alloc_space"] < 10_000_000 + 10 * ROOM


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_rule_6_6_a_child_counts_its_own() -> None:
    with spanprof.start(track_heap=True):
        with span("a"):
            parents = np.ones(1_000_000, np.uint8)

        def work() -> None:
            nonlocal parents
            assert inuse("a") == 0
            with span("a"):
                mine = np.ones(3_000_000, np.uint8)
            del parents
            assert 3_000_000 <= inuse("a") < 3_000_000 + ROOM
            del mine

        in_child(work)
        assert inuse("a") >= 1_000_000


LATER = """
import sys, threading
import spanprof
from spanprof import span

def inuse(name):
    return sum(sample.values["inuse_space"] for sample in spanprof.snapshot().samples
               if sample.stack[0].name == name)

def work():
    with span("thread"):
        waiting.set()
        ready.wait()
    with span("next"):
        kept.append(np.zeros(5_000_000, np.uint8))

kept = []
waiting, ready = threading.Event(), threading.Event()
with spanprof.start(track_heap=True):
    with span("before"):
        assert "numpy" not in sys.modules, "it is not us who import it"
    thread = threading.Thread(target=work)
    thread.start()
    waiting.wait()
    with span("import"):
        import numpy as np
    with span("after"):
        kept.append(np.zeros(3_000_000, np.uint8))
    ready.set()
    thread.join()
    assert 3_000_000 <= inuse("after") < 3_010_000, inuse("after")
    assert 5_000_000 <= inuse("next") < 5_010_000, inuse("next")
    kept.clear()
    assert inuse("after") < 10_000 and inuse("next") < 10_000
"""


def test_numpy_may_be_imported_later() -> None:
    """With the handler, wherever the data comes from in this version of numpy."""
    subprocess.run([sys.executable, "-c", LATER], check=True)


LATER_IN_A_LOOP = """
import sys, threading
import spanprof
from spanprof import span

def inuse(name):
    return sum(sample.values["inuse_space"] for sample in spanprof.snapshot().samples
               if sample.stack[0].name == name)

def load():
    import numpy

kept = []
with spanprof.start(track_heap=True):
    for number in range(5):
        with span("a"):
            if number == 2:
                if "thread" in sys.argv:
                    thread = threading.Thread(target=load)
                    thread.start()
                    thread.join()
                else:
                    load()
                imported = inuse("a") if "snapshot" in sys.argv else 0
            if number >= 2:
                kept.append(sys.modules["numpy"].zeros(50_000_000, "u1"))
    assert 0 <= inuse("a") - 150_000_000 < 30_000_000, inuse("a")
    assert spanprof.stats().numpy_handlers == 1
"""


@pytest.mark.parametrize("by", ["main", "thread"])
@pytest.mark.parametrize("then", ["nothing", "snapshot"])
def test_numpy_may_be_imported_where_no_new_span_opens(by: str, then: str) -> None:
    if then == "nothing" and sys.version_info < (3, 12):
        pytest.skip("nobody tells us: noticed at the next report or snapshot")
    subprocess.run([sys.executable, "-c", LATER_IN_A_LOOP, by, then], check=True)


def test_a_session_that_tracks_no_memory_leaves_numpy_alone() -> None:
    program = (
        "import numpy, spanprof, sys\n"
        "with spanprof.start(track_wall=True), spanprof.span('a'): pass\n"
        "assert 'spanprof.integrations.numpy' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_every_context_is_seen() -> None:
    """Also one that begins with nothing, and tasks that are older than the session."""

    def make() -> Any:
        with span("a"):
            return np.ones(1_000_000, np.uint8)

    async def task(go: asyncio.Event) -> Any:
        await go.wait()
        return make()

    async def main() -> None:
        go = asyncio.Event()
        tasks = [asyncio.create_task(task(go)) for _ in range(5)]
        await asyncio.sleep(0)
        with spanprof.start(track_heap=True):
            arrays = [contextvars.Context().run(make) for _ in range(5)]
            go.set()
            arrays += await asyncio.gather(*tasks)
            assert 10_000_000 <= inuse("a") < 10_000_000 + 10 * ROOM
            arrays.clear()
            tasks.clear()
            await asyncio.sleep(0)  # the loop lets go of what gather returned
            gc.collect()
            assert inuse("a") < 10 * ROOM

    asyncio.run(main())


def test_the_default_handler_keeps_its_name() -> None:
    names = np._core.multiarray
    with spanprof.start(track_heap=True), span("a"):
        array = np.ones(1000, np.uint8)
        assert names.get_handler_name() == "default_allocator"
        assert names.get_handler_name(array) == "default_allocator"
        assert contextvars.Context().run(names.get_handler_name) == "default_allocator"
    assert not [v for v in contextvars.copy_context() if v.name == "current_allocator"]


# --- handlers of the program ----------------------------------------------------------

libc = ctypes.CDLL(None)
libc.malloc.restype = libc.calloc.restype = libc.realloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.calloc.argtypes = [ctypes.c_size_t, ctypes.c_size_t]
libc.realloc.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

PADDING = 64


class Handler:
    """A handler as a program may have one. It hands out addresses inside blocks."""

    MALLOC = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
    CALLOC = ctypes.CFUNCTYPE(
        ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t
    )
    REALLOC = ctypes.CFUNCTYPE(
        ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t
    )
    FREE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)

    class Structure(ctypes.Structure):
        pass

    # It cannot see the types above from within.
    Structure._fields_ = [  # noqa: RUF012
        ("name", ctypes.c_char * 127),
        ("version", ctypes.c_uint8),
        ("context", ctypes.c_void_p),
        ("malloc", MALLOC),
        ("calloc", CALLOC),
        ("realloc", REALLOC),
        ("free", FREE),
    ]
    alive: list[Any] = []  # noqa: RUF012

    def __init__(self, name: bytes) -> None:
        self.live = 0
        self.structure = self.Structure(
            name,
            1,
            1234,
            self.MALLOC(self.malloc),
            self.CALLOC(self.calloc),
            self.REALLOC(self.realloc),
            self.FREE(self.free),
        )
        api = ctypes.pythonapi
        api.PyCapsule_New.restype = ctypes.py_object
        api.PyCapsule_New.argtypes = [ctypes.c_void_p] * 3
        capsule_name = ctypes.create_string_buffer(b"mem_handler")
        self.capsule = api.PyCapsule_New(
            ctypes.addressof(self.structure), ctypes.addressof(capsule_name), None
        )
        # Capsules, and arrays, hold the addresses of both.
        self.alive.append((self.structure, capsule_name))

    def malloc(self, context: int, size: int) -> int:
        assert context == 1234
        self.live += 1
        return libc.malloc(size + PADDING) + PADDING

    def calloc(self, context: int, count: int, size: int) -> int:
        assert context == 1234
        self.live += 1
        return libc.calloc(1, count * size + PADDING) + PADDING

    def realloc(self, context: int, block: int, size: int) -> int:
        assert context == 1234
        return libc.realloc(block - PADDING, size + PADDING) + PADDING

    def free(self, context: int, block: int, size: int) -> None:
        assert context == 1234
        self.live -= 1
        libc.free(block - PADDING)

    def set(self) -> None:
        pointer = ctypes.pythonapi.PyCapsule_GetPointer
        pointer.restype = ctypes.c_void_p
        pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
        table = pointer(np._core._multiarray_umath._ARRAY_API, None)
        set_handler = ctypes.cast(table, ctypes.POINTER(ctypes.c_void_p))[304]
        prototype = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object)
        prototype(set_handler)(self.capsule)


def in_new_context(function: Callable[[], None]) -> None:
    """On a new thread, which has a context of its own."""
    in_thread(contextvars.Context().run, function)


def test_a_handler_of_the_program_is_wrapped() -> None:
    handler = Handler(b"theirs")
    kept = []

    def work() -> None:
        handler.set()
        with span("a"):
            kept.append(np.ones(1_000_000, np.uint8))
            kept.append(np.zeros(2_000_000, np.uint8))
        assert np._core.multiarray.get_handler_name(kept[0]) == "theirs"
        assert 3_000_000 <= inuse("a") < 3_000_000 + ROOM, "once"
        kept[0].resize(5_000_000, refcheck=False)
        assert 2_000_000 <= inuse("a") < 2_000_000 + ROOM
        with span("b"):
            kept[0].resize(4_000_000, refcheck=False)
        assert 4_000_000 <= inuse("b") < 4_000_000 + ROOM

    before = spanprof.stats().numpy_handlers
    with spanprof.start(track_heap=True):
        in_new_context(work)
        assert spanprof.stats().numpy_handlers == before + 1
        assert handler.live == 2
        kept.pop(0)
        gc.collect()
        assert inuse("b") < ROOM
        assert handler.live == 1
    kept.clear()
    gc.collect()
    assert handler.live == 0


def test_a_handler_that_the_program_sets_later_is_its_own() -> None:
    handler = Handler(b"later")
    kept = []

    def work() -> None:
        with spanprof.start(track_heap=True):
            with span("a"):
                pass
            handler.set()
            with span("a"):
                kept.append(np.ones(1_000_000, np.uint8))
            assert inuse("a") < ROOM
            kept.clear()
            assert 0 <= inuse("a") < ROOM
        with spanprof.start(track_heap=True):
            with span("a"):
                kept.append(np.ones(1_000_000, np.uint8))
            assert 1_000_000 <= inuse("a") < 1_000_000 + ROOM, "the next session"

    in_new_context(work)
    kept.clear()
    gc.collect()
    assert handler.live == 0


def test_handlers_are_wrapped_up_to_a_limit() -> None:
    """Some programs make one for each use of it."""

    def work() -> None:
        Handler(b"another").set()
        with span("a"):
            np.ones(1000, np.uint8)

    def many() -> None:
        with spanprof.start(track_heap=True):
            for _ in range(300):
                in_new_context(work)
            assert inuse("a") < ROOM
        assert spanprof.stats().numpy_handlers == 257

    in_child(many)  # it leaves no room for others


def test_subinterpreters_are_left_alone(tmp_path: Path) -> None:
    """numpy's objects are the main interpreter's: others would free them."""
    code = """
import numpy
with spanprof.start(track_heap=True):
    with span("a"):
        pass
    run('''
import _thread, contextvars, sys, time
from spanprof import span
def work():
    with span("b"):
        seen.append([v.name for v in contextvars.copy_context()])
seen = []
_thread.start_new_thread(work, ())
while not seen:
    time.sleep(0.01)
time.sleep(0.1)
assert seen == [["spanprof_span"]], seen
assert not [name for name in sys.modules if "integrations" in name]
''')
print("done")
"""
    run_subinterpreters(code, tmp_path)


def test_what_is_not_numpys_is_refused() -> None:
    with pytest.raises(ValueError, match="Capsule"):
        _core.numpy_enable(None)


def test_enabling_twice_is_the_same() -> None:
    with spanprof.start(track_heap=True):
        assert integration.enable()
        assert integration.enable()
        with span("a"):
            array = np.zeros(1_000_000, np.uint8)
        assert 1_000_000 <= inuse("a") < 1_000_000 + ROOM
        del array
        gc.collect()
        assert inuse("a") < ROOM


def test_what_a_c_library_takes_is_not_seen() -> None:
    with spanprof.start(track_heap=True):
        with span("a"):
            block = libc.malloc(50_000_000)
        assert block
        assert inuse("a") < 10_000
        libc.free(block)
