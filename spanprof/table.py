"""A profile as text: the tree of its spans, or a ranking of its callsites.

The cells of each column of self values add up to its last one: rows that are left
out for being light are summed in one line.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from .calltree import (
    SERIES,
    Callsite,
    CallTree,
    Labels,
    Node,
    Series,
    Values,
    by_callsite,
    choose_series,
    sum_all,
    walk,
)
from .grid import Grid, terminal_width
from .text import count, duration, printable, quantity, share

ROWS = 50
"""Most rows of a table, if not told otherwise."""

_LIGHT = 0.001
"""Rows below this share of the whole are folded."""

_DEEPEST_INDENT = 20


def render(
    tree: CallTree,
    *,
    sort: str | None = None,
    limit: int = ROWS,
    flat: bool = False,
    width: int | None = None,
) -> str:
    """Return the table of a profile, without a newline at its end.

    ``sort`` names the series to order by, ``limit`` is the number of rows (0: all),
    ``flat`` gives one row per callsite instead of the tree, ``width`` is in columns
    (None: those of the terminal).
    """
    series = series_to_show(tree.kinds, sort)
    rows = _ranking(tree, series) if flat else _branches(tree, series)
    if not rows:
        return f"{heading(tree)}\nno spans were recorded"

    whole = tree.root.total
    fields = _fields(tree.kinds, series.kind, whole)
    grid = Grid(["span", *(field.header for field in fields), "where"])
    kept = heaviest([row.weight for row in rows], abs(series.of(whole)), limit)
    folded = [row for number, row in enumerate(rows) if number not in kept]
    for number, row in enumerate(rows):
        if number in kept:
            cells = (field.show(row.own, row.total) for field in fields)
            grid.row(row.name, *cells, row.where)
    if folded:
        most = max(row.weight for row in folded)
        bound = f", {quantity(most, series.unit)} or less" if most else ""
        name = f"({count(len(folded))} more{bound})"
        grid.row(name, *_sums(fields, sum_all(row.own for row in folded)), "")
    grid.rule()
    grid.row("all spans", *_sums(fields, whole), "")
    return "\n".join([heading(tree), *grid.lines(width or terminal_width())])


# --- rows -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Row:
    name: str
    where: str
    own: Values
    total: Values
    weight: int


def _branches(tree: CallTree, series: Series) -> list[_Row]:
    """Rows of the tree; of siblings, the heaviest come first."""
    # After a subtraction, one that weighs nothing may hold others that do, of
    # either sign. It is to be shown with them, so it is as heavy as the heaviest.
    weights: dict[Node, int] = {}
    for _, node in reversed([*tree.walk()]):
        below = (weights[child] for child in node.children.values())
        weights[node] = max(abs(series.of(node.total)), *below, 0)

    def children(node: Node) -> list[Node]:
        return sorted(
            node.children.values(),
            key=lambda child: (-weights[child], child.callsite, child.labels),
        )

    return [
        _Row(
            name_cell(node.callsite, node.labels, depth),
            where_cell(node.callsite),
            node.values,
            node.total,
            weights[node],
        )
        for depth, node in walk(tree.root, children)
    ]


def _ranking(tree: CallTree, series: Series) -> list[_Row]:
    """One row for each callsite, the heaviest by self values first."""
    rows = [
        _Row(
            name_cell(callsite, (), 0),
            where_cell(callsite),
            own,
            total,
            abs(series.of(own)),
        )
        for callsite, own, total in by_callsite(tree)
    ]
    return sorted(rows, key=lambda row: (-row.weight, row.name, row.where))


def heaviest(weights: Sequence[int], whole: int, limit: int) -> set[int]:
    """Numbers of the rows to show: at most ``limit`` of those that are not light.

    Of equal weights the first are taken. So where no row is heavier than the one
    around it, none is shown without that.
    """
    if limit == 0:
        return set(range(len(weights)))
    order = sorted(range(len(weights)), key=lambda number: -weights[number])[:limit]
    kept = {number for number in order if weights[number] >= _LIGHT * whole}
    return kept or set(order[:1])


# --- cells ----------------------------------------------------------------------


def heading(tree: CallTree) -> str:
    began = datetime.fromtimestamp(tree.start // 10**9, UTC)
    return f"{duration(tree.duration)} from {began:%Y-%m-%d %H:%M:%S} UTC"


def name_cell(callsite: Callsite, labels: Labels, depth: int) -> str:
    indent = "  " * min(depth, _DEEPEST_INDENT)
    if depth > _DEEPEST_INDENT:
        indent += f"[{depth}] "
    pairs = (f"  {_word(name)}={_word(value)}" for name, value in labels)
    return indent + printable(callsite.name) + "".join(pairs)


def _word(text: str) -> str:
    text = printable(text)
    return f'"{text}"' if not text or " " in text or "=" in text else text


def where_cell(callsite: Callsite) -> str:
    place = callsite.target
    if place in ("", "__main__"):
        place = os.path.basename(callsite.file)
    return printable(f"{place}:{callsite.line}")


@dataclass(frozen=True, slots=True)
class _Field:
    """A column of numbers: ``show`` gets self values and totals of a row."""

    header: str
    show: Callable[[Values, Values], str]
    adds_up: bool = True
    """Totals hold each other, and peaks were at different times."""


def series_to_show(kinds: tuple[str, ...], sort: str | None) -> Series:
    """The series that totals are shown of, and that rows are ordered by.

    Of wall time it is the busy part: idle time goes by beside the busy time of
    other spans, and a total with it could exceed the time that has passed.
    """
    name = choose_series(kinds, sort)
    return SERIES["wall_busy" if name == "wall" else name]


def _own(header: str, series: Series, *, adds_up: bool = True) -> _Field:
    return _Field(header, lambda own, _: quantity(series.of(own), series.unit), adds_up)


def _total(header: str, series: Series) -> _Field:
    return _Field(
        header, lambda _, total: quantity(series.of(total), series.unit), False
    )


def _share(header: str, series: Series, whole: Values) -> _Field:
    return _Field(header, lambda own, _: share(series.of(own), series.of(whole)))


def _fields(kinds: tuple[str, ...], leading: str, whole: Values) -> list[_Field]:
    """The columns for what was measured.

    Totals are shown of the leading kind only: with all of them no terminal would be
    wide enough.
    """
    fields = []
    if "calls" in kinds:
        fields.append(_own("calls", SERIES["calls"]))
    if "wall" in kinds:
        busy, idle = SERIES["wall_busy"], SERIES["wall_idle"]
        if leading == "wall":
            fields.append(_total("wall total", busy))
        fields.append(_own("wall self", busy))
        if idle.of(whole):
            fields.append(_own("wall idle", idle))
        if "cpu" not in kinds:
            fields.append(_share("wall %", busy, whole))
    if "cpu" in kinds:
        cpu = SERIES["cpu"]
        if leading == "cpu":
            fields.append(_total("cpu total", cpu))
        fields += [_own("cpu self", cpu), _share("cpu %", cpu, whole)]
    if "alloc" in kinds:
        space = SERIES["alloc_space"]
        if leading == "alloc":
            fields.append(_total("alloc total", space))
        fields.append(_own("alloc self", space))
        if leading == "alloc":
            fields.append(_share("alloc %", space, whole))
        fields.append(_own("allocs", SERIES["alloc_objects"]))
    if "heap" in kinds:
        space = SERIES["inuse_space"]
        if leading == "heap":
            fields.append(_total("heap total", space))
        fields.append(_own("heap self", space))
        if leading == "heap":
            fields.append(_own("heap objects", SERIES["inuse_objects"]))
        fields.append(_own("heap peak", SERIES["inuse_peak_space"], adds_up=False))
    return fields


def _sums(fields: list[_Field], own: Values) -> list[str]:
    """Cells of a row that sums up others."""
    return [field.show(own, own) if field.adds_up else "" for field in fields]
