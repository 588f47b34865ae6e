#include "feed_read.h"

#include "bigmem.h"
#include "session.h"
#include "span.h"
#include "stats.h"
#include "thread.h"

#include <sched.h>
#include <sys/mman.h>

static bool is_readable(const struct sp_thread *thread, uint32_t generation) {
    return atomic_load_explicit(&thread->data_generation, memory_order_acquire) ==
               generation &&
           thread->feed.on;
}

/* --- spans that are over ---------------------------------------------------------- */

static uint64_t waiting(struct sp_feed *feed) {
    return atomic_load_explicit(&feed->written, memory_order_acquire) -
           atomic_load_explicit(&feed->taken, memory_order_relaxed);
}

bool sp_feed_some_due(void) {
    uint32_t generation = sp_session_running();
    for (struct sp_thread *t = sp_thread_list(); t != NULL; t = t->next)
        if (is_readable(t, generation) && waiting(&t->feed) >= sp_feed_due_at(&t->feed))
            return true;
    return false;
}

/* From the wall clock's to Unix time, from a path to what is there, and nothing of what
 * is not tracked. */
static void finish(struct sp_feed_record *record) {
    int64_t to_unix =
        (int64_t)sp_session_started_unix - (int64_t)sp_session_started_wall;
    sp_key key = sp_path_key(record->callsite);
    record->callsite = sp_key_callsite(key);
    record->labels = sp_key_labels(key);
    record->start += to_unix;
    record->end += to_unix;
    /* Without CPU times, the cells count wall time in their place. */
    if (!sp_session_config.track_cpu) record->cpu_user = record->cpu_system = 0;
    if (!sp_session_config.track_wall) record->wall_busy = record->wall_idle = 0;
    if (sp_heap_is_sampled()) {
        record->alloc_objects = sp_heap_rounded(record->alloc_objects);
        record->alloc_space = sp_heap_rounded(record->alloc_space);
    }
}

static size_t copy_from(struct sp_feed *feed, struct sp_feed_record *to, size_t most,
                        bool take) {
    uint64_t taken = atomic_load_explicit(&feed->taken, memory_order_relaxed);
    size_t count = feed->counted < most ? (size_t)feed->counted : most;
    for (size_t n = 0; n < count; n++) {
        to[n] = *sp_feed_record_at(feed, taken + n);
        finish(&to[n]);
    }
    if (take) atomic_store_explicit(&feed->taken, taken + count, memory_order_release);
    return count;
}

static void give_back(struct sp_feed *feed) {
    if (feed->ring != NULL)
        madvise(feed->ring, feed->ring_size * sizeof *feed->ring, MADV_DONTNEED);
}

/* Records in a ring from which on it is worth a system call to give it back. */
#define LARGE 4096u

/* A thread that has ended writes no more, and the next one that takes over its state
 * may be long in coming. It has to take the lock for that. */
static void give_back_if_ended(struct sp_thread *thread) {
    struct sp_feed *feed = &thread->feed;
    if (atomic_load_explicit(&thread->alive, memory_order_relaxed)) return;
    uint64_t written = atomic_load_explicit(&feed->written, memory_order_acquire);
    uint64_t origin = atomic_load_explicit(&feed->origin, memory_order_relaxed);
    if (waiting(feed) != 0 || written - origin < LARGE) return;
    sp_threads_lock();
    if (!atomic_load_explicit(&thread->alive, memory_order_relaxed) &&
        waiting(feed) == 0) {
        give_back(feed);
        written = atomic_load_explicit(&feed->written, memory_order_relaxed);
        atomic_store_explicit(&feed->origin, written, memory_order_relaxed);
    }
    sp_threads_unlock();
}

void sp_feed_end(uint32_t generation) {
    for (struct sp_thread *t = sp_thread_list(); t != NULL; t = t->next)
        if (is_readable(t, generation)) give_back(&t->feed);
}

static struct sp_feed_batch *copy_waiting(bool take, bool *all) {
    uint32_t generation = sp_session_running();
    /* Counted first, so that a thread that goes on writing takes no other's room. */
    struct sp_thread *threads = sp_thread_list();
    uint64_t there = 0;
    for (struct sp_thread *t = threads; t != NULL; t = t->next) {
        t->feed.counted = is_readable(t, generation) ? waiting(&t->feed) : 0;
        there += t->feed.counted;
    }
    *all = there < SP_FEED_BATCH;
    if (there == 0) return NULL;
    size_t room = there < SP_FEED_BATCH ? (size_t)there : SP_FEED_BATCH;
    size_t size = sizeof(struct sp_feed_batch) + room * sizeof(struct sp_feed_record);
    struct sp_feed_batch *batch = sp_big_alloc(size);
    if (batch == NULL) {
        sp_count(&sp_stats.out_of_memory);
        *all = false;
        return NULL;
    }
    batch->size = size;
    for (struct sp_thread *t = threads; t != NULL; t = t->next)
        if (t->feed.counted != 0)
            batch->count += copy_from(&t->feed, batch->records + batch->count,
                                      room - batch->count, take);
    if (take)
        for (struct sp_thread *t = sp_thread_list(); t != NULL; t = t->next)
            if (is_readable(t, generation)) give_back_if_ended(t);
    return batch;
}

struct sp_feed_batch *sp_feed_take(void) {
    bool all;
    return copy_waiting(true, &all);
}
struct sp_feed_batch *sp_feed_peek(bool *all) {
    return copy_waiting(false, all);
}

void sp_feed_batch_free(struct sp_feed_batch *batch) {
    if (batch != NULL) sp_big_free(batch, batch->size);
}

/* --- spans that are not ------------------------------------------------------------
 */

/* A span with a total that is entered: what it used there. */
struct entered {
    const struct sp_feed_total *total;
    struct sp_feed_used used;
    uint64_t system;
};

struct reading {
    struct sp_open_spans *spans;
    struct entered *entered; /* sorted by total before opened spans are visited */
    size_t entered_count, entered_room;
    uint64_t wall;
};

/* One base as it was at one moment. */
struct seen {
    const struct sp_cell *cell;
    uint64_t id, parent;
    const struct sp_feed_total *total;
    struct sp_feed_used now, before;
    uint64_t system;
    bool totalled;
};

static void *grown(void *items, size_t *room, size_t count, size_t item_size) {
    if (count < *room) return items;
    size_t more = *room == 0 ? 64 : 2 * *room;
    void *longer = realloc(items, more * item_size);
    if (longer != NULL) *room = more;
    return longer;
}

static void add_open(struct reading *reading, uint64_t id, uint64_t parent,
                     uint32_t path, const struct sp_feed_used *used, uint64_t idle,
                     uint64_t system) {
    struct sp_open_spans *spans = reading->spans;
    struct sp_open_span *items =
        grown(spans->items, &spans->room, spans->count, sizeof *items);
    if (items == NULL) {
        sp_count(&sp_stats.out_of_memory);
        spans->complete = false;
        return;
    }
    spans->items = items;
    sp_key key = sp_path_key(path);
    struct sp_open_span *item = &items[spans->count++];
    *item = (struct sp_open_span){
        id, parent, sp_key_callsite(key), sp_key_labels(key), *used, idle, system};
    if (!sp_session_config.track_cpu) item->used.cpu = item->system = 0;
    if (!sp_session_config.track_wall) item->used.busy = item->idle = 0;
    if (sp_heap_is_sampled()) {
        item->used.objects = sp_heap_rounded(used->objects);
        item->used.space = sp_heap_rounded(used->space);
    }
}

static void add_entered(struct reading *reading, const struct sp_feed_total *total,
                        const struct sp_feed_used *used, uint64_t system) {
    struct entered *items = grown(reading->entered, &reading->entered_room,
                                  reading->entered_count, sizeof *items);
    if (items == NULL) {
        sp_count(&sp_stats.out_of_memory);
        reading->spans->complete = false;
        return;
    }
    reading->entered = items;
    items[reading->entered_count++] = (struct entered){total, *used, system};
}

/* False if there is none, or none any more. */
static bool read_base(const struct sp_feed *feed, uint32_t number, struct seen *seen) {
    const struct sp_feed_base *base = sp_feed_base_at(feed, number);
    seen->id = atomic_load_explicit(&base->id, memory_order_acquire);
    if (seen->id == 0) return false;
    seen->totalled = atomic_load_explicit(&base->totalled, memory_order_relaxed);
    seen->total = NULL;
    seen->parent = 0;
    if (seen->totalled)
        seen->total = atomic_load_explicit(&base->total, memory_order_relaxed);
    else
        seen->parent = sp_load(&base->parent);
    seen->before = sp_feed_before(base);
    seen->cell = atomic_load_explicit(&base->cell, memory_order_relaxed);
    atomic_thread_fence(memory_order_acquire);
    if (sp_load(&base->id) != seen->id) return false; /* the cell may be a mixture */
    seen->now = sp_feed_counters(seen->cell);
    uint64_t told = sp_load(&seen->cell->system_told);
    uint64_t system = sp_load(&seen->cell->value[SP_VALUE_SYSTEM]);
    seen->system = system > told ? system - told : 0;
    return true;
}

/* How many of the bases read are still there. */
static uint32_t still_there(const struct sp_feed *feed, const struct seen *seen,
                            uint32_t count) {
    atomic_thread_fence(memory_order_acquire);
    uint32_t now = atomic_load_explicit(&feed->count, memory_order_acquire);
    if (count > now) count = now;
    for (uint32_t n = 0; n < count; n++)
        if (sp_load(&sp_feed_base_at(feed, n)->id) != seen[n].id) return n;
    return count;
}

/* One thread's spans: its bases, the innermost last. */
struct stack {
    struct seen *items;
    size_t room;
    uint32_t count;
    bool runs;
    struct sp_running running;
};

/* As many bases as stayed there meanwhile; those that did not are over, or have only
 * just begun. False out of memory. */
static bool read_bases(struct stack *stack, const struct sp_feed *feed) {
    uint32_t there = atomic_load_explicit(&feed->count, memory_order_acquire), n = 0;
    for (; n < there; n++) {
        struct seen *items = grown(stack->items, &stack->room, n, sizeof *items);
        if (items == NULL) return false;
        stack->items = items;
        if (!read_base(feed, n, &items[n])) break;
    }
    stack->count = still_there(feed, stack->items, n);
    return true;
}

/* False if the thread would not hold still, or out of memory. */
static bool read_stack(struct stack *stack, const struct sp_thread *thread) {
    const struct sp_feed *feed = &thread->feed;
    for (int attempt = 0; attempt < 100; attempt++) {
        uint32_t before = atomic_load_explicit(&feed->sequence, memory_order_acquire);
        if (before % 2 == 0) {
            stack->runs = sp_thread_read_running(thread, &stack->running);
            if (!read_bases(stack, feed)) {
                sp_count(&sp_stats.out_of_memory);
                return false;
            }
            atomic_thread_fence(memory_order_acquire);
            if (atomic_load_explicit(&feed->sequence, memory_order_relaxed) == before)
                return true;
        }
        if (attempt % 20 == 19) sched_yield();
    }
    sp_count(&sp_stats.running_skipped);
    return false;
}

/* What a span used: what its cell counted since, but for what spans above it did that
 * have the same cell. */
static struct sp_feed_used used_by(const struct seen *seen, uint32_t number,
                                   uint32_t count) {
    struct sp_feed_used used = seen[number].now;
    for (uint32_t above = number + 1; above < count; above++) {
        if (seen[above].cell != seen[number].cell) continue;
        used = seen[above].before;
        break;
    }
    sp_feed_subtract(&used, &seen[number].before);
    return used;
}

static void read_thread(struct reading *reading, const struct sp_thread *thread,
                        struct stack *stack) {
    if (!read_stack(stack, thread)) {
        reading->spans->complete = false;
        return;
    }
    uint32_t count = stack->count;
    for (uint32_t n = 0; n < count; n++) {
        const struct seen *item = &stack->items[n];
        struct sp_feed_used used = used_by(stack->items, n, count);
        if (n + 1 == count && stack->runs && stack->running.cell == item->cell)
            sp_running_add(&stack->running, item->now.busy, item->now.cpu, &used.busy,
                           &used.cpu);
        uint64_t system = item->system < used.cpu ? item->system : used.cpu;
        if (!item->totalled)
            add_open(reading, item->id, item->parent, item->cell->path, &used, 0,
                     system);
        else if (item->total != NULL)
            add_entered(reading, item->total, &used, system);
    }
}

static int by_total(const void *a, const void *b) {
    const struct entered *x = a, *y = b;
    return (x->total > y->total) - (x->total < y->total);
}

static void add_opened(void *context, const struct sp_span *span) {
    struct reading *reading = context;
    const struct sp_feed_total *total = span->feed_total;
    if (total == NULL) return;
    struct sp_feed_used used = total->used;
    uint64_t idle = total->idle, system = total->system;
    if (sp_span_state(span) != SP_SPAN_ENTERED && reading->wall > span->idle_since)
        idle += reading->wall - span->idle_since;
    struct entered key = {.total = total};
    const struct entered *entered =
        reading->entered_count != 0
            ? bsearch(&key, reading->entered, reading->entered_count, sizeof key,
                      by_total)
            : NULL;
    if (entered != NULL) {
        sp_feed_add(&used, &entered->used);
        system += entered->system;
    }
    add_open(reading, span->id, total->parent, span->path, &used, idle, system);
}

void sp_feed_read_open(struct sp_open_spans *spans) {
    uint32_t generation = sp_session_running();
    struct reading reading = {.spans = spans};
    struct stack stack = {.items = NULL};
    spans->count = 0;
    spans->complete = true;
    sp_spans_lock(); /* opened spans are neither entered nor left meanwhile */
    reading.wall = sp_clock_wall();
    for (struct sp_thread *t = sp_thread_list(); t != NULL; t = t->next)
        if (is_readable(t, generation)) read_thread(&reading, t, &stack);
    if (reading.entered_count != 0)
        qsort(reading.entered, reading.entered_count, sizeof *reading.entered,
              by_total);
    sp_span_each_opened(generation, add_opened, &reading);
    sp_spans_unlock();
    free(reading.entered);
    free(stack.items);
}

void sp_open_spans_free(struct sp_open_spans *spans) {
    free(spans->items);
    *spans = (struct sp_open_spans){0};
}
