/* The reporter thread's way to Python. */
#ifndef SPANPROF_PYTHON_REPORTER_HOST_H
#define SPANPROF_PYTHON_REPORTER_HOST_H

#include "state.h"

#include "../core/collector.h"

/* Fills in a host that calls `callback(ProfileData | None, last)`, attached to
 * the calling interpreter only meanwhile. -1 with an exception. */
int reporter_host_init(struct sp_host *host, ModuleState *state, PyObject *callback,
                       PyObject *on_spans);

/* For a host whose thread never came to be. */
void reporter_host_discard(struct sp_host *host);

#endif
