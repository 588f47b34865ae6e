#include "inherited.h"

#include "span_object.h"

#include "../core/callsite.h"
#include "../core/thread.h"

#include <stddef.h>

_Atomic uint32_t inherited_count;

/* --- the object --------------------------------------------------------------- */

static int inherited_traverse(PyObject *object, visitproc visit, void *arg) {
    InheritedObject *self = (InheritedObject *)object;
    Py_VISIT(Py_TYPE(self));
    Py_VISIT((PyObject *)self->outer);
    Py_VISIT(self->block);
    Py_VISIT(self->own);
    Py_VISIT(self->labels);
    return 0;
}

static int inherited_clear(PyObject *object) {
    InheritedObject *self = (InheritedObject *)object;
    Py_CLEAR(self->outer);
    Py_CLEAR(self->block);
    Py_CLEAR(self->own);
    Py_CLEAR(self->labels);
    return 0;
}

static void inherited_dealloc(PyObject *object) {
    PyTypeObject *type = Py_TYPE(object);
    PyObject_GC_UnTrack(object);
    /* A chain may be longer than the C stack is deep. */
    Py_TRASHCAN_BEGIN(object, inherited_dealloc)
    inherited_clear(object);
    atomic_fetch_sub_explicit(&inherited_count, 1, memory_order_relaxed);
    PyObject_GC_Del(object);
    Py_DECREF(type);
    Py_TRASHCAN_END
}

static PyType_Slot inherited_slots[] = {
    {Py_tp_dealloc, inherited_dealloc},
    {Py_tp_traverse, inherited_traverse},
    {Py_tp_clear, inherited_clear},
    {0, NULL},
};

static PyType_Spec inherited_spec = {
    "spanprof._core._InheritedLabels", sizeof(InheritedObject), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION |
        Py_TPFLAGS_IMMUTABLETYPE,
    inherited_slots};

/* All borrowed; `outer` may be NULL. */
static InheritedObject *inherited_new(ModuleState *state, PyObject *block,
                                      PyObject *own, InheritedObject *outer) {
    InheritedObject *self = PyObject_GC_New(InheritedObject, state->inherited_type);
    if (self == NULL) return NULL;
    atomic_fetch_add_explicit(&inherited_count, 1, memory_order_relaxed);
    self->outer = (InheritedObject *)Py_XNewRef((PyObject *)outer);
    self->block = Py_NewRef(block);
    self->own = Py_NewRef(own);
    self->labels = outer != NULL ? PyDict_Copy(outer->labels) : PyDict_New();
    atomic_init(&self->id_in_generation, 0);
    PyObject_GC_Track(self);
    if (self->labels == NULL || PyDict_Update(self->labels, own) < 0) {
        Py_DECREF(self);
        return NULL;
    }
    return self;
}

/* --- reading -------------------------------------------------------------------- */

InheritedObject *inherited_current(ModuleState *state) {
    PyObject *value = NULL;
    if (PyContextVar_Get(state->inherited_var, NULL, &value) < 0) PyErr_Clear();
    if (value != NULL && Py_IS_TYPE(value, state->inherited_type))
        return (InheritedObject *)value;
    Py_XDECREF(value);
    return NULL;
}

static bool is_known(InheritedObject *self, uint32_t generation, uint32_t *id) {
    uint64_t known =
        atomic_load_explicit(&self->id_in_generation, memory_order_relaxed);
    *id = (uint32_t)known;
    return (uint32_t)(known >> 32) == generation;
}

bool inherited_recorded_quick(ModuleState *state, uint32_t generation, uint32_t *id) {
    *id = SP_LABELS_NONE;
    if (!labels_are_recorded()) return true;
    InheritedObject *self = inherited_current(state);
    bool known = self == NULL || is_known(self, generation, id);
    Py_XDECREF(self); /* its context holds it */
    return known;
}

uint32_t inherited_recorded(ModuleState *state, uint32_t generation) {
    InheritedObject *self = inherited_current(state);
    uint32_t id = SP_LABELS_NONE;
    if (self != NULL && !is_known(self, generation, &id)) {
        id = labels_recorded_of(self->labels, NULL);
        atomic_store_explicit(&self->id_in_generation, (uint64_t)generation << 32 | id,
                              memory_order_relaxed);
    }
    Py_XDECREF(self);
    return id;
}

/* --- blocks ---------------------------------------------------------------------- */

static int set_current(ModuleState *state, InheritedObject *value) {
    PyObject *token = PyContextVar_Set(state->inherited_var,
                                       value != NULL ? (PyObject *)value : Py_None);
    Py_XDECREF(token);
    return token == NULL ? -1 : 0;
}

static PyObject *labels_enter(PyObject *module, PyObject *args) {
    ModuleState *state = state_of_module(module);
    PyObject *block, *own;
    if (!PyArg_ParseTuple(args, "OO!:labels_enter", &block, &PyDict_Type, &own))
        return NULL;
    struct sp_thread *paused = sp_thread_pause();
    InheritedObject *outer = inherited_current(state);
    InheritedObject *self = inherited_new(state, block, own, outer);
    int failed = self == NULL || set_current(state, self) < 0;
    Py_XDECREF(outer);
    Py_XDECREF(self);
    sp_thread_resume(paused);
    if (failed) return NULL;
    Py_RETURN_NONE;
}

/* `chain` without `gone`, which is part of it. A new reference, or NULL: nothing is
 * left, or -1 in *failed. */
static InheritedObject *without(ModuleState *state, InheritedObject *chain,
                                InheritedObject *gone, int *failed) {
    InheritedObject *result = (InheritedObject *)Py_XNewRef((PyObject *)gone->outer);
    /* Those above it are made anew, from the nearest on. There are few. */
    for (InheritedObject *done = gone; done != chain && !*failed;) {
        InheritedObject *above = chain;
        while (above->outer != done) above = above->outer;
        InheritedObject *made = inherited_new(state, above->block, above->own, result);
        *failed = made == NULL ? -1 : 0;
        Py_XDECREF(result);
        result = made;
        done = above;
    }
    return result;
}

/* Does not rely on a token: a generator may be closed in another context than the one
 * in which it entered the block, and there the block is none. */
static PyObject *labels_exit(PyObject *module, PyObject *block) {
    ModuleState *state = state_of_module(module);
    struct sp_thread *paused = sp_thread_pause();
    InheritedObject *chain = inherited_current(state);
    InheritedObject *gone = chain;
    while (gone != NULL && gone->block != block) gone = gone->outer;
    int failed = 0;
    if (gone != NULL) {
        InheritedObject *left = without(state, chain, gone, &failed);
        if (!failed) failed = set_current(state, left);
        Py_XDECREF(left);
    }
    Py_XDECREF(chain);
    sp_thread_resume(paused);
    if (failed) return NULL;
    Py_RETURN_NONE;
}

static PyObject *inherited_labels(PyObject *module, PyObject *Py_UNUSED(ignored)) {
    InheritedObject *self = inherited_current(state_of_module(module));
    PyObject *copy = self != NULL ? PyDict_Copy(self->labels) : PyDict_New();
    Py_XDECREF(self);
    return copy;
}

static PyMethodDef inherited_functions[] = {
    {"labels_enter", labels_enter, METH_VARARGS, NULL},
    {"labels_exit", labels_exit, METH_O, NULL},
    {"inherited_labels", inherited_labels, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

int inherited_init(PyObject *module) {
    ModuleState *state = state_of_module(module);
    state->inherited_type =
        (PyTypeObject *)PyType_FromModuleAndSpec(module, &inherited_spec, NULL);
    state->inherited_var = PyContextVar_New("spanprof_labels", NULL);
    if (state->inherited_type == NULL || state->inherited_var == NULL) return -1;
    return PyModule_AddFunctions(module, inherited_functions);
}
