/* The reporter thread's way to Python. */
#ifndef SPANPROF_PYTHON_REPORTER_HOST_H
#define SPANPROF_PYTHON_REPORTER_HOST_H

#include "state.h"

#include "../core/collector.h"

/* What a host calls, attached to the calling interpreter only meanwhile. */
struct reporter_calls {
    PyObject *on_report;  /* (ProfileData | None, last) */
    PyObject *on_updates; /* (SpanUpdates), valid in the call; or NULL */
    PyObject *on_spans;   /* (SpanBatch); or NULL */
};

/* Fills in a host. -1 with an exception. */
int reporter_host_init(struct sp_host *host, ModuleState *state,
                       const struct reporter_calls *calls);

/* For a host whose thread never came to be. */
void reporter_host_discard(struct sp_host *host);

#endif
