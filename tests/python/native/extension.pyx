# cython: language_level=3, freethreading_compatible=True
from spanprof.c_api cimport (
    spanprof_begin,
    spanprof_callsite,
    spanprof_end,
    spanprof_import,
    spanprof_span,
)

cdef spanprof_callsite here
here.name = "cython"
here.target = "native_extension"


def run():
    spanprof_import()
    cdef spanprof_span span
    with nogil:
        span = spanprof_begin(&here)
        spanprof_end(span)
