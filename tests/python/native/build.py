"""Builds the extensions of these tests, as a user's build would."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import subprocess
import sysconfig
from pathlib import Path
from types import ModuleType

import spanprof

HERE = Path(__file__).parent
WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"]


def build(into: Path, *flags: str, source: str = "extension.c") -> Path:
    """The extension's file. The flags come last."""
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    result = into / f"native_extension{suffix}"
    command = [os.environ.get("CC", "cc"), "-O2", "-shared", "-fPIC", "-pthread"]
    command += [*WARNINGS, f"-I{spanprof.get_include()}"]
    command += [f"-isystem{sysconfig.get_path('include')}"]
    command += [str(HERE / source), "-o", str(result), *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return result


def load(path: Path) -> ModuleType:
    name = "native_extension"
    loader = importlib.machinery.ExtensionFileLoader(name, str(path))
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module
