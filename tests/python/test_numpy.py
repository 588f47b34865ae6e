"""Memory of numpy's arrays: counted once, and owned by the span that made them."""

from __future__ import annotations

import contextvars
import ctypes
import gc
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import spanprof
from spanprof import span
from spanprof.integrations import numpy as integration

from .helpers import exact_with_the_gil, in_thread

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


@exact_with_the_gil
def test_rule_5_6_on_every_thread_that_opens_spans() -> None:
    def work(number: int) -> Any:
        with span("work"):
            return np.zeros(1_000_000 + number, np.uint8)

    with spanprof.start(track_heap=True), ThreadPoolExecutor(3) as pool:
        arrays = list(pool.map(work, range(20)))
        assert 20_000_000 <= inuse("work") < 20_000_000 + 20 * ROOM
        in_thread(arrays.clear)  # a thread without spans
        assert inuse("work") < 20 * ROOM


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
        child = os.fork()
        if child == 0:
            status = 1
            try:
                assert inuse("a") == 0
                with span("a"):
                    mine = np.ones(3_000_000, np.uint8)
                del parents
                assert 3_000_000 <= inuse("a") < 3_000_000 + ROOM
                del mine
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
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


def test_a_session_that_tracks_no_memory_leaves_numpy_alone() -> None:
    program = (
        "import numpy, spanprof, sys\n"
        "with spanprof.start(track_wall=True), spanprof.span('a'): pass\n"
        "assert 'spanprof.integrations.numpy' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_another_context_is_reached_by_its_threads_next_span() -> None:
    """A fresh context begins with numpy's own handler. What that takes from the C
    library is not seen there, which does no harm."""
    with spanprof.start(track_heap=True):

        def work() -> Any:
            with span("a"):
                return np.ones(1_000_000, np.uint8)

        array = contextvars.Context().run(work)
        assert inuse("a") < 1_000_000 + ROOM
        del array
        assert 0 <= inuse("a") < ROOM


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
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.free.argtypes = [ctypes.c_void_p]
    with spanprof.start(track_heap=True):
        with span("a"):
            block = libc.malloc(50_000_000)
        assert block
        assert inuse("a") < 10_000
        libc.free(block)
