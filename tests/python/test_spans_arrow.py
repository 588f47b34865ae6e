"""A batch of spans as Arrow columns, read by Arrow libraries."""

from __future__ import annotations

import ctypes
import io
import os
import pickle
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import spanprof
from spanprof import ClosedSpan, Reporter, span

from .helpers import run_python

pa = pytest.importorskip("pyarrow")

COLUMNS = {
    "id": pa.uint64(),
    "parent": pa.uint64(),
    "start": pa.timestamp("ns", "UTC"),
    "end": pa.timestamp("ns", "UTC"),
    "wall_busy": pa.uint64(),
    "wall_idle": pa.uint64(),
    "cpu_user": pa.uint64(),
    "cpu_system": pa.uint64(),
    "alloc_objects": pa.uint64(),
    "alloc_space": pa.uint64(),
    "name": pa.dictionary(pa.int32(), pa.string()),
    "target": pa.dictionary(pa.int32(), pa.string()),
    "file": pa.dictionary(pa.int32(), pa.string()),
    "line": pa.uint32(),
    "labels": pa.map_(
        pa.dictionary(pa.int32(), pa.string()), pa.dictionary(pa.int32(), pa.string())
    ),
    "thread": pa.uint32(),
}


class Keep(Reporter):
    def __init__(self) -> None:
        self.batches: list[Any] = []

    def spans(self, batch: Any) -> None:
        self.batches.append(batch)


def one_batch(*names: str, **labels: str) -> Any:
    """A batch of spans of these names, one after the other, all with the labels."""
    for _ in range(100):
        keep = Keep()
        with spanprof.start(track_all=True, record_labels=labels, reporters=[keep]):
            for name in names:
                with span(name, **labels):
                    pass
        if len(keep.batches) == 1:  # reporters may be told of the first ones sooner
            return keep.batches[0]
    raise AssertionError("never all at once")


def clean(text: str) -> str:
    """Text that is UTF-8: lone surrogates are written out."""
    return text.encode("utf-8", "backslashreplace").decode()


def as_row(each: ClosedSpan) -> dict[str, Any]:
    labels: Mapping[str, str] = each.labels
    return {
        "id": each.id,
        "parent": each.parent or None,
        "start": each.start,
        "end": each.end,
        "wall_busy": each.wall_busy,
        "wall_idle": each.wall_idle,
        "cpu_user": each.cpu_user,
        "cpu_system": each.cpu_system,
        "alloc_objects": each.alloc_objects,
        "alloc_space": each.alloc_space,
        "name": clean(each.name),
        "target": clean(each.callsite.target),
        "file": clean(each.callsite.file),
        "line": each.callsite.line,
        "labels": [(clean(key), clean(value)) for key, value in labels.items()],
        "thread": each.thread,
    }


def rows(table: Any) -> list[dict[str, Any]]:
    """Times in ns, which Python's own type cannot hold."""
    for name in ("start", "end"):
        at = table.schema.get_field_index(name)
        table = table.set_column(at, name, table.column(name).cast(pa.int64()))
    told: list[dict[str, Any]] = table.to_pylist()
    return told


def test_the_columns() -> None:
    batch = one_batch("a", user="x")
    schema = pa.schema(batch)
    assert {field.name: field.type for field in schema} == COLUMNS
    assert [field.name for field in schema if field.nullable] == ["parent"]
    assert schema.field("wall_busy").metadata == {b"unit": b"ns"}
    assert schema.field("alloc_space").metadata == {b"unit": b"bytes"}
    assert pa.record_batch(batch).schema.equals(schema, check_metadata=True)


TEXTS = [
    "plain",
    "größe 漢字 🐍",
    "a\0b",
    "lone \ud800 and \udfff",
    "lone \\ud800 and \\udfff",
    "x" * 5000,
    "",
]


@pytest.mark.parametrize("seed", range(10))
def test_every_value_of_random_programs(seed: int) -> None:
    keep = Keep()
    with spanprof.start(
        track_all=True, record_labels=["user", "größe"], reporters=[keep]
    ) as session:

        def work(seed: int) -> None:
            chance = random.Random(seed)

            def nest(depth: int) -> None:
                labels = {
                    key: chance.choice(TEXTS)
                    for key in ("user", "größe", "other")
                    if chance.random() < 0.5
                }
                with span(chance.choice(TEXTS[:-1]), **labels):
                    bytearray(chance.randrange(3000))
                    while depth < 6 and chance.random() < 0.6:
                        nest(depth + 1)

            for _ in range(chance.randrange(1, 100)):
                nest(0)
                if chance.random() < 0.02:
                    session.flush()

        threads = [threading.Thread(target=work, args=(seed * 9 + n,)) for n in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert keep.batches
    for batch in keep.batches:
        record_batch = pa.record_batch(batch)
        record_batch.validate(full=True)
        assert rows(record_batch) == [as_row(each) for each in batch]
        for name in ("name", "target", "file"):
            column = record_batch.column(name)
            words = column.dictionary.to_pylist()
            assert len(set(words)) == len(words)
            assert set(words) == set(column.to_pylist()), "of this batch alone"


def test_a_table_of_several_batches() -> None:
    keep = Keep()
    with spanprof.start(reporters=[keep]) as session:
        for name in "abc":
            with span(name):
                pass
            session.flush()
    table = pa.Table.from_batches([pa.record_batch(batch) for batch in keep.batches])
    assert table.column("name").to_pylist() == ["a", "b", "c"]
    counts = table.unify_dictionaries().group_by("name").aggregate([("id", "count")])
    assert sorted(counts.column("name").to_pylist()) == ["a", "b", "c"]


def test_written_to_parquet_and_read_back() -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    batches = [one_batch(*names, user="ü") for names in ("ab", "bcc", "a")]
    file = io.BytesIO()
    with pq.ParquetWriter(file, pa.schema(batches[0])) as writer:
        for batch in batches:
            writer.write_batch(pa.record_batch(batch))
    expected = [as_row(each) for batch in batches for each in batch]
    assert rows(pq.read_table(io.BytesIO(file.getvalue()))) == expected


def test_columns_outlive_the_batch_and_the_session() -> None:
    batch = one_batch("a", "b", user="x")
    expected = [as_row(each) for each in batch]
    record_batch = pa.record_batch(batch)
    names = record_batch.column("name")
    del batch
    one_batch("c")
    assert rows(record_batch) == expected
    copy = pickle.loads(pickle.dumps(record_batch))
    del record_batch
    copy.validate(full=True)
    assert rows(copy) == expected
    assert names.to_pylist() == ["a", "b"]


def test_a_view_and_columns_at_the_same_time() -> None:
    batch = one_batch("a")
    view = memoryview(batch)
    before = bytes(view)
    first, second = pa.record_batch(batch), pa.record_batch(batch)
    assert first.equals(second)
    assert bytes(view) == before


def test_a_requested_schema_is_no_promise() -> None:
    batch = one_batch("a")
    wanted = pa.schema([("id", pa.string())]).__arrow_c_schema__()
    for arguments in ((), (None,), (wanted,)):
        schema, array = batch.__arrow_c_array__(*arguments)
        assert "arrow_schema" in repr(schema)
        assert "arrow_array" in repr(array)
    batch.__arrow_c_array__(requested_schema=wanted)
    assert "arrow_schema" in repr(batch.__arrow_c_schema__())
    for bad in ("id", array):
        with pytest.raises(TypeError, match="requested_schema"):
            batch.__arrow_c_array__(bad)
    with pytest.raises(TypeError):
        batch.__arrow_c_array__(None, None)
    with pytest.raises(TypeError):
        batch.__arrow_c_array__(schema=None)


def test_capsules_are_taken_once() -> None:
    batch = one_batch("a")
    schema, array = batch.__arrow_c_array__()
    taken = pa.RecordBatch._import_from_c_capsule(schema, array)
    with pytest.raises(ValueError, match="released"):
        pa.RecordBatch._import_from_c_capsule(schema, array)
    del schema, array
    assert taken.num_rows == 1


def test_threads_take_columns_of_one_batch() -> None:
    batch = one_batch(*"abc" * 100, user="x")
    expected = pa.record_batch(batch)
    failures: list[int] = []

    def take() -> None:
        for _ in range(50):
            if not pa.record_batch(batch).equals(expected):
                failures.append(1)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_polars_reads_it() -> None:
    pl = pytest.importorskip("polars")
    batch = one_batch(*"abab", user="ü")
    frame = pl.DataFrame(batch)
    assert frame["name"].cast(pl.String).to_list() == ["a", "b", "a", "b"]
    assert frame["id"].to_list() == [each.id for each in batch]
    assert frame["parent"].null_count() == 4
    assert frame["start"].cast(pl.Int64).to_list() == [each.start for each in batch]
    assert pl.concat([frame, frame]).group_by("name").len()["len"].to_list() == [4, 4]


def test_duckdb_reads_it() -> None:
    duckdb = pytest.importorskip("duckdb")
    batch = one_batch(*"abab", user="ü")  # noqa: F841
    query = "select name, labels['user'], count(id) from batch group by all order by 1"
    assert duckdb.sql(query).fetchall() == [("a", "ü", 2), ("b", "ü", 2)]


# --- memory ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def failing_malloc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """failing_malloc.c as a library."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("there is no C compiler")
    try:
        ctypes.CDLL(None).__libc_calloc  # noqa: B018
    except AttributeError:
        pytest.skip("the C library is not glibc")
    path = tmp_path_factory.mktemp("failing_malloc") / "failing_malloc.so"
    source = Path(__file__).with_name("failing_malloc.c")
    subprocess.run(
        [compiler, "-O2", "-shared", "-fPIC", str(source), "-o", str(path)], check=True
    )
    return path


PROGRAM = """
import ctypes, gc, sys, threading
import spanprof

library = ctypes.PyDLL(None)  # what is preloaded
library.refuse_after.argtypes = [ctypes.c_long]
library.has_refused.restype = ctypes.c_bool
library.blocks_there.restype = ctypes.c_long

class Keep(spanprof.Reporter):
    def __init__(self):
        self.batches = []
        self.go_on = threading.Event()
    def spans(self, batch):
        self.batches.append(batch)
        self.go_on.wait()  # meanwhile many gather

count = int(sys.argv[1])
keep = Keep()
with spanprof.start(record_labels=["user"], max_pending_spans=count, reporters=[keep]):
    for number in range(count):
        with spanprof.span(f"name {number % 200} \\udfff", user=f"{number}"):
            pass
    keep.go_on.set()
batch = max(keep.batches, key=len)
gc.collect()
gc.disable()
"""


@pytest.mark.parametrize("spans", [300, 80_000])
def test_out_of_memory_anywhere(
    tmp_path: Path, failing_malloc: Path, monkeypatch: pytest.MonkeyPatch, spans: int
) -> None:
    """Every request is refused once: a MemoryError, and nothing is left behind."""
    monkeypatch.setenv("LD_PRELOAD", str(failing_malloc))
    done = run_python(
        PROGRAM
        + """
def attempt(number):
    library.refuse_after(number)
    try:
        batch.__arrow_c_array__()
    except MemoryError:
        assert library.has_refused()
        return False
    # What is left over is of the interpreter's own, which does without.
    return not library.has_refused()

def attempt_all():
    refused = 0
    while not attempt(refused):
        refused += 1
    return refused

attempt_all()
before = library.blocks_there()
for _ in range(5):
    refused = attempt_all()
# The interpreter may have taken one for itself. What one refusal leaks is there 5x.
assert 0 <= library.blocks_there() - before < 5, library.blocks_there() - before
print(refused)
""",
        str(spans),
        cwd=tmp_path,
    )
    # Structs and buffers of 16 columns, dictionaries, and lists that grow.
    assert int(done.stdout) > 100


def test_what_nobody_takes_is_freed(
    tmp_path: Path, failing_malloc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_PRELOAD", str(failing_malloc))
    run_python(
        PROGRAM
        + """
def work():
    batch.__arrow_c_schema__()
    schema, array = batch.__arrow_c_array__()
    del schema
    del array

work()
before = library.blocks_there()
for _ in range(20):
    work()
assert 0 <= library.blocks_there() - before < 20, library.blocks_there() - before
""",
        "300",
        cwd=tmp_path,
    )


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_what_was_taken_is_freed() -> None:
    """By pyarrow, as a whole or in part, and by nobody."""
    batch = one_batch(*map(str, range(3000)), user="x")

    def work() -> None:
        for _ in range(100):
            names = pa.record_batch(batch).column("name")
            assert len(names) == len(batch)
            batch.__arrow_c_array__()

    def resident() -> int:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    work()
    before = resident()
    work()
    taken = 200 * pa.record_batch(batch).nbytes
    assert resident() - before < taken / 10
