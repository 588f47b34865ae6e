/* Reading the running session: all threads' cells added up by path. */
#include "profile.h"

#include "bigmem.h"
#include "session.h"
#include "span.h"
#include "stats.h"
#include "thread.h"

#include <sched.h>
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
    int64_t value[SP_METRIC_COUNT];
};

/* Under the collector's lock, as every call here. */
static struct sp_slab shown_slab, reported_slab;
static uint32_t shown_count, reported_count; /* paths that have an entry */

struct sums {
    uint32_t count;
    uint64_t (*of)[SP_VALUE_COUNT]; /* by path */
};

void sp_collect_reset(void) {
    shown_count = reported_count = 0;
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

struct running {
    const struct sp_cell *cell;
    uint64_t wall, cpu; /* the thread's last boundary */
    uint64_t busy_charged, cpu_charged;
};

/* The running cell, its time and the last boundary, as they were at one moment.
 * False if the thread would not hold still (it was descheduled in the middle of
 * a boundary): its time is not lost, it only comes with a later reading. */
static bool read_running(const struct sp_thread *thread, struct running *running) {
    for (int attempt = 0; attempt < 200; attempt++) {
        uint32_t before = atomic_load_explicit(&thread->sequence, memory_order_acquire);
        if (before % 2 == 0) {
            running->cell = atomic_load_explicit(&thread->cell, memory_order_acquire);
            if (running->cell == NULL) return false;
            running->wall = sp_load(&thread->at_wall);
            running->cpu = sp_load(&thread->at_cpu);
            running->busy_charged = sp_load(&running->cell->value[SP_VALUE_BUSY]);
            running->cpu_charged = sp_load(&running->cell->value[SP_VALUE_CPU]);
            atomic_thread_fence(memory_order_acquire);
            if (atomic_load_explicit(&thread->sequence, memory_order_relaxed) == before)
                return true;
        }
        if (attempt % 20 == 19) sched_yield();
    }
    sp_count(&sp_stats.running_skipped);
    return false;
}

/* Add the thread's cells, and what its running span has used since the last
 * boundary. The clocks are read before the boundary is: a thread that moves on
 * meanwhile makes the share come out too small, never counted twice. */
static void add_thread(const struct sp_thread *thread, struct sums *sums) {
    const struct sp_cell *seen =
        atomic_load_explicit(&thread->cell, memory_order_acquire);
    bool busy = seen != NULL && seen->path != SP_PATH_ROOT &&
                atomic_load_explicit(&thread->alive, memory_order_relaxed);
    uint64_t cpu_now = 0, wall_now = sp_clock_wall();
    bool cpu_known = busy && sp_session_config.track_cpu &&
                     sp_clock_cpu_of(&thread->clock, &cpu_now);

    struct running running;
    bool still = busy && read_running(thread, &running) && running.cell == seen;
    uint64_t busy_then = still ? running.busy_charged : 0;
    uint64_t cpu_then = still ? running.cpu_charged : 0;
    add_cells(thread, sums);
    if (!still || seen->path >= sums->count) return;

    /* Count only what the cells just added do not hold yet. */
    uint64_t *sum = sums->of[seen->path];
    uint64_t busy_more = sp_load(&seen->value[SP_VALUE_BUSY]) - busy_then;
    uint64_t cpu_more = sp_load(&seen->value[SP_VALUE_CPU]) - cpu_then;
    uint64_t busy_due = wall_now > running.wall ? wall_now - running.wall : 0;
    uint64_t cpu_due = cpu_known && cpu_now > running.cpu ? cpu_now - running.cpu : 0;
    if (busy_due > busy_more) sum[SP_VALUE_BUSY] += busy_due - busy_more;
    if (cpu_due > cpu_more) sum[SP_VALUE_CPU] += cpu_due - cpu_more;
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
    node->value[SP_ALLOC_OBJECTS] = (int64_t)sum[SP_VALUE_ALLOCS];
    node->value[SP_ALLOC_SPACE] = (int64_t)sum[SP_VALUE_BYTES];
}

/* The values of every path so far; NULL out of memory. */
static struct sp_profile *collect(void) {
    uint64_t began = monotonic_now();
    uint32_t generation = sp_session_running();
    struct sums sums = {sp_paths_count(), NULL};
    size_t size = sums.count * sizeof *sums.of;
    sums.of = sp_big_alloc(size);
    struct sp_profile *profile = sp_profile_new(sums.count - 1);
    if (sums.of == NULL || profile == NULL) {
        sp_big_free(sums.of, size);
        sp_profile_free(profile);
        sp_count(&sp_stats.out_of_memory);
        return NULL;
    }
    uint64_t wall = sp_clock_wall();
    for (const struct sp_thread *t = sp_thread_list(); t != NULL; t = t->next)
        if (atomic_load_explicit(&t->data_generation, memory_order_acquire) ==
            generation)
            add_thread(t, &sums);
    sp_span_each_idle(generation, wall, add_idle, &sums);

    profile->start_unix = sp_session_started_unix;
    profile->duration = wall - sp_session_started_wall;
    profile->kinds = SP_BIT(SP_KIND_CALLS);
    if (sp_session_config.track_wall) profile->kinds |= SP_BIT(SP_KIND_WALL);
    if (sp_session_config.track_cpu) profile->kinds |= SP_BIT(SP_KIND_CPU);
    if (sp_session_config.track_allocations) profile->kinds |= SP_BIT(SP_KIND_ALLOC);
    for (uint32_t path = 1; path < sums.count; path++)
        fill_node(&profile->nodes[path - 1], path, sums.of[path]);

    sp_big_free(sums.of, size);
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
    struct sp_profile *profile = collect();
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

struct sp_profile *sp_collect_delta(struct sp_profile **cumulative) {
    static uint64_t reported_until; /* duration at the last delta */
    struct sp_profile *profile = collect();
    if (cumulative != NULL) *cumulative = NULL;
    if (profile == NULL) return NULL;
    if (cumulative != NULL) *cumulative = tidy(sp_profile_copy(profile));
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
        for (int i = 0; i < SP_METRIC_COUNT; i++) {
            int64_t now = node->value[i];
            node->value[i] = now - reported->value[i];
            reported->value[i] = now;
        }
    }
    profile->start_unix += reported_until;
    profile->duration -= reported_until;
    reported_until += profile->duration;
    sp_profile_prune(profile); /* keeps empty nodes if memory runs out */
    return profile;
}
