"""The C API for cffi.

ABI mode, without a compiler::

    ffi = cffi.FFI()
    ffi.cdef(spanprof.ffi.cdef())
    lib = spanprof.ffi.load(ffi)
    # To be kept, both, and used again.
    callsite = ffi.new("spanprof_callsite *", {"name": name})
    span = lib.spanprof_begin(callsite)
    ...
    lib.spanprof_end(span)

API mode: in the source that ``set_source`` takes use ``spanprof.h`` as in any C
program, with ``include_dirs=[spanprof.get_include()]`` and ``SPANPROF_DEFINE``. In
place of ``spanprof_import()`` have it call ``spanprof_use(api)``, with the pointer
``ffi.cast("const spanprof_api *", spanprof.ffi.address())``.

The functions are those of ``spanprof.h``, which says what they do.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from . import _core
from .native import HEADER, get_include, get_library

__all__ = ["address", "cdef", "load"]

_FUNCTIONS = """
const spanprof_api *spanprof_get_api(void);
int spanprof_is_running(void);
spanprof_span spanprof_begin(spanprof_callsite *callsite);
spanprof_span spanprof_begin_with(spanprof_callsite *callsite,
                                  const spanprof_options *options);
void spanprof_end(spanprof_span span);
spanprof_parent spanprof_current(void);
int spanprof_thread_attach(void);
void spanprof_thread_detach(void);
void spanprof_track_alloc(const void *block, size_t size);
void spanprof_track_free(const void *block);
"""


def cdef() -> str:
    """Declarations for ``ffi.cdef``: the types of ``spanprof.h``, and its functions."""
    header = (Path(get_include()) / HEADER).read_text(encoding="utf-8")
    _, _, after = header.partition("/* --- stratum one")
    types, _, _ = after.partition("/* --- stratum two")
    return "/* " + types + _FUNCTIONS


def load(ffi: Any = None) -> Any:
    """The library, opened by an ``FFI`` that has got ``cdef()``; by one of its own if
    none is given.

    ModuleNotFoundError without the package cffi, if none is given.
    """
    if ffi is None:
        ffi = importlib.import_module("cffi").FFI()
        ffi.cdef(cdef())
    return ffi.dlopen(get_library())


def address() -> int:
    """What ``spanprof_get_api()`` returns, as a number."""
    import ctypes

    pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
    pointer_of.restype = ctypes.c_void_p
    pointer_of.argtypes = [ctypes.py_object, ctypes.c_char_p]
    found: int = pointer_of(_core._C_API, b"spanprof._core._C_API")
    return found
