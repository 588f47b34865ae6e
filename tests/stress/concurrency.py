"""What threads can do to each other's spans, all at once: concurrency.py [SECONDS]

Threads nest, open, decorate and label spans; enter the same one; hand entered ones
over; run event loops; step generators and coroutines that other threads have begun,
throw into them and drop them; run in each other's contexts; make and lose code. The
main thread starts and stops sessions meanwhile, with and without callbacks for single
spans, and takes snapshots. In *exact* rounds nobody breaks a rule and all threads end
before the session does: then the profile must have every span.

A race shows as a crash, a hang or a wrong number, and under ThreadSanitizer as a report
(run_tsan_module.sh). Status 1 if anything is wrong. 30 seconds if not said otherwise.
"""

from __future__ import annotations

import argparse
import asyncio
import contextvars
import faulthandler
import gc
import logging
import queue
import random
import sys
import threading
import time
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from typing import Any

import spanprof
from spanprof import span

THREADS = 5
ROUND = 1.0
"""Seconds that the threads of a round go on."""
SESSION, BRIEF_SESSION = 0.05, 0.003
"""At most so many seconds pass from one look at a session to the next. Much happens
where a session ends and the next one begins: some rounds have many of them."""
HANGS_AFTER = 120.0

Steps = Generator[None, None, None]
Kind = Callable[["Thread"], int]
"""Returns how many spans it has opened, but for those that `count` was told of."""


class Thrown(Exception):
    pass


class Pause:
    def __await__(self) -> Generator[None, None, None]:
        yield


class Round:
    """What the threads of a round share."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.generators: queue.SimpleQueue[Steps] = queue.SimpleQueue()
        self.coroutines: queue.SimpleQueue[Coroutine[None, None, None]] = (
            queue.SimpleQueue()
        )
        self.entered: queue.SimpleQueue[spanprof.Span] = queue.SimpleQueue()
        self.contexts: queue.SimpleQueue[contextvars.Context] = queue.SimpleQueue()
        self.shared = span("shared")
        self.opened = span("opened").open()
        self.seen: list[spanprof.Span] = [self.shared]
        self.errors: list[BaseException] = []


class Thread(threading.Thread):
    def __init__(self, of: Round, seed: float, kinds: list[Kind]) -> None:
        super().__init__()
        self.round = of
        self.choice = random.Random(seed)
        self.kinds = kinds
        self.count = 0

    def run(self) -> None:
        try:
            while not self.round.over.is_set():
                opened = self.choice.choice(self.kinds)(self)
                self.count += opened  # which it may have counted to, too
        except BaseException as error:
            self.round.errors.append(error)


# --- what breaks no rule ------------------------------------------------------


def nest(thread: Thread) -> int:
    with span("a"), span("b"), span("c", n=thread.choice.randrange(3)):
        pass
    return 3


@span("decorated")
def decorated(depth: int) -> int:
    return decorated(depth - 1) + 1 if depth else 1


def decorate(thread: Thread) -> int:
    return decorated(thread.choice.randrange(4))


def share(thread: Thread) -> int:
    with thread.round.shared, thread.round.shared:
        pass
    return 2


def label(thread: Thread) -> int:
    with spanprof.labels(n=thread.choice.randrange(3)), span("labelled"):
        pass
    return 1


def own_context(thread: Thread) -> int:
    def inside() -> int:
        with span("inside"):
            return nest(thread)

    with span("outside"):
        context = contextvars.copy_context()
        thread.round.contexts.put(context.copy())
        return context.run(inside) + 2


def others_context(thread: Thread) -> int:
    try:
        context = thread.round.contexts.get_nowait()
    except queue.Empty:
        return 0
    # Others copy it while it is in use.
    thread.round.contexts.put(context.copy())
    return context.run(nest, thread)


def count() -> None:
    """A span that the calling thread opens."""
    thread = threading.current_thread()
    assert isinstance(thread, Thread)
    thread.count += 1


def steps(depth: int) -> Steps:
    for _ in range(3):
        with span("generator"):
            count()
            if depth:
                yield from steps(depth - 1)
            try:
                with span("step"):
                    count()
                    yield
            except Thrown:
                with span("thrown"):
                    count()
                    yield


async def wait(depth: int) -> None:
    for _ in range(3):
        async with span("coroutine"):
            count()
            if depth:
                await wait(depth - 1)
            try:
                with span("wait"):
                    count()
                    await Pause()
            except Thrown:
                with span("thrown"):
                    count()
                    await Pause()


def advance(
    thread: Thread, waiting: queue.SimpleQueue[Any], make: Callable[[int], Any]
) -> int:
    """One step of what other threads have begun, or of something new."""
    try:
        target = waiting.get_nowait()
    except queue.Empty:
        target = make(thread.choice.randrange(3))
    what = thread.choice.randrange(20)
    if what == 0:
        return 0  # it dies here
    try:
        if what == 1:
            target.close()
        elif what < 5:
            target.throw(Thrown)
        else:
            target.send(None)
    except (StopIteration, Thrown):
        return 0
    if what != 1:
        waiting.put(target)
    return 0


def generator(thread: Thread) -> int:
    return advance(thread, thread.round.generators, steps)


def coroutine(thread: Thread) -> int:
    return advance(thread, thread.round.coroutines, wait)


async def numbers() -> AsyncIterator[int]:
    with span("async generator"):
        for number in range(3):
            await asyncio.sleep(0)
            yield number


async def task() -> int:
    opened = 1
    with span("task"):
        await asyncio.sleep(0)
        async for number in numbers():
            if number == 1:
                with span("number"):
                    await asyncio.sleep(0)
        async with span("left"):
            await asyncio.sleep(0)
    return opened + 3


def to_thread_span() -> int:
    with span("to thread"):
        return 1


async def tasks(count: int) -> int:
    with span("loop"):
        opened = sum(await asyncio.gather(*[task() for _ in range(count)]))
        opened += await asyncio.to_thread(to_thread_span)
        cut = asyncio.ensure_future(asyncio.sleep(10))
        await asyncio.sleep(0)
        cut.cancel()
    return opened + 1


def loop(thread: Thread) -> int:
    return asyncio.run(tasks(thread.choice.randrange(1, 6)))


NEW_CODE = """
def made():
    with span("made"):
        yield
"""


def new_code(thread: Thread) -> int:
    """Code that dies at once, generator and all; half run."""
    namespace: dict[str, Any] = {"span": span}
    exec(NEW_CODE, namespace)
    next(namespace["made"]())
    return 1


EXACT: list[Kind] = [nest, decorate, label, own_context, others_context, share]
EXACT += [generator, coroutine, loop, new_code]

# --- what does ------------------------------------------------------


def look(thread: Thread) -> int:
    """At other threads' spans."""
    current = spanprof.current_span()
    if current is not None:
        thread.round.seen = [*thread.round.seen[-8:], current]
    seen = thread.choice.choice(thread.round.seen)
    repr(seen), seen.id, seen.is_recording, seen.labels
    with span("seen"):
        thread.round.seen = [*thread.round.seen[-8:], spanprof.current_span() or seen]
    return 0


def child(thread: Thread) -> int:
    """Of a span that others enter and exit."""
    with thread.round.shared, thread.round.shared.span("child"), nested_child(thread):
        return 0


def nested_child(thread: Thread) -> spanprof.Span:
    seen = thread.choice.choice(thread.round.seen)
    try:
        return seen.span("nested child")
    except RuntimeError:  # not open yet
        return span("no child")


def opened_elsewhere(thread: Thread) -> int:
    """One open span on several threads, closed by some of them."""
    opened = thread.round.opened
    try:
        with opened, opened:
            if thread.choice.randrange(50) == 0:
                thread.round.opened = span("opened").open()
                opened.close()
    except RuntimeError:
        pass  # it is closed
    return 0


def hand_over(thread: Thread) -> int:
    """Entered here, exited elsewhere."""
    given = span("handed over")
    given.__enter__()
    thread.round.entered.put(given)
    try:
        taken = thread.round.entered.get_nowait()
    except queue.Empty:
        return 0
    taken.__exit__(None, None, None)
    return 0


def exit_suspended(thread: Thread) -> int:
    """A generator's span, exited by others while it comes and goes."""
    taken = span("taken")

    def taking() -> Steps:
        taken.__enter__()
        for _ in range(5):
            yield

    target = taking()
    next(target)
    thread.round.generators.put(target)
    thread.round.entered.put(taken)
    return 0


def enter_others(thread: Thread) -> int:
    """A span that is another thread's current one."""
    seen = thread.choice.choice(thread.round.seen)
    try:
        with seen:
            pass
    except RuntimeError:
        pass  # it is closed
    return 0


WILD: list[Kind] = [*EXACT, look, child, opened_elsewhere, hand_over]
WILD += [exit_suspended, enter_others]

# --- sessions ------------------------------------------------------


class Told(spanprof.Reporter):
    """Is told of every single span."""

    def __init__(self) -> None:
        self.open: dict[int, str] = {}
        self.errors: list[str] = []

    def span_created(self, id: int, metadata: spanprof.SpanMetadata) -> None:
        if id in self.open:
            self.errors.append(f"{metadata} was created twice")
        self.open[id] = metadata.span_name

    def span_wall(self, id: int, wall: spanprof.SpanWallTime) -> None:
        if id not in self.open:
            self.errors.append(f"wall time of {id}, which is not open")

    def span_destroyed(self, id: int) -> None:
        if self.open.pop(id, None) is None:
            self.errors.append(f"{id} was destroyed, and is not open")


class Batches(spanprof.Reporter):
    def __init__(self) -> None:
        self.told = 0

    def spans(self, batch: Any) -> None:
        self.told += len(batch)

    def profile(self, profile: spanprof.Profile) -> None:
        str(profile)


def settings(choice: random.Random) -> dict[str, Any]:
    result: dict[str, Any] = choice.choice(
        [{"track_wall": True}, {"track_cpu": True}, {"track_all": True}]
    )
    return result | {
        "report_interval": choice.choice([0.01, 0.1, 10.0]),
        "record_labels": choice.choice([(), ("n",)]),
        "max_pending_spans": 1 << 20,
    }


def use(session: spanprof.Session, choice: random.Random) -> None:
    what = choice.randrange(4)
    if what == 0:
        session.snapshot()
    elif what == 1:
        spanprof.flush()
    elif what == 2:
        spanprof.stats()
    else:
        gc.collect()


def sessions_meanwhile(choice: random.Random, until: float) -> None:
    longest = choice.choice([SESSION, BRIEF_SESSION])
    while time.monotonic() < until:
        told = Told()
        all_of_them: list[list[spanprof.Reporter]]
        all_of_them = [[], [told], [Batches()], [Batches(), told]]
        reporters = choice.choice(all_of_them)
        sampler = choice.choice([None, None, spanprof.ProbabilisticSampler(0.5)])
        with spanprof.start(
            reporters=reporters, sampler=sampler, **settings(choice)
        ) as session:
            for _ in range(choice.randrange(8)):
                use(session, choice)
                time.sleep(choice.uniform(0, longest))
        if told.errors or told.open:
            raise AssertionError(f"{told.errors[:5]}, left open: {told.open}")
        time.sleep(choice.uniform(0, longest / 5))


def run_threads(
    choice: random.Random, kinds: list[Kind], meanwhile: Callable[[float], None]
) -> int:
    """How many spans they have opened, if they keep to the rules."""
    of = Round()
    threads = [Thread(of, choice.random(), kinds) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    try:
        meanwhile(time.monotonic() + ROUND)
    finally:
        of.over.set()
        for thread in threads:
            thread.join()
    for error in of.errors:
        raise error
    return sum(thread.count for thread in threads)


def exact_round(choice: random.Random) -> None:
    session: spanprof.Session

    def meanwhile(until: float) -> None:
        while time.monotonic() < until:
            use(session, choice)
            time.sleep(choice.uniform(0, 0.1))

    told = Told()
    with spanprof.start(
        reporters=choice.choice([[], [told], [Batches()]]), **settings(choice)
    ) as session:
        opened = run_threads(choice, EXACT, meanwhile) + 1  # Round.opened
    calls = session.result.totals["calls"]
    if calls != opened:
        raise AssertionError(f"{opened} spans were opened, the profile has {calls}")
    if told.errors or told.open:
        raise AssertionError(f"{told.errors[:5]}, left open: {told.open}")


def wild_round(choice: random.Random) -> None:
    def meanwhile(until: float) -> None:
        sessions_meanwhile(choice, until)

    run_threads(choice, WILD, meanwhile)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seconds", type=float, nargs="?", default=30.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--kinds", help="only these, with commas: nest,loop")
    options = parser.parse_args()
    if options.kinds:
        names = options.kinds.split(",")
        for kinds in (EXACT, WILD):
            kinds[:] = [kind for kind in kinds if kind.__name__ in names] or [nest]
    warnings.filterwarnings("ignore", message="coroutine .* was never awaited")
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    sys.setswitchinterval(1e-5)
    choice = random.Random(options.seed)
    until = time.monotonic() + options.seconds
    number = 0
    while time.monotonic() < until:
        faulthandler.dump_traceback_later(HANGS_AFTER, exit=True)
        wild = choice.random() < 0.6
        try:
            (wild_round if wild else exact_round)(choice)
        except BaseException:
            kind = "wild" if wild else "exact"
            print(f"{kind} round {number} of --seed {options.seed}", flush=True)
            raise
        faulthandler.cancel_dump_traceback_later()
        number += 1
    print(f"{number} rounds, {spanprof.stats()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
