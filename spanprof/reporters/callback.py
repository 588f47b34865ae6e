"""A reporter made of functions."""

from __future__ import annotations

from .base import METHODS, Reporter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class CallbackReporter(Reporter):
    """Calls functions in place of a reporter's methods, by their names.

    ``CallbackReporter(profile=show, flush=queue.join)`` calls ``show(profile)`` at each
    report, then ``queue.join()``. What is not given costs nothing. TypeError for a name
    that is no method of :class:`Reporter`, and for what cannot be called.
    """

    def __init__(self, **functions: Callable[..., Any]) -> None:
        if not functions:
            raise TypeError("at least one function is needed, such as profile=print")
        for name, function in functions.items():
            if name not in METHODS:
                raise TypeError(
                    f"{name!r} is no method of a reporter: {', '.join(METHODS)}"
                )
            if not callable(function):
                raise TypeError(f"{name} must be a function, not {function!r}")
            setattr(self, name, function)
        self._names = tuple(functions)

    def __repr__(self) -> str:
        return f"CallbackReporter({', '.join(self._names)})"
