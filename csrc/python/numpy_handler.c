/* numpy allocates the data of arrays by a *handler* (NEP 49): a structure of functions,
 * in a capsule, in a context variable. Ours interpose on those that are there, as
 * alloc_hooks.c does on CPython's allocators. numpy's own may call the C library, where
 * nobody would see it.
 *
 * A handler is what a capsule points to. All contexts without a handler of the
 * program's have one and the same capsule, numpy's default one, also those that are
 * made later on: it is made to point to a handler of ours, a *wrapper* around the one
 * that was there. A capsule that the program has set for a context is its own affair:
 * there another one, with a wrapper around its handler, takes its place in the context,
 * when the context's thread first opens a span of the session (sp_thread_joined).
 *
 * Arrays keep the handler that made them: ours are never taken out, stay valid for
 * ever, and forward after the session. numpy may call them without the GIL: they call
 * nothing of CPython.
 *
 * numpy is one per process, of the main interpreter: in others nothing is done. */
#include "numpy_handler.h"

#include "charged.h"

#include "../core/session.h"

#include <stdlib.h>
#include <string.h>

/* As NEP 49 lays them down, for version 1. */
typedef struct {
    void *ctx;
    void *(*malloc)(void *ctx, size_t size);
    void *(*calloc)(void *ctx, size_t count, size_t size);
    void *(*realloc)(void *ctx, void *block, size_t size);
    void (*free)(void *ctx, void *block, size_t size);
} DataAllocator;
typedef struct {
    char name[127];
    uint8_t version;
    DataAllocator allocator;
} DataHandler;
#define CAPSULE_NAME "mem_handler"

/* Places in numpy's table of functions, which its binary interface keeps. */
enum {
    API_VERSION = 0,
    API_FEATURE_VERSION = 211,
    API_SET_HANDLER = 304,
    API_GET_HANDLER = 305,
    API_DEFAULT_HANDLER = 306
};
#define ABI_FIRST 1u /* numpy 1 and 2: later ones may have other places */
#define ABI_LAST 2u
#define HANDLERS_SINCE 0xfu /* feature version of numpy 1.22 */

/* Written by the thread that sets is_taken, before it sets is_on. */
static PyObject *(*set_handler)(PyObject *); /* returns the one before */
static PyObject *(*get_handler)(void);
static _Atomic bool is_taken, is_on;

_Atomic bool numpy_handler_pending;
_Atomic uint32_t numpy_handler_count;

/* One for each handler that was found. Never freed. */
struct wrapper {
    DataHandler handler;
    const DataAllocator *wrapped;
    /* Of a handler that the program has set: its capsule, and ours. */
    PyObject *wrapped_capsule, *capsule;
    struct wrapper *next;
};
static _Atomic(struct wrapper *) wrappers;
/* Some programs make a handler for each use of it; those past the limit stay as they
 * are. */
#define WRAPPERS_MAX 256u

/* --- the handler ---------------------------------------------------------------- */

static inline const DataAllocator *around(const void *context) {
    return ((const struct wrapper *)context)->wrapped;
}

static void *wrapper_malloc(void *context, size_t size) {
    const DataAllocator *wrapped = around(context);
    if (sp_charge_passes(size)) return wrapped->malloc(wrapped->ctx, size);
    return charged_malloc(wrapped->malloc, wrapped->ctx, size);
}
static void *wrapper_calloc(void *context, size_t count, size_t size) {
    const DataAllocator *wrapped = around(context);
    return charged_calloc(wrapped->calloc, wrapped->ctx, count, size);
}
static void *wrapper_realloc(void *context, void *block, size_t size) {
    const DataAllocator *wrapped = around(context);
    return charged_realloc(wrapped->realloc, wrapped->ctx, block, size);
}
static void wrapper_free(void *context, void *block, size_t size) {
    const DataAllocator *wrapped = around(context);
    if (block != NULL) sp_charge_free(block);
    wrapped->free(wrapped->ctx, block, size);
}

static bool is_ours(const DataHandler *handler) {
    return handler->allocator.malloc == wrapper_malloc;
}

static struct wrapper *wrapper_make(const DataHandler *found) {
    struct wrapper *made = calloc(1, sizeof *made);
    if (made == NULL) return NULL;
    made->handler = (DataHandler){.version = 1,
                                  .allocator = {made, wrapper_malloc, wrapper_calloc,
                                                wrapper_realloc, wrapper_free}};
    /* numpy's get_handler_name tells programs whose handler an array has. */
    memcpy(made->handler.name, found->name, sizeof made->handler.name);
    made->wrapped = &found->allocator;
    return made;
}

/* --- the default one -------------------------------------------------------------- */

/* One pointer changes, which other threads may read meanwhile: what it points to is
 * complete before, and each of the two handlers frees what the other one made. */
static void wrap_default(PyObject *capsule, const DataHandler *found) {
    if (is_ours(found)) return;
    struct wrapper *made = wrapper_make(found);
    if (made == NULL) return;
    atomic_thread_fence(memory_order_release);
    if (PyCapsule_SetPointer(capsule, &made->handler) == 0)
        atomic_fetch_add_explicit(&numpy_handler_count, 1, memory_order_relaxed);
    else
        free(made);
}

/* --- others, by context --------------------------------------------------------- */

static struct wrapper *wrapper_make_for(PyObject *capsule, const DataHandler *found) {
    struct wrapper *made = wrapper_make(found);
    if (made == NULL) return NULL;
    made->capsule = PyCapsule_New(&made->handler, CAPSULE_NAME, NULL);
    if (made->capsule == NULL) {
        free(made);
        return NULL;
    }
    made->wrapped_capsule = Py_NewRef(capsule);
    return made;
}

/* The capsule to set around the one that is there, borrowed; NULL to leave it. */
static PyObject *capsule_around(PyObject *capsule) {
    const DataHandler *found = PyCapsule_GetPointer(capsule, CAPSULE_NAME);
    if (found == NULL || found->version != 1 || is_ours(found)) return NULL;
    struct wrapper *first = atomic_load_explicit(&wrappers, memory_order_acquire);
    uint32_t count = 0;
    for (struct wrapper *known = first; known != NULL; known = known->next, count++)
        if (known->wrapped_capsule == capsule) return known->capsule;
    struct wrapper *made =
        count < WRAPPERS_MAX ? wrapper_make_for(capsule, found) : NULL;
    if (made == NULL) return NULL;
    /* Two threads may each make one for the same handler, which does no harm. */
    do made->next = first;
    while (!atomic_compare_exchange_weak_explicit(
        &wrappers, &first, made, memory_order_release, memory_order_acquire));
    atomic_fetch_add_explicit(&numpy_handler_count, 1, memory_order_relaxed);
    return made->capsule;
}

static void set_here(void) {
    PyObject *current = get_handler();
    PyObject *ours = current != NULL ? capsule_around(current) : NULL;
    PyObject *before = ours != NULL ? set_handler(ours) : NULL;
    Py_XDECREF(before);
    Py_XDECREF(current);
}

/* What Python code does here is the profiler's, and a pending exception stays. */
static void protected(void (*call)(void)) {
    struct sp_thread *paused = sp_thread_pause();
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    call();
    if (PyErr_Occurred()) PyErr_Clear();
    PyErr_Restore(type, value, traceback);
    sp_thread_resume(paused);
}

/* --- who sets them -------------------------------------------------------------- */

/* A thread opens its first span of a session, or was told to look again. It need not be
 * Python's. */
static void on_thread_joined(void) {
    if (atomic_load_explicit(&is_on, memory_order_acquire) &&
        sp_session_config.track_allocations && compat_is_attached_to_main())
    protected(set_here);
}

/* False if that numpy has no handlers, or none yet. */
static bool take_api(void **table) {
    unsigned (*version)(void) = (unsigned (*)(void))table[API_VERSION];
    unsigned (*feature_version)(void) = (unsigned (*)(void))table[API_FEATURE_VERSION];
    unsigned abi = version() >> 24;
    if (abi < ABI_FIRST || abi > ABI_LAST || feature_version() < HANDLERS_SINCE)
        return false;
    PyObject *capsule = *(PyObject **)table[API_DEFAULT_HANDLER];
    if (capsule == NULL) return false;
    const DataHandler *handler = PyCapsule_GetPointer(capsule, CAPSULE_NAME);
    if (handler == NULL) return false;
    if (!atomic_exchange(&is_taken, true)) {
        set_handler = (PyObject * (*)(PyObject *)) table[API_SET_HANDLER];
        get_handler = (PyObject * (*)(void)) table[API_GET_HANDLER];
        if (handler->version == 1) wrap_default(capsule, handler);
        atomic_store_explicit(&is_on, true, memory_order_release);
    }
    /* Else another thread is about to. */
    return atomic_load_explicit(&is_on, memory_order_acquire);
}

static PyObject *numpy_enable(PyObject *module, PyObject *api) {
    (void)module;
    if (!compat_is_attached_to_main()) Py_RETURN_FALSE;
    void **table = PyCapsule_GetPointer(api, NULL);
    if (table == NULL) return NULL;
    if (!take_api(table)) {
        if (PyErr_Occurred()) return NULL;
        Py_RETURN_FALSE;
    }
    atomic_store_explicit(&numpy_handler_pending, false, memory_order_relaxed);
    protected(set_here);
    for (struct sp_thread *t = sp_thread_list(); t != NULL; t = t->next)
        sp_thread_poke(t);
    Py_RETURN_TRUE;
}

/* --- numpy comes later ----------------------------------------------------------- */

static void look(void) {
    PyObject *modules = PySys_GetObject("modules"); /* borrowed */
    if (modules == NULL || !PyDict_Check(modules) ||
        PyDict_GetItemString(modules, "numpy") == NULL)
        return;
    PyObject *integration = PyImport_ImportModule("spanprof.integrations.numpy");
    PyObject *result =
        integration != NULL ? PyObject_CallMethod(integration, "enable", NULL) : NULL;
    /* Half imported, it is looked at again; what cannot be used is not. */
    if (result == NULL)
        atomic_store_explicit(&numpy_handler_pending, false, memory_order_relaxed);
    Py_XDECREF(result);
    Py_XDECREF(integration);
}

void numpy_handler_look_slow(void) {
    if (compat_is_attached_to_main()) protected(look);
}

#if SPANPROF_DICT_WATCHERS

static int look_soon(void *unused) {
    (void)unused;
    if (sp_session_running() != 0) numpy_handler_look();
    return 0;
}

/* sys.modules changes. Called in the middle of that, perhaps with an exception pending:
 * no more than to leave word for the main thread. */
static int on_modules_change(PyDict_WatchEvent event, PyObject *modules, PyObject *key,
                             PyObject *module) {
    (void)modules;
    (void)module;
    static const char prefix[] = "numpy.";
    const size_t length = sizeof prefix - 1;
    if (event == PyDict_EVENT_ADDED && PyUnicode_Check(key) &&
        PyUnicode_IS_COMPACT_ASCII(key) && (size_t)PyUnicode_GET_LENGTH(key) > length &&
        memcmp(PyUnicode_1BYTE_DATA(key), prefix, length) == 0 &&
        atomic_load_explicit(&numpy_handler_pending, memory_order_relaxed))
        Py_AddPendingCall(look_soon, NULL);
    return 0;
}

static void watch_modules(void) {
    static int watcher = -1;
    PyObject *modules = PySys_GetObject("modules"); /* borrowed */
    if (modules == NULL || !PyDict_Check(modules)) return;
    if (watcher < 0) watcher = PyDict_AddWatcher(on_modules_change);
    if (watcher >= 0) PyDict_Watch(watcher, modules);
}

#else
static void watch_modules(void) {
}
#endif

void numpy_handler_want(bool wanted) {
    atomic_store_explicit(&numpy_handler_pending, wanted, memory_order_relaxed);
    if (!wanted) return;
    numpy_handler_look_slow();
    if (atomic_load_explicit(&numpy_handler_pending, memory_order_relaxed) &&
        compat_is_attached_to_main())
    protected(watch_modules);
}

static PyMethodDef functions[] = {
    {"numpy_enable", numpy_enable, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

int numpy_handler_init(PyObject *module) {
    atomic_store_explicit(&sp_thread_joined, on_thread_joined, memory_order_relaxed);
    return PyModule_AddFunctions(module, functions);
}
