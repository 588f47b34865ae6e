/*
 * Context managers that do nothing: what a `with` statement costs before anyone
 * measures anything.
 *
 * `ordinary` has __enter__ and __exit__ as methods. `direct` has one descriptor
 * under both names that returns the object itself, so that no bound method is
 * made (docs/internals/with-statement.md). Both are created anew by each `with`,
 * as a span is, from a free list of one.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stddef.h>

typedef struct {
    PyObject_HEAD
    vectorcallfunc vectorcall;
} NoopObject;

static PyObject *noop_call(PyObject *self, PyObject *const *args, size_t nargsf,
                           PyObject *kwnames) {
    (void)args;
    (void)kwnames;
    if (PyVectorcall_NARGS(nargsf) == 0) {
        return Py_NewRef(self);
    }
    Py_RETURN_NONE;
}

static PyObject *noop_enter(PyObject *self, PyObject *unused) {
    (void)unused;
    return Py_NewRef(self);
}

static PyObject *noop_exit(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    (void)self;
    (void)args;
    (void)nargs;
    Py_RETURN_NONE;
}

static PyObject *noop_new(PyTypeObject *type, PyObject **spare) {
#ifndef Py_GIL_DISABLED
    if (*spare != NULL) {
        PyObject *self = *spare;
        *spare = NULL;
        _Py_NewReference(self);
        return self;
    }
#endif
    NoopObject *self = PyObject_New(NoopObject, type);
    if (self != NULL) {
        self->vectorcall = noop_call;
    }
    return (PyObject *)self;
}

static void noop_free(PyObject *self, PyObject **spare) {
#ifndef Py_GIL_DISABLED
    if (*spare == NULL) {
        *spare = self;
        return;
    }
#endif
    PyObject_Free(self);
}

static PyObject *ordinary_spare, *direct_spare;
static PyTypeObject Ordinary_Type, Direct_Type;

static PyObject *ordinary_vectorcall(PyObject *type, PyObject *const *args,
                                     size_t nargsf, PyObject *kwnames) {
    (void)type;
    (void)args;
    (void)nargsf;
    (void)kwnames;
    return noop_new(&Ordinary_Type, &ordinary_spare);
}

static PyObject *direct_vectorcall(PyObject *type, PyObject *const *args, size_t nargsf,
                                   PyObject *kwnames) {
    (void)type;
    (void)args;
    (void)nargsf;
    (void)kwnames;
    return noop_new(&Direct_Type, &direct_spare);
}

static void ordinary_dealloc(PyObject *self) {
    noop_free(self, &ordinary_spare);
}

static void direct_dealloc(PyObject *self) {
    noop_free(self, &direct_spare);
}

static PyMethodDef ordinary_methods[] = {
    {"__enter__", noop_enter, METH_NOARGS, NULL},
    {"__exit__", (PyCFunction)(void (*)(void))noop_exit, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject Ordinary_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "floor.ordinary",
    .tp_basicsize = sizeof(NoopObject),
    .tp_dealloc = ordinary_dealloc,
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_methods = ordinary_methods,
    .tp_vectorcall = ordinary_vectorcall,
};

static PyTypeObject Direct_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "floor.direct",
    .tp_basicsize = sizeof(NoopObject),
    .tp_dealloc = direct_dealloc,
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_VECTORCALL,
    .tp_vectorcall_offset = offsetof(NoopObject, vectorcall),
    .tp_call = PyVectorcall_Call,
    .tp_vectorcall = direct_vectorcall,
};

static PyObject *self_get(PyObject *descriptor, PyObject *object, PyObject *type) {
    (void)type;
    return Py_NewRef(object != NULL ? object : descriptor);
}

static PyTypeObject Self_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "floor.self",
    .tp_basicsize = sizeof(PyObject),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_descr_get = self_get,
};

static struct PyModuleDef floor_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "floor",
    .m_size = -1,
};

PyMODINIT_FUNC PyInit_floor(void) {
    PyObject *self_descriptor = NULL;
    PyObject *module = NULL;

    if (PyType_Ready(&Self_Type) < 0 || PyType_Ready(&Ordinary_Type) < 0 ||
        PyType_Ready(&Direct_Type) < 0) {
        goto error;
    }
    self_descriptor = (PyObject *)PyObject_New(PyObject, &Self_Type);
    if (self_descriptor == NULL ||
        PyDict_SetItemString(Direct_Type.tp_dict, "__enter__", self_descriptor) < 0 ||
        PyDict_SetItemString(Direct_Type.tp_dict, "__exit__", self_descriptor) < 0) {
        goto error;
    }
    PyType_Modified(&Direct_Type);
    module = PyModule_Create(&floor_module);
    if (module == NULL ||
        PyModule_AddObjectRef(module, "ordinary", (PyObject *)&Ordinary_Type) < 0 ||
        PyModule_AddObjectRef(module, "direct", (PyObject *)&Direct_Type) < 0) {
        goto error;
    }
#ifdef Py_GIL_DISABLED
    PyUnstable_Module_SetGIL(module, Py_MOD_GIL_NOT_USED);
#endif
    Py_DECREF(self_descriptor);
    return module;

error:
    Py_XDECREF(self_descriptor);
    Py_XDECREF(module);
    return NULL;
}
