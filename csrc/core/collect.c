/* Reading the running session: all threads' cells added up by path. */
#include "profile.h"

#include "ages.h"
#include "bigmem.h"
#include "session.h"
#include "span.h"
#include "stats.h"
#include "suspend.h"
#include "thread.h"

#include <string.h>
#include <time.h>

/* What was given out of one path, so that no value ever falls: a running span's
 * time is first read from outside and later charged by its thread, whose clock may
 * differ by some nanoseconds; an idle span may be entered in the middle of a reading,
 * which then misses it; and system time may be found only after it was taken for user
 * time. `reported` is the base line of the next delta as well; `shown` holds what
 * snapshots gave out, and takes no memory before the first one. */
struct shown {
    uint64_t busy, idle, cpu, user;
};
struct reported {
    int64_t value[SP_METRIC_SUMS];
    int64_t peak; /* the highest that a delta told */
};

/* Under the collector's lock, as every call here. */
static struct sp_slab shown_slab, reported_slab;
static uint32_t shown_count, reported_count; /* paths that have an entry */
/* Without reports, snapshots are what the growth of old blocks is seen by. */
static bool reports_are_taken;
static uint64_t heap_told_at; /* Unix time of the last delta with the heap; 0: none */

struct sums {
    uint32_t count;
    uint64_t (*of)[SP_VALUE_COUNT]; /* by path */
    struct sp_heap_sums *heap;      /* by path; [0] is all paths; NULL: not tracked */
};

void sp_collect_reset(void) {
    shown_count = reported_count = 0;
    reports_are_taken = false;
    heap_told_at = 0;
    sp_ages_reset();
}

/* Entries for all paths below `count`, new ones zero. */
static bool slab_extend(struct sp_slab *slab, uint32_t *have, uint32_t count,
                        size_t item_size) {
    for (; *have < count; (*have)++) {
        if (!sp_slab_reserve(slab, *have, item_size)) return false;
        memset(sp_slab_at(slab, *have, item_size), 0, item_size);
    }
    return true;
}

/* --- one thread ----------------------------------------------------------- */

static void add_cells(const struct sp_thread *thread, struct sums *sums) {
    uint32_t count = atomic_load_explicit(&thread->cells.count, memory_order_acquire);
    for (unsigned chunk = 0; sp_slab_chunk_start(chunk) < count; chunk++) {
        uint32_t start = sp_slab_chunk_start(chunk);
        uint32_t size = sp_slab_chunk_size(chunk);
        uint32_t here = count - start < size ? count - start : size;
        const struct sp_cell *cell = sp_cell_at(&thread->cells, start);
        for (const struct sp_cell *end = cell + here; cell != end; cell++) {
            if (cell->path >= sums->count) continue; /* younger than this reading */
            uint64_t *sum = sums->of[cell->path];
            for (int i = 0; i < SP_VALUE_COUNT; i++) sum[i] += sp_load(&cell->value[i]);
        }
    }
}

/* Add the thread's cells, and what its running span has used since the last
 * boundary. */
static void add_thread(const struct sp_thread *thread, struct sums *sums) {
    struct sp_running running;
    bool runs = sp_thread_read_running(thread, &running);
    add_cells(thread, sums);
    if (!runs || running.cell->path >= sums->count) return;
    uint64_t *sum = sums->of[running.cell->path];
    sp_running_add(&running, sp_load(&running.cell->value[SP_VALUE_BUSY]),
                   sp_load(&running.cell->value[SP_VALUE_CPU]), &sum[SP_VALUE_BUSY],
                   &sum[SP_VALUE_CPU]);
}

/* --- memory ----------------------------------------------------------------- */

static const struct sp_thread *next_of(uint32_t generation, const struct sp_thread *t) {
    while (t != NULL && atomic_load_explicit(&t->data_generation,
                                             memory_order_acquire) != generation)
        t = t->next;
    return t;
}
#define EACH_THREAD(t, generation)                                                     \
    for (const struct sp_thread *t = next_of(generation, sp_thread_list()); t != NULL; \
         t = next_of(generation, t->next))

static void add_heap(uint32_t generation, struct sums *sums) {
    struct sp_heap_sums *heap = sums->heap, *all = &heap[SP_PATH_ROOT];
    if (sp_session_config.track_heap) sp_heap_add_strays(generation, heap, sums->count);
    EACH_THREAD(t, generation) {
        sp_accounts_add(&t->cells.accounts, heap, sums->count);
        /* Of all paths together. */
        uint64_t live = sp_load(&t->heap.live), peak = sp_load(&t->heap.peak);
        all->space += live;
        if (atomic_load_explicit(&t->heap.took_part, memory_order_relaxed))
            all->users++;
        if ((int64_t)peak > (int64_t)all->peak) all->peak = peak;
    }
}

/* Counters of a sampled session are in fixed point. */
static int64_t whole(uint64_t value) {
    if (!sp_heap_is_sampled()) return (int64_t)value;
    return (int64_t)sp_heap_rounded(value);
}

/* What is in use. A block that one thread made and another freed in the middle of a
 * reading may be seen free only. */
static uint64_t level(uint64_t allocated, uint64_t freed) {
    return allocated > freed ? allocated - freed : 0;
}

static void fill_memory(struct sp_node *node, uint32_t path, const struct sums *sums,
                        uint32_t generation) {
    if (sums->heap == NULL) return;
    const struct sp_heap_sums *sum = &sums->heap[path];
    if (!sp_session_config.track_heap) {
        node->value[SP_ALLOC_OBJECTS] = (int64_t)sum->objects;
        node->value[SP_ALLOC_SPACE] = (int64_t)sum->space;
        return;
    }
    node->value[SP_ALLOC_OBJECTS] = whole(sum->objects);
    node->value[SP_ALLOC_SPACE] = whole(sum->space);
    node->value[SP_INUSE_OBJECTS] = whole(level(sum->objects, sum->freed_objects));
    node->value[SP_INUSE_SPACE] = whole(level(sum->space, sum->freed_space));
    node->value[SP_INUSE_PEAK_SPACE] = whole(sp_heap_peak(generation, path, sum));
}

/* --- all of them ------------------------------------------------------------ */

static void add_idle(void *context, uint32_t path, uint64_t idle) {
    struct sums *sums = context;
    if (path < sums->count) sums->of[path][SP_VALUE_IDLE] += idle;
}

static uint64_t monotonic_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint64_t larger(uint64_t a, uint64_t b) {
    return a > b ? a : b;
}

/* The path's times, none below what was given out before. */
static struct shown times_of(uint32_t path, const uint64_t *sum) {
    uint64_t cpu = sum[SP_VALUE_CPU], system = sum[SP_VALUE_SYSTEM];
    struct shown times = {sum[SP_VALUE_BUSY], sum[SP_VALUE_IDLE], cpu,
                          cpu > system ? cpu - system : 0};
    if (path < reported_count) {
        const int64_t *reported = ((struct reported *)sp_slab_at(
                                       &reported_slab, path, sizeof(struct reported)))
                                      ->value;
        uint64_t user = (uint64_t)reported[SP_CPU_USER];
        times.busy = larger(times.busy, (uint64_t)reported[SP_WALL_BUSY]);
        times.idle = larger(times.idle, (uint64_t)reported[SP_WALL_IDLE]);
        times.cpu = larger(times.cpu, user + (uint64_t)reported[SP_CPU_SYSTEM]);
        times.user = larger(times.user, user);
    }
    if (path < shown_count) {
        const struct shown *shown = sp_slab_at(&shown_slab, path, sizeof *shown);
        times.busy = larger(times.busy, shown->busy);
        times.idle = larger(times.idle, shown->idle);
        times.cpu = larger(times.cpu, shown->cpu);
        times.user = larger(times.user, shown->user);
    }
    return times;
}

static void fill_node(struct sp_node *node, uint32_t path, const uint64_t *sum) {
    struct shown times = times_of(path, sum);
    sp_key key = sp_path_key(path);
    node->parent = (int32_t)sp_path_parent(path) - 1;
    node->callsite = sp_key_callsite(key);
    node->labels = sp_key_labels(key);
    memset(node->value, 0, sizeof node->value);
    node->value[SP_CALLS] = (int64_t)sum[SP_VALUE_CALLS];
    if (sp_session_config.track_wall) {
        node->value[SP_WALL_BUSY] = (int64_t)times.busy;
        node->value[SP_WALL_IDLE] = (int64_t)times.idle;
    }
    if (sp_session_config.track_cpu) {
        node->value[SP_CPU_USER] = (int64_t)times.user;
        node->value[SP_CPU_SYSTEM] = (int64_t)(times.cpu - times.user);
    }
}

/* What a session that tracks the heap knows beside its nodes. */
static void fill_heap(struct sp_profile *profile, const struct sums *sums,
                      uint32_t generation, uint64_t wall, bool is_report) {
    profile->kinds |= SP_BIT(SP_KIND_HEAP);
    profile->level_start = profile->start_unix;
    profile->level_end = profile->start_unix + profile->duration;
    profile->heap_peak =
        whole(sp_heap_peak(generation, SP_PATH_ROOT, &sums->heap[SP_PATH_ROOT]));
    if (!sp_ages_take(sums->count, wall, is_report) || !sp_profile_add_ages(profile)) {
        sp_count(&sp_stats.out_of_memory);
        return; /* a profile without ages is better than none */
    }
    for (uint32_t n = 0; n < profile->count; n++) profile->ages[n] = *sp_ages_of(n + 1);
}

/* The values of every path so far; NULL out of memory. */
static struct sp_profile *collect(bool is_report) {
    uint64_t began = monotonic_now();
    uint32_t generation = sp_session_running();
    struct sums sums = {sp_paths_count(), NULL, NULL};
    bool memory = sp_session_config.track_allocations;
    size_t size = sums.count * sizeof *sums.of;
    size_t heap_size = memory ? sums.count * sizeof *sums.heap : 0;
    sums.of = sp_big_alloc(size);
    sums.heap = memory ? sp_big_alloc(heap_size) : NULL;
    struct sp_profile *profile = sp_profile_new(sums.count - 1);
    if (sums.of == NULL || profile == NULL || (memory && sums.heap == NULL)) {
        sp_big_free(sums.of, size);
        sp_big_free(sums.heap, heap_size);
        sp_profile_free(profile);
        sp_count(&sp_stats.out_of_memory);
        return NULL;
    }
    uint64_t wall = sp_clock_wall();
    sp_heap_tick(wall);
    EACH_THREAD(t, generation) add_thread(t, &sums);
    if (memory) add_heap(generation, &sums);
    sp_span_each_idle(generation, wall, add_idle, &sums);
    sp_span_each_suspended(generation, wall, add_idle, &sums);

    profile->start_unix = sp_session_started_unix;
    profile->duration = wall - sp_session_started_wall;
    profile->kinds = SP_BIT(SP_KIND_CALLS);
    if (sp_session_config.track_wall) profile->kinds |= SP_BIT(SP_KIND_WALL);
    if (sp_session_config.track_cpu) profile->kinds |= SP_BIT(SP_KIND_CPU);
    if (memory) profile->kinds |= SP_BIT(SP_KIND_ALLOC);
    for (uint32_t path = 1; path < sums.count; path++) {
        struct sp_node *node = &profile->nodes[path - 1];
        fill_node(node, path, sums.of[path]);
        fill_memory(node, path, &sums, generation);
    }
    if (sp_session_config.track_heap)
        fill_heap(profile, &sums, generation, wall, is_report);

    sp_big_free(sums.of, size);
    sp_big_free(sums.heap, heap_size);
    sp_count(&sp_stats.snapshots);
    atomic_fetch_add_explicit(&sp_stats.snapshot_nanos, monotonic_now() - began,
                              memory_order_relaxed);
    return profile;
}

/* Drop what holds nothing. NULL out of memory. */
static struct sp_profile *tidy(struct sp_profile *profile) {
    if (profile != NULL && !sp_profile_prune(profile)) {
        sp_count(&sp_stats.out_of_memory);
        sp_profile_free(profile);
        return NULL;
    }
    return profile;
}

struct sp_profile *sp_collect_cumulative(void) {
    struct sp_profile *profile = collect(!reports_are_taken);
    if (profile == NULL) return NULL;
    if (!slab_extend(&shown_slab, &shown_count, profile->count + 1,
                     sizeof(struct shown))) {
        sp_count(&sp_stats.out_of_memory);
        sp_profile_free(profile);
        return NULL;
    }
    for (uint32_t n = 0; n < profile->count; n++) {
        const int64_t *value = profile->nodes[n].value;
        struct shown *shown = sp_slab_at(&shown_slab, n + 1, sizeof *shown);
        *shown =
            (struct shown){(uint64_t)value[SP_WALL_BUSY], (uint64_t)value[SP_WALL_IDLE],
                           (uint64_t)(value[SP_CPU_USER] + value[SP_CPU_SYSTEM]),
                           (uint64_t)value[SP_CPU_USER]};
    }
    return tidy(profile);
}

/* A node that did nothing since the last delta, and holds nothing, is not in it; unless
 * its peak is news, as the deltas before it may have told nothing of the heap. */
static void forget_peak_if_unused(struct sp_node *node, int64_t *told) {
    int64_t peak = node->value[SP_INUSE_PEAK_SPACE];
    node->value[SP_INUSE_PEAK_SPACE] = 0;
    if (peak > *told || !sp_node_empty(node)) node->value[SP_INUSE_PEAK_SPACE] = peak;
    if (peak > *told) *told = peak;
}

/* Whether this delta is to tell of the heap. A report comes now and then a little
 * before the interval is over. */
static bool is_heap_due(const struct sp_profile *profile, bool is_last) {
    if (!(profile->kinds & SP_BIT(SP_KIND_HEAP))) return true;
    uint64_t interval = sp_session_config.heap_interval;
    uint64_t since = profile->level_end - heap_told_at;
    if (!is_last && heap_told_at != 0 && since < interval - interval / 10) return false;
    heap_told_at = profile->level_end;
    return true;
}

static void drop_levels(struct sp_profile *profile) {
    profile->kinds &= ~SP_BIT(SP_KIND_HEAP);
    for (uint32_t n = 0; n < profile->count; n++) {
        int64_t *value = profile->nodes[n].value;
        for (int i = 0; i < SP_METRIC_COUNT; i++)
            if (sp_metric_natures[i] != SP_SUM) value[i] = 0;
    }
    profile->heap_peak = 0;
    sp_profile_drop_ages(profile);
}

struct sp_profile *sp_collect_delta(struct sp_profile **cumulative) {
    static uint64_t reported_until; /* duration at the last delta */
    reports_are_taken = true;
    struct sp_profile *profile = collect(true);
    if (cumulative != NULL) *cumulative = NULL;
    if (profile == NULL) return NULL;
    if (cumulative != NULL) *cumulative = tidy(sp_profile_copy(profile));
    if (!is_heap_due(profile, cumulative != NULL)) drop_levels(profile);
    if (reported_count == 0) reported_until = 0;
    if (!slab_extend(&reported_slab, &reported_count, profile->count + 1,
                     sizeof(struct reported))) {
        sp_profile_free(profile);
        return NULL;
    }
    /* Prune only what never fails from here on: the base line moves below. */
    for (uint32_t n = 0; n < profile->count; n++) {
        struct sp_node *node = &profile->nodes[n];
        struct reported *reported = sp_slab_at(&reported_slab, n + 1, sizeof *reported);
        for (int i = 0; i < SP_METRIC_SUMS; i++) {
            int64_t now = node->value[i];
            node->value[i] = now - reported->value[i];
            reported->value[i] = now;
        }
        forget_peak_if_unused(node, &reported->peak);
    }
    profile->start_unix += reported_until;
    profile->level_start = profile->start_unix;
    profile->duration -= reported_until;
    reported_until += profile->duration;
    sp_profile_prune(profile); /* keeps empty nodes if memory runs out */
    return profile;
}
