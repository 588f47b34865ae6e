/* Session calls of spanprof._core: arguments in, the core's answers out. */
#include "alloc_hooks.h"
#include "numpy_handler.h"
#include "profile_object.h"
#include "reporter_host.h"
#include "sampling.h"
#include "span_object.h"
#include "state.h"
#include "suspension.h"

#include "../core/callsite.h"
#include "../core/heap.h"
#include "../core/publish.h"
#include "../core/stats.h"

#include <math.h>
#include <stdlib.h>
#include <unistd.h>

/* Spans that may wait per thread: 12 GB of them. */
#define MOST_PENDING ((uint64_t)1 << 27)
/* Destroyed spans whose blocks are told apart: as many as the shadow map can name. */
#define MOST_CLOSED ((uint64_t)1 << 23)

/* Seconds, or None for no limit, as nanoseconds; -2 with an exception. */
static int64_t timeout_of(PyObject *arg) {
    if (arg == Py_None) return -1;
    double seconds = PyFloat_AsDouble(arg);
    if (seconds == -1.0 && PyErr_Occurred()) return -2;
    if (isnan(seconds) || seconds < 0) {
        PyErr_SetString(PyExc_ValueError, "timeout must not be negative");
        return -2;
    }
    return seconds < 9e9 ? (int64_t)(seconds * 1e9) : INT64_MAX;
}

/* NULL with an exception. */
static const struct recorded_labels *recorded_labels_of(PyObject *names,
                                                        uint32_t max_values) {
    Py_ssize_t count = PyTuple_GET_SIZE(names);
    const char **texts = calloc((size_t)count + 1, sizeof *texts);
    if (texts == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    bool readable = true;
    for (Py_ssize_t i = 0; i < count && readable; i++) {
        texts[i] = PyUnicode_AsUTF8(PyTuple_GET_ITEM(names, i));
        readable = texts[i] != NULL;
    }
    const struct recorded_labels *labels =
        readable ? labels_intern_recorded(texts, (size_t)count, max_values) : NULL;
    if (readable && labels == NULL) PyErr_NoMemory();
    free(texts);
    return labels;
}

/* Starts come one after another, also those of interpreters that share no lock: 0, or
 * the process that is in the middle of one. A child that was forked then is not. */
static _Atomic pid_t starting;

static bool begin_start(void) {
    pid_t other = atomic_load(&starting), self = getpid();
    return other != self && atomic_compare_exchange_strong(&starting, &other, self);
}
static void end_start(void) {
    atomic_store(&starting, 0);
}

static PyObject *session_start(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"track_wall",
                            "track_cpu",
                            "track_allocations",
                            "track_heap",
                            "heap_sample_bytes",
                            "record_labels",
                            "max_nodes",
                            "max_label_values",
                            "report_interval",
                            "heap_snapshot_interval",
                            "on_report",
                            "on_updates",
                            "on_spans",
                            "max_pending_spans",
                            "max_closed_heap_spans",
                            "heap_by_span",
                            "want_profile",
                            "goes_on",
                            "sampler",
                            "publish_thread_context",
                            NULL};
    int wall, cpu, allocations, heap, by_span, want_profile, goes_on, publish;
    PyObject *labels, *on_report, *on_updates, *on_spans, *sampler;
    unsigned long long max_nodes, max_label_values, sample_bytes, max_pending,
        max_closed;
    double interval, heap_interval;
    if (!PyArg_ParseTupleAndKeywords(
            args, kwargs, "$ppppKO!KKddOOOKKpppOp:session_start", names, &wall, &cpu,
            &allocations, &heap, &sample_bytes, &PyTuple_Type, &labels, &max_nodes,
            &max_label_values, &interval, &heap_interval, &on_report, &on_updates,
            &on_spans, &max_pending, &max_closed, &by_span, &want_profile, &goes_on,
            &sampler, &publish))
        return NULL;
    if (!goes_on && sp_session_running() != 0) {
        PyErr_SetString(PyExc_RuntimeError, "a session is already running");
        return NULL;
    }
    const struct reporter_calls calls = {
        on_report != Py_None ? on_report : NULL,
        on_updates != Py_None ? on_updates : NULL,
        on_spans != Py_None ? on_spans : NULL,
    };
    bool reports = calls.on_report != NULL;
    bool has_feed = reports && (calls.on_updates != NULL || calls.on_spans != NULL);
    struct sp_session_config config = {
        .track_wall = wall,
        .track_cpu = cpu,
        .track_allocations = allocations || heap,
        .track_heap = heap,
        .heap_sample_bytes = sample_bytes,
        .heap_interval = heap_interval > 0 ? (uint64_t)(heap_interval * 1e9) : 0,
        .max_nodes = (uint32_t)(max_nodes < 100000000 ? max_nodes : 100000000),
        .max_label_values =
            (uint32_t)(max_label_values < UINT32_MAX ? max_label_values : UINT32_MAX),
        .heap_by_span = heap && by_span,
        .max_closed_heap_spans =
            (uint32_t)(max_closed < MOST_CLOSED ? max_closed : MOST_CLOSED),
        .max_pending_spans =
            has_feed ? (max_pending < MOST_PENDING ? max_pending : MOST_PENDING) : 0,
        .publish_thread_context = publish,
    };
    const struct recorded_labels *recorded =
        recorded_labels_of(labels, config.max_label_values);
    if (recorded == NULL) return NULL;
    if (sampling_configure(&config.sampler, sampler) < 0) return NULL;

    struct sp_host host = {.want_profile = want_profile,
                           .interval = interval > 0 ? (uint64_t)(interval * 1e9) : 0};
    if (reports && reporter_host_init(&host, state_of_module(module), &calls) < 0)
        return NULL;
    bool may_start = begin_start();
    if (may_start && !goes_on && sp_session_running() != 0) {
        end_start();
        may_start = false;
    }
    if (!may_start) {
        if (reports) reporter_host_discard(&host);
        PyErr_SetString(PyExc_RuntimeError, "a session is already running");
        return NULL;
    }
    if (config.track_allocations) alloc_hooks_install();
    /* Before a span can see the session: what it makes of its labels is kept. */
    labels_publish(recorded);
    sampling_publish(state_of_module(module),
                     config.sampler.kind == SP_SAMPLER_ASK ? sampler : NULL);
    enum sp_start_status status;
    /* It waits for the reporter thread to make its thread state, for a fraction of a
     * millisecond. With the GIL: see begin() in reporter_host.c. Without one, the first
     * thread state beside the main thread's stops all that are attached. */
#ifdef Py_GIL_DISABLED
    Py_BEGIN_ALLOW_THREADS
#endif
    status = goes_on ? sp_go_on_in_child(&config, reports ? &host : NULL)
                     : sp_start(&config, reports ? &host : NULL);
#ifdef Py_GIL_DISABLED
    Py_END_ALLOW_THREADS
#endif
    end_start();
    if (status == SP_STARTED) {
        numpy_handler_want(config.track_allocations);
        Py_RETURN_NONE;
    }
    if (reports) reporter_host_discard(&host);
    sampling_publish(state_of_module(module), NULL);
    PyErr_SetString(PyExc_RuntimeError, status != SP_START_RUNNING
                                            ? "cannot start the reporter thread"
                                        : goes_on ? "the session is over"
                                                  : "a session is already running");
    return NULL;
}

static PyObject *session_stop(PyObject *module, PyObject *arg) {
    int64_t timeout = timeout_of(arg);
    if (timeout == -2) return NULL;
    if (sp_session_running() == 0) Py_RETURN_NONE;
    struct sp_profile *final;
    bool ended;
    /* While the stop waits for the reporters, another session may begin. */
    PyObject *sampler = sampling_function(state_of_module(module));
    Py_BEGIN_ALLOW_THREADS
    ended = sp_stop(timeout, &final);
    Py_END_ALLOW_THREADS
    sampling_withdraw(state_of_module(module), final != NULL ? sampler : NULL);
    if (final == NULL) { /* somebody else stopped it meanwhile */
        Py_XDECREF(sampler);
        Py_RETURN_NONE;
    }
    suspension_release(state_of_module(module));
    PyObject *profile = profile_object_new(state_of_module(module), final);
    if (profile == NULL) return NULL;
    PyObject *result = PyTuple_Pack(2, profile, ended ? Py_True : Py_False);
    Py_DECREF(profile);
    return result;
}

static PyObject *session_flush(PyObject *module, PyObject *arg) {
    (void)module;
    int64_t timeout = timeout_of(arg);
    if (timeout == -2) return NULL;
    bool done;
    Py_BEGIN_ALLOW_THREADS
    done = sp_flush(timeout);
    Py_END_ALLOW_THREADS
    return PyBool_FromLong(done);
}

static PyObject *session_snapshot(PyObject *module, PyObject *Py_UNUSED(ignored)) {
    struct sp_profile *profile = NULL;
    uint64_t failed = sp_load(&sp_stats.out_of_memory);
    numpy_handler_look();
    Py_BEGIN_ALLOW_THREADS
    profile = sp_snapshot();
    Py_END_ALLOW_THREADS
    /* No session, rather than no memory? */
    if (profile == NULL && sp_load(&sp_stats.out_of_memory) == failed) Py_RETURN_NONE;
    return profile_object_new(state_of_module(module), profile);
}

/* What the profiler does for itself on a thread of the program. */
static PyObject *uncharged(PyObject *module, PyObject *function) {
    (void)module;
    struct sp_thread *charged = sp_thread_pause();
    PyObject *result = PyObject_CallNoArgs(function);
    sp_thread_resume(charged);
    return result;
}

static PyObject *session_is_running(PyObject *module, PyObject *Py_UNUSED(ignored)) {
    (void)module;
    return PyBool_FromLong(sp_session_running() != 0);
}

static PyObject *session_trace_id(PyObject *module, PyObject *Py_UNUSED(ignored)) {
    (void)module;
    unsigned char trace_id[16];
    if (!sp_publish_trace_id(trace_id)) Py_RETURN_NONE;
    return PyBytes_FromStringAndSize((const char *)trace_id, sizeof trace_id);
}

/* --- stats -------------------------------------------------------------------------
 */

static int add_number(PyObject *dict, const char *name, uint64_t value) {
    PyObject *number = PyLong_FromUnsignedLongLong(value);
    int result = number == NULL ? -1 : PyDict_SetItemString(dict, name, number);
    Py_XDECREF(number);
    return result;
}

static int add_text(PyObject *dict, const char *name, const char *value) {
    PyObject *text = PyUnicode_FromString(value);
    int result = text == NULL ? -1 : PyDict_SetItemString(dict, name, text);
    Py_XDECREF(text);
    return result;
}

static int fill_stats(PyObject *dict) {
    static const char *const wall[] = {"clock_gettime", "tick counter", "injected"};
    static const char *const cpu[] = {"clock_gettime", "rseq", "injected"};
    uint64_t states = 0;
    for (const struct sp_thread *t = sp_thread_list(); t != NULL; t = t->next) states++;
    if (PyDict_SetItemString(dict, "is_running",
                             sp_session_running() != 0 ? Py_True : Py_False) < 0 ||
        add_text(dict, "wall_clock", wall[sp_clock_wall_kind()]) < 0 ||
        add_text(dict, "cpu_clock", cpu[sp_clock_cpu_kind()]) < 0 ||
        add_number(dict, "nodes", sp_paths_count() - 1) < 0 ||
        add_number(dict, "callsites", sp_callsite_count()) < 0 ||
        add_number(dict, "label_sets", sp_labels_count()) < 0 ||
        add_number(dict, "thread_states", states) < 0 ||
        add_number(dict, "spans_sampled_out", sp_threads_sampled_out()) < 0 ||
        add_number(dict, "numpy_handlers",
                   atomic_load_explicit(&numpy_handler_count, memory_order_relaxed)) <
            0 ||
        add_number(dict, "heap_map_mapped_bytes", sp_shadow_mapped()) < 0 ||
        add_number(dict, "heap_map_resident_bytes", sp_shadow_resident()) < 0)
        return -1;
#define X(field) \
    if (add_number(dict, #field, sp_load(&sp_stats.field)) < 0) return -1;
    SP_STATS(X)
#undef X
    return 0;
}

static PyObject *stats(PyObject *module, PyObject *Py_UNUSED(ignored)) {
    (void)module;
    PyObject *dict = PyDict_New();
    if (dict != NULL && fill_stats(dict) < 0) Py_CLEAR(dict);
    return dict;
}

static PyObject *hooks_lost(PyObject *module, PyObject *Py_UNUSED(ignored)) {
    (void)module;
    return PyBool_FromLong(alloc_hooks_lost());
}

/* --- test seam: both clocks set by hand
 * ------------------------------------------------ */

static sp_counter manual_wall_ns, manual_cpu_ns;
static bool manual;

static uint64_t manual_wall(void *key) {
    (void)key;
    return sp_load(&manual_wall_ns);
}
static uint64_t manual_cpu(void *key) {
    (void)key;
    return sp_load(&manual_cpu_ns);
}
static uint64_t manual_system(void *key) {
    (void)key;
    return 0;
}

static PyObject *set_manual_clock(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *wall, *cpu;
    if (!PyArg_ParseTuple(args, "OO:set_manual_clock", &wall, &cpu)) return NULL;
    bool wanted = wall != Py_None;
    if (wanted != manual && sp_session_running() != 0) {
        PyErr_SetString(PyExc_RuntimeError, "a session is running");
        return NULL;
    }
    if (wanted) {
        unsigned long long wall_ns = PyLong_AsUnsignedLongLong(wall);
        unsigned long long cpu_ns = PyLong_AsUnsignedLongLong(cpu);
        if (PyErr_Occurred()) return NULL;
        sp_store(&manual_wall_ns, wall_ns);
        sp_store(&manual_cpu_ns, cpu_ns);
    }
    if (wanted != manual) {
        static const struct sp_clock_source source = {manual_wall, manual_cpu,
                                                      manual_system};
        sp_clock_inject(wanted ? &source : NULL);
        manual = wanted;
    }
    Py_RETURN_NONE;
}

static PyMethodDef session_functions[] = {
    {"session_start", (PyCFunction)(void (*)(void))session_start,
     METH_VARARGS | METH_KEYWORDS, NULL},
    {"session_stop", session_stop, METH_O, NULL},
    {"session_flush", session_flush, METH_O, NULL},
    {"session_snapshot", session_snapshot, METH_NOARGS, NULL},
    {"session_is_running", session_is_running, METH_NOARGS, NULL},
    {"session_trace_id", session_trace_id, METH_NOARGS, NULL},
    {"uncharged", uncharged, METH_O, NULL},
    {"stats", stats, METH_NOARGS, NULL},
    {"hooks_lost", hooks_lost, METH_NOARGS, NULL},
    {"set_manual_clock", set_manual_clock, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

int session_init(PyObject *module) {
    return PyModule_AddFunctions(module, session_functions);
}
