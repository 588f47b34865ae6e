/* Spans that are over, as one array that Python reads in place. */
#ifndef SPANPROF_PYTHON_SPAN_BATCH_H
#define SPANPROF_PYTHON_SPAN_BATCH_H

#include "state.h"

#include "../core/feed_read.h"

/* New reference, NULL with an exception; takes over the batch in any case. */
PyObject *span_batch_new(ModuleState *state, struct sp_feed_batch *batch);

#endif
