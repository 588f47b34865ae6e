/* What include/spanprof.h declares, for native code that the program has. */
#ifndef SPANPROF_PYTHON_C_API_H
#define SPANPROF_PYTHON_C_API_H

#include "state.h"

#include "../include/spanprof.h"

/* Adds the capsule to the module. */
int c_api_init(PyObject *module);

/* For c_api.c: what the symbols of the library call. */
void c_api_define_symbols(const spanprof_api *api);

#endif
