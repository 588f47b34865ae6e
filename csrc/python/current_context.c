#include "current_context.h"

#include "greenlets.h"

#include "../core/span.h"

/* --- the object --------------------------------------------------------------- */

static void context_dealloc(PyObject *object) {
    PyTypeObject *type = Py_TYPE(object);
    PyObject_Free(object);
    compat_decref_type(type);
}

static PyType_Slot context_slots[] = {
    {Py_tp_dealloc, context_dealloc},
    {0, NULL},
};

static PyType_Spec context_spec = {
    "spanprof._core._Context", sizeof(ContextObject), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    context_slots};

/* --- finding it ----------------------------------------------------------------- */

static const struct sp_parent nobody = {0, SP_PATH_ROOT, 0};

static uint32_t generation_of(const struct sp_thread *thread) {
    return atomic_load_explicit(&thread->data_generation, memory_order_relaxed);
}

#if !SPANPROF_MONITORING
static bool is_running(const void *home) {
    struct _PyInterpreterFrame *frame = compat_frame();
    while (frame != NULL && frame != home) frame = compat_frame_caller(frame);
    return frame != NULL;
}

/* Spans of coroutines that wait are on the thread's stack here, and are nobody's
 * parent: what is below them is, or nothing. */
static struct sp_parent innermost_running(const struct sp_thread *thread) {
    const struct sp_span *span = thread->top;
    while (span != NULL && span->home != NULL && !is_running(span->home))
        span = span->below;
    if (span == thread->top) return nobody; /* as everywhere */
    return span != NULL ? span->as_parent
                        : (struct sp_parent){0, SP_PATH_ROOT, generation_of(thread)};
}
#endif

/* A context that was not there, or that others share, begins where it was copied. */
static struct sp_parent beginning(const struct sp_thread *thread,
                                  const ContextObject *known) {
    if (known != NULL && known->core.current.generation == generation_of(thread))
        return known->core.current;
#if SPANPROF_MONITORING
    return nobody;
#else
    return innermost_running(thread);
#endif
}

/* --- where it is in the variables --------------------------------------------------
 */

struct search {
    PyObject *wanted;
    PyObject *way[3];
    int depth;
};

static int visit(PyObject *child, void *arg) {
    struct search *search = arg;
    if (child == search->wanted) return 1;
    if (search->depth == 3 || !compat_is_context_node(child)) return 0;
    search->way[search->depth++] = child;
    if (Py_TYPE(child)->tp_traverse(child, visit, arg) != 0) return 1;
    search->depth--;
    return 0;
}

/* The object has just been put into the context. */
static void note_way(ContextObject *self, PyObject *context) {
    struct search search = {.wanted = (PyObject *)self};
    PyObject *root = compat_context_root(context);
    bool found = Py_TYPE(root)->tp_traverse(root, visit, &search) != 0;
    self->nodes[0] = search.depth > 0 ? search.way[0] : NULL;
    self->nodes[1] = search.depth > 1 ? search.way[1] : NULL;
    self->is_deeper = !found || search.depth > 2;
    if (!found) self->nodes[0] = root;
}

/* A new reference, in the current context; or NULL with an exception. */
static ContextObject *put_new(ModuleState *state, const struct sp_parent *current) {
    ContextObject *made = PyObject_New(ContextObject, state->context_type);
    if (made == NULL) return NULL;
    made->core.current = *current;
    PyObject *token = PyContextVar_Set(state->context_var, (PyObject *)made);
    if (token == NULL) Py_CLEAR(made);
    Py_XDECREF(token);
    return made;
}

#if SPANPROF_CONTEXT_CACHE > 0
/* Where marked variables are, what they hold. Whoever marks some writes their place
 * here, so that an entry with the right address is right, whatever was there before. */
static struct context_cached *cached(ModuleState *state, const PyObject *vars) {
    return &state->contexts[((uintptr_t)vars >> 4 ^ (uintptr_t)vars >> 14) %
                            SPANPROF_CONTEXT_CACHE];
}

static ContextObject *look_up(ModuleState *state, PyObject *context) {
    PyObject *vars = compat_context_vars(context);
    const struct context_cached *entry = cached(state, vars);
    if (entry->vars != vars || !compat_context_is_marked(context) ||
        !current_context_is_alone(entry->context, context, 0))
        return NULL;
    return entry->context;
}
#endif

static void mark(ModuleState *state, PyObject *context, ContextObject *made) {
    compat_context_mark(context);
    note_way(made, context);
#if SPANPROF_CONTEXT_CACHE > 0
    PyObject *vars = compat_context_vars(context);
    *cached(state, vars) = (struct context_cached){vars, made};
#else
    (void)state;
    (void)made;
#endif
}

static void use(struct sp_thread *thread, PyThreadState *tstate, ContextObject *context,
                const struct sp_parent *current) {
    context->core.current = *current;
    thread->context = &context->core;
    thread->host.context = tstate->context;
    thread->host.version = tstate->context_ver;
}

static void find(ModuleState *state, struct sp_thread *thread, PyThreadState *tstate) {
    PyObject *value = NULL;
    if (PyContextVar_Get(state->context_var, NULL, &value) < 0) return;
    ContextObject *known = (ContextObject *)value;
    struct sp_parent current = beginning(thread, known);
    if (known == NULL || !current_context_is_alone(known, tstate->context, 1)) {
        ContextObject *made = put_new(state, &current);
        Py_XDECREF(known);
        known = made;
        if (known == NULL) return;
        mark(state, tstate->context, known);
    }
    use(thread, tstate, known, &current);
    Py_DECREF(known); /* the context has it */
}

#if SPANPROF_CONTEXT_CACHE > 0
static bool is_of_session(const struct sp_thread *thread,
                          const struct sp_parent *current) {
    return current->generation == generation_of(thread) ||
           (SPANPROF_MONITORING && current->generation == 0);
}
#endif

static SP_COLD void find_slowly(ModuleState *state, struct sp_thread *thread,
                                PyThreadState *tstate) {
    struct sp_thread *paused = sp_thread_pause();
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    thread->context = &thread->own_context;
    thread->host.context = NULL;
    if (state->context_var != NULL) { /* else the interpreter is about to end */
        greenlets_look(state, thread);
        find(state, thread, tstate);
    }
    if (PyErr_Occurred()) PyErr_Clear();
    PyErr_Restore(type, value, traceback);
    sp_thread_resume(paused);
}

void current_context_find(ModuleState *state, struct sp_thread *thread,
                          PyThreadState *tstate) {
#if SPANPROF_CONTEXT_CACHE > 0
    ContextObject *known =
        tstate->context != NULL ? look_up(state, tstate->context) : NULL;
    if (SP_LIKELY(known != NULL && is_of_session(thread, &known->core.current))) {
        struct sp_parent current = known->core.current;
        use(thread, tstate, known, &current);
        return;
    }
#endif
    find_slowly(state, thread, tstate);
}

/* --- for the core ------------------------------------------------------------------
 */

static const char STATE_KEY[] = "spanprof._core";

ModuleState *current_context_state(void) {
    PyThreadState *tstate = compat_attached_thread_state();
    if (tstate == NULL) return NULL;
    PyObject *dict = PyInterpreterState_GetDict(PyThreadState_GetInterpreter(tstate));
    PyObject *capsule = dict != NULL ? PyDict_GetItemString(dict, STATE_KEY) : NULL;
    return capsule != NULL ? PyCapsule_GetPointer(capsule, STATE_KEY) : NULL;
}

static void find_context(struct sp_thread *thread) {
    ModuleState *state = thread == sp_thread_self ? current_context_state() : NULL;
    if (state != NULL && state->context_var != NULL)
        current_context_find(state, thread, compat_thread_state());
}

static int publish_state(ModuleState *state) {
    PyObject *dict = PyInterpreterState_GetDict(PyInterpreterState_Get());
    PyObject *capsule = PyCapsule_New(state, STATE_KEY, NULL);
    int failed = dict == NULL || capsule == NULL ||
                 PyDict_SetItemString(dict, STATE_KEY, capsule) < 0;
    Py_XDECREF(capsule);
    if (failed && !PyErr_Occurred()) PyErr_NoMemory();
    return failed ? -1 : 0;
}

void current_context_forget(ModuleState *state) {
    PyObject *dict = PyInterpreterState_GetDict(PyInterpreterState_Get());
    PyObject *capsule = dict != NULL ? PyDict_GetItemString(dict, STATE_KEY) : NULL;
    memset(state->contexts, 0, sizeof state->contexts);
    if (capsule == NULL || PyCapsule_GetPointer(capsule, STATE_KEY) != state) return;
    if (PyDict_DelItemString(dict, STATE_KEY) < 0) PyErr_Clear();
}

int current_context_init(PyObject *module) {
    ModuleState *state = state_of_module(module);
    state->context_type =
        (PyTypeObject *)PyType_FromModuleAndSpec(module, &context_spec, NULL);
    state->context_var = PyContextVar_New("spanprof_span", NULL);
    if (state->context_type == NULL || state->context_var == NULL) return -1;
    if (publish_state(state) < 0) return -1;
    atomic_store_explicit(&sp_thread_find_context, find_context, memory_order_relaxed);
    return 0;
}
