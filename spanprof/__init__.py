"""A span profiler: exact wall time, CPU time and allocations of named spans.

::

    import spanprof

    with spanprof.start(track_all=True) as session:
        with spanprof.span("load", user="a"):
            ...
    print(session.result)

Importing it is quick: what takes time to import (``logging``, ``dataclasses``, the
tables) waits until it is used. There is no module ``__getattr__`` to that end, since
CPython does not specialise ``spanprof.span`` on a module that has one.

PYTEST_DONT_REWRITE: pytest would rewrite the assertions of a package that has a plugin,
and warn where ``spanprof run`` has imported it already.
"""

from ._core import (
    Span,
    SpanAllocations,
    SpanCpuTime,
    SpanHeap,
    SpanMetadata,
    SpanWallTime,
    current_span,
)
from .config import ProfileConfig
from .counters import Stats, stats
from .labelcontext import LabelsBlock, labels
from .native import get_include, get_library, get_pkgconfig
from .profiles import Callsite, Leak, Profile, Sample, TopRow
from .reporters import (
    CallbackReporter,
    FileBackend,
    JsonLinesReporter,
    LogReporter,
    PProfReporter,
    PyroscopeBackend,
    Reporter,
    TableReporter,
)
from .samplers import AlwaysSampler, HeadSampler, ProbabilisticSampler
from .session import (
    ProfileBlock,
    Session,
    flush,
    is_running,
    profile,
    snapshot,
    start,
    stop,
)
from .spans import ClosedSpan

__version__ = "0.1.0"

__all__ = [
    "AlwaysSampler",
    "CallbackReporter",
    "Callsite",
    "ClosedSpan",
    "FileBackend",
    "HeadSampler",
    "JsonLinesReporter",
    "LabelsBlock",
    "Leak",
    "LogReporter",
    "PProfReporter",
    "ProbabilisticSampler",
    "Profile",
    "ProfileBlock",
    "ProfileConfig",
    "PyroscopeBackend",
    "Reporter",
    "Sample",
    "Session",
    "Span",
    "SpanAllocations",
    "SpanCpuTime",
    "SpanHeap",
    "SpanMetadata",
    "SpanWallTime",
    "Stats",
    "TableReporter",
    "TopRow",
    "__version__",
    "current_span",
    "flush",
    "get_include",
    "get_library",
    "get_pkgconfig",
    "is_running",
    "labels",
    "profile",
    "snapshot",
    "span",
    "start",
    "stats",
    "stop",
]

span = Span
