"""Examples do what they say."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

import spanprof

EXAMPLES = Path(__file__).parents[2] / "examples"


def run_example(name: str, argument: Path) -> None:
    script = EXAMPLES / name
    assert len(script.read_text().splitlines()) < 60
    path = os.pathsep.join([str(Path(spanprof.__file__).parents[1]), *sys.path])
    subprocess.run(
        [sys.executable, script, argument],
        check=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": path},
    )


def test_spans_in_a_database(tmp_path: Path) -> None:
    run_example("sqlite_reporter.py", tmp_path / "spans.db")
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


def test_spans_in_parquet_files(tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    run_example("parquet_reporter.py", tmp_path / "spans")
    (file,) = (tmp_path / "spans").iterdir()
    assert file.suffix == ".parquet"
    table = pq.read_table(tmp_path / "spans")
    assert table.column("name").to_pylist() == ["square"] * 10 + ["squares"]
    labels = table.column("labels").to_pylist()
    assert labels == [[("n", str(n))] for n in range(10)] + [[]]
    *parents, none = table.column("parent").to_pylist()
    assert set(parents) == {table.column("id")[10].as_py()}
    assert none is None


@pytest.mark.parametrize("mode", [[], ["--cffi"]], ids=["extension", "cffi"])
def test_native_code_and_its_caller(mode: list[str]) -> None:
    if mode:
        pytest.importorskip("cffi")
    path = os.pathsep.join([str(Path(spanprof.__file__).parents[1]), *sys.path])
    command = [sys.executable, EXAMPLES / "native" / "run.py", *mode]
    command += ["--rows", "1000", "--threads", "3"]
    environment = {**os.environ, "PYTHONPATH": path, "NO_COLOR": "1"}
    said = subprocess.check_output(command, env=environment, text=True, timeout=120)
    lines = [line for line in said.splitlines() if not line.startswith("generating")]
    assert lines[0] == "sum 124875.00 of 1001 rows, 1 without a number"
    table = [line.split()[:2] for line in lines]
    for row in (["load", "1"], ["csv_sum", "1"], ["parse", "3"], ["wait", "3"]):
        assert row in table
