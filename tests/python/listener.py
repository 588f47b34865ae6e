"""A reporter that knows the rules for single spans, and adds up what it is told."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

import spanprof
from spanprof import (
    Reporter,
    SpanAllocations,
    SpanCpuTime,
    SpanHeap,
    SpanMetadata,
    SpanWallTime,
)


class Listener(Reporter):
    """Every call is checked against sections 5 and 6 as it comes; what breaks a rule is
    kept in ``faults``, as an exception would only be logged."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.metadata: dict[int, SpanMetadata] = {}
        self.alive: set[int] = set()
        self.values: dict[int, Counter[str]] = {}
        self.heap: dict[int, SpanHeap] = {}
        self.faults: list[str] = []
        self.threads: set[int] = set()

    def _expect(self, fact: bool, fault: str) -> None:
        if not fact:
            self.faults.append(fault)

    def _heard(self, name: str, id: int) -> None:
        self.calls.append(name)
        self.threads.add(threading.get_ident())
        self._expect(id in self.alive, f"6.1: {name} of {id}, which is not alive")

    def init(self, config: spanprof.ProfileConfig) -> None:
        self.calls.append("init")

    def span_created(self, id: int, metadata: SpanMetadata) -> None:
        self._expect(id not in self.metadata, f"6.1: {id} is created twice")
        self._expect(metadata.scope[0] == id, f"1: {metadata.scope} of {id}")
        for above in metadata.scope[1:]:
            self._expect(above in self.metadata, f"6.1: {above} comes after {id}")
        self.metadata[id] = metadata
        self.alive.add(id)
        self.values[id] = Counter()
        self._heard("span_created", id)

    def span_destroyed(self, id: int) -> None:
        self._heard("span_destroyed", id)
        self.alive.discard(id)

    def span_cpu(self, id: int, cpu: SpanCpuTime) -> None:
        self._heard("span_cpu", id)
        self.values[id]["user"] += cpu.elapsed_user_nanos
        self.values[id]["system"] += cpu.elapsed_system_nanos

    def span_wall(self, id: int, wall: SpanWallTime) -> None:
        self._heard("span_wall", id)
        self.values[id]["busy"] += wall.elapsed_busy_nanos
        self.values[id]["idle"] += wall.elapsed_idle_nanos

    def span_allocations(self, id: int, allocations: SpanAllocations) -> None:
        self._heard("span_allocations", id)
        self.values[id]["objects"] += allocations.allocation_count
        self.values[id]["bytes"] += allocations.allocated_bytes

    def span_heap(self, id: int, heap: SpanHeap) -> None:
        self._heard("span_heap", id)
        self.heap[id] = heap

    def flush(self) -> None:
        self.calls.append("flush")

    # --- for tests ----------------------------------------------------------------

    def ids(self, name: str) -> list[int]:
        return [id for id, each in self.metadata.items() if each.span_name == name]

    def of(self, name: str) -> Counter[str]:
        """What spans of that name were told to have used, in all."""
        return sum((self.values[id] for id in self.ids(name)), Counter[str]())

    def sums(self) -> Counter[tuple[tuple[str, ...], str]]:
        """Values added up by stack of names, outermost first."""
        result = Counter[tuple[tuple[str, ...], str]]()
        for id, values in self.values.items():
            scope = reversed(self.metadata[id].scope)
            path = tuple(self.metadata[each].span_name for each in scope)
            for value, number in values.items():
                result[path, value] += number
        return result


def told(*more: Any, **fields: Any) -> tuple[Listener, spanprof.Session]:
    """A listener, and a session that tells it all of everything. The report that
    start() asks for is over: from here on nothing is told by surprise."""
    listener = Listener()
    fields = {"track_all": True, "report_interval": 0} | fields
    session = spanprof.start(reporters=[listener, *more], **fields)
    session.flush()
    listener.calls.remove("flush")
    return listener, session
