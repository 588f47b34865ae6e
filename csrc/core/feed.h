/* The feed of single spans: one record for each span that was destroyed.
 *
 * Where a session's reporters ask for it, a span that is entered notes what its cell's
 * counters said (its *base*), and one that is destroyed writes what they say more by
 * then into its thread's ring: bounded memory with one writer, the thread, and one
 * reader, the collector. (Lamport's queue; the writer keeps its last look at the
 * reader's index.) A full ring loses the newest record, and counts it: the program
 * never waits. A ring that was found empty begins at its first place again: so memory
 * is taken for as many records as have ever waited, not for as many as may.
 *
 * A thread's counters of a path move for one span at a time, so the difference is the
 * span's own. It is not where the same path is entered again on top of itself, which
 * takes a parent that is not the running span; such stacks are put right, see feed.c.
 */
#ifndef SPANPROF_CORE_FEED_H
#define SPANPROF_CORE_FEED_H

#include "calltree.h"
#include "platform.h"
#include "slab.h"

struct sp_thread;
struct sp_span;

/* A span that is over. Users see it as it is, see docs/guide/reporters.md: the order
 * and the size of the fields are part of the interface. Values are the span's own,
 * without those of spans nested in it. In the rings, times are the wall clock's and
 * `callsite` is a path. */
struct sp_feed_record {
    uint64_t id, parent;                                 /* span ids; parent 0: none */
    int64_t start, end;                                  /* Unix time, ns */
    uint64_t wall_busy, wall_idle, cpu_user, cpu_system; /* ns */
    uint64_t alloc_objects, alloc_space;
    uint32_t callsite, labels;
    uint32_t thread;     /* the system's number of the thread that ended it */
    uint32_t generation; /* of the session, see session.h */
};

/* What a span used while it was entered; or what a cell and its account say. */
struct sp_feed_used {
    uint64_t busy, cpu, objects, space;
};

/* What a span on a thread's stack has to know. */
struct sp_feed_base {
    uint64_t parent, start;
    struct sp_feed_used before; /* what `cell` said when the span was entered */
    struct sp_cell *cell;
    bool irregular; /* not below the span that ran: cells may be shared from here on */
};

/* One thread's. Written by the owner but for `taken`, which is the collector's. */
struct sp_feed {
    bool on;              /* the thread's session has a feed */
    uint32_t count, room; /* bases in use, and there */
    uint32_t irregular;   /* of them */
    uint32_t thread;      /* the system's number */
    uint32_t ring_size;   /* a power of 2 that holds `limit`; 0: no memory */
    uint64_t limit;       /* records that may wait */
    uint64_t taken_seen;
    struct sp_feed_record *ring;
    struct sp_slab bases;
    _Atomic uint64_t written, taken;
    _Atomic uint64_t origin; /* the record that is in the ring's first place */
};

/* A span that was opened explicitly: what it used whenever it was entered. Under the
 * lock of such spans. */
struct sp_feed_total {
    uint64_t parent, start;
    struct sp_feed_used used;
    uint64_t idle, system;
};

/* --- the session ------------------------------------------------------------- */

/* The session that begins has a feed with that many waiting records per thread; 0: it
 * has none. */
void sp_feed_begin(uint64_t limit);

/* Called when so many records wait in a ring that they should be taken, by the thread
 * that writes them: must not block. May be called late, or by a thread that has left
 * the session. */
extern void (*_Atomic sp_feed_is_due)(void);

/* --- the owner ----------------------------------------------------------------- */

/* The thread enters a session. */
void sp_feed_reset(struct sp_feed *feed);

/* In a child after fork: what waits is the parent's, and the values are zero. */
void sp_feed_restart_in_child(struct sp_feed *feed, uint64_t wall);

/* The span has been entered, its boundary charged. */
void sp_feed_enter(struct sp_thread *thread, struct sp_span *span, uint64_t parent,
                   bool irregular);

/* The span has left the stack at that time, its boundary charged: write its record, or
 * add to its total if it was opened. */
void sp_feed_leave(struct sp_thread *thread, struct sp_span *span, uint64_t wall);

/* An opened span: it is made, and destroyed at that time. `thread` may be NULL. */
void sp_feed_open(struct sp_span *span, uint64_t parent, uint64_t wall);
void sp_feed_close(struct sp_thread *thread, struct sp_span *span, uint64_t wall);
void sp_feed_reopen_in_child(struct sp_span *span, uint64_t wall);

/* --- the collector --------------------------------------------------------------- */

struct sp_feed_batch {
    size_t count;
    size_t size;                /* of all of it, in bytes */
    struct sp_feed_batch *next; /* for its owner */
    struct sp_feed_record records[];
};

/* Most records of a batch. */
#define SP_FEED_BATCH 65536u

/* Take what waits in all rings, at most SP_FEED_BATCH records. NULL if nothing does, or
 * out of memory (then it goes on waiting). Under the collector's lock. */
struct sp_feed_batch *sp_feed_take(void);
void sp_feed_batch_free(struct sp_feed_batch *batch);

/* Whether so many wait in some ring. Under the collector's lock. */
bool sp_feed_some_due(void);

#endif
