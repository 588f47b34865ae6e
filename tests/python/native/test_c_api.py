"""spanprof.h, from a real extension."""

from __future__ import annotations

import asyncio
import queue
import threading
from pathlib import Path
from typing import Any

import pytest

import spanprof
from spanprof import span

from ..helpers import by_path, calls
from .build import build, load


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The extension, which has found spanprof."""
    module = load(build(tmp_path_factory.mktemp("native")))
    assert not module.is_running()
    module.import_spanprof()
    return module


def test_native_spans_and_pythons_share_one_stack(native: Any) -> None:
    def python() -> None:
        with span("python"):
            native.call(lambda: None)

    with spanprof.start() as session, span("main"):
        native.call(python)
    both = ("main", "outer", "inner")
    assert calls(session.result) == {
        both[:1]: 1,
        both[:2]: 1,
        both: 1,
        (*both, "python"): 1,
        (*both, "python", "outer"): 1,
        (*both, "python", "outer", "inner"): 1,
    }


def test_a_callsite_is_where_the_span_is_in_the_source(native: Any) -> None:
    with spanprof.start() as session:
        native.call(lambda: None)
    callsite = session.result.samples[0].stack[0]
    assert callsite.target.endswith("extension.c")
    assert callsite.file.endswith("extension.c")
    lines = Path(callsite.file).read_text().splitlines()
    assert 'SPANPROF_SPAN("outer")' in lines[callsite.line - 1]


def test_rule_2_1_without_a_session_nothing_is_recorded(native: Any) -> None:
    assert not native.is_running()
    assert native.call(lambda: 7) == 7
    assert native.begin() == 0
    assert native.current() == 0
    native.end(0)
    with spanprof.start() as session:
        assert native.is_running()
    assert session.result.totals["calls"] == 0


def test_an_exception_passes_through(native: Any) -> None:
    def fail() -> None:
        raise KeyError("x")

    before = spanprof.stats()["misnested"]
    with spanprof.start() as session, pytest.raises(KeyError):
        native.call(fail)
    assert session.result.totals["calls"] == 2
    assert spanprof.stats()["misnested"] == before


@pytest.mark.parametrize("under", [False, True])
def test_threads_without_python(native: Any, under: bool) -> None:
    with spanprof.start() as session, span("main"):
        native.threads(3, under)
    above = ("main", "threads") if under else ()
    found = calls(session.result)
    assert found[(*above, "worker")] == 3
    assert found[(*above, "worker", "step")] == 3
    assert session.result.totals["calls"] == 8


def test_labels_are_recorded_if_the_session_does(native: Any) -> None:
    with spanprof.start(record_labels=["user"]) as session:
        native.labelled("user", "é")
        native.labelled("user", "b")
        native.labelled("nobody asked", "c")
    labels = [sample.labels for sample in session.result.samples]
    assert sorted(label.get("user", "") for label in labels) == ["", "b", "é"]
    assert all("other" not in label for label in labels)


def test_the_current_span_is_the_one_of_python_or_native(native: Any) -> None:
    with spanprof.start(), span("a") as a:
        assert native.current() == a.id
        assert native.call(native.current) not in (0, a.id)
        # Python has no object for a native span: its current span is its own.
        assert native.call(spanprof.current_span) is a


def test_rule_4_3_the_parent_is_the_tasks(native: Any) -> None:
    """Also where another task's span was the last that the thread entered."""

    async def task(name: str) -> None:
        with span(name):
            for _ in range(3):
                await asyncio.sleep(0)
                native.call(lambda: None)

    async def main() -> None:
        with span("main"):
            await asyncio.gather(task("a"), task("b"))

    with spanprof.start() as session:
        asyncio.run(main())
    found = calls(session.result)
    for name in "ab":
        assert found[("main", name, "outer")] == 3
        assert found[("main", name, "outer", "inner")] == 3
    assert session.result.totals["calls"] == 1 + 2 + 12


def test_rule_4_2_a_greenlet_switches_away_inside_native_code(native: Any) -> None:
    """Its C stack is copied away, and another one's is there meanwhile."""
    greenlet = pytest.importorskip("greenlet")

    def worker(name: str) -> None:
        def inside() -> None:
            with span("inside"):
                main.switch()
                native.call(main.switch)

        with span(name):
            native.call(inside)

    main = greenlet.getcurrent()
    with spanprof.start() as session, span("main"):
        first, second = greenlet.greenlet(worker), greenlet.greenlet(worker)
        first.switch("a")
        second.switch("b")
        for _ in range(2):
            first.switch()
            second.switch()
        assert spanprof.current_span().name == "main"  # type: ignore[union-attr]
    found = calls(session.result)
    for name in "ab":
        path = (name, "outer", "inner", "inside", "outer", "inner")
        assert all(found[path[:n]] == 1 for n in range(1, 7))
    assert session.result.totals["calls"] == 13


def test_rule_5_2_threads_begin_and_end_each_others_pairs(native: Any) -> None:
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()

    def work() -> None:
        for n in range(500):
            waiting.put(native.begin())
            with span("python"):
                native.call(lambda: None)
            native.end(waiting.get())
            if n % 100 == 0:
                native.threads(1, n % 200 == 0)

    with spanprof.start(track_all=True) as session:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    names: dict[str, int] = {}
    for path, count in calls(session.result).items():
        names[path[-1]] = names.get(path[-1], 0) + count
    assert names == {
        "pair": 2000,
        "python": 2000,
        "outer": 2000,
        "inner": 2000,
        "threads": 20,
        "worker": 20,
        "step": 20,
    }


def test_a_pair_is_ended_out_of_order_or_elsewhere(native: Any) -> None:
    before = spanprof.stats()["misnested"]
    with spanprof.start() as session:
        first, second = native.begin(), native.begin()
        native.end(first)
        native.end(second)
        third = native.begin()
        thread = threading.Thread(target=native.end, args=(third,))
        thread.start()
        thread.join()
        with span("after"):
            pass
    assert session.result.totals["calls"] == 4
    assert spanprof.stats()["misnested"] == before + 2
    assert ("after",) in calls(session.result)


def test_a_pair_outlives_its_session(native: Any) -> None:
    with spanprof.start():
        old = native.begin()
    with spanprof.start() as session:
        new = native.begin()
        native.end(old)
        native.end(new)
    assert calls(session.result) == {("pair",): 1}
    with spanprof.start():
        old = native.begin()
    native.end(old)


def test_a_span_that_is_jumped_out_of_harms_nobody(native: Any) -> None:
    with spanprof.start() as session:
        for _ in range(3):
            with span("around"):
                native.jump()
        with span("after"):
            pass
    found = {row.callsite.name: row.calls for row in session.result.top()}
    assert found == {"around": 3, "jumped out of": 3, "after": 1}


def test_a_thread_that_is_lent(native: Any) -> None:
    with spanprof.start() as session:
        assert native.attach() == 1
    assert calls(session.result) == {("lent",): 1, ("lent again",): 1}
    assert native.attach() == 0


def test_blocks_of_an_allocator_of_its_own(native: Any) -> None:
    device, size = 0x7F00_1234_0000, 1 << 20
    with spanprof.start(track_heap=True) as session:
        native.track(device, size)
        native.track(device + size, size)
        native.untrack(device)
        native.untrack(device + 5 * size)  # nobody's
        between = by_path(session.snapshot())[("arena",)]
        native.untrack(device + size)
        after = by_path(session.snapshot())[("arena",)]
    # The arguments' numbers are Python's, and are gone.
    assert between["alloc_space"] >= 2 * size > between["alloc_space"] - 1000
    assert (between["inuse_objects"], between["inuse_space"]) == (1, size)
    assert (after["inuse_objects"], after["inuse_space"]) == (0, 0)


def test_rule_3_7_spans_that_are_sampled_out(native: Any) -> None:
    with spanprof.start(sampler=spanprof.ProbabilisticSampler(0.0)) as session:
        native.call(lambda: native.call(lambda: None))
        with span("python"):
            native.threads(2, True)
    assert session.result.totals["calls"] == 0


def test_disabled_it_is_empty(tmp_path: Path) -> None:
    module = load(build(tmp_path, "-DSPANPROF_DISABLE"))
    module.import_spanprof()
    with spanprof.start() as session:
        module.call(lambda: None)
        module.threads(1, True)
        module.labelled("a", "b")
        module.end(module.begin())
        module.attach()
        module.track(64, 64)
        assert not module.is_running()
    assert session.result.totals["calls"] == 0
    assert b"spanprof" not in Path(str(module.__file__)).read_bytes().lower().replace(
        b"import_spanprof", b""
    )


def test_without_the_import_nothing_happens(tmp_path: Path) -> None:
    module = load(build(tmp_path))
    with spanprof.start() as session:
        assert module.call(lambda: 1) == 1
        module.track(64, 64)
    assert session.result.totals["calls"] == 0
