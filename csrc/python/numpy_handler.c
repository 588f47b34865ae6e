/* numpy allocates the data of arrays by a *handler* (NEP 49): a structure of functions,
 * in a capsule, in a context variable. Ours interposes on the one that is there, as
 * alloc_hooks.c does on CPython's allocators. numpy's own calls the C library, where
 * nobody would see it.
 *
 * A handler is set for one context, and a new thread begins with the default one. So it
 * is set on each thread when it first opens a span of the session (sp_thread_joined).
 * Arrays keep the handler that made them: ours stays valid for ever, and forwards after
 * the session. numpy may call it without the GIL: it calls nothing of CPython. */
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
enum { API_FEATURE_VERSION = 211, API_SET_HANDLER = 304, API_GET_HANDLER = 305 };
#define HANDLERS_SINCE 0xfu /* feature version of numpy 1.22 */

static PyObject *(*set_handler)(PyObject *); /* returns the one before */
static PyObject *(*get_handler)(void);
static _Atomic bool is_on;
_Atomic bool numpy_handler_pending;

/* One for each handler that was found in some context. Never freed. */
struct wrapper {
    DataHandler handler;
    const DataAllocator *wrapped;
    PyObject *wrapped_capsule, *capsule;
    struct wrapper *next;
};
static _Atomic(struct wrapper *) wrappers;

/* --- the handler -------------------------------------------------------------- */

static void *handler_malloc(void *context, size_t size) {
    const DataAllocator *wrapped = ((struct wrapper *)context)->wrapped;
    return charged_malloc(wrapped->malloc, wrapped->ctx, size);
}

static void *handler_calloc(void *context, size_t count, size_t size) {
    const DataAllocator *wrapped = ((struct wrapper *)context)->wrapped;
    return charged_calloc(wrapped->calloc, wrapped->ctx, count, size);
}

static void *handler_realloc(void *context, void *block, size_t size) {
    const DataAllocator *wrapped = ((struct wrapper *)context)->wrapped;
    return charged_realloc(wrapped->realloc, wrapped->ctx, block, size);
}

static void handler_free(void *context, void *block, size_t size) {
    const DataAllocator *wrapped = ((struct wrapper *)context)->wrapped;
    if (block != NULL) sp_charge_free(block);
    wrapped->free(wrapped->ctx, block, size);
}

static struct wrapper *wrapper_make(PyObject *capsule, const DataHandler *found) {
    struct wrapper *made = calloc(1, sizeof *made);
    if (made == NULL) return NULL;
    made->handler = (DataHandler){
        "spanprof",
        1,
        {made, handler_malloc, handler_calloc, handler_realloc, handler_free}};
    made->wrapped = &found->allocator;
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
    if (found == NULL || found->version != 1 ||
        found->allocator.malloc == handler_malloc)
        return NULL;
    struct wrapper *first = atomic_load_explicit(&wrappers, memory_order_acquire);
    for (struct wrapper *known = first; known != NULL; known = known->next)
        if (known->wrapped_capsule == capsule) return known->capsule;
    struct wrapper *made = wrapper_make(capsule, found);
    if (made == NULL) return NULL;
    /* Two threads may each make one for the same handler, which does no harm. */
    do made->next = first;
    while (!atomic_compare_exchange_weak_explicit(
        &wrappers, &first, made, memory_order_release, memory_order_acquire));
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

/* --- who sets it --------------------------------------------------------------- */

/* A thread opens its first span of a session, or was told to look again. */
static void on_thread_joined(void) {
    if (atomic_load_explicit(&is_on, memory_order_acquire) &&
        sp_session_config.track_allocations && PyGILState_Check())
    protected(set_here);
}

static PyObject *numpy_enable(PyObject *module, PyObject *api) {
    (void)module;
    void **table = PyCapsule_GetPointer(api, NULL);
    if (table == NULL) return NULL;
    unsigned (*feature_version)(void) = (unsigned (*)(void))table[API_FEATURE_VERSION];
    if (feature_version() < HANDLERS_SINCE) Py_RETURN_FALSE;
    set_handler = (PyObject * (*)(PyObject *)) table[API_SET_HANDLER];
    get_handler = (PyObject * (*)(void)) table[API_GET_HANDLER];
    atomic_store_explicit(&is_on, true, memory_order_release);
    atomic_store_explicit(&numpy_handler_pending, false, memory_order_relaxed);
    protected(set_here);
    for (struct sp_thread *t = sp_thread_list(); t != NULL; t = t->next)
        sp_thread_poke(t);
    Py_RETURN_TRUE;
}

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
    protected(look);
}

void numpy_handler_want(bool wanted) {
    sp_thread_joined = on_thread_joined;
    atomic_store_explicit(&numpy_handler_pending, wanted, memory_order_relaxed);
    if (wanted) numpy_handler_look_slow();
}

static PyMethodDef functions[] = {
    {"numpy_enable", numpy_enable, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

int numpy_handler_init(PyObject *module) {
    return PyModule_AddFunctions(module, functions);
}
