/* Spans of native code, whose memory is ours.
 *
 * The caller has a pointer and nothing else: its own stack may be jumped out of, or
 * copied away by a library that switches stacks, while the span is on a thread's stack.
 * A span is taken from its thread's state, or from the C library, and given back when
 * it has ended. */
#ifndef SPANPROF_CORE_NATIVE_H
#define SPANPROF_CORE_NATIVE_H

#include "span.h"

struct sp_native {
    struct sp_span span; /* `is_native` */
    struct sp_native *next_free;
};

/* Begin a span on the calling thread, whose state is given, and whose context its host
 * has seen to; below `parent`, or if that is NULL below the current one. `place` says
 * where that is in the program, and stays there; it is always of that callsite. NULL
 * out of memory. Where a sampler of the host's would have to be asked, the span is
 * recorded.
 */
struct sp_native *sp_native_begin(struct sp_thread *thread, const void *place,
                                  uint32_t callsite);
struct sp_native *sp_native_begin_under(struct sp_thread *thread, sp_key key,
                                        const struct sp_parent *parent);

/* End it, once; NULL does nothing. `thread` is the calling one's state, which may be
 * any and have no span of its own; NULL: it has none in the session. */
void sp_native_end(struct sp_thread *thread, struct sp_native *native);

/* For span.c: the span has ended, on the thread that ran it, as another one had asked
 * for. */
void sp_native_free(struct sp_span *span);

#endif
