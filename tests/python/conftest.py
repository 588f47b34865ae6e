import logging
from collections.abc import Iterator

import pytest

from .helpers import ManualClock


@pytest.fixture
def clock() -> Iterator[ManualClock]:
    """The manual clock, on from before the test's session until after it."""
    with ManualClock() as manual:
        yield manual


@pytest.fixture(autouse=True)
def quiet_logger(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """What spanprof logs goes to ``caplog``, at every level: see `messages`."""
    with caplog.at_level(logging.DEBUG, "spanprof"):
        yield
