"""A table in the terminal that follows the program."""

from __future__ import annotations

import os
import sys

from ..calltree import SERIES
from ..config import check_limit
from .base import Reporter, import_now

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TextIO

    from rich.console import Console
    from rich.live import Live

    from ..config import ProfileConfig
    from ..profiles import Profile

_AROUND = 6
"""Lines of a table beside its rows: heading, headers, two rules, two sums."""


class TableReporter(Reporter):
    """Shows the table of the whole session, and draws it anew at each report.

    It goes to ``file``, None: standard error; or to ``console``, a rich ``Console``,
    and what the program prints through that one goes above the table. If that is no
    terminal, the table is printed once, when the session ends. ``limit`` is the number
    of rows (0: all), as far as the terminal is high enough; ``sort`` and ``flat`` are
    those of ``spanprof report``: the series to order by, and one row for each callsite
    in place of the tree.

    Between two reports the terminal is as it was, whatever becomes of the program.
    Only the process draws in which the reporter's first session began: a child after a
    fork does not. ImportError without rich: ``pip install "spanprof[rich]"``.
    """

    def __init__(
        self,
        file: TextIO | None = None,
        *,
        console: Console | None = None,
        limit: int = 50,
        sort: str | None = None,
        flat: bool = False,
    ) -> None:
        if file is not None and console is not None:
            raise TypeError("a table goes to a file or a console, not to both")
        if sort is not None and sort not in SERIES:
            raise ValueError(f"sort must be one of {', '.join(SERIES)}, not {sort!r}")
        try:
            from rich.console import Console
        except ImportError:
            raise ImportError(
                'TableReporter needs rich: pip install "spanprof[rich]"'
            ) from None
        if console is not None and not isinstance(console, Console):
            raise TypeError(f"console must be a rich Console, not {console!r}")
        import_now("rich.live", "rich.text", "spanprof.table", "unicodedata")
        self._limit = check_limit("limit", limit)
        self._sort = sort
        self._flat = flat
        self._console = console or Console(file=file, stderr=file is None)
        self._process: int | None = None
        self._whole: Profile | None = None
        self._live: Live | None = None

    def init(self, config: ProfileConfig) -> None:
        if self._process is None:
            self._process = os.getpid()
        self._whole = None
        self._live = None  # in a child: the parent's to end

    def profile(self, profile: Profile) -> None:
        if self._process == os.getpid():
            self._whole = profile if self._whole is None else self._whole + profile

    def flush(self) -> None:
        whole = self._whole
        if whole is None:
            return
        console = self._console
        if console.is_terminal and not console.is_dumb_terminal:
            # The last table may be higher than the terminal: it scrolls.
            height = None if self.ending else console.height
            self._draw(self._text(whole, console.width, height))
        elif self.ending:
            # As wide as it takes.
            console.file.write(self._text(whole, sys.maxsize, None) + "\n")
            console.file.flush()

    def _draw(self, text: str) -> None:
        from rich.text import Text

        live = self._live or self._begin()
        try:
            live.update(Text(text, no_wrap=True, overflow="crop"))
            if self.ending:
                self._live = None
                live.stop()
            else:
                live.refresh()
        except BaseException:
            self._live = None
            try:
                live.stop()
            except Exception:
                pass  # the first error tells more
            raise

    def _begin(self) -> Live:
        from rich.live import Live

        # Redirected streams would stay so in a child after a fork, with locks that
        # nobody lets go of.
        self._live = live = Live(
            console=self._console,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        live.start()
        # Nothing is to be put right if the program is killed.
        self._console.show_cursor(True)
        return live

    def _text(self, whole: Profile, width: int, height: int | None) -> str:
        """The table in ``width`` columns and, if it is to fit, ``height`` lines."""
        from ..table import render

        limit = self._limit
        if height is not None:
            room = max(height - _AROUND, 1)
            limit = min(limit, room) if limit else room
        return render(
            whole.tree, sort=self._sort, limit=limit, flat=self._flat, width=width
        )

    def __repr__(self) -> str:
        return f"TableReporter({self._console.file!r})"
