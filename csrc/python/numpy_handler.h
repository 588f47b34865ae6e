/* The data of numpy's arrays, see numpy_handler.c. */
#ifndef SPANPROF_PYTHON_NUMPY_HANDLER_H
#define SPANPROF_PYTHON_NUMPY_HANDLER_H

#include "compat.h"

#include "../core/platform.h"

/* A session begins that wants it, or one that does not. With the GIL. */
void numpy_handler_want(bool wanted);

/* numpy's handlers that ours are around. */
extern _Atomic uint32_t numpy_handler_count;

/* A session wants numpy, which has not been found yet. */
extern _Atomic bool numpy_handler_pending;

/* Where Python code may run: if numpy has been imported since the session began, take
 * notice of it. No exception is set, and none is lost. */
void numpy_handler_look_slow(void);
static inline void numpy_handler_look(void) {
    if (SP_UNLIKELY(atomic_load_explicit(&numpy_handler_pending, memory_order_relaxed)))
        numpy_handler_look_slow();
}

int numpy_handler_init(PyObject *module);

#endif
