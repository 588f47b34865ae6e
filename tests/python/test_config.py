"""ProfileConfig: defaults, checks (rule 3.8), SPANPROF_* variables."""

import ast
import dataclasses
import math
import pickle
from pathlib import Path
from typing import Any

import pytest

import spanprof
from spanprof import config as config_module
from spanprof.config import ProfileConfig

FIELDS = {field.name: field for field in dataclasses.fields(ProfileConfig)}


def test_defaults_are_those_of_the_contract() -> None:
    config = ProfileConfig()
    assert dataclasses.asdict(config) == {
        "track_wall": False,
        "track_cpu": False,
        "track_allocations": False,
        "track_heap": False,
        "heap_sample_bytes": 0,
        "track_all": False,
        "record_labels": (),
        "report_interval": 10.0,
        "heap_snapshot_interval": 10.0,
        "max_samples": 1000,
        "max_closed_heap_spans": 1000,
        "max_nodes": 100_000,
        "max_label_values": 1000,
        "max_pending_spans": 200_000,
        "publish_thread_context": False,
        "on_fork": "restart",
        "stop_timeout": 10.0,
    }


def test_start_takes_all_fields() -> None:
    """Type checkers read ``ConfigFields``, which may not exist at run time."""
    module = ast.parse(Path(config_module.__file__).read_text())
    (fields,) = [
        node
        for node in ast.walk(module)
        if isinstance(node, ast.ClassDef) and node.name == "ConfigFields"
    ]
    names = [
        ast.unparse(line.target) for line in fields.body if hasattr(line, "target")
    ]
    assert names == list(FIELDS)


def test_it_is_a_value() -> None:
    config = ProfileConfig(track_cpu=True, record_labels=["a"])
    assert config == ProfileConfig(track_cpu=True, record_labels=("a",))
    assert hash(config) == hash(ProfileConfig(track_cpu=True, record_labels={"a": 1}))
    assert pickle.loads(pickle.dumps(config)) == config
    assert dataclasses.replace(config, max_nodes=5).max_nodes == 5
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.track_cpu = False  # type: ignore[misc]
    with pytest.raises(TypeError):
        ProfileConfig(True)  # type: ignore[call-arg]


def test_what_implies_what() -> None:
    everything = ProfileConfig(track_all=True)
    assert everything.tracked == ("calls", "wall", "cpu", "alloc", "heap")
    assert everything.track_heap
    assert ProfileConfig(track_heap=True).track_allocations
    assert ProfileConfig().tracked == ("calls",)


def test_labels_are_kept_once_in_order() -> None:
    labels = (name for name in ["b", "a", "b"])
    assert ProfileConfig(record_labels=labels).record_labels == ("b", "a")


LIMITS = ("max_samples", "max_closed_heap_spans", "heap_sample_bytes")
POSITIVE = ("max_nodes", "max_label_values", "max_pending_spans")
SECONDS = ("report_interval", "heap_snapshot_interval", "stop_timeout")
BOOLEANS = tuple(name for name in FIELDS if name.startswith("track_"))

BAD: list[tuple[str, Any, type[Exception], str]] = [
    *((name, 1, TypeError, "{} must be True or False, not 1") for name in BOOLEANS),
    *((name, -1, ValueError, "{} must not be negative: -1") for name in LIMITS),
    *((name, True, TypeError, "{} must be an int, not True") for name in LIMITS),
    *((name, 1.5, TypeError, "{} must be an int, not 1.5") for name in LIMITS),
    *((name, 0, ValueError, "{} must be at least 1: 0") for name in POSITIVE),
    *((name, -1, ValueError, "{} must not be negative: -1") for name in POSITIVE),
    *((name, 2**40, ValueError, "{} must be at most 2147483647") for name in POSITIVE),
    *((name, -0.5, ValueError, "{} must not be negative: -0.5") for name in SECONDS),
    *((name, math.nan, ValueError, "{} must not be negative: nan") for name in SECONDS),
    *((name, "1", TypeError, "{} must be a number of seconds") for name in SECONDS),
    *((name, True, TypeError, "{} must be a number of seconds") for name in SECONDS),
    *((name, None, TypeError, "{} must be a number of seconds") for name in SECONDS),
    ("report_interval", math.inf, ValueError, "{} must be finite: inf"),
    ("record_labels", "user", TypeError, "{} must be an iterable of str, not 'user'"),
    ("record_labels", 1, TypeError, "{} must be an iterable of str, not 1"),
    ("record_labels", ["a", 1], TypeError, "{} must hold str only, not 1"),
    ("record_labels", ["a", ""], ValueError, "{} must not hold an empty name"),
    ("on_fork", "ignore", ValueError, "{} must be 'restart' or 'stop', not 'ignore'"),
    ("on_fork", None, TypeError, "{} must be a str, not None"),
]


@pytest.mark.parametrize(("name", "value", "error", "message"), BAD)
def test_rule_3_8_bad_values_are_named(
    name: str, value: object, error: type[Exception], message: str
) -> None:
    calls: list[Any] = [ProfileConfig, spanprof.start, spanprof.profile]
    for call in calls:
        with pytest.raises(error) as caught:
            call(**{name: value})
        assert str(caught.value).startswith(message.format(name))
        assert "\n" not in str(caught.value)
    assert not spanprof.is_running()


def test_zero_and_whole_seconds_are_fine() -> None:
    config = ProfileConfig(report_interval=0, stop_timeout=3, max_samples=0)
    assert (config.report_interval, config.stop_timeout) == (0.0, 3.0)
    assert isinstance(config.stop_timeout, float)
    assert ProfileConfig(stop_timeout=math.inf).stop_timeout == math.inf


def test_every_field_has_a_variable() -> None:
    values = {
        "track_wall": ("1", True),
        "track_cpu": ("Yes", True),
        "track_allocations": (" on ", True),
        "track_heap": ("TRUE", True),
        "heap_sample_bytes": ("524288", 524288),
        "track_all": ("0", False),
        "record_labels": ("user, tenant,,user", ("user", "tenant")),
        "report_interval": ("0.5", 0.5),
        "heap_snapshot_interval": ("7", 7.0),
        "max_samples": ("10", 10),
        "max_closed_heap_spans": ("11", 11),
        "max_nodes": ("12", 12),
        "max_label_values": ("13", 13),
        "max_pending_spans": ("14", 14),
        "publish_thread_context": ("on", True),
        "on_fork": ("stop", "stop"),
        "stop_timeout": ("inf", math.inf),
    }
    assert set(values) == set(FIELDS)
    environ = {f"SPANPROF_{name.upper()}": text for name, (text, _) in values.items()}
    config = ProfileConfig.from_env(environ | {"SPANPROF_ELSE": "x", "HOME": "/"})
    assert dataclasses.asdict(config) == {name: v for name, (_, v) in values.items()}


def test_empty_variables_are_not_set() -> None:
    environ = {f"SPANPROF_{name.upper()}": "  " for name in FIELDS}
    assert ProfileConfig.from_env(environ) == ProfileConfig()


def test_from_env_reads_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPANPROF_MAX_NODES", "77")
    assert ProfileConfig.from_env().max_nodes == 77


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("TRACK_WALL", "maybe", " must be True or False, not 'maybe'"),
        ("MAX_NODES", "1.5", " must be an int, not '1.5'"),
        ("MAX_NODES", "0", " must be at least 1: 0"),
        ("REPORT_INTERVAL", "soon", " must be a number of seconds, not 'soon'"),
        ("REPORT_INTERVAL", "-1", " must not be negative: -1.0"),
        ("STOP_TIMEOUT", "nan", " must not be negative: nan"),
        ("ON_FORK", "ignore", " must be 'restart' or 'stop', not 'ignore'"),
    ],
)
def test_rule_3_8_bad_variables_are_named(name: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match="SPANPROF") as caught:
        ProfileConfig.from_env({f"SPANPROF_{name}": text})
    assert str(caught.value) == f"SPANPROF_{name}{message}"


def test_rule_3_8_label_names_that_cannot_be_recorded() -> None:
    with pytest.raises(ValueError, match="must not hold a name with NUL"):
        ProfileConfig(record_labels=["a\0b"])
    names = [f"label{number}" for number in range(65)]
    with pytest.raises(ValueError, match="must hold at most 64 names"):
        ProfileConfig(record_labels=names)
    assert ProfileConfig(record_labels=names[:64]).record_labels == tuple(names[:64])
