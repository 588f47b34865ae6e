"""Reporter.spans(): single spans, each once, as one array."""

from __future__ import annotations

import os
import random
import struct
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import spanprof
from spanprof import ClosedSpan, Reporter, span

from .helpers import ManualClock, by_path, in_thread, run_python, series

FIELDS = [
    "id",
    "parent",
    "start",
    "end",
    "wall_busy",
    "wall_idle",
    "cpu_user",
    "cpu_system",
    "alloc_objects",
    "alloc_space",
    "callsite",
    "labels",
    "thread",
    "generation",
]


class Keep(Reporter):
    """Keeps batches, and what they hold."""

    def __init__(self) -> None:
        self.batches: list[Any] = []
        self.calls: list[str] = []

    def init(self, config: spanprof.ProfileConfig) -> None:
        self.calls.append("init")

    def spans(self, batch: Any) -> None:
        self.calls.append("spans")
        self.batches.append(batch)

    def flush(self) -> None:
        self.calls.append("flush")

    @property
    def all(self) -> list[ClosedSpan]:
        return [each for batch in self.batches for each in batch]


def test_a_span_as_people_read_it(clock: ManualClock) -> None:
    keep = Keep()
    with spanprof.start(track_all=True, record_labels=["user"], reporters=[keep]):
        before = time.time_ns()
        with span("outer", user="a", other="b") as outer:
            clock(10, 4)
            with span("inner") as inner:
                clock(5, 5)
            clock(100)
        ids = outer.id, inner.id
    second, first = keep.all
    assert (first.name, first.callsite.target) == ("outer", __name__)
    assert os.path.samefile(first.callsite.file, __file__)
    assert first.labels == {"user": "a"}
    assert second.labels == {}
    assert (first.id, second.id) == ids
    assert (first.parent, second.parent) == (0, first.id)
    assert (first.wall_busy, first.wall_idle) == (110, 0)
    assert first.cpu_user + first.cpu_system == 4
    assert (second.wall_busy, second.end - second.start) == (5, 5)
    assert first.end - first.start == 115
    assert abs(first.start - before) < 60 * 10**9
    assert first.thread == threading.get_native_id()
    assert first.generation == second.generation > 0


def test_rule_3_2_an_opened_span_is_told_when_it_is_closed(clock: ManualClock) -> None:
    keep = Keep()
    with spanprof.start(track_all=True, reporters=[keep]) as session:
        job = span("job").open()
        clock(7)
        for _ in range(2):
            with job:
                clock(3, 1)
            clock(10)
        session.flush()
        assert keep.all == []
        job.close()
        session.flush()
        (told,) = keep.all
    assert (told.wall_busy, told.wall_idle, told.end - told.start) == (6, 27, 33)


def test_the_array_is_read_in_place() -> None:
    keep = Keep()
    with spanprof.start(track_all=True, reporters=[keep]):
        spanprof.flush()  # what start() asked for is over: one batch
        for n in range(10):
            with span("a"):
                bytearray(1000 * n)
    (batch,) = keep.batches
    view = memoryview(batch)
    assert (view.ndim, view.shape, view.itemsize) == (1, (10,), 96)
    assert view.readonly
    assert view.contiguous
    rows = list(struct.iter_unpack("=QQqqQQQQQQIIII", view.cast("B")))
    for row, each in zip(rows, batch, strict=True):
        told = dict(zip(FIELDS, row, strict=True))
        assert told["id"] == each.id
        assert told["alloc_space"] == each.alloc_space
        assert told["end"] == each.end
    with pytest.raises(TypeError):
        view.cast("B")[0] = 1
    with pytest.raises(IndexError):
        batch[10]
    with pytest.raises(TypeError):
        batch["id"]
    assert batch[-1] == batch[9]
    assert not hasattr(batch, "__dict__")
    with pytest.raises(TypeError):
        type(batch)()


def test_numpy_reads_it_in_place() -> None:
    np = pytest.importorskip("numpy")
    keep = Keep()
    with spanprof.start(track_all=True, reporters=[keep]) as session:
        spanprof.flush()
        for n in range(100):
            with span("a" if n % 2 else "b"):
                bytearray(1000)
    (batch,) = keep.batches
    array = np.asarray(batch)
    assert list(array.dtype.names) == FIELDS
    assert array.base is not None, "it is a view"
    assert not array.flags.writeable
    assert not array.flags.owndata
    del batch
    keep.batches.clear()
    assert len(set(array["id"])) == 100, "it stays as long as somebody looks"
    profile = series(session.result, "alloc_space")
    sums = {
        name: int(array["alloc_space"][array["callsite"] == number].sum())
        for name, number in (("a", array["callsite"][1]), ("b", array["callsite"][0]))
    }
    assert sums == {path[0]: value for path, value in profile.items()}
    assert (array["end"] >= array["start"]).all()


def test_rule_5_1_spans_add_up_to_the_profile() -> None:
    """Random nesting on several threads, all metrics: to the last unit."""
    keep = Keep()
    with spanprof.start(
        track_all=True, report_interval=0.02, reporters=[keep]
    ) as session:

        def work(seed: int) -> None:
            chance = random.Random(seed)

            def nest(depth: int) -> None:
                with span(chance.choice("abc")):
                    bytearray(chance.randrange(3000))
                    while depth < 6 and chance.random() < 0.6:
                        nest(depth + 1)

            for _ in range(300):
                nest(0)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    told = keep.all
    assert len({each.id for each in told}) == len(told)
    sums: Counter[str] = Counter()
    for each in told:
        sums["calls"] += 1
        sums["wall_busy"] += each.wall_busy
        sums["cpu"] += each.cpu_user + each.cpu_system
        sums["alloc_objects"] += each.alloc_objects
        sums["alloc_space"] += each.alloc_space
    totals = session.result.totals
    assert dict(sums) == {name: totals[name] for name in sums}
    known = {each.id: each for each in told}
    for each in told:
        if each.parent:
            parent = known[each.parent]
            assert parent.start <= each.start <= each.end <= parent.end
            assert parent.thread == each.thread


@pytest.mark.parametrize(
    ("tracked", "fields"),
    [
        ({}, set()),
        ({"track_wall": True}, {"wall_busy", "wall_idle"}),
        ({"track_cpu": True}, {"cpu_user"}),
        ({"track_heap": True}, {"alloc_objects", "alloc_space"}),
    ],
)
def test_rule_5_1_what_is_not_tracked_is_zero(
    tracked: dict[str, bool], fields: set[str], clock: ManualClock
) -> None:
    own = Keep()
    with spanprof.start(reporters=[own], **tracked):
        opened = span("opened").open()
        clock(1000, 300)
        with opened:
            clock(1000, 300)
            kept = [bytearray(1000) for _ in range(10)]
        opened.close()
    del kept
    (found,) = own.all
    values = {name: getattr(found, name) for name in found._fields[4:10]}
    assert {name for name, value in values.items() if value} == fields


def test_rule_6_1_init_comes_before_spans() -> None:
    for _ in range(30):
        keep = Keep()
        with spanprof.start(reporters=[keep], max_pending_spans=2):
            for _ in range(50):
                with span("a"):
                    pass
        assert keep.calls[0] == "init"
        assert keep.calls[-1] == "flush"


def test_rule_6_2_after_a_flush_nothing_is_held_back() -> None:
    keep = Keep()
    with spanprof.start(reporters=[keep]) as session:
        for count in range(1, 20):
            with span("a"):
                pass
            session.flush()
            assert len(keep.all) == count


def test_rule_6_4_nobody_asks_and_nothing_is_kept() -> None:
    class Other(Reporter):
        def profile(self, profile: spanprof.Profile) -> None: ...

    dropped = spanprof.stats().spans_dropped
    with spanprof.start(reporters=[Other()], max_pending_spans=1):
        for _ in range(10):
            with span("a"):
                pass
    assert spanprof.stats().spans_dropped == dropped


def test_rule_5_8_drops_are_counted_and_the_profile_is_whole() -> None:
    """A reporter that is stuck: so many wait, the rest is dropped, and nobody waits."""
    started, go_on = threading.Event(), threading.Event()

    class Stuck(Keep):
        def spans(self, batch: Any) -> None:
            super().spans(batch)
            started.set()
            go_on.wait(60)

    stuck = Stuck()
    dropped = spanprof.stats().spans_dropped
    with spanprof.start(reporters=[stuck], max_pending_spans=64) as session:
        while not started.is_set():
            with span("first"):
                pass

        def work() -> None:
            for _ in range(5000):
                with span("a"):
                    pass

        in_thread(work)
        go_on.set()
    lost = spanprof.stats().spans_dropped - dropped
    told = Counter(each.name for each in stuck.all)
    called = {
        path[0]: values["calls"] for path, values in by_path(session.result).items()
    }
    assert called["a"] == 5000
    assert told["a"] == 64
    assert lost == sum(called.values()) - sum(told.values())


def test_many_are_told_before_the_report() -> None:
    """Without a flush, and long before the report interval."""
    keep = Keep()
    dropped = spanprof.stats().spans_dropped
    with spanprof.start(reporters=[keep], report_interval=3600) as session:
        for _ in range(10_000):
            with span("a"):
                pass
        deadline = time.monotonic() + 30
        while not keep.batches and time.monotonic() < deadline:
            time.sleep(0.01)
        assert keep.batches
    assert spanprof.stats().spans_dropped == dropped
    assert sum(map(len, keep.batches)) == session.result.totals["calls"] == 10_000


def test_rule_6_3_several_reporters_see_everything() -> None:
    class Broken(Keep):
        def spans(self, batch: Any) -> None:
            super().spans(batch)
            raise RuntimeError("no")

    errors = spanprof.stats().reporter_errors
    keeps = [Keep(), Broken(), Keep()]
    with spanprof.start(reporters=keeps):
        for _ in range(10):
            with span("a"):
                pass
    assert [len(keep.all) for keep in keeps] == [10, 10, 10]
    assert spanprof.stats().reporter_errors == errors + 1


def test_rule_6_7_spans_of_reporters_are_not_told() -> None:
    class Own(Keep):
        def spans(self, batch: Any) -> None:
            super().spans(batch)
            with span("mine"):
                pass

    own = Own()
    with spanprof.start(reporters=[own]) as session:
        for _ in range(3):
            with span("a"):
                pass
            session.flush()
    assert [each.name for each in own.all] == ["a"] * 3


def test_rule_6_5_at_exit_all_are_told(tmp_path: Path) -> None:
    result = run_python(
        """
import spanprof
class Print(spanprof.Reporter):
    def spans(self, batch):
        print(*[each.name for each in batch])
spanprof.start(reporters=[Print()])
for name in "abc":
    with spanprof.span(name): pass
""",
        cwd=tmp_path,
    )
    assert result.stdout.split() == ["a", "b", "c"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_rule_6_6_a_child_tells_its_own_spans(tmp_path: Path) -> None:
    """What waits at the fork is the parent's; a span's id is in one of them alone."""
    result = run_python(
        """
import os, spanprof
class Print(spanprof.Reporter):
    def spans(self, batch):
        for each in batch:
            mine = each.thread == os.getpid()  # both are the main thread's
            os.write(1, f'{os.getpid() == parent} {mine} {each.name}\\n'.encode())
parent = os.getpid()
spanprof.start(reporters=[Print()])
with spanprof.span("before"): pass
pid = os.fork()
with spanprof.span("after"): pass
spanprof.stop()
if pid: os.waitpid(pid, 0)
""",
        cwd=tmp_path,
    )
    assert sorted(result.stdout.splitlines()) == [
        "False True after",
        "True True after",
        "True True before",
    ]


def test_rule_3_6_only_spans_of_the_session() -> None:
    keep = Keep()
    early = span("early")
    with early, spanprof.start(reporters=[keep]):
        late = span("late")
        late.__enter__()
        with span("a"):
            pass
    late.__exit__(None, None, None)
    assert [each.name for each in keep.all] == ["a"]


def test_bad_limits() -> None:
    for limit in (0, -1):
        with pytest.raises(ValueError, match="max_pending_spans"):
            spanprof.start(max_pending_spans=limit)


def test_a_thread_that_takes_over_from_an_ended_one_is_told_as_itself() -> None:
    """State in the core is used again by the next thread."""
    keep = Keep()
    numbers = []

    def work() -> None:
        numbers.append(threading.get_native_id())
        with span("x"):
            pass

    with spanprof.start(track_wall=True, reporters=[keep]):
        for _ in range(3):
            in_thread(work)
    assert [each.thread for each in keep.all] == numbers


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf(
        "SC_PAGE_SIZE"
    )


@pytest.mark.parametrize("ended", ["session", "thread"])
def test_rule_5_8_what_waited_leaves_no_memory_behind(ended: str) -> None:
    """Rings are given back at the end of a session, or when a thread has ended."""
    let_go = threading.Event()

    class Stuck(Reporter):
        def spans(self, batch: Any) -> None:
            let_go.wait(60)

    def work() -> None:
        for _ in range(150_000):
            with span("x"):
                pass

    with spanprof.start(
        track_wall=True,
        report_interval=0,
        max_pending_spans=200_000,
        reporters=[Stuck()],
    ):
        before = resident()
        if ended == "thread":
            in_thread(work)
        else:
            work()
        assert resident() - before > 10_000_000
        let_go.set()
        spanprof.flush()
        if ended == "thread":
            assert resident() - before < 5_000_000
    assert resident() - before < 5_000_000
