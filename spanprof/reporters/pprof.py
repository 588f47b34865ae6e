"""Profiles in pprof's format."""

from __future__ import annotations

import time

from .._core import SERIES, SPAN_METHODS, ProfileData
from ..config import ProfileConfig
from ..counters import count
from ..logs import WARNING, LimitedLog
from ..profiles import Profile
from .base import Reporter
from .span_samples import SpanSamples

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Protocol
else:
    Protocol = object

KINDS = tuple(dict.fromkeys(kind for _, _, kind, _ in SERIES))

_PAUSES = (0.05, 0.2)
"""Seconds before the second and the third try. Short: a stop waits for them."""


class Backend(Protocol):
    """Where profiles go: any object with this method.

    Two more are called if they are there:

    - ``init()`` when a session begins, and again in a child after a fork: what the
      object holds then is its parent's to deliver.
    - ``flush()`` at a :func:`spanprof.flush` and at the end of a session, when all
      profiles have been handed over: what was put off is due. May block for a short
      time. An exception counts as the reporter's.
    """

    def save_profile(self, kind: str, start: int, end: int, data: bytes) -> None:
        """Keep one profile.

        ``kind`` is one of ``calls``, ``wall``, ``cpu``, ``alloc``; ``start`` and
        ``end`` are Unix times in ns; ``data`` is gzip-compressed pprof. May block.
        May raise: then it is called again, a few times.
        """


class PProfReporter(Reporter):
    """Writes what was measured to a backend, in pprof's format, at every report.

    Each kind (``calls``, ``wall``, ``cpu``, ``alloc``) is a profile of its own, with
    at most ``max_samples`` samples, the heaviest first; the rest is added to the
    next report. At a flush and at the end nothing is left: it goes out in several
    profiles then. A report without any values is not written.

    A backend that raises is tried again a few times with growing pauses. After that
    the profile is lost: counted in ``stats().write_failures``, and logged.

    ``kinds`` limits what is written; None: all that is measured.

    With ``aggregate_samples`` false each span is a sample of its own, with its id as
    the numeric label ``span_id``, at each report at which it has used anything. That
    costs some microseconds a span on the reporter thread, and is bounded by
    ``max_pending_spans``. What there is to write is written at each report, in as
    many profiles as it takes.
    """

    def __init__(
        self,
        backend: Backend,
        aggregate_samples: bool = True,
        *,
        kinds: Iterable[str] | None = None,
    ) -> None:
        if not callable(getattr(backend, "save_profile", None)):
            raise TypeError(f"backend must have a method save_profile: {backend!r}")
        if not isinstance(aggregate_samples, bool):
            raise TypeError(
                f"aggregate_samples must be bool, not {aggregate_samples!r}"
            )
        if isinstance(kinds, (str, bytes)):
            raise TypeError(f"kinds must be an iterable of str, not {kinds!r}")
        self._kinds = KINDS if kinds is None else tuple(kinds)
        for kind in self._kinds:
            if kind not in KINDS:
                raise ValueError(
                    f"kinds must be among {', '.join(KINDS)}, not {kind!r}"
                )
        self._backend = backend
        self._log = LimitedLog(1)
        self._max_samples = 0
        self._spans = None if aggregate_samples else self._listen()
        self._rest: ProfileData | None = None
        self._failing = False
        self.written = 0
        """Number of profiles handed to the backend."""
        self.lost = 0
        """Number of profiles that the backend refused."""
        self.last_error: Exception | None = None
        """What it raised last."""

    def _listen(self) -> SpanSamples:
        """Have single spans told. On this object alone: what is not overridden costs
        nothing."""
        spans = SpanSamples()
        for name in SPAN_METHODS:
            setattr(self, name, getattr(spans, name))
        return spans

    def init(self, config: ProfileConfig) -> None:
        if self._spans is not None:
            self._spans.clear()
        self._max_samples = config.max_samples
        # What was put off in another session, or before a fork, is that one's; and a
        # lock may be held by a thread that a child does not have.
        self._rest = None
        self._log = LimitedLog(1)
        self._failing = False
        self.written = self.lost = 0
        self.last_error = None
        self._call("init")

    def profile(self, profile: Profile) -> None:
        data = profile._data
        if self._spans is not None:
            for samples in self._spans.take(data, self._max_samples):
                self._write(samples)
            return
        if self._rest is not None:
            data = self._rest.merge(data, 1)
        self._rest = self._write_heaviest(data)

    def flush(self) -> None:
        while self.draining and self._rest is not None:
            self._rest = self._write_heaviest(self._rest)
        if self.draining:
            self._call("flush")

    def _call(self, method: str) -> None:
        """Call a method of the backend that it need not have."""
        function = getattr(self._backend, method, None)
        if callable(function):
            function()

    def _write_heaviest(self, data: ProfileData) -> ProfileData | None:
        """Write as much as goes into one profile of each kind; return the rest."""
        if len(data) == 0:
            return None
        rest = None
        if self._max_samples:
            data, rest = data.split(self._max_samples)
        self._write(data)
        return rest

    def _write(self, data: ProfileData) -> None:
        """Write a profile of each kind."""
        end = data.start_ns + data.duration_ns
        for kind in self._kinds:
            if kind in data.kinds:
                self._save(kind, data.start_ns, end, data.to_pprof(kind))

    def _save(self, kind: str, start: int, end: int, data: bytes) -> None:
        # A backend that has just refused a profile after several tries gets one try
        # for each of the others: a stop waits for all of them.
        pauses = () if self._failing else _PAUSES
        for pause in (*pauses, None):
            try:
                self._backend.save_profile(kind, start, end, data)
            except Exception as error:
                self.last_error = error
                if pause is not None:
                    count("write_retries")
                    time.sleep(pause)
            else:
                self._failing = False
                self.written += 1
                count("profiles_written")
                return
        self._failing = True
        self.lost += 1
        count("write_failures")
        reason = f"{type(self.last_error).__name__}: {self.last_error}"
        self._log.log(
            "save",
            WARNING,
            f"a {kind} profile could not be written to {self._backend!r}: {reason}",
        )

    def __repr__(self) -> str:
        return f"PProfReporter({self._backend!r})"
