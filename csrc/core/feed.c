#include "feed.h"

#include "bigmem.h"
#include "session.h"
#include "span.h"
#include "stats.h"
#include "thread.h"

#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/* CPU time from which a span's own share of the system's time is asked for when it
 * ends, rather than shared out with that of its successors. */
#define SPLIT_FROM 100000u /* ns */

void (*_Atomic sp_feed_is_due)(void);

static sp_counter wanted; /* the running session's limit; 0: no feed */

void sp_feed_begin(uint64_t limit) {
    sp_store(&wanted, limit);
}

/* --- the ring ------------------------------------------------------------------- */

/* How many records are written between two looks at what was taken, and from how many
 * on they should be. A reporter in Python may have to wait for the GIL before it can
 * take any: for 5 ms, which is long. */
#define LOOK_EVERY 256u
#define DUE 4096u

static size_t ring_bytes(uint32_t size) {
    return size * sizeof(struct sp_feed_record);
}

/* Memory where it is written alone. */
static struct sp_feed_record *map_ring(uint32_t size) {
    void *memory = mmap(NULL, ring_bytes(size), PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return memory != MAP_FAILED ? memory : NULL;
}

static uint64_t due_at(const struct sp_feed *feed) {
    return feed->limit / 2 < DUE ? feed->limit / 2 + 1 : DUE;
}

/* Nobody reads it: the thread is in no session. */
static void make_ring(struct sp_feed *feed, uint64_t limit) {
    uint32_t size = 2;
    while (size < limit && size < (uint32_t)1 << 31) size *= 2;
    if (size != feed->ring_size) {
        if (feed->ring != NULL) munmap(feed->ring, ring_bytes(feed->ring_size));
        feed->ring = map_ring(size);
        feed->ring_size = feed->ring != NULL ? size : 0;
    }
    feed->limit = limit < feed->ring_size ? limit : feed->ring_size;
    if (feed->ring != NULL) madvise(feed->ring, ring_bytes(size), MADV_DONTNEED);
}

static struct sp_feed_record *record_at(struct sp_feed *feed, uint64_t number) {
    uint64_t origin = atomic_load_explicit(&feed->origin, memory_order_relaxed);
    return &feed->ring[(number - origin) & (feed->ring_size - 1)];
}

/* Look at what was taken. If all was, the next record is the first of the ring: the
 * reader learns that before it learns of the record, and reads none before it. */
static SP_COLD void look(struct sp_feed *feed, uint64_t written) {
    feed->taken_seen = atomic_load_explicit(&feed->taken, memory_order_acquire);
    if (feed->taken_seen == written)
        atomic_store_explicit(&feed->origin, written, memory_order_relaxed);
    if (written - feed->taken_seen < due_at(feed)) return;
    void (*is_due)(void) = atomic_load_explicit(&sp_feed_is_due, memory_order_acquire);
    if (is_due != NULL) is_due();
}

static SP_COLD void drop(struct sp_feed *feed, uint64_t written) {
    uint64_t dropped =
        atomic_fetch_add_explicit(&sp_stats.spans_dropped, 1, memory_order_relaxed);
    if (dropped % LOOK_EVERY == 0) look(feed, written);
}

/* Room for one more record, which counts when it is published; NULL if there is none.
 */
static inline struct sp_feed_record *next_record(struct sp_feed *feed) {
    uint64_t written = atomic_load_explicit(&feed->written, memory_order_relaxed);
    if (SP_UNLIKELY(written - feed->taken_seen >= feed->limit)) {
        feed->taken_seen = atomic_load_explicit(&feed->taken, memory_order_acquire);
        if (written - feed->taken_seen >= feed->limit) {
            drop(feed, written);
            return NULL;
        }
    }
    return record_at(feed, written);
}

static inline void publish(struct sp_feed *feed) {
    uint64_t written = atomic_load_explicit(&feed->written, memory_order_relaxed) + 1;
    atomic_store_explicit(&feed->written, written, memory_order_release);
    if (SP_UNLIKELY(written % LOOK_EVERY == 0 || feed->limit < LOOK_EVERY))
        look(feed, written);
}

/* Nobody reads the ring. */
static void begin_anew(struct sp_feed *feed) {
    feed->thread = (uint32_t)syscall(SYS_gettid);
    feed->taken_seen = 0;
    atomic_store_explicit(&feed->written, 0, memory_order_relaxed);
    atomic_store_explicit(&feed->taken, 0, memory_order_relaxed);
    atomic_store_explicit(&feed->origin, 0, memory_order_relaxed);
}

void sp_feed_reset(struct sp_feed *feed) {
    uint64_t limit = sp_load(&wanted);
    feed->on = limit != 0;
    feed->count = feed->irregular = 0;
    if (!feed->on) return;
    make_ring(feed, limit);
    begin_anew(feed);
}

/* --- spans on the stack ----------------------------------------------------------- */

static struct sp_feed_base *base_at(const struct sp_feed *feed, uint32_t number) {
    return sp_slab_at(&feed->bases, number, sizeof(struct sp_feed_base));
}

static SP_COLD bool make_room(struct sp_feed *feed) {
    if (!sp_slab_reserve(&feed->bases, feed->count, sizeof(struct sp_feed_base))) {
        sp_count(&sp_stats.out_of_memory);
        return false;
    }
    unsigned chunk = sp_slab_chunk_of(feed->count);
    feed->room = sp_slab_chunk_start(chunk) + sp_slab_chunk_size(chunk);
    return true;
}

static struct sp_feed_used counters_of(const struct sp_cell *cell) {
    const struct sp_account *account = cell->account;
    return (struct sp_feed_used){
        .busy = sp_load(&cell->value[SP_VALUE_BUSY]),
        .cpu = sp_load(&cell->value[SP_VALUE_CPU]),
        .objects = account != NULL ? sp_load(&account->objects) : 0,
        .space = account != NULL ? sp_load(&account->space) : 0,
    };
}

static void add(struct sp_feed_used *to, const struct sp_feed_used *more) {
    to->busy += more->busy;
    to->cpu += more->cpu;
    to->objects += more->objects;
    to->space += more->space;
}

static void subtract(struct sp_feed_used *from, const struct sp_feed_used *less) {
    from->busy -= less->busy;
    from->cpu -= less->cpu;
    from->objects -= less->objects;
    from->space -= less->space;
}

static struct sp_feed_used used_since(const struct sp_feed_base *base) {
    struct sp_feed_used used = counters_of(base->cell);
    subtract(&used, &base->before);
    return used;
}

void sp_feed_enter(struct sp_thread *thread, struct sp_span *span, uint64_t parent,
                   bool irregular) {
    struct sp_feed *feed = &thread->feed;
    uint32_t number = feed->count;
    span->feed_number = 0;
    if (SP_UNLIKELY(number >= feed->room) && !make_room(feed)) return;
    *base_at(feed, number) = (struct sp_feed_base){
        .parent = parent,
        .start = sp_load(&thread->at_wall),
        .before = counters_of(span->cell),
        .cell = span->cell,
        .irregular = irregular,
    };
    feed->irregular += irregular;
    span->feed_number = feed->count = number + 1;
}

/* Some span of the stack may share its cell with others. What the cell counted since
 * the base is the span's, and that of those above it: the next one of them began to
 * take its place when it was entered. Those below are not to have it. */
static SP_COLD void leave_shared(struct sp_feed *feed, uint32_t number,
                                 struct sp_feed_used *used) {
    const struct sp_cell *cell = base_at(feed, number)->cell;
    for (uint32_t above = number + 1; above < feed->count; above++) {
        if (base_at(feed, above)->cell != cell) continue;
        struct sp_feed_used theirs = used_since(base_at(feed, above));
        subtract(used, &theirs);
        break;
    }
    for (uint32_t below = 0; below < number; below++) {
        struct sp_feed_base *base = base_at(feed, below);
        if (base->cell == cell) add(&base->before, used);
    }
    if (base_at(feed, number)->irregular) feed->irregular--;
}

/* Those above it move down. */
static SP_COLD void leave_middle(struct sp_thread *thread, uint32_t number) {
    struct sp_feed *feed = &thread->feed;
    for (uint32_t n = number; n + 1 < feed->count; n++)
        *base_at(feed, n) = *base_at(feed, n + 1);
    for (struct sp_span *s = thread->top; s != NULL; s = s->below)
        if (s->feed_number > number + 1) s->feed_number--;
}

/* The system's part of a span's CPU time: of what is known of its cell, what no span
 * before it had. What is found out later goes to its successors. */
static uint64_t take_system(struct sp_cell *cell, uint64_t cpu) {
    uint64_t known = sp_load(&cell->value[SP_VALUE_SYSTEM]) - cell->system_told;
    uint64_t system = known < cpu ? known : cpu;
    cell->system_told += system;
    return system;
}

/* The span is over: tell of it, if there is room. */
static inline void tell(struct sp_feed *feed, const struct sp_span *span,
                        const struct sp_feed_total *total, uint64_t end) {
    struct sp_feed_record *record = next_record(feed);
    if (SP_UNLIKELY(record == NULL)) return;
    *record = (struct sp_feed_record){
        .id = span->id,
        .parent = total->parent,
        .start = (int64_t)total->start,
        .end = (int64_t)end,
        .wall_busy = total->used.busy,
        .wall_idle = total->idle,
        .cpu_user = total->used.cpu - total->system,
        .cpu_system = total->system,
        .alloc_objects = total->used.objects,
        .alloc_space = total->used.space,
        .callsite = span->path,
        .thread = feed->thread,
        .generation = span->generation,
    };
    publish(feed);
}

void sp_feed_leave(struct sp_thread *thread, struct sp_span *span, uint64_t wall) {
    struct sp_feed *feed = &thread->feed;
    if (SP_UNLIKELY(span->feed_number == 0)) { /* out of memory when it was entered */
        if (!span->opened) sp_count(&sp_stats.spans_dropped);
        return;
    }
    uint32_t number = span->feed_number - 1;
    struct sp_feed_base *base = base_at(feed, number);
    struct sp_feed_used used = used_since(base);
    if (SP_UNLIKELY(feed->irregular != 0)) leave_shared(feed, number, &used);
    struct sp_feed_total whole = {.parent = base->parent, .start = base->start};
    struct sp_cell *cell = base->cell;
    if (SP_UNLIKELY(number + 1 != feed->count)) leave_middle(thread, number);
    feed->count--;
    span->feed_number = 0;
    if (SP_UNLIKELY(used.cpu >= SPLIT_FROM)) sp_span_split_system(thread);
    uint64_t system = take_system(cell, used.cpu);
    struct sp_feed_total *total = span->opened ? span->feed_total : &whole;
    if (SP_UNLIKELY(total == NULL)) return; /* there was no memory for it */
    add(&total->used, &used);
    total->system += system;
    if (SP_LIKELY(!span->opened)) tell(feed, span, total, wall);
}

void sp_feed_restart_in_child(struct sp_feed *feed, uint64_t wall) {
    for (uint32_t n = 0; n < feed->count; n++) {
        base_at(feed, n)->start = wall;
        base_at(feed, n)->before = (struct sp_feed_used){0};
    }
    begin_anew(feed);
}

/* --- opened spans ----------------------------------------------------------------- */

void sp_feed_open(struct sp_span *span, uint64_t parent, uint64_t wall) {
    span->feed_total = calloc(1, sizeof *span->feed_total);
    if (span->feed_total == NULL) return;
    span->feed_total->parent = parent;
    span->feed_total->start = wall;
}

void sp_feed_reopen_in_child(struct sp_span *span, uint64_t wall) {
    struct sp_feed_total *total = span->feed_total;
    if (total == NULL) return;
    *total = (struct sp_feed_total){.parent = total->parent, .start = wall};
}

void sp_feed_close(struct sp_thread *thread, struct sp_span *span, uint64_t wall) {
    struct sp_feed_total *total = span->feed_total;
    span->feed_total = NULL;
    uint32_t running = sp_session_running();
    if (running == 0 || span->generation != running || sp_load(&wanted) == 0) {
        free(total); /* of a session that is over */
        return;
    }
    /* Who closes it may be a thread that the session does not know. */
    bool known =
        thread != NULL && thread->feed.on &&
        atomic_load_explicit(&thread->data_generation, memory_order_relaxed) == running;
    if (total != NULL && known)
        tell(&thread->feed, span, total, wall);
    else
        sp_count(&sp_stats.spans_dropped);
    free(total);
}

/* --- the collector ---------------------------------------------------------------- */

static bool is_readable(const struct sp_thread *thread, uint32_t generation) {
    return atomic_load_explicit(&thread->data_generation, memory_order_acquire) ==
               generation &&
           thread->feed.on;
}

static uint64_t waiting(struct sp_feed *feed) {
    return atomic_load_explicit(&feed->written, memory_order_acquire) -
           atomic_load_explicit(&feed->taken, memory_order_relaxed);
}

/* From the wall clock's to Unix time, from a path to what is there. */
static void finish(struct sp_feed_record *record) {
    int64_t to_unix =
        (int64_t)sp_session_started_unix - (int64_t)sp_session_started_wall;
    sp_key key = sp_path_key(record->callsite);
    record->callsite = sp_key_callsite(key);
    record->labels = sp_key_labels(key);
    record->start += to_unix;
    record->end += to_unix;
    if (sp_heap_is_sampled()) {
        record->alloc_objects = sp_heap_rounded(record->alloc_objects);
        record->alloc_space = sp_heap_rounded(record->alloc_space);
    }
}

bool sp_feed_some_due(void) {
    uint32_t generation = sp_session_running();
    for (struct sp_thread *t = sp_thread_list(); t != NULL; t = t->next)
        if (is_readable(t, generation) && waiting(&t->feed) >= due_at(&t->feed))
            return true;
    return false;
}

static size_t take_from(struct sp_feed *feed, struct sp_feed_record *to, size_t most) {
    uint64_t taken = atomic_load_explicit(&feed->taken, memory_order_relaxed);
    uint64_t there = waiting(feed);
    size_t count = there < most ? (size_t)there : most;
    for (size_t n = 0; n < count; n++) {
        to[n] = *record_at(feed, taken + n);
        finish(&to[n]);
    }
    atomic_store_explicit(&feed->taken, taken + count, memory_order_release);
    return count;
}

struct sp_feed_batch *sp_feed_take(void) {
    uint32_t generation = sp_session_running();
    uint64_t there = 0;
    for (struct sp_thread *t = sp_thread_list(); t != NULL; t = t->next)
        if (is_readable(t, generation)) there += waiting(&t->feed);
    if (there == 0) return NULL;
    size_t room = there < SP_FEED_BATCH ? (size_t)there : SP_FEED_BATCH;
    size_t size = sizeof(struct sp_feed_batch) + ring_bytes((uint32_t)room);
    struct sp_feed_batch *batch = sp_big_alloc(size);
    if (batch == NULL) {
        sp_count(&sp_stats.out_of_memory);
        return NULL;
    }
    batch->size = size;
    for (struct sp_thread *t = sp_thread_list(); t != NULL; t = t->next)
        if (is_readable(t, generation))
            batch->count +=
                take_from(&t->feed, batch->records + batch->count, room - batch->count);
    return batch;
}

void sp_feed_batch_free(struct sp_feed_batch *batch) {
    if (batch != NULL) sp_big_free(batch, batch->size);
}
