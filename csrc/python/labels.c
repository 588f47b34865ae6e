/* Which labels a session records: C strings, since the session belongs to the
 * process and not to the interpreter that started it. */
#include "span_object.h"

#include "text.h"

#include "../include/spanprof.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define MOST_RECORDED 64u

struct recorded_labels {
    const struct recorded_labels *next; /* of all sets ever made */
    size_t count;
    uint32_t max_values;
    char *names[];
};

/* A thread may be in the middle of one session's labels while another session starts:
 * sets are never changed nor freed, and one that is asked for again is used again. */
static _Atomic(const struct recorded_labels *) recorded;
static const struct recorded_labels *all_sets;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards all_sets; a leaf */

static bool same_set(const struct recorded_labels *set, const char *const *names,
                     size_t count, uint32_t max_values) {
    if (set->count != count || set->max_values != max_values) return false;
    for (size_t i = 0; i < count; i++)
        if (strcmp(set->names[i], names[i]) != 0) return false;
    return true;
}

static struct recorded_labels *new_set(const char *const *names, size_t count,
                                       uint32_t max_values) {
    struct recorded_labels *set = calloc(1, sizeof *set + count * sizeof set->names[0]);
    if (set == NULL) return NULL;
    set->max_values = max_values;
    for (; set->count < count; set->count++) {
        set->names[set->count] = strdup(names[set->count]);
        if (set->names[set->count] != NULL) continue;
        while (set->count > 0) free(set->names[--set->count]);
        free(set);
        return NULL;
    }
    return set;
}

const struct recorded_labels *
labels_intern_recorded(const char *const *names, size_t count, uint32_t max_values) {
    if (count > MOST_RECORDED) count = MOST_RECORDED; /* the front end refuses more */
    pthread_mutex_lock(&lock);
    const struct recorded_labels *set = all_sets;
    while (set != NULL && !same_set(set, names, count, max_values)) set = set->next;
    if (set == NULL) {
        struct recorded_labels *made = new_set(names, count, max_values);
        if (made != NULL) {
            made->next = all_sets;
            all_sets = made;
        }
        set = made;
    }
    pthread_mutex_unlock(&lock);
    return set;
}

void labels_publish(const struct recorded_labels *labels) {
    atomic_store_explicit(&recorded, labels, memory_order_release);
}

bool labels_are_recorded(void) {
    const struct recorded_labels *set =
        atomic_load_explicit(&recorded, memory_order_acquire);
    return set != NULL && set->count > 0;
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

uint32_t labels_recorded_of(PyObject *labels, PyObject *inherited) {
    struct sp_text keys[MOST_RECORDED], values[MOST_RECORDED];
    PyObject *texts[MOST_RECORDED], *owners[MOST_RECORDED];
    uint32_t count = 0;
    const struct recorded_labels *set =
        atomic_load_explicit(&recorded, memory_order_acquire);
    for (size_t i = 0; set != NULL && i < set->count; i++) {
        PyObject *value = PyDict_GetItemString(labels, set->names[i]);
        if (value == NULL && inherited != NULL)
            value = PyDict_GetItemString(inherited, set->names[i]);
        if (value == NULL) continue;
        Py_INCREF(value);
        texts[count] = value_text(value);
        Py_DECREF(value);
        if (texts[count] == NULL) continue;
        keys[count] = (struct sp_text){set->names[i], strlen(set->names[i])};
        values[count] = text_view(texts[count], &owners[count]);
        count++;
    }
    if (count == 0) return SP_LABELS_NONE;
    uint32_t id = sp_labels_intern(keys, values, count, set->max_values);
    for (uint32_t i = 0; i < count; i++) {
        Py_XDECREF(owners[i]);
        Py_DECREF(texts[i]);
    }
    return id;
}

static const char *value_of(const char *name, const spanprof_label *labels,
                            size_t count) {
    for (size_t i = 0; i < count; i++)
        if (strcmp(labels[i].key, name) == 0) return labels[i].value;
    return NULL;
}

uint32_t labels_recorded_of_texts(const spanprof_label *labels, size_t count) {
    struct sp_text keys[MOST_RECORDED], values[MOST_RECORDED];
    uint32_t found = 0;
    const struct recorded_labels *set =
        count > 0 ? atomic_load_explicit(&recorded, memory_order_acquire) : NULL;
    if (count > MOST_RECORDED) count = MOST_RECORDED;
    for (size_t i = 0; set != NULL && i < set->count; i++) {
        const char *value = value_of(set->names[i], labels, count);
        if (value == NULL) continue;
        keys[found] = (struct sp_text){set->names[i], strlen(set->names[i])};
        values[found++] = (struct sp_text){value, strlen(value)};
    }
    return found > 0 ? sp_labels_intern(keys, values, found, set->max_values)
                     : SP_LABELS_NONE;
}
