"""Interpreters that end, one after another: interpreters.py [COUNT] [--seed N]

Each runs a program made up by chance: reporters that fail, hang, come back late or
fork, daemon threads inside spans, asyncio, children, in any combination, and one of
the ways to end. It must end in time and with the status of that way, and a reporter
that comes first must have been told everything once. COUNT is 1000 if not given; what
fails is printed with the number that runs it again: interpreters.py 1 --seed NUMBER.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

LIMIT = 60.0
"""Seconds that a program may take; it has some tenths of a second to do."""

PROGRAM = """
import asyncio, ctypes, os, signal, sys, threading, time, warnings
import spanprof
from spanprof import span

warnings.simplefilter("ignore")

class First(spanprof.Reporter):
    told = calls = 0
    def profile(self, profile):
        self.calls += profile.totals["calls"]
    def spans(self, batch):
        self.told += len(batch)
    def flush(self):
        if self.ending and os.getpid() == parent:
            # Threads go on in the middle of a stop: the profile knows more of them.
            dropped = spanprof.stats().spans_dropped
            told = self.told + (dropped if not threads else 0)
            good = told <= self.calls and (threads or self.calls <= told + 2)
            os.write(1, f"{bool(good)} {told} {dropped} {self.calls}\\n".encode())

class Then(spanprof.Reporter):
    def profile(self, profile):
        FAULT
    def flush(self):
        FAULT

def work():
    keep = span("open").open()
    while True:
        with keep, span("a"), span("b", n=1):
            pass

async def task(number):
    with span("task"):
        await asyncio.sleep(0)

async def tasks():
    await asyncio.gather(*[task(n) for n in range(10)])

def snapshot():
    try:
        spanprof.snapshot()
    except RuntimeError:
        pass  # it is over

def in_child():
    with span("child"):
        pass
    spanprof.flush()

def fork(end):
    pid = os.fork()
    if pid == 0:
        in_child()
        end()
    else:
        os.waitpid(pid, 0)

parent = os.getpid()
threads = []
spanprof.start(track_all=True, report_interval=INTERVAL, stop_timeout=TIMEOUT,
               record_labels=["n"], reporters=[First(), Then()])
with span("main"), span("inner"):
    pass
PARTS
END
"""

FAULTS = [
    "pass",
    "raise LookupError",
    "sys.exit(9)",
    "raise KeyboardInterrupt",
    "spanprof.stop()",
    "spanprof.flush()",
    "spanprof.start()",
    "span('own').__enter__()",
    "time.sleep({pause})",
    "ctypes.CDLL(None).usleep(int({pause} * 1e6))",
    "ctypes.PyDLL(None).usleep(int({pause} * 1e6))",
    "threading.Lock().acquire(timeout={pause})",
    "time.sleep(1000)",
    "threading.Event().wait()",
    "while True: pass",
    "fork(lambda: os._exit(0))",
    "fork(lambda: None)",
    "bytearray(1 << 28)",
]

PARTS = [
    "threads.append(threading.Thread(target=work, daemon=True)); threads[-1].start()",
    "threads.append(threading.Thread(target=work, daemon=True)); threads[-1].start()",
    "asyncio.run(tasks())",
    "fork(lambda: os._exit(0))",
    "spanprof.flush(0.05)",
    "snapshot()",
    "span('left').__enter__()",
    "time.sleep({pause})",
    "threading.Thread(target=spanprof.stop, daemon=True).start()",
]

ENDS = {
    "": 0,
    "sys.exit(3)": 3,
    "raise LookupError": 1,
    "spanprof.stop()": 0,
    "spanprof.stop(0)": 0,
    "threading.Thread(target=in_child).start()": 0,
    "import atexit; atexit.register(in_child)": 0,
}


def program(number: int) -> tuple[str, int]:
    """The program of that number, and the status with which it ends."""
    choice = random.Random(number)

    def filled(text: str) -> str:
        return text.format(pause=round(choice.uniform(0, 0.05), 4))

    parts = "\n".join(filled(p) for p in choice.sample(PARTS, choice.randrange(5)))
    end = choice.choice(list(ENDS))
    code = (
        PROGRAM.replace("FAULT", filled(choice.choice(FAULTS)))
        .replace("INTERVAL", choice.choice(["0", "0.001", "10"]))
        .replace("TIMEOUT", choice.choice(["0", "0.01", "0.1"]))
        .replace("PARTS", parts)
        .replace("END", end)
    )
    return code, ENDS[end]


def run(number: int, directory: Path) -> str:
    """Run a program; what is wrong with how it went, if anything."""
    code, status = program(number)
    path = directory / f"{number}.py"
    path.write_text(code)
    began = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, "-X", "faulthandler", str(path)],
            env=os.environ | {"PYTHONHASHSEED": str(number % 2**32)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        return f"hangs: {error.stdout!r} {error.stderr!r}"
    took = time.monotonic() - began
    if done.returncode != status:
        return f"status {done.returncode} in place of {status}: {done.stderr}"
    # Its time-out may have been too short to tell anything.
    lines = done.stdout.splitlines()
    if len(lines) > 1 or any(not line.startswith("True") for line in lines):
        return f"told {lines}"
    return f"took {took:.1f} s" if took > LIMIT / 2 else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=1000)
    parser.add_argument("--seed", type=int, default=0, help="number of the first one")
    parser.add_argument("--jobs", type=int, default=2, help="programs at a time")
    options = parser.parse_args()
    failed = 0
    numbers = range(options.seed, options.seed + options.count)
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory() as directory,
        ThreadPoolExecutor(options.jobs) as pool,
    ):
        results = pool.map(lambda number: run(number, Path(directory)), numbers)
        for number, wrong in zip(numbers, results, strict=True):
            if wrong:
                failed += 1
                print(f"--- {number}: {wrong}\n{program(number)[0][-400:]}")
    took = time.monotonic() - began
    print(f"{options.count - failed} passed, {failed} failed in {took:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
