"""Programs as Python source.

Real frames are what is tested: several blocks in one frame, loops over generators,
chains of awaits. So each body becomes a function of its own. Around whatever enters,
waits or yields there are calls that tell the model about it; `listing` is the program
without them, for people to read.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from .programs import (
    ASYNC_GENERATOR,
    COROUTINE,
    GENERATOR,
    TASK,
    THREAD,
    Body,
    Kind,
    Program,
    Statement,
)


class Text:
    """Lines of Python, and the depth at which the next one goes."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.depth = 0

    def line(self, text: str) -> None:
        self.lines.append("    " * self.depth + text)


class Function:
    """One function while it is written; those that it calls come before it."""

    def __init__(self, source: "Source", kind: Kind, yields_alone: bool) -> None:
        self.source = source
        self.kind = kind
        self.yields_alone = yields_alone
        self.told, self.plain = Text(), Text()
        self.variables = 0

    # --- writing ----------------------------------------------------------------------

    def line(self, text: str) -> None:
        self.told.line(text)
        self.plain.line(text)

    def tell(self, text: str) -> None:
        """Only for the model."""
        self.told.line(text)

    @contextmanager
    def block(self, text: str) -> Iterator[None]:
        self.line(text)
        self.told.depth += 1
        self.plain.depth += 1
        yield
        self.told.depth -= 1
        self.plain.depth -= 1

    @contextmanager
    def told_block(self, text: str) -> Iterator[None]:
        self.told.line(text)
        self.told.depth += 1
        yield
        self.told.depth -= 1

    @contextmanager
    def telling_at_last(self, text: str) -> Iterator[None]:
        with self.told_block("try:"):
            yield
        with self.told_block("finally:"):
            self.tell(text)

    def variable(self) -> str:
        self.variables += 1
        return f"v{self.variables}"

    @property
    def can_wait_for_slots(self) -> bool:
        return self.kind.is_async and self.kind.can_step and not self.kind.is_driven

    # --- statements -------------------------------------------------------------------

    def body(self, body: Body) -> None:
        for statement in body:
            self.statement(statement)
        if not body:
            self.line("pass")

    def statement(self, statement: Statement) -> None:
        kind, *arguments = statement
        getattr(self, f"do_{kind}")(*arguments)

    def do_time(self, much: int) -> None:
        self.line(f"clock({much})")

    def do_raise(self) -> None:
        self.line("if True: raise Boom")

    def do_span(self, name: str, body: Body, prefix: str = "") -> None:
        with self.block(f"{prefix}with span({name!r}):"):
            self.tell(f"m.enter(f, {name!r})")
            with self.telling_at_last("m.exit(f)"):
                self.body(body)

    def do_async_span(self, name: str, body: Body) -> None:
        self.do_span(name, body, "async ")

    def do_open(self, slot: int, name: str) -> None:
        self.line(f"open_span({slot}, {name!r})")

    def do_close_open(self, slot: int) -> None:
        self.line(f"close_span({slot})")

    def do_with_open(self, slot: int, body: Body) -> None:
        which = self.variable()
        self.line(f"{which} = opened_span({slot})")
        with self.block(f"with {which}.real:"):
            self.tell(f"m.enter_opened(f, {which}.span)")
            with self.telling_at_last("m.exit(f)"):
                self.body(body)

    def do_catch(self, body: Body) -> None:
        with self.block("try:"):
            self.body(body)
        with self.block("except Boom as boom:"):
            self.line("if is_closing(boom): raise")

    def do_finally(self, body: Body, cleanup: Body) -> None:
        with self.block("try:"):
            self.body(body)
        with self.block("finally:"):
            kind, self.kind = self.kind, self.kind.function
            self.body(cleanup)
            self.kind = kind

    def wait(self, what: str, alone: bool = False) -> None:
        """It may be suspended there, and what comes out again may be an exception."""
        self.tell(f"m.suspend(f, alone={alone})")
        with self.told_block("try:"):
            self.line(what)
        with self.told_block("except BaseException as error:"):
            self.tell("m.resume(f, error)")
            self.tell("raise")
        self.tell("m.resume(f)")

    def do_step(self) -> None:
        if self.kind.is_async:
            self.wait("await turn(f)")
        else:
            self.line("thread_turn()")

    def do_yield(self) -> None:
        self.wait("yield", self.yields_alone)

    def do_call(self, body: Body) -> None:
        name = self.source.function(body, self.kind.callee)
        if self.kind.is_async:
            with self.telling_at_last("m.resume_if_suspended(f)"):
                self.line(f"await {name}()")
        else:
            self.line(f"{name}()")

    def do_from(self, generator: Body) -> None:
        name = self.source.function(generator, GENERATOR)
        with self.telling_at_last("m.resume_if_suspended(f)"):
            self.line(f"yield from {name}()")

    def do_copy(self, body: Body) -> None:
        name = self.source.function(body, self.kind.function)
        self.line(f"run_copy({name})")

    def do_set(self) -> None:
        self.line("variable.set(1)")

    def do_keep_context(self, slot: int) -> None:
        self.line(f"keep_context({slot})")

    def do_run_context(self, slot: int, body: Body) -> None:
        name = self.source.function(body, self.kind.function)
        self.line(f"run_context({slot}, {name})")

    # --- loops and managers -----------------------------------------------------------

    def loop(self, head: str, body: Body, limit: int) -> None:
        count = self.variable()
        self.line(f"{count} = 0")
        with self.block(head):
            self.line(f"{count} += 1")
            self.body(body)
            self.line(f"if {count} >= {limit}: break")

    def do_for(self, generator: Body, body: Body, limit: int) -> None:
        name = self.source.function(generator, GENERATOR, is_root=True)
        self.loop(f"for _ in {name}():", body, limit)

    def do_async_for(self, generator: Body, body: Body, limit: int) -> None:
        name = self.source.function(generator, self.kind.async_generator)
        each = self.variable()
        with self.block(f"async with aclosing({name}()) as {each}:"):
            self.loop(f"async for _ in {each}:", body, limit)

    def do_manager(self, before: Body, names: list[str], body: Body) -> None:
        name = self.source.manager(before, names, self.kind.function)
        with self.block(f"with {name}():"):
            self.body(body)

    def do_async_manager(self, before: Body, names: list[str], body: Body) -> None:
        kind = self.kind.async_generator._replace(can_yield=False)
        name = self.source.manager(before, names, kind)
        with self.block(f"async with {name}():"):
            self.body(body)

    # --- tasks, threads, slots --------------------------------------------------------

    def do_spawn(self, body: Body) -> None:
        self.line(f"spawn({self.source.task(body)})")

    def do_thread(self, inherits: bool, body: Body) -> None:
        self.line(f"thread({self.source.thread(body)}, inherits={inherits})")

    def do_to_thread(self, body: Body) -> None:
        call = self.variable()
        self.line(f"{call} = to_thread({self.source.thread(body)}, f)")
        self.wait(f"await {call}.wait()")

    def do_make(self, slot: int, kind: str, body: Body) -> None:
        if kind == "generator":
            name = self.source.function(body, GENERATOR, is_root=True)
        elif kind == "coroutine":
            name = self.source.function(body, COROUTINE, is_root=True)
        else:
            name = self.source.function(body, ASYNC_GENERATOR)
        self.line(f"make({slot}, {name})")

    def move(self, how: str, slot: int) -> None:
        if self.can_wait_for_slots:
            with self.telling_at_last("m.resume_if_suspended(f)"):
                self.line(f"await move({slot}, {how!r})")
        else:
            self.line(f"move_at_once({slot}, {how!r})")

    def do_next(self, slot: int) -> None:
        self.move("next", slot)

    def do_throw(self, slot: int) -> None:
        self.move("throw", slot)

    def do_close(self, slot: int) -> None:
        self.move("close", slot)

    def do_drop(self, slot: int) -> None:
        self.line(f"drop({slot})")


class Source:
    """All functions of a program."""

    def __init__(self, program: Program) -> None:
        self.count = 0
        self.told: list[str] = []
        self.plain: list[str] = []
        self.tasks = [self.task(body) for body in program.tasks]
        self.turns = program.turns
        self.app = program.app

    def name(self, what: str) -> str:
        self.count += 1
        return f"{what}{self.count}"

    def add(self, function: Function) -> None:
        self.told += [*function.told.lines, ""]
        self.plain += [*function.plain.lines, ""]

    def function(self, body: Body, kind: Kind, is_root: bool = False) -> str:
        what = {
            (False, False): "function",
            (False, True): "generator",
            (True, False): "coroutine",
            (True, True): "async_generator",
        }[kind.is_async, kind.can_yield]
        name = self.name(what)
        function = Function(self, kind, yields_alone=kind.is_async)
        head = "async def" if kind.is_async else "def"
        with function.block(f"{head} {name}():"):
            function.tell(f"f = m.begin({name!r}, {is_root})")
            with function.telling_at_last("m.end(f)"):
                function.body(body)
                if kind.can_yield:
                    function.line("if False: yield")
        self.add(function)
        return name

    def task(self, body: Body) -> str:
        name = self.name("task")
        function = Function(self, TASK, yields_alone=False)
        with function.block(f"async def {name}(context, actor):"):
            function.tell(f"f = m.begin_task({name!r}, context, actor)")
            with function.telling_at_last("m.end(f)"):
                function.do_step()
                function.body(body)
        self.add(function)
        return name

    def thread(self, body: Body) -> str:
        name = self.name("thread")
        function = Function(self, THREAD, yields_alone=False)
        with function.block(f"def {name}():"):
            function.tell(f"f = m.begin({name!r})")
            with function.telling_at_last("m.end(f)"):
                function.do_step()
                function.body(body)
        self.add(function)
        return name

    def manager(self, before: Body, names: list[str], kind: Kind) -> str:
        name = self.name("async_manager" if kind.is_async else "manager")
        function = Function(self, kind, yields_alone=True)
        prefix = "async " if kind.is_async else ""
        function.line(f"@{prefix.strip()}contextmanager")
        with function.block(f"{prefix}def {name}():"):
            function.tell(f"f = m.begin({name!r}, {not kind.is_async})")
            with function.telling_at_last("m.end(f)"):
                self._spans_around(function, names, before)
        self.add(function)
        return name

    def _spans_around(self, function: Function, names: list[str], before: Body) -> None:
        if names:
            with function.block(f"with span({names[0]!r}):"):
                function.tell(f"m.enter(f, {names[0]!r})")
                with function.telling_at_last("m.exit(f)"):
                    self._spans_around(function, names[1:], before)
            return
        function.body(before)
        function.tell("m.lend(f)")
        with function.telling_at_last("m.take_back(f)"):
            function.line("yield")
        function.line("clock(7)")

    @property
    def text(self) -> str:
        return "\n".join(self.told)

    @property
    def listing(self) -> str:
        around = "in span('app')" if self.app else "in no span"
        turns = ", ".join(f"{what} {which}" for what, which in self.turns)
        return "\n".join(
            [*self.plain, f"# {', '.join(self.tasks)} {around}; turns: {turns}"]
        )
