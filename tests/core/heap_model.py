"""What blocks cost, computed the plain way: a table of blocks, and sums over it.

Written from the contract alone. Numbers in brackets are rules.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .model import Path

AGE_LIMITS = (0, 1, 10, 60, 600, 3600)
"""Lower limits of the classes of age, in seconds."""

Thread = int | None
"""A thread's state; None: a thread that has none in the running session."""


@dataclass(frozen=True)
class Block:
    path: Path
    size: int
    born: int  # second
    span: int  # id


@dataclass
class Node:
    """A path's values, or those of all."""

    objects: int = 0
    space: int = 0
    live: int = 0
    peak: int = 0
    users: set[tuple[Thread, Path]] = field(default_factory=set)

    def change(self, size: int, user: tuple[Thread, Path]) -> None:
        self.live += size
        self.peak = max(self.peak, self.live)
        self.users.add(user)

    def is_exact(self) -> bool:
        """Whether one thread alone made and freed the blocks."""
        threads = {thread for thread, _ in self.users}
        return None not in threads and len(threads) <= 1


@dataclass
class Heap:
    """The blocks of one session."""

    second: int = 0
    blocks: dict[int, Block] = field(default_factory=dict)  # by address
    nodes: dict[Path, Node] = field(default_factory=dict)
    all: Node = field(default_factory=Node)
    running: set[int] = field(default_factory=set)  # spans that have, or had, blocks
    closed: set[int] = field(default_factory=set)  # destroyed ones that have

    def make(
        self, address: int, path: Path, size: int, span: int, thread: Thread
    ) -> None:
        """Charged to the innermost span of the thread that makes it [5.5]."""
        self.lose(path, size, span)
        self.blocks[address] = Block(path, size, self.second, span)
        for node in (self.nodes[path], self.all):
            node.change(size, (thread, path))

    def lose(self, path: Path, size: int, span: int) -> None:
        """A block that cannot be followed is allocated, and not live."""
        node = self.nodes.setdefault(path, Node())
        node.objects += 1
        node.space += size
        self.running.add(span)

    def free(self, address: int, thread: Thread) -> None:
        """Live until freed, by whatever thread [5.6]; others are nobody's [5.5]."""
        block = self.blocks.pop(address, None)
        if block is not None:
            for node in (self.nodes[block.path], self.all):
                node.change(-block.size, (thread, block.path))
            self.settle()

    def destroy(self, span: int) -> None:
        if span in self.running:
            self.running.remove(span)
            self.closed.add(span)
            self.settle()

    def settle(self) -> None:
        """A destroyed span is gone with its last block [5.6]."""
        self.closed &= {block.span for block in self.blocks.values()}

    # --- what there is ---------------------------------------------------------

    def in_use(self, path: Path) -> tuple[int, int]:
        sizes = [block.size for block in self.blocks.values() if block.path == path]
        return len(sizes), sum(sizes)

    def in_use_of_span(self, span: int) -> tuple[int, int]:
        sizes = [block.size for block in self.blocks.values() if block.span == span]
        return len(sizes), sum(sizes)

    def ages(self) -> dict[Path, list[int]]:
        """Bytes by class of age, of paths that have any. What has just come of age
        may be a moment younger, and counts so."""
        ages: dict[Path, list[int]] = {}
        for block in self.blocks.values():
            if block.size > 0:
                age = self.second - block.born
                kind = sum(limit < age for limit in AGE_LIMITS[1:])
                ages.setdefault(block.path, [0] * len(AGE_LIMITS))[kind] += block.size
        return ages
