/* An awaitable that is done: `async with` enters and exits at once, without a round
 * through the event loop. */
#ifndef SPANPROF_PYTHON_READY_H
#define SPANPROF_PYTHON_READY_H

#include "state.h"

/* Its result is `result`. New reference; NULL with an exception. */
PyObject *ready_new(ModuleState *state, PyObject *result);

#endif
