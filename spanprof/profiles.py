"""Profiles: the values of all spans, cumulative or between two moments."""

from __future__ import annotations

import os
from functools import cached_property

from . import _core
from .atomicfile import write_file
from .calltree import (
    SERIES,
    Callsite,
    CallsiteCache,
    CallTree,
    build,
    by_callsite,
    choose_series,
    sum_all,
)
from .text import count, duration, printable, quantity

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import NamedTuple
else:
    from .lightnamedtuple import NamedTuple

__all__ = ["Callsite", "Leak", "Profile", "Sample", "TopRow"]


class Sample(NamedTuple):
    """The values of one stack of spans."""

    stack: tuple[Callsite, ...]
    """The span itself first, its outermost ancestor last."""

    labels: Mapping[str, str]
    """Recorded labels of all spans in the stack; of equal names, the innermost."""

    values: Mapping[str, int]
    """Self values by series, of the kinds that were measured: times in ns, sizes in
    bytes."""


class TopRow(NamedTuple):
    """All spans of one callsite, in a ranking."""

    callsite: Callsite
    calls: int
    """How many spans there were."""
    self_value: int
    """Without the spans nested inside."""
    total: int
    """With them. What a recursive callsite takes is counted once."""
    unit: str
    """Of both values: ``nanoseconds``, ``bytes`` or ``count``."""

    def __str__(self) -> str:
        own = quantity(self.self_value, self.unit)
        total = quantity(self.total, self.unit)
        name = printable(str(self.callsite))
        return f"{name}: {own} self, {total} total, {count(self.calls)} calls"


class Leak(NamedTuple):
    """A stack of spans whose old memory becomes more and more."""

    stack: tuple[Callsite, ...]
    """The span itself first, its outermost ancestor last."""

    labels: Mapping[str, str]
    """Recorded labels of all spans in the stack; of equal names, the innermost."""

    space: int
    """Bytes in use that are old."""

    reports: int
    """How many reports in a row found more of them than the one before; at most 255."""

    def __str__(self) -> str:
        labels = "".join(f"  {name}={value}" for name, value in self.labels.items())
        path = " > ".join(str(callsite) for callsite in reversed(self.stack))
        return printable(
            f"{path}{labels}: {quantity(self.space, 'bytes')}, "
            f"grown {count(self.reports)} times in a row"
        )


class Profile:
    """The values of all spans in a stretch of time. Immutable; for any thread.

    Profiles come from :func:`spanprof.snapshot`, from sessions and their reports
    and from files. ``a + b`` adds the values of equal stacks; ``later - earlier``
    is what came between two snapshots of one session.
    """

    def __init__(
        self, data: _core.ProfileData, *, labels_on_leaves: bool = False
    ) -> None:
        if not isinstance(data, _core.ProfileData):
            raise TypeError("profiles come from sessions, snapshots and files")
        self._data = data
        self._labels_on_leaves = labels_on_leaves

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Profile:
        """Read a pprof file that spanprof wrote.

        Raises OSError if it cannot be read, and ValueError if it is no such file.
        """
        with open(path, "rb") as file:
            data = file.read()
        try:
            return cls(_core.ProfileData.from_pprof(data), labels_on_leaves=True)
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)}: {error}") from None

    @property
    def start(self) -> int:
        """Unix time in ns at which the values begin."""
        return self._data.start_ns

    @property
    def duration(self) -> int:
        """Length of the time that the values are of, in ns."""
        return self._data.duration_ns

    @property
    def kinds(self) -> tuple[str, ...]:
        """What was measured: of ``calls``, ``wall``, ``cpu``, ``alloc``, ``heap``."""
        return self._data.kinds

    @cached_property
    def samples(self) -> list[Sample]:
        """Every stack that has values."""
        series = [each for each in SERIES.values() if each.kind in self.kinds]
        return [
            Sample(stack, dict(labels), {each.name: each.of(values) for each in series})
            for stack, labels, values in self._stacks()
            if any(values)
        ]

    def _stacks(
        self,
    ) -> Iterator[tuple[tuple[Callsite, ...], Mapping[str, str], tuple[int, ...]]]:
        """Every node's stack, labels and values, in the order of the nodes."""
        callsites = CallsiteCache()
        stacks: list[tuple[Callsite, ...]] = []
        labels: list[Mapping[str, str]] = []
        for parent, number, own, values in self._data.nodes():
            above = stacks[parent] if parent >= 0 else ()
            stacks.append((callsites[number], *above))
            inherited = labels[parent] if parent >= 0 else {}
            labels.append({**inherited, **dict(own)} if own else inherited)
            yield stacks[-1], labels[-1], values

    @cached_property
    def totals(self) -> dict[str, int]:
        """The sum over all stacks of each series that was measured."""
        whole = sum_all(values for _, _, _, values in self._data.nodes())
        return {
            each.name: each.of(whole)
            for each in SERIES.values()
            if each.kind in self.kinds
        }

    @property
    def heap_peak(self) -> int:
        """The most bytes that all spans together had in use at any time.

        The peaks of single stacks, ``inuse_peak_space``, need not have been at the same
        time, and add up to more. 0 if live heap was not tracked, or in a file.
        """
        return self._data.heap_peak

    def leaks(self, min_age: float = 60.0, *, reports: int = 2) -> list[Leak]:
        """Return the stacks whose old memory keeps growing, the largest first.

        A cache fills up and stays; a leak has more old bytes each time one looks.
        ``min_age`` is what counts as old, in seconds, rounded up to the next of 0, 1,
        10, 60, 600 and 3600. Listed is what had more bytes in use of that age at each
        of the last ``reports`` reports of the session than at the one before; without
        reporters, snapshots take the place of reports. Looks that are closer together
        than a quarter of ``min_age`` count as one. What growth is made of is in the
        profiles of a running session; profiles from files and differences have none,
        and the answer is empty.
        """
        if isinstance(min_age, bool) or not isinstance(min_age, (int, float)):
            raise TypeError(f"min_age must be a number of seconds, not {min_age!r}")
        if not 0 <= min_age <= _core.AGE_LIMITS[-1]:
            raise ValueError(
                f"min_age must be between 0 and {_core.AGE_LIMITS[-1]}: {min_age!r}"
            )
        if isinstance(reports, bool) or not isinstance(reports, int):
            raise TypeError(f"reports must be an int, not {reports!r}")
        if not 1 <= reports <= 255:
            raise ValueError(f"reports must be between 1 and 255: {reports!r}")
        first = next(n for n, limit in enumerate(_core.AGE_LIMITS) if min_age <= limit)
        found = []
        ages = self._data.ages()
        for (stack, labels, _), (space, growing) in zip(
            self._stacks() if ages else (), ages or (), strict=True
        ):
            old = sum(space[first:])
            if old > 0 and growing[first] >= reports:
                found.append(Leak(stack, dict(labels), old, growing[first]))
        return sorted(found, key=lambda leak: (-leak.space, leak.stack))

    @cached_property
    def _length(self) -> int:
        return sum(any(values) for _, _, _, values in self._data.nodes())

    def __len__(self) -> int:
        """The number of samples."""
        return self._length

    def to_pprof(self, kind: str) -> bytes:
        """Return a gzip-compressed pprof profile of one of the :attr:`kinds`."""
        if kind not in self.kinds:
            raise ValueError(
                f"kind must be one of {', '.join(self.kinds)}, not {kind!r}"
            )
        return self._data.to_pprof(kind)

    def write(self, path: str | os.PathLike[str], kind: str | None = None) -> None:
        """Write a pprof file of one kind, with mode 0600, as a whole or not at all.

        ``kind`` may be left out if one only was measured besides the calls.
        Otherwise that raises ValueError; what the file system refuses, OSError.
        """
        if kind is None:
            measured = [each for each in self.kinds if each != "calls"] or ["calls"]
            if len(measured) > 1:
                raise ValueError(
                    "a file holds one kind: pass kind=, one of " + ", ".join(self.kinds)
                )
            kind = measured[0]
        write_file(path, self.to_pprof(kind))

    def __add__(self, other: object) -> Profile:
        return self._merge(other, 1) if isinstance(other, Profile) else NotImplemented

    def __sub__(self, other: object) -> Profile:
        return self._merge(other, -1) if isinstance(other, Profile) else NotImplemented

    def _merge(self, other: Profile, sign: int) -> Profile:
        return Profile(
            self._data.merge(other._data, sign),
            labels_on_leaves=self._labels_on_leaves or other._labels_on_leaves,
        )

    def __eq__(self, other: object) -> bool:
        """Whether both hold the same values of the same stacks and time."""
        if not isinstance(other, Profile):
            return NotImplemented
        return (
            (self.start, self.duration, self.kinds)
            == (other.start, other.duration, other.kinds)
        ) and self._by_stack() == other._by_stack()

    __hash__ = None  # type: ignore[assignment]

    def _by_stack(self) -> dict[object, dict[str, int]]:
        result: dict[object, dict[str, int]] = {}
        for sample in self.samples:
            key = sample.stack, frozenset(sample.labels.items())
            known = result.get(key, {})
            result[key] = {
                name: known.get(name, 0) + value
                for name, value in sample.values.items()
            }
        return result

    @cached_property
    def tree(self) -> CallTree:
        """The samples as a tree, for tables."""
        return build(self._data, labels_on_leaves=self._labels_on_leaves)

    def top(
        self, n: int = 10, by: str | None = None, *, cumulative: bool = False
    ) -> list[TopRow]:
        """Return the ``n`` heaviest callsites by their own values.

        ``by`` is the name of a series, such as ``wall``, ``cpu``, ``alloc_space`` or
        ``calls``; without it, the first of these that was measured. With
        ``cumulative``, those come first that are heaviest with all that is nested
        inside.
        """
        if isinstance(n, bool) or not isinstance(n, int):
            raise TypeError(f"n must be an int, not {n!r}")
        if n < 0:
            raise ValueError(f"n must not be negative: {n!r}")
        series = SERIES[choose_series(self.kinds, by)]
        calls = SERIES["calls"]
        rows = [
            TopRow(
                callsite,
                calls.of(values),
                series.of(values),
                series.of(total),
                series.unit,
            )
            for callsite, values, total in by_callsite(self.tree)
        ]
        if cumulative:
            rows.sort(key=lambda row: (-row.total, -row.self_value, row.callsite))
        else:
            rows.sort(key=lambda row: (-row.self_value, -row.total, row.callsite))
        return rows[:n]

    def __str__(self) -> str:
        """The spans as a tree, heaviest first, fitting the terminal if there is one."""
        from . import table

        return table.render(self.tree)

    def __repr__(self) -> str:
        from datetime import UTC, datetime

        began = datetime.fromtimestamp(self.start // 10**9, UTC)
        return (
            f"<spanprof.Profile of {duration(self.duration)} from "
            f"{began:%Y-%m-%d %H:%M:%S} UTC: {', '.join(self.kinds)} "
            f"of {count(len(self))} stacks>"
        )
