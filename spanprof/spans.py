"""Single spans that are over, as reporters get them."""

from __future__ import annotations

from . import _core
from .calltree import Callsite, CallsiteCache

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import NamedTuple
else:
    from .lightnamedtuple import NamedTuple


class ClosedSpan(NamedTuple):
    """A span that was destroyed.

    Values are the span's own, without those of the spans nested in it; 0 if they were
    not tracked. Times are in ns.
    """

    id: int
    """Unique in the process, never used again."""

    parent: int
    """The id of the span that it was opened in or under; 0 if there was none."""

    start: int
    """Unix time at which it was created."""

    end: int
    """Unix time at which it was destroyed."""

    wall_busy: int
    """Wall time while it ran."""

    wall_idle: int
    """Wall time while it was open and did not run."""

    cpu_user: int
    """CPU time in user mode."""

    cpu_system: int
    """CPU time in the kernel."""

    alloc_objects: int
    """Blocks of memory that it allocated."""

    alloc_space: int
    """Their size in bytes."""

    callsite: Callsite
    """Its name, and where in the source it was opened."""

    labels: Mapping[str, str]
    """Its labels, of those that are recorded."""

    thread: int
    """The system's number of the thread on which it ended."""

    generation: int
    """A number that all spans of one session share."""

    @property
    def name(self) -> str:
        return self.callsite.name


# Both grow with places in the source and values of labels, which have limits.
_callsites = CallsiteCache()
_label_sets: dict[int, Mapping[str, str]] = {}


def _labels(number: int) -> Mapping[str, str]:
    labels = _label_sets.get(number)
    if labels is None:
        labels = _label_sets[number] = dict(_core.label_set(number))
    return labels


def _closed_span(row: tuple[int, ...]) -> ClosedSpan:
    *values, callsite, labels, thread, generation = row
    return ClosedSpan._make(
        (*values, _callsites[callsite], _labels(labels), thread, generation)
    )


_core.set_span_maker(_closed_span)
