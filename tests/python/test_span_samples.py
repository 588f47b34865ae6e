"""Profiles with a sample for each span: PProfReporter(aggregate_samples=False)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import spanprof
from spanprof import FileBackend, PProfReporter, Profile, Reporter, _core, span

from . import pprof_file
from .helpers import ManualClock, by_path, in_threads


class Keep:
    """A backend that keeps what it is given, read."""

    def __init__(self) -> None:
        self.files: dict[str, list[pprof_file.File]] = {}

    def save_profile(self, kind: str, start: int, end: int, data: bytes) -> None:
        assert start <= end
        self.files.setdefault(kind, []).append(pprof_file.read(data))

    def samples(self, kind: str) -> list[pprof_file.FileSample]:
        return [each for file in self.files.get(kind, []) for each in file.samples]


def names(sample: pprof_file.FileSample) -> tuple[str, ...]:
    return tuple(name.rsplit("::")[-1] for name, _, _ in reversed(sample.stack))


def test_rule_7_2_each_span_is_a_sample(clock: ManualClock) -> None:
    keep = Keep()
    reporter = PProfReporter(keep, aggregate_samples=False)
    ids = []
    with spanprof.start(track_all=True, record_labels=["n"], reporters=[reporter]):
        spanprof.flush()
        with span("outer", n="x") as outer:
            for nanos in (10, 20, 20):
                with span("inner") as inner:
                    clock(nanos, 1)
                    ids.append(inner.id)
            ids.append(outer.id)
    samples = keep.samples("wall")
    assert [(names(s), s.values) for s in samples] == [
        (("outer", "inner"), (nanos, nanos, 0)) for nanos in (10, 20, 20)
    ]
    assert [sample.numbers for sample in samples] == [
        (("span_id", id),) for id in ids[:3]
    ]
    assert samples[0].labels == (("n", "x"),)
    calls = keep.samples("calls")
    assert sorted(id for each in calls for _, id in each.numbers) == sorted(ids)
    assert all(each.values == (1,) for each in calls)


def test_rule_7_2_the_totals_are_those_of_the_profile() -> None:
    keep = Keep()
    reporter = PProfReporter(keep, False)

    def work(number: int) -> None:
        for n in range(200):
            with span("a"), span(f"b{n % 3}"):
                bytearray(1000)
                with span("c"):
                    pass

    with spanprof.start(
        track_wall=True,
        track_cpu=True,
        track_allocations=True,
        report_interval=0.005,
        reporters=[reporter],
    ) as session:
        in_threads(3, work)
    assert len(keep.samples("calls")) == 3 * 600
    assert len({each.numbers for each in keep.samples("calls")}) == 3 * 600
    for kind, metric, column in (
        ("calls", "calls", 0),
        ("wall", "wall_busy", 1),
        ("cpu", "cpu", 0),
        ("alloc", "alloc_space", 1),
    ):
        told = Counter[tuple[str, ...]]()
        for each in keep.samples(kind):
            told[names(each)] += each.values[column]
        expected = {
            path: values[metric] for path, values in by_path(session.result).items()
        }
        assert +told == +Counter(expected), kind


def test_rule_7_2_a_long_span_is_in_each_report(clock: ManualClock) -> None:
    keep = Keep()
    reporter = PProfReporter(keep, aggregate_samples=False)
    with spanprof.start(track_wall=True, reporters=[reporter]):
        spanprof.flush()
        with span("long"):
            for nanos in (5, 7, 9):
                clock(nanos)
                spanprof.flush()
            spanprof.flush()  # nothing new
    assert [s.values[1] for s in keep.samples("wall")] == [5, 7, 9]
    assert [s.values for s in keep.samples("calls")] == [(1,)]


def test_rule_7_2_what_a_span_has_in_use(clock: ManualClock) -> None:
    keep = Keep()
    reporter = PProfReporter(keep, aggregate_samples=False, kinds=["heap"])
    with spanprof.start(track_all=True, heap_snapshot_interval=0, reporters=[reporter]):
        with span("outer"):
            with span("keeps"):
                kept = bytearray(100_000)
            with span("frees"):
                bytearray(50_000)
        spanprof.flush()
        (sample,) = (s for s in keep.samples("heap") if s.values[1] >= 100_000)
        assert names(sample) == ("outer", "keeps"), "its parent is over, and known"
        del kept
        keep.files.clear()
        spanprof.flush()
        assert not [s for s in keep.samples("heap") if s.values[1] >= 100_000]


def test_rule_7_2_max_samples_is_of_each_profile() -> None:
    keep = Keep()
    reporter = PProfReporter(keep, False, kinds=["calls"])
    with spanprof.start(max_samples=7, reporters=[reporter]):
        spanprof.flush()
        for _ in range(20):
            with span("a"), span("b"):
                pass
    sizes = [len(file.samples) for file in keep.files["calls"]]
    assert sum(sizes) == 40
    assert max(sizes) <= 7
    assert {names(s) for s in keep.samples("calls")} == {("a",), ("a", "b")}


def test_nothing_is_kept_of_spans_that_are_over() -> None:
    reporter = PProfReporter(Keep(), False)
    with spanprof.start(track_all=True, reporters=[reporter]):
        for _ in range(100):
            with span("a"):
                pass
        spanprof.flush()
        assert reporter._spans is not None
        assert not reporter._spans._spans
    with spanprof.start(track_all=True, reporters=[reporter]), span("b"):
        spanprof.flush()


def test_rule_6_4_aggregated_samples_need_no_single_spans() -> None:
    class Backend:
        def save_profile(self, kind: str, start: int, end: int, data: bytes) -> None:
            pass

    with spanprof.start(track_wall=True, reporters=[PProfReporter(Backend())]):
        with span("a"):
            pass
        spanprof.flush()
        assert "span_created" not in vars(PProfReporter)
    assert isinstance(PProfReporter(Backend(), False), Reporter)


def test_rule_3_8_bad_arguments_are_refused() -> None:
    for bad in (None, 1, "no"):
        with pytest.raises(TypeError, match="aggregate_samples"):
            PProfReporter(Keep(), bad)  # type: ignore[arg-type]


def test_a_file_is_read_again(tmp_path: Path) -> None:
    reporter = PProfReporter(FileBackend(tmp_path), False, kinds=["calls"])
    with spanprof.start(reporters=[reporter]):
        spanprof.flush()
        for _ in range(5):
            with span("a"):
                pass
    (path,) = tmp_path.iterdir()
    (sample,) = Profile.read(path).samples
    assert sample.values["calls"] == 5


@pytest.mark.parametrize(
    ("row", "error"),
    [
        ((1, 0, 0, (), (0,) * 10), ValueError),  # a parent that does not come before
        ((1, -2, 0, (), (0,) * 10), ValueError),
        ((1, -1, 1 << 30, (), (0,) * 10), ValueError),
        ((1, -1, 0, (), (0,) * 9), ValueError),
        ((1, -1, 0, (("a",),), (0,) * 10), TypeError),
        ((1, -1, 0, (), ("x",) * 10), TypeError),
        ((1, -1, 0, (), (1 << 70,) * 10), OverflowError),
        ((1, -1, 0), TypeError),
    ],
)
def test_bad_rows_are_refused(row: Any, error: type[Exception]) -> None:
    with spanprof.profile() as block:
        pass
    with pytest.raises(error):
        _core.profile_of_spans(block.result._data, [row])
