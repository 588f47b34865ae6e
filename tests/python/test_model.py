"""Random programs against a small reference model: rules 3.1 to 4.4, 5.1, 5.2.

A program is a list of steps on a few objects and threads. The threads are real, but
run in turns: each waits for its next step in a queue. Between steps the manual clock
moves, so every value is known to the nanosecond.
"""

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import spanprof

from .helpers import IS_FREE_THREADED, ManualClock, Path_, by_path
from .model import Model, Object, Values

EXAMPLES = {"quick": 150, "default": 1500, "thorough": 20_000}
PROFILE = os.environ.get("SPANPROF_HYPOTHESIS_PROFILE", "default")

THREADS = 3
NAMES = ["a", "b", "c"]


class Stop(Exception):
    """Ends a thread."""


class Raised(BaseException):
    """Leaves a block."""


class Worker:
    """A thread that does one step at a time, and nests blocks as a program does."""

    def __init__(self) -> None:
        self._steps: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        self.blocks: list[Object] = []
        """Blocks that it is in, by the driver."""

    def _run(self) -> None:
        with contextlib.suppress(Stop):
            self._loop()

    def _loop(self) -> None:
        """Take steps until one of them leaves the block."""
        while True:
            step = self._steps.get()
            try:
                answer = step()
            except (RuntimeError, ValueError) as error:
                answer = error
            if answer is LEAVE:
                return
            self._answers.put(answer)

    def do(self, step: Callable[[], object]) -> object:
        self._steps.put(step)
        return self._answers.get(timeout=30)

    def end(self) -> None:
        def stop() -> None:
            raise Stop

        self._steps.put(stop)
        self._thread.join(30)
        assert not self._thread.is_alive()
        # Its state is given back a little later, by the operating system's thread.
        task = Path(f"/proc/self/task/{self._thread.native_id}")
        for _ in range(10_000):
            if not task.exists():
                break
            time.sleep(0.0001)

    # Steps that begin and leave a block. The answer comes from inside, or after.

    def with_block(self, span: spanprof.Span) -> None:
        try:
            with span:
                self._answers.put(None)
                self._loop()
        except Raised:
            pass

    def decorated_block(self, span: spanprof.Span) -> None:
        @span
        def function() -> None:
            self._answers.put(None)
            self._loop()

        with contextlib.suppress(Raised):
            function()


LEAVE = object()


def leave() -> object:
    return LEAVE


def leave_by_exception() -> object:
    raise Raised


class Driver:
    """Does each step in the model and in spanprof."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.model = Model()
        self.workers: list[Worker] = []
        self.spans: dict[Object, spanprof.Span] = {}
        self.objects: list[Object] = []
        self.session: spanprof.Session | None = None
        self.misnested = spanprof.stats().misnested
        self.abandoned = spanprof.stats().abandoned
        self.thread_numbers: list[int] = []
        for _ in range(THREADS):
            self.add_thread()
        for name in NAMES:
            self.add(name, None)

    def add_thread(self) -> None:
        number = len(self.model.stacks) + 1000 * len(self.thread_numbers)
        while number in self.model.stacks:
            number += 1
        self.thread_numbers.append(number)
        self.model.stacks[number] = []
        self.workers.append(Worker())

    def add(self, name: str, parent: Object | None) -> None:
        thing = self.model.new(name, parent)
        self.spans[thing] = (
            spanprof.span(name) if parent is None else self.spans[parent].span(name)
        )
        self.objects.append(thing)

    # --- steps: (thread, object) ------------------------------------------------------

    def step(self, kind: str, who: int, what: int, much: int) -> None:
        which = who % THREADS
        thing = self.objects[what % len(self.objects)]
        getattr(self, f"do_{kind}")(which, thing, much)

    def on(self, which: int, step: Callable[[], object]) -> object:
        return self.workers[which].do(step)

    def do_time(self, which: int, thing: Object, much: int) -> None:
        wall, cpu = much, much * 7 % 1000
        self.clock(wall, cpu)
        self.model.advance(wall, cpu)

    def do_session(self, which: int, thing: Object, much: int) -> None:
        if self.session is None:
            self.model.start()
            self.session = spanprof.start(track_wall=True, track_cpu=True)
        else:
            self.session.stop()
            self.compare(self.session.result)
            self.session = None
            self.model.stop()

    def do_snapshot(self, which: int, thing: Object, much: int) -> None:
        if self.session is not None:
            self.compare(self.session.snapshot())

    def do_look(self, which: int, thing: Object, much: int) -> None:
        number = self.thread_numbers[which]
        current = self.on(which, spanprof.current_span)
        assert (current and current.name) == self.model.current(number)  # type: ignore
        span = self.spans[thing]
        recording = self.on(which, lambda: span.is_recording)
        assert recording == self.model.is_recording(number, thing)

    def do_new(self, which: int, thing: Object, much: int) -> None:
        if len(self.objects) < 12:
            self.add(NAMES[much % len(NAMES)], None)

    def do_child(self, which: int, thing: Object, much: int) -> None:
        if not thing.is_used:
            with pytest.raises(RuntimeError, match="not open"):
                self.spans[thing].span("x")
        elif len(self.objects) < 12:
            self.add(NAMES[much % len(NAMES)], thing)

    def do_open(self, which: int, thing: Object, much: int) -> None:
        done = self.model.open(self.thread_numbers[which], thing)
        answer = self.on(which, self.spans[thing].open)
        assert done is not isinstance(answer, RuntimeError)

    def do_close(self, which: int, thing: Object, much: int) -> None:
        self.model.close(thing)
        assert self.on(which, self.spans[thing].close) is None

    def do_enter(self, which: int, thing: Object, much: int) -> None:
        done = self.model.enter(self.thread_numbers[which], thing)
        answer = self.on(which, self.spans[thing].__enter__)
        assert done is not isinstance(answer, RuntimeError)

    def do_exit(self, which: int, thing: Object, much: int) -> None:
        span = self.spans[thing]
        self.model.exit(self.thread_numbers[which], thing)
        self.on(which, lambda: span.__exit__(None, None, None))

    def do_with(self, which: int, thing: Object, much: int) -> None:
        worker, span = self.workers[which], self.spans[thing]
        if len(worker.blocks) > 20:
            return
        if self.model.enter(self.thread_numbers[which], thing):
            assert self.on(which, lambda: worker.with_block(span)) is None
            worker.blocks.append(thing)
        else:
            answer = self.on(which, lambda: worker.with_block(span))
            assert isinstance(answer, RuntimeError)

    def do_call(self, which: int, thing: Object, much: int) -> None:
        """A decorated function: a span of its own, whatever became of the object."""
        worker, span = self.workers[which], self.spans[thing]
        if len(worker.blocks) > 20:
            return
        own = self.model.new(thing.name, thing.parent)
        assert self.model.enter(self.thread_numbers[which], own)
        assert self.on(which, lambda: worker.decorated_block(span)) is None
        worker.blocks.append(own)

    def do_leave(self, which: int, thing: Object, much: int) -> None:
        worker = self.workers[which]
        if worker.blocks:
            self.model.exit(self.thread_numbers[which], worker.blocks.pop())
            self.on(which, leave if much % 2 else leave_by_exception)

    def do_end_thread(self, which: int, thing: Object, much: int) -> None:
        worker = self.workers[which]
        if worker.blocks:
            return
        worker.end()
        self.model.end_thread(self.thread_numbers[which])
        self.add_thread()
        self.workers[which] = self.workers.pop()
        self.thread_numbers[which] = self.thread_numbers.pop()

    # --- the end ----------------------------------------------------------------------

    def compare(self, profile: spanprof.Profile) -> None:
        found: dict[Path_, Values] = {
            path: Values(
                values["calls"], values["wall_busy"], values["wall_idle"], values["cpu"]
            )
            for path, values in by_path(profile).items()
        }
        assert found == self.model.nodes

    def finish(self) -> None:
        for which, worker in enumerate(self.workers):
            while worker.blocks:
                self.do_leave(which, self.objects[0], 1)
        if self.session is not None:
            self.do_session(0, self.objects[0], 0)
        misnested = spanprof.stats().misnested - self.misnested
        if IS_FREE_THREADED:
            # What another thread exits after its session is over stays entered, as its
            # own thread may be looking at it: then that one's exit is in order.
            assert misnested <= self.model.misnested
        else:
            assert misnested == self.model.misnested
        self.close()

    def close(self) -> None:
        for worker in self.workers:
            while worker.blocks:
                worker.blocks.pop()
                worker.do(leave)
            worker.end()


KINDS = (
    ["time"] * 6
    + ["enter"] * 4
    + ["exit"] * 4
    + ["with"] * 4
    + ["leave"] * 4
    + ["call"] * 2
    + ["open"] * 2
    + ["close", "new", "child", "child", "snapshot", "session", "look", "end_thread"]
)

Step = tuple[str, int, int, int]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(KINDS),
        st.integers(0, THREADS - 1),
        st.integers(0, 11),
        st.integers(0, 10**6),
    ),
    min_size=1,
    max_size=60,
)


def run_program(steps: list[Step]) -> None:
    with ManualClock() as clock:
        driver = Driver(clock)
        try:
            driver.do_session(0, driver.objects[0], 0)
            for step in steps:
                driver.step(*step)
            driver.finish()
        except BaseException:
            driver.close()
            raise


@settings(
    max_examples=EXAMPLES.get(PROFILE, EXAMPLES["default"]),
    deadline=None,
    derandomize=PROFILE != "thorough",
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    print_blob=True,
)
@given(STEPS)
def test_rules_3_to_5_random_programs(steps: list[Step]) -> None:
    run_program(steps)
