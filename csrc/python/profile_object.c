#include "profile_object.h"

#include "profile_spans.h"
#include "text.h"

#include "../core/callsite.h"
#include "../core/pprof.h"

#include <stdlib.h>

typedef struct {
    PyObject_HEAD
    struct sp_profile *profile; /* never changes, hence read without the GIL */
} ProfileObject;

#define PROFILE(object) (((ProfileObject *)(object))->profile)

PyObject *profile_object_new(ModuleState *state, struct sp_profile *profile) {
    if (profile == NULL) return PyErr_NoMemory();
    ProfileObject *self = PyObject_New(ProfileObject, state->profile_type);
    if (self == NULL)
        sp_profile_free(profile);
    else
        self->profile = profile;
    return (PyObject *)self;
}

const struct sp_profile *profile_object_get(PyObject *object) {
    return PROFILE(object);
}

static void profile_dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    sp_profile_free(PROFILE(self));
    PyObject_Free(self);
    Py_DECREF(type);
}

static Py_ssize_t profile_length(PyObject *self) {
    return (Py_ssize_t)PROFILE(self)->count;
}

static PyObject *get_start_ns(PyObject *self, void *closure) {
    (void)closure;
    return PyLong_FromUnsignedLongLong(PROFILE(self)->start_unix);
}

static PyObject *get_duration_ns(PyObject *self, void *closure) {
    (void)closure;
    return PyLong_FromUnsignedLongLong(PROFILE(self)->duration);
}

static PyObject *get_kinds(PyObject *self, void *closure) {
    (void)closure;
    PyObject *kinds = PyList_New(0);
    for (int kind = 0; kinds != NULL && kind < SP_KIND_COUNT; kind++) {
        if (!(PROFILE(self)->kinds & SP_BIT(kind))) continue;
        PyObject *name = PyUnicode_FromString(sp_kind_names[kind]);
        if (name == NULL || PyList_Append(kinds, name) < 0) Py_CLEAR(kinds);
        Py_XDECREF(name);
    }
    if (kinds == NULL) return NULL;
    PyObject *tuple = PyList_AsTuple(kinds);
    Py_DECREF(kinds);
    return tuple;
}

static PyObject *get_heap_peak(PyObject *self, void *closure) {
    (void)closure;
    return PyLong_FromLongLong(PROFILE(self)->heap_peak);
}

static PyObject *values_tuple(const int64_t *values) {
    PyObject *tuple = PyTuple_New(SP_METRIC_COUNT);
    for (int i = 0; tuple != NULL && i < SP_METRIC_COUNT; i++) {
        PyObject *value = PyLong_FromLongLong(values[i]);
        if (value == NULL)
            Py_CLEAR(tuple);
        else
            PyTuple_SET_ITEM(tuple, i, value);
    }
    return tuple;
}

static PyObject *node_tuple(const struct sp_node *node) {
    PyObject *labels = text_labels(node->labels);
    PyObject *values = values_tuple(node->value);
    PyObject *tuple = NULL;
    if (labels != NULL && values != NULL)
        tuple = Py_BuildValue("(iIOO)", (int)node->parent, (unsigned)node->callsite,
                              labels, values);
    Py_XDECREF(labels);
    Py_XDECREF(values);
    return tuple;
}

static PyObject *profile_nodes(PyObject *self, PyObject *Py_UNUSED(ignored)) {
    const struct sp_profile *profile = PROFILE(self);
    PyObject *list = PyList_New((Py_ssize_t)profile->count);
    for (uint32_t n = 0; list != NULL && n < profile->count; n++) {
        PyObject *node = node_tuple(&profile->nodes[n]);
        if (node == NULL)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, (Py_ssize_t)n, node);
    }
    return list;
}

/* (bytes by class of age, reports in a row that bytes so old and older grew). */
static PyObject *ages_tuple(const struct sp_ages *ages) {
    PyObject *space = PyTuple_New(SP_AGE_CLASSES),
             *growing = PyTuple_New(SP_AGE_CLASSES);
    bool done = space != NULL && growing != NULL;
    for (Py_ssize_t i = 0; done && i < (Py_ssize_t)SP_AGE_CLASSES; i++) {
        PyObject *bytes = PyLong_FromLongLong(ages->space[i]);
        PyObject *reports = PyLong_FromLong(ages->growing[i]);
        done = bytes != NULL && reports != NULL;
        PyTuple_SET_ITEM(space, i, bytes);
        PyTuple_SET_ITEM(growing, i, reports);
    }
    PyObject *pair = done ? PyTuple_Pack(2, space, growing) : NULL;
    Py_XDECREF(space);
    Py_XDECREF(growing);
    return pair;
}

static PyObject *profile_ages(PyObject *self, PyObject *Py_UNUSED(ignored)) {
    const struct sp_profile *profile = PROFILE(self);
    if (profile->ages == NULL) Py_RETURN_NONE;
    PyObject *list = PyList_New((Py_ssize_t)profile->count);
    for (uint32_t n = 0; list != NULL && n < profile->count; n++) {
        PyObject *pair = ages_tuple(&profile->ages[n]);
        if (pair == NULL)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, (Py_ssize_t)n, pair);
    }
    return list;
}

static PyObject *profile_merge(PyObject *self, PyObject *args) {
    ModuleState *state = state_of_type(Py_TYPE(self));
    PyObject *other;
    int sign;
    if (!PyArg_ParseTuple(args, "O!i:merge", state->profile_type, &other, &sign))
        return NULL;
    if (sign != 1 && sign != -1) {
        PyErr_SetString(PyExc_ValueError, "sign must be 1 or -1");
        return NULL;
    }
    struct sp_profile *merged;
    Py_BEGIN_ALLOW_THREADS
    merged = sp_profile_merge(PROFILE(self), PROFILE(other), sign);
    Py_END_ALLOW_THREADS
    return profile_object_new(state, merged);
}

static PyObject *profile_split(PyObject *self, PyObject *arg) {
    ModuleState *state = state_of_type(Py_TYPE(self));
    unsigned long most = PyLong_AsUnsignedLong(arg);
    if (most == (unsigned long)-1 && PyErr_Occurred()) return NULL;
    if (most > UINT32_MAX) most = UINT32_MAX;
    struct sp_profile *first, *rest;
    int failed;
    Py_BEGIN_ALLOW_THREADS
    failed = sp_profile_split(PROFILE(self), (uint32_t)most, &first, &rest);
    Py_END_ALLOW_THREADS
    if (failed) return PyErr_NoMemory();
    PyObject *head = profile_object_new(state, first);
    PyObject *tail =
        rest != NULL ? profile_object_new(state, rest) : Py_NewRef(Py_None);
    PyObject *pair = head != NULL && tail != NULL ? PyTuple_Pack(2, head, tail) : NULL;
    Py_XDECREF(head);
    Py_XDECREF(tail);
    return pair;
}

/* What pprof shows as the binary. New reference or NULL, no exception. */
static PyObject *program_bytes(void) {
    PyObject *executable = PySys_GetObject("executable"); /* borrowed */
    PyObject *bytes = executable != NULL && PyUnicode_Check(executable)
                          ? PyUnicode_EncodeFSDefault(executable)
                          : NULL;
    if (bytes == NULL) PyErr_Clear();
    return bytes;
}

static PyObject *profile_to_pprof(PyObject *self, PyObject *arg) {
    const char *name = PyUnicode_Check(arg) ? PyUnicode_AsUTF8(arg) : NULL;
    if (name == NULL) {
        if (!PyErr_Occurred()) PyErr_SetString(PyExc_TypeError, "kind must be str");
        return NULL;
    }
    int kind = sp_kind_find(name);
    if (kind < 0) {
        PyErr_Format(PyExc_ValueError, "unknown kind %R", arg);
        return NULL;
    }
    PyObject *program = program_bytes();
    unsigned char *data;
    size_t length;
    enum sp_pprof_status status;
    Py_BEGIN_ALLOW_THREADS
    status = sp_pprof_encode(PROFILE(self), (enum sp_kind)kind,
                             program != NULL ? PyBytes_AS_STRING(program) : "python",
                             &data, &length);
    Py_END_ALLOW_THREADS
    Py_XDECREF(program);
    if (status != SP_PPROF_OK) return PyErr_NoMemory();
    PyObject *bytes = PyBytes_FromStringAndSize((const char *)data, (Py_ssize_t)length);
    free(data);
    return bytes;
}

static PyObject *profile_from_pprof(PyObject *type, PyObject *args) {
    Py_buffer buffer;
    if (!PyArg_ParseTuple(args, "y*:from_pprof", &buffer)) return NULL;
    struct sp_profile *profile;
    enum sp_pprof_status status;
    Py_BEGIN_ALLOW_THREADS
    status = sp_pprof_decode(buffer.buf, (size_t)buffer.len, &profile);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&buffer);
    switch (status) {
    case SP_PPROF_OK:
        return profile_object_new(state_of_type((PyTypeObject *)type), profile);
    case SP_PPROF_MALFORMED:
        PyErr_SetString(PyExc_ValueError,
                        "not a gzip-compressed pprof profile, or damaged");
        return NULL;
    case SP_PPROF_FOREIGN:
        PyErr_SetString(PyExc_ValueError,
                        "a pprof profile, but none that spanprof wrote");
        return NULL;
    case SP_PPROF_NO_MEMORY:
        break;
    }
    return PyErr_NoMemory();
}

static PyMethodDef profile_methods[] = {
    {"nodes", profile_nodes, METH_NOARGS, NULL},
    {"ages", profile_ages, METH_NOARGS, NULL},
    {"merge", profile_merge, METH_VARARGS, NULL},
    {"split", profile_split, METH_O, NULL},
    {"to_pprof", profile_to_pprof, METH_O, NULL},
    {"from_pprof", profile_from_pprof, METH_VARARGS | METH_CLASS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef profile_getset[] = {
    {"start_ns", get_start_ns, NULL, NULL, NULL},
    {"duration_ns", get_duration_ns, NULL, NULL, NULL},
    {"kinds", get_kinds, NULL, NULL, NULL},
    {"heap_peak", get_heap_peak, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot profile_slots[] = {
    {Py_tp_dealloc, profile_dealloc},
    {Py_tp_methods, profile_methods},
    {Py_tp_getset, profile_getset},
    {Py_sq_length, profile_length},
    {0, NULL},
};

static PyType_Spec profile_spec = {
    "spanprof._core.ProfileData", sizeof(ProfileObject), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    profile_slots};

static PyObject *callsite(PyObject *module, PyObject *arg) {
    (void)module;
    unsigned long id = PyLong_AsUnsignedLong(arg);
    if (id == (unsigned long)-1 && PyErr_Occurred()) return NULL;
    if (id > sp_callsite_count()) {
        PyErr_SetString(PyExc_IndexError, "no such callsite");
        return NULL;
    }
    const struct sp_callsite *site = sp_callsite_get((uint32_t)id);
    PyObject *name = text_object(site->name);
    PyObject *target = text_object(site->target);
    PyObject *file = text_object(site->file);
    PyObject *result = NULL;
    if (name != NULL && target != NULL && file != NULL)
        result = Py_BuildValue("(OOOI)", name, target, file, (unsigned)site->line);
    Py_XDECREF(name);
    Py_XDECREF(target);
    Py_XDECREF(file);
    return result;
}

static PyObject *series_row(const struct sp_series *series) {
    PyObject *terms = PyList_New(0);
    for (int i = 0; terms != NULL && i < SP_METRIC_COUNT; i++) {
        if (!(series->metrics & SP_BIT(i))) continue;
        PyObject *name = PyUnicode_FromString(sp_metric_names[i]);
        if (name == NULL || PyList_Append(terms, name) < 0) Py_CLEAR(terms);
        Py_XDECREF(name);
    }
    if (terms == NULL) return NULL;
    PyObject *tuple = PyList_AsTuple(terms);
    Py_DECREF(terms);
    if (tuple == NULL) return NULL;
    return Py_BuildValue("(sssN)", series->name, series->unit,
                         sp_kind_names[series->kind], tuple);
}

static PyObject *series_tuple(void) {
    PyObject *tuple = PyTuple_New((Py_ssize_t)sp_series_count);
    for (size_t i = 0; tuple != NULL && i < sp_series_count; i++) {
        PyObject *row = series_row(&sp_series[i]);
        if (row == NULL)
            Py_CLEAR(tuple);
        else
            PyTuple_SET_ITEM(tuple, (Py_ssize_t)i, row);
    }
    return tuple;
}

static PyObject *age_limits_tuple(void) {
    PyObject *tuple = PyTuple_New(SP_AGE_CLASSES);
    for (Py_ssize_t i = 0; tuple != NULL && i < (Py_ssize_t)SP_AGE_CLASSES; i++) {
        PyObject *seconds = PyLong_FromUnsignedLong(sp_age_limits[i]);
        if (seconds == NULL)
            Py_CLEAR(tuple);
        else
            PyTuple_SET_ITEM(tuple, i, seconds);
    }
    return tuple;
}

static PyMethodDef profile_functions[] = {
    {"callsite", callsite, METH_O, NULL},
    {"profile_of_spans", profile_of_spans, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

int profile_object_init(PyObject *module) {
    ModuleState *state = state_of_module(module);
    state->profile_type =
        (PyTypeObject *)PyType_FromModuleAndSpec(module, &profile_spec, NULL);
    if (state->profile_type == NULL) return -1;
    if (PyModule_AddFunctions(module, profile_functions) < 0) return -1;
    PyObject *metrics = text_tuple(sp_metric_names, SP_METRIC_COUNT),
             *series = series_tuple();
    PyObject *limits = age_limits_tuple();
    int failed = metrics == NULL || series == NULL || limits == NULL ||
                 PyModule_AddObjectRef(module, "AGE_LIMITS", limits) < 0 ||
                 PyModule_AddObjectRef(module, "METRICS", metrics) < 0 ||
                 PyModule_AddObjectRef(module, "SERIES", series) < 0 ||
                 PyModule_AddObjectRef(module, "ProfileData",
                                       (PyObject *)state->profile_type) < 0;
    Py_XDECREF(metrics);
    Py_XDECREF(series);
    Py_XDECREF(limits);
    return failed ? -1 : 0;
}
