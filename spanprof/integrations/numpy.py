"""The data of numpy's arrays, counted like any memory.

numpy takes it from the C library by a handler (NEP 49), which is made to pass by us.
A session that tracks memory calls :func:`enable` when it finds that numpy is loaded.
"""

from __future__ import annotations

import sys

from .. import _core

_MODULES = ("numpy._core._multiarray_umath", "numpy.core._multiarray_umath")


def enable() -> bool:
    """Have arrays counted that are made from now on.

    Returns False if numpy is not loaded, only in part yet, or older than 1.22.
    """
    for name in _MODULES:
        module = sys.modules.get(name)
        if module is None or getattr(module.__spec__, "_initializing", False):
            continue
        api = getattr(module, "_ARRAY_API", None)
        if api is not None:
            return _core.numpy_enable(api)
    return False
