"""csvsum by cffi, API mode: ``describe()`` is what a package's build calls."""

from __future__ import annotations

from typing import Any

import cffi

CDEF = """
struct csv_sum { double sum; size_t rows; size_t skipped; };
int csv_sum(const char *text, size_t length, unsigned column, unsigned threads,
            struct csv_sum *result);
int use_spanprof(const void *api);
"""

# The GIL is let go of by cffi, around each call.
SOURCE = """
#include "csvsum.h"
#include <spanprof.h>
SPANPROF_DEFINE;
static int use_spanprof(const void *api) { return spanprof_use(api); }
"""


def describe(name: str, **build: Any) -> cffi.FFI:
    ffi = cffi.FFI()
    ffi.cdef(CDEF)
    ffi.set_source(name, SOURCE, **build)
    return ffi


def summing(module: Any) -> Any:
    """The extension's ``sum(text, column, threads)``, of the module that was built."""
    import spanprof.ffi

    ffi, lib = module.ffi, module.lib
    if lib.use_spanprof(ffi.cast("void *", spanprof.ffi.address())) != 0:
        raise ImportError("this spanprof is older than the header that was used")

    def total(text: bytes, column: int, threads: int) -> tuple[float, int, int]:
        result = ffi.new("struct csv_sum *")
        error = lib.csv_sum(ffi.from_buffer(text), len(text), column, threads, result)
        if error != 0:
            raise OSError(error, "csv_sum")
        return result.sum, result.rows, result.skipped

    return total
