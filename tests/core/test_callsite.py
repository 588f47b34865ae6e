"""Names, label sets and their bounds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from .binding import OTHER, Core, bytes_of
from .test_fork import in_child


def test_equal_callsites_are_one(real_core: Core) -> None:
    first = real_core.intern(b"n", b"t", b"f", 3, 4)
    assert first != 0
    assert real_core.intern(b"n", b"t", b"f", 3, 4) == first


@pytest.mark.parametrize(
    "other",
    [
        (b"N", b"t", b"f", 3, 4),
        (b"n", b"T", b"f", 3, 4),
        (b"n", b"t", b"F", 3, 4),
        (b"n", b"t", b"f", 5, 4),
        (b"n", b"t", b"f", 3, 6),
        (b"t", b"n", b"f", 3, 4),
        (b"n\0", b"t", b"f", 3, 4),
    ],
)
def test_callsites_that_differ_anywhere_differ(
    real_core: Core, other: tuple[bytes, bytes, bytes, int, int]
) -> None:
    assert real_core.intern(*other) != real_core.intern(b"n", b"t", b"f", 3, 4)


def test_a_callsite_keeps_what_it_was_given(real_core: Core) -> None:
    number = real_core.intern(b"name", b"target", b"dir/file.py", 7, 12)
    site = real_core.lib.sp_callsite_get(number)
    parts = [real_core.string(part) for part in (site.name, site.target, site.file)]
    assert parts == [b"name", b"target", b"dir/file.py"]
    assert (site.line, site.offset, site.id) == (7, 12, number)


@given(st.binary(max_size=40) | st.text(max_size=20).map(bytes_of))
def test_names_hold_any_bytes(real_core: Core, name: bytes) -> None:
    site = real_core.lib.sp_callsite_get(real_core.intern(name, name, name, 1, 1))
    assert real_core.string(site.name) == name
    assert site.name == site.file


def test_many_callsites_are_all_found_again(real_core: Core) -> None:
    names = [f"many {n}".encode() for n in range(5000)]
    before = real_core.lib.sp_callsite_count()
    numbers = [real_core.intern(name) for name in names]
    assert len(set(numbers)) == 5000
    assert real_core.lib.sp_callsite_count() == before + 5000
    assert [real_core.intern(name) for name in names] == numbers
    assert real_core.lib.sp_callsite_count() == before + 5000
    for name, number in zip(names, numbers, strict=True):
        assert real_core.callsite_name(number) == name.decode()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_hazard_13_callsites_beyond_the_limit_are_other_and_counted(
    real_core: Core,
) -> None:
    """In a child, as callsites stay until the process ends."""
    most = 200_000
    known = real_core.intern(b"known")

    def child() -> None:
        real_core.lib.spt_callsites_make(most)
        folded = real_core.stat("callsites_folded")
        assert folded > 0
        assert real_core.intern(b"new in a full table") == 0
        assert real_core.intern(b"many", b"many", b"many", most + 1) == 0
        assert real_core.stat("callsites_folded") == folded + 2
        assert real_core.intern(b"known") == known
        assert real_core.intern(b"many", b"many", b"many", 1) != 0
        assert real_core.lib.sp_callsite_count() < most

    in_child(child)
    assert real_core.intern(b"new in a full table") != 0


def test_callsite_zero_is_other(real_core: Core) -> None:
    assert real_core.callsite_name(0) == OTHER


def test_label_sets_do_not_depend_on_order(real_core: Core) -> None:
    one = real_core.intern_labels({b"a": b"1", b"b": b"2", b"aa": b"3"})
    two = real_core.intern_labels({b"b": b"2", b"aa": b"3", b"a": b"1"})
    assert one == two != 0
    assert real_core.labels_of(one) == (("a", "1"), ("aa", "3"), ("b", "2"))


def test_label_sets_that_differ_differ(real_core: Core) -> None:
    sets = [
        {b"a": b"1"},
        {b"a": b"2"},
        {b"b": b"1"},
        {b"a": b"1", b"b": b"1"},
        {b"1": b"a"},
        {b"a": b""},
    ]
    numbers = {real_core.intern_labels(labels) for labels in sets}
    assert len(numbers) == len(sets)


def test_no_labels_are_label_set_zero(real_core: Core) -> None:
    assert real_core.intern_labels({}) == 0
    assert real_core.labels_of(0) == ()


def test_label_values_beyond_the_limit_are_other_and_counted(real_core: Core) -> None:
    real_core.lib.sp_labels_begin()
    before = real_core.stat("labels_folded")
    sets = [
        real_core.intern_labels({b"user": f"limit {n}".encode()}, 3) for n in range(10)
    ]
    values = [real_core.labels_of(number)[0][1] for number in sets]
    assert values == ["limit 0", "limit 1", "limit 2"] + 7 * [OTHER]
    assert real_core.stat("labels_folded") == before + 7
    assert len(set(sets)) == 4
    # Known values stay known, other keys have their own count.
    again = real_core.intern_labels({b"user": b"limit 1"}, 3)
    assert again == sets[1]
    other_key = real_core.intern_labels({b"host": b"limit 9"}, 3)
    assert real_core.labels_of(other_key) == (("host", "limit 9"),)


def test_label_values_that_fold_leave_nothing_behind(real_core: Core) -> None:
    real_core.lib.sp_labels_begin()
    for n in range(3):
        real_core.intern_labels({b"leak": f"leak {n}".encode()}, 2)
    before = real_core.lib.sp_labels_count()
    for n in range(1000):
        real_core.intern_labels({b"leak": f"leak more {n}".encode()}, 2)
    assert real_core.lib.sp_labels_count() == before


def test_each_session_counts_label_values_afresh(real_core: Core) -> None:
    for session in range(3):
        real_core.lib.sp_labels_begin()
        values = [f"session {session} {n}".encode() for n in range(2)]
        for value in values:
            found = real_core.labels_of(real_core.intern_labels({b"fresh": value}, 2))
            assert found == (("fresh", value.decode()),)
        # A value of an earlier session counts as well.
        early = real_core.intern_labels({b"fresh": b"session 0 0"}, 2)
        expected = "session 0 0" if session == 0 else OTHER
        assert real_core.labels_of(early) == (("fresh", expected),)


def test_a_limit_of_zero_folds_every_value(real_core: Core) -> None:
    real_core.lib.sp_labels_begin()
    number = real_core.intern_labels({b"zero": b"any"}, 0)
    assert real_core.labels_of(number) == (("zero", OTHER),)


@given(
    st.dictionaries(
        st.text(max_size=8).map(bytes_of), st.binary(max_size=8), max_size=6
    )
)
def test_label_sets_keep_what_they_were_given(
    real_core: Core, labels: dict[bytes, bytes]
) -> None:
    found = real_core.lib.sp_labels_get(real_core.intern_labels(labels, 1 << 20))
    items = [found.items[n] for n in range(found.count)]
    kept = [
        (real_core.string(item.key), real_core.string(item.value)) for item in items
    ]
    assert kept == sorted(labels.items())
