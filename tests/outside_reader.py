"""What a profiler outside of the process would read, in the process.

It knows what OpenTelemetry says of the thread context (OTEP 4947) and of the process
context (OTEP 4719), and nothing of spanprof. It finds the thread-local pointer by its
name in a library's dynamic symbol table, as such profilers do.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SYMBOL = "otel_thread_ctx_v1"
NAMES = ("[anon_shmem:OTEL_CTX]", "[anon:OTEL_CTX]", "/memfd:OTEL_CTX")
RECORD = struct.Struct("=16s8sBBH")
HEADER = struct.Struct("=8sIIQQ")


@dataclass(frozen=True)
class Record:
    trace_id: bytes
    span_id: int
    flags: int
    attributes: bytes


class Library:
    """A loaded library that publishes what its threads do."""

    def __init__(self, path: str | Path) -> None:
        self._library = ctypes.CDLL(str(path))

    def address(self) -> int | None:
        """Where the calling thread's record is, None if it has none."""
        return ctypes.c_void_p.in_dll(self._library, SYMBOL).value

    def read(self) -> Record | None:
        """The calling thread's record, None if it has none that is valid."""
        address = self.address()
        return None if address is None else record_at(address)

    def span_id(self) -> int:
        """The span that the calling thread runs; 0: none."""
        record = self.read()
        return 0 if record is None else record.span_id


def record_at(address: int) -> Record | None:
    assert address % 2 == 0
    raw = ctypes.string_at(address, RECORD.size)
    trace_id, span_id, valid, flags, size = RECORD.unpack(raw)
    if valid != 1:
        return None
    assert trace_id != bytes(16)
    assert span_id != bytes(8)
    attributes = ctypes.string_at(address + RECORD.size, size)
    return Record(trace_id, int.from_bytes(span_id, "big"), flags, attributes)


def process_contexts() -> list[dict[str, str | list[str]]]:
    """The attributes of every process context that there is. One would be right."""
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        place, _, _, _, _, *name = line.split(None, 5)
        if name and name[0].startswith(NAMES):
            found.append(_context_at(int(place.partition("-")[0], 16)))
    return found


def _context_at(address: int) -> dict[str, str | list[str]]:
    raw = ctypes.string_at(address, HEADER.size)
    signature, version, size, published, payload = HEADER.unpack(raw)
    assert signature == b"OTEL_CTX"
    assert version == 2
    assert published > 0
    context: dict[str, str | list[str]] = {}
    for field, attribute in _fields(ctypes.string_at(payload, size)):
        if field == 2:
            parts = dict(_fields(attribute))
            context[parts[1].decode()] = _value(parts[2])
    return context


def _value(message: bytes) -> str | list[str]:
    """An AnyValue: a string (1), or an array (5) of values (1)."""
    ((field, content),) = _fields(message)
    if field == 1:
        return content.decode()
    assert field == 5
    values = [_value(value) for _, value in _fields(content)]
    return [value for value in values if isinstance(value, str)]


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """The fields of a protobuf message that has none but short ones with a length."""
    at = 0
    while at < len(message):
        tag, length = message[at], message[at + 1]
        assert tag % 8 == 2
        assert tag < 128
        assert length < 128
        at += 2 + length
        assert at <= len(message)
        yield tag >> 3, message[at - length : at]


# --- how a thread finds the pointer ---------------------------------------------------

_SYMBOL_TABLE, _RELOCATIONS = 11, 4
_SECTION = struct.Struct("=IIQQQQIIQQ")
_ENTRY = struct.Struct("=IBBHQQ")
_RELOCATION = struct.Struct("=QQq")


def relocations(path: str | Path) -> set[int]:
    """The types of the relocations that name the pointer, in a library of 64 bits.

    It is asserted that the library exports the pointer as what it is.
    """
    raw = Path(path).read_bytes()
    assert raw[:5] == b"\x7fELF\x02"
    (start,) = struct.unpack_from("=Q", raw, 40)
    size, count = struct.unpack_from("=HH", raw, 58)
    sections = [_SECTION.unpack_from(raw, start + n * size) for n in range(count)]
    (symbols,) = (each for each in sections if each[1] == _SYMBOL_TABLE)
    names = sections[symbols[6]][4]
    entries = list(_ENTRY.iter_unpack(raw[symbols[4] : symbols[4] + symbols[5]]))
    wanted = SYMBOL.encode() + b"\0"
    (number,) = (
        n for n, each in enumerate(entries) if raw.startswith(wanted, names + each[0])
    )
    _, kind, visibility, section, _, length = entries[number]
    is_global, is_thread_local = kind >> 4 == 1, kind & 15 == 6
    assert (is_global, is_thread_local, visibility, length) == (True, True, 0, 8)
    assert section != 0, "it is another library's"
    return {
        info & 0xFFFFFFFF
        for each in sections
        if each[1] == _RELOCATIONS
        for _, info, _ in _RELOCATION.iter_unpack(raw[each[4] : each[4] + each[5]])
        if info >> 32 == number
    }
