"""The pytest plugin: limits of a test's memory and CPU time, and a fixture to measure.

pytest imports it in every run, by its entry point. It does nothing in a test that has
neither the marker nor the fixture.
"""

from __future__ import annotations

import functools
import gc
import inspect
import re
import sys
from typing import TYPE_CHECKING, NamedTuple

import pytest

from ._core import Span
from .config import ProfileConfig
from .session import is_running, start
from .text import duration, printable, size

# Only what pytest has imported anyway is imported above.

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable
    from types import TracebackType
    from typing import Any, NoReturn, Self

    from .config import ConfigFields
    from .profiles import Profile
    from .session import Session

__all__ = ["Measurement", "SpanprofFixture"]

_ROWS = 10
"""Most rows of the table in a failure."""

_OTHER_SESSION = (
    "needs a session of its own, and one is running already: a fixture, the test, the "
    "test's spanprof marker, a measure() around this one or `spanprof run` started it"
)


# --- hooks --------------------------------------------------------------------------


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "spanprof(max_allocated, max_retained, max_peak, max_cpu): fail the test if it "
        "takes more memory (an int of bytes, or text such as '10 MB') or more CPU time "
        "(seconds, or text such as '200 ms'). All are keywords, each may be left out.",
    )


def pytest_runtest_setup(item: pytest.Item) -> None:
    # A bad marker is told before any fixture runs, as pytest does for skipif.
    if _limits_of(item) and not isinstance(item, pytest.Function):
        _fail(f"{_MARKER} is for functions, and {printable(item.name)} is none")


# Of all wrappers the last is the innermost. An old-style one suits old versions of
# pytest as well; that it must not raise is no harm, as the test's function does.
@pytest.hookimpl(hookwrapper=True, trylast=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    limits = _limits_of(item)
    if not limits or not isinstance(item, pytest.Function):
        yield
        return
    function = item.obj
    item.obj = limited = _limited(item, function, limits)
    # pytest hands methods of a TestCase over to unittest, but not if they are async.
    instance = getattr(function, "__self__", None)
    is_looked_up = inspect.iscoroutinefunction(function) and _is_test_case(instance)
    if is_looked_up:
        setattr(instance, item.name, limited)
    yield
    if is_looked_up:
        delattr(instance, item.name)
    item.obj = function


def _is_test_case(instance: object) -> bool:
    unittest = sys.modules.get("unittest")
    return unittest is not None and isinstance(instance, unittest.TestCase)


# --- the marker ---------------------------------------------------------------------

_MARKER = "@pytest.mark.spanprof"

_SIZES = {
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
}

_TIMES = {
    "ns": 1,
    "us": 10**3,
    "\N{MICRO SIGN}s": 10**3,
    "\N{GREEK SMALL LETTER MU}s": 10**3,  # what Unicode's normal form makes of it
    "ms": 10**6,
    "s": 10**9,
    "min": 60 * 10**9,
}

_FOREVER = 1e15
"""More seconds than anybody means."""

_QUANTITY = re.compile(r"\s*([0-9]{1,15})(?:\.([0-9]{1,15}))?\s*(\w+)\s*")


class _Kind(NamedTuple):
    """What can be limited."""

    series: str
    """The series of a profile to order the table by."""
    value: Callable[[Profile], int]
    """In bytes or ns."""
    track: str
    """The session's setting that measures it, and nothing that is not needed."""
    message: str
    units: dict[str, int]
    """By name, in bytes or ns."""


_KINDS = {
    "max_allocated": _Kind(
        "alloc_space",
        lambda profile: profile.totals["alloc_space"],
        "track_allocations",
        "allocated {}",
        _SIZES,
    ),
    "max_retained": _Kind(
        "inuse_space",
        lambda profile: profile.totals["inuse_space"],
        "track_heap",
        "retained {}",
        _SIZES,
    ),
    "max_peak": _Kind(
        "inuse_peak_space",
        lambda profile: profile.heap_peak,
        "track_heap",
        "peaked at {}",
        _SIZES,
    ),
    "max_cpu": _Kind(
        "cpu",
        lambda profile: profile.totals["cpu"],
        "track_cpu",
        "took {} of CPU time",
        _TIMES,
    ),
}


class _Limit(NamedTuple):
    most: int
    """In bytes or ns."""
    text: str
    """As it was given."""
    quantity: Callable[[int], str]
    """Shows a value in such units as it was given in."""


def _decimal_size(number: int) -> str:
    """Three digits and a unit: ``512 B``, ``1.50 MB``."""
    value, unit = float(number), "B"
    for larger in ("kB", "MB", "GB"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    digits = 0 if unit == "B" or value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f} {unit}"


def _limits_of(item: pytest.Item) -> dict[str, _Limit]:
    """Return the limits that the test's markers give, by name; it fails if one is bad.

    Markers may be on the function, the class and the module: of those that set the
    same limit the nearest holds.
    """
    limits: dict[str, _Limit | None] = {}
    for mark in item.iter_markers("spanprof"):
        if mark.args or not mark.kwargs:
            given = f", not {mark.args[0]!r}" if mark.args else ""
            _fail(f"{_MARKER} takes keywords{given}: {_or(_KINDS)}")
        for name, value in mark.kwargs.items():
            if name not in _KINDS:
                _fail(f"{_MARKER} takes {_or(_KINDS)}, and not {name}")
            limit = None if value is None else _parse(name, value)
            limits.setdefault(name, limit)
    # In the order in which they are documented, whatever that of the markers.
    found = ((name, limits.get(name)) for name in _KINDS)
    return {name: limit for name, limit in found if limit is not None}


def _parse(name: str, value: object) -> _Limit:
    units = _KINDS[name].units
    is_time = units is _TIMES
    show = duration if is_time else _decimal_size
    if isinstance(value, str):
        match = _QUANTITY.fullmatch(value)
        if match and match[3] in units:
            # In whole numbers: 4.35 * 1000 is less than 4350.
            fraction = match[2] or ""
            digits = int(match[1] + fraction)
            most = digits * units[match[3]] // 10 ** len(fraction)
            is_binary = match[3].endswith("iB")
            return _Limit(most, value.strip(), size if is_binary else show)
    elif not isinstance(value, bool):
        if is_time and isinstance(value, (int, float)) and 0 <= value < _FOREVER:
            return _Limit(round(value * 10**9), f"{value} s", show)
        if not is_time and isinstance(value, int) and value >= 0:
            return _Limit(value, f"{value:,} B", show)
    number, example = (
        ("a number of seconds", "200 ms") if is_time else ("an int of bytes", "10 MB")
    )
    return _fail(
        f"{_MARKER}: {name} must be {number} or text with one of the units "
        f'{_or(units)}, such as "{example}", not {value!r}'
    )


def _or(names: Iterable[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} or {last}"


def _fail(message: str) -> NoReturn:
    pytest.fail(message, pytrace=False)


def _limited(
    item: pytest.Function, function: Callable[..., Any], limits: dict[str, _Limit]
) -> Callable[..., Any]:
    """Return ``function``, but failing when it goes over the limits."""
    name = printable(item.name)
    fields: ConfigFields = {}
    for limit in limits:
        fields[_KINDS[limit].track] = True  # type: ignore[literal-required]

    def begin() -> _Run:
        if is_running():
            _fail(f"{name}: {_MARKER} {_OTHER_SESSION}")
        return _Run(_MARKER, fields, collects="max_retained" in limits)

    def end(run: _Run) -> None:
        if run.was_stopped:
            _fail(f"{name} stopped the session that {_MARKER} measures it in")
        _check(item, limits, run.profile)

    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def limited(*args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            span = Span(item.name)
            with begin() as run:
                # Entered by a function that is none, the span stays on the thread when
                # this coroutine is suspended: what the test waits for counts.
                _enter(span)
                try:
                    result = await function(*args, **kwargs)
                finally:
                    span.__exit__(None, None, None)
            end(run)
            return result

    else:

        @functools.wraps(function)
        def limited(*args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            # A decorated function shows in the table with its own place.
            spanned = Span(item.name)(function)
            with begin() as run:
                result = spanned(*args, **kwargs)
            end(run)
            return result

    return limited


def _enter(span: Span) -> None:
    span.__enter__()


def _check(item: pytest.Function, limits: dict[str, _Limit], profile: Profile) -> None:
    """Fail with all limits that were exceeded; else add what was used to the report."""
    lines = []
    exceeded = []
    for name, limit in limits.items():
        kind = _KINDS[name]
        used = kind.value(profile)
        line = kind.message.format(limit.quantity(used))
        line = f"{printable(item.name)} {line}, limit {limit.text}"
        if used > limit.most:
            line += f" ({limit.quantity(used - limit.most)} over)"
            exceeded.append((name, line))
        lines.append(line)
    if not exceeded:
        item.add_report_section("call", "spanprof", "\n".join(lines))
        return
    from .table import render

    table = render(profile.tree, sort=_KINDS[exceeded[0][0]].series, limit=_ROWS)
    _fail("\n".join([*(line for _, line in exceeded), "", table]))


# --- the fixture --------------------------------------------------------------------


class Measurement:
    """What a block of code used; :meth:`SpanprofFixture.measure` makes it.

    Its values are of all spans of the block, on all threads; they can be read after the
    end of the block, before it is RuntimeError.
    """

    def __init__(self, name: str) -> None:
        self._span = Span(name)
        self._run: _Run | None = None

    @property
    def allocated(self) -> int:
        """Bytes of all allocations, also of memory that was freed again."""
        return self.profile.totals["alloc_space"]

    @property
    def allocations(self) -> int:
        """The number of allocations."""
        return self.profile.totals["alloc_objects"]

    @property
    def retained(self) -> int:
        """Bytes that the block allocated and that were in use at its end, after a
        garbage collection. What its local variables hold is in use."""
        return self.profile.totals["inuse_space"]

    @property
    def peak(self) -> int:
        """The most bytes that the block had in use at any time."""
        return self.profile.heap_peak

    @property
    def cpu(self) -> float:
        """Seconds of CPU time, user and system."""
        return self.profile.totals["cpu"] / 10**9

    @property
    def profile(self) -> Profile:
        """All values, by span."""
        if self._run is None or self._run.final is None:
            raise RuntimeError("the block has not ended yet")
        return self._run.final

    def __enter__(self) -> Self:
        if self._run is not None:
            raise RuntimeError("a block of measure() can be entered only once")
        if is_running():
            raise RuntimeError(f"measure() {_OTHER_SESSION}")
        self._run = _Run(
            "measure()", {"track_cpu": True, "track_heap": True}, collects=True
        )
        self._run.__enter__()
        self._span.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._span.__exit__(None, None, None)
        assert self._run is not None
        self._run.__exit__(kind, error, traceback)
        if self._run.was_stopped and error is None:
            raise RuntimeError("the block stopped the session that measure() started")

    def __repr__(self) -> str:
        if self._run is None or self._run.final is None:
            return f"<{type(self).__name__}, not ended>"
        return (
            f"<{type(self).__name__}: allocated {size(self.allocated)}, "
            f"retained {size(self.retained)}, peak {size(self.peak)}, "
            f"cpu {duration(self.profile.totals['cpu'])}>"
        )


class SpanprofFixture:
    """The ``spanprof`` fixture."""

    span = Span
    """As in the module, which the fixture hides from a test that has both."""

    def measure(self, name: str = "measure") -> Measurement:
        """Measure a block: ``with spanprof.measure() as m: ...``, and then ``m.peak``.

        The block runs in a span of that name, and in a session of its own: RuntimeError
        if one runs already, as in a test with the marker or in another block.
        """
        return Measurement(name)


@pytest.fixture(name="spanprof")
def _spanprof() -> SpanprofFixture:
    """Measure parts of a test: ``with spanprof.measure() as m: ...; m.retained``."""
    return SpanprofFixture()


# --- both ---------------------------------------------------------------------------


_CLASHES = ("a session is already running", "the running session does not")
"""What spanprof says to code that wants a session, or more of one than it tracks."""


class _Run:
    """A session for one block of code, whose span others open."""

    def __init__(self, owner: str, fields: ConfigFields, *, collects: bool) -> None:
        self._owner = owner
        self._fields = fields
        self._collects = collects
        self._session: Session | None = None
        self.was_stopped = False
        """By the block, and not by its end."""
        self.final: Profile | None = None

    @property
    def profile(self) -> Profile:
        assert self.final is not None
        return self.final

    def __enter__(self) -> Self:
        # Children of the test's process are not part of what is measured.
        self._session = start(ProfileConfig(on_fork="stop"), **self._fields)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        session = self._session
        assert session is not None
        self.was_stopped = not session.is_running
        if self._collects and error is None:
            gc.collect()
        session.stop()
        self.final = session.result
        if isinstance(error, RuntimeError) and str(error).startswith(_CLASHES):
            tracked = ", ".join(session.config.tracked)
            error.add_note(
                f"{self._owner} runs this in a session of its own, which tracks "
                f"{tracked}."
            )
