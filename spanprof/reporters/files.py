"""Profiles as files in a directory."""

from __future__ import annotations

import itertools
import os
from collections import deque

from ..atomicfile import write_file
from ..config import check_positive

SUFFIX = ".pb.gz"

_numbers = itertools.count(1)
"""Of this process, over all backends."""


class FileBackend:
    """Writes each profile into a file of its own.

    Names sort by the time at which the profile begins, and never collide, also
    between processes: ``20260102T030405.123456789Z-PID-N.cpu.pb.gz``. Times are UTC,
    N counts the files of the process, in six digits. A file is there as a whole or
    not at all and has mode 0600; the directory is made, with mode 0700, when it is
    missing.

    With ``keep``, only that many of the newest files of each kind stay, of those
    that this object wrote.
    """

    def __init__(
        self, directory: str | os.PathLike[str], *, keep: int | None = None
    ) -> None:
        # A program may change its directory before the first file is written.
        self._directory = os.path.abspath(os.fspath(directory))
        self._keep = None if keep is None else check_positive("keep", keep)
        self._written: dict[str, deque[str]] = {}

    @property
    def directory(self) -> str:
        """Absolute path of the directory."""
        return self._directory

    def save_profile(self, kind: str, start: int, end: int, data: bytes) -> None:
        """Write ``data``; OSError if that is not possible."""
        from datetime import UTC, datetime

        seconds, nanoseconds = divmod(start, 10**9)
        time = f"{datetime.fromtimestamp(seconds, UTC):%Y%m%dT%H%M%S}"
        name = (
            f"{time}.{nanoseconds:09}Z-{os.getpid()}-{next(_numbers):06}.{kind}{SUFFIX}"
        )
        path = os.path.join(self._directory, name)
        os.makedirs(self._directory, mode=0o700, exist_ok=True)
        write_file(path, data)
        if self._keep is not None:
            self._forget_old(kind, path, self._keep)

    def _forget_old(self, kind: str, newest: str, keep: int) -> None:
        written = self._written.setdefault(kind, deque())
        written.append(newest)
        while len(written) > keep:
            try:
                os.unlink(written.popleft())
            except OSError:
                pass  # somebody else has been faster

    def __repr__(self) -> str:
        return f"FileBackend({self._directory!r})"
