"""Columns of text that fit a terminal."""

import os
import sys
from collections.abc import Sequence

from .text import cells, clip, pad

_GAP = "  "
_WIDEST_NAME = 100
_NARROWEST_NAME = 16


def terminal_width() -> int | None:
    """Columns of the terminal that standard output is; None if it is none.

    What goes to a file or a pipe is not cut, unless ``COLUMNS`` is set.
    """
    try:
        return int(os.environ["COLUMNS"]) or None
    except (KeyError, ValueError):
        pass
    try:
        stdout = sys.__stdout__
        return os.get_terminal_size(stdout.fileno()).columns if stdout else None
    except (ValueError, OSError):
        return None


class Grid:
    """Rows of text in columns.

    The first column, to the left, holds names: it gives way if the terminal is too
    narrow. The last one, also to the left, is left out then. Those between are
    numbers, to the right.
    """

    def __init__(self, headers: Sequence[str]) -> None:
        self._rows = [list(headers)]
        self._ruled = {1}

    def row(self, *texts: str) -> None:
        self._rows.append(list(texts))

    def rule(self) -> None:
        """Draw a line above the next row."""
        self._ruled.add(len(self._rows))

    def lines(self, width: int | None) -> list[str]:
        """The table in ``width`` columns of a terminal; None: as many as it takes."""
        rows, last = self._rows, len(self._rows[0]) - 1
        widths = [max(map(cells, column)) for column in zip(*rows, strict=True)]
        widths[0] = min(widths[0], _WIDEST_NAME)
        if width is not None:
            if _total(widths) > width:
                rows = [row[:last] for row in rows]
                widths = widths[:last]
            narrow = min(widths[0], _NARROWEST_NAME)
            widths[0] = max(widths[0] - max(_total(widths) - width, 0), narrow)
        lines = []
        for number, row in enumerate(rows):
            if number in self._ruled:
                lines.append("─" * _total(widths))
            texts = [
                pad(clip(text, room), room, right=0 < column < last)
                for column, (text, room) in enumerate(zip(row, widths, strict=True))
            ]
            lines.append(_GAP.join(texts).rstrip())
        return lines


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + len(_GAP) * (len(widths) - 1)
