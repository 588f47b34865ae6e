"""What is installed is all there is."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "spanprof" / "meson.build"


@pytest.mark.skipif(not BUILD.exists(), reason="the sources are not here")
def test_every_module_is_installed() -> None:
    listed = {
        line.strip().strip("',")
        for line in BUILD.read_text().splitlines()
        if line.strip().startswith("'")
    }
    package = BUILD.parent
    there = {str(path.relative_to(package)) for path in package.rglob("*.py")}
    assert there <= listed
    assert listed - there <= {"_core.pyi", "c_api.pxd", "py.typed"}
