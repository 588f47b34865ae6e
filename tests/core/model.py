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

    @property
    def node(self) -> Node:
        return self.session.nodes[self.path]

    @property
    def destroyed(self) -> bool:
        return self.running_on is None and not self.idle


@dataclass(eq=False)
class Thread:
    stack: list[Span] = field(default_factory=list)


@dataclass
class Model:
    session: Session | None = None
    threads: list[Thread] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)  # all that are not destroyed
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
        for span in list(thread.stack):
            if span.session is not self.session:
                thread.stack.remove(span)
            elif span.asked_to_exit:
                self._leave(thread, span)

    def end(self, thread: Thread) -> None:
        """Spans that the thread leaves behind are abandoned, and counted."""
        for span in list(thread.stack):
            if span.session is self.session:
                self.abandoned += 1
                self._leave(thread, span)
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
        """A child of ``parent``, else of the innermost running span (4.1, 4.4). What
        belongs to another session is no parent. A root may be sampled out, a child is
        if its parent is (3.7)."""
        assert self.session is not None
        above = parent
        if above is None and thread.stack:
            above = thread.stack[-1]
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
        if span.session is not self.session:
            if span.running_on is not None:
                self._leave(span.running_on, span)
            return True
        if span.running_on is None:
            return True
        if span.running_on is not thread:
            self.misnested += 1
            span.asked_to_exit = True
            return False
        self.misnested += thread.stack[-1] is not span
        self._leave(thread, span)
        return True

    def close(self, span: Span) -> None:
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

    def _leave(self, thread: Thread, span: Span) -> None:
        """Off the stack, wherever it is: what runs above goes on (3.8)."""
        if span in thread.stack:
            thread.stack.remove(span)
        span.running_on = None
        span.asked_to_exit = False
        span.idle = span.opened
        if not span.opened:
            self._destroy(span)
