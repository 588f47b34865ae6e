"""Profiles as files in a directory."""

from __future__ import annotations

import itertools
import os

from ..atomicfile import write_file
from ..config import check_positive
from ..counters import count
from ..logs import WARNING, LimitedLog
from .base import import_now

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
    that this object wrote, here and in processes forked from this one. Their names
    have one more part, by which they are told from others:
    ``...Z-PID-N-0123456789abcdef.cpu.pb.gz``. Older ones are deleted after a write. One
    that cannot be deleted is counted in ``stats().delete_failures``, and logged.
    """

    def __init__(
        self, directory: str | os.PathLike[str], *, keep: int | None = None
    ) -> None:
        import_now("datetime")
        # A program may change its directory before the first file is written.
        self._directory = os.path.abspath(os.fspath(directory))
        self._keep = None if keep is None else check_positive("keep", keep)
        # Inherited by a fork, and by nothing else; process numbers would not do where
        # containers share a directory.
        self._family = "" if keep is None else f"-{os.urandom(8).hex()}"
        self._log = LimitedLog(1)

    def init(self) -> None:
        """Called when a session begins, and in a child after a fork."""
        self._log = LimitedLog(1)  # its lock may be held by a thread that is no more

    @property
    def directory(self) -> str:
        """Absolute path of the directory."""
        return self._directory

    def save_profile(self, kind: str, start: int, end: int, data: bytes) -> None:
        """Write ``data``; OSError if that is not possible."""
        from datetime import UTC, datetime

        seconds, nanoseconds = divmod(start, 10**9)
        time = f"{datetime.fromtimestamp(seconds, UTC):%Y%m%dT%H%M%S}"
        number = f"{os.getpid()}-{next(_numbers):06}"
        end_of_name = f"{self._family}.{kind}{SUFFIX}"
        name = f"{time}.{nanoseconds:09}Z-{number}{end_of_name}"
        path = os.path.join(self._directory, name)
        os.makedirs(self._directory, mode=0o700, exist_ok=True)
        write_file(path, data)
        if self._keep is not None:
            self._delete_old(end_of_name, self._keep)

    def _delete_old(self, end_of_name: str, keep: int) -> None:
        try:
            names = os.listdir(self._directory)
        except OSError as error:
            self._note_failure(error)
            return
        mine = sorted(name for name in names if name.endswith(end_of_name))
        for name in mine[:-keep]:
            try:
                os.unlink(os.path.join(self._directory, name))
            except FileNotFoundError:
                pass  # another process has been faster
            except OSError as error:
                self._note_failure(error)

    def _note_failure(self, error: OSError) -> None:
        count("delete_failures")
        text = f"{type(error).__name__}: {error}"
        self._log.log("delete", WARNING, f"an old profile could not be deleted: {text}")

    def __repr__(self) -> str:
        return f"FileBackend({self._directory!r})"
