"""What contract.md says a profile holds, spelled out without any cleverness.

Nothing here measures: whoever drives the model says how much time passes, and it is
charged at once to whatever runs or idles then. Rules are named where they are held.
"""

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
class Run:
    """A span: one run of an object."""

    path: Path
    session: int
    """0: not recorded."""
    thread: int | None = None
    """Where it is entered."""
    leaving: bool = False
    """Its exit was asked for by another thread."""


@dataclass(eq=False)
class Object:
    """What ``span(...)`` returns."""

    name: str
    parent: "Object | None" = None
    state: str = "new"
    """new, open, closing or closed."""
    first: Run = field(default_factory=lambda: Run((), 0))
    """The span that open() made, or the last one that was entered alone."""
    entered: list[Run] = field(default_factory=list)
    """Latest last."""
    is_opened: bool = False
    """By open()."""
    is_used: bool = False
    """Opened or entered at least once: it may have children."""

    @property
    def is_first_entered(self) -> bool:
        return self.first in self.entered

    def run_on(self, stack: list[Run]) -> Run:
        """The run that a thread means: its own innermost one, else the first."""
        return next((run for run in reversed(stack) if run in self.entered), self.first)


class Model:
    def __init__(self) -> None:
        self.session = 0
        self.sessions = 0
        self.nodes: dict[Path, Values] = {}
        self.stacks: dict[int, list[Run]] = {}
        """Running spans of each thread, innermost last."""
        self.objects: list[Object] = []
        self.misnested = 0
        self.abandoned = 0

    # --- sessions and time -----------------------------------------------------------

    def start(self) -> None:
        self.sessions += 1
        self.session = self.sessions
        self.nodes = {}

    def stop(self) -> None:
        self.session = 0
        for stack in self.stacks.values():  # 3.6: recorded no more
            stack.clear()

    def advance(self, wall: int, cpu: int) -> None:
        for stack in self.stacks.values():
            if stack:  # 5.2: only the innermost of each thread
                values = self.nodes[stack[-1].path]
                values.busy += wall
                values.cpu += cpu
        for thing in self.objects:
            run = thing.first
            is_idle = thing.state in ("open", "closing") and run.thread is None
            if is_idle and thing.is_opened and self._is_live(run):
                self.nodes[run.path].idle += wall

    def _is_live(self, run: Run) -> bool:
        return run.session == self.session != 0

    # --- spans ------------------------------------------------------------------------

    def new(self, name: str, parent: Object | None = None) -> Object:
        thing = Object(name, parent)
        self.objects.append(thing)
        return thing

    def _create(self, thread: int, thing: Object) -> Run:
        stack = self.stacks[thread]
        if thing.parent is not None:
            parent: Run | None = thing.parent.run_on(stack)
        else:
            parent = stack[-1] if stack else None  # 4.1
        # 4.4; of a parent from another session nothing is known.
        above = parent.path if parent is not None and self._is_live(parent) else ()
        run = Run((*above, thing.name), self.session)
        self.nodes.setdefault(run.path, Values()).calls += 1
        return run

    def open(self, thread: int, thing: Object) -> bool:
        """False: RuntimeError (3.8)."""
        if thing.state != "new" or thing.entered:
            return False
        self._settle(thread)
        thing.state = "open"
        thing.is_opened = thing.is_used = True
        thing.first = self._create(thread, thing) if self.session else Run((), 0)
        return True

    def enter(self, thread: int, thing: Object) -> bool:
        self._settle(thread)
        if thing.state in ("closing", "closed"):
            return False
        thing.is_used = True
        if not self.session or (
            thing.state == "open" and not self._is_live(thing.first)
        ):
            run = Run((), 0)  # 3.6
        elif thing.state == "open" and not thing.is_first_entered:
            run = thing.first  # 3.2
        else:
            run = self._create(thread, thing)  # 3.1
            if not thing.is_first_entered:
                thing.first = run
        thing.entered.append(run)
        if self._is_live(run):
            run.thread = thread
            self.stacks[thread].append(run)
        return True

    def exit(self, thread: int, thing: Object) -> None:
        self._settle(thread)
        run = self._run_to_leave(thread, thing)
        if run is None:
            self.misnested += 1
            return
        if self._is_live(run) and run.thread not in (None, thread):
            self.misnested += 1  # 3.8
            run.leaving = True  # its own thread takes it off
            return
        stack = self.stacks[thread]
        if run in stack:
            self.misnested += stack[-1] is not run  # 3.8
        self._left(thing, run)

    def _run_to_leave(self, thread: int, thing: Object) -> Run | None:
        """The innermost one here; else one that nobody is in; else any."""
        for run in reversed(self.stacks[thread]):
            if run in thing.entered:
                return run

        def rank(run: Run) -> tuple[int, int]:
            is_first = run is thing.first
            if not run.session:
                return 0, 0
            if not self._is_live(run) or run.thread is None:
                return 1, not is_first
            return 2, is_first

        return min(reversed(thing.entered), key=rank, default=None)

    def _left(self, thing: Object, run: Run) -> None:
        if run.thread is not None and run in self.stacks[run.thread]:
            self.stacks[run.thread].remove(run)
        run.thread, run.leaving = None, False
        thing.entered.remove(run)
        if thing.state == "closing" and not thing.entered:
            thing.state = "closed"

    def _settle(self, thread: int) -> None:
        """See to exits that other threads asked for."""
        for run in [run for run in self.stacks[thread] if run.leaving]:
            self._left(self._owner(run), run)

    def _owner(self, run: Run) -> Object:
        return next(thing for thing in self.objects if run in thing.entered)

    def current(self, thread: int) -> str | None:
        self._settle(thread)
        stack = self.stacks[thread]
        return stack[-1].path[-1] if stack else None

    def is_recording(self, thread: int, thing: Object) -> bool:
        run = thing.run_on(self.stacks[thread])
        is_open = thing.is_opened and run is thing.first and thing.state != "closed"
        return self._is_live(run) and (run.thread is not None or is_open)

    def close(self, thing: Object) -> None:
        if thing.state != "closed":
            thing.state = "closing" if thing.entered else "closed"

    def end_thread(self, thread: int) -> None:
        """Its spans are exited with it; the objects do not know."""
        for thing in self.objects:
            for run in thing.entered:
                if run.thread == thread:
                    run.thread = None
        self.abandoned += len(self.stacks.pop(thread))
