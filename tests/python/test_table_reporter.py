"""The live table: what a terminal shows of it, and in what state it is left."""

import io
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import spanprof
from spanprof import TableReporter, span

from .helpers import ManualClock, in_child, messages, python_environment, run_python

rich_console: Any = pytest.importorskip("rich.console")


class Screen:
    """As much of a terminal as the table needs; anything else is an error."""

    def __init__(self, text: str) -> None:
        self.lines = [""]
        self.row = self.column = 0
        self.has_cursor = True
        for part in re.findall(r"\x1b\[[?0-9;]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+", text):
            self._take(part)

    def _take(self, part: str) -> None:
        if part == "\r":
            self.column = 0
        elif part == "\n":
            self.row += 1
            self.column = 0
            self.lines += [""] * (self.row + 1 - len(self.lines))
        elif part in ("\x1b[?25l", "\x1b[?25h"):
            self.has_cursor = part.endswith("h")
        elif part == "\x1b[2K":
            self.lines[self.row] = ""
        elif up := re.fullmatch(r"\x1b\[(\d+)A", part):
            self.row -= int(up[1])
            assert self.row >= 0, "above the first line"
        else:
            assert not part.startswith("\x1b"), part
            line = self.lines[self.row].ljust(self.column)
            end = self.column + len(part)
            self.lines[self.row] = line[: self.column] + part + line[end:]
            self.column = end

    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.lines).rstrip("\n")


def terminal(height: int = 25, width: int = 70, **options: Any) -> Any:
    return rich_console.Console(
        file=io.StringIO(),
        force_terminal=True,
        color_system=None,
        height=height,
        width=width,
        _environ={},
        **options,
    )


def screen(console: Any) -> Screen:
    return Screen(console.file.getvalue())


def table(profile: spanprof.Profile, **options: Any) -> str:
    from spanprof.table import render

    return render(profile.tree, **{"width": 70, **options})


def test_it_is_drawn_anew_at_each_report(clock: ManualClock) -> None:
    console = terminal()
    reporter = TableReporter(console=console)
    with spanprof.start(
        track_wall=True, track_cpu=True, reporters=[reporter], report_interval=0
    ) as session:
        for number in range(3):
            with span("a"), span(f"b{number}"):
                clock(1_000_000, 300)
            spanprof.flush()
            shown = screen(console)
            assert shown.text() == table(session.snapshot())
            assert shown.has_cursor, "nothing is to be put right if it is killed"
    shown = screen(console)
    assert shown.text() == table(session.result)
    assert shown.has_cursor
    assert (shown.row, shown.column) == (len(shown.text().split("\n")), 0)


def test_it_shows_what_the_session_has_summed_up(clock: ManualClock) -> None:
    """Also with heap snapshots that come less often than reports."""
    console = terminal(width=200)
    kept = []
    with spanprof.start(
        track_all=True, reporters=[TableReporter(console=console)], report_interval=0
    ) as session:
        for _ in range(3):
            with span("a"):
                kept.append(bytearray(100_000))
                clock(5)
            spanprof.flush()
    assert screen(console).text() == table(session.result, width=200)
    assert "heap self" in screen(console).text()


def test_options_are_those_of_the_other_tables(clock: ManualClock) -> None:
    console = terminal()
    reporter = TableReporter(console=console, limit=3, sort="calls", flat=True)
    with spanprof.start(track_wall=True, reporters=[reporter]) as session:
        for number in range(5):
            for _ in range(number + 1):
                with span("all"), span(f"b{number}"):
                    clock(1000)
    assert screen(console).text() == table(
        session.result, limit=3, sort="calls", flat=True
    )


def test_it_fits_a_low_terminal_until_the_end(clock: ManualClock) -> None:
    console = terminal(height=12)
    reporter = TableReporter(console=console)
    with spanprof.start(track_wall=True, reporters=[reporter]) as session:
        for number in range(20):
            with span(f"b{number:02}"):
                clock(1000)
        spanprof.flush()
        lines = screen(console).text().split("\n")
        assert len(lines) == 12
        assert lines[-1].startswith("all spans")
        assert lines[-3].startswith("(14 more, 1.00 µs or less)")
    assert screen(console).text() == table(session.result)
    assert len(screen(console).text().split("\n")) == 25


def test_without_a_terminal_there_is_one_table_at_the_end(clock: ManualClock) -> None:
    file = io.StringIO()
    with spanprof.start(track_wall=True, reporters=[TableReporter(file)]) as session:
        for number in range(3):
            with span(f"{number}" * 60):
                clock(1000)
            spanprof.flush()
        assert file.getvalue() == ""
    assert file.getvalue() == table(session.result, width=1000) + "\n"


def test_what_goes_through_the_console_is_above(clock: ManualClock) -> None:
    console = terminal()
    with spanprof.start(
        track_wall=True, reporters=[TableReporter(console=console)]
    ) as session:
        with span("a"):
            clock(1000)
        spanprof.flush()
        console.print("printed")
        spanprof.flush()
    assert screen(console).text() == "printed\n" + table(session.result)


def test_a_second_session_has_a_table_of_its_own(clock: ManualClock) -> None:
    console = terminal()
    reporter = TableReporter(console=console)
    tables = []
    for name in "ab":
        with spanprof.start(track_wall=True, reporters=[reporter]) as session:
            with span(name):
                clock(1000)
            spanprof.flush()
        tables.append(table(session.result))
    assert screen(console).text() == "\n".join(tables)


class Breaks(io.StringIO):
    broken = False

    def write(self, text: str) -> int:
        if self.broken:
            raise OSError("the terminal is gone")
        return super().write(text)


def test_rule_6_3_a_terminal_that_fails(
    clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    console = terminal()
    console.file = file = Breaks()
    with spanprof.start(
        track_wall=True, reporters=[TableReporter(console=console)]
    ) as session:
        with span("a"):
            clock(1000)
        spanprof.flush()
        file.broken = True
        spanprof.flush()
        file.broken = False
        assert messages(caplog) == ["TableReporter.flush() failed"]
        spanprof.flush()
    assert len(messages(caplog)) == 1
    shown = screen(console)
    assert shown.text().endswith(table(session.result))
    assert shown.has_cursor


def test_rule_6_6_a_child_does_not_draw(tmp_path: Path) -> None:
    path = tmp_path / "terminal"
    with path.open("w", newline="") as file:
        console = terminal()
        console.file = file
        with spanprof.start(
            track_wall=True, reporters=[TableReporter(console=console)]
        ) as session:
            with span("a"):
                pass
            spanprof.flush()
            before = path.read_bytes()

            def work() -> None:
                with span("b"):
                    pass
                assert spanprof.flush()
                assert spanprof.stop()
                file.flush()

            in_child(work)
            assert path.read_bytes() == before
        assert Screen(path.read_bytes().decode()).text() == table(session.result)


PROGRAM = """
import os, signal, sys, time
import spanprof
from spanprof import span

assert os.isatty(2)
spanprof.start(track_wall=True, reporters=[spanprof.TableReporter()], report_interval=0)

def work():
    with span("outer"), span("inner"):
        pass
    spanprof.flush()

for _ in range(3):
    work()
"""


def in_terminal(code: str, tmp_path: Path, columns: int = 72) -> tuple[str, int]:
    """Run a program whose standard error is a terminal; all that it shows, and how the
    program ended. The terminal is checked to be as it was."""
    import fcntl
    import struct
    import termios

    script = tmp_path / "program.py"
    script.write_text(code)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    before = termios.tcgetattr(theirs)
    program = subprocess.Popen(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env=python_environment() | {"TERM": "xterm", "NO_COLOR": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    )
    shown = b""
    deadline = time.monotonic() + 60
    try:
        while program.poll() is None and time.monotonic() < deadline:
            if select.select([ours], [], [], 0.05)[0]:
                shown += os.read(ours, 65536)
        while select.select([ours], [], [], 0)[0]:
            shown += os.read(ours, 65536)
        assert termios.tcgetattr(theirs) == before
    finally:
        program.kill()
        status = program.wait()
        os.close(ours)
        os.close(theirs)
    return shown.decode(), status


@pytest.mark.parametrize(
    ("end", "status", "calls"),
    [
        ("", 0, 3),
        ("spanprof.stop()", 0, 3),
        ("sys.exit(3)", 3, 3),
        ("raise LookupError", 1, 3),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, 3),
        ("os._exit(4)", 4, 3),
    ],
)
def test_a_real_terminal(tmp_path: Path, end: str, status: int, calls: int) -> None:
    text, ended = in_terminal(PROGRAM + end, tmp_path)
    assert ended == status
    shown = Screen(text)
    assert shown.has_cursor
    assert shown.text().count("all spans") == 1, "drawn over, not below"
    row = next(line for line in shown.lines if line.startswith("  inner"))
    assert row.split()[1] == str(calls)
    assert max(map(len, shown.lines)) <= 72


def test_a_program_that_forks_in_a_real_terminal(tmp_path: Path) -> None:
    code = (
        PROGRAM
        + """
import warnings
warnings.simplefilter("ignore")
for _ in range(3):
    pid = os.fork()
    work()
    if pid == 0:
        sys.exit()
    os.waitpid(pid, 0)
"""
    )
    text, status = in_terminal(code, tmp_path)
    assert status == 0
    shown = Screen(text)
    assert shown.text().count("all spans") == 1
    row = next(line for line in shown.lines if line.startswith("  inner"))
    assert row.split()[1] == "6"


def test_without_rich(tmp_path: Path) -> None:
    code = """
import sys
sys.modules["rich"] = None
import spanprof
try:
    spanprof.TableReporter()
except ImportError as error:
    print(error)
"""
    done = run_python(code, cwd=tmp_path)
    assert done.stdout == 'TableReporter needs rich: pip install "spanprof[rich]"\n'


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sort": "size"}, ValueError, "sort must be one of calls, "),
        ({"limit": -1}, ValueError, "limit must not be negative"),
        ({"limit": 1.5}, TypeError, "limit must be an int"),
        ({"console": 1}, TypeError, "console must be a rich Console"),
        ({"file": sys.stderr, "console": 1}, TypeError, "not to both"),
    ],
)
def test_rule_3_8_bad_options(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        TableReporter(**options)
