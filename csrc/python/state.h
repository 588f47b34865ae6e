/* The module's state, one for each interpreter. */
#ifndef SPANPROF_PYTHON_STATE_H
#define SPANPROF_PYTHON_STATE_H

#include "compat.h"

struct SpanObject;

/* Types of two numbers, see span_values.h. */
enum span_pair {
    SPAN_CPU_TIME,    /* user, system */
    SPAN_WALL_TIME,   /* busy, idle */
    SPAN_ALLOCATIONS, /* blocks, bytes */
    SPAN_HEAP,        /* bytes, blocks */
    SPAN_PAIRS
};

struct ContextObject;

/* See current_context.c. Borrowed; only to be compared before they are looked up. */
struct context_cached {
    PyObject *vars;
    struct ContextObject *context;
};

typedef struct {
    PyTypeObject *span_type;
    PyTypeObject *function_type;
    PyTypeObject *call_spans_type, *steps_type; /* see call_span.c */
    PyTypeObject *ready_type;
    PyTypeObject *profile_type;
    PyTypeObject *batch_type;
    PyTypeObject *updates_type;
    PyTypeObject *pair_types[SPAN_PAIRS];
    PyTypeObject *metadata_type;
    PyObject *sites, *label_sets; /* dicts, see span_values.c */
    PyObject *make_span;          /* see span_batch.c; or NULL */
    PyObject *sampler;            /* see sampling.h; or NULL */
    PyTypeObject *inherited_type;
    PyObject *inherited_var; /* see inherited.h */
    PyTypeObject *context_type;
    PyObject *context_var; /* see current_context.h */
    struct context_cached contexts[SPANPROF_CONTEXT_CACHE + 1];
    PyObject *module;       /* borrowed: whose state this is */
    PyObject *monitoring;   /* sys.monitoring, while we have a tool there; or NULL */
    _Atomic int tool;       /* its number; 0: none; -1: all that we try were taken */
    PyObject *watched_code; /* dict: address of a code object -> weak reference */
    PyObject *contextlib;   /* its globals, once they were needed; or NULL */
    PyObject *steps;        /* spanprof.steps's globals, the same */
    PyObject *names[5];     /* of functions of contextlib's; of greenlet */
    PyObject *greenlet, *greenlet_tracer; /* see greenlets.c */
    PyObject *code_refs; /* dict: address of a code object -> weak reference */
    struct SpanObject *free_spans[SPANPROF_FREE_LIST + 1];
    int free_span_count, free_span_limit;
} ModuleState;

static inline ModuleState *state_of_module(PyObject *module) {
    return PyModule_GetState(module);
}

/* The first interpreter's span type and state, written while it imports us: most
 * programs have no other, and PyType_GetModuleState is two calls. */
extern PyTypeObject *state_first_type;
extern ModuleState *state_first;

static inline ModuleState *state_of_type(PyTypeObject *type) {
    return type == state_first_type ? state_first : PyType_GetModuleState(type);
}

/* Each adds its types and functions to the module; -1 with an exception. */
int ready_init(PyObject *module);
int span_object_init(PyObject *module);
int span_function_init(PyObject *module);
int profile_object_init(PyObject *module);
int span_batch_init(PyObject *module);
int span_values_init(PyObject *module);
int span_updates_init(PyObject *module);
int inherited_init(PyObject *module);
int session_init(PyObject *module);

void span_object_clear_free_list(ModuleState *state);

#endif
