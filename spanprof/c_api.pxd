# The C API for Cython: `from spanprof.c_api cimport spanprof_import, ...`, with
# spanprof.get_include() among the include directories. See spanprof.h. Cython knows no
# scopes: begin and end spans by `try` and `finally`.
from libc.stdint cimport uint32_t, uint64_t


cdef extern from *:
    """
    #include <spanprof.h>
    SPANPROF_DEFINE;
    """


cdef extern from "spanprof.h" nogil:
    ctypedef struct spanprof_callsite:
        const char *name
        const char *target
        const char *file
        uint32_t line
        uint32_t id

    ctypedef struct spanprof_label:
        const char *key
        const char *value

    ctypedef struct spanprof_handle:
        pass

    ctypedef spanprof_handle *spanprof_span

    ctypedef struct spanprof_parent:
        uint64_t id
        uint64_t place

    ctypedef struct spanprof_options:
        const spanprof_parent *parent
        const spanprof_label *labels
        size_t label_count

    bint spanprof_is_running() noexcept
    spanprof_span spanprof_begin(spanprof_callsite *callsite) noexcept
    spanprof_span spanprof_begin_with(
        spanprof_callsite *callsite, const spanprof_options *options
    ) noexcept
    void spanprof_end(spanprof_span span) noexcept
    spanprof_parent spanprof_current() noexcept
    bint spanprof_thread_attach() noexcept
    void spanprof_thread_detach() noexcept
    void spanprof_track_alloc(const void *block, size_t size) noexcept
    void spanprof_track_free(const void *block) noexcept


cdef extern from "spanprof.h":
    int spanprof_import() except -1
