/* csvsum as a C extension. */
#include "csvsum.h"

#include <Python.h>
#include <errno.h>
#include <spanprof.h>

SPANPROF_DEFINE;

static PyObject *sum(PyObject *module, PyObject *args) {
    (void)module;
    Py_buffer text;
    unsigned column, threads;
    if (!PyArg_ParseTuple(args, "y*II", &text, &column, &threads)) return NULL;
    struct csv_sum result;
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = csv_sum(text.buf, (size_t)text.len, column, threads, &result);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&text);
    if (error != 0) {
        errno = error;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    return Py_BuildValue("dnn", result.sum, (Py_ssize_t)result.rows,
                         (Py_ssize_t)result.skipped);
}

/* Programs without spanprof can use it as well. */
static int find_spanprof(PyObject *module) {
    (void)module;
    if (spanprof_import() == 0) return 0;
    if (!PyErr_ExceptionMatches(PyExc_ImportError)) return -1;
    PyErr_Clear();
    return 0;
}

static PyMethodDef functions[] = {
    {"sum", sum, METH_VARARGS,
     "sum(text, column, threads) -> (sum, rows, skipped): of a CSV file's bytes."},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, find_spanprof},
#ifdef Py_mod_multiple_interpreters
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_SUPPORTED},
#endif
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT,
                                        .m_name = "csvsum_extension",
                                        .m_methods = functions, .m_slots = slots};

PyMODINIT_FUNC PyInit_csvsum_extension(void) {
    return PyModuleDef_Init(&definition);
}
