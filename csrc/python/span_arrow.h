/* Spans as Arrow columns, by the Arrow PyCapsule interface. */
#ifndef SPANPROF_PYTHON_SPAN_ARROW_H
#define SPANPROF_PYTHON_SPAN_ARROW_H

#include "compat.h"

#include "../core/feed_read.h"

/* New references, NULL with an exception. */

/* A capsule "arrow_schema". */
PyObject *span_arrow_schema(void);

/* A pair of capsules, "arrow_schema" and "arrow_array". */
PyObject *span_arrow_array(const struct sp_feed_batch *batch);

/* Whether that may be a `requested_schema`; else 0 with an exception. What it asks for
 * is no promise: who asks looks at what comes, and casts. */
int span_arrow_may_request(PyObject *schema);

#endif
