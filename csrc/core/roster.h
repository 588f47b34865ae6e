/* What reporters know of single spans, and what they are told next.
 *
 * The feed says what ended and what is open; the heap's records say which spans own
 * blocks. The roster holds what was told of each span before, and makes *updates* of
 * the difference: a span is introduced once, with its scope, parents first; its values
 * are told as they grow; and it is over when it has ended and its last block is freed,
 * or folded (heap_span.h).
 *
 * A round is read under the collector's lock and told without it, on the reporter
 * thread, whose the roster is. */
#ifndef SPANPROF_CORE_ROSTER_H
#define SPANPROF_CORE_ROSTER_H

#include "feed_read.h"
#include "heap_span.h"

struct sp_roster;

/* For a session that is about to begin. With `with_heap` a span that owns blocks is
 * told with them, and not over before they are gone. NULL out of memory. */
struct sp_roster *sp_roster_new(bool with_heap);
void sp_roster_free(struct sp_roster *roster);

/* What is said of a span in an update, in this order. */
enum sp_told {
    SP_TOLD_CREATED = 1,
    SP_TOLD_VALUES = 2,
    SP_TOLD_HEAP = 4,
    SP_TOLD_DESTROYED = 8,
};

struct sp_span_update {
    uint64_t id;
    uint32_t what; /* bits of enum sp_told */
    /* Created: what it is, and where its scope is: its own id, its parent's, and so on.
     * The scope ends early at an ancestor that reporters were not told of, or that was
     * over so long ago that it is forgotten. */
    uint32_t callsite, labels;
    uint32_t scope_start, scope_count;
    /* Values: since the last time; the span's own. */
    uint64_t wall_busy, wall_idle, cpu_user, cpu_system;
    uint64_t alloc_objects, alloc_space;
    /* Heap: what it has in use now. */
    uint64_t inuse_objects, inuse_space;
};

/* Lent for the time of the call. */
struct sp_span_updates {
    uint32_t count;
    const struct sp_span_update *items;
    const uint64_t *scopes;
};

/* What the collector read at one time. */
struct sp_round {
    struct sp_feed_batch *over; /* taken from the rings, in order; may be NULL */
    struct sp_open_spans open;
    struct sp_feed_batch
        *next; /* what ended while that was read, and goes on waiting */
    struct sp_heap_span_view *heap;
    size_t heap_count;
    bool heap_known; /* there was memory for `heap` */
};

/* Read what is there now, into a round that is zero. `last`: the session is about to
 * end, and what would go on waiting is taken as well. Under the collector's lock. */
void sp_round_read(struct sp_round *round, const struct sp_roster *roster, bool last);

/* All but `over`. */
void sp_round_free(struct sp_round *round);

enum sp_round_kind {
    SP_ROUND_OVER,   /* tell of spans that are over, and of those they are in */
    SP_ROUND_REPORT, /* of all, but not yet of the heap of those that go on */
    SP_ROUND_HEAP,   /* of all, and all their heap */
    SP_ROUND_LAST,   /* the same, and all are over */
};

/* Tell of a round, some thousand spans at a time. */
void sp_roster_tell(struct sp_roster *roster, const struct sp_round *round,
                    enum sp_round_kind kind,
                    void (*tell)(void *context, const struct sp_span_updates *updates),
                    void *context);

#endif
