#include "sampling.h"

int sampling_configure(struct sp_sampler_config *config, PyObject *sampler) {
    *config = (struct sp_sampler_config){.kind = SP_SAMPLER_NONE};
    if (sampler == Py_None) return 0;
    if (!PyTuple_Check(sampler)) {
        config->kind = SP_SAMPLER_ASK;
        return 0;
    }
    PyObject *seed;
    config->kind = SP_SAMPLER_RATIO;
    if (!PyArg_ParseTuple(sampler, "dO", &config->ratio, &seed)) return -1;
    config->has_seed = seed != Py_None;
    if (config->has_seed) config->seed = PyLong_AsUnsignedLongLongMask(seed);
    return PyErr_Occurred() ? -1 : 0;
}

/* Other threads may be about to call the one that goes: its field has a lock. */
void sampling_publish(ModuleState *state, PyObject *function) {
    PyObject *before;
    SPANPROF_LOCK((PyObject *)state->span_type);
    before = state->sampler;
    state->sampler = Py_XNewRef(function);
    SPANPROF_UNLOCK();
    Py_XDECREF(before);
}

void sampling_withdraw(ModuleState *state, PyObject *function) {
    if (function == NULL) return;
    PyObject *before = NULL;
    SPANPROF_LOCK((PyObject *)state->span_type);
    if (state->sampler == function) {
        before = function;
        state->sampler = NULL;
    }
    SPANPROF_UNLOCK();
    Py_XDECREF(before);
    Py_DECREF(function);
}

PyObject *sampling_function(ModuleState *state) {
    PyObject *function;
    SPANPROF_LOCK((PyObject *)state->span_type);
    function = Py_XNewRef(state->sampler);
    SPANPROF_UNLOCK();
    return function;
}

/* The span's and those that it inherits: a new reference, or NULL if there are none.
 * Out of memory those of the span alone. */
static PyObject *all_labels(ModuleState *state, PyObject *labels) {
    InheritedObject *inherited = inherited_may_be() ? inherited_current(state) : NULL;
    if (inherited == NULL) return Py_XNewRef(labels);
    PyObject *all = PyDict_Copy(inherited->labels);
    Py_DECREF(inherited);
    if (all != NULL && (labels == NULL || PyDict_Update(all, labels) == 0)) return all;
    PyErr_Clear();
    Py_XDECREF(all);
    return Py_XNewRef(labels);
}

static int ask(ModuleState *state, struct sp_thread *thread, uint32_t callsite,
               PyObject *labels) {
    PyObject *function = sampling_function(state);
    /* Another interpreter's session: it cannot be asked here. */
    if (function == NULL) return 1;
    /* Meanwhile this thread is the profiler's: spans that are opened here are not
     * recorded, and ask nobody. */
    struct sp_thread *paused = sp_thread_pause();
    PyObject *all = all_labels(state, labels);
    unsigned long long id = thread->next_id; /* it makes no span until it is back */
    sp_thread_poke(thread);
    thread->is_profilers = true;
    PyObject *answer = PyObject_CallFunction(
        function, "KkO", id, (unsigned long)callsite, all != NULL ? all : Py_None);
    Py_XDECREF(all);
    thread->is_profilers = false;
    sp_thread_resume(paused);
    Py_DECREF(function);
    int sampled = answer != NULL ? PyObject_IsTrue(answer) : -1;
    Py_XDECREF(answer);
    return sampled;
}

static uint32_t generation_of(const struct sp_thread *thread) {
    return atomic_load_explicit(&thread->data_generation, memory_order_relaxed);
}

static uint32_t labels_of(ModuleState *state, PyObject *labels, uint32_t generation) {
    if (!labels_are_recorded()) return SP_LABELS_NONE;
    struct sp_thread *paused = sp_thread_pause();
    uint32_t recorded = SP_LABELS_NONE;
    if (labels == NULL) {
        recorded = inherited_recorded(state, generation);
    } else {
        InheritedObject *inherited =
            inherited_may_be() ? inherited_current(state) : NULL;
        recorded =
            labels_recorded_of(labels, inherited != NULL ? inherited->labels : NULL);
        Py_XDECREF(inherited);
    }
    sp_thread_resume(paused);
    return recorded;
}

int sampling_plan_slow(struct sampling_plan *plan, ModuleState *state, PyObject *name,
                       PyObject *labels, SpanObject *parent, const uint32_t *callsite) {
    struct sp_thread *thread = plan->thread;
    uint32_t generation = generation_of(thread);
    bool sampling = thread->sampler.on;
    if (parent != NULL) span_copy_as_parent(parent, &plan->above);
    enum sp_decision decision =
        sp_span_decide(thread, parent != NULL ? &plan->above : NULL);
    plan->sampled_out = decision == SP_SAMPLED_OUT;
    if (plan->sampled_out) return 0;
    uint32_t where =
        callsite != NULL ? *callsite : callsite_of_caller(state, thread, name);
    if (decision == SP_UNDECIDED) {
        int sampled = ask(state, thread, where, labels);
        if (sampled < 0) return -1;
        plan->sampled_out = !sampled;
    }
    if (!plan->sampled_out)
        plan->key = sp_key_make(where, labels_of(state, labels, generation));
    thread = plan->thread = sampling_thread(state);
    /* The decision may have been another session's: then this one has made none. */
    if (thread != NULL && generation_of(thread) != generation &&
        (sampling || thread->sampler.on))
        plan->thread = NULL;
    return 0;
}
