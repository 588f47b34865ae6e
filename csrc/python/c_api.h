/* What include/spanprof.h declares, for native code that the program has. */
#ifndef SPANPROF_PYTHON_C_API_H
#define SPANPROF_PYTHON_C_API_H

#include "state.h"

/* Adds the capsule to the module. */
int c_api_init(PyObject *module);

#endif
