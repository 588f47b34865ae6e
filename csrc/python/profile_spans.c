#include "profile_spans.h"

#include "profile_object.h"
#include "text.h"

#include "../core/profile.h"

#include <stdlib.h>

/* Of values that were recorded already: the number of that set of labels. -1 with an
 * exception. */
static int64_t labels_number(PyObject *pairs) {
    Py_ssize_t count = PyTuple_GET_SIZE(pairs);
    if (count == 0) return SP_LABELS_NONE;
    struct sp_text *texts = calloc(2 * (size_t)count, sizeof *texts);
    PyObject **owners = calloc(2 * (size_t)count, sizeof *owners);
    int64_t number = -1;
    bool readable = texts != NULL && owners != NULL;
    if (!readable) PyErr_NoMemory();
    for (Py_ssize_t i = 0; readable && i < count; i++) {
        PyObject *key, *value;
        readable = PyArg_ParseTuple(PyTuple_GET_ITEM(pairs, i), "UU", &key, &value);
        if (!readable) break;
        texts[i] = text_view(key, &owners[i]);
        texts[count + i] = text_view(value, &owners[count + i]);
    }
    if (readable)
        number = sp_labels_intern(texts, texts + count, (uint32_t)count, UINT32_MAX);
    for (Py_ssize_t i = 0; owners != NULL && i < 2 * count; i++) Py_XDECREF(owners[i]);
    free(owners);
    free(texts);
    return number;
}

static bool read_row(PyObject *row, uint32_t number, struct sp_profile *profile) {
    struct sp_node *node = &profile->nodes[number];
    unsigned long long id;
    PyObject *labels, *values;
    if (!PyArg_ParseTuple(row, "KiIO!O!", &id, &node->parent, &node->callsite,
                          &PyTuple_Type, &labels, &PyTuple_Type, &values))
        return false;
    if (node->parent < -1 || node->parent >= (int64_t)number ||
        node->callsite > sp_callsite_count() ||
        PyTuple_GET_SIZE(values) != SP_METRIC_COUNT) {
        PyErr_SetString(PyExc_ValueError, "no such parent, callsite or metric");
        return false;
    }
    int64_t set = labels_number(labels);
    if (set < 0) return false;
    node->labels = (uint32_t)set;
    profile->span_ids[number] = id;
    for (int i = 0; i < SP_METRIC_COUNT; i++) {
        node->value[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(values, i));
        if (node->value[i] == -1 && PyErr_Occurred()) return false;
    }
    return true;
}

PyObject *profile_of_spans(PyObject *module, PyObject *args) {
    PyObject *like, *rows;
    ModuleState *state = state_of_module(module);
    if (!PyArg_ParseTuple(args, "O!O!:profile_of_spans", state->profile_type, &like,
                          &PyList_Type, &rows))
        return NULL;
    const struct sp_profile *times = profile_object_get(like);
    Py_ssize_t count = PyList_GET_SIZE(rows);
    struct sp_profile *profile = sp_profile_new((uint32_t)count);
    if (profile == NULL || !sp_profile_add_span_ids(profile)) {
        sp_profile_free(profile);
        return PyErr_NoMemory();
    }
    profile->start_unix = times->start_unix;
    profile->duration = times->duration;
    profile->kinds = times->kinds;
    for (Py_ssize_t i = 0; i < count; i++)
        if (!read_row(PyList_GET_ITEM(rows, i), (uint32_t)i, profile)) {
            sp_profile_free(profile);
            return NULL;
        }
    return profile_object_new(state, profile);
}
