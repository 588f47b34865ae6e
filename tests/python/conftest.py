from collections.abc import Iterator

import pytest

from .helpers import ManualClock


@pytest.fixture
def clock() -> Iterator[ManualClock]:
    """The manual clock, on from before the test's session until after it."""
    with ManualClock() as manual:
        yield manual
