"""Sessions: starting, reading and stopping the profiler."""

from __future__ import annotations

import _thread
import atexit
import os
import time

from . import _core, counters
from .children import stop_at_end, stop_children_at_end
from .config import ProfileConfig, check_timeout
from .logs import logger
from .profiles import Profile
from .reporters.base import Reporter
from .samplers import HeadSampler, Question, check_sampler, core_sampler

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from threading import Event
    from types import TracebackType
    from typing import Self, Unpack

    from .config import ConfigFields
    from .delivery import Delivery

# Guards `_current` and sessions' fields that say so. Reentrant, as a signal handler
# may stop the session on a thread that is in here. Never held while waiting for the
# reporter thread, which may come here itself.
_lock = _thread.RLock()
_current: Session | None = None
_ending: list[Session] = []
"""Under the lock: stopped, and somebody waits for the end, or nobody does since its own
reporter has stopped it. Exit waits as well."""
_is_installed = False

_MOST_AT_EXIT = 10
"""Sessions to stop at exit: the last report of one may start another."""


def _event() -> Event:
    # Imported late, like all that a program without a session has no use for.
    from threading import Event

    return Event()


class Session:
    """A running or finished session; :func:`start` makes it.

    Leaving it as a context manager stops it. Any thread may call any method, also a
    reporter: its calls do not wait for itself.
    """

    def __init__(
        self,
        config: ProfileConfig,
        reporters: tuple[Reporter, ...],
        sampler: HeadSampler | None,
        blocks: int,
    ) -> None:
        self._config = config
        self._reporters = reporters
        self._sampler = sampler
        self._blocks = blocks
        """Under the lock: how many blocks of profile() this session was started for
        and that still run; -1 if start() made it."""
        self._stopped = _event()
        self._final: Profile | None = None
        self._begin()

    def _begin(self, goes_on: bool = False) -> None:
        """Start the core's session, or in a child after a fork go on with it."""
        config = self._config
        from .delivery import Delivery

        self._delivery = delivery = Delivery(config, self._reporters)
        self._warn_of_lost_hooks("puts them back")
        self._question = core_sampler(self._sampler)
        _core.session_start(
            track_wall=config.track_wall,
            track_cpu=config.track_cpu,
            track_allocations=config.track_allocations,
            track_heap=config.track_heap,
            heap_sample_bytes=config.heap_sample_bytes,
            record_labels=tuple(config.record_labels),
            max_nodes=config.max_nodes,
            max_label_values=config.max_label_values,
            report_interval=config.report_interval,
            heap_snapshot_interval=config.heap_snapshot_interval,
            on_report=delivery.on_report if self._reporters else None,
            on_updates=delivery.on_updates if delivery.want_updates else None,
            on_spans=delivery.on_spans if delivery.want_spans else None,
            max_pending_spans=config.max_pending_spans,
            max_closed_heap_spans=config.max_closed_heap_spans,
            heap_by_span=delivery.want_span_heap,
            want_profile=delivery.want_profile,
            goes_on=goes_on,
            sampler=self._question,
            publish_thread_context=config.publish_thread_context,
        )
        self._unseen = int(_core.stats()["suspensions_unseen"])
        trace_id = _core.session_trace_id()
        self._trace_id = None if trace_id is None else trace_id.hex()
        stop_at_end(_at_exit)
        if self._reporters:
            _core.session_flush(0)  # has init() called, see Delivery.on_report

    @property
    def config(self) -> ProfileConfig:
        return self._config

    @property
    def sampler(self) -> HeadSampler | None:
        return self._sampler

    @property
    def trace_id(self) -> str | None:
        """The trace to which outside profilers are told that the spans belong: 32
        hexadecimal digits, drawn at random for each session, and for each child after
        a fork. None without ``publish_thread_context``.
        """
        return self._trace_id

    @property
    def is_running(self) -> bool:
        return _current is self

    @property
    def result(self) -> Profile:
        """Everything that was measured; RuntimeError while the session runs."""
        if self._final is None:
            raise RuntimeError("the session still runs: stop it, or take a snapshot")
        return self._final

    def snapshot(self) -> Profile:
        """Return the values since the start. RuntimeError after the stop."""
        data = _core.session_snapshot() if _current is self else None
        if data is None:
            raise RuntimeError("the session is over: see its result")
        return Profile(data)

    def flush(self, timeout: float | None = None) -> bool:
        """Have everything up to now reported, and wait for that.

        Waits for ``timeout`` seconds at most (None: the session's ``stop_timeout``;
        ``math.inf``: no limit), and returns False if that was too short. Called by a
        reporter it does nothing: what is being reported is flushed anyway.
        """
        limit = self._limit(timeout)
        if _current is not self or self._delivery.is_here:
            return True
        return self._delivery.flush(limit)

    def stop(self, timeout: float | None = None) -> bool:
        """Stop, have everything reported and flushed, and wait for that.

        Waits for ``timeout`` seconds at most (None: the session's ``stop_timeout``;
        ``math.inf``: no limit). If that was too short, a warning on the ``spanprof``
        logger names the reporter that still runs, and the answer is False: that
        reporter goes on by itself. Stopping again does nothing but wait as well.
        Called by a reporter, it does not wait: the last report comes after it.
        """
        global _current
        limit = self._limit(timeout)
        began = time.monotonic()
        with _lock:
            is_first = _current is self
            if is_first:
                _current = None
                _ending.append(self)
        if is_first:
            try:
                self._warn_of_lost_hooks("has missed allocations since then")
                self._warn_of_unseen_suspensions()
                stopped = _core.session_stop(limit)
                if stopped is not None:
                    self._final = Profile(stopped[0])
            finally:
                self._stopped.set()
            if isinstance(self._question, Question):
                self._question.finish()
        if self._delivery.is_here:
            return True
        try:
            return self._wait(limit, began, warn=is_first)
        finally:
            with _lock:
                if self in _ending:
                    _ending.remove(self)

    def _warn_of_lost_hooks(self, consequence: str) -> None:
        if self._config.track_allocations and _core.hooks_lost():
            counters.count("alloc_hooks_lost")
            logger.warning(
                "the hooks on Python's memory allocators have been taken out, as "
                "tracemalloc.stop() does where tracemalloc was started first: the "
                "session %s",
                consequence,
            )

    def _warn_of_unseen_suspensions(self) -> None:
        if int(_core.stats()["suspensions_unseen"]) > self._unseen:
            logger.warning(
                "the numbers of sys.monitoring that spanprof takes (4, 3) were other "
                "tools': time of suspended coroutines and generators counted as busy"
            )

    def _wait(self, limit: float | None, began: float, warn: bool) -> bool:
        def left() -> float | None:
            return limit and max(limit - (time.monotonic() - began), 0)

        if self._stopped.wait(left()) and self._delivery.wait_for_end(left()):
            return True
        if warn:
            counters.count("reporter_timeouts")
            logger.warning(
                "%s has not returned for %.1f s: not waiting for it any longer",
                self._delivery.calling or "a reporter",
                time.monotonic() - began,
            )
        return False

    def _limit(self, timeout: float | None) -> float | None:
        """A time-out as the core takes it."""
        if timeout is None:
            timeout = self._config.stop_timeout
        seconds = check_timeout("timeout", timeout)
        return None if seconds == float("inf") else seconds

    def _restart_in_child(self) -> None:
        """After a fork: the core has no reporter thread, and all values are zero."""
        self._stopped = _event()
        self._begin(goes_on=True)

    def _end_in_child(self) -> None:
        stopped = _core.session_stop(0)
        self._stopped = _event()
        self._stopped.set()
        self._delivery.abandon_in_child()
        if stopped is not None:
            self._final = Profile(stopped[0])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = "running" if self.is_running else "stopped"
        return f"<spanprof.Session, {state}: {', '.join(self._config.tracked)}>"


def start(
    config: ProfileConfig | None = None,
    *,
    reporters: Iterable[Reporter] = (),
    sampler: HeadSampler | None = None,
    **fields: Unpack[ConfigFields],
) -> Session:
    """Start the process's session.

    ``fields`` are those of :class:`ProfileConfig`; they override ``config``. Raises
    RuntimeError if a session runs already, and TypeError for a reporter or a sampler
    that is none. ``sampler`` decides which spans without a parent are recorded, see
    :class:`HeadSampler`; None: all are.

    A session that still runs when the interpreter exits is stopped then.
    """
    config = _configure(config, fields)
    chosen = _check_reporters(reporters)
    check_sampler(sampler)
    with _lock:
        return _start(config, chosen, sampler, blocks=-1)


def stop(timeout: float | None = None) -> bool:
    """Stop the running session, see :meth:`Session.stop`. True if none runs."""
    session = _current
    return True if session is None else session.stop(timeout)


def flush(timeout: float | None = None) -> bool:
    """Have everything reported, see :meth:`Session.flush`. True if none runs."""
    session = _current
    return True if session is None else session.flush(timeout)


def snapshot() -> Profile:
    """Return the values since the session's start. RuntimeError if none runs."""
    session = _current
    if session is None:
        raise RuntimeError("no session is running")
    return session.snapshot()


def is_running() -> bool:
    """Whether a session runs."""
    return _current is not None


def _configure(config: ProfileConfig | None, fields: ConfigFields) -> ProfileConfig:
    if config is None:
        config = ProfileConfig(**fields)
    elif not isinstance(config, ProfileConfig):
        raise TypeError(f"config must be a ProfileConfig, not {config!r}")
    elif fields:
        from dataclasses import replace

        config = replace(config, **fields)
    return config


def _check_reporters(reporters: Iterable[Reporter]) -> tuple[Reporter, ...]:
    if isinstance(reporters, Reporter) or not hasattr(reporters, "__iter__"):
        raise TypeError(
            f"reporters must be an iterable of reporters, not {reporters!r}"
        )
    chosen = tuple(reporters)
    for reporter in chosen:
        if isinstance(reporter, type) and issubclass(reporter, Reporter):
            raise TypeError(
                f"a reporter must be an object, not a class: {reporter.__qualname__}()?"
            )
        if not isinstance(reporter, Reporter):
            raise TypeError(f"a reporter must be a spanprof.Reporter, not {reporter!r}")
    return chosen


def _start(
    config: ProfileConfig,
    reporters: tuple[Reporter, ...],
    sampler: HeadSampler | None,
    blocks: int,
) -> Session:
    """Start a session; the caller holds the lock."""
    global _current, _is_installed
    if _current is not None:
        raise RuntimeError("a session is already running")
    session = Session(config, reporters, sampler, blocks)
    _current = session
    if not _is_installed:
        _is_installed = True
        atexit.register(_at_exit)
        os.register_at_fork(
            before=lambda: _core.uncharged(_before_fork),
            after_in_child=lambda: _core.uncharged(_after_fork_in_child),
        )
    return session


def _at_exit() -> None:
    until: float | None = None
    for _ in range(_MOST_AT_EXIT):
        with _lock:
            # Another thread may be in the middle of a stop.
            session = _current or (_ending[0] if _ending else None)
        if session is None:
            return
        if until is None:
            until = time.monotonic() + session.config.stop_timeout
        session.stop(max(until - time.monotonic(), 0))


def _before_fork() -> None:
    if _current is not None:
        stop_children_at_end(_at_exit)


def _after_fork_in_child() -> None:
    # Locks may be held by threads that the child does not have.
    global _lock, _current
    _lock = _thread.RLock()
    _ending.clear()
    counters.relock_in_child()
    session = _current
    if session is None:
        _core.session_stop(0)  # the parent may have been in the middle of a stop
        return
    # A reporter's children are not profiled, as it is not itself.
    if session.config.on_fork == "restart" and not session._delivery.is_here:
        try:
            session._restart_in_child()
            return
        except Exception:
            logger.exception("the session could not go on after a fork")
    _current = None
    session._end_in_child()


# --- one block ----------------------------------------------------------------------


class ProfileBlock:
    """Measures one block of code; :func:`profile` makes it."""

    def __init__(self, config: ProfileConfig, sampler: HeadSampler | None) -> None:
        self._config = config
        self._sampler = sampler
        self._session: Session | None = None
        self._delivery: Delivery | None = None
        self._before: Profile | None = None
        self._result: Profile | None = None

    @property
    def result(self) -> Profile:
        """What was measured; RuntimeError before the end of the block."""
        if self._result is None:
            raise RuntimeError("the block has not ended yet")
        return self._result

    def __enter__(self) -> Self:
        if self._session is not None:
            raise RuntimeError("a block of profile() can be entered only once")
        with _lock:
            session = _current
            if session is None:
                session = _start(self._config, (), self._sampler, blocks=1)
            else:
                _check_measures(session, self._config, self._sampler)
                self._before = session.snapshot()
                if session._blocks >= 0:
                    session._blocks += 1
            self._session = session
            self._delivery = session._delivery
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        session = self._session
        assert session is not None
        with _lock:
            if session._blocks > 0:
                session._blocks -= 1
                if session._blocks == 0:
                    session.stop()  # it has no reporters to wait for
        try:
            after = session.snapshot()
        except RuntimeError:
            session.stop()  # somebody else did: wait until that is done
            after = session.result
        # In a child after a fork all values have begun anew.
        if self._before is not None and self._delivery is session._delivery:
            after -= self._before
        self._result = after


def _check_measures(
    session: Session, wanted: ProfileConfig, sampler: HeadSampler | None
) -> None:
    running = session.config
    if sampler is not None and sampler != session.sampler:
        raise RuntimeError(f"the running session has the sampler {session.sampler!r}")
    missing = [kind for kind in wanted.tracked if kind not in running.tracked]
    if missing:
        raise RuntimeError(f"the running session does not track {', '.join(missing)}")
    if wanted.track_heap and running.heap_sample_bytes != wanted.heap_sample_bytes:
        raise RuntimeError(
            f"the running session has heap_sample_bytes={running.heap_sample_bytes}"
        )
    labels = [
        name for name in wanted.record_labels if name not in running.record_labels
    ]
    if labels:
        raise RuntimeError(f"the running session does not record {', '.join(labels)}")


def profile(
    config: ProfileConfig | None = None,
    *,
    sampler: HeadSampler | None = None,
    **fields: Unpack[ConfigFields],
) -> ProfileBlock:
    """Measure a block of code: ``with profile(track_all=True) as p: ...; p.result``.

    If no session runs, one runs for the time of the block; else the values are taken
    from the running one, which must measure what is asked for, and have an equal
    sampler if one is given (RuntimeError). All threads are measured. Arguments as for
    :func:`start`.
    """
    return ProfileBlock(_configure(config, fields), check_sampler(sampler))
