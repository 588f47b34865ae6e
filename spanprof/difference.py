"""What changed between two profiles, as text."""

from collections.abc import Iterable
from dataclasses import dataclass

from .calltree import (
    SERIES,
    ZERO,
    Callsite,
    CallTree,
    Labels,
    Node,
    Series,
    Values,
    sum_all,
    sum_of,
    walk,
)
from .grid import Grid, terminal_width
from .table import ROWS, heading, heaviest, name_cell, series_to_show, where_cell
from .text import count, quantity, signed


def render_difference(
    before: CallTree,
    after: CallTree,
    *,
    sort: str | None = None,
    limit: int = ROWS,
    width: int | None = None,
) -> str:
    """Return the table of what changed, without a newline at its end.

    Spans are the same if all spans of their stacks have the same names, targets and
    labels: lines move when a program is edited, and that is what people compare.
    Those that changed most come first. Arguments as in :func:`.table.render`.
    ValueError if the two have nothing in common that was measured.
    """
    kinds = tuple(kind for kind in after.kinds if kind in before.kinds)
    if not kinds:
        raise ValueError("the two profiles were measured in different ways")
    series = series_to_show(kinds, sort)
    rows = _rows(_pair(before, after), series)
    headings = [f"before  {heading(before)}", f"after   {heading(after)}"]
    if not rows:
        return "\n".join([*headings, "no spans were recorded"])

    others = [
        each
        for each in map(
            SERIES.__getitem__, ("calls", "wall_busy", "cpu", "alloc_space")
        )
        if each.kind in kinds and each.kind != series.kind
    ]
    leading = series.kind
    grid = Grid(
        [
            "span",
            *(f"{leading} before", f"{leading} after", "change", "%", "self change"),
            *(
                each.kind if each.kind == "calls" else f"{each.kind} self"
                for each in others
            ),
            "where",
        ]
    )
    whole = max(series.of(tree.root.total) for tree in (before, after))
    kept = heaviest([pair.weight for _, pair in rows], whole, limit)
    folded = [pair for number, (_, pair) in enumerate(rows) if number not in kept]
    for number, (depth, pair) in enumerate(rows):
        if number in kept:
            grid.row(
                name_cell(pair.callsite, pair.labels, depth),
                *_compared(pair.before, pair.after, series),
                *_changes(pair.own_change(), [series, *others]),
                where_cell(pair.callsite),
            )
    if folded:
        most = max(pair.weight for pair in folded)
        bound = f"by {quantity(most, series.unit)} or less" if most else "in nothing"
        change = sum_all(pair.own_change() for pair in folded)
        grid.row(
            f"({count(len(folded))} more, changed {bound})",
            *("", "", "", ""),
            *_changes(change, [series, *others]),
            "",
        )
    grid.rule()
    was, now = before.root.total, after.root.total
    grid.row(
        "all spans",
        *_compared(_Side(ZERO, was, True), _Side(ZERO, now, True), series),
        *_changes(_minus(now, was), [series, *others]),
        "",
    )
    return "\n".join([*headings, *grid.lines(width or terminal_width())])


# --- pairs of nodes ---------------------------------------------------------------


@dataclass(slots=True)
class _Side:
    """Values of one profile."""

    own: Values = ZERO
    total: Values = ZERO
    present: bool = False

    def add(self, node: Node) -> None:
        self.own = sum_of(self.own, node.values)
        self.total = sum_of(self.total, node.total)
        self.present = True


class _Pair:
    """Nodes of the same stack in either profile, or in both."""

    __slots__ = ("after", "before", "callsite", "children", "labels", "weight")

    def __init__(self, callsite: Callsite, labels: Labels) -> None:
        self.callsite = callsite
        self.labels = labels
        self.before = _Side()
        self.after = _Side()
        self.children: dict[object, _Pair] = {}
        self.weight = 0

    def own_change(self) -> Values:
        return _minus(self.after.own, self.before.own)

    def child(self, node: Node) -> "_Pair":
        key = node.callsite.name, node.callsite.target, node.labels
        pair = self.children.get(key)
        if pair is None:
            pair = self.children[key] = _Pair(node.callsite, node.labels)
        return pair


def _minus(a: Values, b: Values) -> Values:
    return tuple(x - y for x, y in zip(a, b, strict=True))


def _pair(before: CallTree, after: CallTree) -> _Pair:
    root = _Pair(after.root.callsite, ())
    # The later one first: its lines are those of the program as it is now.
    for tree in (after, before):
        pending = [(root, tree.root)]
        while pending:
            pair, node = pending.pop()
            for below in node.children.values():
                child = pair.child(below)
                (child.after if tree is after else child.before).add(below)
                pending.append((child, below))
    return root


def _rows(root: _Pair, series: Series) -> list[tuple[int, _Pair]]:
    """All pairs with their depth; of siblings, those that changed most come first."""
    # One that did not change may hold some that did, one up and one down. It is to
    # be shown with them, so it is as heavy as the heaviest.
    for _, pair in reversed([*walk(root, lambda pair: pair.children.values())]):
        change = series.of(pair.after.total) - series.of(pair.before.total)
        below = (child.weight for child in pair.children.values())
        pair.weight = max(abs(change), *below, 0)
    return [
        *walk(
            root,
            lambda pair: sorted(
                pair.children.values(),
                key=lambda child: (-child.weight, child.callsite, child.labels),
            ),
        )
    ]


# --- cells ------------------------------------------------------------------------


def _compared(before: _Side, after: _Side, series: Series) -> list[str]:
    was, now = series.of(before.total), series.of(after.total)
    return [
        quantity(was, series.unit) if before.present else "-",
        quantity(now, series.unit) if after.present else "-",
        signed(now - was, series.unit),
        _ratio(was, now, before.present, after.present),
    ]


def _ratio(was: int, now: int, had: bool, has: bool) -> str:
    if not had:
        return "new"
    if not has:
        return "gone"
    if was <= 0 or now == was:
        return ""
    change = 100 * (now - was) / was
    return f"{change:+.0f}%" if abs(change) >= 99.5 else f"{change:+.1f}%"


def _changes(change: Values, shown: Iterable[Series]) -> list[str]:
    return [signed(each.of(change), each.unit) for each in shown]
