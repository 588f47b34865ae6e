/* Contexts: where new spans find their parent.
 *
 * The innermost span of a thread is not always the parent of the next one. A task that
 * was started inside a span has that span as parent, wherever it runs and whatever runs
 * below it on its thread, and even if that span is over. So each line of execution (a
 * thread; or what the host has: a task, a copied contextvars.Context) has a context of
 * its own, which says what its next span is a child of. Entering a span makes it the
 * context's current one, leaving it sets the one before again.
 *
 * A line of execution that begins gets a copy. The core knows nothing of that: the host
 * tells by `thread->context` which one is the thread's at each moment. */
#ifndef SPANPROF_CORE_CONTEXT_H
#define SPANPROF_CORE_CONTEXT_H

#include "platform.h"

/* What a span is to its children, also when it is over. Generation 0: no span. */
struct sp_parent {
    uint64_t id; /* 0: it is sampled out, or no span */
    uint32_t path;
    uint32_t generation;
};

/* Written by the thread whose context it is at that moment. */
struct sp_context {
    struct sp_parent current;
};

#endif
