/* Updates of single spans, on their way to reporters. */
#ifndef SPANPROF_PYTHON_SPAN_UPDATES_H
#define SPANPROF_PYTHON_SPAN_UPDATES_H

#include "state.h"

#include "../core/roster.h"

/* An object that tells of `updates`, which must stay until span_updates_end. New
 * reference; NULL with an exception. */
PyObject *span_updates_new(ModuleState *state, const struct sp_span_updates *updates);
void span_updates_end(PyObject *object);

#endif
