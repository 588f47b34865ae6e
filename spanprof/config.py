"""What a session measures, and how much it may hold."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from dataclasses import dataclass as late_dataclass
    from typing import Literal, TypedDict

    OnFork = Literal["restart", "stop"]
else:
    from .latedataclass import late_dataclass

_MOST = 2**31 - 1

MOST_LABELS = 64
"""Names that a session can record."""

_INFINITY = float("inf")


if TYPE_CHECKING:

    class ConfigFields(TypedDict, total=False):
        """The fields of :class:`ProfileConfig` as keyword arguments."""

        track_wall: bool
        track_cpu: bool
        track_allocations: bool
        track_heap: bool
        track_all: bool
        heap_sample_bytes: int
        record_labels: Iterable[str]
        report_interval: float
        heap_snapshot_interval: float
        max_samples: int
        max_closed_heap_spans: int
        max_nodes: int
        max_label_values: int
        max_pending_spans: int
        publish_thread_context: bool
        on_fork: OnFork
        stop_timeout: float


@late_dataclass(frozen=True, kw_only=True)
class ProfileConfig:
    """The settings of a session; immutable. Times are in seconds.

    Everything that is tracked is off by default; the number of calls is always
    counted. A value of the wrong type raises TypeError, one out of range
    ValueError.
    """

    track_wall: bool = False
    """Wall time, busy and idle."""

    track_cpu: bool = False
    """CPU time, user and system."""

    track_allocations: bool = False
    """Number and size of allocations."""

    track_heap: bool = False
    """Memory in use, of every span that allocated it; implies
    ``track_allocations``."""

    track_all: bool = False
    """All of the above."""

    heap_sample_bytes: int = 0
    """0: memory is tracked block by block, exactly. Otherwise ``track_heap`` looks at
    one block in so many bytes on average (512 KiB is usual), and both allocations and
    memory in use are estimates without bias."""

    record_labels: Iterable[str] = ()
    """Names of the labels to record. Each distinct value makes a node of its own.
    Kept as a tuple."""

    report_interval: float = 10.0
    """Time between two reports; 0: only at a flush and at the end."""

    heap_snapshot_interval: float = 10.0
    """Time between two reports that tell of the memory in use; 0: every report
    does."""

    max_samples: int = 1000
    """Most samples in one written profile; 0: no limit. What is over goes into the
    next one, nothing is dropped."""

    max_closed_heap_spans: int = 1000
    """Most finished spans whose memory in use is told by span
    (:meth:`Reporter.span_heap`). The smallest of more are given up, and counted: what
    they have in use counts for their stack alone."""

    max_nodes: int = 100_000
    """Most distinct stacks of spans; what is over goes to one node "(other)" per
    parent, and is counted. Where memory in use is tracked, at most 4,194,304."""

    max_label_values: int = 1000
    """Most distinct values of a label; others become "(other)", and are counted."""

    max_pending_spans: int = 200_000
    """Most finished spans per thread that wait for reporters that want single spans
    (:meth:`Reporter.spans`, :meth:`Reporter.span_created` and so on); further ones are
    dropped, and counted. Each that waits takes 96 bytes."""

    publish_thread_context: bool = False
    """Tell profilers outside of the process which span each thread runs, in the way of
    OpenTelemetry's thread context; see :attr:`Session.trace_id`. On Linux."""

    on_fork: OnFork = "restart"
    """What becomes of the session in the child after a fork."""

    stop_timeout: float = 10.0
    """Longest that a stop waits for reporters, also at exit; ``math.inf``: no
    limit."""

    def __post_init__(self) -> None:
        for name, check in _CHECKS.items():
            object.__setattr__(self, name, check(name, getattr(self, name)))
        if self.track_all:
            for name in (
                "track_wall",
                "track_cpu",
                "track_allocations",
                "track_heap",
            ):
                object.__setattr__(self, name, True)
        if self.track_heap:
            object.__setattr__(self, "track_allocations", True)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> ProfileConfig:
        """Return the settings that the ``SPANPROF_*`` variables give.

        Each field has a variable, such as ``SPANPROF_TRACK_CPU``. Truth values are
        1/0, true/false, yes/no or on/off; ``SPANPROF_RECORD_LABELS`` is a list with
        commas. An empty variable counts as not set, and one that is none of ours is
        ignored. A bad value raises ValueError that names the variable.
        """
        values: dict[str, object] = {}
        for name, check in _CHECKS.items():
            variable = f"SPANPROF_{name.upper()}"
            text = environ.get(variable, "").strip()
            if not text:
                continue
            try:
                values[name] = check(variable, _PARSERS[check](text))
            except TypeError as error:
                raise ValueError(str(error)) from None
        return cls(**values)  # type: ignore[arg-type]

    @property
    def tracked(self) -> tuple[str, ...]:
        """The kinds of values that a session with these settings measures."""
        tracked = ["calls"]
        if self.track_wall:
            tracked.append("wall")
        if self.track_cpu:
            tracked.append("cpu")
        if self.track_allocations:
            tracked.append("alloc")
        if self.track_heap:
            tracked.append("heap")
        return tuple(tracked)


# Checks take a name for the message and a value, and return the value to keep.


def check_bool(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {value!r}")
    return value


def check_seconds(name: str, value: object) -> float:
    """A finite number of seconds, not negative."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds, not {value!r}")
    if value != value or value < 0:
        raise ValueError(f"{name} must not be negative: {value!r}")
    if value == _INFINITY:
        raise ValueError(f"{name} must be finite: {value!r}")
    return float(value)


def check_timeout(name: str, value: object) -> float:
    """A number of seconds, not negative; infinity means no limit."""
    return _INFINITY if value == _INFINITY else check_seconds(name, value)


def check_limit(name: str, value: object) -> int:
    """A whole number that is not negative."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {value!r}")
    if value < 0:
        raise ValueError(f"{name} must not be negative: {value!r}")
    if value > _MOST:
        raise ValueError(f"{name} must be at most {_MOST}: {value!r}")
    return value


def check_positive(name: str, value: object) -> int:
    """A whole number above 0."""
    number = check_limit(name, value)
    if number == 0:
        raise ValueError(f"{name} must be at least 1: {value!r}")
    return number


def check_labels(name: str, value: object) -> tuple[str, ...]:
    """Names, each kept once."""
    if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__"):
        raise TypeError(f"{name} must be an iterable of str, not {value!r}")
    labels = tuple(dict.fromkeys(value))
    for label in labels:
        if not isinstance(label, str):
            raise TypeError(f"{name} must hold str only, not {label!r}")
        if not label:
            raise ValueError(f"{name} must not hold an empty name")
        if "\0" in label:
            raise ValueError(f"{name} must not hold a name with NUL: {label!r}")
    if len(labels) > MOST_LABELS:
        raise ValueError(f"{name} must hold at most {MOST_LABELS} names")
    return labels


def check_on_fork(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, not {value!r}")
    if value not in ("restart", "stop"):
        raise ValueError(f"{name} must be 'restart' or 'stop', not {value!r}")
    return value


_CHECKS: dict[str, Callable[[str, object], object]] = {
    "track_wall": check_bool,
    "track_cpu": check_bool,
    "track_allocations": check_bool,
    "track_heap": check_bool,
    "track_all": check_bool,
    "heap_sample_bytes": check_limit,
    "record_labels": check_labels,
    "report_interval": check_seconds,
    "heap_snapshot_interval": check_seconds,
    "max_samples": check_limit,
    "max_closed_heap_spans": check_limit,
    "max_nodes": check_positive,
    "max_label_values": check_positive,
    "max_pending_spans": check_positive,
    "publish_thread_context": check_bool,
    "on_fork": check_on_fork,
    "stop_timeout": check_timeout,
}

# Parsers of variables return what they cannot read unchanged: the check of the
# same field then names it.


def _parse_bool(text: str) -> object:
    lower = text.lower()
    if lower in ("1", "true", "yes", "on"):
        return True
    if lower in ("0", "false", "no", "off"):
        return False
    return text


def _parse_int(text: str) -> object:
    try:
        return int(text)
    except ValueError:
        return text


def _parse_float(text: str) -> object:
    try:
        return float(text)
    except ValueError:
        return text


def _parse_list(text: str) -> object:
    return [part for part in map(str.strip, text.split(",")) if part]


_PARSERS: dict[Callable[[str, object], object], Callable[[str], object]] = {
    check_bool: _parse_bool,
    check_seconds: _parse_float,
    check_timeout: _parse_float,
    check_limit: _parse_int,
    check_positive: _parse_int,
    check_labels: _parse_list,
    check_on_fork: str,
}
