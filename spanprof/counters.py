"""Counters: what the profiler did, and everything that it could not do."""

from __future__ import annotations

import _thread
from collections.abc import Mapping

from . import _core

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    Counters = Mapping[str, Any]
else:
    Counters = Mapping

# Counters of the Python front end; those of the core come from the core.
_lock = _thread.allocate_lock()
_counts = {
    "reporter_errors": 0,  # exceptions raised by reporters
    "sampler_errors": 0,  # exceptions raised by samplers
    "reporter_timeouts": 0,  # stops that did not wait for a reporter any longer
    "alloc_hooks_lost": 0,  # times that others had taken our allocation hooks out
    "profiles_written": 0,  # profiles handed to a backend, one kind each
    "write_retries": 0,  # tries at that after a first one had failed
    "write_failures": 0,  # profiles given up after the last try
    "profiles_dropped": 0,  # profiles that a backend kept for later, and gave up
    "profiles_refused": 0,  # profiles that a server did not want
    "delete_failures": 0,  # old files that could not be deleted
}


def count(name: str, number: int = 1) -> None:
    """Add to a counter. Any thread."""
    with _lock:
        _counts[name] += number


def relock_in_child() -> None:
    """After a fork: the lock may be held by a thread that is no more."""
    global _lock
    _lock = _thread.allocate_lock()


class Stats(Counters):
    """The counters at one moment: ``stats.misnested`` or ``stats["misnested"]``.

    Numbers are counted since the process began, over all sessions.
    """

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, int | str | bool]) -> None:
        self._values = dict(values)

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # copy and pickle look before there are values
            raise AttributeError(name)
        try:
            return self._values[name]
        except KeyError:
            raise AttributeError(f"there is no counter {name!r}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._values})

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={value!r}" for name, value in self.items())
        return f"Stats({values})"

    def __str__(self) -> str:
        width = max(map(len, self._values), default=0)
        return "\n".join(
            f"{name:<{width}}  {value:,}"
            if isinstance(value, int) and not isinstance(value, bool)
            else f"{name:<{width}}  {value}"
            for name, value in self._values.items()
        )


def stats() -> Stats:
    """Return all counters. Any thread, whether or not a session runs."""
    with _lock:
        counts = dict(_counts)
    return Stats(_core.stats() | counts)
