"""JsonLinesReporter, CallbackReporter, LogReporter."""

from __future__ import annotations

import json
import logging
import os
import stat
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import spanprof
from spanprof import CallbackReporter, JsonLinesReporter, LogReporter, Profile, span
from spanprof.reporters import jsonlines

from .helpers import ManualClock, run_python


def lines(path: Path) -> list[dict[str, Any]]:
    text = path.read_text()
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


# --- JsonLinesReporter ---------------------------------------------------------------


def test_a_line_for_each_span(clock: ManualClock, tmp_path: Path) -> None:
    path = tmp_path / "spans.jsonl"
    with spanprof.start(
        track_wall=True,
        track_cpu=True,
        record_labels=["user"],
        reporters=[JsonLinesReporter(path)],
    ) as session:
        with span("outer", user="\udc80ä\n") as outer:
            clock(10, 4)
            with span("inner"):
                clock(5)
        session.flush()
        with span("last"):
            pass
    inner, first, last = lines(path)
    assert (inner["name"], first["name"], last["name"]) == ("inner", "outer", "last")
    assert inner["parent"] == first["id"] == outer.id
    assert first["labels"] == {"user": "\udc80ä\n"}
    assert (first["wall_busy"], first["wall_idle"], inner["wall_busy"]) == (10, 0, 5)
    assert first["cpu_user"] + first["cpu_system"] == 4
    assert first["end"] - first["start"] == 15
    assert (first["target"], first["pid"]) == (__name__, os.getpid())
    assert first["line"] > 0
    assert "alloc_space" not in first, "it is not tracked"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_file_may_be_moved_away(tmp_path: Path) -> None:
    path = tmp_path / "spans.jsonl"
    with spanprof.start(reporters=[JsonLinesReporter(path)]) as session:
        for name in "ab":
            with span(name):
                pass
            session.flush()
            path.rename(tmp_path / name)
    assert [lines(tmp_path / name)[0]["name"] for name in "ab"] == ["a", "b"]


def test_what_cannot_be_written_waits(tmp_path: Path) -> None:
    errors = spanprof.stats().reporter_errors
    folder = tmp_path / "folder"
    path = folder / "spans.jsonl"
    with spanprof.start(reporters=[JsonLinesReporter(path)]) as session:
        for name in "ab":
            with span(name):
                pass
            session.flush()
        assert spanprof.stats().reporter_errors >= errors + 2
        folder.mkdir()
        with span("c"):
            pass
    assert [line["name"] for line in lines(path)] == ["a", "b", "c"]


def test_what_waits_has_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonlines, "MOST_PENDING", 2000)
    lost = spanprof.stats().write_failures
    folder = tmp_path / "folder"
    with spanprof.start(reporters=[JsonLinesReporter(folder / "x")]) as session:
        for _ in range(100):
            with span("a"):
                pass
            session.flush()
        folder.mkdir()
    kept = len(lines(folder / "x"))
    assert 2 < kept < 15
    assert spanprof.stats().write_failures - lost == 100 - kept


def test_rule_6_6_processes_share_a_file(tmp_path: Path) -> None:
    run_python(
        """
import os, spanprof
spanprof.start(reporters=[spanprof.JsonLinesReporter("spans.jsonl")])
for _ in range(500):
    with spanprof.span("before"): pass
children = []
for n in range(4):
    pid = os.fork()
    if pid == 0:
        for _ in range(3000):
            with spanprof.span("child", n=str(n)): pass
        spanprof.stop()
        os._exit(0)
    children.append(pid)
for pid in children:
    assert os.waitpid(pid, 0)[1] == 0
spanprof.stop()
""",
        cwd=tmp_path,
    )
    found = Counter(
        (each["name"], each["pid"]) for each in lines(tmp_path / "spans.jsonl")
    )
    assert sorted(found.values()) == [500, 3000, 3000, 3000, 3000]


# --- CallbackReporter -----------------------------------------------------------------


def test_functions_in_place_of_methods() -> None:
    called: list[str] = []
    reporter = CallbackReporter(
        profile=lambda profile: called.append(
            f"profile {isinstance(profile, Profile)}"
        ),
        spans=lambda batch: called.append(f"spans {len(batch)}"),
        flush=lambda: called.append("flush"),
    )
    with spanprof.start(reporters=[reporter]), span("a"):
        pass
    assert called[-3:] == ["spans 1", "profile True", "flush"]
    assert repr(reporter) == "CallbackReporter(profile, spans, flush)"


def test_rule_6_4_what_is_not_given_is_not_called() -> None:
    dropped = spanprof.stats().spans_dropped
    with spanprof.start(
        reporters=[CallbackReporter(flush=lambda: None)], max_pending_spans=1
    ):
        for _ in range(10):
            with span("a"):
                pass
    assert spanprof.stats().spans_dropped == dropped, "there is no feed"


@pytest.mark.parametrize(
    ("functions", "message"),
    [
        ({}, "at least one"),
        ({"profil": print}, "'profil' is no method"),
        ({"_name": print}, "'_name' is no method"),
        ({"profile": 3}, "profile must be a function, not 3"),
    ],
)
def test_rule_3_8_bad_functions(functions: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        CallbackReporter(**functions)


# --- LogReporter ----------------------------------------------------------------------


def test_the_heaviest_are_logged(
    clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "app")
    reporter = LogReporter("app", top=2)
    with spanprof.start(track_wall=True, reporters=[reporter]) as session:
        for name, nanos in (("a", 5_000), ("b", 9_000_000), ("c", 70_000)):
            with span(name):
                clock(nanos)
        session.flush()
        logged = [record for record in caplog.records if record.name == "app"]
        assert [vars(record)["span_name"] for record in logged] == ["b", "c"]
        assert "9.00 ms self" in logged[0].getMessage()
        assert vars(logged[0])["span_self"] == 9_000_000
        assert vars(logged[0])["span_unit"] == "nanoseconds"
        assert logged[0].levelno == logging.INFO
        caplog.clear()
    assert [r for r in caplog.records if r.name == "app"] == [], (
        "nothing happened since"
    )


def test_nothing_is_made_for_a_level_that_is_off(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, "app")
    with spanprof.start(reporters=[LogReporter(logging.getLogger("app"))]), span("a"):
        pass
    assert [r for r in caplog.records if r.name == "app"] == []


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"logger": 3}, TypeError),
        ({"level": "INFO"}, TypeError),
        ({"top": True}, TypeError),
        ({"top": 0}, ValueError),
        ({"by": "wal"}, ValueError),
    ],
)
def test_rule_3_8_bad_arguments(
    arguments: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        LogReporter(**arguments)
