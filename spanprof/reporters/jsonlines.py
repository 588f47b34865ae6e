"""Single spans as lines of JSON."""

from __future__ import annotations

import os

from .._core import SERIES
from ..counters import count
from ..spans import ClosedSpan
from .base import Reporter, import_now

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .._core import SpanBatch
    from ..config import ProfileConfig

MOST_PENDING = 16 << 20
"""Bytes that wait for a file which cannot be written; what is over is lost."""


class JsonLinesReporter(Reporter):
    """Appends one JSON object for each span that is over to a file.

    A line has ``id``, ``parent``, ``name``, ``target``, ``file``, ``line``,
    ``labels``, ``start``, ``end``, ``thread``, ``pid``, and the values that the
    session tracks, as in :class:`spanprof.ClosedSpan`. Times are in ns, sizes in
    bytes.

    The file is made with mode 0600, and opened anew for each batch: it may be moved
    away meanwhile, and several processes may append to it. What cannot be written
    waits for the next call, up to 16 MiB; lines that are lost then are counted in
    ``stats().write_failures``. The error is logged in either case.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        import_now("json")
        # A program may change its directory before the first line is written.
        self._path = os.path.abspath(os.fspath(path))
        self._fields: tuple[str, ...] = ()
        self._pending: list[bytes] = []
        self._pending_size = 0

    def init(self, config: ProfileConfig) -> None:
        kinds = {name: kind for name, _, kind, _ in SERIES}
        self._fields = tuple(
            name for name in ClosedSpan._fields if kinds.get(name) in config.tracked
        )
        self._pending = []  # in a child after a fork: the parent's to write
        self._pending_size = 0

    def spans(self, batch: SpanBatch) -> None:
        from json import dumps

        pid = os.getpid()
        self._add(
            "".join(
                dumps(self._object(span, pid), separators=(",", ":")) + "\n"
                for span in batch
            ).encode()
        )
        self._write()

    def flush(self) -> None:
        if self._pending:
            self._write()

    def _object(self, span: ClosedSpan, pid: int) -> dict[str, object]:
        name, target, file, line = span.callsite
        return {
            "id": span.id,
            "parent": span.parent,
            "name": name,
            "target": target,
            "file": file,
            "line": line,
            "labels": dict(span.labels),
            "start": span.start,
            "end": span.end,
            **{field: getattr(span, field) for field in self._fields},
            "thread": span.thread,
            "pid": pid,
        }

    def _add(self, lines: bytes) -> None:
        if self._pending_size + len(lines) > MOST_PENDING and self._pending:
            count("write_failures", lines.count(b"\n"))
            return
        self._pending.append(lines)
        self._pending_size += len(lines)

    def _write(self) -> None:
        """Append what waits; OSError if that is not possible."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        file = os.open(self._path, flags, 0o600)
        try:
            while self._pending:
                # Whole batches, so that lines of several processes do not mix.
                lines = self._pending[0]
                written = os.write(file, lines)
                self._pending_size -= written
                if written < len(lines):
                    self._pending[0] = lines[written:]
                else:
                    del self._pending[0]
        finally:
            os.close(file)

    def __repr__(self) -> str:
        return f"JsonLinesReporter({self._path!r})"
