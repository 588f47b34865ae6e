#include "ready.h"

#include "../core/thread.h"

typedef struct {
    PyObject_HEAD
    PyObject *result;
} ReadyObject;

PyObject *ready_new(ModuleState *state, PyObject *result) {
    struct sp_thread *paused = sp_thread_pause();
    ReadyObject *self = PyObject_New(ReadyObject, state->ready_type);
    sp_thread_resume(paused);
    if (self != NULL) self->result = Py_NewRef(result);
    return (PyObject *)self;
}

static void ready_dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    Py_DECREF(((ReadyObject *)self)->result);
    PyObject_Free(self);
    Py_DECREF(type);
}

static PySendResult ready_send(PyObject *self, PyObject *value, PyObject **result) {
    (void)value;
    *result = Py_NewRef(((ReadyObject *)self)->result);
    return PYGEN_RETURN;
}

static PyObject *ready_next(PyObject *self) {
    PyObject *result = ((ReadyObject *)self)->result;
    if (result == Py_None) return NULL; /* the same without an exception */
    struct sp_thread *paused = sp_thread_pause();
    PyObject *stop = PyObject_CallOneArg(PyExc_StopIteration, result);
    if (stop != NULL) {
        PyErr_SetObject(PyExc_StopIteration, stop);
        Py_DECREF(stop);
    }
    sp_thread_resume(paused);
    return NULL;
}

static PyType_Slot ready_slots[] = {
    {Py_tp_dealloc, ready_dealloc}, {Py_tp_iter, PyObject_SelfIter},
    {Py_tp_iternext, ready_next},   {Py_am_await, PyObject_SelfIter},
    {Py_am_send, ready_send},       {0, NULL},
};

static PyType_Spec ready_spec = {
    "spanprof._core._Ready", sizeof(ReadyObject), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    ready_slots};

int ready_init(PyObject *module) {
    ModuleState *state = state_of_module(module);
    state->ready_type =
        (PyTypeObject *)PyType_FromModuleAndSpec(module, &ready_spec, NULL);
    return state->ready_type != NULL ? 0 : -1;
}
