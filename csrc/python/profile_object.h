/* spanprof._core.ProfileData: a core profile as a Python object. */
#ifndef SPANPROF_PYTHON_PROFILE_OBJECT_H
#define SPANPROF_PYTHON_PROFILE_OBJECT_H

#include "state.h"

#include "../core/profile.h"

/* Takes over `profile`. MemoryError if it is NULL. */
PyObject *profile_object_new(ModuleState *state, struct sp_profile *profile);

/* The profile of a ProfileData object, which keeps it. */
const struct sp_profile *profile_object_get(PyObject *object);

#endif
