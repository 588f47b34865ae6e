"""A pprof file, read field by field with nothing of spanprof's own."""

import gzip
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

Message = dict[int, list[Any]]


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at


def _fields(data: bytes) -> Message:
    message: Message = {}
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        if key & 7 == 0:
            value: Any
            value, at = _varint(data, at)
        elif key & 7 == 2:
            length, at = _varint(data, at)
            value = data[at : at + length]
            assert len(value) == length
            at += length
        else:
            raise ValueError(f"wire type {key & 7}")
        message.setdefault(key >> 3, []).append(value)
    return message


def _numbers(values: list[Any]) -> Iterator[int]:
    """Repeated numbers, packed or not; signed."""
    for value in values:
        if isinstance(value, bytes):
            at = 0
            while at < len(value):
                number, at = _varint(value, at)
                yield number - (number >> 63 << 64)
        else:
            yield value - (value >> 63 << 64)


def _number(message: Message, key: int) -> int:
    return next(_numbers(message.get(key, [0])))


@dataclass(frozen=True)
class FileSample:
    stack: tuple[tuple[str, str, int], ...]
    """Leaf first: function, file, line."""
    labels: tuple[tuple[str, str], ...]
    numbers: tuple[tuple[str, int], ...]
    """Labels that are numbers."""
    values: tuple[int, ...]


@dataclass
class File:
    sample_types: list[tuple[str, str]]
    samples: list[FileSample]
    time_nanos: int
    duration_nanos: int
    period_type: tuple[str, str]
    period: int
    default_sample_type: str
    functions: list[tuple[str, str, str, int]]
    locations: int
    mappings: list[str]
    strings: list[str] = field(repr=False)


def read(data: bytes) -> File:
    top = _fields(gzip.decompress(data))
    strings = [text.decode("utf-8", "strict") for text in top.get(6, [])]
    assert strings[0] == ""

    def text(message: Message, key: int) -> str:
        found: str = strings[_number(message, key)]
        return found

    functions = {}
    for each in map(_fields, top.get(5, [])):
        functions[_number(each, 1)] = (
            text(each, 2),
            text(each, 3),
            text(each, 4),
            _number(each, 5),
        )
    locations = {}
    for each in map(_fields, top.get(4, [])):
        (line,) = map(_fields, each[4])
        name, _, file, _ = functions[_number(line, 1)]
        locations[_number(each, 1)] = (name, file, _number(line, 2))
    samples = []
    for each in map(_fields, top.get(2, [])):
        found = [*map(_fields, each.get(3, []))]
        labels = [(text(label, 1), text(label, 2)) for label in found if 3 not in label]
        numbers = [(text(label, 1), _number(label, 3)) for label in found if 3 in label]
        stack = tuple(locations[number] for number in _numbers(each[1]))
        values = tuple(_numbers(each[2]))
        samples.append(FileSample(stack, tuple(sorted(labels)), tuple(numbers), values))

    def value_type(data: bytes) -> tuple[str, str]:
        message = _fields(data)
        return text(message, 1), text(message, 2)

    return File(
        [value_type(each) for each in top.get(1, [])],
        samples,
        _number(top, 9),
        _number(top, 10),
        value_type(top[11][0]),
        _number(top, 12),
        text(top, 14),
        list(functions.values()),
        len(locations),
        [text(each, 5) for each in map(_fields, top.get(3, []))],
        strings,
    )
