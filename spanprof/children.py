"""Children of multiprocessing, which end without running exit handlers.

Those that it forks, or that its fork server does, end by ``os._exit``; what it runs
before that are its own finalizers. It is not imported for that: a process that it has
made has it.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_LAST = -1_000_000
"""After all finalizers of the program, whose spans are to be told."""

_is_known = False
"""To multiprocessing; children inherit both."""
_finalizer: Any = None


def stop_at_end(stop: Callable[[], object]) -> None:
    """Have ``stop`` called at the end of this process if multiprocessing has made it.

    Called whenever a session begins, also in a child: each time there may be more to
    be done. ``stop`` must be a function of a module, and may be called again at exit.
    """
    stop_children_at_end(stop)
    if (
        _is_known
        and sys.modules["multiprocessing.process"].parent_process() is not None
    ):
        _finalize(stop)


def stop_children_at_end(stop: Callable[[], object]) -> None:
    """The same for children that multiprocessing forks from here.

    Called before each fork as well, as it may have been imported since; and in the
    parent rather than in the child, where somebody may compare what is registered.
    """
    global _is_known
    util = sys.modules.get("multiprocessing.util")
    if _is_known or util is None or "multiprocessing.process" not in sys.modules:
        return
    if not hasattr(util, "Finalize"):
        return  # in the middle of being imported
    _is_known = True
    # A child forgets all finalizers when it begins, and then calls this.
    util.register_after_fork(stop, _finalize)


def _finalize(stop: Callable[[], object]) -> None:
    global _finalizer
    if _finalizer is None or not _finalizer.still_active():
        util = sys.modules["multiprocessing.util"]
        _finalizer = util.Finalize(None, stop, exitpriority=_LAST)
