/* Suspension: spans leave their thread's stack for a while, and come back, perhaps on
 * another thread.
 *
 * A coroutine or generator that yields takes the spans that it has entered with it:
 * from there on the thread's time is that of the spans below, and theirs is idle. When
 * it is resumed they are put back on top, in their order and as the children of whose
 * children they are. The host says which spans and when, under a key of its own (the
 * address of a frame).
 *
 * A group that is kept has no claim on its spans' memory: who frees a span that is
 * suspended must withdraw it before. */
#ifndef SPANPROF_CORE_SUSPEND_H
#define SPANPROF_CORE_SUSPEND_H

#include "span.h"

/* Suspend the thread's spans from its innermost one down to `bottom`, under the key.
 * What was kept under it before (what would have resumed it has gone) is abandoned.
 * False out of memory: then these are abandoned themselves. */
bool sp_span_suspend(struct sp_thread *thread, struct sp_span *bottom, const void *key);

/* The same for all spans of the thread, of which there is one at least. With
 * `keeps_context` the context stays as it is, now and when they are resumed: it goes
 * with them. */
bool sp_span_suspend_all(struct sp_thread *thread, const void *key, bool keeps_context);

/* The thread's innermost span, which nothing will exit, is destroyed as far as it can
 * be: its exit is still due to its host. */
void sp_span_leave_behind(struct sp_thread *thread, struct sp_span *span);

/* Put spans that were kept, and were taken (suspended.h), on top of the thread's stack;
 * `top` is the innermost one. Spans of another session are not suspended any more, but
 * on no stack; so are all if `thread` is NULL (the caller is in no session, or is the
 * profiler's own thread). Then false, and others may have freed them by now. */
bool sp_span_resume(struct sp_thread *thread, struct sp_span *top);

/* A span that is suspended is destroyed, as its host is about to free it. `thread` may
 * be NULL. */
void sp_span_abandon(struct sp_thread *thread, struct sp_span *span);

/* To be asked for each span of a group that is taken: false if it is about to be
 * abandoned by another thread. NULL: that cannot be. */
extern bool (*sp_span_retain)(struct sp_span *span);

/* For collect.c: visits every span that is suspended, and not opened, of the
 * generation.
 */
void sp_span_each_suspended(uint32_t generation, uint64_t wall,
                            void (*visit)(void *context, uint32_t path, uint64_t idle),
                            void *context);

/* Fork: the idle time up to here is the parent's to report. */
void sp_suspend_restart_in_child(void);

#endif
