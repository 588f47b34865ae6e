"""Spans as Arrow columns, read here as the specification of its C data interface says.

That Arrow libraries read them is in tests/python/test_spans_arrow.py.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from .binding import Core, bytes_of

U64 = (1 << 64) - 1
I64 = (1 << 63) - 1
KEY = b"a key that no other test has"  # the values of one are limited
NUMBERS = {"L": "Q", "tsn:UTC": "q", "I": "I", "i": "i"}

Record = dict[str, int]
Rows = list[dict[str, Any]]


class Columns:
    """A batch's schema and array; released with this object, if not before."""

    def __init__(self, core: Core, records: list[Record]) -> None:
        self.core, self.ffi = core, core.ffi
        batch = self.ffi.new(
            "struct sp_feed_batch *", {"count": len(records), "records": records}
        )
        self.schema = self.ffi.new("struct ArrowSchema *")
        self.array = self.ffi.new("struct ArrowArray *")
        assert core.lib.sp_arrow_schema(self.schema)
        assert core.lib.sp_arrow_array(batch, self.array)

    def __enter__(self) -> Columns:
        return self

    def __exit__(self, *error: object) -> None:
        for made in (self.schema, self.array):
            if made.release != self.ffi.NULL:
                made.release(made)
            assert made.release == self.ffi.NULL

    def text(self, pointer: Any) -> str:
        return str(self.ffi.string(pointer).decode())

    def column(self, name: str) -> tuple[Any, Any]:
        """Its schema and its array."""
        for n in range(self.schema.n_children):
            if self.text(self.schema.children[n].name) == name:
                return self.schema.children[n], self.array.children[n]
        raise KeyError(name)

    def rows(self) -> Rows:
        values: Rows = self.read(self.schema, self.array)
        return values

    def read(self, schema: Any, array: Any) -> list[Any]:
        """The values of an array of any type that we use."""
        kind = self.text(schema.format)
        assert array.release != self.ffi.NULL
        assert array.offset == 0
        assert array.n_children == schema.n_children
        assert array.n_buffers == {"+s": 1, "u": 3}.get(kind, 2)
        if kind == "+s":
            values = self.structs(schema, array)
        elif kind == "+m":
            values = self.maps(schema, array)
        elif kind == "u":
            values = self.texts(array)
        else:
            code = NUMBERS[kind]
            raw = self.buffer(array, 1, array.length * struct.calcsize(code))
            values = list(struct.unpack(f"={array.length}{code}", raw))
        if schema.dictionary != self.ffi.NULL:
            words = self.read(schema.dictionary, array.dictionary)
            assert sorted(set(values)) == list(range(len(words))), "nothing unused"
            assert len(set(words)) == len(words)
            values = [words[number] for number in values]
        return self.with_nulls(schema, array, values)

    def with_nulls(self, schema: Any, array: Any, values: list[Any]) -> list[Any]:
        if array.buffers[0] == self.ffi.NULL or self.text(schema.format) == "+m":
            assert array.null_count == 0
            return values
        assert schema.flags & 2
        valid = self.buffer(array, 0, (array.length + 7) // 8)
        told = [
            value if valid[n // 8] >> n % 8 & 1 else None
            for n, value in enumerate(values)
        ]
        assert told.count(None) == array.null_count
        return told

    def buffer(self, array: Any, place: int, size: int) -> bytes:
        assert array.buffers[place] != self.ffi.NULL
        return bytes(self.ffi.buffer(array.buffers[place], size))

    def offsets(self, array: Any) -> list[tuple[int, int]]:
        raw = self.buffer(array, 1, 4 * (array.length + 1))
        offsets = struct.unpack(f"={array.length + 1}i", raw)
        assert offsets[0] == 0
        assert list(offsets) == sorted(offsets)
        return list(pairwise(offsets))

    def texts(self, array: Any) -> list[str]:
        offsets = self.offsets(array)
        raw = self.buffer(array, 2, offsets[-1][1] if offsets else 0)
        return [raw[begin:end].decode() for begin, end in offsets]

    def maps(self, schema: Any, array: Any) -> list[dict[str, str]]:
        entries = self.read(schema.children[0], array.children[0])
        offsets = self.offsets(array)
        assert (offsets[-1][1] if offsets else 0) == len(entries)
        return [
            {entry["key"]: entry["value"] for entry in entries[begin:end]}
            for begin, end in offsets
        ]

    def structs(self, schema: Any, array: Any) -> Rows:
        columns = {
            self.text(schema.children[n].name): self.read(
                schema.children[n], array.children[n]
            )
            for n in range(schema.n_children)
        }
        assert all(len(column) == array.length for column in columns.values())
        return [
            dict(zip(columns, row, strict=True))
            for row in zip(*columns.values(), strict=True)
        ]


def record(**values: int) -> Record:
    return {"generation": 1, **values}


def clean(raw: bytes) -> str:
    """Text as we write it where that must be UTF-8."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        pass
    result = ""
    while raw:
        for length in (1, 2, 3, 4):
            try:
                result += raw[:length].decode()
            except UnicodeDecodeError:
                continue
            break
        else:
            try:
                result += f"\\u{ord(raw[:3].decode('utf-8', 'surrogatepass')):04x}"
                length = 3
            except (UnicodeDecodeError, TypeError):
                result += f"\\x{raw[0]:02x}"
                length = 1
        raw = raw[length:]
    return result


raw_texts = st.binary(max_size=12) | st.text(max_size=6).map(bytes_of)
few_texts = st.sampled_from([b"", b"a", b"a\0b", b"\xed\xa0\x80", b"\\ud800"])
callsites = st.tuples(
    raw_texts | few_texts,
    few_texts,
    few_texts,
    st.integers(0, (1 << 32) - 1),
)
label_sets = st.dictionaries(
    st.sampled_from([KEY, b"\xff", "ключ".encode(), b""]), raw_texts, max_size=3
)


@st.composite
def programs(
    draw: st.DrawFn,
) -> list[tuple[Record, tuple[bytes, bytes, bytes, int], dict[bytes, bytes]]]:
    sites = draw(st.lists(callsites, min_size=1, max_size=5))
    sets = draw(st.lists(label_sets, min_size=1, max_size=4))
    wide = st.integers(0, U64)
    numbers = {
        "id": st.integers(1, U64),
        "parent": st.just(0) | wide,
        "start": st.integers(-I64 - 1, I64),
        "end": st.integers(-I64 - 1, I64),
        "thread": st.integers(0, (1 << 32) - 1),
    } | dict.fromkeys(
        [
            "wall_busy",
            "wall_idle",
            "cpu_user",
            "cpu_system",
            "alloc_objects",
            "alloc_space",
        ],
        wide,
    )
    rows = st.tuples(
        st.fixed_dictionaries(numbers), st.sampled_from(sites), st.sampled_from(sets)
    )
    return draw(st.lists(rows, max_size=20))


@given(program=programs())
def test_every_value_of_every_span(core: Core, program: list[Any]) -> None:
    records = [
        record(
            callsite=core.intern(*site),
            labels=core.intern_labels(labels, 1 << 20) if labels else 0,
            **numbers,
        )
        for numbers, site, labels in program
    ]
    expected = [
        {
            **numbers,
            "parent": numbers["parent"] or None,
            "name": clean(site[0]),
            "target": clean(site[1]),
            "file": clean(site[2]),
            "line": site[3],
            "labels": {clean(key): clean(value) for key, value in labels.items()},
        }
        for numbers, site, labels in program
    ]
    with Columns(core, records) as columns:
        assert columns.rows() == expected


def test_no_spans_are_no_rows(core: Core) -> None:
    with Columns(core, []) as columns:
        assert columns.rows() == []
        assert columns.array.length == 0


def test_more_than_one_of_everything(core: Core) -> None:
    """Lists grow, and are indexed anew, some times."""
    count = 5000
    records = [
        record(
            id=n + 1,
            callsite=core.intern(b"n%d" % n, b"t%d" % (n % 700), b"f", n),
            labels=core.intern_labels({KEY: b"v%d" % n, b"same": b""}, 1 << 20),
        )
        for n in range(count)
    ] * 2
    with Columns(core, records) as columns:
        rows = columns.rows()
        assert columns.column("name")[1].dictionary.length == count
        assert columns.column("target")[1].dictionary.length == 700
    assert rows[:count] == rows[count:]
    for n, row in enumerate(rows[:count]):
        assert (row["name"], row["target"], row["line"]) == (f"n{n}", f"t{n % 700}", n)
        assert row["labels"] == {KEY.decode(): f"v{n}", "same": ""}


def test_what_did_not_fit_has_a_name(core: Core) -> None:
    """The folded callsite, and one that has its name."""
    records = [record(callsite=0), record(callsite=core.intern(b"(other)"))]
    with Columns(core, records) as columns:
        assert [row["name"] for row in columns.rows()] == ["(other)"] * 2


def test_units_are_told(core: Core) -> None:
    with Columns(core, []) as columns:
        units = {}
        for n in range(columns.schema.n_children):
            schema = columns.schema.children[n]
            if schema.metadata == core.ffi.NULL:
                continue
            raw = bytes(core.ffi.buffer(schema.metadata, 18))
            pairs, length, key, size = struct.unpack_from("=ii4si", raw)
            assert (pairs, length, key) == (1, 4, b"unit")
            value = core.ffi.buffer(schema.metadata + 16, size)
            units[columns.text(schema.name)] = bytes(value).decode()
    times = ("wall_busy", "wall_idle", "cpu_user", "cpu_system")
    assert units == {**dict.fromkeys(times, "ns"), "alloc_space": "bytes"}


@pytest.fixture
def some(core: Core) -> Iterator[Columns]:
    labels = core.intern_labels({KEY: b"v"}, 1 << 20)
    records = [record(id=n, callsite=core.intern(b"a"), labels=labels) for n in (1, 2)]
    with Columns(core, records) as columns:
        yield columns


@pytest.mark.parametrize("name", ["id", "parent", "name", "line", "labels"])
def test_a_child_that_was_moved_outlives_the_rest(some: Columns, name: str) -> None:
    """Moved as the specification says: copied, and marked as released where it was."""
    ffi = some.ffi
    schema, array = some.column(name)
    expected = some.read(schema, array)
    mine = ffi.new("struct ArrowSchema *"), ffi.new("struct ArrowArray *")
    for to, moved in zip(mine, (schema, array), strict=True):
        ffi.memmove(to, moved, ffi.sizeof(to[0]))
        moved.release = ffi.NULL
    some.schema.release(some.schema)
    some.array.release(some.array)
    assert some.read(*mine) == expected
    for made in mine:
        made.release(made)
        assert made.release == ffi.NULL


def test_the_whole_can_be_moved(some: Columns) -> None:
    ffi = some.ffi
    mine = ffi.new("struct ArrowArray *")
    ffi.memmove(mine, some.array, ffi.sizeof(mine[0]))
    some.array.release = ffi.NULL
    rows = some.read(some.schema, mine)
    assert [row["id"] for row in rows] == [1, 2]
    mine.release(mine)
    assert mine.release == ffi.NULL


def test_schema_and_array_are_released_apart(some: Columns) -> None:
    some.schema.release(some.schema)
    again = some.ffi.new("struct ArrowSchema *")
    assert some.core.lib.sp_arrow_schema(again)
    assert len(some.read(again, some.array)) == 2
    again.release(again)
