"""Calling reporters: on one thread, whatever they do.

The core calls :meth:`Delivery.on_report` on the reporter thread. From there on
nothing may escape: a reporter that raises harms neither the program nor the others,
and one that hangs can be named.
"""

from __future__ import annotations

import threading
import time

from . import _core
from .counters import count
from .logs import ERROR, LimitedLog, logger
from .profiles import Profile
from .reporters.base import UNSUPPORTED, Reporter, overrides

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from .config import ProfileConfig


class Delivery:
    """The reporters of one session, in one process."""

    def __init__(self, config: ProfileConfig, reporters: Sequence[Reporter]) -> None:
        self._config = config
        self._profilers = [each for each in reporters if overrides(each, "profile")]
        self._flushers = [each for each in reporters if overrides(each, "flush")]
        self._spanners = [each for each in reporters if overrides(each, "spans")]
        self._beginners = [each for each in reporters if overrides(each, "init")]
        self._reporters = tuple(reporters)
        self._log = LimitedLog()
        self._lock = threading.Lock()
        self._flushes = 0  # under the lock: how many callers of flush() wait now
        self._begun = threading.Event()
        self._ended = threading.Event()
        if not reporters:  # then there is no reporter thread
            self._begun.set()
            self._ended.set()
        # Below: written on the reporter thread alone; `_calling` is read by others.
        self._thread: int | None = None
        self._held: _core.ProfileData | None = None
        self._held_spans: list[_core.SpanBatch] = []
        self._calling: tuple[Reporter, str] | None = None

    @property
    def want_profile(self) -> bool:
        return bool(self._profilers)

    @property
    def want_spans(self) -> bool:
        return bool(self._spanners)

    @property
    def is_here(self) -> bool:
        """Whether the calling thread is the reporter thread."""
        return self._thread == threading.get_ident()

    @property
    def calling(self) -> str | None:
        """Which reporter is being called, and how; None if none is."""
        calling = self._calling
        return f"{_name(calling[0])}.{calling[1]}()" if calling else None

    def flush(self, timeout: float | None) -> bool:
        """Have everything reported; False if that took longer than ``timeout``."""
        # Not before the call that start() asked for has been made: a request that is
        # met together with that one would be met twice.
        began = time.monotonic()
        if not self._begun.wait(timeout):
            return False
        if timeout is not None:
            timeout = max(timeout - (time.monotonic() - began), 0)
        with self._lock:
            self._flushes += 1
        try:
            return _core.session_flush(timeout)
        finally:
            with self._lock:
                self._flushes -= 1

    def wait_for_end(self, timeout: float | None) -> bool:
        """Wait for the last call of all to return; False if ``timeout`` was short."""
        return self._ended.wait(timeout)

    def abandon_in_child(self) -> None:
        """After a fork: nobody is going to call anybody here."""
        self._ended = threading.Event()
        self._ended.set()

    def on_report(self, data: _core.ProfileData | None, last: bool) -> None:
        """Called by the core, on the reporter thread."""
        if not self._begun.is_set():
            self._thread = threading.get_ident()
            for reporter in self._beginners:
                self._call(reporter, "init", self._config)
            self._begun.set()
            held, self._held_spans = self._held_spans, []
            for batch in held:
                self.on_spans(batch)
            if not last:
                # The call that start() asked for, so that init() need not wait for the
                # first report. What was measured meanwhile goes into that one.
                self._held = data
                return
        draining = last or self._flushes > 0
        if self._held is not None:
            data = self._held.merge(data, 1) if data is not None else self._held
            self._held = None
        for reporter in self._reporters:
            try:
                reporter.draining = draining
            except Exception:
                pass  # nobody knows what a class makes of it
        if data is not None:
            profile = Profile(data)
            for reporter in self._profilers:
                self._call(reporter, "profile", profile)
        for reporter in self._flushers:
            self._call(reporter, "flush")
        if last:
            self._log.finish(ERROR, "reporters failed")
            self._thread = None  # the number may soon be another thread's
            self._ended.set()

    def on_spans(self, batch: _core.SpanBatch) -> None:
        """Called by the core, on the reporter thread."""
        if not self._begun.is_set():
            self._held_spans.append(batch)  # init() comes first
            return
        for reporter in self._spanners:
            self._call(reporter, "spans", batch)

    def _call(self, reporter: Reporter, method: str, *arguments: object) -> None:
        self._calling = reporter, method
        try:
            getattr(reporter, method)(*arguments)
        except BaseException as error:  # SystemExit as well: it would end the thread
            count("reporter_errors")
            message = f"{_name(reporter)}.{method}() failed"
            self._log.log((id(reporter), method), ERROR, message, error)
        finally:
            self._calling = None


def warn_of_unsupported(reporters: Sequence[Reporter]) -> None:
    """Tell of methods that wait in vain. Once for each class and session."""
    for kind in {type(each): each for each in reporters}.values():
        methods = [each for each in UNSUPPORTED if overrides(kind, each)]
        if methods:
            logger.warning(
                "%s overrides %s: not called in this release, see spans()",
                type(kind).__qualname__,
                ", ".join(methods),
            )


def _name(reporter: Reporter) -> str:
    # Not its repr(), which is the reporter's own code and may raise.
    return type(reporter).__qualname__
