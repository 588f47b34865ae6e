"""What contract.md says of spans that are suspended, spelled out without cleverness.

Whoever drives the model tells it what the program does: which frame begins, enters a
span, waits, goes on, ends; which context is copied or run; how much time passes.
Nothing here measures, and nothing here knows an event loop. Rules are named where they
are held.
"""

import threading
from dataclasses import dataclass, field

Path = tuple[str, ...]


@dataclass
class Values:
    """Self values of one node."""

    calls: int = 0
    busy: int = 0
    idle: int = 0
    cpu: int = 0


@dataclass(eq=False)
class Span:
    path: Path
    session: int
    owner: "Frame | None" = None
    """The frame with which it is suspended."""
    is_suspended: bool = False
    is_entered: bool = False
    is_open: bool = False
    """Explicitly: it stays when it is exited."""
    parent: "Span | None" = None
    values: Values = field(default_factory=lambda: Values(calls=1))
    """Its own."""


@dataclass(eq=False)
class Context:
    """A ``contextvars.Context``: one activation after the other, never two at once."""

    inherited: Span | None = None
    """The span that was current where and when it was copied (4.3)."""


@dataclass(eq=False)
class Frame:
    """One run of a function, coroutine, generator or async generator."""

    name: str
    is_root: bool = False
    """Nobody waits with it: what it waits for is its caller's to know. A task's
    outermost coroutine, and whatever is driven by send() or next()."""
    context: Context | None = None
    """A task's; the others run in whatever context they are in."""
    actor: object = None
    """The task or thread whose outermost frame it is."""
    spans: list[Span] = field(default_factory=list)
    """Entered and not exited, in this order; also those lent to another frame."""
    group: list["Frame"] = field(default_factory=list)
    """The frames that were suspended with it, the outermost first, itself last."""
    is_suspended: bool = False


class Thread:
    """What is on a thread's stack. The innermost is last everywhere."""

    def __init__(self, context: Context) -> None:
        self.stack: list[Span | Context] = [context]
        """Running spans; and, below those that were entered in it, each context."""
        self.frames: list[Frame] = []
        self.any_running = 0
        """Time in which there was at least one running span."""

    @property
    def context(self) -> Context:
        return next(x for x in reversed(self.stack) if isinstance(x, Context))

    @property
    def running(self) -> list[Span]:
        return [x for x in self.stack if isinstance(x, Span)]

    def innermost_in_context(self) -> Span | None:
        last = self.stack[-1]
        return last if isinstance(last, Span) else None


class Model:
    def __init__(self) -> None:
        self.session = 0
        self.sessions = 0
        self.nodes: dict[Path, Values] = {}
        self.suspended: list[Span] = []
        self.opened: list[Span] = []
        """Those that are open and not entered."""
        self.closed: list[Span] = []
        """Those of this session that are over."""
        self.threads: dict[int, Thread] = {}
        self.ended_running = 0
        self.begin_thread(Context())

    @property
    def here(self) -> Thread:
        return self.threads[threading.get_ident()]

    # --- sessions and time ------------------------------------------------------------

    def start(self) -> None:
        self.sessions += 1
        self.session = self.sessions
        self.nodes = {}
        self.closed = []
        self.ended_running = 0

    def stop(self) -> None:
        """3.6: whatever is entered or suspended is recorded no more."""
        self.session = 0
        self.suspended.clear()
        self.opened.clear()
        for thread in self.threads.values():
            thread.stack = [x for x in thread.stack if isinstance(x, Context)]
            thread.any_running = 0

    def advance(self, wall: int, cpu: int) -> None:
        for thread in self.threads.values():
            if thread.running:  # 5.2: the innermost one of each thread
                span = thread.running[-1]
                for values in self.nodes[span.path], span.values:
                    values.busy += wall
                    values.cpu += cpu
                thread.any_running += wall
        for span in self.suspended + self.opened:
            for values in self.nodes[span.path], span.values:
                values.idle += wall

    def any_running(self) -> int:
        """5.2: what the self busy times must add up to."""
        return self.ended_running + sum(t.any_running for t in self.threads.values())

    def single_spans(self) -> list[tuple[Path, Values]]:
        """Those that are over; "?" stands for a parent that is not."""

        def path(span: Span | None) -> Path:
            if span is None:
                return ()
            if span not in self.closed:
                return ("?",)
            return (*path(span.parent), span.path[-1])

        return [(path(span), span.values) for span in self.closed]

    # --- threads and contexts ---------------------------------------------------------

    def begin_thread(self, context: Context) -> None:
        """Called on the thread. 4.4: a new context is nobody's child."""
        self.threads[threading.get_ident()] = Thread(context)

    def end_thread(self) -> None:
        self.ended_running += self.threads.pop(threading.get_ident()).any_running

    def copy_context(self) -> Context:
        """4.3: the copy remembers the span that is current here and now."""
        return Context(self._current())

    def run_context(self, context: Context) -> None:
        self.here.stack.append(context)

    def leave_context(self, context: Context) -> None:
        assert self.here.stack.pop() is context

    # --- spans ------------------------------------------------------------------------

    def _is_live(self, span: Span | None) -> bool:
        return span is not None and span.session == self.session != 0

    def _current(self) -> Span | None:
        innermost = self.here.innermost_in_context()
        if innermost is not None:
            return innermost
        return self.here.context.inherited

    def _parent(self) -> Span | None:
        current = self._current()
        if self._is_live(current):
            return current  # 4.1 in this context, 4.3 if there is none
        running = self.here.running
        return running[-1] if running else None  # 4.1 on this thread

    def current(self) -> str | None:
        """The name of ``current_span()``."""
        running = self.here.running
        return running[-1].path[-1] if running else None

    def _create(self, name: str) -> Span:
        parent = self._parent() if self.session else None
        above = parent.path if parent is not None else ()
        span = Span((*above, name), self.session, parent=parent)
        if self.session:
            self.nodes.setdefault(span.path, Values()).calls += 1
        return span

    def _push(self, frame: Frame, span: Span) -> None:
        span.owner = frame
        span.is_entered = True
        frame.spans.append(span)
        if self._is_live(span):
            self.here.stack.append(span)

    def enter(self, frame: Frame, name: str) -> None:
        self._push(frame, self._create(name))

    def exit(self, frame: Frame) -> None:
        span = frame.spans.pop()
        span.is_entered = False
        if self._is_live(span):
            assert self.here.stack.pop() is span
            if span.is_open:
                self.opened.append(span)  # 3.2
            else:
                self.closed.append(span)

    def open(self, name: str) -> Span:
        """3.2: its parent is the one where it is opened."""
        span = self._create(name)
        span.is_open = True
        if self._is_live(span):
            self.opened.append(span)
        return span

    def enter_opened(self, frame: Frame, span: Span) -> None:
        if span in self.opened:
            self.opened.remove(span)
        self._push(frame, span)

    def close(self, span: Span) -> None:
        """3.2: an entered one goes on until it is exited."""
        span.is_open = False
        if span in self.opened:
            self.opened.remove(span)
            self.closed.append(span)

    # --- frames -----------------------------------------------------------------------

    def begin(self, name: str, is_root: bool = False) -> Frame:
        frame = Frame(name, is_root)
        self.here.frames.append(frame)
        return frame

    def begin_task(self, name: str, context: Context | None, actor: object) -> Frame:
        if context is not None:
            self.run_context(context)
        frame = self.begin(name, is_root=True)
        frame.context, frame.actor = context, actor
        return frame

    def end(self, frame: Frame) -> None:
        assert self.here.frames.pop() is frame
        if frame.context is not None:
            self.leave_context(frame.context)

    def suspend(self, frame: Frame, alone: bool = False) -> None:
        """4.2: it waits or yields; with it those that wait for it, if not ``alone``."""
        assert self.here.frames[-1] is frame
        group = [self._suspend_one()]
        while not (alone or group[0].is_root):
            group.insert(0, self._suspend_one())
        frame.group = group

    def _suspend_one(self) -> Frame:
        thread = self.here
        frame = thread.frames.pop()
        frame.is_suspended = True
        mine = [span for span in thread.running if span.owner is frame]
        for span in reversed(mine):
            assert thread.stack.pop() is span
            span.is_suspended = True
        self.suspended += mine
        if frame.context is not None:
            self.leave_context(frame.context)
        return frame

    def resume(self, frame: Frame, error: BaseException | None = None) -> None:
        """It goes on, those that wait for it with it.

        Not when it is closed: then each is told on its own, from the innermost on.
        """
        group = [frame] if isinstance(error, GeneratorExit) else frame.group
        for each in group:
            self._resume_one(each)

    def resume_if_suspended(self, frame: Frame) -> None:
        """What it waited for was closed, and is over."""
        if frame.is_suspended:
            self._resume_one(frame)

    def _resume_one(self, frame: Frame) -> None:
        thread = self.here
        frame.is_suspended = False
        thread.frames.append(frame)
        if frame.context is not None:
            self.run_context(frame.context)
        back = [span for span in self.suspended if span.owner is frame]
        self.suspended = [span for span in self.suspended if span.owner is not frame]
        for span in back:
            span.is_suspended = False
        thread.stack += back

    # --- generators that are context managers -----------------------------------------

    def lend(self, frame: Frame) -> None:
        """It yields to a block: its spans are the block's frame's until it goes on."""
        thread = self.here
        assert thread.frames.pop() is frame
        for span in frame.spans:
            span.owner = thread.frames[-1]

    def take_back(self, frame: Frame) -> None:
        self.here.frames.append(frame)
        for span in frame.spans:
            span.owner = frame
