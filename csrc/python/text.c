#include "text.h"

struct sp_text text_view(PyObject *string, PyObject **owner) {
    Py_ssize_t length;
    *owner = NULL;
    if (PyUnicode_IS_COMPACT_ASCII(string))
        return (struct sp_text){(const char *)PyUnicode_1BYTE_DATA(string),
                                (size_t)PyUnicode_GET_LENGTH(string)};
    const char *bytes = PyUnicode_AsUTF8AndSize(string, &length);
    if (bytes != NULL) return (struct sp_text){bytes, (size_t)length};
    PyErr_Clear();
    *owner = PyUnicode_AsEncodedString(string, "utf-8", "surrogatepass");
    if (*owner == NULL) {
        PyErr_Clear();
        return (struct sp_text){"", 0};
    }
    return (struct sp_text){PyBytes_AS_STRING(*owner),
                            (size_t)PyBytes_GET_SIZE(*owner)};
}

PyObject *text_object(const struct sp_string *string) {
    Py_ssize_t length = (Py_ssize_t)string->length;
    PyObject *text = PyUnicode_DecodeUTF8(string->bytes, length, "surrogatepass");
    if (text != NULL || !PyErr_ExceptionMatches(PyExc_UnicodeDecodeError)) return text;
    /* Of a file that others have written, or a disk has spoilt: as utf8.c has it. */
    PyErr_Clear();
    return PyUnicode_DecodeUTF8(string->bytes, length, "backslashreplace");
}

PyObject *text_tuple(const char *const *names, size_t count) {
    PyObject *tuple = PyTuple_New((Py_ssize_t)count);
    for (size_t i = 0; tuple != NULL && i < count; i++) {
        PyObject *name = PyUnicode_InternFromString(names[i]);
        if (name == NULL)
            Py_CLEAR(tuple);
        else
            PyTuple_SET_ITEM(tuple, (Py_ssize_t)i, name);
    }
    return tuple;
}

PyObject *text_labels(uint32_t id) {
    const struct sp_labels *labels = sp_labels_get(id);
    PyObject *tuple = PyTuple_New((Py_ssize_t)labels->count);
    if (tuple == NULL) return NULL;
    for (uint32_t i = 0; i < labels->count; i++) {
        PyObject *key = text_object(labels->items[i].key);
        PyObject *value = text_object(labels->items[i].value);
        PyObject *pair =
            key != NULL && value != NULL ? PyTuple_Pack(2, key, value) : NULL;
        Py_XDECREF(key);
        Py_XDECREF(value);
        if (pair == NULL) {
            Py_DECREF(tuple);
            return NULL;
        }
        PyTuple_SET_ITEM(tuple, (Py_ssize_t)i, pair);
    }
    return tuple;
}
