"""Writing to the standard streams of a program that is not ours.

At the end of a program its ``sys.stdout`` may be closed, replaced, full or a broken
pipe. None of that may change its exit status or end up in a file that is not the
terminal any more.
"""

import os
import select
import signal
import sys
import threading
from contextlib import suppress

_PATIENCE = 10.0
"""Seconds to wait for a reader of a pipe that does not block."""


class Stream:
    """A standard stream as it is now: 1 for output, 2 for errors.

    Writing goes past Python's buffers: what is left in there when a write fails would
    be tried again at exit, and change the exit status.
    """

    def __init__(self, number: int) -> None:
        self._number = number
        self._identity = _identify(number)
        python = sys.__stdout__ if number == 1 else sys.__stderr__
        self._encoding = getattr(python, "encoding", None) or "utf-8"

    @property
    def is_same(self) -> bool:
        """Whether the descriptor still leads to where it did at first."""
        return self._identity is not None and _identify(self._number) == self._identity

    def write(self, text: str) -> None:
        """Write, whatever the encoding. Errors of the system are let pass."""
        if not self.is_same:
            return
        data = encode(text, self._encoding)
        with suppress(OSError), _IgnoredSigpipe():
            while data:
                try:
                    data = data[os.write(self._number, data) :]
                except BlockingIOError:
                    ready = select.select([], [self._number], [], _PATIENCE)[1]
                    if not ready:
                        return


def flush_standard_streams() -> None:
    """What the program has written goes out before what we write.

    An error is the program's own, and is raised again by Python at the end.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()


def encode(text: str, encoding: str) -> bytes:
    """``text`` in an encoding that may lack some of its characters."""
    try:
        return text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        plain = text.translate({ord("─"): "-", ord("µ"): "u", ord("…"): "~"})
        return plain.encode("ascii", "backslashreplace")


def _identify(number: int) -> tuple[int, int] | None:
    try:
        status = os.fstat(number)
    except OSError:
        return None
    return status.st_dev, status.st_ino


class _IgnoredSigpipe:
    """No SIGPIPE meanwhile, also if the program has asked for its default."""

    def __enter__(self) -> None:
        self._handler = None
        if threading.current_thread() is threading.main_thread():
            with suppress(ValueError):  # in a subinterpreter
                self._handler = signal.signal(signal.SIGPIPE, signal.SIG_IGN)

    def __exit__(self, *error: object) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGPIPE, self._handler)
