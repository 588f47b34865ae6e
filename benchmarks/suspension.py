"""What a span costs around an await, and what a yield costs inside one.

The same loop of tasks that wait for each other's turns, with and without spans; in one
session, in turns. Yields of code that has no spans are compared with those of a program
without any session.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Generator, Iterator
from statistics import median

import harness

import spanprof

TASKS = 10
SLICE = 20_000
ROUNDS = 25
GENERATIONS = 4
"""How often all processes are made anew."""

SPAN_LIMIT = 2.5
YIELD_LIMIT = 150  # ns
UNAFFECTED = 1.02


async def awaits(n: int) -> None:
    for _ in range(n):
        await asyncio.sleep(0)


async def sync_spans(n: int) -> None:
    for _ in range(n):
        with spanprof.span("synchronous"):
            pass
        await asyncio.sleep(0)


async def spans_around_awaits(n: int) -> None:
    for _ in range(n):
        with spanprof.span("around"):
            await asyncio.sleep(0)


async def awaits_in_a_span(n: int) -> None:
    with spanprof.span("outer"):
        for _ in range(n):
            await asyncio.sleep(0)


def in_tasks(body: Callable[[int], Coroutine[None, None, None]]) -> harness.Case:
    async def tasks(n: int) -> None:
        await asyncio.gather(*(body(n // TASKS) for _ in range(TASKS)))

    loop = asyncio.new_event_loop()
    return lambda n: loop.run_until_complete(tasks(n))


class Pause:
    def __await__(self) -> Generator[None, None, None]:
        yield


PAUSE = Pause()


async def pauses(n: int) -> None:
    for _ in range(n):
        await PAUSE


async def spans_around_pauses(n: int) -> None:
    for _ in range(n):
        with spanprof.span("around"):
            await PAUSE


async def pauses_in_a_span(n: int) -> None:
    with spanprof.span("outer"):
        for _ in range(n):
            await PAUSE


def spans(n: int) -> None:
    for _ in range(n):
        with spanprof.span("synchronous"):
            pass


def by_hand(body: Callable[[int], Coroutine[None, None, None]]) -> harness.Case:
    def run(n: int) -> None:
        send = body(n).send
        with contextlib.suppress(StopIteration):
            while True:
                send(None)

    return run


def numbers(n: int) -> Iterator[int]:
    yield from range(n)


def generator(n: int) -> None:
    for _ in numbers(n):
        pass


def some_spans() -> Iterator[None]:
    with spanprof.span("so that suspensions are told"):
        yield


CASES: harness.Cases = {
    "asyncio: await": in_tasks(awaits),
    "asyncio: span, await": in_tasks(sync_spans),
    "asyncio: span around await": in_tasks(spans_around_awaits),
    "asyncio: await in a span": in_tasks(awaits_in_a_span),
    "by hand: await": by_hand(pauses),
    "by hand: span around await": by_hand(spans_around_pauses),
    "by hand: await in a span": by_hand(pauses_in_a_span),
    "span": spans,
    "generator": generator,
}
UNWATCHED = ("asyncio: await", "by hand: await", "generator")


def work(mode: str) -> None:
    if mode == "no session":
        harness.serve(CASES)
        return
    with spanprof.start(track_wall=True, track_cpu=True):
        list(some_spans())
        harness.serve(CASES)


def measure() -> harness.Rounds:
    with contextlib.ExitStack() as stack:
        session = stack.enter_context(harness.Worker("session"))
        without = stack.enter_context(harness.Worker("no session"))
        timed = {case: (session, case) for case in CASES}
        timed |= {f"no session: {case}": (without, case) for case in UNWATCHED}
        return harness.take_turns(timed, SLICE, ROUNDS)


def more(results: harness.Rounds, case: str, base: str) -> list[float]:
    """What the case costs beyond another one, in each round."""
    return [a - b for a, b in zip(results[case], results[base], strict=True)]


def report(results: harness.Rounds) -> None:
    asyncio_sync = median(more(results, "asyncio: span, await", "asyncio: await"))
    hand_sync = median(results["span"])
    for name, sync in (("asyncio", asyncio_sync), ("by hand", hand_sync)):
        base = f"{name}: await"
        around = median(more(results, f"{name}: span around await", base))
        harness.report(
            f"span around an await ({name})",
            f"at most {SPAN_LIMIT} synchronous spans there",
            f"{around / sync:.2f} ({around:.0f} ns, {sync:.0f} ns)",
            around <= SPAN_LIMIT * sync,
        )
        inside = median(more(results, f"{name}: await in a span", base))
        harness.report(
            f"yield of code with spans ({name})",
            f"at most {YIELD_LIMIT} ns more",
            f"{inside:.0f} ns",
            inside <= YIELD_LIMIT,
        )
    for case in UNWATCHED:
        measured = harness.ratio(results, case, f"no session: {case}")
        harness.report(
            f"yield of code without spans ({case})",
            f"at most {UNAFFECTED} of one without a session",
            f"{measured:.3f}",
            measured <= UNAFFECTED,
        )


def main() -> None:
    harness.heading("suspension")
    results: harness.Rounds = {}
    for _ in range(GENERATIONS):
        for name, values in measure().items():
            results.setdefault(name, []).extend(values)
    for name, values in results.items():
        print(f"{name:<36}{median(values):>10.1f} ns")
    report(results)


if __name__ == "__main__":
    mode = harness.worker_mode()
    if mode is None:
        main()
    else:
        work(mode)
