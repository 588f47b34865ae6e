/* The Python object behind spanprof.span(...), and the pieces that the
 * decorator shares with it. */
#ifndef SPANPROF_PYTHON_SPAN_OBJECT_H
#define SPANPROF_PYTHON_SPAN_OBJECT_H

#include "state.h"

#include "../core/callsite.h"
#include "../core/span.h"

/* What the program has made of the object, whether recorded or not. */
enum life {
    LIFE_NEW,    /* each `with` makes a span of its own */
    LIFE_CALL,   /* the same, with the callsite in span.key: see call_span.c */
    LIFE_OPENED, /* open() was called: each `with` enters the same span */
    LIFE_CLOSED,
};

/* A run beside the first: the object was entered while still entered. */
struct run {
    struct sp_span span;
    struct run *next;
};

/* Guarded by the GIL, or by the object's critical section. The object holds a
 * reference to itself for every recorded entry, since the core's stack points
 * into it. */
typedef struct SpanObject {
    PyObject_HEAD
    vectorcallfunc vectorcall;
    PyObject *name;            /* str */
    PyObject *labels;          /* dict, NULL if there are none */
    struct SpanObject *parent; /* as given by parent.span(), or NULL */
    uint32_t unrecorded;       /* entries that are not recorded */
    unsigned char life;        /* enum life */
    bool close_pending;        /* closed while entered */
    bool used;                 /* opened or entered at least once */
    bool held;                 /* `span` was entered: a reference is due */
    struct sp_span span;
    struct run *extra;
} SpanObject;

/* Which labels a session records; see labels.c. Immutable, never freed. */
struct recorded_labels;

/* The set of these names, the same for equal ones; NULL out of memory. */
const struct recorded_labels *labels_intern_recorded(const char *const *names,
                                                     size_t count, uint32_t max_values);
/* From here on they are what spans record. */
void labels_publish(const struct recorded_labels *labels);

bool labels_are_recorded(void);
/* Id of the recorded ones among `labels` and, where a name is missing there, among
 * `inherited` (dicts, the latter may be NULL). Never fails. Runs str(). */
uint32_t labels_recorded_of(PyObject *labels, PyObject *inherited);

/* The same of C strings, on any thread. The first of equal keys counts. */
struct spanprof_label;
uint32_t labels_recorded_of_texts(const struct spanprof_label *labels, size_t count);

/* A new object with its name (and labels, parent: NULL or borrowed). */
SpanObject *span_new(ModuleState *state, PyObject *name, PyObject *labels,
                     SpanObject *parent);

/* The run that the caller means: its own thread's innermost one, else the first. Under
 * the object's lock. */
const struct sp_span *span_run_of(SpanObject *self);

/* What that run is to its children, at this moment. Not under the lock of an object
 * whose state the caller has looked at: it waits for another one, and that may let go
 * of it. */
void span_copy_as_parent(SpanObject *self, struct sp_span *copy);

/* Exit: never fails, leaves a pending exception alone. */
void span_leave(SpanObject *self);

/* Whether it is a staticmethod or classmethod, which can be decorated as well. */
bool span_function_is_method(PyObject *object);

/* function.c: what a span called with a function returns. */
PyObject *span_function_new(ModuleState *state, SpanObject *span, PyObject *function);

#endif
