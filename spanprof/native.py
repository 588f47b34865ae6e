"""Where native code finds spanprof's C API: ``get_include()`` and its like."""

from __future__ import annotations

import os.path

from . import _core

HEADER = "spanprof.h"


def get_include() -> str:
    """The folder of ``spanprof.h``, for a compiler's ``-I``.

    The header says how to use it: there is nothing to link with.
    """
    package = os.path.dirname(os.path.abspath(__file__))
    checkout = os.path.join(os.path.dirname(package), "csrc")
    for parent in (package, checkout):
        folder = os.path.join(parent, "include")
        if os.path.isfile(os.path.join(folder, HEADER)):
            return folder
    raise FileNotFoundError(f"{HEADER} is not installed with {package}")


def get_pkgconfig() -> str:
    """The folder of ``spanprof.pc``, for ``PKG_CONFIG_PATH``."""
    return os.path.join(get_include(), "pkgconfig")


def get_library() -> str:
    """The file of the library that has the C API, for who opens it by itself.

    ``spanprof_get_api()`` there returns what ``spanprof_use()`` takes.
    """
    return _core.__file__
