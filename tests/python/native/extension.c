/* An extension that uses spanprof.h, for the tests: native_extension. */
#include <Python.h>

#include <pthread.h>
#include <setjmp.h>
#include <spanprof.h>
#include <time.h>

SPANPROF_DEFINE;

static PyObject *import_spanprof(PyObject *module, PyObject *ignored) {
    (void)module, (void)ignored;
    if (spanprof_import() < 0) return NULL;
    Py_RETURN_NONE;
}

static PyObject *is_running(PyObject *module, PyObject *ignored) {
    (void)module, (void)ignored;
    return PyBool_FromLong(spanprof_is_running());
}

/* call(function): inside two spans. */
static PyObject *call(PyObject *module, PyObject *function) {
    (void)module;
    SPANPROF_SPAN("outer");
    SPANPROF_SPAN("inner");
    return PyObject_CallNoArgs(function);
}

static void *without_python(void *parent) {
    const spanprof_parent *under = parent;
    if (under != NULL) {
        SPANPROF_SPAN_UNDER("worker", under);
        SPANPROF_SPAN("step");
    } else {
        SPANPROF_SPAN("worker");
        SPANPROF_SPAN("step");
    }
    return NULL;
}

/* threads(count, under): that many, without the GIL. */
static PyObject *threads(PyObject *module, PyObject *args) {
    (void)module;
    int count, under;
    if (!PyArg_ParseTuple(args, "ip", &count, &under)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    SPANPROF_SPAN("threads");
    spanprof_parent parent = spanprof_current();
    for (int i = 0; i < count; i++) {
        pthread_t thread;
        pthread_create(&thread, NULL, without_python, under ? &parent : NULL);
        pthread_join(thread, NULL);
    }
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *labelled(PyObject *module, PyObject *args) {
    (void)module;
    const char *key, *value;
    if (!PyArg_ParseTuple(args, "ss", &key, &value)) return NULL;
    SPANPROF_SPAN_LABELS("labelled", {key, value}, {"other", "x"});
    Py_RETURN_NONE;
}

/* begin() -> int, end(int), on any thread. */
static PyObject *begin(PyObject *module, PyObject *ignored) {
    (void)module, (void)ignored;
    return PyLong_FromVoidPtr(SPANPROF_BEGIN("pair"));
}

static PyObject *end(PyObject *module, PyObject *span) {
    (void)module;
    spanprof_end(PyLong_AsVoidPtr(span));
    Py_RETURN_NONE;
}

static PyObject *current(PyObject *module, PyObject *ignored) {
    (void)module, (void)ignored;
    return PyLong_FromUnsignedLongLong(spanprof_current().id);
}

static PyObject *track(PyObject *module, PyObject *args) {
    (void)module;
    unsigned long long address;
    Py_ssize_t size;
    if (!PyArg_ParseTuple(args, "Kn", &address, &size)) return NULL;
    SPANPROF_SPAN("arena");
    spanprof_track_alloc((const void *)(uintptr_t)address, (size_t)size);
    Py_RETURN_NONE;
}

static PyObject *untrack(PyObject *module, PyObject *address) {
    (void)module;
    spanprof_track_free(PyLong_AsVoidPtr(address));
    Py_RETURN_NONE;
}

/* A block that is left by longjmp: its span is never ended. */
static PyObject *jump(PyObject *module, PyObject *ignored) {
    (void)module, (void)ignored;
    static jmp_buf out;
    if (setjmp(out) == 0) {
        SPANPROF_SPAN("jumped out of");
        longjmp(out, 1);
    }
    Py_RETURN_NONE;
}

/* attach(): spans on a thread that is attached first, and detached while in a span. */
static void *attached(void *result) {
    *(int *)result = spanprof_thread_attach();
    spanprof_span first = SPANPROF_BEGIN("lent");
    spanprof_thread_detach();
    spanprof_end(first);
    SPANPROF_SPAN("lent again");
    return NULL;
}

static PyObject *attach(PyObject *module, PyObject *ignored) {
    (void)module, (void)ignored;
    int result = -1;
    pthread_t thread;
    pthread_create(&thread, NULL, attached, &result);
    Py_BEGIN_ALLOW_THREADS
    pthread_join(thread, NULL);
    Py_END_ALLOW_THREADS
    return PyLong_FromLong(result);
}

/* many(count) -> seconds for a span, in a row. */
static PyObject *many(PyObject *module, PyObject *count) {
    (void)module;
    struct timespec before, after;
    long n = PyLong_AsLong(count);
    clock_gettime(CLOCK_MONOTONIC, &before);
    for (long i = 0; i < n; i++) {
        SPANPROF_SPAN("one");
        __asm__ volatile("" ::: "memory");
    }
    clock_gettime(CLOCK_MONOTONIC, &after);
    return PyFloat_FromDouble((double)(after.tv_sec - before.tv_sec) / (double)n +
                              (double)(after.tv_nsec - before.tv_nsec) / 1e9 /
                                  (double)n);
}

static PyMethodDef functions[] = {
    {"import_spanprof", import_spanprof, METH_NOARGS, NULL},
    {"is_running", is_running, METH_NOARGS, NULL},
    {"call", call, METH_O, NULL},
    {"threads", threads, METH_VARARGS, NULL},
    {"labelled", labelled, METH_VARARGS, NULL},
    {"begin", begin, METH_NOARGS, NULL},
    {"end", end, METH_O, NULL},
    {"current", current, METH_NOARGS, NULL},
    {"track", track, METH_VARARGS, NULL},
    {"untrack", untrack, METH_O, NULL},
    {"jump", jump, METH_NOARGS, NULL},
    {"attach", attach, METH_NOARGS, NULL},
    {"many", many, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT,
                                        .m_name = "native_extension",
                                        .m_methods = functions, .m_slots = slots};

PyMODINIT_FUNC PyInit_native_extension(void) {
    return PyModuleDef_Init(&definition);
}
