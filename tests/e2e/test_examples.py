"""Examples do what they say."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import spanprof

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_spans_in_a_database(tmp_path: Path) -> None:
    script = EXAMPLES / "sqlite_reporter.py"
    assert len(script.read_text().splitlines()) < 60
    path = os.pathsep.join([str(Path(spanprof.__file__).parents[1]), *sys.path])
    subprocess.run(
        [sys.executable, script, tmp_path / "spans.db"],
        check=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": path},
    )
    database = sqlite3.connect(tmp_path / "spans.db")
    rows = dict(database.execute("SELECT name, count(*) FROM span GROUP BY name"))
    assert rows == {"squares": 1, "square": 10}
    query = (
        "SELECT count(*), sum(child.allocated > 0) FROM span AS child "
        "JOIN span AS above ON above.id = child.parent WHERE above.name = 'squares' "
        "AND above.start <= child.start AND child.end <= above.end"
    )
    assert database.execute(query).fetchone() == (10, 10)
    database.close()
