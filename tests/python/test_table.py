"""Tables: what people read. Trees here are made by hand, without the core."""

import os
import re
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spanprof import _core, text
from spanprof.calltree import Callsite, CallTree, Node
from spanprof.difference import render_difference
from spanprof.grid import Grid, terminal_width
from spanprof.table import render

ALL = ("calls", "wall", "cpu", "alloc")
MS = 1_000_000
SECOND = 1000 * MS


@pytest.fixture(autouse=True)
def no_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)


def put(parent: Node, name: str, line: int = 1, **values: int) -> Node:
    labels = values.pop("labels", ())
    node = parent.child(Callsite(name, "mod", "mod.py", line), labels)  # type: ignore[arg-type]
    node.values = tuple(values.get(metric, 0) for metric in _core.METRICS)
    return node


def tree(kinds: tuple[str, ...] = ALL) -> CallTree:
    return CallTree(kinds, start=0, duration=3 * SECOND)


def sample() -> CallTree:
    result = tree(("calls", "wall", "cpu"))
    main = put(result.root, "main", 1, calls=1, wall_busy=SECOND // 2, cpu_user=MS)
    load = put(main, "load", 2, calls=1200, wall_busy=2 * SECOND, cpu_user=9 * MS)
    put(load, "read", 3, calls=5, wall_busy=200 * MS, cpu_system=10 * MS)
    for number in range(10):
        put(main, f"small {number}", 10 + number, calls=1, wall_busy=1000 + number)
    result.add_up()
    return result


def test_a_table_looks_like_this() -> None:
    assert (
        render(sample())
        == """\
3.00 s from 1970-01-01 00:00:00 UTC
span                        calls  wall total  wall self  cpu self  cpu %  where
────────────────────────────────────────────────────────────────────────────────
main                            1      2.70 s     500 ms   1.00 ms   5.0%  mod:1
  load                      1,200      2.20 s     2.00 s   9.00 ms  45.0%  mod:2
    read                        5      200 ms     200 ms   10.0 ms  50.0%  mod:3
(10 more, 1.01 µs or less)     10                10.0 µs         0     0%
────────────────────────────────────────────────────────────────────────────────
all spans                   1,216                 2.70 s   20.0 ms   100%"""
    )


def test_a_ranking_looks_like_this() -> None:
    assert (
        render(sample(), flat=True, limit=3, sort="cpu")
        == """\
3.00 s from 1970-01-01 00:00:00 UTC
span       calls  wall self  cpu total  cpu self  cpu %  where
──────────────────────────────────────────────────────────────
read           5     200 ms    10.0 ms   10.0 ms  50.0%  mod:3
load       1,200     2.00 s    19.0 ms   9.00 ms  45.0%  mod:2
main           1     500 ms    20.0 ms   1.00 ms   5.0%  mod:1
(10 more)     10    10.0 µs                    0     0%
──────────────────────────────────────────────────────────────
all spans  1,216     2.70 s              20.0 ms   100%"""
    )


def cells(table: str, header: str) -> dict[str, str]:
    """Texts of a column, by name."""
    lines = [line for line in table.splitlines() if "─" not in line]
    top = next(number for number, line in enumerate(lines) if line.startswith("span"))
    end = lines[top].index(header) + len(header)
    return {
        re.split(r"\s{2,}", line.strip())[0]: line[:end].split("  ")[-1].strip()
        for line in lines[top + 1 :]
    }


def test_columns_follow_what_was_measured() -> None:
    for kinds, headers in (
        (("calls",), "span calls where"),
        (("wall",), "span wall total wall self wall % where"),
        (("calls", "cpu"), "span calls cpu total cpu self cpu % where"),
        (
            ("calls", "alloc"),
            "span calls alloc total alloc self alloc % allocs where",
        ),
        (
            ALL,
            "span calls wall total wall self cpu self cpu % alloc self allocs where",
        ),
    ):
        result = tree(kinds)
        put(result.root, "a", calls=1, wall_busy=1, cpu_user=1, alloc_space=1)
        result.add_up()
        assert render(result).splitlines()[1].split() == headers.split()


def test_idle_time_has_a_column_if_there_is_any() -> None:
    result = tree(("calls", "wall"))
    put(result.root, "a", calls=1, wall_busy=3 * MS, wall_idle=5 * MS)
    result.add_up()
    table = render(result)
    assert cells(table, "wall idle")["a"] == "5.00 ms"
    assert cells(table, "wall total")["a"] == "3.00 ms"


def test_labels_make_rows() -> None:
    result = tree(("calls",))
    for labels in ((), (("user", "a b"),), (("user", ""), ("x", "=\n"))):
        put(result.root, "request", calls=1, labels=labels)  # type: ignore[arg-type]
    result.add_up()
    table = render(result)
    assert 'request  user="a b"' in table
    assert r'request  user=""  x="=\n"' in table


def test_light_rows_are_folded_and_still_add_up() -> None:
    result = tree(("calls", "wall"))
    for number in range(200):
        put(result.root, f"s{number}", number, calls=1, wall_busy=(number + 1) * MS)
    result.add_up()
    table = render(result, limit=10)
    shown = cells(table, "wall self")
    assert len(table.splitlines()) == 16
    assert "(190 more, 190 ms or less)" in table
    assert list(shown)[:2] == ["s199", "s198"]
    assert cells(table, "calls")["all spans"] == "200"
    everything = render(result, limit=0)
    assert "more" not in everything
    assert len(everything.splitlines()) == 205


def test_a_row_comes_with_the_rows_around_it() -> None:
    result = tree(("calls", "wall"))
    node = result.root
    for depth in range(8):
        node = put(node, f"d{depth}", depth, calls=1)
    node.values = put(Node(node.callsite, ()), "x", wall_busy=SECOND).values
    put(result.root, "other", wall_busy=MS)
    result.add_up()
    table = render(result, limit=4)
    assert [name for name in cells(table, "calls") if name[0] == "d"] == [
        "d0",
        "d1",
        "d2",
        "d3",
    ]


def test_a_difference_of_profiles_shows_what_fell_and_what_rose() -> None:
    result = tree(("calls", "wall"))
    parent = put(result.root, "parent")
    put(parent, "up", 1, wall_busy=5 * MS, calls=1)
    put(parent, "down", 2, wall_busy=-5 * MS, calls=-1)
    result.add_up()
    shown = cells(render(result), "wall self")
    assert shown == {
        "parent": "0",
        "up": "5.00 ms",
        "down": "-5.00 ms",
        "all spans": "0",
    }


def test_no_spans() -> None:
    assert render(tree()).endswith("\nno spans were recorded")
    with pytest.raises(ValueError, match="'cpu' is not one of calls, wall"):
        render(tree(("calls", "wall")), sort="cpu")


def test_deep_stacks() -> None:
    result = tree(("calls",))
    node = result.root
    for _ in range(5000):
        node = put(node, "again", calls=1)
    result.add_up()
    table = render(result, limit=100)
    assert "[99] again" in table
    assert max(map(len, table.splitlines())) < 100


NASTY = "a\nb\x1b[31m\0\udc80\u202e\u2028\u200b日本e\u0301\t"


def test_any_name_stays_on_its_line_and_in_its_column() -> None:
    result = tree(("calls",))
    put(result.root, NASTY, calls=3)
    put(result.root, "x" * 500, calls=2)
    put(result.root, "plain", calls=1)
    result.add_up()
    table = render(result, width=60)
    assert r"a\nb\x1b[31m\x00\udc80\u202e\u2028\u200b日本e" in table
    assert all(line.isprintable() for line in table.splitlines())
    rows = table.splitlines()[3:-2]
    assert {text.cells(row) for row in rows} == {60}


@settings(deadline=None)
@given(st.lists(st.text(), min_size=1), st.integers(60, 200))
def test_tables_fit_whatever_the_names(names: list[str], width: int) -> None:
    result = tree(("calls", "wall"))
    for number, name in enumerate(names):
        put(result.root, name, number, calls=1, wall_busy=number)
    result.add_up()
    table = render(result, width=width, limit=0)
    assert len(table.split("\n")) == len(result.root.children) + 5
    assert max(text.cells(line) for line in table.split("\n")) <= width


def test_narrow_terminals() -> None:
    wide = render(sample())
    assert "where" in wide
    narrow = render(sample(), width=75)
    assert "where" not in narrow
    assert max(map(text.cells, narrow.splitlines())) <= 75
    narrower = render(sample(), width=70)
    assert max(map(text.cells, narrower.splitlines())) <= 70
    assert "…" in narrower


def test_the_width_is_that_of_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "70")
    assert terminal_width() == 70
    assert "…" in render(sample())
    monkeypatch.setenv("COLUMNS", "nonsense")
    reader, writer = os.openpty()
    try:
        with os.fdopen(writer, "w") as terminal:
            monkeypatch.setattr("sys.__stdout__", terminal)
            monkeypatch.setattr(
                os, "get_terminal_size", lambda number: os.terminal_size((66, 20))
            )
            assert terminal_width() == 66
    finally:
        os.close(reader)
    monkeypatch.setattr("sys.__stdout__", None)
    assert terminal_width() is None


def test_a_grid_of_headers_alone() -> None:
    assert Grid(["a", "b", "c"]).lines(None) == ["a  b  c"]


# --- differences -------------------------------------------------------------------


def test_a_difference_looks_like_this() -> None:
    after = sample()
    main = next(iter(after.root.children.values()))
    load = next(iter(main.children.values()))
    load.values = put(
        Node(load.callsite, ()), "x", calls=1300, wall_busy=SECOND, cpu_user=9 * MS
    ).values
    # The same span, after somebody has edited the file.
    node = main.children.pop((Callsite("small 0", "mod", "mod.py", 10), ()))
    put(main, "small 0", 999).values = node.values
    main.children.pop((Callsite("small 1", "mod", "mod.py", 11), ()))
    put(main, "fresh", 50, calls=1, wall_busy=30 * MS)
    after.add_up()
    assert (
        render_difference(sample(), after)
        == """\
before  3.00 s from 1970-01-01 00:00:00 UTC
after   3.00 s from 1970-01-01 00:00:00 UTC
span                                   wall before  wall after    change       %  self change  calls  cpu self  where
──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────
main                                        2.70 s      1.73 s   -970 ms  -35.9%                                mod:1
  load                                      2.20 s      1.20 s   -1.00 s  -45.5%      -1.00 s   +100            mod:2
  fresh                                          -     30.0 ms  +30.0 ms     new     +30.0 ms     +1            mod:50
(11 more, changed by 1.00 µs or less)                                                -1.00 µs     -1
──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────
all spans                                   2.70 s      1.73 s   -970 ms  -35.9%      -970 ms   +100"""  # noqa: E501
    )


def test_a_difference_of_nothing_and_of_what_cannot_be_compared() -> None:
    empty = tree(("calls",))
    assert render_difference(empty, empty).endswith("no spans were recorded")
    same = render_difference(sample(), sample())
    assert "more, changed in nothing)" in same
    with pytest.raises(ValueError, match="measured in different ways"):
        render_difference(tree(("wall",)), tree(("cpu",)))


def test_a_change_deep_down_is_shown_with_what_is_around_it() -> None:
    trees = []
    for up, down in ((1, 9), (9, 1)):
        result = tree(("calls", "wall"))
        main = put(result.root, "main", 1, calls=1)
        put(main, "up", 2, calls=1, wall_busy=up * MS)
        put(main, "down", 3, calls=1, wall_busy=down * MS)
        result.add_up()
        trees.append(result)
    lines = render_difference(*trees).splitlines()
    assert [line.split()[0] for line in lines[4:7]] == ["main", "down", "up"]


# --- numbers and names ------------------------------------------------------------


@pytest.mark.parametrize(
    ("nanoseconds", "shown"),
    [
        (0, "0"),
        (1, "1 ns"),
        (999, "999 ns"),
        (1000, "1.00 µs"),
        (999_499, "999 µs"),
        (999_500, "1.00 ms"),
        (12_345_678, "12.3 ms"),
        (999_999_999, "1.00 s"),
        (9_994_999_999, "9.99 s"),
        (9_995_000_000, "10.0 s"),
        (99_940_000_000, "99.9 s"),
        (99_950_000_000, "1m 40s"),
        (119_700_000_000, "2m 00s"),
        (3_599_600_000_000, "1h 00m"),
        (3_661_000_000_000, "1h 01m"),
        (190_000_000_000_000, "2d 04h"),
        (-1500, "-1.50 µs"),
    ],
)
def test_durations(nanoseconds: int, shown: str) -> None:
    assert text.duration(nanoseconds) == shown


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (0, "0"),
        (999, "999 B"),
        (1000, "0.98 KiB"),
        (1024, "1.00 KiB"),
        (1024**2 - 1, "1.00 MiB"),
        (1536 * 1024**2, "1.50 GiB"),
        (5 * 1024**5, "5.00 PiB"),
        (-2048, "-2.00 KiB"),
    ],
)
def test_sizes(number: int, shown: str) -> None:
    assert text.size(number) == shown


@settings(deadline=None)
@given(st.integers(-(10**16), 10**16))
def test_quantities_are_short(number: int) -> None:
    for unit in ("nanoseconds", "bytes"):
        assert len(text.quantity(number, unit)) <= 9
        assert text.signed(number, unit)[:1] in ("+", "-", "")


def test_shares() -> None:
    shares = [text.share(part, 10_000) for part in (0, 1, 5, 1234, 9994, 9999, 10_000)]
    assert shares == ["0%", "<0.1%", "0.1%", "12.3%", "99.9%", "100%", "100%"]
    assert text.share(5, 0) == ""
    assert text.share(-1000, 10_000) == "-10.0%"


@settings(deadline=None)
@given(st.text(), st.integers(1, 30))
def test_clipped_text_fits(sample: str, width: int) -> None:
    clipped = text.clip(text.printable(sample), width)
    assert text.cells(clipped) <= width
    assert text.cells(text.pad(clipped, width, right=False)) == width


def combining() -> Iterator[str]:
    yield "e\u0301"
    yield "\u20dd"


def test_cells() -> None:
    assert [text.cells(each) for each in ("abc", "日本", *combining())] == [3, 4, 1, 0]
