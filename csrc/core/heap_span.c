#include "heap_span.h"

#include "shadow.h"
#include "slab.h"
#include "span.h"
#include "stats.h"

#include <pthread.h>
#include <stdlib.h>

enum state { FREE, RUNNING, CLOSED, FOLDED };

struct record {
    sp_counter objects, space; /* live; any thread */
    sp_counter span_id;        /* written under the lock */
    _Atomic uint32_t path;     /* the same */
    enum state state;          /* under the lock, as all below */
    uint32_t next_free;
    uint32_t place; /* in `closed` */
};

/* A leaf lock. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct sp_slab records; /* numbers from 1 */
static uint32_t record_count, free_record;
static _Atomic uint32_t current_generation;
static uint32_t *closed; /* numbers of closed records */
static uint32_t closed_count, closed_room, max_closed;

static struct record *record_at(uint32_t number) {
    return sp_slab_at(&records, number, sizeof(struct record));
}
static struct record *record_of(uint32_t owner) {
    return record_at(owner - SP_OWNER_SPANS);
}

static void forget_all_locked(uint32_t generation) {
    atomic_store_explicit(&current_generation, generation, memory_order_relaxed);
    record_count = free_record = closed_count = 0;
}

void sp_heap_spans_begin(uint32_t generation, uint32_t most_closed) {
    pthread_mutex_lock(&lock);
    forget_all_locked(generation);
    max_closed = most_closed;
    pthread_mutex_unlock(&lock);
}

/* --- records ------------------------------------------------------------------ */

static uint32_t make_locked(const struct sp_span *span, uint32_t path) {
    uint32_t number = free_record;
    if (number != 0) {
        free_record = record_at(number)->next_free;
    } else {
        number = record_count + 1;
        if (number > SP_OWNER_MAX - SP_OWNER_SPANS ||
            !sp_slab_reserve(&records, number, sizeof(struct record)))
            return 0;
        record_count = number;
    }
    struct record *record = record_at(number);
    sp_store(&record->objects, 0);
    sp_store(&record->space, 0);
    sp_store(&record->span_id, span->id);
    atomic_store_explicit(&record->path, path, memory_order_relaxed);
    record->state = RUNNING;
    return number;
}

static void release_locked(uint32_t number) {
    struct record *record = record_at(number);
    if (record->state == CLOSED) {
        uint32_t last = closed[--closed_count];
        closed[record->place] = last;
        record_at(last)->place = record->place;
    }
    record->state = FREE;
    sp_store(&record->span_id, 0);
    record->next_free = free_record;
    free_record = number;
}

static void release_if_over_locked(uint32_t number) {
    struct record *record = record_at(number);
    bool over = record->state == CLOSED || record->state == FOLDED;
    if (over && atomic_load_explicit(&record->objects, memory_order_acquire) == 0)
        release_locked(number);
}

/* --- folding ------------------------------------------------------------------ */

struct sized {
    uint64_t space;
    uint32_t number;
};

static int smaller_first(const void *a, const void *b) {
    const struct sized *x = a, *y = b;
    return (x->space > y->space) - (x->space < y->space);
}

/* Fold the smallest eighth at a time: sorting for each single one would take a time
 * that grows with the square of their number. */
static void fold_locked(void) {
    uint32_t keep = max_closed - max_closed / 8;
    struct sized *order = malloc(closed_count * sizeof *order);
    for (uint32_t i = 0; order != NULL && i < closed_count; i++)
        order[i] = (struct sized){sp_load(&record_at(closed[i])->space), closed[i]};
    if (order != NULL) qsort(order, closed_count, sizeof *order, smaller_first);
    uint32_t count = closed_count - keep;
    for (uint32_t i = 0; i < count; i++) {
        /* Without memory to sort in, any will do. */
        uint32_t number = order != NULL ? order[i].number : closed[closed_count - 1];
        struct record *record = record_at(number);
        uint32_t last = closed[--closed_count];
        closed[record->place] = last;
        record_at(last)->place = record->place;
        record->state = FOLDED;
        sp_count(&sp_stats.heap_spans_folded);
        release_if_over_locked(number);
    }
    free(order);
}

static void close_locked(uint32_t number) {
    struct record *record = record_at(number);
    if (closed_count == closed_room) {
        uint32_t room = closed_room == 0 ? 64 : 2 * closed_room;
        uint32_t *longer = realloc(closed, room * sizeof *longer);
        if (longer == NULL) {
            record->state = FOLDED;
            sp_count(&sp_stats.heap_spans_folded);
            return;
        }
        closed = longer;
        closed_room = room;
    }
    record->state = CLOSED;
    record->place = closed_count;
    closed[closed_count++] = number;
}

/* --- calls -------------------------------------------------------------------- */

static bool is_record_of(uint32_t generation, const struct sp_span *span) {
    uint32_t owner = span->heap_owner;
    return owner != 0 && span->generation == generation &&
           generation ==
               atomic_load_explicit(&current_generation, memory_order_relaxed) &&
           sp_load(&record_of(owner)->span_id) == span->id;
}

SP_COLD uint32_t sp_heap_span_owner(uint32_t generation, struct sp_span *span,
                                    uint32_t path) {
    if (is_record_of(generation, span)) return span->heap_owner;
    if (span->generation != generation) return path;
    pthread_mutex_lock(&lock);
    uint32_t number = generation == current_generation ? make_locked(span, path) : 0;
    pthread_mutex_unlock(&lock);
    if (number == 0) return path;
    span->heap_owner = SP_OWNER_SPANS + number;
    span->slow_exit = true;
    return span->heap_owner;
}

void sp_heap_span_add(uint32_t owner, uint64_t objects, uint64_t space) {
    if (!sp_owner_is_span(owner)) return;
    struct record *record = record_of(owner);
    atomic_fetch_add_explicit(&record->objects, objects, memory_order_relaxed);
    atomic_fetch_add_explicit(&record->space, space, memory_order_relaxed);
}

void sp_heap_span_subtract(uint32_t generation, uint32_t owner, uint64_t objects,
                           uint64_t space) {
    if (!sp_owner_is_span(owner) ||
        generation != atomic_load_explicit(&current_generation, memory_order_relaxed))
        return;
    struct record *record = record_of(owner);
    atomic_fetch_sub_explicit(&record->space, space, memory_order_relaxed);
    if (atomic_fetch_sub_explicit(&record->objects, objects, memory_order_acq_rel) !=
        objects)
        return;
    pthread_mutex_lock(&lock);
    if (generation == current_generation)
        release_if_over_locked(owner - SP_OWNER_SPANS);
    pthread_mutex_unlock(&lock);
}

uint32_t sp_owner_path(uint32_t owner) {
    if (!sp_owner_is_span(owner)) return owner;
    return atomic_load_explicit(&record_of(owner)->path, memory_order_relaxed);
}

SP_COLD void sp_heap_span_closed(struct sp_span *span) {
    pthread_mutex_lock(&lock);
    if (is_record_of(span->generation, span)) {
        uint32_t number = span->heap_owner - SP_OWNER_SPANS;
        close_locked(number);
        release_if_over_locked(number);
        if (closed_count > max_closed) fold_locked();
    }
    pthread_mutex_unlock(&lock);
    span->heap_owner = 0;
}

void sp_heap_spans_each(void (*visit)(void *context,
                                      const struct sp_heap_span_view *view),
                        void *context) {
    pthread_mutex_lock(&lock);
    for (uint32_t number = 1; number <= record_count; number++) {
        const struct record *record = record_at(number);
        if (record->state != RUNNING && record->state != CLOSED) continue;
        struct sp_heap_span_view view = {
            sp_load(&record->span_id), record->path, sp_load(&record->objects),
            sp_load(&record->space), record->state == CLOSED};
        visit(context, &view);
    }
    pthread_mutex_unlock(&lock);
}

void sp_heap_spans_lock(void) {
    pthread_mutex_lock(&lock);
}
void sp_heap_spans_unlock(void) {
    pthread_mutex_unlock(&lock);
}
void sp_heap_spans_relock_in_child(void) {
    lock = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
    /* Spans of the parent find no record of theirs, and make new ones. */
    for (uint32_t number = 1; number <= record_count; number++)
        sp_store(&record_at(number)->span_id, 0);
    forget_all_locked(current_generation);
}
