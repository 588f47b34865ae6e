/* Labels that spans inherit from the context in which they are opened
 * (spanprof.labels): a context variable holds a chain of blocks, innermost first.
 *
 * Most programs have none, and pay for one look at a counter. */
#ifndef SPANPROF_PYTHON_INHERITED_H
#define SPANPROF_PYTHON_INHERITED_H

#include "state.h"

#include "../core/platform.h"

/* A block that was entered, in a context. Immutable but for the cache, and shared with
 * every context that was copied inside the block. */
typedef struct InheritedObject {
    PyObject_HEAD
    struct InheritedObject *outer; /* or NULL */
    PyObject *block;               /* who entered it */
    PyObject *own;                 /* dict: the block's labels */
    PyObject *labels;              /* dict: those with the outer ones' */
    /* Of `labels`: their id in a session, below its generation. 0: not known. Any
     * thread; a value is whole. */
    _Atomic uint64_t id_in_generation;
} InheritedObject;

/* How many there are, of all interpreters. A context keeps its own alive: while this is
 * 0 no context has labels. */
extern _Atomic uint32_t inherited_count;

static inline bool inherited_may_be(void) {
    return SP_UNLIKELY(atomic_load_explicit(&inherited_count, memory_order_relaxed) !=
                       0);
}

/* The current context's, a new reference; or NULL. Leaves no exception. */
InheritedObject *inherited_current(ModuleState *state);

/* Id of the recorded ones of the current context's labels. Runs str(), once for each of
 * these and session; never fails. */
uint32_t inherited_recorded(ModuleState *state, uint32_t generation);

/* The same if that is known or there are none; else false. Runs nothing. */
bool inherited_recorded_quick(ModuleState *state, uint32_t generation, uint32_t *id);

#endif
