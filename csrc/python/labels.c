/* Which labels a session records: C strings, since the session belongs to the
 * process and not to the interpreter that started it. */
#include "span_object.h"

#include "text.h"

#include <stdlib.h>
#include <string.h>

#define MOST_RECORDED 64u

/* Written while no session runs. */
static char **recorded;
static size_t recorded_count;
static uint32_t recorded_max_values;

bool labels_are_recorded(void) {
    return recorded_count > 0;
}

int labels_set_recorded(const char *const *names, size_t count, uint32_t max_values) {
    if (count > MOST_RECORDED) count = MOST_RECORDED;
    char **copies = calloc(count + 1, sizeof *copies);
    if (copies == NULL) return -1;
    for (size_t i = 0; i < count; i++) {
        copies[i] = strdup(names[i]);
        if (copies[i] == NULL) count = i;
    }
    for (size_t i = 0; i < recorded_count; i++) free(recorded[i]);
    free(recorded);
    recorded = copies;
    recorded_count = count;
    recorded_max_values = max_values;
    return 0;
}

/* str(value), or its type's name if that raises. New reference, or NULL. */
static PyObject *value_text(PyObject *value) {
    if (PyUnicode_CheckExact(value)) return Py_NewRef(value);
    PyObject *text = PyObject_Str(value);
    if (text == NULL) {
        /* Ctrl-C is not the label's: it comes again as soon as we are out of here. */
        bool interrupted = PyErr_ExceptionMatches(PyExc_KeyboardInterrupt);
        PyErr_Clear();
        if (interrupted) PyErr_SetInterrupt();
        text = PyUnicode_FromFormat("<%s>", Py_TYPE(value)->tp_name);
        if (text == NULL) PyErr_Clear();
    }
    return text;
}

uint32_t labels_recorded_of(PyObject *labels) {
    struct sp_text keys[MOST_RECORDED], values[MOST_RECORDED];
    PyObject *texts[MOST_RECORDED], *owners[MOST_RECORDED];
    uint32_t count = 0;
    for (size_t i = 0; i < recorded_count; i++) {
        PyObject *value = PyDict_GetItemString(labels, recorded[i]);
        if (value == NULL) continue;
        texts[count] = value_text(value);
        if (texts[count] == NULL) continue;
        keys[count] = (struct sp_text){recorded[i], strlen(recorded[i])};
        values[count] = text_view(texts[count], &owners[count]);
        count++;
    }
    if (count == 0) return SP_LABELS_NONE;
    uint32_t id = sp_labels_intern(keys, values, count, recorded_max_values);
    for (uint32_t i = 0; i < count; i++) {
        Py_XDECREF(owners[i]);
        Py_DECREF(texts[i]);
    }
    return id;
}
