"""A reporter that keeps every span in an SQLite database.

python -m examples.sqlite_reporter spans.db
sqlite3 spans.db "SELECT name, count(*), sum(busy) FROM span GROUP BY name"
"""

import sqlite3
import sys
from typing import Any

import spanprof

SCHEMA = """
CREATE TABLE IF NOT EXISTS span (
    id INTEGER, parent INTEGER, name TEXT, file TEXT, line INTEGER, labels TEXT,
    start INTEGER, end INTEGER, busy INTEGER, cpu INTEGER, allocated INTEGER)
"""


class SQLiteReporter(spanprof.Reporter):
    """Times are in ns, ``allocated`` is in bytes."""

    def __init__(self, path: str) -> None:
        self.path = path

    def init(self, config: spanprof.ProfileConfig) -> None:
        # Here, and not above: SQLite's connections belong to one thread, and a child
        # after a fork needs one of its own.
        self.database = sqlite3.connect(self.path, timeout=60)
        self.database.execute(SCHEMA)

    def spans(self, batch: Any) -> None:
        rows = ((s.id, s.parent, s.name, s.callsite.file, s.callsite.line,
                 str(dict(s.labels)), s.start, s.end, s.wall_busy,
                 s.cpu_user + s.cpu_system, s.alloc_space) for s in batch)  # fmt: skip
        self.database.executemany(f"INSERT INTO span VALUES ({'?,' * 10}?)", rows)

    def flush(self) -> None:
        self.database.commit()


def main(path: str) -> None:
    spanprof.start(track_all=True, reporters=[SQLiteReporter(path)])
    with spanprof.span("squares"):
        for n in range(10):
            with spanprof.span("square"):
                [i * i for i in range(n * 1000)]
    spanprof.stop()


if __name__ == "__main__":
    main(sys.argv[1])
