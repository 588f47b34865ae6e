"""What the tests need of an event loop, and a loop of a page that does nothing else."""

import contextvars
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any

Main = Coroutine[Any, Any, None]


class Boom(Exception):
    """What programs raise and catch."""


class Cancelled(BaseException):
    """What the bare loop cancels with."""


class Actor:
    """A task or thread that takes turns."""

    def __init__(self) -> None:
        self.state = "running"
        """running, waiting (for its next turn), blocked (by a thread) or done."""
        self.takes_throws = True
        """Below 3.14 only a part of a chain that has an async generator in it is
        resumed when an exception is thrown into the chain."""
        self.handle: Any = None
        """The loop's own: what it waits for, or is cancelled by."""


class Loop(ABC):
    """All but `run` is called inside it."""

    name: str
    has_contexts = True
    """Whether a task runs in a copy of the context it was started in."""

    @abstractmethod
    def run(self, main: Callable[[], Main]) -> None: ...

    @abstractmethod
    def spawn(self, actor: Actor, function: Callable[[], Main]) -> None:
        """Start a task. It ends when it raises Boom, or is cancelled."""

    @abstractmethod
    def turn(self, actor: Actor) -> Awaitable[None]:
        """Wait for `go`, `throw` or `cancel`."""

    @abstractmethod
    def go(self, actor: Actor) -> None: ...

    @abstractmethod
    def throw(self, actor: Actor) -> None:
        """Have it go on with a Boom."""

    @abstractmethod
    def cancel(self, actor: Actor) -> None: ...

    @abstractmethod
    def pause(self) -> Awaitable[None]:
        """Let the others run."""

    @abstractmethod
    def to_thread(self, function: Callable[[], None]) -> Awaitable[None]:
        """Run it on another thread, in a copy of the context."""


class Bare:
    """The plainest awaitable: whoever drives the coroutine says how it goes on."""

    def __init__(self, value: object = None) -> None:
        self.value = value

    def __await__(self) -> Generator[object, None, None]:
        yield self.value


class BareLoop(Loop):
    """Moves coroutines by send() and throw(), each in a context of its own."""

    name = "bare"

    def run(self, main: Callable[[], Main]) -> None:
        self.ready: deque[tuple[contextvars.Context, Main, BaseException | None]]
        self.ready = deque()
        self.start(main())
        try:
            self.move_all(self.ready[0][1])
        finally:
            for _, coroutine, _ in self.ready:
                coroutine.close()

    def move_all(self, last: Main) -> None:
        while True:
            context, coroutine, error = self.ready.popleft()
            self.current = context, coroutine
            try:
                self.step(context, coroutine, error)
            except StopIteration:
                if coroutine is last:
                    return

    def step(
        self,
        context: contextvars.Context,
        coroutine: Main,
        error: BaseException | None,
    ) -> None:
        if error is None:
            context.run(coroutine.send, None)
        else:
            context.run(coroutine.throw, error)

    def start(self, coroutine: Main) -> None:
        self.ready.append((contextvars.copy_context(), coroutine, None))

    def spawn(self, actor: Actor, function: Callable[[], Main]) -> None:
        async def run() -> None:
            try:
                await function()
            except (Boom, Cancelled):
                pass
            finally:
                actor.state = "done"

        self.start(run())

    async def turn(self, actor: Actor) -> None:
        actor.handle = self.current
        await Bare()

    def go(self, actor: Actor) -> None:
        self.ready.append((*actor.handle, None))

    def throw(self, actor: Actor) -> None:
        self.ready.append((*actor.handle, Boom()))

    def cancel(self, actor: Actor) -> None:
        self.ready.append((*actor.handle, Cancelled()))

    async def pause(self) -> None:
        self.ready.append((*self.current, None))
        await Bare()

    async def to_thread(self, function: Callable[[], None]) -> None:
        who = self.current
        errors: list[BaseException] = []

        def run() -> None:
            try:
                copy.run(function)
            except BaseException as error:
                errors.append(error)
            self.ready.append((*who, *errors, None)[:3])  # type: ignore[arg-type]

        copy = contextvars.copy_context()
        thread = threading.Thread(target=run)
        thread.start()
        try:
            await Bare()
        finally:
            thread.join()


class OneContextLoop(BareLoop):
    """Like those from before there were contexts: all tasks run in the thread's."""

    name = "bare, one context"
    has_contexts = False

    def step(
        self,
        context: contextvars.Context,
        coroutine: Main,
        error: BaseException | None,
    ) -> None:
        if error is None:
            coroutine.send(None)
        else:
            coroutine.throw(error)
