"""trio, and anyio on trio and on asyncio."""

from collections.abc import Callable
from typing import Any

import pytest

from .loops import Actor, Boom, Loop, Main


class TrioLoop(Loop):
    name = "trio"

    def __init__(self) -> None:
        self.trio = pytest.importorskip("trio", reason="trio is not installed")

    def run(self, main: Callable[[], Main]) -> None:
        async def run() -> None:
            async with self.trio.open_nursery() as self.nursery:
                await main()
                self.nursery.cancel_scope.cancel()

        self.trio.run(run)

    def spawn(self, actor: Actor, function: Callable[[], Main]) -> None:
        async def run() -> None:
            try:
                with self.trio.CancelScope() as actor.handle:
                    await function()
            except Boom:
                pass
            finally:
                actor.state = "done"

        self.nursery.start_soon(run)

    async def turn(self, actor: Actor) -> None:
        event = actor.event = self.trio.Event()  # type: ignore[attr-defined]
        actor.error = None  # type: ignore[attr-defined]
        await event.wait()
        if actor.error is not None:  # type: ignore[attr-defined]
            raise actor.error  # type: ignore[attr-defined]

    def go(self, actor: Actor) -> None:
        actor.event.set()  # type: ignore[attr-defined]

    def throw(self, actor: Actor) -> None:
        actor.error = Boom()  # type: ignore[attr-defined]
        actor.event.set()  # type: ignore[attr-defined]

    def cancel(self, actor: Actor) -> None:
        actor.handle.cancel()

    async def pause(self) -> None:
        await self.trio.lowlevel.checkpoint()

    async def to_thread(self, function: Callable[[], None]) -> None:
        await self.trio.to_thread.run_sync(function)


class AnyioLoop(TrioLoop):
    """Its words are trio's, but for these."""

    def __init__(self, backend: str) -> None:
        self.name = f"anyio on {backend}"
        self.backend = backend
        self.trio: Any = pytest.importorskip("anyio", reason="anyio is not installed")
        if backend == "trio":
            pytest.importorskip("trio", reason="trio is not installed")

    def run(self, main: Callable[[], Main]) -> None:
        async def run() -> None:
            async with self.trio.create_task_group() as self.nursery:
                await main()
                self.nursery.cancel_scope.cancel()

        self.trio.run(run, backend=self.backend)

    async def pause(self) -> None:
        await self.trio.lowlevel.checkpoint()
