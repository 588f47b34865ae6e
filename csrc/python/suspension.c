#include "suspension.h"

#include "call_lock.h"
#include "callsite_of.h"
#include "current_context.h"

#include "../core/charge.h"
#include "../core/stats.h"
#include "../core/suspend.h"
#include "../core/suspended.h"

/* --- what is contextlib's ------------------------------------------------------------
 */

/* Borrowed; NULL while nobody has imported it. */
static PyObject *contextlib_globals(ModuleState *state) {
    if (state->contextlib == NULL) {
        PyObject *modules = PySys_GetObject("modules"); /* NULL at the end */
        PyObject *module =
            modules != NULL ? PyDict_GetItemString(modules, "contextlib") : NULL;
        if (module != NULL && PyModule_Check(module))
            state->contextlib = Py_NewRef(PyModule_GetDict(module));
    }
    return state->contextlib;
}

static bool is_contextlibs(ModuleState *state, struct _PyInterpreterFrame *frame) {
    PyObject *globals = contextlib_globals(state);
    return globals != NULL && compat_frame_code(frame) != NULL &&
           compat_frame_globals(frame) == globals;
}

/* The frame, or the nearest one that called it, of Python code that is not
 * contextlib's; or NULL. */
static struct _PyInterpreterFrame *
beyond_contextlib(ModuleState *state, struct _PyInterpreterFrame *frame) {
    while (frame != NULL &&
           (compat_frame_code(frame) == NULL || is_contextlibs(state, frame)))
        frame = compat_frame_caller(frame);
    return frame;
}

/* --- spans and their objects
 * -------------------------------------------------------------
 */

/* The stack holds a reference to each span's object, a group that is kept does not:
 * what would exit the span holds one itself, and when that dies unresumed the span
 * dies. */
static void claim(struct sp_span *span) {
    if (!span->is_native) Py_INCREF((PyObject *)span->owner);
}

#ifdef Py_GIL_DISABLED
static bool retain(struct sp_span *span) {
    return span->is_native || compat_try_incref((PyObject *)span->owner);
}
static void share_objects(const struct sp_span *top, const struct sp_span *end) {
    for (const struct sp_span *s = top; s != end; s = s->below)
        if (!s->is_native) compat_share((PyObject *)s->owner);
}
static void retain_objects(struct sp_span *top) {
    (void)top; /* each was, under the lock */
}
#else
static void share_objects(const struct sp_span *top, const struct sp_span *end) {
    (void)top;
    (void)end;
}
static void retain_objects(struct sp_span *top) {
    for (struct sp_span *s = top; s != NULL; s = s->below)
        if (!s->is_native) Py_INCREF((PyObject *)s->owner);
}
#endif

/* The thread, if its stack is of the running session; with its context. */
static inline struct sp_thread *thread_at(ModuleState *state) {
    struct sp_thread *thread = sp_thread_current();
    if (SP_LIKELY(thread != NULL)) current_context_sync(state, thread);
    return thread;
}

/* Suspend the thread's spans down to `bottom`, or all if that is NULL, and let go of
 * their objects. Once they are kept other threads may take spans out of the group, and
 * a span may die with its object: so these are noted before. Without memory for that
 * they stay. */
static void suspend_down_to(struct sp_thread *thread, struct sp_span *bottom,
                            const void *key, bool keeps_context) {
    struct sp_span *top = thread->top, *end = bottom != NULL ? bottom->below : NULL;
    size_t count = 0;
    for (struct sp_span *s = top; s != end; s = s->below) count++;
    share_objects(top, end);
    PyObject *few[8], **objects = few;
    if (SP_UNLIKELY(count > 8)) objects = PyMem_RawMalloc(count * sizeof *objects);
    struct sp_span *s = top;
    for (size_t i = 0; i < count && objects != NULL; i++, s = s->below)
        objects[i] = s->owner;
    /* Out of memory they were abandoned, and on the stack no longer all the same. */
    bool kept = bottom != NULL ? sp_span_suspend(thread, bottom, key)
                               : sp_span_suspend_all(thread, key, keeps_context);
    for (size_t i = 0; i < count && objects != NULL && kept; i++)
        Py_XDECREF(objects[i]);
    if (objects != few) PyMem_RawFree(objects);
}

void suspension_suspend_all(struct sp_thread *thread, const void *key,
                            bool same_context) {
    if (thread->top != NULL) suspend_down_to(thread, NULL, key, !same_context);
}

void suspension_resume(ModuleState *state, const void *key) {
    struct sp_thread *thread = thread_at(state);
    struct sp_span *top = sp_suspended_take(key, sp_span_retain);
    if (top == NULL) return;
    retain_objects(top);
    sp_span_resume(thread, top);
}

#if SPANPROF_MONITORING

/* --- our tool
 * -------------------------------------------------------------------------
 */

static int event_of(PyObject *monitoring, const char *name) {
    PyObject *events = PyObject_GetAttrString(monitoring, "events");
    PyObject *event = events != NULL ? PyObject_GetAttrString(events, name) : NULL;
    int value = event != NULL ? (int)PyLong_AsLong(event) : -1;
    Py_XDECREF(events);
    Py_XDECREF(event);
    return value;
}

/* Guards tool, monitoring and watched_code of every state. */
static struct call_lock lock = CALL_LOCK_INIT;

static void restart_in_child(void) {
    call_lock_restart_in_child(&lock);
}
static void watch_forks(void) {
    pthread_atfork(NULL, NULL, restart_in_child);
}

static const char *const EVENTS[] = {"PY_YIELD", "PY_RESUME", "PY_THROW"};
static const char *const CALLBACKS[] = {"_on_yield", "_on_resume", "_on_throw"};

static bool call(PyObject *monitoring, const char *function, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    PyObject *tuple = Py_VaBuildValue(format, arguments);
    va_end(arguments);
    PyObject *callable = PyObject_GetAttrString(monitoring, function);
    PyObject *result =
        tuple != NULL && callable != NULL ? PyObject_CallObject(callable, tuple) : NULL;
    Py_XDECREF(tuple);
    Py_XDECREF(callable);
    Py_XDECREF(result);
    return result != NULL;
}

static bool register_callbacks(PyObject *module, PyObject *monitoring, int tool,
                               bool none) {
    for (int i = 0; i < 3; i++) {
        PyObject *callback =
            none ? Py_NewRef(Py_None) : PyObject_GetAttrString(module, CALLBACKS[i]);
        bool done =
            callback != NULL && call(monitoring, "register_callback", "(iiN)", tool,
                                     event_of(monitoring, EVENTS[i]), callback);
        if (!done) return false;
    }
    return call(monitoring, "set_events", "(ii)", tool,
                none ? 0 : event_of(monitoring, "PY_THROW"));
}

/* Those that are nobody's by convention. A number above is an optimiser's or the
 * profile's, below a debugger's and a coverage tool's. */
static int take_tool(PyObject *monitoring) {
    static const int tools[] = {4, 3};
    for (size_t i = 0; i < sizeof tools / sizeof tools[0]; i++) {
        if (call(monitoring, "use_tool_id", "(is)", tools[i], "spanprof"))
            return tools[i];
        PyErr_Clear();
    }
    return -1;
}

/* Under the lock. */
static bool have_tool(ModuleState *state) {
    if (state->tool != 0) return state->tool > 0;
    /* The session may be over by now, and its tool released. */
    if (sp_session_running() == 0) return false;
    PyObject *monitoring = PySys_GetObject("monitoring");
    PyObject *module = state->module;
    if (monitoring == NULL) return false;
    int tool = take_tool(monitoring);
    state->tool = tool;
    if (tool < 0) {
        sp_count(&sp_stats.suspensions_unseen);
        return false;
    }
    state->monitoring = Py_NewRef(monitoring);
    return register_callbacks(module, monitoring, tool, false);
}

static bool set_local_events(ModuleState *state, PyCodeObject *code, bool on) {
    int events = on ? event_of(state->monitoring, "PY_YIELD") |
                          event_of(state->monitoring, "PY_RESUME")
                    : 0;
    return call(state->monitoring, "set_local_events", "(iOi)", state->tool, code,
                events);
}

static void watch(ModuleState *state, PyCodeObject *code) {
    PyObject *address = PyLong_FromVoidPtr(code);
    if (address == NULL) return;
    int known = PyDict_Contains(state->watched_code, address);
    Py_DECREF(address);
    if (known == 0 && have_tool(state) && callsite_watch(state->watched_code, code))
        set_local_events(state, code, true);
}

SP_COLD void suspension_watch(ModuleState *state, struct _PyInterpreterFrame *frame) {
    PyCodeObject *code = compat_frame_code(frame);
    if (code == NULL || suspension_is_watched(state, frame)) return;
    if (state->watched_code == NULL) return; /* the interpreter is about to end */
    struct sp_thread *paused = sp_thread_pause();
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    /* Else code that runs while another is watched: it is when it comes here again. */
    if (call_lock_take(&lock)) {
        watch(state, code);
        call_lock_release(&lock);
    }
    if (PyErr_Occurred()) PyErr_Clear();
    PyErr_Restore(type, value, traceback);
    sp_thread_resume(paused);
}

static void forget_code(ModuleState *state) {
    PyObject *address, *reference;
    Py_ssize_t position = 0;
    PyObject *known = PyDict_Copy(state->watched_code);
    if (known == NULL) return;
    while (PyDict_Next(known, &position, &address, &reference)) {
        PyObject *code = PyObject_CallNoArgs(reference);
        if (code != NULL && PyCode_Check(code))
            set_local_events(state, (PyCodeObject *)code, false);
        Py_XDECREF(code);
        if (PyErr_Occurred()) PyErr_Clear();
    }
    Py_DECREF(known);
    PyDict_Clear(state->watched_code);
}

static void release(ModuleState *state) {
    if (state->tool > 0) {
        forget_code(state);
        register_callbacks(state->module, state->monitoring, state->tool, true);
        call(state->monitoring, "free_tool_id", "(i)", state->tool);
    }
    state->tool = 0;
    Py_CLEAR(state->monitoring);
}

void suspension_release(ModuleState *state) {
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    if (call_lock_take(&lock)) {
        /* Another session may have begun, whose spans rely on what is watched: its end.
         */
        if (sp_session_running() == 0) release(state);
        call_lock_release(&lock);
    }
    if (PyErr_Occurred()) PyErr_Clear();
    PyErr_Restore(type, value, traceback);
}

/* --- suspending
 * --------------------------------------------------------------------------
 */

/* Suspend the spans at the top that are at home in that frame, if there are any. */
static void suspend(struct sp_thread *thread, const void *home) {
    struct sp_span *top = thread->top, *bottom = top;
    if (SP_UNLIKELY(top == NULL || top->home != home)) return;
    while (bottom->below != NULL && bottom->below->home == home) bottom = bottom->below;
    suspend_down_to(thread, bottom, home, false);
}

/* --- generators that are context managers
 * ------------------------------------------------
 */

static struct _PyInterpreterFrame *caller_in_python(struct _PyInterpreterFrame *frame) {
    do frame = compat_frame_caller(frame);
    while (frame != NULL && compat_frame_code(frame) == NULL);
    return frame;
}

/* A decorated generator is run by one of spanprof/steps.py. */
static struct _PyInterpreterFrame *
caller_beyond_steps(const ModuleState *state, struct _PyInterpreterFrame *frame) {
    do frame = caller_in_python(frame);
    while (frame != NULL && compat_frame_globals(frame) == state->steps);
    return frame;
}

static bool is_named(const ModuleState *state, struct _PyInterpreterFrame *frame) {
    PyCodeObject *code = compat_frame_code(frame);
    return code != NULL &&
           (code->co_name == state->names[0] || code->co_name == state->names[1]);
}

/* A generator of contextlib's that yields in __enter__ hands over to the block: its
 * spans are the block's for as long as it lasts. (An async one may also have to wait in
 * __aenter__; what it hands over is wrapped.) */
static bool lends(ModuleState *state, struct sp_thread *thread,
                  struct _PyInterpreterFrame *frame, PyObject *yielded) {
    struct _PyInterpreterFrame *caller = caller_beyond_steps(state, frame);
    if (caller == NULL || !is_named(state, caller) || !is_contextlibs(state, caller))
        return false;
    if ((compat_frame_code(frame)->co_flags & CO_ASYNC_GENERATOR) &&
        strcmp(Py_TYPE(yielded)->tp_name, "async_generator_wrapped_value") != 0)
        return false;
    struct _PyInterpreterFrame *block = beyond_contextlib(state, caller);
    if (block == NULL) return false;
    const void *home = compat_frame_may_suspend(block) ? block : NULL;
    struct sp_span *s = thread->top;
    for (struct _PyInterpreterFrame *f = frame; f != caller; f = compat_frame_caller(f))
        for (; s != NULL && s->home == f; s = s->below) s->home = home;
    if (home != NULL) suspension_watch(state, block);
    return true;
}

/* --- exceptions that are thrown in
 * --------------------------------------------------------
 *
 * throw() goes to the innermost generator of a chain that waits for each other; the
 * others are told nothing, while it handles the exception and perhaps yields again.
 * Their spans are resumed and suspended with its. */

static struct _PyInterpreterFrame *outermost_kept(struct _PyInterpreterFrame *frame) {
    struct _PyInterpreterFrame *found = NULL;
    for (; frame != NULL; frame = compat_frame_caller(frame))
        if (compat_frame_may_suspend(frame) && sp_suspended_has(frame)) found = frame;
    return found;
}

static void resume(struct sp_thread *thread, const void *home,
                   const void *thrown_into) {
    struct sp_span *top = sp_suspended_take(home, sp_span_retain);
    if (SP_LIKELY(top == NULL)) return;
    retain_objects(top);
    if (SP_UNLIKELY(!sp_span_resume(thread, top))) return;
    for (struct sp_span *s = top; thrown_into != NULL && s != NULL; s = s->below) {
        if (s->home != home) break;
        s->thrown_through = true;
        s->thrown_into = thrown_into;
    }
}

/* From the outermost frame on, which comes last. */
static void resume_chain(ModuleState *state, struct sp_thread *thread,
                         struct _PyInterpreterFrame *frame,
                         struct _PyInterpreterFrame *last, const void *thrown_into) {
    struct _PyInterpreterFrame *chain[32];
    size_t count = 0;
    for (struct _PyInterpreterFrame *f = frame;; f = compat_frame_caller(f)) {
        if (compat_frame_may_suspend(f)) chain[count++] = f;
        if (f == last) break;
        if (count < 32) continue;
        f = compat_frame_caller(f);
        resume_chain(state, thread, f, last, thrown_into);
        break;
    }
    while (count-- > 0) {
        suspension_watch(state, chain[count]);
        resume(thread, chain[count], chain[count] != thrown_into ? thrown_into : NULL);
    }
}

static bool is_below(const void *home, struct _PyInterpreterFrame *frame) {
    while (frame != NULL && frame != home) frame = compat_frame_caller(frame);
    return frame != NULL;
}

/* What was thrown into another frame before has come out of it into this one. */
static void take_over(const struct sp_thread *thread,
                      struct _PyInterpreterFrame *frame) {
    for (struct sp_span *s = thread->top; s != NULL && s->thrown_through; s = s->below)
        if (s->home == frame)
            s->thrown_through = false;
        else if (!is_below(s->thrown_into, frame))
            s->thrown_into = frame;
}

/* The others of a chain are suspended with the one that yields. */
static SP_COLD void suspend_chain(struct sp_thread *thread, const void *frame) {
    struct sp_span *top;
    while ((top = thread->top) != NULL && top->thrown_through &&
           top->thrown_into == frame) {
        const void *home = top->home;
        for (struct sp_span *s = top; s != NULL && s->home == home; s = s->below)
            s->thrown_through = false;
        suspend(thread, home);
    }
}

/* --- what the interpreter tells
 * -------------------------------------------------------------
 *
 * Called with (code, offset, ...) on the thread, the frame that it is about being the
 * current one; they must leave alone whatever is none of ours, and never fail. */

/* The offset that we are told was allocated in the program's name. (5.7) */
static inline void disown_offset(PyObject *const *args, Py_ssize_t nargs) {
    struct sp_thread *thread = sp_thread_charged;
    if (SP_UNLIKELY(thread != NULL && nargs >= 2 && compat_is_fresh_int(args[1])))
        sp_charge_undo(thread, args[1], SPANPROF_OFFSET_SIZE);
}

static bool is_coroutine(PyObject *code) {
    return (((PyCodeObject *)code)->co_flags & CO_COROUTINE) != 0;
}

static PyObject *on_yield(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    struct sp_thread *thread = sp_thread_self;
    struct _PyInterpreterFrame *frame = compat_frame();
    disown_offset(args, nargs);
    if (SP_UNLIKELY(thread == NULL || thread->top == NULL || nargs < 3)) Py_RETURN_NONE;
    ModuleState *state = state_of_module(module);
    thread = thread_at(state);
    if (SP_UNLIKELY(thread == NULL)) Py_RETURN_NONE;
    struct sp_span *top = thread->top;
    if (SP_LIKELY(top != NULL && top->home == frame)) {
        if (SP_UNLIKELY(!is_coroutine(args[0])) && lends(state, thread, frame, args[2]))
            Py_RETURN_NONE;
        suspend(thread, frame);
        top = thread->top;
    }
    if (SP_UNLIKELY(top != NULL && top->thrown_through)) suspend_chain(thread, frame);
    Py_RETURN_NONE;
}

static PyObject *on_resume(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    disown_offset(args, nargs);
    suspension_resume(state_of_module(module), compat_frame());
    Py_RETURN_NONE;
}

static PyObject *on_throw(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    disown_offset(args, nargs);
    struct _PyInterpreterFrame *frame = compat_frame();
    ModuleState *state = state_of_module(module);
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    struct sp_thread *thread = thread_at(state);
    if (thread != NULL) take_over(thread, frame);
    struct _PyInterpreterFrame *last = outermost_kept(frame);
    if (last != NULL) resume_chain(state, thread, frame, last, frame);
    PyErr_Restore(type, value, traceback);
    Py_RETURN_NONE;
}

static PyMethodDef suspension_functions[] = {
    {"_on_yield", (PyCFunction)(void (*)(void))on_yield, METH_FASTCALL, NULL},
    {"_on_resume", (PyCFunction)(void (*)(void))on_resume, METH_FASTCALL, NULL},
    {"_on_throw", (PyCFunction)(void (*)(void))on_throw, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

#else

void suspension_watch(ModuleState *state, struct _PyInterpreterFrame *frame) {
    (void)state;
    (void)frame;
}
void suspension_release(ModuleState *state) {
    (void)state;
}
static PyMethodDef suspension_functions[] = {{NULL, NULL, 0, NULL}};

#endif

/* --- homes
 * ------------------------------------------------------------------------------------
 */

void suspension_watch_caller(ModuleState *state) {
    struct _PyInterpreterFrame *frame = compat_frame();
    if (frame != NULL && compat_frame_may_suspend(frame))
        suspension_watch(state, frame);
}

static bool is_stacks(ModuleState *state, struct _PyInterpreterFrame *frame) {
    PyCodeObject *code = compat_frame_code(frame);
    return code != NULL &&
           (code->co_name == state->names[2] || code->co_name == state->names[3]) &&
           is_contextlibs(state, frame);
}

const void *suspension_home_of_caller(ModuleState *state) {
    struct _PyInterpreterFrame *frame = compat_frame();
    if (SP_LIKELY(frame == NULL || !is_stacks(state, frame)))
        return suspension_home(frame);
    frame = beyond_contextlib(state, frame);
    /* Perhaps a function that a coroutine has called in order to enter it. */
    while (frame != NULL && !compat_frame_may_suspend(frame))
        frame = compat_frame_caller(frame);
    if (frame != NULL) suspension_watch(state, frame);
    return frame;
}

void suspension_abandon(struct sp_span *span) {
    sp_span_abandon(sp_thread_for_charges(), span);
}

int suspension_init(PyObject *module) {
    ModuleState *state = state_of_module(module);
    state->module = module;
    state->watched_code = PyDict_New();
    if (state->watched_code == NULL) return -1;
    static const char *const names[] = {"__enter__", "__aenter__", "enter_context",
                                        "enter_async_context"};
    for (int i = 0; i < 4; i++)
        if ((state->names[i] = PyUnicode_InternFromString(names[i])) == NULL) return -1;
    sp_span_claim = claim;
#if SPANPROF_MONITORING
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, watch_forks);
#endif
#ifdef Py_GIL_DISABLED
    sp_span_retain = retain;
#endif
    return PyModule_AddFunctions(module, suspension_functions);
}
