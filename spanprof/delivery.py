"""Calling reporters: on one thread, whatever they do.

The core calls :meth:`Delivery.on_report` on the reporter thread. From there on
nothing may escape: a reporter that raises harms neither the program nor the others,
and one that hangs can be named.
"""

from __future__ import annotations

import os
import sys
import threading
import time

from . import _core
from .counters import count
from .logs import ERROR, LimitedLog
from .profiles import Profile
from .reporters.base import KINDS, Reporter, import_now, overrides

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import NoReturn

    from .config import ProfileConfig


class Delivery:
    """The reporters of one session, in one process."""

    def __init__(self, config: ProfileConfig, reporters: Sequence[Reporter]) -> None:
        self._config = config
        self._profilers = [each for each in reporters if overrides(each, "profile")]
        self._flushers = [each for each in reporters if overrides(each, "flush")]
        self._spanners = [each for each in reporters if overrides(each, "spans")]
        self._watchers = [
            (each, methods)
            for each in reporters
            if any(methods := _span_methods(each, config))
        ]
        self._beginners = [each for each in reporters if overrides(each, "init")]
        self._reporters = tuple(reporters)
        self._process = os.getpid()
        self._log = LimitedLog()
        self._lock = threading.Lock()
        self._flushes = 0  # under the lock: how many callers of flush() wait now
        self._begun = threading.Event()
        self._ended = threading.Event()
        if reporters:
            # To log an error with its traceback.
            import_now("logging", "tokenize", "_suggestions")
            if sys.version_info >= (3, 15):
                import_now("_colorize", "inspect")
        else:  # then there is no reporter thread
            self._begun.set()
            self._ended.set()
        # Below: written on the reporter thread alone; `_calling` is read by others.
        self._thread: int | None = None
        self._has_begun = False
        self._held: _core.ProfileData | None = None
        self._calling: tuple[Reporter, str | _core.SpanUpdates] | None = None

    @property
    def want_profile(self) -> bool:
        return bool(self._profilers)

    @property
    def want_spans(self) -> bool:
        return bool(self._spanners)

    @property
    def want_updates(self) -> bool:
        return bool(self._watchers)

    @property
    def want_span_heap(self) -> bool:
        """Whether somebody asks what single spans have in use."""
        asked = [_core.SPAN_METHODS.index(n) for n in ("span_heap", "span_destroyed")]
        return any(methods[n] for _, methods in self._watchers for n in asked)

    @property
    def is_here(self) -> bool:
        """Whether the calling thread is the reporter thread."""
        return self._thread == threading.get_ident()

    @property
    def calling(self) -> str | None:
        """Which reporter is being called, and how; None if none is."""
        calling = self._calling
        if calling is None:
            return None
        reporter, method = calling
        if not isinstance(method, str):
            method = method.calling or "span_created"  # is about to be
        return f"{_name(reporter)}.{method}()"

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
        self._begin()
        if not self._begun.is_set():
            self._begun.set()
            if not last:
                # The call that start() asked for, so that init() need not wait for the
                # first report. What was measured meanwhile goes into that one.
                self._held = data
                return
        draining = last or self._flushes > 0
        if self._held is not None:
            data = self._held.merge(data, 1) if data is not None else self._held
            self._held = None
        self._tell(draining=draining, ending=last)
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
        self._begin()
        for reporter in self._spanners:
            self._call(reporter, "spans", batch)

    def on_updates(self, updates: _core.SpanUpdates) -> None:
        """Called by the core, on the reporter thread."""
        self._begin()
        for reporter, methods in self._watchers:
            self._calling = reporter, updates
            try:
                updates.deliver(methods, self._failure_of(reporter))
            finally:
                self._calling = None
            if self._is_in_child():
                _leave_child(0)

    def _begin(self) -> None:
        """Whatever is called first, ``init()`` comes before it."""
        if self._has_begun:
            return
        self._has_begun = True
        self._thread = threading.get_ident()
        self._tell(draining=False, ending=False)  # it may be in use again
        for reporter in self._beginners:
            self._call(reporter, "init", self._config)

    def _tell(self, *, draining: bool, ending: bool) -> None:
        for reporter in self._reporters:
            for name, value in (("draining", draining), ("ending", ending)):
                try:
                    setattr(reporter, name, value)
                except Exception:
                    pass  # nobody knows what a class makes of it

    def _call(self, reporter: Reporter, method: str, *arguments: object) -> None:
        self._calling = reporter, method
        try:
            getattr(reporter, method)(*arguments)
        except BaseException as error:  # SystemExit as well: it would end the thread
            self._failed(reporter, method, error)
        finally:
            self._calling = None
        if self._is_in_child():
            _leave_child(0)

    def _failed(self, reporter: Reporter, method: str, error: BaseException) -> None:
        if self._is_in_child() and isinstance(error, SystemExit):
            _leave_child(error.code)
        count("reporter_errors")
        message = f"{_name(reporter)}.{method}() failed"
        self._log.log((id(reporter), method), ERROR, message, error)
        if self._is_in_child():
            _leave_child(1)

    def _failure_of(self, reporter: Reporter) -> Callable[[str, BaseException], None]:
        return lambda method, error: self._failed(reporter, method, error)

    def _is_in_child(self) -> bool:
        """Whether the reporter that was called has forked, and this is the child."""
        return os.getpid() != self._process


def _leave_child(code: object) -> NoReturn:
    """End a child that a reporter has forked, and that has come back from there.

    There is nothing to come back to: what is being reported is the parent's, and this
    thread is the only one of the child.
    """
    os._exit(code if isinstance(code, int) else int(code is not None))


def _span_methods(
    reporter: Reporter, config: ProfileConfig
) -> tuple[Callable[..., object] | None, ...]:
    """The reporter's own methods for single spans, in the core's order; None where it
    has none, or what it would be told is not tracked."""
    return tuple(
        getattr(reporter, name)
        if overrides(reporter, name) and KINDS.get(name, "calls") in config.tracked
        else None
        for name in _core.SPAN_METHODS
    )


def _name(reporter: Reporter) -> str:
    # Not its repr(), which is the reporter's own code and may raise.
    return type(reporter).__qualname__
