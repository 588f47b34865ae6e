"""Fixtures for all tests: no session and no manual clock outlives its test."""

import gc
import sys
from collections.abc import Iterator

import pytest


def _end_session() -> bool:
    """Stop whatever runs; True if something did."""
    spanprof = sys.modules.get("spanprof")
    if spanprof is None:
        return False
    core = sys.modules["spanprof._core"]
    was_running: bool = core.session_is_running()
    spanprof.stop()
    core.session_stop(None)
    core.set_manual_clock(None, None)
    return was_running


@pytest.fixture(autouse=True)
def no_session_left() -> Iterator[None]:
    _end_session()
    yield
    if _end_session():
        pytest.fail("the test has left a session running")


@pytest.fixture
def no_gc() -> Iterator[None]:
    """No collection but those that the test asks for."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()
