"""What a decorated coroutine or generator function costs, beside the same function with
a span inside it and without any; per call and per step."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator
from statistics import median
from typing import Any

import harness

import spanprof

SLICE = 20_000
ROUNDS = 25

# Nanoseconds more than beside it. An asynchronous generator's step is dear by itself,
# and a decorated one makes two.
CALL_LIMITS = {"coroutine": 500, "generator": 500, "async generator": 1000}
STEP_LIMITS = {"coroutine": 50, "generator": 50, "async generator": 250}


class Pause:
    def __await__(self) -> Generator[None, None, None]:
        yield


PAUSE = Pause()


async def coroutine(n: int) -> None:
    for _ in range(n):
        await PAUSE


async def coroutine_with(n: int) -> None:
    with spanprof.span("inside"):
        for _ in range(n):
            await PAUSE


def generator(n: int) -> Iterator[int]:
    yield from range(n)


def generator_with(n: int) -> Iterator[int]:
    with spanprof.span("inside"):
        yield from range(n)


async def async_generator(n: int) -> AsyncIterator[int]:
    for i in range(n):
        yield i


async def async_generator_with(n: int) -> AsyncIterator[int]:
    with spanprof.span("inside"):
        for i in range(n):
            yield i


def drive(steps: Coroutine[Any, Any, object]) -> None:
    send = steps.send
    with contextlib.suppress(StopIteration):
        while True:
            send(None)


def exhaust(steps: Iterator[int]) -> None:
    for _ in steps:
        pass


def exhaust_async(steps: AsyncIterator[int]) -> None:
    async def run() -> None:
        async for _ in steps:
            pass

    drive(run())


def calls_of(
    function: Callable[[int], Any], use: Callable[[Any], None]
) -> harness.Case:
    def case(n: int) -> None:
        for _ in range(n):
            use(function(0))

    return case


def steps_of(
    function: Callable[[int], Any], use: Callable[[Any], None]
) -> harness.Case:
    return lambda n: use(function(n))


KINDS: dict[str, tuple[Callable[..., Any], Callable[..., Any], Callable[..., None]]] = {
    "coroutine": (coroutine, coroutine_with, drive),
    "generator": (generator, generator_with, exhaust),
    "async generator": (async_generator, async_generator_with, exhaust_async),
}


def cases() -> harness.Cases:
    result = {}
    for kind, (plain, inside, use) in KINDS.items():
        decorated = spanprof.span("decorated")(plain)
        for way, function in (
            ("plain", plain),
            ("with", inside),
            ("decorated", decorated),
        ):
            result[f"{kind}, call, {way}"] = calls_of(function, use)
            result[f"{kind}, step, {way}"] = steps_of(function, use)
    return result


def work(mode: str) -> None:
    if mode == "session":
        with spanprof.start(track_wall=True, track_cpu=True):
            harness.serve(cases())
    else:
        harness.serve(cases())


def measure() -> harness.Rounds:
    with harness.Worker("session") as session, harness.Worker("no session") as without:
        timed = {}
        for name, worker in (("session", session), ("no session", without)):
            timed |= {f"{name}: {case}": (worker, case) for case in cases()}
        return harness.take_turns(timed, SLICE, ROUNDS)


def more(results: harness.Rounds, case: str, base: str) -> float:
    """What the case costs beyond another one: the median of the rounds' differences."""
    pairs = zip(results[case], results[base], strict=True)
    return median(value - other for value, other in pairs)


def report(results: harness.Rounds) -> None:
    for mode in ("session", "no session"):
        for kind in KINDS:
            for what in ("call", "step"):
                label = f"{mode}: {kind}, {what}, "
                # Without a session there is nothing to compare with but nothing at all.
                base = "with" if mode == "session" else "plain"
                limit = (CALL_LIMITS if what == "call" else STEP_LIMITS)[kind]
                extra = more(results, label + "decorated", label + base)
                times = harness.ratio(results, label + "decorated", label + base)
                harness.report(
                    f"decorated {kind}, {what}, {mode}",
                    f"at most {limit} ns more than {base}",
                    f"{extra:.0f} ns, {times:.2f} times",
                    extra <= limit,
                )


def main() -> None:
    harness.heading("decorators of coroutine and generator functions")
    results = measure()
    for name, values in results.items():
        print(f"{name:<46}{median(values):>10.1f} ns")
    report(results)


if __name__ == "__main__":
    mode = harness.worker_mode()
    if mode is None:
        main()
    else:
        work(mode)
