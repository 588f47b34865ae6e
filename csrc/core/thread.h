/* One state for each thread that opens spans.
 *
 * States are registered once and never freed: when a thread ends, its state,
 * values and all, goes to the next thread that comes. Values by node add up the
 * same whichever thread held them, and a program that runs ten thousand threads
 * one after the other holds one state. */
#ifndef SPANPROF_CORE_THREAD_H
#define SPANPROF_CORE_THREAD_H

#include "calltree.h"
#include "clock.h"
#include "context.h"
#include "feed.h"
#include "publish.h"
#include "session.h"

struct sp_span;

/* Cells that used CPU since the thread's system time was last read. */
#define SP_SPLIT_CELLS 64u

struct sp_split_entry {
    struct sp_cell *cell;
    uint64_t cpu_before; /* the cell's CPU time when it was first touched */
};

/* A small cache for the binding: which callsite an instruction is. See
 * sp_site_find. */
#define SP_SITES 128u

struct sp_site {
    const void *place;    /* the instruction */
    const void *name;     /* of the span; NULL in an empty entry */
    struct sp_cell *cell; /* where its last span ran, of this generation; or NULL */
    uint32_t callsite;
};

/* Written by the owning thread alone unless said otherwise. What the collector
 * reads is atomic; `sequence` is odd while the owner moves from one span to
 * another, and lets the collector read `cell`, `at_wall` and `at_cpu` as one. */
struct sp_thread {
    struct sp_clock clock;
    _Atomic uint32_t sequence;
    /* The generation that the data below belong to; 0 makes the owner take the
     * slow path once. Other threads may write that 0 (sp_thread_poke). */
    _Atomic uint32_t generation;
    sp_counter at_wall, at_cpu; /* the last boundary: all before is charged */
    _Atomic(struct sp_cell *) cell;
    struct sp_span *top;              /* innermost running span */
    struct sp_context *context;       /* the host's, or `own_context`; never NULL */
    struct sp_account *alloc_account; /* `cell`'s, or NULL: no span, or not tracked */
    bool is_watched; /* `feed` or `publication` is to hear of every span */
    struct sp_thread_heap heap;
    struct sp_feed feed;
    struct sp_publication publication;
    uint64_t next_id;
    struct sp_sampler sampler;
    bool is_profilers; /* the reporter thread: its spans are not recorded */

    _Atomic uint32_t data_generation; /* as `generation`, without the pokes */
    struct sp_cells cells;
    /* The running cell in a session with a sampler: without a span, in place of the
     * root's, where the next span asks whether it is recorded; and of spans that are
     * sampled out, which no path is below. What they count is nobody's. */
    struct sp_cell undecided, sampled_out;

    struct sp_split_entry split[SP_SPLIT_CELLS];
    uint32_t split_count;
    uint32_t split_round;
    uint64_t system_seen; /* system CPU time that has been shared out */

    struct sp_site sites[SP_SITES];
    uint32_t site_epoch;
    struct sp_native *free_natives; /* see native.h */

    struct sp_context own_context;
    struct {
        void *context;
        uint64_t version;
        bool sees_switches;
    } host; /* the host's: which of its contexts `context` is */

    /* The registry: `next` never changes once published; `next_free` and
     * `alive` under its lock. */
    struct sp_thread *next;
    struct sp_thread *next_free;
    _Atomic bool alive;
};

extern SP_TLS struct sp_thread *sp_thread_self;

/* The calling thread's state while its blocks are charged to its `alloc_account`, which
 * is not NULL then. NULL: there is none, or the profiler itself is at work. */
extern SP_TLS struct sp_thread *sp_thread_charged;

/* All that allocation hooks look at for most blocks: how many bytes the calling thread
 * may allocate in small blocks without a word to anybody. Of a thread that is charged
 * these are its `heap.sample_in`, which is out of date meanwhile. */
extern SP_TLS int64_t sp_thread_allowance;
#define SP_ALLOWANCE_OF_NOBODY INT64_MAX

/* Around what the profiler allocates for itself, on the calling thread. Resume with
 * what pause returned. Between the two the thread may open and close spans, and the
 * session may become another one. */
static inline struct sp_thread *sp_thread_pause(void) {
    struct sp_thread *charged = sp_thread_charged;
    if (charged == NULL) return NULL;
    charged->heap.sample_in = sp_thread_allowance;
    sp_thread_allowance = SP_ALLOWANCE_OF_NOBODY;
    sp_thread_charged = NULL;
    return charged;
}
static inline void sp_thread_resume(struct sp_thread *charged) {
    if (charged == NULL || charged->alloc_account == NULL || sp_thread_charged != NULL)
        return;
    sp_thread_charged = charged;
    sp_thread_allowance = charged->heap.sample_in;
}

static inline bool sp_thread_is_nobodys(const struct sp_thread *thread,
                                        const struct sp_cell *cell) {
    return cell == &thread->sampled_out || cell == &thread->undecided;
}

/* The cell of the thread while it runs no span. */
static inline struct sp_cell *sp_thread_idle_cell(struct sp_thread *thread) {
    return thread->sampler.on ? &thread->undecided : sp_cell_at(&thread->cells, 0);
}

/* The blocks of the calling thread, whose state is given, belong to that account from
 * now on; NULL: to nobody. */
static inline void sp_thread_charge_to(struct sp_thread *thread,
                                       struct sp_account *account) {
    thread->alloc_account = account;
    if (account == NULL || SP_UNLIKELY(sp_thread_charged != thread)) {
        sp_thread_pause();
        sp_thread_resume(thread);
    }
}

/* The calling thread's state, ready for the running session `generation`. NULL
 * out of memory. Slow: called when sp_thread_self is missing or of another
 * generation. */
struct sp_thread *sp_thread_join(uint32_t generation);

/* Called on each thread that is about to do that and to see to what others asked of it:
 * the host sets `thread->context`, which is `own_context` before. The thread need not
 * be attached to the host. NULL: there is no host. */
extern void (*_Atomic sp_thread_find_context)(struct sp_thread *thread);

/* Called on each thread that opens its first span of a session, or its next one after
 * sp_thread_poke, before that span. The thread need not be attached to the host. NULL:
 * nobody wants to know. */
extern void (*_Atomic sp_thread_joined)(void);

/* The calling thread's state for the running session, or NULL: no session, the
 * profiler's own thread, or out of memory. */
static inline struct sp_thread *sp_thread_current(void) {
    uint32_t generation =
        atomic_load_explicit(&sp_session_generation, memory_order_relaxed);
    if (generation == 0) return NULL;
    struct sp_thread *thread = sp_thread_self;
    if (SP_LIKELY(thread != NULL &&
                  atomic_load_explicit(&thread->generation, memory_order_relaxed) ==
                      generation))
        return thread;
    return sp_thread_join(generation);
}

/* As sp_thread_current, but the profiler's own thread has a state here as well:
 * a collection there may destroy the program's spans, whose time must go
 * somewhere. */
struct sp_thread *sp_thread_for_charges(void);

/* As if the calling thread ended: its spans are over, and its state is another's. */
void sp_thread_leave(void);

/* Mark the calling thread as the profiler's own. */
void sp_thread_set_profilers(void);

/* Any thread: have `thread` take the slow path at its next span. */
void sp_thread_poke(struct sp_thread *thread);

/* All states ever made, newest first; the list only grows at its head. */
struct sp_thread *sp_thread_list(void);

/* What a thread's running span has used since the thread's last boundary, as another
 * thread may see it. */
struct sp_running {
    const struct sp_cell *cell;
    uint64_t busy_charged, cpu_charged; /* what the cell said at that boundary */
    uint64_t busy, cpu;                 /* since then */
};

/* False if no span runs there, or if the thread would not hold still (it was
 * descheduled in the middle of a boundary): its time is not lost, it only comes with a
 * later reading. The clocks are read before the boundary is: of a thread that moves on
 * meanwhile the share is too small, never counted twice. */
bool sp_thread_read_running(const struct sp_thread *thread, struct sp_running *running);

/* Add that to what the cell says by now: as much of it as is not in there yet. */
static inline void sp_running_add(const struct sp_running *running, uint64_t busy_now,
                                  uint64_t cpu_now, uint64_t *busy, uint64_t *cpu) {
    uint64_t busy_more = busy_now - running->busy_charged;
    uint64_t cpu_more = cpu_now - running->cpu_charged;
    if (running->busy > busy_more) *busy += running->busy - busy_more;
    if (running->cpu > cpu_more) *cpu += running->cpu - cpu_more;
}

/* Spans that were sampled out, since the process began. */
uint64_t sp_threads_sampled_out(void);

/* A state that no OS thread owns, for tests that play several threads in one.
 * `key` goes to the injected clock source. Joined to `generation`. */
struct sp_thread *sp_thread_new_detached(void *key, uint32_t generation);
void sp_thread_end_detached(struct sp_thread *thread);

/* Fork: taken before, released after in the parent; in the child every state
 * but the caller's is emptied, and the caller's values start from zero. */
void sp_threads_lock(void);
void sp_threads_unlock(void);
void sp_threads_relock_in_child(void);

/* --- which callsite an instruction is ------------------------------------- */

/* Bumped when some code object dies, before its address can be another's. */
extern _Atomic uint32_t sp_site_epoch;

void sp_sites_forget(struct sp_thread *thread);

/* The cache entry for an instruction; it holds if place and name match. */
static inline struct sp_site *sp_site_find(struct sp_thread *thread,
                                           const void *place) {
    uint32_t epoch = atomic_load_explicit(&sp_site_epoch, memory_order_relaxed);
    if (SP_UNLIKELY(thread->site_epoch != epoch)) {
        sp_sites_forget(thread);
        thread->site_epoch = epoch;
    }
    uintptr_t address = (uintptr_t)place;
    return &thread->sites[(address >> 1 ^ address >> 8) % SP_SITES];
}

#endif
