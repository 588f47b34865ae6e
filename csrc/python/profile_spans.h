/* Profiles in which each node is one span. */
#ifndef SPANPROF_PYTHON_PROFILE_SPANS_H
#define SPANPROF_PYTHON_PROFILE_SPANS_H

#include "state.h"

/* For _core.profile_of_spans, see _core.pyi. */
PyObject *profile_of_spans(PyObject *module, PyObject *args);

#endif
