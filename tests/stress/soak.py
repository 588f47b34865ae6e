"""A program that does everything at once, for long: soak.py [--minutes N] [--seed N]

One process runs rounds of some seconds each. A round starts a session with settings and
reporters made up by chance, and then threads that nest, open, decorate and label spans,
keep memory and free it elsewhere, run asyncio tasks and start threads of their own,
while the main thread forks, flushes and takes snapshots. Reporters write files to a
directory that disappears, and others raise, sleep, allocate or open spans at random.
In *exact* rounds the threads end before the session does; in *wild* ones sessions stop
and start while they go on.

Checked in each round:

- exact: spans told and dropped are all that were closed, in each child too; where none
  was dropped, their values add up to the profile, to the last unit
- wild: no more spans are told than the profile knows
- the sum of all reports is the session's result
- no descriptor and no thread stays; resident memory stays within a bound; nothing runs
  out of memory; no round takes longer than two minutes

The first thing that is wrong ends it, with status 1 and the round's number and choices;
a crash or hang tells where all threads were. Needs numpy. Not a part of the test suite:
a run of the default 30 minutes is for before a release, and after a change of the core.
"""

import argparse
import asyncio
import faulthandler
import gc
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy

import spanprof
from spanprof import FileBackend, JsonLinesReporter, PProfReporter, Reporter, span

WARM_UP = 8
"""Rounds until memory, descriptors and threads are what they are to stay."""

GROWTH = 150 << 20
"""Bytes of resident memory that may come on top of that: the most spans that may wait
are on their way to reporters when some round ends."""

MALLOC = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "131072",
    "MALLOC_TRIM_THRESHOLD_": "131072",
}
"""So that what is freed goes back to the system. Left alone, glibc keeps what each
thread's arena has ever held, some 40 MiB each here, and that hides a leak."""

ROUND_LIMIT = 120.0
VALUES = ("wall_busy", "wall_idle", "cpu_user", "cpu_system")
ALLOCATIONS = ("alloc_objects", "alloc_space")


class Wrong(Exception):
    pass


def expect(condition: bool, message: str, *values: object) -> None:
    if not condition:
        raise Wrong(f"{message}: {', '.join(map(str, values))}")


class Count(Reporter):
    """Adds up what it is told. Comes first, and does nothing wrong."""

    def init(self, config: spanprof.ProfileConfig) -> None:
        self.told = 0
        self.sums: Counter[str] = Counter()
        self.whole: spanprof.Profile | None = None

    def spans(self, batch: Any) -> None:
        array = numpy.asarray(batch)
        self.told += len(array)
        for name in VALUES + ALLOCATIONS:
            self.sums[name] += int(array[name].sum())

    def profile(self, profile: spanprof.Profile) -> None:
        self.whole = profile if self.whole is None else self.whole + profile


class Faulty(Reporter):
    def __init__(self, choice: random.Random) -> None:
        self.choice = choice

    def fault(self, *_: object) -> None:
        what = self.choice.randrange(12)
        if what == 0:
            raise LookupError("by chance")
        if what == 1:
            raise SystemExit(9)
        if what == 2:
            time.sleep(self.choice.uniform(0, 0.3))
        if what == 3:
            bytearray(self.choice.randrange(100 << 20))
        if what == 4:
            with span("own"):
                spanprof.flush()

    init = profile = flush = spans = fault


# --- what threads do -----------------------------------------------------------------


class Work:
    """Threads that open spans until told to end, and count those that they closed."""

    def __init__(self, choice: random.Random, threads: int) -> None:
        self.over = threading.Event()
        self.closed = [0] * threads
        self.errors: list[BaseException] = []
        self.handed: list[bytearray] = []  # freed by other threads
        kinds = [self.nest, self.open, self.decorate, self.remember, self.tasks]
        kinds += [self.start_threads, self.hand_over]
        self.threads = [
            threading.Thread(target=self.run, args=(n, choice.choice(kinds)))
            for n in range(threads)
        ]
        for thread in self.threads:
            thread.start()

    def run(self, number: int, kind: Callable[[int], int]) -> None:
        try:
            step = 0
            while not self.over.is_set():
                self.closed[number] += kind(step)
                step += 1
        except BaseException as error:
            self.errors.append(error)

    def end(self) -> int:
        self.over.set()
        for thread in self.threads:
            thread.join()
        self.handed.clear()
        expect(not self.errors, "a thread has failed", *self.errors)
        return sum(self.closed)

    def nest(self, step: int) -> int:
        with span("nest", label=step % 70), span("a"), span("b", other="x"):
            for name in ("c", "d", "e"):
                with span(name):
                    pass
        return 6

    def open(self, step: int) -> int:
        first = span("opened", label="o").open()
        for _ in range(3):
            with first, first.span("child"):
                pass
        first.close()
        return 4

    def decorate(self, step: int) -> int:
        @span("recursive")
        def recurse(depth: int) -> None:
            if depth:
                recurse(depth - 1)

        recurse(step % 30)
        return step % 30 + 1

    def remember(self, step: int) -> int:
        with span("remember"):
            self.handed.append(bytearray(step % 10_000))
            if len(self.handed) > 500:
                self.handed.clear()
            words = [str(number) for number in range(200)]
        with span("forget"):
            del words
        return 2

    def hand_over(self, step: int) -> int:
        mine = span("handed").open()
        with span("meanwhile"):
            pass
        thread = threading.Thread(target=self.finish, args=(mine,))
        thread.start()
        thread.join()
        return 2

    def finish(self, theirs: spanprof.Span) -> None:
        with theirs:
            pass
        theirs.close()

    def tasks(self, step: int) -> int:
        async def task(number: int) -> None:
            with span("task", label=number):
                await asyncio.sleep(0)
            with span("short"):
                pass

        async def main() -> None:
            await asyncio.gather(*[task(number) for number in range(5)])

        asyncio.run(main())
        return 10

    def start_threads(self, step: int) -> int:
        def work() -> None:
            with span("thread"):
                pass

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return 4


# --- a round -------------------------------------------------------------------------


class Round:
    def __init__(self, number: int, seed: int, directory: Path) -> None:
        self.choice = choice = random.Random(f"{seed} {number}")
        self.directory = directory
        self.wild = choice.random() < 0.3
        self.count = Count()
        self.settings: dict[str, Any] = {
            "track_wall": choice.random() < 0.8,
            "track_cpu": choice.random() < 0.7,
            "track_allocations": choice.random() < 0.5,
            "track_heap": choice.random() < 0.4,
            "heap_sample_bytes": choice.choice([0, 0, 10_000]),
            "report_interval": choice.choice([0, 0.001, 0.05, 10]),
            "heap_snapshot_interval": choice.choice([0, 0.1, 10]),
            "record_labels": choice.choice([(), ("label",), ("label", "other")]),
            "max_nodes": choice.choice([20, 100_000]),
            "max_label_values": choice.choice([10, 1000]),
            "max_pending_spans": choice.choice([1000, 50_000, 200_000]),
            "stop_timeout": 60,
        }
        self.threads = choice.randrange(1, 6)
        self.seconds = choice.uniform(0.5, 3)
        self.forks = self.lost = 0

    def __str__(self) -> str:
        kind = "wild" if self.wild else "exact"
        return f"{kind}, {self.threads} threads, {self.settings}"

    def reporters(self) -> list[Reporter]:
        others: list[Reporter] = [
            Faulty(self.choice),
            PProfReporter(FileBackend(self.directory / "profiles", keep=5)),
            JsonLinesReporter(self.directory / "lines" / "spans.jsonl"),
            Faulty(self.choice),
        ]
        return [self.count, *self.choice.sample(others, self.choice.randrange(5))]

    def start(self) -> spanprof.Session:
        self.dropped_before: int = spanprof.stats().spans_dropped
        return spanprof.start(reporters=self.reporters(), **self.settings)

    def disturb(self) -> None:
        """What the main thread does meanwhile, once."""
        what = self.choice.randrange(8)
        if what == 0:
            self.fork()
        elif what == 1:
            shutil.rmtree(self.directory / "profiles", ignore_errors=True)
            shutil.rmtree(self.directory / "lines", ignore_errors=True)
        elif what == 2:
            (self.directory / "lines").mkdir(exist_ok=True)
        elif what == 3:
            spanprof.snapshot()
        elif what == 4:
            spanprof.flush()
        elif what == 5:
            gc.collect()
        time.sleep(self.choice.uniform(0, 0.1))

    def fork(self) -> None:
        self.forks += 1
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                self.in_child()
                status = 0
            except BaseException as error:
                os.write(2, f"in a child: {error!r}\n".encode())
            finally:
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        expect(status == 0, "a child has failed", status)

    def in_child(self) -> None:
        # The watchdog's thread is the parent's, and to call it off would wait for that.
        signal.alarm(int(ROUND_LIMIT / 2))
        before = spanprof.stats().spans_dropped
        for number in range(500):
            with span("child", label=number), span("inner"):
                pass
        expect(spanprof.flush(), "a child's flush takes too long")
        expect(spanprof.stop(), "a child's stop takes too long")
        dropped = spanprof.stats().spans_dropped - before
        told = self.count.told
        expect(told + dropped == 1000, "spans of a child", told, dropped)
        assert self.count.whole is not None
        calls = self.count.whole.totals["calls"]
        expect(calls == 1000, "calls of a child", calls)

    def run(self) -> int:
        """Spans that were told."""
        told = 0
        until = time.monotonic() + self.seconds
        session = self.start()
        work = Work(self.choice, self.threads)
        try:
            while time.monotonic() < until:
                self.disturb()
                if self.wild and self.choice.random() < 0.3:
                    told += self.check(session, None)
                    session = self.start()
        finally:
            closed = None if self.wild else work.end()
            told += self.check(session, closed)
            if self.wild:
                work.end()
        return told

    def check(self, session: spanprof.Session, closed: int | None) -> int:
        expect(session.stop(), "a stop takes too long")
        count, result = self.count, session.result
        dropped = spanprof.stats().spans_dropped - self.dropped_before
        self.lost += dropped
        calls = result.totals["calls"]
        if closed is None:
            expect(count.told <= calls, "more told than there are", count.told, calls)
        else:
            all_told = count.told + dropped
            expect(
                all_told == closed, "told, dropped, closed", count.told, dropped, closed
            )
            expect(calls == closed, "calls, closed", calls, closed)
        expect(count.whole == result, "the sum of reports is another")
        if closed is not None and dropped == 0:
            self.check_values(result)
        return count.told

    def check_values(self, result: spanprof.Profile) -> None:
        names = [name for name in VALUES if name in result.totals]
        if not self.settings["heap_sample_bytes"]:  # or what is rounded one by one
            names += [name for name in ALLOCATIONS if name in result.totals]
        # The system's part of CPU time may be found out when a span is over.
        told, whole = dict(self.count.sums), dict(result.totals)
        for sums in (told, whole):
            sums["cpu"] = sums.get("cpu_user", 0) + sums.get("cpu_system", 0)
        for name in {"cpu", *names} - {"cpu_user", "cpu_system"}:
            expect(told.get(name, 0) == whole[name], name, told[name], whole[name])


# --- the process ---------------------------------------------------------------------


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def numbers_of(name: str) -> int:
    return len(os.listdir(f"/proc/self/{name}"))


class Bounds:
    """That nothing stays behind."""

    def __init__(self) -> None:
        self.descriptors = self.threads = self.memory = 0
        self.most = 0

    def check(self, number: int) -> None:
        gc.collect()
        deadline = time.monotonic() + 10
        while numbers_of("task") > max(self.threads, 1) and number >= WARM_UP:
            # A thread that has been joined may still be about to end.
            expect(time.monotonic() < deadline, "threads stay", numbers_of("task"))
            time.sleep(0.01)
        memory = resident()
        self.most = max(self.most, memory)
        if number < WARM_UP:
            self.descriptors = max(self.descriptors, numbers_of("fd"))
            self.threads = 2  # the main one, and faulthandler's
            self.memory = max(self.memory, memory)
            return
        descriptors = numbers_of("fd")
        expect(descriptors <= self.descriptors, "descriptors stay", descriptors)
        expect(memory <= self.memory + GROWTH, "memory grows", self.memory, memory)
        expect(spanprof.stats().out_of_memory == 0, "out of memory")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    options = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in MALLOC.items()):
        environment = os.environ | MALLOC
        os.execve(sys.executable, [sys.executable, *sys.argv], environment)
    warnings.simplefilter("ignore")
    logging.getLogger("spanprof").addHandler(logging.NullHandler())
    logging.getLogger("spanprof").propagate = False
    faulthandler.enable()
    print(f"seed {options.seed}", flush=True)
    bounds = Bounds()
    until = time.monotonic() + options.minutes * 60
    number = told = lost = forks = 0
    with tempfile.TemporaryDirectory() as directory:
        while time.monotonic() < until:
            faulthandler.dump_traceback_later(ROUND_LIMIT, exit=True)
            current = Round(number, options.seed, Path(directory))
            try:
                told += current.run()
                bounds.check(number)
            except Wrong as error:
                print(f"round {number} ({current}): {error}")
                return 1
            lost += current.lost
            forks += current.forks
            number += 1
    print(
        f"{number} rounds: {told:,} spans told, {lost:,} dropped, {forks} forks, "
        f"{spanprof.stats().reporter_errors:,} errors of reporters, "
        f"at most {bounds.most >> 20} MiB resident"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
