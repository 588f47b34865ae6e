/* The running span of each thread, for profilers outside of the process.
 *
 * A thread keeps one record, in the layout of OpenTelemetry's thread context (OTEP
 * 4947), and a thread-local pointer with an agreed name leads to it. Whoever reads has
 * stopped the thread, so what the thread writes needs an order for the compiler alone.
 * See docs/internals/publication.md. */
#ifndef SPANPROF_CORE_PUBLISH_H
#define SPANPROF_CORE_PUBLISH_H

#include "platform.h"

#include <endian.h>

extern _Atomic uint32_t sp_session_generation;

/* What others read: the order and the size of the fields are OpenTelemetry's. */
struct sp_thread_context {
    sp_counter trace_id[2]; /* bytes in the order of the W3C's trace context */
    sp_counter span_id;     /* the same; that is, big-endian */
    _Atomic uint8_t valid;  /* 1, or the rest means nothing */
    uint8_t trace_flags;
    uint16_t attributes_size; /* of attributes behind this; there are none */
};

/* Ours are sampled, and their trace's id is random (W3C trace context, level 2). */
#define SP_TRACE_FLAGS 3u

/* One thread's. Written by the owner; at the session's end also by whoever ends it. */
struct sp_publication {
    uint32_t generation; /* of the session that it is for; 0: nothing is published */
    struct sp_thread_context context;
};

/* The calling thread, to whom it belongs, runs that span now; 0: none. */
static inline void sp_publish(struct sp_publication *publication, uint64_t span_id) {
    if (SP_LIKELY(publication->generation == 0)) return;
    struct sp_thread_context *context = &publication->context;
    atomic_store_explicit(&context->valid, 0, memory_order_relaxed);
    atomic_signal_fence(memory_order_seq_cst);
    sp_store(&context->span_id, htobe64(span_id));
    atomic_signal_fence(memory_order_seq_cst);
    atomic_store_explicit(&context->valid, span_id != 0, memory_order_relaxed);
    atomic_signal_fence(memory_order_seq_cst);
    /* Whoever ends the session has all threads pass a barrier before it clears their
     * records: either it sees ours, or we see that the session is over. */
    if (SP_UNLIKELY(publication->generation !=
                    atomic_load_explicit(&sp_session_generation, memory_order_relaxed)))
        atomic_store_explicit(&context->valid, 0, memory_order_relaxed);
}

/* --- the session: calls are serialised ---------------------------------------- */

/* The session that begins, whose generation that will be, publishes. */
void sp_publish_begin(uint32_t generation);

/* The session is over: no record is valid any longer. */
void sp_publish_end(void);

/* In a child after fork, which is another process: under another trace id. */
void sp_publish_restart_in_child(void);

/* The id of the running session's trace; false if it does not publish. */
bool sp_publish_trace_id(unsigned char trace_id[16]);

/* --- the owner ------------------------------------------------------------------ */

/* The thread enters a session. It runs no span. */
void sp_publication_reset(struct sp_publication *publication, uint32_t generation);

/* Have the calling thread's pointer lead to its record, if it publishes. */
void sp_publication_attach(struct sp_publication *publication);

/* The calling thread ends, and another one may take over its record. */
void sp_publication_detach(void);

/* It publishes nothing until the next session. */
void sp_publication_clear(struct sp_publication *publication);

/* In a child after fork: the running span goes on, under the child's trace id. */
void sp_publication_restart_in_child(struct sp_publication *publication);

#endif
