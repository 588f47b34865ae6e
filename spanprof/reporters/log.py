"""The heaviest spans, in the program's log."""

from __future__ import annotations

from ..calltree import SERIES
from .base import Reporter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from logging import Logger

    from ..profiles import Profile

INFO = 20
"""A level, as in :mod:`logging`."""


class LogReporter(Reporter):
    """Logs the ``top`` heaviest spans of each report, a record each.

    ``logger`` is a :class:`logging.Logger` or the name of one. Spans are ranked by
    the series ``by``, such as ``cpu``; None: the first that is measured of ``wall``,
    ``cpu``, ``alloc_space`` and ``calls``. A record's message is the text of a
    :class:`spanprof.TopRow`; as attributes it has ``span_name``, ``span_calls``,
    ``span_self``, ``span_total`` and ``span_unit``. A report without spans logs
    nothing.
    """

    def __init__(
        self,
        logger: str | Logger = "spanprof.spans",
        *,
        level: int = INFO,
        top: int = 5,
        by: str | None = None,
    ) -> None:
        if isinstance(logger, str):
            from logging import getLogger

            logger = getLogger(logger)
        if not callable(getattr(logger, "isEnabledFor", None)):
            raise TypeError(f"logger must be a logger or its name, not {logger!r}")
        for name, value in (("level", level), ("top", top)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an int, not {value!r}")
        if top < 1:
            raise ValueError(f"top must be at least 1: {top!r}")
        if by is not None and by not in SERIES:
            raise ValueError(f"by must be one of {', '.join(SERIES)}, not {by!r}")
        self._logger = logger
        self._level = level
        self._top = top
        self._by = by

    def profile(self, profile: Profile) -> None:
        if not self._logger.isEnabledFor(self._level):
            return
        for row in profile.top(self._top, self._by):
            extra = {
                "span_name": row.callsite.name,
                "span_calls": row.calls,
                "span_self": row.self_value,
                "span_total": row.total,
                "span_unit": row.unit,
            }
            self._logger.log(self._level, "%s", row, extra=extra)

    def __repr__(self) -> str:
        return f"LogReporter({self._logger.name!r})"
