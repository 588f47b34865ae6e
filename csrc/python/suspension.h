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
 * a pending exception. Slow where that is new. */
void suspension_watch_caller(ModuleState *state);

/* Have that frame's suspensions told, with the same promises. */
void suspension_watch(ModuleState *state, struct _PyInterpreterFrame *frame);

/* Whether there is nothing to be told of the frame, or it is told already. */
static inline bool suspension_is_watched(const ModuleState *state,
                                         struct _PyInterpreterFrame *frame) {
    if (frame == NULL || !compat_frame_may_suspend(frame)) return true;
    int tool = atomic_load_explicit(&state->tool, memory_order_relaxed);
    return tool < 0 || compat_is_told_of(compat_frame_code(frame), tool);
}

/* The home of a span that is entered by that frame: the frame, or NULL if it cannot be
 * suspended. */
static inline const void *suspension_home(const struct _PyInterpreterFrame *frame) {
    return frame != NULL && compat_frame_may_suspend(frame) ? frame : NULL;
}

/* The same; but if it is contextlib's ExitStack, then it is that of the one for whom it
 * enters the span, whose suspensions are told from here on. */
const void *suspension_home_of_caller(ModuleState *state);

/* For greenlets.c: the thread's spans, if there are any, are suspended under that key
 * (see sp_span_suspend_all); those that are kept under a key are resumed, on the
 * calling thread. */
void suspension_suspend_all(struct sp_thread *thread, const void *key,
                            bool same_context);
void suspension_resume(ModuleState *state, const void *key);

/* A span of the object is suspended: the object is about to be freed. */
void suspension_abandon(struct sp_span *span);

/* Stop being told, and give our tool back; in this interpreter, and unless a session
 * runs. */
void suspension_release(ModuleState *state);

int suspension_init(PyObject *module);

#endif
