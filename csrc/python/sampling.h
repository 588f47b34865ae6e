/* Who decides which spans are recorded, where Python has a say. */
#ifndef SPANPROF_PYTHON_SAMPLING_H
#define SPANPROF_PYTHON_SAMPLING_H

#include "callsite_of.h"
#include "current_context.h"
#include "inherited.h"
#include "span_object.h"

/* What `sampler` means: None, (ratio, seed or None), or a function that is asked
 * sampler(id, callsite, labels) for each root. -1 with an exception. */
int sampling_configure(struct sp_sampler_config *config, PyObject *sampler);

/* The function that this interpreter's spans ask from here on; or NULL. */
void sampling_publish(ModuleState *state, PyObject *function);

/* The one that they ask. A new reference, or NULL. */
PyObject *sampling_function(ModuleState *state);

/* They ask it no longer. Another one, of a session that has begun meanwhile, stays.
 * Takes the reference, which may be NULL. */
void sampling_withdraw(ModuleState *state, PyObject *function);

/* What becomes of a span that is about to be made. */
struct sampling_plan {
    struct sp_thread *thread; /* NULL: nothing, it is not recorded */
    sp_key key;
    struct sp_span above; /* only what the parent that was given is to its children */
    const void *home;     /* of the span, see suspension.h; the caller's to say */
    bool sampled_out;
};

/* The calling thread's state, or NULL: nothing is recorded. Its context is the current
 * one. */
static inline struct sp_thread *sampling_thread(ModuleState *state) {
    struct sp_thread *thread = sp_thread_current();
    if (thread != NULL) current_context_sync(state, thread);
    return thread;
}

/* Where there is something to decide, or labels are to be recorded. */
int sampling_plan_slow(struct sampling_plan *plan, ModuleState *state, PyObject *name,
                       PyObject *labels, SpanObject *parent, const uint32_t *callsite);

/* Whether there is nothing to decide, nor a label to record. */
static inline bool sampling_is_needless(const struct sp_thread *thread,
                                        PyObject *labels) {
    return SP_LIKELY(!thread->sampler.on) &&
           (SP_LIKELY(labels == NULL && !inherited_may_be()) || !labels_are_recorded());
}

/* Plan a span of the calling thread, below `parent` if not NULL. `callsite` NULL: that
 * of the caller's instruction. May run Python (the sampler, a label's str()), which may
 * do anything, hence before anything is looked at. -1 with an exception. */
static inline int sampling_plan(struct sampling_plan *plan, ModuleState *state,
                                PyObject *name, PyObject *labels, SpanObject *parent,
                                const uint32_t *callsite) {
    struct sp_thread *thread = sampling_thread(state);
    plan->thread = thread;
    plan->home = NULL;
    plan->sampled_out = false;
    if (thread == NULL) return 0;
    if (!sampling_is_needless(thread, labels))
        return sampling_plan_slow(plan, state, name, labels, parent, callsite);
    plan->key = sp_key_make(callsite != NULL ? *callsite
                                             : callsite_of_caller(state, thread, name),
                            SP_LABELS_NONE);
    /* Where the callsite was new, a collection may have run anything (3.11), and audit
     * hooks. */
    current_context_sync(state, thread);
    if (parent != NULL) span_copy_as_parent(parent, &plan->above);
    return 0;
}

/* Begin a run of the object, as planned. */
static inline void span_begin(SpanObject *self, struct sp_span *span,
                              const struct sampling_plan *plan) {
    Py_INCREF(self);
    if (SP_UNLIKELY(plan->sampled_out))
        sp_span_begin_sampled_out(plan->thread, span);
    else if (SP_LIKELY(self->parent == NULL))
        sp_span_begin(plan->thread, span, plan->key);
    else
        sp_span_begin_under(plan->thread, span, plan->key, &plan->above);
}

#endif
