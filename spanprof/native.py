"""Where native code finds spanprof's C API: ``get_include()`` and its like."""

from __future__ import annotations

from pathlib import Path

from . import _core

HEADER = "spanprof.h"


def get_include() -> str:
    """The folder of ``spanprof.h``, for a compiler's ``-I``.

    The header says how to use it: there is nothing to link with.
    """
    package = Path(__file__).parent
    # Next to the package's sources if it runs from a checkout.
    for folder in (package / "include", package.parent / "csrc" / "include"):
        if (folder / HEADER).is_file():
            return str(folder)
    raise FileNotFoundError(f"{HEADER} is not installed with {package}")


def get_pkgconfig() -> str:
    """The folder of ``spanprof.pc``, for ``PKG_CONFIG_PATH``."""
    return str(Path(get_include()) / "pkgconfig")


def get_library() -> str:
    """The file of the library that has the C API, for who opens it by itself.

    ``spanprof_get_api()`` there returns what ``spanprof_use()`` takes.
    """
    return _core.__file__
