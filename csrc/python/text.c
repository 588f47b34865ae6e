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
    /* Of a file that others have written, or a disk has spoilt: as pprof.c writes it.
     */
    PyErr_Clear();
    return PyUnicode_DecodeUTF8(string->bytes, length, "backslashreplace");
}
