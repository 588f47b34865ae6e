"""A reporter that keeps every span in Parquet files, a new one for each report.

python -m examples.parquet_reporter spans
duckdb -c "SELECT name, count(*), sum(wall_busy) FROM 'spans/*.parquet' GROUP BY name"
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import spanprof


class ParquetReporter(spanprof.Reporter):
    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def init(self, config: spanprof.ProfileConfig) -> None:
        # Here, and not above: what waited at a fork is the parent's to write.
        self.batches: list[pa.RecordBatch] = []

    def spans(self, batch: Any) -> None:
        self.batches.append(pa.record_batch(batch))

    def flush(self) -> None:
        if not self.batches:
            return
        name = f"{time.time_ns()}-{os.getpid()}"
        made = self.directory / f".{name}"
        pq.write_table(pa.Table.from_batches(self.batches), made)
        made.rename(self.directory / f"{name}.parquet")  # whole, or not at all
        self.batches.clear()


def main(directory: Path) -> None:
    directory.mkdir(exist_ok=True)
    with (
        spanprof.start(
            track_all=True, record_labels=["n"], reporters=[ParquetReporter(directory)]
        ),
        spanprof.span("squares"),
    ):
        for n in range(10):
            with spanprof.span("square", n=n):
                [i * i for i in range(n * 1000)]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
