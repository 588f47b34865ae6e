"""What spans cost, computed the plain way: time passes, and whoever runs pays.

Written from the contract alone. Threads, spans and nodes are objects, every advance of
the clocks visits all of them, and nothing is clever. Numbers in brackets are rules.
"""

from __future__ import annotations

from dataclasses import dataclass, field

Frame = tuple[str, str]  # name, value of the one label
Path = tuple[Frame, ...]
OTHER: Frame = ("(other)", "")


@dataclass
class Node:
    calls: int = 0
    busy: int = 0
    idle: int = 0
    cpu: int = 0
    system: int = 0  # what the kernel booked while a span of this node ran
    objects: int = 0
    space: int = 0


@dataclass(eq=False)
class Session:
    """The values of one session, until its end and no further (3.6)."""

    max_nodes: int
    sampling: bool = False  # roots are recorded or not, as they are told
    nodes: dict[Path, Node] = field(default_factory=dict)
    folded: int = 0
    closed: list[Span] = field(default_factory=list)  # those that the feed tells next

    def node(self, parent: Path, frame: Frame) -> Path:
        """The path of a new span; beyond the limit one (other) node a parent."""
        path = (*parent, frame)
        if path not in self.nodes and len(self.nodes) >= self.max_nodes:
            self.folded += 1
            path = parent if parent[-1:] == (OTHER,) else (*parent, OTHER)
        self.nodes.setdefault(path, Node())
        return path


@dataclass(eq=False)
class Span:
    session: Session
    path: Path
    opened: bool  # explicitly, so that it outlives its exits (3.2)
    parent: Span | None
    start: int
    own: Node = field(default_factory=Node)  # its own part of its node's values (5.1)
    out: bool = False  # sampled out, with all its descendants (3.7)
    end: int = 0
    id: int = 0  # what the core calls it
    running_on: Thread | None = None
    idle: bool = False
    asked_to_exit: bool = False
    before: Span | None = None  # its context's current span before it was entered
    kept_under: int | None = None  # while suspended: the key of its group
    adrift: bool = False  # neither suspended nor on a stack, but not exited yet
    is_nobody: bool = False  # no span, but what a context says whose spans are roots

    @property
    def node(self) -> Node:
        return self.session.nodes[self.path]

    @property
    def destroyed(self) -> bool:
        return self.running_on is None and not self.idle and not self.adrift

    def is_same(self, current: Span | None) -> bool:
        """Whether a context that says ``current`` means this span. Those that are
        sampled out are all alike."""
        return self is current or (current is not None and self.out and current.out)


@dataclass(eq=False)
class Context:
    """Whose child the next span is (4.3)."""

    current: Span | None = None


@dataclass(eq=False)
class Thread:
    stack: list[Span] = field(default_factory=list)
    own_context: Context = field(default_factory=Context)
    other_context: Context | None = None
    session: Session | None = None  # that it was last seen in

    @property
    def context(self) -> Context:
        return self.other_context or self.own_context


@dataclass
class Model:
    session: Session | None = None
    threads: list[Thread] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)  # all that are not destroyed
    groups: dict[int, list[Span]] = field(default_factory=dict)  # the innermost last
    misnested: int = 0
    abandoned: int = 0
    sampled_out: int = 0
    now: int = 0

    # --- time ----------------------------------------------------------------

    def advance(self, wall: int, cpu: list[int], system: list[int]) -> None:
        """Time passes; ``cpu`` and ``system`` are what each thread uses of it. All of
        a thread's time belongs to its innermost span (5.1, 5.2)."""
        for thread, used, booked in zip(self.threads, cpu, system, strict=True):
            if self._runs(thread):
                for node in (thread.stack[-1].node, thread.stack[-1].own):
                    node.busy += wall
                    node.cpu += used
                    node.system += booked
        for span in self.spans:
            if span.idle and span.session is self.session and not span.out:
                span.node.idle += wall
                span.own.idle += wall
        self.now += wall

    def allocate(self, thread: Thread, objects: int, space: int) -> None:
        """The innermost span's (5.5)."""
        if self._runs(thread):
            for node in (thread.stack[-1].node, thread.stack[-1].own):
                node.objects += objects
                node.space += space

    def _runs(self, thread: Thread) -> bool:
        """Whether somebody is charged for what the thread does."""
        return bool(
            thread.stack
            and thread.stack[-1].session is self.session
            and not thread.stack[-1].out
        )

    # --- sessions and threads ------------------------------------------------

    def start(self, max_nodes: int, sampling: bool) -> None:
        self.session = Session(max_nodes, sampling)

    def stop(self) -> None:
        self.session = None

    def turn(self, thread: Thread) -> None:
        """The thread does something with spans. It first leaves those of earlier
        sessions behind, and exits those that other threads asked for (3.8)."""
        if self.session is None:
            return
        if thread.session is not self.session:
            thread.own_context.current = None
            thread.session = self.session
        for span in reversed(list(thread.stack)):
            if span.session is not self.session:
                thread.stack.remove(span)
            elif span.asked_to_exit:
                self._leave(thread, span)

    def end(self, thread: Thread) -> None:
        """Spans that the thread leaves behind are abandoned, and counted."""
        for span in reversed(list(thread.stack)):
            if span.session is self.session:
                self.abandoned += 1
                thread.stack.remove(span)
                self._settle(span)
        self.threads.remove(thread)

    # --- spans ---------------------------------------------------------------

    def _create(
        self,
        thread: Thread,
        frame: Frame,
        parent: Span | None,
        sampled: bool,
        opened: bool,
    ) -> Span:
        """A child of ``parent``, else of its context's current span (4.3), else of the
        innermost running one (4.1, 4.4). What belongs to another session is no parent.
        A root may be sampled out, a child is if its parent is (3.7)."""
        assert self.session is not None
        above = parent
        if above is None:
            above = thread.context.current
            if above is None or above.session is not self.session:
                above = thread.stack[-1] if thread.stack else None
        if above is not None and above.is_nobody:
            above = None
        known = above is not None and above.session is self.session
        out = above.out if above and known else self.session.sampling and not sampled
        if out:
            self.sampled_out += 1
            span = Span(self.session, (), opened, above, self.now, out=True)
            self.spans.append(span)
            return span
        path = self.session.node(above.path if above and known else (), frame)
        span = Span(self.session, path, opened, above if known else None, self.now)
        span.node.calls += 1
        self.spans.append(span)
        return span

    def begin(
        self, thread: Thread, frame: Frame, parent: Span | None, sampled: bool
    ) -> Span:
        span = self._create(thread, frame, parent, sampled, opened=False)
        self._push(thread, span)
        return span

    def open(
        self, thread: Thread, frame: Frame, parent: Span | None, sampled: bool
    ) -> Span:
        span = self._create(thread, frame, parent, sampled, opened=True)
        span.idle = True
        return span

    def enter(self, thread: Thread, span: Span) -> None:
        if span.session is self.session:
            span.idle = False
            self._push(thread, span)

    def exit(self, thread: Thread, span: Span) -> bool:
        """True if it took effect. On the wrong thread it is only asked for; out of
        order it is put right; both are counted (3.8)."""
        if span.kept_under is not None:
            self.misnested += span.session is self.session
            self._withdraw(span)
            return True
        if span.running_on is None and not span.adrift:
            return True
        if span.session is not self.session or span.running_on is None:
            if span.running_on is not None and span in span.running_on.stack:
                span.running_on.stack.remove(span)
            self._settle(span)
            return True
        if span.running_on is not thread:
            self.misnested += 1
            span.asked_to_exit = True
            return False
        self.misnested += thread.stack[-1] is not span
        self._leave(thread, span)
        return True

    def close(self, span: Span) -> None:
        if span.kept_under is not None:
            self._withdraw(span)
        span.idle = False
        self._destroy(span)

    def _destroy(self, span: Span) -> None:
        self.spans.remove(span)
        span.end = self.now
        if span.session is self.session and not span.out:
            span.session.closed.append(span)

    def _push(self, thread: Thread, span: Span) -> None:
        span.running_on = thread
        thread.stack.append(span)
        span.before = thread.context.current
        thread.context.current = span

    def _leave(self, thread: Thread, span: Span) -> None:
        """Off the stack, wherever it is: what runs above goes on (3.8). The context's
        current span is the one before it again, and whoever of this context was
        entered above it comes after that one."""
        context = thread.context
        place = thread.stack.index(span)
        last: Span | None = None
        current = context.current
        for above in reversed(thread.stack[place + 1 :]):
            if above.is_same(current):
                last, current = above, above.before
        if span.is_same(current) and last is not None:
            last.before = span.before
        elif span.is_same(current):
            context.current = span.before
        thread.stack.remove(span)
        self._settle(span)

    def _settle(self, span: Span) -> None:
        span.running_on = None
        span.asked_to_exit = span.adrift = False
        span.idle = span.opened
        if not span.opened:
            self._destroy(span)

    def clear(self, context: Context) -> None:
        """The context's next span is a root."""
        assert self.session is not None
        context.current = Span(self.session, (), False, None, self.now, is_nobody=True)

    # --- suspended spans -----------------------------------------------------

    def suspend(self, thread: Thread, count: int, key: int) -> None:
        """The innermost ones leave the thread together (4.2), and are idle. What the
        key had before is abandoned."""
        group = thread.stack[-count:]
        del thread.stack[-count:]
        for span in reversed(group):
            if span.is_same(thread.context.current):
                thread.context.current = span.before
            span.running_on = None
            span.idle = True
            span.kept_under = key
        for span in reversed(self.groups.pop(key, [])):
            self.abandon(span, of_group=False)
        self.groups[key] = group

    def resume(self, thread: Thread | None, key: int) -> None:
        """All that are kept under the key go on, in their order, in the thread's
        context; those of another session, or on no thread of the session, nowhere."""
        for span in self.groups.pop(key):
            span.kept_under = None
            if thread is not None and span.session is self.session:
                span.idle = False
                self._push(thread, span)
            elif not span.opened:
                span.idle = False
                span.adrift = True

    def abandon(self, span: Span, of_group: bool = True) -> None:
        """It will not be resumed."""
        self.abandoned += span.session is self.session
        self._withdraw(span, of_group)

    def _withdraw(self, span: Span, of_group: bool = True) -> None:
        assert span.kept_under is not None
        if of_group:
            group = self.groups[span.kept_under]
            group.remove(span)
            if not group:
                del self.groups[span.kept_under]
        span.kept_under = None
        self._settle(span)
