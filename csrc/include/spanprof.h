/* spanprof.h: spans of native code.
 *
 *     static PyObject *decode(PyObject *self, PyObject *bytes) {
 *         SPANPROF_SPAN("decode");
 *         ...
 *     }
 *
 * An extension does not link with spanprof. It includes this header, says
 * SPANPROF_DEFINE once, in one of its files, and calls spanprof_import() when it is
 * initialised, with the GIL. Where spanprof is not installed that returns -1 with an
 * ImportError: clear it, and spans do nothing. Before the import they do nothing
 * either.
 *
 * Everything else may be called from any thread, with or without the GIL, with or
 * without Python in that thread, also while no session runs, and never raises, waits
 * for Python code or changes what the program does. A span of a thread without Python
 * is a root, if no parent is given. Spans of C and of Python share one stack: a C span
 * inside a Python span is its child, and the reverse.
 *
 * What is only said by SPANPROF_DISABLE: all of it is empty, and includes nothing.
 *
 * The ABI, which is what spanprof_api holds, grows at its end only: an extension that
 * was built with an older header goes on working with a newer spanprof. With an older
 * spanprof than its header's, spanprof_import() fails.
 */
#ifndef SPANPROF_H
#define SPANPROF_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SPANPROF_ABI_VERSION 1
#define SPANPROF_CAPSULE "spanprof._core._C_API"

/* --- stratum one: the ABI ------------------------------------------------------- */

/* A place in the program where spans begin, usually a static variable. All strings are
 * UTF-8 and stay valid, as does the structure itself, for as long as the process runs
 * (a library that is unloaded must not have begun any). Zeroes where there is nothing
 * to say; `name` must be given. */
typedef struct spanprof_callsite {
    const char *name;   /* of the span, as in spanprof.span(name) */
    const char *target; /* what is a module in Python: of what the span is part */
    const char *file;
    uint32_t line;
    uint32_t id; /* spanprof's own: 0 before its first span of a session */
} spanprof_callsite;

/* A label, which is recorded if the session records its name. Read during the call
 * only. Not NULL. */
typedef struct spanprof_label {
    const char *key, *value;
} spanprof_label;

/* A span that has begun and is to be ended, once. NULL: it is not recorded. */
typedef struct spanprof_handle *spanprof_span;

/* What a span is to its children; of value also after it has ended, in the same
 * session. All zero: no span. */
typedef struct spanprof_parent {
    uint64_t id;
    uint64_t place;
} spanprof_parent;

/* How one begins that is not at a place, with labels, below another one. */
typedef struct spanprof_options {
    const spanprof_parent *parent; /* NULL: the current span */
    const spanprof_label *labels;  /* NULL if label_count is 0 */
    size_t label_count;            /* more than 64 are not looked at */
} spanprof_options;

typedef struct spanprof_api {
    uint32_t version; /* SPANPROF_ABI_VERSION of the library */
    uint32_t size;    /* of its structure, in bytes */

    /* 0 while no session runs. Any thread may read it at any time. */
    const volatile uint32_t *session;

    /* Begin a span on the calling thread. NULL if no session runs, if the session's
     * sampler takes no stack of spans here, or out of memory. Where the sampler is
     * Python code, which native code cannot ask, a root is recorded. */
    spanprof_span (*begin)(spanprof_callsite *callsite);

    /* The same with options, which are read during the call only. */
    spanprof_span (*begin_with)(spanprof_callsite *callsite,
                                const spanprof_options *options);

    /* End it; NULL does nothing. On the thread that began it, usually, and before the
     * spans that were there before it. Another thread may do so: the span then ends
     * when the first one next begins or ends a span. */
    void (*end)(spanprof_span span);

    /* The calling thread's current span: below which its next one would begin. */
    spanprof_parent (*current)(void);

    /* Prepare the calling thread, of any kind, so that its first span costs no more
     * than the others: 1, or 0 if no session runs or there is no memory. Never needed.
     */
    int (*thread_attach)(void);

    /* The thread's spans are over, though it goes on: for threads that are lent to
     * others. Never needed: a thread's end does the same. */
    void (*thread_detach)(void);

    /* The calling thread has allocated `size` bytes at `block`, in its current span;
     * `block` is about to be freed. Neither is read: these may be addresses of
     * another device, or of an arena. Not for blocks that spanprof knows of anyway,
     * which are those of PyMem_*, PyObject_* and numpy. NULL does nothing; nor does
     * freeing what is not known. A block that moves is freed first. */
    void (*track_alloc)(const void *block, size_t size);
    void (*track_free)(const void *block);
} spanprof_api;

/* --- stratum two ------------------------------------------------------------------ */

#ifndef SPANPROF_DISABLE

#ifndef SPANPROF_INLINE
#define SPANPROF_INLINE static inline
#endif

/* Of each extension its own, hidden from others. */
extern __attribute__((visibility("hidden"))) const spanprof_api *spanprof_imported;

/* In one file of the extension. */
#ifdef __cplusplus
#define SPANPROF_DEFINE                                                              \
    extern "C" {                                                                     \
    __attribute__((visibility("hidden"))) const spanprof_api *spanprof_imported = 0; \
    }                                                                                \
    extern "C" const spanprof_api *spanprof_imported
#else
#define SPANPROF_DEFINE \
    __attribute__((visibility("hidden"))) const spanprof_api *spanprof_imported = NULL
#endif

/* For other ways to find the library than by spanprof_import(). `api` may be NULL. 0,
 * or -1 if it is older than this header. */
SPANPROF_INLINE int spanprof_use(const spanprof_api *api) {
    if (api != NULL && (api->version < 1 || api->size < sizeof *api)) return -1;
    spanprof_imported = api;
    return 0;
}

#ifdef Py_PYTHON_H
/* Import spanprof. With the GIL, once. 0; or -1 with an exception: there is no
 * spanprof, or it is older than this header. */
static inline int spanprof_import(void) {
    /* By its module: PyCapsule_Import would look for an attribute of the package. */
    PyObject *module = PyImport_ImportModule("spanprof._core");
    if (module == NULL) return -1;
    PyObject *capsule = PyObject_GetAttrString(module, "_C_API");
    Py_DECREF(module);
    if (capsule == NULL) {
        PyErr_SetString(PyExc_ImportError, "this spanprof has no C API");
        return -1;
    }
    const spanprof_api *api =
        (const spanprof_api *)PyCapsule_GetPointer(capsule, SPANPROF_CAPSULE);
    Py_DECREF(capsule);
    if (api == NULL) return -1;
    if (spanprof_use(api) == 0) return 0;
    PyErr_SetString(PyExc_ImportError,
                    "this spanprof is older than the header spanprof.h that was used");
    return -1;
}
#endif

/* Whether a session runs: where that is false, spans and blocks cost a few
 * instructions and do nothing. */
SPANPROF_INLINE int spanprof_is_running(void) {
    return __builtin_expect(spanprof_imported != NULL, 1) &&
           __builtin_expect(*spanprof_imported->session != 0, 0);
}

SPANPROF_INLINE spanprof_span spanprof_begin(spanprof_callsite *callsite) {
    return spanprof_is_running() ? spanprof_imported->begin(callsite) : NULL;
}

SPANPROF_INLINE spanprof_span spanprof_begin_with(spanprof_callsite *callsite,
                                                  const spanprof_options *options) {
    return spanprof_is_running() ? spanprof_imported->begin_with(callsite, options)
                                 : NULL;
}

SPANPROF_INLINE void spanprof_end(spanprof_span span) {
    if (span != NULL) spanprof_imported->end(span);
}

SPANPROF_INLINE spanprof_parent spanprof_current(void) {
    spanprof_parent none = {0, 0};
    return spanprof_is_running() ? spanprof_imported->current() : none;
}

SPANPROF_INLINE int spanprof_thread_attach(void) {
    return spanprof_is_running() ? spanprof_imported->thread_attach() : 0;
}

SPANPROF_INLINE void spanprof_thread_detach(void) {
    if (spanprof_imported != NULL) spanprof_imported->thread_detach();
}

SPANPROF_INLINE void spanprof_track_alloc(const void *block, size_t size) {
    if (spanprof_is_running()) spanprof_imported->track_alloc(block, size);
}

SPANPROF_INLINE void spanprof_track_free(const void *block) {
    if (spanprof_is_running()) spanprof_imported->track_free(block);
}

static inline void spanprof_end_scope(const spanprof_span *span) {
    spanprof_end(*span);
}

/* What the spans of this file are part of: say something better before the #include. */
#ifndef SPANPROF_TARGET
#ifdef __FILE_NAME__
#define SPANPROF_TARGET __FILE_NAME__
#else
#define SPANPROF_TARGET __FILE__
#endif
#endif

#define SPANPROF_JOIN_(a, b) a##b
#define SPANPROF_JOIN(a, b) SPANPROF_JOIN_(a, b)

/* A callsite of this line. */
#define SPANPROF_CALLSITE(variable, name) \
    static spanprof_callsite variable = {name, SPANPROF_TARGET, __FILE__, __LINE__, 0}

/* A span from here to the end of the block, however that is left. (But for longjmp:
 * then it ends with its thread.) `name` is a string literal. */
#define SPANPROF_SPAN(name)                                                  \
    SPANPROF_CALLSITE(SPANPROF_JOIN(spanprof_callsite_, __LINE__), name);    \
    __attribute__((cleanup(spanprof_end_scope), unused)) const spanprof_span \
    SPANPROF_JOIN(spanprof_span_, __LINE__) =                                \
        spanprof_begin(&SPANPROF_JOIN(spanprof_callsite_, __LINE__))

/* The same with labels: SPANPROF_SPAN_LABELS("read", {"kind", kind}, {"host", host}) */
#define SPANPROF_SPAN_LABELS(name, ...)                                               \
    SPANPROF_CALLSITE(SPANPROF_JOIN(spanprof_callsite_, __LINE__), name);             \
    const spanprof_label SPANPROF_JOIN(spanprof_labels_, __LINE__)[] = {__VA_ARGS__}; \
    const spanprof_options SPANPROF_JOIN(spanprof_options_, __LINE__) = {             \
        NULL, SPANPROF_JOIN(spanprof_labels_, __LINE__),                              \
        sizeof SPANPROF_JOIN(spanprof_labels_, __LINE__) / sizeof(spanprof_label)};   \
    __attribute__((cleanup(spanprof_end_scope), unused)) const spanprof_span          \
    SPANPROF_JOIN(spanprof_span_, __LINE__) =                                         \
        spanprof_begin_with(&SPANPROF_JOIN(spanprof_callsite_, __LINE__),             \
                            &SPANPROF_JOIN(spanprof_options_, __LINE__))

/* The same below a span that is another thread's, or is over: `parent` is the address
 * of what spanprof_current() returned there. */
#define SPANPROF_SPAN_UNDER(name, parent)                                          \
    SPANPROF_CALLSITE(SPANPROF_JOIN(spanprof_callsite_, __LINE__), name);          \
    const spanprof_options SPANPROF_JOIN(spanprof_options_, __LINE__) = {(parent), \
                                                                         NULL, 0}; \
    __attribute__((cleanup(spanprof_end_scope), unused)) const spanprof_span       \
    SPANPROF_JOIN(spanprof_span_, __LINE__) =                                      \
        spanprof_begin_with(&SPANPROF_JOIN(spanprof_callsite_, __LINE__),          \
                            &SPANPROF_JOIN(spanprof_options_, __LINE__))

/* A span of a callsite in a variable: `spanprof_span a = SPANPROF_BEGIN("a");` ...
 * `spanprof_end(a);` */
#define SPANPROF_BEGIN(name)                             \
    (__extension__({                                     \
        SPANPROF_CALLSITE(spanprof_callsite_here, name); \
        spanprof_begin(&spanprof_callsite_here);         \
    }))

#else /* SPANPROF_DISABLE */

#ifdef __cplusplus
#define SPANPROF_NOTHING static_assert(true, "")
#else
#define SPANPROF_NOTHING _Static_assert(1, "")
#endif
#define SPANPROF_DEFINE SPANPROF_NOTHING
#define SPANPROF_CALLSITE(variable, name) \
    static __attribute__((unused)) spanprof_callsite variable = {NULL, NULL, NULL, 0, 0}
#define SPANPROF_SPAN(name) SPANPROF_NOTHING
#define SPANPROF_SPAN_LABELS(name, ...) SPANPROF_NOTHING
#define SPANPROF_SPAN_UNDER(name, parent) SPANPROF_NOTHING
#define SPANPROF_BEGIN(name) ((spanprof_span)0)
#define spanprof_use(api) ((void)(api), 0)
#define spanprof_import() 0
#define spanprof_is_running() 0
#define spanprof_begin(callsite) ((spanprof_span)0)
#define spanprof_begin_with(callsite, options) ((void)(options), (spanprof_span)0)
#define spanprof_end(span) ((void)(span))
#define spanprof_thread_attach() 0
#define spanprof_thread_detach() ((void)0)
#define spanprof_track_alloc(block, size) ((void)(block), (void)(size))
#define spanprof_track_free(block) ((void)(block))

static inline spanprof_parent spanprof_current(void) {
    spanprof_parent none = {0, 0};
    return none;
}

#endif

#ifdef __cplusplus
}
#endif

#endif
