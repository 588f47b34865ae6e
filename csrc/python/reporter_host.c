#include "reporter_host.h"

#include "numpy_handler.h"
#include "profile_object.h"
#include "span_batch.h"
#include "span_updates.h"

#include <stdlib.h>

/* Lives on the reporter thread. Objects belong to `interpreter`, to which the
 * thread attaches with a thread state of its own (PyGILState_* would attach to
 * the main interpreter). */
struct context {
    PyInterpreterState *interpreter;
    PyThreadState *thread_state;
    ModuleState *module;
    PyObject *module_type; /* keeps the module's state alive */
    struct reporter_calls calls;
};

static void begin(void *argument) {
    struct context *context = argument;
    /* Takes the interpreter's lock on its list of threads: a child forked in the middle
     * would wait for that lock for ever. So session_start holds the GIL meanwhile. */
    context->thread_state = PyThreadState_New(context->interpreter);
}

static void report(void *argument, struct sp_profile *profile, bool last) {
    struct context *context = argument;
    if (context->thread_state == NULL) {
        sp_profile_free(profile);
        return;
    }
    PyEval_RestoreThread(context->thread_state);
    numpy_handler_look();
    PyObject *object = profile != NULL ? profile_object_new(context->module, profile)
                                       : Py_NewRef(Py_None);
    PyObject *result = NULL;
    if (object != NULL)
        result = PyObject_CallFunctionObjArgs(context->calls.on_report, object,
                                              last ? Py_True : Py_False, NULL);
    if (result == NULL) PyErr_WriteUnraisable(context->calls.on_report);
    Py_XDECREF(result);
    Py_XDECREF(object);
    context->thread_state = PyEval_SaveThread();
}

static void spans(void *argument, struct sp_feed_batch *batch) {
    struct context *context = argument;
    if (context->thread_state == NULL) {
        sp_feed_batch_free(batch);
        return;
    }
    PyEval_RestoreThread(context->thread_state);
    PyObject *object = span_batch_new(context->module, batch);
    PyObject *result =
        object != NULL ? PyObject_CallOneArg(context->calls.on_spans, object) : NULL;
    if (result == NULL) PyErr_WriteUnraisable(context->calls.on_spans);
    Py_XDECREF(result);
    Py_XDECREF(object);
    context->thread_state = PyEval_SaveThread();
}

static void updates(void *argument, const struct sp_span_updates *told) {
    struct context *context = argument;
    if (context->thread_state == NULL) return;
    PyEval_RestoreThread(context->thread_state);
    PyObject *object = span_updates_new(context->module, told);
    PyObject *result =
        object != NULL ? PyObject_CallOneArg(context->calls.on_updates, object) : NULL;
    if (result == NULL) PyErr_WriteUnraisable(context->calls.on_updates);
    if (object != NULL) span_updates_end(object);
    Py_XDECREF(result);
    Py_XDECREF(object);
    context->thread_state = PyEval_SaveThread();
}

static void release(struct context *context) {
    Py_DECREF(context->calls.on_report);
    Py_XDECREF(context->calls.on_updates);
    Py_XDECREF(context->calls.on_spans);
    Py_DECREF(context->module_type);
}

static void end(void *argument) {
    struct context *context = argument;
    if (context->thread_state != NULL) {
        PyEval_RestoreThread(context->thread_state);
        release(context);
        PyThreadState_Clear(context->thread_state);
        PyThreadState_DeleteCurrent();
    }
    free(context);
}

int reporter_host_init(struct sp_host *host, ModuleState *state,
                       const struct reporter_calls *calls) {
    struct context *context = calloc(1, sizeof *context);
    if (context == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    context->interpreter = PyInterpreterState_Get();
    context->module = state;
    context->module_type = Py_NewRef((PyObject *)state->span_type);
    context->calls = *calls;
    Py_INCREF(calls->on_report);
    Py_XINCREF(calls->on_updates);
    Py_XINCREF(calls->on_spans);
    host->context = context;
    host->begin = begin;
    host->report = report;
    host->updates = calls->on_updates != NULL ? updates : NULL;
    host->spans = calls->on_spans != NULL ? spans : NULL;
    host->end = end;
    return 0;
}

void reporter_host_discard(struct sp_host *host) {
    release(host->context);
    free(host->context);
}
