"""A span profiler: exact wall time, CPU time and allocations of named spans.

::

    import spanprof

    with spanprof.start(track_all=True) as session:
        with spanprof.span("load", user="a"):
            ...
    print(session.result)

Importing this package loads the C core and nothing else. All other names come in
when they are first used, so that a library may import spanprof for its spans at no
cost to programs that do not profile.
"""

from ._core import Span, current_span

# Spelled out, as importing ``typing`` costs several milliseconds. Type checkers
# know the name.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from .config import ProfileConfig
    from .counters import Stats, stats
    from .profiles import Callsite, Profile, Sample, TopRow
    from .reporters import FileBackend, PProfReporter, Reporter
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

__version__ = "0.1.0"

__all__ = [
    "Callsite",
    "FileBackend",
    "PProfReporter",
    "Profile",
    "ProfileBlock",
    "ProfileConfig",
    "Reporter",
    "Sample",
    "Session",
    "Span",
    "Stats",
    "TopRow",
    "__version__",
    "current_span",
    "flush",
    "is_running",
    "profile",
    "snapshot",
    "span",
    "start",
    "stats",
    "stop",
]

span = Span

# Where each name that is not loaded yet lives. No module may have the name of
# something public: importing it would put the module in its place.
_MODULE_OF = {
    "Callsite": "profiles",
    "FileBackend": "reporters",
    "PProfReporter": "reporters",
    "Profile": "profiles",
    "ProfileBlock": "session",
    "ProfileConfig": "config",
    "Reporter": "reporters",
    "Sample": "profiles",
    "Session": "session",
    "Stats": "counters",
    "TopRow": "profiles",
    "flush": "session",
    "is_running": "session",
    "profile": "session",
    "snapshot": "session",
    "start": "session",
    "stats": "counters",
    "stop": "session",
}


def __getattr__(name: str) -> object:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__} - {"TYPE_CHECKING"})
