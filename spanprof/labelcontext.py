"""Labels for all spans that are opened in a block: :func:`spanprof.labels`."""

from __future__ import annotations

from types import MappingProxyType

from . import _core

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from types import TracebackType
    from typing import ParamSpec, Self, TypeVar

    P = ParamSpec("P")
    R = TypeVar("R")


class LabelsBlock:
    """A block whose spans inherit labels; :func:`labels` makes it.

    A context manager that can be entered any number of times, also while it is entered
    and on several threads, and a decorator of functions and coroutine functions.
    """

    __slots__ = ("_labels",)

    def __init__(self, labels: dict[str, object]) -> None:
        self._labels = labels

    @property
    def labels(self) -> Mapping[str, object]:
        """The block's own labels, read-only."""
        return MappingProxyType(self._labels)

    def __enter__(self) -> Self:
        _core.labels_enter(self, self._labels)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _core.labels_exit(self)

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        # Imported late, like all that not every program has a use for.
        import inspect
        from functools import wraps

        if isinstance(function, type):
            raise TypeError("labels() cannot decorate a class; decorate its methods")
        if not callable(function):
            raise TypeError(f"labels() decorates a function, not {function!r}")
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(
            function
        ):
            raise TypeError(
                f"labels() cannot decorate a generator function ({function!r}): its "
                "labels would be its caller's while it is suspended"
            )
        if inspect.iscoroutinefunction(function):
            coroutine_function: Callable[P, Awaitable[object]] = function

            @wraps(function)
            async def run_async(*args: P.args, **kwargs: P.kwargs) -> object:
                with self:
                    return await coroutine_function(*args, **kwargs)

            return run_async  # type: ignore[return-value]

        @wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            with self:
                return function(*args, **kwargs)

        return run

    def __repr__(self) -> str:
        labels = ", ".join(f"{name}={value!r}" for name, value in self._labels.items())
        return f"spanprof.labels({labels})"


def labels(**labels: object) -> LabelsBlock:
    """Give labels to all spans that are opened in a block, in whatever function::

        with spanprof.labels(tenant="a"):
            handle(request)

    Tasks that are started in the block inherit them, and so does all that runs in a
    copy of its context (``asyncio.to_thread``); a bare thread does not. A span's own
    label wins over an inherited one of the same name, and an inner block's over an
    outer one's.

    As with a span's own labels, any value is accepted, and those are recorded whose
    names the session records (``record_labels``). The text of an inherited one is taken
    once in a session, when the first span needs it.
    """
    return LabelsBlock(labels)
