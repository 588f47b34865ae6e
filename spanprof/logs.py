"""The ``spanprof`` logger, and logging that cannot flood."""

from __future__ import annotations

import _thread
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Hashable
    from logging import Logger
    from typing import Any

WARNING = 30
ERROR = 40
"""Levels, as in :mod:`logging`."""


class _LateLogger:
    """Stands for the logger until it is used: importing ``logging`` takes longer than
    importing spanprof."""

    def __getattr__(self, name: str) -> Any:
        from logging import getLogger

        return getattr(getLogger("spanprof"), name)


logger: Logger = _LateLogger()  # type: ignore[assignment]

MOST_PER_PERIOD = 5

PERIOD = 60.0
"""Seconds."""


class _Quota:
    __slots__ = ("began", "passed", "suppressed")

    def __init__(self, now: float) -> None:
        self.began = now
        self.passed = 0
        self.suppressed = 0


class LimitedLog:
    """Logs at most a few messages a minute for each key. Any thread.

    A failing reporter fails at every report: its first errors tell all, and a
    profiler must not fill the program's log. What was left out is counted, and
    the number told with the next message that passes, or by :meth:`finish`.
    """

    def __init__(self, most: int = MOST_PER_PERIOD) -> None:
        self._most = most
        self._lock = _thread.allocate_lock()
        self._quotas: dict[Hashable, _Quota] = {}

    def log(
        self,
        key: Hashable,
        level: int,
        message: str,
        error: BaseException | None = None,
    ) -> None:
        """Log ``message``, with the traceback of ``error``, unless over the limit."""
        with self._lock:
            now = time.monotonic()
            quota = self._quotas.setdefault(key, _Quota(now))
            if now - quota.began >= PERIOD:
                quota.began, quota.passed = now, 0
            if quota.passed >= self._most:
                quota.suppressed += 1
                return
            quota.passed += 1
            suppressed, quota.suppressed = quota.suppressed, 0
        if suppressed:
            message += f" ({suppressed} more like this were not logged)"
        _log(level, message, error)

    def finish(self, level: int, message: str) -> None:
        """Tell how many messages have been left out, if any, and forget them."""
        with self._lock:
            suppressed = sum(quota.suppressed for quota in self._quotas.values())
            self._quotas.clear()
        if suppressed:
            _log(level, f"{message}: {suppressed} more were not logged", None)


def _log(level: int, message: str, error: BaseException | None) -> None:
    # A handler of the program's that raises must not end the reporter thread.
    try:
        logger.log(level, "%s", message, exc_info=error)
    except Exception:
        pass
