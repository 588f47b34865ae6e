"""A session that begins while the end of another one is waited for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator

import spanprof
from spanprof import span

from .helpers import ManualClock, needs_suspension, series


class Waits(spanprof.Reporter):
    """Holds up the stop of its session until told to go on."""

    def __init__(self) -> None:
        self.is_here = threading.Event()
        self.go_on = threading.Event()

    def flush(self) -> None:
        if self.ending:
            self.is_here.set()
            assert self.go_on.wait(60)


class Never(spanprof.HeadSampler):
    def should_sample(self, metadata: object) -> bool:
        return False


def after_the_end_of_another(
    first: spanprof.HeadSampler | None,
    second: spanprof.HeadSampler | None,
    before: Callable[[], object],
    after: Callable[[], object],
) -> spanprof.Session:
    """A session in which `before` runs, then another one's stop ends, then `after`."""
    waits = Waits()
    earlier = spanprof.start(track_wall=True, reporters=[waits], sampler=first)
    stop = threading.Thread(target=earlier.stop)
    stop.start()
    assert waits.is_here.wait(60)
    with spanprof.start(track_wall=True, sampler=second) as session:
        before()
        waits.go_on.set()
        stop.join(60)
        assert not stop.is_alive()
        after()
    return session


def test_rule_3_7_the_end_of_a_session_leaves_the_next_ones_sampler_alone() -> None:
    def root() -> None:
        with span("root"):
            pass

    session = after_the_end_of_another(Never(), Never(), root, root)
    assert not session.result.samples


@needs_suspension
def test_rule_4_2_the_end_of_a_session_leaves_the_next_ones_coroutines_alone(
    clock: ManualClock,
) -> None:
    def steps() -> Generator[None, None, None]:
        with span("steps"):
            while True:
                clock(1)
                yield

    target = steps()
    waits = steps()  # by it the earlier session has its tool

    def before() -> None:
        next(target)
        clock(10)

    def after() -> None:
        next(target)
        clock(100)
        next(target)

    next(waits)
    session = after_the_end_of_another(None, None, before, after)
    assert series(session.result, "busy") == {("steps",): 3}
    assert series(session.result, "idle")["steps",] == 110
