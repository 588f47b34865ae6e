/* Which of the core's contexts (core/context.h) is the current contextvars context's.
 *
 * A context variable holds an object with the core's context in it. A copy of the
 * contextvars context shares that object, which must then never change any more: it
 * says where the copy was made. So before a span is entered or left it is looked
 * whether the object is shared, and if it is, the context gets another one. Contexts
 * that nobody copies, plain synchronous code above all, are written once.
 * docs/internals/contexts.md has the whole argument. */
#ifndef SPANPROF_PYTHON_CURRENT_CONTEXT_H
#define SPANPROF_PYTHON_CURRENT_CONTEXT_H

#include "state.h"

#include "../core/thread.h"

/* What the variable holds. */
typedef struct ContextObject {
    PyObject_HEAD
    struct sp_context core;
    /* Nodes between the root of the variables and this object; borrowed from the
     * variables that were marked when it was put there, and valid with these. */
    PyObject *nodes[2];
    bool is_deeper; /* there are more, so nobody can say */
} ContextObject;

/* Whether no variables but the context's, which are marked, hold the object: the way
 * from there to it is nobody else's. `references` are the caller's own. (Setting a
 * variable makes new nodes on the way to that one, and shares all others.) */
static inline bool current_context_is_alone(const ContextObject *self,
                                            PyObject *context, Py_ssize_t references) {
    return compat_context_is_marked(context) &&
           Py_REFCNT((PyObject *)self) == 1 + references &&
           (SP_LIKELY(self->nodes[0] == NULL) ||
            (!self->is_deeper && Py_REFCNT(self->nodes[0]) == 1 &&
             (self->nodes[1] == NULL || Py_REFCNT(self->nodes[1]) == 1)));
}

/* Have the thread's context be the one of the calling thread's current contextvars
 * context. Never fails: out of memory it is the thread's own. Keeps a pending
 * exception. */
void current_context_find(ModuleState *state, struct sp_thread *thread,
                          PyThreadState *tstate);

static inline bool current_context_is_known(const struct sp_thread *thread,
                                            const PyThreadState *tstate) {
    PyObject *context = tstate->context;
    /* What runs on the thread may be spans of others that wait, here where they stay.
     */
    if (!SPANPROF_MONITORING && thread->top != NULL &&
        thread->context->current.generation == 0)
        return false;
    return SP_LIKELY(
        context != NULL && context == thread->host.context &&
        tstate->context_ver == thread->host.version &&
        current_context_is_alone((const ContextObject *)((const char *)thread->context -
                                                         offsetof(ContextObject, core)),
                                 context, 0));
}

/* To be called before spans are begun, entered, exited, suspended or resumed. */
static inline void current_context_sync(ModuleState *state, struct sp_thread *thread) {
    PyThreadState *tstate = compat_thread_state();
    if (SP_UNLIKELY(!current_context_is_known(thread, tstate)))
        current_context_find(state, thread, tstate);
}

/* The calling thread's interpreter's state; NULL if the thread, which may be any, is
 * not attached, or its interpreter has not imported us. Slow. */
ModuleState *current_context_state(void);

int current_context_init(PyObject *module);

/* The module's state is about to go. */
void current_context_forget(ModuleState *state);

#endif
