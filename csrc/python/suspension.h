/* When coroutines and generators are suspended and resumed, their spans are.
 *
 * A span that is entered in the frame of a coroutine, generator or async generator is
 * at home there. The first such span of each code object has the interpreter tell us
 * whenever that code yields or is resumed (sys.monitoring, PEP 669; other code pays
 * nothing), and whenever an exception is thrown into any generator. On 3.11 there is no
 * such thing: spans stay where they are. docs/internals/suspension.md has the whole
 * argument. */
#ifndef SPANPROF_PYTHON_SUSPENSION_H
#define SPANPROF_PYTHON_SUSPENSION_H

#include "state.h"

#include "../core/span.h"

/* Have the calling frame's suspensions told, if it may be suspended. Never fails; keeps
 * a pending exception. Slow: once for each place in the code. */
void suspension_watch_caller(ModuleState *state);

/* The home of a span that is entered by the calling frame: the frame, or NULL if it
 * cannot be suspended. */
static inline const void *suspension_home(void) {
    struct _PyInterpreterFrame *frame = compat_frame();
    return frame != NULL && compat_frame_may_suspend(frame) ? frame : NULL;
}

/* The same; but if it is contextlib's ExitStack, then it is that of the one for whom it
 * enters the span, whose suspensions are told from here on. */
const void *suspension_home_of_caller(ModuleState *state);

/* A span of the object is suspended: the object is about to be freed. */
void suspension_abandon(struct sp_span *span);

/* Stop being told, and give our tool back; in this interpreter, and unless a session
 * runs. */
void suspension_release(ModuleState *state);

int suspension_init(PyObject *module);

#endif
