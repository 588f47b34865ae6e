"""Spans around the steps of coroutines and generators: what ``@spanprof.span("x")``
makes of a function whose call runs nothing of its body yet.

The result is a real function of the same kind, so that its results are real coroutines
and generators: asyncio, trio, ``inspect`` and all who look find what they would without
the span. Its body is a ``with`` around the steps of the wrapped one, all of which are
passed on: values, exceptions, the end.

Imported when the first such function is decorated.
"""

from __future__ import annotations

import functools
import sys
import types
from inspect import (
    CO_ASYNC_GENERATOR,
    CO_COROUTINE,
    CO_GENERATOR,
    CO_ITERABLE_COROUTINE,
    iscoroutinefunction,
)

from ._core import session_is_running, steps_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        Awaitable,
        Callable,
        Coroutine,
        Generator,
    )
    from types import AsyncGeneratorType, GeneratorType
    from typing import Any

    from ._core import CallSpans

    Function = Callable[..., Any]


# What is yielded or thrown must not stay in a local: that would keep the one while the
# consumer works, and make a cycle of the other, its traceback and the frame. So they
# wait in lists, and are taken out of them.


def _held(error: BaseException) -> list[BaseException]:
    """What was thrown in, as it was before it came by here."""
    traceback = error.__traceback__
    error.__traceback__ = traceback.tb_next if traceback is not None else None
    return [error]


def _of_generator(
    function: Callable[..., GeneratorType[Any, Any, Any]], spans: CallSpans
) -> Callable[..., Generator[Any, Any, Any]]:
    def generator(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        steps = function(*args, **kwargs)
        with spans(steps):
            try:
                return (yield from steps_of(steps))
            except GeneratorExit as error:
                if steps.gi_frame is None:  # it has ended, with this
                    raise
                thrown = _held(error)
            # It may yield once more nevertheless, or return.
            sent = None
            while True:
                try:
                    if thrown:
                        yielded = [steps.throw(thrown.pop())]
                    else:
                        yielded = [steps.send(sent)]
                except StopIteration as end:
                    return end.value
                try:
                    sent = yield yielded.pop()
                except BaseException as error:
                    thrown = _held(error)

    return generator


def _of_coroutine(
    function: Callable[..., Coroutine[Any, Any, Any]], spans: CallSpans
) -> Callable[..., Coroutine[Any, Any, Any]]:
    async def coroutine(*args: Any, **kwargs: Any) -> Any:
        if not session_is_running():
            return await function(*args, **kwargs)
        steps = function(*args, **kwargs)
        with spans(steps):
            return await steps

    return coroutine


def _of_awaitable(
    function: Callable[..., Awaitable[Any]], spans: CallSpans
) -> Callable[..., Coroutine[Any, Any, Any]]:
    async def coroutine(*args: Any, **kwargs: Any) -> Any:
        with spans(None):
            return await function(*args, **kwargs)

    return coroutine


def _of_async_generator(
    function: Callable[..., AsyncGeneratorType[Any, Any]], spans: CallSpans
) -> Callable[..., AsyncGenerator[Any, Any]]:
    async def async_generator(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        steps = function(*args, **kwargs)
        send = steps.asend
        sent = None
        thrown: list[BaseException] | None = None
        with spans(steps):
            while True:
                try:
                    if thrown:
                        sent = yield await steps.athrow(thrown.pop())
                    else:
                        sent = yield await send(sent)
                except BaseException as error:
                    if steps.ag_frame is not None and not steps.ag_running:
                        thrown = _held(error)  # it has yielded: this is from outside
                    elif isinstance(error, StopAsyncIteration):
                        return
                    else:
                        raise

    return async_generator


def _innermost(function: Function) -> Function:
    """The function that has the body: below methods, partials and our own wrappers."""
    while True:
        if isinstance(function, types.MethodType):
            function = function.__func__
        elif isinstance(function, functools.partial):
            function = function.func
        elif not isinstance(function, types.FunctionType):
            call = getattr(type(function), "__call__", None)  # noqa: B004
            if not isinstance(call, types.FunctionType):
                return function
            function = call
        elif function.__code__.co_filename == __file__:
            function = function.__wrapped__  # type: ignore[attr-defined]
        else:
            return function


def _flags(function: Function) -> int:
    return function.__code__.co_flags if isinstance(function, types.FunctionType) else 0


def is_marked(function: Function) -> bool:
    """Whether it says that it is as good as a coroutine function."""
    mark = getattr(sys.modules.get("asyncio.coroutines"), "_is_coroutine", None)
    if mark is not None and getattr(function, "_is_coroutine", None) is mark:
        return True
    return iscoroutinefunction(function)


def _wrap(function: Function, flags: int, spans: CallSpans) -> Function:
    if flags & CO_COROUTINE:
        return _of_coroutine(function, spans)
    if flags & CO_ASYNC_GENERATOR:
        return _of_async_generator(function, spans)
    if flags & CO_ITERABLE_COROUTINE:
        return types.coroutine(_of_generator(function, spans))
    if flags & CO_GENERATOR:
        return _of_generator(function, spans)
    return _of_awaitable(function, spans)


def decorate(function: Function, spans: CallSpans) -> Function:
    """Called by the core, for functions that it knows to be of one of these kinds."""
    innermost = _innermost(function)
    spans.of_function(innermost)
    wrapper = _wrap(function, _flags(innermost), spans)
    # What has no name of its own goes by that of the function which runs.
    for attribute in ("__name__", "__qualname__"):
        name = getattr(innermost, attribute, spans.name)
        setattr(wrapper, attribute, name)
    return functools.update_wrapper(wrapper, function)
