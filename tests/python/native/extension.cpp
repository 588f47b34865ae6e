/* An extension in C++, for the tests. */
#include <Python.h>

#include <spanprof.hpp>

#include <stdexcept>
#include <utility>

SPANPROF_DEFINE;

SPANPROF_CALLSITE(moved, "moved");
SPANPROF_CALLSITE(under, "under");
SPANPROF_CALLSITE(labelled, "labelled");

static spanprof::span make() {
    return spanprof::span(moved);
}

static PyObject *run(PyObject *, PyObject *) {
    if (spanprof_import() < 0) return nullptr;
    try {
        SPANPROF_SPAN("thrown through");
        spanprof::span first = make();
        spanprof::span second(std::move(first));
        spanprof::span nothing;
        nothing = std::move(second);
        const spanprof_parent parent = spanprof_current();
        nothing.end();
        nothing.end();
        spanprof::span child(under, parent);
        throw std::runtime_error("caught");
    } catch (const std::runtime_error &) {
        SPANPROF_SPAN("handler");
        const spanprof_label labels[] = {{"kind", "x"}};
        spanprof::span with_labels(labelled, labels);
    }
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {{"run", run, METH_NOARGS, nullptr},
                                  {nullptr, nullptr, 0, nullptr}};

static PyModuleDef_Slot slots[] = {
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, nullptr}};

static PyModuleDef definition = {PyModuleDef_HEAD_INIT,
                                 "native_extension",
                                 nullptr,
                                 0,
                                 functions,
                                 slots,
                                 nullptr,
                                 nullptr,
                                 nullptr};

PyMODINIT_FUNC PyInit_native_extension() {
    return PyModuleDef_Init(&definition);
}
