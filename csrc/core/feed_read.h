/* The feed of spans, read by the collector: what is over is taken from the rings, what
 * is not is read where it is. All under the collector's lock. */
#ifndef SPANPROF_CORE_FEED_READ_H
#define SPANPROF_CORE_FEED_READ_H

#include "feed.h"

struct sp_feed_batch {
    size_t count;
    size_t size;                /* of all of it, in bytes */
    struct sp_feed_batch *next; /* for its owner */
    struct sp_feed_record records[];
};

/* Most records of a batch. */
#define SP_FEED_BATCH 65536u

/* Take what waits in all rings at the time of the call, at most SP_FEED_BATCH records:
 * a batch that is not full has all of it. NULL if nothing does, or out of memory (then
 * it goes on waiting). */
struct sp_feed_batch *sp_feed_take(void);
void sp_feed_batch_free(struct sp_feed_batch *batch);

/* The same, and they go on waiting. Sets `all` to whether it has all of them. */
struct sp_feed_batch *sp_feed_peek(bool *all);

/* Whether so many wait in some ring. */
bool sp_feed_some_due(void);

/* The session of that generation is over and all of it taken: give the rings' memory
 * back. */
void sp_feed_end(uint32_t generation);

/* A span that is not over. Values as in the record that it will leave. */
struct sp_open_span {
    uint64_t id, parent;
    uint32_t callsite, labels;
    struct sp_feed_used used;
    uint64_t idle, system;
};

struct sp_open_spans {
    size_t count, room;
    struct sp_open_span *items;
    bool complete; /* no thread was too busy to be read, and memory was enough */
};

/* Read all spans that are not over, in no particular order. One that ended before is in
 * the rings, or was dropped. `spans` is zero or was read before. */
void sp_feed_read_open(struct sp_open_spans *spans);
void sp_open_spans_free(struct sp_open_spans *spans);

#endif
