"""Samples of single spans, for profiles in which each span is a sample of its own."""

from __future__ import annotations

from .. import _core

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from .._core import (
        ProfileData,
        SpanAllocations,
        SpanCpuTime,
        SpanHeap,
        SpanMetadata,
        SpanWallTime,
    )

Row = tuple[int, int, int, tuple[tuple[str, str], ...], tuple[int, ...]]

_INDEX = {name: index for index, name in enumerate(_core.METRICS)}


class _Span:
    """What is known of a span, and what it used since the last report."""

    __slots__ = ("callsite", "id", "is_over", "labels", "parent", "values")

    def __init__(self, metadata: SpanMetadata, parent: _Span | None) -> None:
        self.id = metadata.scope[0]
        self.parent = parent
        self.callsite = metadata.callsite
        self.labels = tuple(metadata.labels.items())
        self.values = [0] * len(_core.METRICS)
        self.is_over = False


class SpanSamples:
    """Listens to what is told of single spans, and makes profiles of it."""

    def __init__(self) -> None:
        self._spans: dict[int, _Span] = {}
        self._used: dict[int, _Span] = {}  # since the last profile, in order

    def clear(self) -> None:
        """Forget all: another session begins, or another process."""
        self._spans.clear()
        self._used.clear()

    # --- what reporters are told ------------------------------------------------------

    def span_created(self, id: int, metadata: SpanMetadata) -> None:
        above = (
            self._spans[each] for each in metadata.scope[1:] if each in self._spans
        )
        self._spans[id] = _Span(metadata, next(above, None))
        self._add(id, "calls", 1)

    def span_cpu(self, id: int, cpu: SpanCpuTime) -> None:
        self._add(id, "cpu_user", cpu.elapsed_user_nanos)
        self._add(id, "cpu_system", cpu.elapsed_system_nanos)

    def span_wall(self, id: int, wall: SpanWallTime) -> None:
        self._add(id, "wall_busy", wall.elapsed_busy_nanos)
        self._add(id, "wall_idle", wall.elapsed_idle_nanos)

    def span_allocations(self, id: int, allocations: SpanAllocations) -> None:
        self._add(id, "alloc_objects", allocations.allocation_count)
        self._add(id, "alloc_space", allocations.allocated_bytes)

    def span_heap(self, id: int, heap: SpanHeap) -> None:
        values = self._spans[id].values
        values[_INDEX["inuse_objects"]] = heap.in_use_count
        values[_INDEX["inuse_space"]] = heap.in_use_bytes

    def span_destroyed(self, id: int) -> None:
        self._spans[id].is_over = True
        self._used[id] = self._spans[id]

    def _add(self, id: int, metric: str, value: int) -> None:
        if value:
            span = self._spans[id]
            span.values[_INDEX[metric]] += value
            self._used[id] = span

    # --- profiles ---------------------------------------------------------------------

    def take(self, like: ProfileData, most: int) -> Iterator[ProfileData]:
        """Profiles of all that was told since the last time, of the time and kinds of
        ``like``, with at most ``most`` samples each (0: no limit)."""
        with_heap = "heap" in like.kinds
        chosen = dict.fromkeys(self._used)
        if with_heap:
            space = _INDEX["inuse_space"]
            chosen.update(
                dict.fromkeys(
                    id for id, span in self._spans.items() if span.values[space]
                )
            )
        ids = list(chosen)
        step = most or len(ids) or 1
        for start in range(0, len(ids), step):
            yield self._profile(like, ids[start : start + step], with_heap)
        self._forget(ids)

    def _profile(self, like: ProfileData, ids: list[int], heap: bool) -> ProfileData:
        rows: list[Row] = []
        places: dict[int, int] = {}
        told = set(ids)
        for id in ids:
            for span in self._path(id, places):
                parent = places[span.parent.id] if span.parent else -1
                # Ancestors that are no samples of this profile are there for the stack.
                values = self._values(span, heap) if span.id in told else _NOTHING
                places[span.id] = len(rows)
                rows.append((span.id, parent, span.callsite, span.labels, values))
        return _core.profile_of_spans(like, rows)

    def _path(self, id: int, known: dict[int, int]) -> list[_Span]:
        """A span and those of its ancestors that are not known yet, itself last."""
        path: list[_Span] = []
        span: _Span | None = self._spans[id]
        while span is not None and span.id not in known:
            path.append(span)
            span = span.parent
        return path[::-1]

    @staticmethod
    def _values(span: _Span, heap: bool) -> tuple[int, ...]:
        if heap:
            return tuple(span.values)
        return (*span.values[: _INDEX["inuse_objects"]], 0, 0, 0)

    def _forget(self, ids: list[int]) -> None:
        for id in ids:
            span = self._spans[id]
            if span.is_over:
                del self._spans[id]
            else:
                for index in range(_INDEX["inuse_objects"]):
                    span.values[index] = 0
        self._used.clear()


_NOTHING = (0,) * len(_core.METRICS)
