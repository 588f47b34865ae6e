"""Runs a program on a loop, step by step, and compares spanprof with the model."""

import contextlib
import contextvars
import queue
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

import spanprof

from ..helpers import ManualClock, by_path
from .loops import Actor, Bare, Boom, Loop
from .model import Context, Frame, Model, Path, Span, Values
from .programs import SLOTS, Program
from .source import Source

SEES_SUSPENSION = sys.version_info >= (3, 12)
IS_FREE_THREADED = not getattr(sys, "_is_gil_enabled", lambda: True)()
THREADS_INHERIT = bool(getattr(sys.flags, "thread_inherit_context", 0))

MAX_ACTORS = 10
VARIABLE = contextvars.ContextVar[int]("variable")


def is_closing(error: BaseException | None) -> bool:
    """Whether it was raised while a generator was closed, which must not go on then."""
    while error is not None and not isinstance(error, GeneratorExit):
        error = error.__context__
    return error is not None


class Aborted(BaseException):
    """The test has failed: threads are to end."""


class Nobody:
    """In place of the model, when the test has failed and all is torn down."""

    def __getattr__(self, name: str) -> Callable[..., Frame]:
        return lambda *_, **__: Frame("", group=[Frame("")])


class ThreadActor(Actor):
    def __init__(self) -> None:
        super().__init__()
        self.turns: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self.answers: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.thread: threading.Thread | None = None
        self.waiter: Actor | None = None
        """A task that waits for its end."""

    def wait(self) -> None:
        self.answers.put(None)
        self.state = "waiting"
        error = self.turns.get()
        if error is not None:
            raise error

    def end(self) -> None:
        if self.waiter is not None:
            self.waiter.state = "running"
        self.state = "done"
        self.answers.put(None)

    def go(self, error: BaseException | None) -> None:
        while not self.answers.empty():  # to its first turn, if nobody waited for it
            self.answers.get()
        self.state = "running"
        self.turns.put(error)
        self.answers.get(timeout=30)


@dataclass
class Slot:
    made: Any = None
    is_running: bool = False
    thread: int = 0
    """Where it was made."""

    @property
    def is_async(self) -> bool:
        return hasattr(self.made, "asend")


@dataclass
class Opened:
    real: spanprof.Span
    span: Span


class Keep(spanprof.Reporter):
    """Keeps single spans."""

    def __init__(self) -> None:
        self.spans_by_id: dict[int, spanprof.ClosedSpan] = {}

    def spans(self, batch: Any) -> None:
        for each in batch:
            assert each.id not in self.spans_by_id
            self.spans_by_id[each.id] = each

    def path(self, number: int) -> Path:
        """Of those that are over; "?" stands for a parent that is not."""
        if number == 0:
            return ()
        span = self.spans_by_id.get(number)
        return (*self.path(span.parent), span.name) if span is not None else ("?",)

    def single_spans(self) -> list[tuple[Path, Values]]:
        return [
            (
                self.path(number),
                Values(1, s.wall_busy, s.wall_idle, s.cpu_user + s.cpu_system),
            )
            for number, s in self.spans_by_id.items()
        ]


def in_order(spans: list[tuple[Path, Values]]) -> list[tuple[Path, Values]]:
    return sorted(spans, key=repr)


class ToThread:
    """A function that is about to run on another thread; `wait` for it."""

    def __init__(self, runtime: "Runtime", function: Callable[[], None]) -> None:
        self.runtime = runtime
        self.function = function
        self.context = runtime.model.copy_context()
        self.actor = ThreadActor()
        self.waiter: Any = None

    def run(self) -> None:
        runtime, model = self.runtime, self.runtime.model
        model.begin_thread(Context())
        model.run_context(self.context)
        runtime.local.actor = self.actor
        try:
            self.function()
        except Exception as error:
            runtime.note(error)
            raise
        finally:
            model.leave_context(self.context)
            model.end_thread()
            self.actor.end()

    async def wait(self) -> None:
        self.actor.waiter = self.waiter
        self.waiter.state = "blocked"
        self.runtime.actors.append(self.actor)
        await self.runtime.loop.to_thread(self.run)


class Runtime:
    """What the text of a program calls, and the driver that deals out the turns."""

    def __init__(self, program: Program, loop: Loop, clock: ManualClock) -> None:
        self.program = program
        self.loop = loop
        self.clock = clock
        self.model = Model()
        self.session: spanprof.Session | None = None
        self.source = Source(program)
        self.actors: list[Actor] = []
        self.slots = [Slot() for _ in range(SLOTS)]
        self.contexts: list[tuple[contextvars.Context, Context] | None]
        self.contexts = [None] * SLOTS
        self.running_contexts: set[int] = set()
        self.opened: list[Opened | None] = [None] * SLOTS
        self.local = threading.local()
        self.failures: list[BaseException] = []
        self.results: list[dict[Path, Values]] = []
        self.functions: dict[str, Any] = {
            "m": self.model,
            "span": spanprof.span,
            "Boom": Boom,
            "contextmanager": contextlib.contextmanager,
            "asynccontextmanager": contextlib.asynccontextmanager,
            "aclosing": contextlib.aclosing,
            "clock": self.advance,
            "turn": self.turn,
            "variable": VARIABLE,
            "is_closing": is_closing,
        }
        for name in [
            "thread_turn",
            "run_copy",
            "keep_context",
            "run_context",
            "spawn",
            "thread",
            "to_thread",
            "make",
            "move",
            "move_at_once",
            "open_span",
            "opened_span",
            "close_span",
            "drop",
        ]:
            self.functions[name] = getattr(self, name)
        exec(compile(self.source.text, "<program>", "exec"), self.functions)

    def note(self, error: BaseException) -> None:
        if not isinstance(error, Boom):
            self.failures.append(error)

    # --- what programs call: time and turns -------------------------------------------

    def advance(self, much: int) -> None:
        if SEES_SUSPENSION:
            current = spanprof.current_span()
            assert (current and current.name) == self.model.current()
        cpu = much * 7 % 1000
        self.clock(much, cpu)
        self.model.advance(much, cpu)

    def turn(self, frame: Frame) -> Awaitable[None]:
        actor = frame.group[0].actor
        if actor is None:
            return Bare()  # whoever drives it
        assert isinstance(actor, Actor)
        waits_for_item = any(f.name.startswith("async_") for f in frame.group)
        actor.takes_throws = sys.version_info >= (3, 14) or not waits_for_item
        actor.state = "waiting"
        return self.loop.turn(actor)

    def thread_turn(self) -> None:
        self.local.actor.wait()

    # --- opened spans -----------------------------------------------------------------

    def open_span(self, slot: int, name: str) -> Opened:
        self.close_span(slot)
        each = Opened(spanprof.span(name).open(), self.model.open(name))
        self.opened[slot] = each
        return each

    def opened_span(self, slot: int) -> Opened:
        """One that is not entered, or it would be another span."""
        each = self.opened[slot]
        if each is None or each.span.is_entered:
            return self.open_span(slot, "new")
        return each

    def close_span(self, slot: int) -> None:
        each, self.opened[slot] = self.opened[slot], None
        if each is not None:
            self.model.close(each.span)
            each.real.close()

    # --- contexts ---------------------------------------------------------------------

    def run_in(
        self, real: contextvars.Context, context: Context, function: Callable[[], None]
    ) -> None:
        self.model.run_context(context)
        try:
            real.run(function)
        finally:
            self.model.leave_context(context)

    def run_copy(self, function: Callable[[], None]) -> None:
        real, context = contextvars.copy_context(), self.model.copy_context()
        self.run_in(real, context, function)

    def keep_context(self, slot: int) -> None:
        if slot not in self.running_contexts:
            kept = contextvars.copy_context(), self.model.copy_context()
            self.contexts[slot] = kept

    def run_context(self, slot: int, function: Callable[[], None]) -> None:
        kept = self.contexts[slot]
        if kept is None or slot in self.running_contexts:
            return
        self.running_contexts.add(slot)
        try:
            self.run_in(*kept, function)
        finally:
            self.running_contexts.discard(slot)

    # --- tasks and threads ------------------------------------------------------------

    def spawn(self, function: Callable[..., Coroutine[Any, Any, None]]) -> None:
        if len(self.actors) >= MAX_ACTORS:
            return
        actor = Actor()
        context = self.model.copy_context() if self.loop.has_contexts else None

        async def run() -> None:
            try:
                await function(context, actor)
            except Exception as error:
                self.note(error)
                raise Boom from error

        self.actors.append(actor)
        self.loop.spawn(actor, run)

    def thread(self, function: Callable[[], None], inherits: bool) -> None:
        if len(self.actors) >= MAX_ACTORS:
            return
        actor = ThreadActor()
        inherits_anyhow = inherits or THREADS_INHERIT
        context = self.model.copy_context() if inherits_anyhow else Context()
        real = contextvars.copy_context()

        def run() -> None:
            self.model.begin_thread(context)
            self.local.actor = actor
            try:
                function()
            except (Boom, Aborted):
                pass
            except BaseException as error:
                self.note(error)
            finally:
                self.model.end_thread()
                actor.end()

        target = (lambda: real.run(run)) if inherits else run
        actor.thread = threading.Thread(target=target)
        actor.thread.start()
        actor.answers.get(timeout=30)
        self.actors.append(actor)

    def to_thread(self, function: Callable[[], None], frame: Frame) -> ToThread:
        call = ToThread(self, function)
        frames = reversed(self.model.here.frames)
        call.waiter = next(each.actor for each in frames if each.is_root)
        return call

    # --- slots ------------------------------------------------------------------------

    def _can_go(self, slot: Slot) -> bool:
        """A coroutine or generator made elsewhere may die late on such builds."""
        is_mine = slot.thread == threading.get_ident() or not IS_FREE_THREADED
        return is_mine and not slot.is_running and not slot.is_async

    def make(self, number: int, function: Callable[[], Any]) -> None:
        slot = self.slots[number]
        if slot.made is None or self._can_go(slot):
            self.drop(number)
            slot.made = function()
            slot.thread = threading.get_ident()

    def drop(self, number: int) -> None:
        slot = self.slots[number]
        if slot.made is None or not self._can_go(slot):
            return
        old, slot.made = slot.made, None
        if getattr(old, "cr_running", None) is not None and not old.cr_await:
            old.close()  # or there is a warning if it has not begun
        del old

    def move_at_once(self, number: int, how: str) -> None:
        slot = self.slots[number]
        if slot.made is None or slot.is_running or slot.is_async:
            return
        slot.is_running = True
        is_over = True
        try:
            with contextlib.suppress(StopIteration, Boom):
                if how == "next":
                    slot.made.send(None)
                elif how == "throw":
                    slot.made.throw(Boom())
                else:
                    slot.made.close()
                is_over = how == "close"
        finally:
            slot.is_running = False
            if is_over:
                slot.made = None
        self.advance(5)

    async def move(self, number: int, how: str) -> None:
        slot = self.slots[number]
        if not slot.is_async:
            self.move_at_once(number, how)
            return
        if slot.is_running:
            return
        slot.is_running = True
        is_over = True
        try:
            with contextlib.suppress(StopAsyncIteration, Boom):
                if how == "next":
                    await slot.made.asend(None)
                elif how == "throw":
                    await slot.made.athrow(Boom())
                else:
                    await slot.made.aclose()
                is_over = how == "close"
        finally:
            slot.is_running = False
            if is_over:
                slot.made = None

    # --- the driver -------------------------------------------------------------------

    async def drive(self) -> None:
        for name in self.source.tasks:
            self.spawn(self.functions[name])
        await self.settle()
        for what, which in self.program.turns:
            await self.take_turn(what, which)
        while any(actor.state == "waiting" for actor in self.actors):
            await self.take_turn("step", 0)
        self.spawn_closer()
        await self.settle()
        while any(actor.state == "waiting" for actor in self.actors):
            await self.take_turn("step", 0)

    def spawn_closer(self) -> None:
        """What is left in the slots is closed by a last task."""

        async def close(context: Context, actor: Actor) -> None:
            frame = self.model.begin_task("close", context, actor)
            for number in range(SLOTS):
                await self.move(number, "close")
            self.model.end(frame)

        self.actors.clear()
        self.spawn(close)

    async def settle(self) -> None:
        """Until everybody waits."""
        for _ in range(100_000):
            if self.failures:
                raise self.failures[0]
            if all(actor.state != "running" for actor in self.actors):
                return
            await self.loop.pause()
        raise AssertionError("a task hangs")

    async def take_turn(self, what: str, which: int) -> None:
        if what == "time":
            self.advance(which)
        elif what == "look":
            self.look()
        elif what == "session":
            self.start_or_stop()
        else:
            waiting = [actor for actor in self.actors if actor.state == "waiting"]
            if waiting:
                await self.wake(waiting[which % len(waiting)], what)

    async def wake(self, actor: Actor, how: str) -> None:
        if isinstance(actor, ThreadActor):
            actor.go(None if how == "step" else Boom())
        else:
            actor.state = "running"
            if how == "step" or not actor.takes_throws:
                self.loop.go(actor)
            elif how == "throw":
                self.loop.throw(actor)
            else:
                self.loop.cancel(actor)
        await self.settle()
        self.advance(3)  # whatever has just been suspended, time is not its

    # --- comparing --------------------------------------------------------------------

    def start_or_stop(self) -> None:
        if self.session is None:
            self.model.start()
            self.keep = Keep()
            reporters = [self.keep] if self.program.single else []
            self.session = spanprof.start(
                track_wall=True, track_cpu=True, reporters=reporters
            )
            return
        self.session.stop()
        self.compare(self.session.result)
        if self.program.single and SEES_SUSPENSION:
            expected = in_order(self.model.single_spans())
            assert in_order(self.keep.single_spans()) == expected
        self.session = None
        self.model.stop()

    def look(self) -> None:
        if self.session is not None:
            self.compare(self.session.snapshot())

    def compare(self, profile: spanprof.Profile) -> None:
        found = {
            path: Values(
                values["calls"], values["wall_busy"], values["wall_idle"], values["cpu"]
            )
            for path, values in by_path(profile).items()
        }
        expected = self.model.nodes
        calls = {path: values.calls for path, values in found.items()}
        assert calls == {path: values.calls for path, values in expected.items()}
        if SEES_SUSPENSION:
            assert found == expected
            busy = sum(values.busy for values in found.values())
            assert busy == self.model.any_running(), "rule 5.2"
        self.results.append(found)

    # --- the whole --------------------------------------------------------------------

    def run(self) -> list[dict[Path, Values]]:
        misnested = spanprof.stats().misnested
        self.start_or_stop()
        try:
            if self.program.app:
                self._run_in_app()
            else:
                self.loop.run(self.drive)
        except BaseException:
            self.model = self.functions["m"] = Nobody()  # type: ignore[assignment]
            self.functions["clock"] = lambda _: None
            raise
        finally:
            self._end_threads()
            for slot in self.slots:
                if slot.made is not None and not slot.is_async:
                    slot.is_running = False
                    self.move_at_once(self.slots.index(slot), "close")
        if self.session is not None:
            self.start_or_stop()
        if SEES_SUSPENSION:
            assert spanprof.stats().misnested == misnested
        return self.results

    def _run_in_app(self) -> None:
        frame = self.model.begin("app")
        with spanprof.span("app"):
            self.model.enter(frame, "app")
            self.loop.run(self.drive)
            self.model.exit(frame)
        self.model.end(frame)

    def _end_threads(self) -> None:
        for actor in self.actors:
            if isinstance(actor, ThreadActor):
                for _ in range(50):  # a `finally` may wait again
                    if actor.state == "waiting":
                        actor.go(Aborted())
                if actor.thread is not None:
                    actor.thread.join(30)


@contextlib.contextmanager
def ignoring_boom() -> Iterator[None]:
    """What a generator raises while it is dropped is nobody's to catch."""

    def hook(unraisable: Any) -> None:
        if not isinstance(unraisable.exc_value, Boom):
            before(unraisable)

    before, sys.unraisablehook = sys.unraisablehook, hook
    try:
        yield
    finally:
        sys.unraisablehook = before


def run_program(program: Program, loop: Loop) -> list[dict[Path, Values]]:
    """The profiles that were taken; an AssertionError tells the program as well."""
    with ManualClock() as clock, ignoring_boom():
        runtime = Runtime(program, loop, clock)
        try:
            return runtime.run()
        except BaseException as error:
            error.add_note(
                f"on {loop.name}:\n\n{runtime.source.listing}\n\n{program!r}"
            )
            raise
