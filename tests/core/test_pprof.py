"""pprof files: read by another implementation, read back, and read when broken."""

import gzip
import random
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from .binding import (
    KINDS,
    METRICS,
    PPROF_FOREIGN,
    PPROF_MALFORMED,
    PPROF_OK,
    Core,
    Profile,
    bytes_of,
)
from .pprof_message import parse, profile_class, serialize
from .test_profile import Nodes, profiles

SERIES = {
    "calls": ["calls"],
    "wall": ["wall", "wall_busy", "wall_idle"],
    "cpu": ["cpu", "cpu_system", "cpu_user"],
    "alloc": ["alloc_objects", "alloc_space"],
    "heap": ["inuse_objects", "inuse_space", "inuse_peak_space"],
}
UNITS = {"calls": "count", "wall": "nanoseconds", "cpu": "nanoseconds"}
SUMS = {"wall": ("wall_busy", "wall_idle"), "cpu": ("cpu_user", "cpu_system")}


def one_callsite(
    core: Core, name: bytes, target: bytes = b"", file: bytes = b"", line: int = 0
) -> Profile:
    profile = core.profile({("placeholder",): {"calls": 1, "wall_busy": 5}})
    profile.pointer.nodes[0].callsite = core.intern(name, target, file, line)
    return profile


def samples(message: Any) -> list[tuple[tuple[str, ...], dict[str, str], list[int]]]:
    """Stacks from the root, labels and values, with all references followed."""
    strings = message.string_table
    functions = {function.id: function for function in message.function}
    names = {
        location.id: strings[functions[location.line[0].function_id].name]
        for location in message.location
    }
    assert len(functions) == len(message.function)
    assert len(names) == len(message.location)
    return [
        (
            tuple(names[number] for number in reversed(sample.location_id)),
            {strings[label.key]: strings[label.str] for label in sample.label},
            list(sample.value),
        )
        for sample in message.sample
    ]


@pytest.mark.parametrize("kind", KINDS)
@given(nodes=profiles)
def test_rule_7_1_another_reader_finds_every_stack_label_and_value(
    core: Core, kind: str, nodes: Nodes
) -> None:
    profile = core.profile(nodes)
    message = parse(profile.encode(kind))
    expected = []
    for stack, values in profile.stacks():
        row = [
            sum(values[metric] for metric in SUMS.get(name, (name,)))
            for name in SERIES[kind]
        ]
        if any(row):
            labels = {key: value for _, frame in stack for key, value in frame}
            expected.append((tuple(name for name, _ in stack), labels, row))
    assert samples(message) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_rule_7_2_headers(core: Core, kind: str) -> None:
    start = 1_700_000_000_123_456_789
    profile = core.profile({("a",): dict.fromkeys(METRICS, 2)}, start, 98_765)
    message = parse(profile.encode(kind, b"/usr/bin/python3"))
    strings = message.string_table
    types = [(strings[t.type], strings[t.unit]) for t in message.sample_type]
    assert [name for name, _ in types] == SERIES[kind]
    memory = {"alloc": ["count", "bytes"], "heap": ["count", "bytes", "bytes"]}
    units = memory.get(kind, [UNITS.get(kind)] * 3)
    assert [unit for _, unit in types] == units[: len(types)]
    assert message.time_nanos == start
    assert message.duration_nanos == 98_765
    assert message.period == 1
    period = (
        strings[message.period_type.type],
        strings[message.period_type.unit],
    )
    assert period in types
    assert strings[message.default_sample_type] in SERIES[kind]
    assert strings[0] == ""
    assert len(set(strings)) == len(strings)
    (mapping,) = message.mapping
    assert strings[mapping.filename] == "/usr/bin/python3"
    assert mapping.has_functions
    assert mapping.has_line_numbers
    assert all(location.mapping_id == mapping.id for location in message.location)


def test_rule_7_1_functions_carry_target_name_file_and_line(core: Core) -> None:
    profile = one_callsite(core, b"load", b"pkg.mod", b"/src/mod.py", 42)
    message = parse(profile.encode("wall"))
    (function,) = message.function
    (location,) = message.location
    strings = message.string_table
    assert strings[function.name] == "pkg.mod::load"
    assert strings[function.filename] == "/src/mod.py"
    assert function.start_line == location.line[0].line == 42


def test_rule_7_1_of_one_label_the_innermost_value_counts(core: Core) -> None:
    profile = core.profile(
        {("a?k=outer&only=1", "b?k=inner", "c"): {"calls": 1}},
    )
    ((_, labels, _),) = samples(parse(profile.encode("calls")))
    assert labels == {"k": "inner", "only": "1"}


def test_rule_7_1_a_profile_of_single_spans_has_their_ids(core: Core) -> None:
    profile = core.profile({("a",): {"calls": 1}, ("a", "b?k=v"): {"calls": 2}})
    assert core.lib.sp_profile_add_span_ids(profile.pointer)
    profile.pointer.span_ids[0:2] = [7, (1 << 63) - 1]
    message = parse(profile.encode("calls"))
    strings = message.string_table
    ids = {
        sample.value[0]: [
            label.num for label in sample.label if strings[label.key] == "span_id"
        ]
        for sample in message.sample
    }
    assert ids == {1: [7], 2: [(1 << 63) - 1]}
    labels = [{strings[it.key] for it in sample.label} for sample in message.sample]
    assert labels == [{"span_id"}, {"span_id", "k"}]
    copy = Profile(core, core.lib.sp_profile_copy(profile.pointer))
    assert copy.pointer.span_ids == core.ffi.NULL


def test_an_empty_profile_is_a_whole_file(core: Core) -> None:
    for kind in KINDS:
        message = parse(core.profile({}).encode(kind))
        assert len(message.sample) == 0
        assert message.string_table[0] == ""
        status, profile = core.decode(core.profile({}).encode(kind))
        assert status == PPROF_OK
        assert profile is not None
        assert len(profile) == 0


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (b"plain", "plain"),
        ("größe 漢字 🐍".encode(), "größe 漢字 🐍"),
        (b"a\0b", "a\\x00b"),
        (bytes_of("lone \ud800 and \udfff"), "lone \\ud800 and \\udfff"),
        (b"bad \xff\xfe", "bad \\xff\\xfe"),
        (b"cut \xe6\xbc", "cut \\xe6\\xbc"),
        (b"overlong \xc0\xaf", "overlong \\xc0\\xaf"),
        (b"overlong \xe0\x80\xaf", "overlong \\xe0\\x80\\xaf"),
        (b"too high \xf4\x90\x80\x80", "too high \\xf4\\x90\\x80\\x80"),
        ("\U0010ffff\x7f\x01".encode(), "\U0010ffff\x7f\x01"),
    ],
)
def test_names_that_are_no_utf8_are_written_readably(
    core: Core, name: bytes, expected: str
) -> None:
    message = parse(one_callsite(core, name).encode("wall"))
    assert message.string_table[message.function[0].name] == expected


@given(st.binary(max_size=30) | st.text(max_size=15).map(bytes_of))
def test_any_name_makes_a_file_that_others_read(core: Core, name: bytes) -> None:
    profile = one_callsite(core, name, name, name, 1)
    profile.pointer.nodes[0].labels = core.intern_labels({name: name}, 1 << 20)
    message = parse(profile.encode("wall", name.replace(b"\0", b"")))
    ((stack, labels, values),) = samples(message)
    try:
        expected = name.decode().replace("\0", "\\x00")
    except UnicodeDecodeError:
        expected = None
    if expected is not None:
        assert stack == (f"{expected}::{expected}" if name else "",)
        assert labels == {expected: expected}
    assert values == [5, 5, 0]


@pytest.mark.parametrize("kind", KINDS)
@given(nodes=profiles)
def test_round_trip(core: Core, kind: str, nodes: Nodes) -> None:
    profile = core.profile(nodes, 1_700_000_000_000_000_000, 77)
    data = profile.encode(kind)
    status, back = core.decode(data)
    assert status == PPROF_OK
    assert back is not None
    assert back.kinds == {kind}
    assert (back.start_unix, back.duration) == (profile.start_unix, 77)
    # Every stack, every label, every value; only their order may differ.
    assert sorted(samples(parse(back.encode(kind))), key=repr) == sorted(
        merged_samples(data), key=repr
    )


@pytest.mark.parametrize("name", [b"::x", b"::", b":::x"])
def test_a_name_that_begins_as_if_behind_a_target_is_read_back(
    core: Core, name: bytes
) -> None:
    data = one_callsite(core, name).encode("wall")
    _status, back = core.decode(data)
    assert back is not None
    assert samples(parse(back.encode("wall"))) == samples(parse(data))


def merged_samples(data: bytes) -> list[Any]:
    """Samples as they are once labels hang on the leaf alone."""
    sums: dict[Any, list[int]] = {}
    for stack, labels, values in samples(parse(data)):
        key = (stack, tuple(sorted(labels.items())))
        known = sums.setdefault(key, [0] * len(values))
        sums[key] = [a + b for a, b in zip(known, values, strict=True)]
    return [(stack, dict(labels), values) for (stack, labels), values in sums.items()]


# --- broken and foreign files -------------------------------------------------


def some_file(core: Core) -> bytes:
    nodes: Nodes = {
        ("a",): {"wall_busy": 5},
        ("a", "b?k=1"): {"wall_idle": 7},
        ("a", "b?k=2", "c"): {"wall_busy": 1 << 40},
    }
    return core.profile(nodes, 1 << 60, 1 << 40).encode("wall")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x1f",
        b"\x1f\x8b",
        b"\x1f\x8b\x08\0\0\0\0\0\0\x03",
        b"not a profile",
        zlib.compress(b"a zlib stream"),
        gzip.compress(b"\xff" * 100),
    ],
)
def test_what_is_no_profile_is_malformed(core: Core, data: bytes) -> None:
    assert core.decode(data) == (PPROF_MALFORMED, None)


def test_every_truncation_is_malformed(core: Core) -> None:
    data = some_file(core)
    for length in range(len(data)):
        assert core.decode(data[:length]) == (PPROF_MALFORMED, None)


def test_a_profile_of_others_is_foreign(core: Core) -> None:
    message = profile_class()()
    message.string_table.extend(["", "samples", "count"])
    message.sample_type.add(type=1, unit=2)
    assert core.decode(serialize(message)) == (PPROF_FOREIGN, None)
    assert core.decode(gzip.compress(b"")) == (PPROF_FOREIGN, None)


@given(st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), max_size=6))
def test_flipped_bytes_never_crash(core: Core, flips: list[tuple[int, int]]) -> None:
    data = bytearray(some_file(core))
    for place, value in flips:
        data[place % len(data)] = value
    core.decode(bytes(data))


@given(
    st.lists(
        st.tuples(st.integers(0, 1 << 20), st.integers(0, 3), st.binary(max_size=11)),
        min_size=1,
        max_size=6,
    )
)
def test_mutated_messages_never_crash(
    core: Core, mutations: list[tuple[int, int, bytes]]
) -> None:
    plain = bytearray(gzip.decompress(some_file(core)))
    for place, removed, inserted in mutations:
        at = place % (len(plain) + 1)
        plain[at : at + removed] = inserted
    status, profile = core.decode(gzip.compress(bytes(plain), 1))
    if profile is not None:
        assert status == PPROF_OK
        profile.stacks()
        profile.encode("wall")


wild = st.sampled_from([0, 1, 2, 3, 99, (1 << 31) - 1, (1 << 63) - 1])
signed = wild | st.sampled_from([-1, -(1 << 63)])


@given(st.data())
def test_messages_that_contradict_themselves_never_crash(
    core: Core, data: st.DataObject
) -> None:
    message = profile_class()()
    message.string_table.extend(["", "wall", "wall_busy", "nanoseconds", "x::y"])

    def draw_signed() -> int:
        return data.draw(signed)

    for _ in range(data.draw(st.integers(0, 3))):
        message.sample_type.add(type=draw_signed(), unit=draw_signed())
    message.sample_type.add(type=2, unit=3)
    for _ in range(data.draw(st.integers(0, 3))):
        sample = message.sample.add()
        sample.location_id.extend(data.draw(st.lists(wild, max_size=4)))
        sample.value.extend(data.draw(st.lists(signed, max_size=5)))
        for _ in range(data.draw(st.integers(0, 2))):
            sample.label.add(key=draw_signed(), str=draw_signed(), num=draw_signed())
    for _ in range(data.draw(st.integers(0, 3))):
        location = message.location.add(id=data.draw(wild))
        for _ in range(data.draw(st.integers(0, 2))):
            location.line.add(function_id=data.draw(wild), line=draw_signed())
    for _ in range(data.draw(st.integers(0, 3))):
        message.function.add(
            id=data.draw(wild), name=draw_signed(), filename=draw_signed()
        )
    message.time_nanos = draw_signed()
    message.duration_nanos = draw_signed()
    status, profile = core.decode(serialize(message))
    assert status in (PPROF_OK, PPROF_MALFORMED)
    if profile is not None:
        profile.stacks()
        profile.encode("wall")
        (profile + profile).encode("wall")
        (profile - profile).split(1)


def test_random_bytes_in_a_gzip_stream_never_crash(core: Core) -> None:
    source = random.Random(1)
    for _ in range(300):
        core.decode(gzip.compress(source.randbytes(source.randrange(200)), 1))
