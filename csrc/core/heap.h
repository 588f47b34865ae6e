/* Allocations and live heap: who is charged for a block, and until when.
 *
 * Each thread has an *account* for each path whose blocks it allocates or frees;
 * it alone writes it. A path's live heap is what all its accounts allocated minus
 * what they freed: no counter is shared, and a free on another thread than the
 * allocation is nothing special. Blocks are freed by threads that have no state
 * here as well; those frees go to the path's own *stray* counters.
 *
 * In a sampled session the same counters hold estimates in fixed point
 * (SP_SAMPLE_SHIFT): a block is a sample with a probability of 1 - exp(-size/N), as
 * if every byte were one with 1/N, and counts for the inverse of that.
 *
 * Which blocks are ours, and whose, is in the shadow map. A block belongs to the
 * session that ran when it was made: the word `sp_heap_now` holds the session's
 * generation and two times in ticks of an eighth of a second, and each entry of the map
 * the tick of its birth. An entry born before the session is not there. */
#ifndef SPANPROF_CORE_HEAP_H
#define SPANPROF_CORE_HEAP_H

#include "platform.h"
#include "shadow.h"
#include "slab.h"

struct sp_thread;

enum sp_alloc_mode { SP_ALLOC_OFF, SP_ALLOC_COUNT, SP_ALLOC_EXACT, SP_ALLOC_SAMPLED };

/* One thread's blocks of one path. Written by the owning thread, read by the
 * collector. A session that only counts has the first two fields of it. */
struct sp_account {
    sp_counter objects, space;             /* allocated */
    sp_counter freed_objects, freed_space; /* of the path's, by this thread */
    sp_counter peak; /* highest allocated - freed before a free of this thread */
    /* At which space and freed_space to publish again; their difference is what of
     * allocated - freed the path's level holds. */
    uint64_t publish_space_at, publish_freed_at;
    uint32_t path;
};
#define SP_ACCOUNT_COUNTS offsetof(struct sp_account, freed_objects)

/* One thread's accounts, by path. */
struct sp_accounts {
    struct sp_slab counts, accounts; /* of a session that counts; of others */
    _Atomic uint32_t count;          /* paths below may have an account */
    enum sp_alloc_mode mode;
    uint32_t generation; /* of a session that tracks the heap; else 0 */
    /* The same if the quick ways of charge.h do: every block is tracked, belongs to a
     * path, and there is a map. Else no session's. */
    uint64_t exact_generation;
};

/* What a thread knows about all its blocks. Written by the owning thread. */
struct sp_thread_heap {
    sp_counter live, peak; /* allocated - freed by this thread; wraps around */
    /* It made or freed a block. What it holds may be nothing all the same: it may have
     * freed what others made, and made as much. */
    _Atomic bool took_part;
    uint64_t published;
    int64_t sample_in;   /* bytes to the next sample; see sp_thread_allowance */
    uint64_t randomness; /* of the samples; 0: not seeded */
};

/* Process-wide values of one path, or (path 0) of all. Two sets, for sessions of
 * odd and even generation: a thread that has not noticed the end of its session
 * does no harm to the next one. */
struct sp_heap_path {
    struct sp_heap_shared {
        sp_counter stray_objects, stray_space; /* frees by threads without accounts */
        sp_counter level, peak;                /* of what accounts published; signed */
    } of[2];
};

/* Fractional bits of all counters of a sampled session. */
#define SP_SAMPLE_SHIFT 16
static inline uint64_t sp_heap_rounded(uint64_t value) {
    return (value + (1u << (SP_SAMPLE_SHIFT - 1))) >> SP_SAMPLE_SHIFT;
}

/* Net bytes that a thread may gain or lose on an account before it tells the path:
 * how much the peak of a path that several threads use may be off, per thread. */
#define SP_PUBLISH_STEP ((uint64_t)16 << 10)
_Static_assert(((uint64_t)16 << 10) < SP_ENTRY_BESIDE, "the quick ways rely on it");

/* Generation << 32 | ticks since the session's first << 16 | current tick; 0 without
 * a session that tracks the heap. */
extern sp_counter sp_heap_now;

#define SP_NO_GENERATION UINT64_MAX
static inline uint32_t sp_heap_generation(uint64_t now) {
    return (uint32_t)(now >> 32);
}

#define SP_TICKS_PER_SECOND 8u

/* Age of an entry in ticks, rounded up; -1 if it was born before the session. */
static inline int sp_heap_age(uint64_t now, sp_entry entry) {
    uint16_t age = (uint16_t)(now - sp_entry_born(entry));
    return age <= (uint16_t)(now >> 16) ? age : -1;
}

/* --- the session ------------------------------------------------------------- */

/* `sample_bytes` 0: exact; else the mean distance of samples. Callers serialise begin
 * and end. If the system has no address space for the map, every block of the session
 * is untracked, and counted so. With `by_span`, blocks belong to spans, see
 * heap_span.h. */
void sp_heap_begin(uint32_t generation, uint64_t sample_bytes, bool by_span);
void sp_heap_end(void);

extern sp_counter sp_heap_sample_bytes;
static inline bool sp_heap_is_sampled(void) {
    return sp_load(&sp_heap_sample_bytes) != 0;
}

/* How the running session of that generation tracks allocations. */
enum sp_alloc_mode sp_heap_mode(uint32_t generation, bool track_allocations);

/* Have room for what all threads say of a path. False out of memory. Under the lock
 * of the paths. */
bool sp_heap_reserve_path(uint32_t path);

/* The ticks come from those who know what time it is (sp_clock_wall) and say so. */
void sp_heap_tick_slow(uint64_t wall);
extern sp_counter sp_heap_next_tick;
static inline void sp_heap_tick(uint64_t wall) {
    if (SP_UNLIKELY(wall >= sp_load(&sp_heap_next_tick))) sp_heap_tick_slow(wall);
}

/* Random numbers of all threads follow from that one from now on; 0: the system's. */
void sp_heap_seed(uint64_t seed);

/* --- accounts ----------------------------------------------------------------- */

/* Forget all accounts; from now on they are of that session. Owner only. */
void sp_accounts_reset(struct sp_accounts *accounts, enum sp_alloc_mode mode,
                       uint32_t generation);

/* The account of a path, made if new; NULL if memory ran out or nothing is tracked.
 * Owner only. */
struct sp_account *sp_account_slow(struct sp_accounts *accounts, uint32_t path);

/* Forget what the thread held; its first sample is drawn. Owner only. */
void sp_thread_heap_reset(struct sp_thread_heap *heap);

/* What the collector adds up of one path, or of all. */
struct sp_heap_sums {
    uint64_t objects, space, freed_objects, freed_space;
    uint64_t peak;  /* the highest of one account */
    uint32_t users; /* accounts (or threads) that were used; strays count as one */
};

/* Reading, by path, paths below `count`. Strays come first: where a block went from
 * thread to thread in the middle of it, rather too much is in use than too little. */
void sp_accounts_add(const struct sp_accounts *accounts, struct sp_heap_sums *sums,
                     uint32_t count);
void sp_heap_add_strays(uint32_t generation, struct sp_heap_sums *sums, uint32_t count);

/* The highest that a path's live bytes were; path 0: those of all paths together, for
 * which `sums` holds what all threads have in use. Never falls. */
uint64_t sp_heap_peak(uint32_t generation, uint32_t path,
                      const struct sp_heap_sums *sums);

/* In a child after fork: all values are zero, nothing is in the map. */
void sp_accounts_zero(struct sp_accounts *accounts);
void sp_heap_restart_in_child(void);

/* What a sampled block of that size counts for, in fixed point. */
void sp_heap_weigh(uint64_t size, uint64_t *objects, uint64_t *space);

#endif
