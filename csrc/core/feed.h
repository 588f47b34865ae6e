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
 *
 * Spans that are still entered are read where they are: a base says whose it is, and
 * ids are never used again, so a reader that finds the same id before and after knows
 * that the span was there all the time (feed_read.c).
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

/* What a span on a thread's stack has to know. Written by the thread; what others read
 * is atomic. */
struct sp_feed_base {
    sp_counter id; /* 0 while the rest changes */
    union {
        sp_counter parent;
        _Atomic(struct sp_feed_total *) total; /* of a totalled span; may be NULL */
    };
    uint64_t start;
    struct {
        sp_counter busy, cpu, objects, space;
    } before; /* what `cell` said when the span was entered */
    _Atomic(struct sp_cell *) cell;
    _Atomic bool totalled;
    bool irregular; /* not below the span that ran: cells may be shared from here on */
};

/* One thread's. Written by the owner but for `taken`, which is the collector's. */
struct sp_feed {
    bool on;                   /* the thread's session has a feed */
    _Atomic uint32_t count;    /* bases in use */
    _Atomic uint32_t sequence; /* odd while bases that stay change */
    uint32_t room;             /* bases that there is memory for */
    uint32_t irregular;        /* bases of that kind */
    uint32_t thread;           /* the system's number */
    uint32_t ring_size;        /* a power of 2 that holds `limit`; 0: no memory */
    uint64_t limit;            /* records that may wait */
    uint64_t taken_seen;
    struct sp_feed_record *ring;
    struct sp_slab bases;
    _Atomic uint64_t written, taken;
    _Atomic uint64_t origin; /* the record that is in the ring's first place */
    uint64_t counted;        /* the collector's: records to copy */
};

/* A span that was opened explicitly, or suspended: what it used whenever it ran. Under
 * the lock of such spans, which it also takes to enter and to leave one. */
struct sp_feed_total {
    union {
        uint64_t parent;
        struct sp_feed_total *next_free;
    };
    uint64_t start;
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

/* Another thread has taken over the state of one that ended. */
void sp_feed_adopt(struct sp_feed *feed);

/* In a child after fork: what waits is the parent's, and the values are zero. */
void sp_feed_restart_in_child(struct sp_feed *feed, uint64_t wall);

/* Around changes of bases that stay, and of spans that may share a cell with others, so
 * that nobody sees the half of them. False if that has begun already. */
bool sp_feed_begin_change(struct sp_feed *feed);
void sp_feed_end_change(struct sp_feed *feed, bool begun);

/* The span has been entered, its boundary charged. */
void sp_feed_enter(struct sp_thread *thread, struct sp_span *span, uint64_t parent,
                   bool irregular);

/* The span has left the stack at that time, its boundary charged: write its record, or
 * add to its total if it was opened. */
void sp_feed_leave(struct sp_thread *thread, struct sp_span *span, uint64_t wall);

/* The span is suspended at that time, its boundary charged: its values are in a total
 * from here on. Under the lock of opened spans. */
void sp_feed_suspend(struct sp_thread *thread, struct sp_span *span, uint64_t wall);

/* An opened span: it is made, and destroyed at that time. `thread` may be NULL. */
void sp_feed_open(struct sp_span *span, uint64_t parent, uint64_t wall);
void sp_feed_close(struct sp_thread *thread, struct sp_span *span, uint64_t wall);
void sp_feed_reopen_in_child(struct sp_span *span, uint64_t wall);

/* --- for both sides --------------------------------------------------------------- */

static inline struct sp_feed_record *sp_feed_record_at(struct sp_feed *feed,
                                                       uint64_t number) {
    uint64_t origin = atomic_load_explicit(&feed->origin, memory_order_relaxed);
    return &feed->ring[(number - origin) & (feed->ring_size - 1)];
}

static inline struct sp_feed_base *sp_feed_base_at(const struct sp_feed *feed,
                                                   uint32_t number) {
    return sp_slab_at(&feed->bases, number, sizeof(struct sp_feed_base));
}

static inline struct sp_feed_used sp_feed_counters(const struct sp_cell *cell) {
    const struct sp_account *account = cell->account;
    return (struct sp_feed_used){
        .busy = sp_load(&cell->value[SP_VALUE_BUSY]),
        .cpu = sp_load(&cell->value[SP_VALUE_CPU]),
        .objects = account != NULL ? sp_load(&account->objects) : 0,
        .space = account != NULL ? sp_load(&account->space) : 0,
    };
}

static inline struct sp_feed_used sp_feed_before(const struct sp_feed_base *base) {
    return (struct sp_feed_used){
        .busy = sp_load(&base->before.busy),
        .cpu = sp_load(&base->before.cpu),
        .objects = sp_load(&base->before.objects),
        .space = sp_load(&base->before.space),
    };
}

static inline void sp_feed_add(struct sp_feed_used *to,
                               const struct sp_feed_used *more) {
    to->busy += more->busy;
    to->cpu += more->cpu;
    to->objects += more->objects;
    to->space += more->space;
}

static inline void sp_feed_subtract(struct sp_feed_used *from,
                                    const struct sp_feed_used *less) {
    from->busy -= less->busy;
    from->cpu -= less->cpu;
    from->objects -= less->objects;
    from->space -= less->space;
}

/* The number of records that wait from which on they should be taken. A reporter in
 * Python may have to wait for the GIL before it can take any: for 5 ms, which is long.
 */
static inline uint64_t sp_feed_due_at(const struct sp_feed *feed) {
    const uint64_t due = 4096;
    return feed->limit / 2 < due ? feed->limit / 2 + 1 : due;
}

#endif
