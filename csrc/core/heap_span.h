/* Spans as owners of live blocks.
 *
 * In a session whose reporters ask for single spans, a block belongs to the span that
 * allocated it, also after the span is destroyed, until the block is freed. A span gets
 * a record here with its first block, whose number is the owner in the shadow map. The
 * record stays until the span is destroyed and its last block is freed. Of destroyed
 * spans that still own blocks only so many are kept: beyond that the smallest are
 * *folded*. A folded span is gone for all who ask, its blocks go on as its node's, and
 * its record does nothing but know which node that is.
 *
 * A node's own values (heap.h) do not come from here, and are exact in any case. In
 * other sessions there are no records, and nothing here is called. */
#ifndef SPANPROF_CORE_HEAP_SPAN_H
#define SPANPROF_CORE_HEAP_SPAN_H

#include "platform.h"

struct sp_span;

/* Owners in the shadow map: paths below, spans from here on. */
#define SP_OWNER_SPANS 0x800000u

static inline bool sp_owner_is_span(uint32_t owner) {
    return owner >= SP_OWNER_SPANS;
}

/* For a session of that generation: at most `max_closed` destroyed spans are kept. */
void sp_heap_spans_begin(uint32_t generation, uint32_t max_closed);

/* The owner for a block that the span allocates now: the span's record, or `path` if
 * there is no memory for one. The thread that the span runs on. */
uint32_t sp_heap_span_owner(uint32_t generation, struct sp_span *span, uint32_t path);

/* Blocks of the owner come and go (in fixed point if sampled). Any thread. */
void sp_heap_span_add(uint32_t owner, uint64_t objects, uint64_t space);
void sp_heap_span_subtract(uint32_t generation, uint32_t owner, uint64_t objects,
                           uint64_t space);

/* The path of an owner, whichever it is. */
uint32_t sp_owner_path(uint32_t owner);

/* The span is destroyed. Any thread. */
void sp_heap_span_closed(struct sp_span *span);

struct sp_heap_span_view {
    uint64_t id; /* of the span */
    uint32_t path;
    uint64_t objects, space;
    bool closed;
};

/* Visits all spans that own blocks, or did and still run, and are not folded. Under the
 * records' lock: `visit` must be brief and call nothing of the core. */
void sp_heap_spans_each(void (*visit)(void *context,
                                      const struct sp_heap_span_view *view),
                        void *context);

/* Fork: taken before, released after in the parent; the child has no records. */
void sp_heap_spans_lock(void);
void sp_heap_spans_unlock(void);
void sp_heap_spans_relock_in_child(void);

#endif
