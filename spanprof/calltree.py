"""The tree of spans in a profile, with totals.

``_core`` gives nodes with self values. Tables and rankings want them as a tree in
which equal spans are one node, and want the sum of what is below each node.
"""

from __future__ import annotations

from operator import add

from . import _core

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import NamedTuple, TypeVar

    T = TypeVar("T")
else:
    from .lightnamedtuple import NamedTuple

Labels = tuple[tuple[str, str], ...]
Values = tuple[int, ...]
"""One number for each of ``_core.METRICS``."""

ZERO: Values = (0,) * len(_core.METRICS)

_INDEX = {name: index for index, name in enumerate(_core.METRICS)}


class Callsite(NamedTuple):
    """A place in the source that opens spans."""

    name: str
    """The span's name."""
    target: str
    """The ``__name__`` of the module that opens it."""
    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.target}::{self.name}" if self.target else self.name


class Series(NamedTuple):
    """Something that is shown: one stored metric, or the sum of several."""

    name: str
    unit: str
    kind: str
    indices: tuple[int, ...]

    def of(self, values: Values) -> int:
        return sum(values[index] for index in self.indices)


SERIES: dict[str, Series] = {
    name: Series(name, unit, kind, tuple(_INDEX[metric] for metric in metrics))
    for name, unit, kind, metrics in _core.SERIES
}
"""By name, in the order of files and columns."""


def sum_of(a: Values, b: Values) -> Values:
    return tuple(map(add, a, b))


def sum_all(values: Iterable[Values]) -> Values:
    result = ZERO
    for each in values:
        result = sum_of(result, each)
    return result


class Node:
    """All spans with one stack of callsites and labels."""

    __slots__ = ("callsite", "children", "labels", "total", "values")

    def __init__(self, callsite: Callsite, labels: Labels) -> None:
        self.callsite = callsite
        self.labels = labels
        """Its own, not its ancestors'."""
        self.values = ZERO
        """Self values."""
        self.total = ZERO
        """Its own and all its descendants'; by :meth:`CallTree.add_up`."""
        self.children: dict[tuple[Callsite, Labels], Node] = {}

    def child(self, callsite: Callsite, labels: Labels) -> Node:
        """The child of that name, made if there is none."""
        key = callsite, labels
        node = self.children.get(key)
        if node is None:
            node = self.children[key] = Node(callsite, labels)
        return node


_NOWHERE = Callsite("", "", "", 0)


class CallTree:
    """The nodes of a profile under one root that stands for no span."""

    def __init__(self, kinds: tuple[str, ...], start: int, duration: int) -> None:
        self.kinds = kinds
        self.start = start
        """Unix time in ns."""
        self.duration = duration
        """ns."""
        self.root = Node(_NOWHERE, ())

    def add_up(self) -> None:
        """Fill in the totals from the self values."""
        # Parents come before their children in a walk: backwards, they come after.
        nodes = [self.root, *(node for _, node in self.walk())]
        for node in reversed(nodes):
            node.total = node.values
            for child in node.children.values():
                node.total = sum_of(node.total, child.total)

    def walk(self) -> Iterator[tuple[int, Node]]:
        """Every node with its depth from 0, parents first."""
        return walk(self.root, lambda node: node.children.values())


def walk(root: T, children: Callable[[T], Iterable[T]]) -> Iterator[tuple[int, T]]:
    """All that is below ``root`` with its depth from 0, parents first, children in
    the order given.

    Without recursion: stacks of spans may be deeper than Python's own.
    """
    pending = [(0, child) for child in reversed([*children(root)])]
    while pending:
        depth, node = pending.pop()
        yield depth, node
        pending += [(depth + 1, child) for child in reversed([*children(node)])]


class CallsiteCache:
    """Callsites by the core's number. What the core interns never changes."""

    def __init__(self) -> None:
        self._known: dict[int, Callsite] = {}

    def __getitem__(self, number: int) -> Callsite:
        callsite = self._known.get(number)
        if callsite is None:
            callsite = self._known[number] = Callsite(*_core.callsite(number))
        return callsite


def build(data: _core.ProfileData, *, labels_on_leaves: bool = False) -> CallTree:
    """Return the tree of a profile, totals included.

    A file knows only the labels of a whole stack, and they come back on its
    innermost node. With ``labels_on_leaves`` they are put back where they were.
    """
    tree = CallTree(data.kinds, data.start_ns, data.duration_ns)
    callsites = CallsiteCache()
    nodes: list[Node] = []
    if labels_on_leaves:
        _replant(tree, data, callsites)
    else:
        for parent, number, labels, values in data.nodes():
            above = tree.root if parent < 0 else nodes[parent]
            node = above.child(callsites[number], labels)
            node.values = sum_of(node.values, values)
            nodes.append(node)
    tree.add_up()
    return tree


def _replant(tree: CallTree, data: _core.ProfileData, callsites: CallsiteCache) -> None:
    """Build the tree from whole stacks, each with all the labels that hold there.

    Every span that was called is a stack of its own, with its labels. So a stack's
    labels belong to the outermost of its ancestors that has been seen with them;
    short stacks are planted first, so that ancestors are there to be found.
    """
    stacks: list[tuple[list[Callsite], Labels, Values]] = []
    paths: list[list[Callsite]] = []
    merged: list[Labels] = []
    for parent, number, labels, values in data.nodes():
        paths.append([*(paths[parent] if parent >= 0 else ()), callsites[number]])
        above = dict(merged[parent]) if parent >= 0 else {}
        merged.append(tuple(sorted({**above, **dict(labels)}.items())))
        if any(values):
            stacks.append((paths[-1], merged[-1], values))
    stacks.sort(key=lambda stack: len(stack[0]))

    for path, wanted, values in stacks:
        node, missing = tree.root, set(wanted)
        for callsite in path[:-1]:
            node = _ancestor(node, callsite, missing)
            missing -= set(node.labels)
        node = node.child(path[-1], tuple(sorted(missing)))
        node.values = sum_of(node.values, values)


def _ancestor(node: Node, callsite: Callsite, labels: set[tuple[str, str]]) -> Node:
    """The child that has most of ``labels``, and no others."""
    children = [child for (site, _), child in node.children.items() if site == callsite]
    fitting = [child for child in children if labels.issuperset(child.labels)]
    if fitting:
        return max(fitting, key=lambda child: len(child.labels))
    # A label further in may hide one of the same name here. Which child it was can
    # be told if there is no choice.
    names = {name for name, _ in labels}
    hidden = [child for child in children if names.issuperset(dict(child.labels))]
    return hidden[0] if len(hidden) == 1 else node.child(callsite, ())


def choose_series(kinds: tuple[str, ...], name: str | None) -> str:
    """Return ``name`` if it was measured, or the one most likely meant by None."""
    measured = [each.name for each in SERIES.values() if each.kind in kinds]
    if name is None:
        for likely in ("wall", "cpu", "inuse_space", "alloc_space"):
            if likely in measured:
                return likely
        return "calls"
    if name not in measured:
        raise ValueError(f"{name!r} is not one of {', '.join(measured)}")
    return name


def by_callsite(
    tree: CallTree,
) -> list[tuple[Callsite, Values, Values]]:
    """Self values and totals of each callsite, in no order.

    A node inside another one of the same callsite is part of that one's total
    already.
    """
    own: dict[Callsite, list[Node]] = {}
    outermost: dict[Callsite, list[Node]] = {}
    open_above: list[Callsite] = []
    times_open: dict[Callsite, int] = {}
    for depth, node in tree.walk():
        while len(open_above) > depth:
            times_open[open_above.pop()] -= 1
        site = node.callsite
        own.setdefault(site, []).append(node)
        if not times_open.get(site):
            outermost.setdefault(site, []).append(node)
        open_above.append(site)
        times_open[site] = times_open.get(site, 0) + 1
    return [
        (
            site,
            sum_all(node.values for node in nodes),
            sum_all(node.total for node in outermost[site]),
        )
        for site, nodes in own.items()
    ]
