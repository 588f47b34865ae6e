"""What a reporter is."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

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

    # The feed of single spans is not in this release. The methods are here so that
    # their names are taken and a subclass that has them can be told.

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

    def spans(self, batch: Any) -> None:
        """Spans that were closed, as one array. Not called in this release."""


UNSUPPORTED = (
    "span_created",
    "span_destroyed",
    "span_cpu",
    "span_wall",
    "span_allocations",
    "span_heap",
    "spans",
)
"""Methods that are not called in this release."""


def overrides(reporter: Reporter, method: str) -> bool:
    """Whether a reporter has a method of its own."""
    function = getattr(getattr(reporter, method), "__func__", None)
    return function is not getattr(Reporter, method)
