"""asyncio, with its own loop and with uvloop's."""

import asyncio
from collections.abc import Callable

import pytest

from .loops import Actor, Boom, Loop, Main


class AsyncioLoop(Loop):
    name = "asyncio"

    def new_loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.new_event_loop()

    def run(self, main: Callable[[], Main]) -> None:
        self.tasks: set[asyncio.Task[None]] = set()
        with asyncio.Runner(loop_factory=self.new_loop) as runner:
            runner.run(main())

    def spawn(self, actor: Actor, function: Callable[[], Main]) -> None:
        async def run() -> None:
            try:
                await function()
            except (Boom, asyncio.CancelledError):
                pass
            finally:
                actor.state = "done"

        task = asyncio.create_task(run())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def turn(self, actor: Actor) -> None:
        task = asyncio.current_task()
        actor.handle = task, asyncio.get_running_loop().create_future()
        await actor.handle[1]

    def go(self, actor: Actor) -> None:
        actor.handle[1].set_result(None)

    def throw(self, actor: Actor) -> None:
        actor.handle[1].set_exception(Boom())

    def cancel(self, actor: Actor) -> None:
        actor.handle[0].cancel()

    async def pause(self) -> None:
        await asyncio.sleep(0)

    async def to_thread(self, function: Callable[[], None]) -> None:
        await asyncio.to_thread(function)


class UvloopLoop(AsyncioLoop):
    name = "uvloop"

    def __init__(self) -> None:
        self.uvloop = pytest.importorskip("uvloop", reason="uvloop is not installed")

    def new_loop(self) -> asyncio.AbstractEventLoop:
        return self.uvloop.new_event_loop()  # type: ignore[no-any-return]
