"""The core's library, once for all tests, and the core as each test finds it."""

import os
import sys
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from . import binding, library

_quiet = (HealthCheck.too_slow, HealthCheck.function_scoped_fixture)
settings.register_profile(
    "quick",
    max_examples=100,
    deadline=None,
    suppress_health_check=_quiet,
    print_blob=True,
)
settings.register_profile("thorough", settings.get_profile("quick"), max_examples=5000)
settings.load_profile(os.environ.get("SPANPROF_HYPOTHESIS_PROFILE", "quick"))


@pytest.fixture(scope="session")
def loaded_core() -> binding.Core:
    if sys.version_info[:2] == (3, 13) and "t" in sys.abiflags:
        pytest.skip("cffi does not support the free-threaded build of 3.13")
    return binding.load(library.find())


@pytest.fixture
def core(loaded_core: binding.Core) -> Iterator[binding.Core]:
    """The core with the injected clock, and nothing running."""
    loaded_core.use_injected_clock()
    yield loaded_core
    loaded_core.clean()


@pytest.fixture
def real_core(loaded_core: binding.Core) -> Iterator[binding.Core]:
    """The core with its own clocks, and nothing running."""
    yield loaded_core
    loaded_core.clean()
