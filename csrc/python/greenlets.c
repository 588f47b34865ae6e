#include "greenlets.h"

#include "current_context.h"
#include "suspension.h"

#include "../core/stats.h"
#include "../core/suspend.h"

/* Under which the previous tracer is in the thread state's dictionary, while ours is
 * installed there. */
static const char TRACER_KEY[] = "spanprof._core.greenlets";

/* --- switching -------------------------------------------------------------------- */

static bool is_dead(PyObject *greenlet) {
    PyObject *dead = PyObject_GetAttrString(greenlet, "dead");
    bool result = dead != NULL && PyObject_IsTrue(dead) == 1;
    Py_XDECREF(dead);
    if (PyErr_Occurred()) PyErr_Clear();
    return result;
}

/* The stack was the greenlet's, which is not the current one any more. */
static void leave(struct sp_thread *thread, PyObject *greenlet, bool same_context) {
    if (thread->top == NULL) return;
    if (!is_dead(greenlet)) {
        suspension_suspend_all(thread, greenlet, same_context);
        return;
    }
    /* Entered and never left: nothing will resume them. */
    while (thread->top != NULL) {
        struct sp_span *span = thread->top;
        sp_span_leave_behind(thread, span);
    }
}

static void switched(ModuleState *state, PyObject *origin, PyObject *target) {
    struct sp_thread *thread = sp_thread_self;
    if (thread == NULL || (thread = sp_thread_current()) == NULL) return;
    PyObject *context = compat_thread_state()->context;
    leave(thread, origin, context != NULL && context == thread->host.context);
    suspension_resume(state, target);
}

/* --- the tracer ----------------------------------------------------------------------
 */

/* Borrowed: the tracer before ours, None without one; NULL if ours is not installed. */
static PyObject *previous_tracer(void) {
    PyObject *dict = PyThreadState_GetDict();
    return dict != NULL ? PyDict_GetItemString(dict, TRACER_KEY) : NULL;
}

static PyObject *call(PyObject *greenlet_module, const char *function,
                      PyObject *argument) {
    PyObject *callable = PyObject_GetAttrString(greenlet_module, function);
    PyObject *result = NULL;
    if (callable != NULL)
        result = argument != NULL ? PyObject_CallOneArg(callable, argument)
                                  : PyObject_CallNoArgs(callable);
    Py_XDECREF(callable);
    return result;
}

/* No session runs: greenlets need not tell, unless others were installed above us. */
static void uninstall(ModuleState *state, PyObject *previous) {
    PyObject *current = call(state->greenlet, "gettrace", NULL);
    if (current == state->greenlet_tracer) {
        Py_XDECREF(call(state->greenlet, "settrace", previous));
        PyDict_DelItemString(PyThreadState_GetDict(), TRACER_KEY);
    }
    Py_XDECREF(current);
}

static PyObject *on_switch(PyObject *module, PyObject *args) {
    ModuleState *state = state_of_module(module);
    PyObject *event, *origin, *target;
    if (!PyArg_ParseTuple(args, "O(OO)", &event, &origin, &target)) {
        PyErr_Clear();
        Py_RETURN_NONE;
    }
    PyObject *previous = Py_XNewRef(previous_tracer());
    if (sp_session_running() != 0)
        switched(state, origin, target);
    else if (previous != NULL)
        uninstall(state, previous);
    PyObject *result = Py_NewRef(Py_None);
    if (previous != NULL && previous != Py_None)
        Py_SETREF(result, PyObject_CallObject(previous, args));
    Py_XDECREF(previous);
    return result;
}

/* The outermost greenlet of the thread, if another one is current: a new reference, or
 * NULL. */
static PyObject *main_if_not_current(ModuleState *state) {
    PyObject *greenlet = call(state->greenlet, "getcurrent", NULL);
    bool is_current = true;
    while (greenlet != NULL) {
        PyObject *parent = PyObject_GetAttrString(greenlet, "parent");
        if (parent == NULL || parent == Py_None) {
            Py_XDECREF(parent);
            break;
        }
        is_current = false;
        Py_SETREF(greenlet, parent);
    }
    if (is_current) Py_CLEAR(greenlet);
    return greenlet;
}

static void install(ModuleState *state, struct sp_thread *thread) {
    PyObject *dict = PyThreadState_GetDict();
    if (dict == NULL || previous_tracer() != NULL) return;
    PyObject *previous = call(state->greenlet, "settrace", state->greenlet_tracer);
    if (previous == NULL) return;
    PyDict_SetItemString(dict, TRACER_KEY, previous);
    Py_DECREF(previous);
    /* What runs was entered before greenlet was imported, so before the first switch.
     */
    PyObject *outermost = thread->top != NULL ? main_if_not_current(state) : NULL;
    if (outermost != NULL) suspension_suspend_all(thread, outermost, false);
    Py_XDECREF(outermost);
}

void greenlets_look(ModuleState *state, struct sp_thread *thread) {
    if (thread->host.sees_switches) return;
    if (state->greenlet == NULL) {
        PyObject *modules = PySys_GetObject("modules"); /* NULL at the end */
        PyObject *module =
            modules != NULL ? PyDict_GetItemWithError(modules, state->names[4]) : NULL;
        if (module == NULL || !PyObject_HasAttrString(module, "settrace")) return;
        state->greenlet = Py_NewRef(module);
    }
    thread->host.sees_switches = true;
    install(state, thread);
}

static PyMethodDef greenlets_functions[] = {
    {"_on_switch", on_switch, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

int greenlets_init(PyObject *module) {
    ModuleState *state = state_of_module(module);
    if (PyModule_AddFunctions(module, greenlets_functions) < 0) return -1;
    state->names[4] = PyUnicode_InternFromString("greenlet");
    state->greenlet_tracer = PyObject_GetAttrString(module, "_on_switch");
    return state->names[4] == NULL || state->greenlet_tracer == NULL ? -1 : 0;
}
