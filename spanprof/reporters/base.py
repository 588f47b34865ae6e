"""What a reporter is."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .._core import SpanBatch
    from ..config import ProfileConfig
    from ..profiles import Profile


class Reporter:
    """Receives what a session measures. Subclass it; every method is optional.

    All methods are called on the session's reporter thread only, never two at a
    time, and may block: neither the program nor what it measures waits for them.
    What they do is not profiled. An exception is logged with its traceback
    (``logging.getLogger("spanprof")``, a few a minute), counted in
    ``stats().reporter_errors``, and harms nobody else; the reporter is called again
    all the same.

    A method that a subclass does not override costs nothing.
    """

    draining: bool = False
    """True during calls that a :func:`spanprof.flush` or the end of the session has
    caused, rather than the report interval. What a reporter has put off is due
    then: after the next :meth:`flush` nothing may be held back."""

    def init(self, config: ProfileConfig) -> None:
        """Called first, once in each session, and again in a child after a fork.

        A reporter that is used a second time starts anew here.
        """

    def profile(self, profile: Profile) -> None:
        """Called at each report with the values since the last one."""

    def flush(self) -> None:
        """Called after each report, and last of all at the end of the session.

        Nothing may be buffered for longer than until here, unless there is a limit
        on what may be written at a time (see :attr:`draining`).
        """

    def spans(self, batch: SpanBatch) -> None:
        """Called with spans that were destroyed, each once, in the order in which the
        threads ended them.

        ``batch`` is a read-only array. ``batch[i]`` and a loop over it give
        :class:`spanprof.ClosedSpan`; ``memoryview`` and numpy read it in place, see the
        guide. It stays valid for as long as it is kept.

        Called before each report, and between reports as soon as some thousands wait.
        What a thread ends while ``max_pending_spans`` of its spans wait is dropped, and
        counted in ``stats().spans_dropped``: neither the program nor the profile waits
        for reporters.
        """

    # These are not in this release. They are here so that their names are taken and a
    # subclass that has them can be told.

    def span_created(self, id: int, metadata: Any) -> None:
        """A span was created. Not called in this release."""

    def span_destroyed(self, id: int) -> None:
        """A span was destroyed. Not called in this release."""

    def span_cpu(self, id: int, cpu: Any) -> None:
        """CPU time of a span since the last call. Not called in this release."""

    def span_wall(self, id: int, wall: Any) -> None:
        """Wall time of a span since the last call. Not called in this release."""

    def span_allocations(self, id: int, allocations: Any) -> None:
        """Allocations of a span since the last call. Not called in this release."""

    def span_heap(self, id: int, heap: Any) -> None:
        """A span's heap in use at the moment. Not called in this release."""


METHODS = (
    "init",
    "profile",
    "spans",
    "flush",
)
"""Methods that are called."""

UNSUPPORTED = (
    "span_created",
    "span_destroyed",
    "span_cpu",
    "span_wall",
    "span_allocations",
    "span_heap",
)
"""Methods that are not called in this release."""


def overrides(reporter: Reporter, method: str) -> bool:
    """Whether a reporter has a method of its own."""
    function = getattr(getattr(reporter, method), "__func__", None)
    return function is not getattr(Reporter, method)
