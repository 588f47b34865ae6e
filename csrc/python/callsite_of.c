#include "callsite_of.h"

#include "numpy_handler.h"
#include "suspension.h"
#include "text.h"

/* --- when a code object dies ------------------------------------------------ */

/* The caches know code objects by address. A weak reference tells before the
 * address can belong to another one. `self` is (dict of references, address). */
static PyObject *code_died(PyObject *self, PyObject *reference) {
    (void)reference;
    atomic_fetch_add_explicit(&sp_site_epoch, 1, memory_order_release);
    if (PyDict_DelItem(PyTuple_GET_ITEM(self, 0), PyTuple_GET_ITEM(self, 1)) < 0)
        PyErr_Clear();
    Py_RETURN_NONE;
}

static PyMethodDef code_died_method = {"code_died", code_died, METH_O, NULL};

/* False if the code object's death would go unnoticed. */
bool callsite_watch(PyObject *references, PyCodeObject *code) {
    PyObject *address = PyLong_FromVoidPtr(code);
    PyObject *bound = NULL, *callback = NULL, *reference = NULL;
    int known = address == NULL ? -1 : PyDict_Contains(references, address);
    if (known == 0) {
        bound = PyTuple_Pack(2, references, address);
        if (bound != NULL) callback = PyCFunction_New(&code_died_method, bound);
        if (callback != NULL) reference = PyWeakref_NewRef((PyObject *)code, callback);
        if (reference != NULL && PyDict_SetItem(references, address, reference) == 0)
            known = 1;
    }
    Py_XDECREF(address);
    Py_XDECREF(bound);
    Py_XDECREF(callback);
    Py_XDECREF(reference);
    if (known <= 0) PyErr_Clear();
    return known > 0;
}

/* A constant of the code object lives as long as it does. */
static bool is_constant_of(PyCodeObject *code, PyObject *name) {
    PyObject *constants = code->co_consts;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(constants); i++)
        if (PyTuple_GET_ITEM(constants, i) == name) return true;
    return false;
}

/* --- interning ---------------------------------------------------------------- */

static uint32_t intern(PyObject *name, PyObject *target, PyObject *file, int line,
                       uint32_t offset) {
    PyObject *owners[3] = {NULL, NULL, NULL};
    struct sp_text nothing = {"", 0};
    struct sp_text names = text_view(name, &owners[0]);
    struct sp_text targets = target != NULL && PyUnicode_Check(target)
                                 ? text_view(target, &owners[1])
                                 : nothing;
    struct sp_text files =
        file != NULL && PyUnicode_Check(file) ? text_view(file, &owners[2]) : nothing;
    uint32_t callsite = sp_callsite_intern(names, targets, files,
                                           line > 0 ? (uint32_t)line : 0, offset);
    for (int i = 0; i < 3; i++) Py_XDECREF(owners[i]);
    return callsite;
}

/* Borrowed, NULL if there is none; leaves no exception. */
static PyObject *name_in(PyObject *globals) {
    PyObject *name = globals != NULL && PyDict_Check(globals)
                         ? PyDict_GetItemString(globals, "__name__")
                         : NULL;
    return name;
}

static bool is_contextlib(PyObject *target) {
    return target != NULL && PyUnicode_Check(target) &&
           PyUnicode_CompareWithASCIIString(target, "contextlib") == 0;
}

/* ExitStack and its like enter spans for others: look for whom. */
static uint32_t callsite_beyond_contextlib(PyObject *name) {
    PyFrameObject *frame = PyEval_GetFrame();
    Py_XINCREF(frame);
    uint32_t callsite = SP_CALLSITE_OTHER;
    while (frame != NULL) {
        PyObject *globals = PyFrame_GetGlobals(frame);
        PyObject *target = name_in(globals);
        PyFrameObject *back = PyFrame_GetBack(frame);
        if (!is_contextlib(target) || back == NULL) {
            PyCodeObject *code = PyFrame_GetCode(frame);
            callsite =
                intern(name, target, code->co_filename, PyFrame_GetLineNumber(frame),
                       (uint32_t)PyFrame_GetLasti(frame));
            Py_DECREF(code);
            Py_CLEAR(back);
        }
        Py_XDECREF(globals);
        Py_DECREF(frame);
        frame = back;
    }
    return callsite;
}

static bool names_callsite(PyObject *name, uint32_t callsite) {
    PyObject *owner;
    struct sp_text text = text_view(name, &owner);
    const struct sp_string *known = sp_callsite_get(callsite)->name;
    bool same = known->length == text.length &&
                memcmp(known->bytes, text.bytes, text.length) == 0;
    Py_XDECREF(owner);
    return same;
}

/* Where the cache keeps a name that was computed: its address says nothing, its
 * content does. Odd, as no instruction's address is. */
static const void *place_by_content(const void *place, PyObject *name) {
    uintptr_t hash = (uintptr_t)PyObject_Hash(name);
    return (const void *)(((uintptr_t)place ^ hash << 1) | 1);
}

static uint32_t look_up(ModuleState *state, struct sp_thread *thread, const void *place,
                        PyCodeObject *code, int offset, PyObject *name) {
    if (code == NULL) return intern(name, NULL, NULL, 0, 0);

    struct sp_site *computed = sp_site_find(thread, place_by_content(place, name));
    if (computed->name == code && computed->place == place &&
        names_callsite(name, computed->callsite))
        return computed->callsite;

    PyObject *target = name_in(PyEval_GetGlobals());
    if (is_contextlib(target)) return callsite_beyond_contextlib(name);
    uint32_t callsite = intern(name, target, code->co_filename,
                               PyCode_Addr2Line(code, offset), (uint32_t)offset);
    if (callsite == SP_CALLSITE_OTHER || !callsite_watch(state->code_refs, code))
        return callsite;
    if (is_constant_of(code, name))
        *sp_site_find(thread, place) = (struct sp_site){place, name, NULL, callsite};
    else /* a code object is no name: the fast path passes it by */
        *computed = (struct sp_site){place, code, NULL, callsite};
    return callsite;
}

SP_COLD uint32_t callsite_of_caller_slow(ModuleState *state, struct sp_thread *thread,
                                         const void *place, PyObject *name) {
    /* What is allocated here is the profiler's, and the program's exception, if
     * one is pending, stays as it is. */
    struct sp_thread *paused = sp_thread_pause();
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    int offset = 0;
    PyCodeObject *code = compat_caller(&offset);
    uint32_t callsite = look_up(state, thread, place, code, offset, name);
    suspension_watch_caller(state);
    Py_XDECREF(code);
    numpy_handler_look();
    PyErr_Restore(type, value, traceback);
    sp_thread_resume(paused);
    return callsite;
}

uint32_t callsite_of_function(PyObject *function, PyObject *name) {
    PyObject *target = PyObject_GetAttrString(function, "__module__");
    if (target == NULL) PyErr_Clear();
    PyObject *code = PyObject_GetAttrString(function, "__code__");
    if (code == NULL) PyErr_Clear();
    uint32_t callsite;
    if (code != NULL && PyCode_Check(code)) {
        PyCodeObject *c = (PyCodeObject *)code;
        callsite = intern(name, target, c->co_filename, c->co_firstlineno, 0);
    } else {
        callsite = intern(name, target, NULL, 0, 0);
    }
    Py_XDECREF(target);
    Py_XDECREF(code);
    return callsite;
}
