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

/* How many records are written between two looks at what was taken. */
#define LOOK_EVERY 256u

static size_t ring_bytes(uint32_t size) {
    return size * sizeof(struct sp_feed_record);
}

/* Memory where it is written alone. */
static struct sp_feed_record *map_ring(uint32_t size) {
    void *memory = mmap(NULL, ring_bytes(size), PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return memory != MAP_FAILED ? memory : NULL;
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

/* Look at what was taken. If all was, the next record is the first of the ring: the
 * reader learns that before it learns of the record, and reads none before it. */
static SP_COLD void look(struct sp_feed *feed, uint64_t written) {
    feed->taken_seen = atomic_load_explicit(&feed->taken, memory_order_acquire);
    if (feed->taken_seen == written)
        atomic_store_explicit(&feed->origin, written, memory_order_relaxed);
    if (written - feed->taken_seen < sp_feed_due_at(feed)) return;
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
    return sp_feed_record_at(feed, written);
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

static uint32_t count_of(const struct sp_feed *feed) {
    return atomic_load_explicit(&feed->count, memory_order_relaxed);
}
static void set_count(struct sp_feed *feed, uint32_t count) {
    atomic_store_explicit(&feed->count, count, memory_order_release);
}

void sp_feed_reset(struct sp_feed *feed) {
    uint64_t limit = sp_load(&wanted);
    feed->on = limit != 0;
    set_count(feed, 0);
    feed->irregular = 0;
    if (!feed->on) return;
    make_ring(feed, limit);
    begin_anew(feed);
}

void sp_feed_adopt(struct sp_feed *feed) {
    if (feed->on) feed->thread = (uint32_t)syscall(SYS_gettid);
}

/* --- spans on the stack ----------------------------------------------------------- */

static struct sp_cell *cell_of(const struct sp_feed_base *base) {
    return atomic_load_explicit(&base->cell, memory_order_relaxed);
}

bool sp_feed_begin_change(struct sp_feed *feed) {
    uint32_t sequence = atomic_load_explicit(&feed->sequence, memory_order_relaxed);
    if (sequence % 2 == 1) return false;
    atomic_store_explicit(&feed->sequence, sequence + 1, memory_order_relaxed);
    atomic_thread_fence(memory_order_release);
    return true;
}
void sp_feed_end_change(struct sp_feed *feed, bool begun) {
    if (!begun) return;
    uint32_t sequence = atomic_load_explicit(&feed->sequence, memory_order_relaxed);
    atomic_store_explicit(&feed->sequence, sequence + 1, memory_order_release);
}

static SP_COLD bool make_room(struct sp_feed *feed) {
    uint32_t count = count_of(feed);
    if (!sp_slab_reserve(&feed->bases, count, sizeof(struct sp_feed_base))) {
        sp_count(&sp_stats.out_of_memory);
        return false;
    }
    unsigned chunk = sp_slab_chunk_of(count);
    feed->room = sp_slab_chunk_start(chunk) + sp_slab_chunk_size(chunk);
    return true;
}

static inline void set_before(struct sp_feed_base *base,
                              const struct sp_feed_used *used) {
    sp_store(&base->before.busy, used->busy);
    sp_store(&base->before.cpu, used->cpu);
    sp_store(&base->before.objects, used->objects);
    sp_store(&base->before.space, used->space);
}

static inline struct sp_feed_used used_since(const struct sp_feed_base *base) {
    struct sp_feed_used used = sp_feed_counters(cell_of(base));
    struct sp_feed_used before = sp_feed_before(base);
    sp_feed_subtract(&used, &before);
    return used;
}

__attribute__((noinline)) void sp_feed_enter(struct sp_thread *thread,
                                             struct sp_span *span, uint64_t parent,
                                             bool irregular) {
    struct sp_feed *feed = &thread->feed;
    uint32_t number = count_of(feed);
    span->feed_number = 0;
    if (SP_UNLIKELY(number >= feed->room) && !make_room(feed)) return;
    struct sp_feed_base *base = sp_feed_base_at(feed, number);
    struct sp_feed_used before = sp_feed_counters(span->cell);
    sp_store(&base->id, 0);
    atomic_thread_fence(memory_order_release);
    if (SP_UNLIKELY(span->totalled))
        atomic_store_explicit(&base->total, span->feed_total, memory_order_relaxed);
    else
        sp_store(&base->parent, parent);
    base->start = sp_load(&thread->at_wall);
    set_before(base, &before);
    atomic_store_explicit(&base->cell, span->cell, memory_order_relaxed);
    atomic_store_explicit(&base->totalled, span->totalled, memory_order_relaxed);
    base->irregular = irregular;
    atomic_store_explicit(&base->id, span->id, memory_order_release);
    feed->irregular += irregular;
    span->feed_number = number + 1;
    set_count(feed, number + 1);
}

/* Some span of the stack may share its cell with others. What the cell counted since
 * the base is the span's, and that of those above it: the next one of them began to
 * take its place when it was entered. Those below are not to have it. */
static SP_COLD void leave_shared(struct sp_feed *feed, uint32_t number,
                                 struct sp_feed_used *used) {
    const struct sp_cell *cell = cell_of(sp_feed_base_at(feed, number));
    for (uint32_t above = number + 1; above < count_of(feed); above++) {
        if (cell_of(sp_feed_base_at(feed, above)) != cell) continue;
        struct sp_feed_used theirs = used_since(sp_feed_base_at(feed, above));
        sp_feed_subtract(used, &theirs);
        break;
    }
    for (uint32_t below = 0; below < number; below++) {
        struct sp_feed_base *base = sp_feed_base_at(feed, below);
        if (cell_of(base) != cell) continue;
        struct sp_feed_used before = sp_feed_before(base);
        sp_feed_add(&before, used);
        set_before(base, &before);
    }
    if (sp_feed_base_at(feed, number)->irregular) feed->irregular--;
}

static void copy_base(struct sp_feed_base *to, const struct sp_feed_base *from) {
    struct sp_feed_used before = sp_feed_before(from);
    sp_store(&to->id, sp_load(&from->id));
    sp_store(&to->parent, sp_load(&from->parent)); /* or the total */
    to->start = from->start;
    set_before(to, &before);
    atomic_store_explicit(&to->cell, cell_of(from), memory_order_relaxed);
    atomic_store_explicit(&to->totalled,
                          atomic_load_explicit(&from->totalled, memory_order_relaxed),
                          memory_order_relaxed);
    to->irregular = from->irregular;
}

/* The base is no more; those above it move down. */
static SP_COLD void leave_middle(struct sp_thread *thread, uint32_t number) {
    struct sp_feed *feed = &thread->feed;
    uint32_t count = count_of(feed);
    /* What is above it may share cells with what is below as before. */
    struct sp_feed_base *next = sp_feed_base_at(feed, number + 1);
    if (sp_feed_base_at(feed, number)->irregular && !next->irregular) {
        next->irregular = true;
        feed->irregular++;
    }
    for (uint32_t n = number; n + 1 < count; n++)
        copy_base(sp_feed_base_at(feed, n), sp_feed_base_at(feed, n + 1));
    set_count(feed, count - 1);
    for (struct sp_span *s = thread->top; s != NULL; s = s->below)
        if (s->feed_number > number + 1 && !sp_span_is_sampled_out(s)) s->feed_number--;
}

/* The system's part of a span's CPU time: of what is known of its cell, what no span
 * before it had. What is found out later goes to its successors. */
static uint64_t take_system(struct sp_cell *cell, uint64_t cpu) {
    uint64_t told = sp_load(&cell->system_told);
    uint64_t known = sp_load(&cell->value[SP_VALUE_SYSTEM]) - told;
    uint64_t system = known < cpu ? known : cpu;
    sp_store(&cell->system_told, told + system);
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

/* What the span used goes to `whole`; its record, unless it has a total, is written
 * before its base is gone: whoever finds no base finds the record. */
static inline void leave(struct sp_thread *thread, struct sp_span *span, uint64_t wall,
                         struct sp_feed_total *whole) {
    struct sp_feed *feed = &thread->feed;
    uint32_t number = span->feed_number - 1;
    struct sp_feed_base *base = sp_feed_base_at(feed, number);
    struct sp_feed_used used = used_since(base);
    bool is_top = number + 1 == count_of(feed), changes = false;
    if (SP_UNLIKELY(feed->irregular != 0 || !is_top))
        changes = sp_feed_begin_change(feed);
    if (SP_UNLIKELY(feed->irregular != 0)) leave_shared(feed, number, &used);
    if (SP_UNLIKELY(used.cpu >= SPLIT_FROM)) sp_span_split_system(thread);
    whole->system += take_system(cell_of(base), used.cpu);
    sp_feed_add(&whole->used, &used);
    if (SP_LIKELY(!span->totalled)) {
        whole->parent = sp_load(&base->parent);
        whole->start = base->start;
        /* Another clock than the thread's own may be behind it. */
        tell(feed, span, whole, wall > base->start ? wall : base->start);
    }
    span->feed_number = 0;
    if (SP_LIKELY(is_top))
        set_count(feed, number);
    else
        leave_middle(thread, number);
    sp_feed_end_change(feed, changes);
}

static void leave_locked(struct sp_thread *thread, struct sp_span *span,
                         uint64_t wall) {
    struct sp_feed_total none = {.parent = 0};
    if (span->feed_number != 0)
        leave(thread, span, wall, span->feed_total != NULL ? span->feed_total : &none);
}

static SP_COLD void leave_totalled(struct sp_thread *thread, struct sp_span *span,
                                   uint64_t wall) {
    sp_spans_lock();
    leave_locked(thread, span, wall);
    sp_spans_unlock();
}

SP_COLD void sp_feed_suspend(struct sp_thread *thread, struct sp_span *span,
                             uint64_t wall) {
    if (!span->totalled) {
        span->totalled = span->slow_exit = true;
        if (span->feed_number == 0) { /* out of memory when it was entered */
            sp_feed_open(span, 0, wall);
        } else {
            const struct sp_feed_base *base =
                sp_feed_base_at(&thread->feed, span->feed_number - 1);
            sp_feed_open(span, sp_load(&base->parent), base->start);
        }
        sp_span_list(span);
    }
    leave_locked(thread, span, wall);
}

/* Not to be inlined: a session without a feed would pay for its registers. */
__attribute__((noinline)) void sp_feed_leave(struct sp_thread *thread,
                                             struct sp_span *span, uint64_t wall) {
    struct sp_feed_total whole = {.parent = 0};
    if (SP_UNLIKELY(span->totalled))
        leave_totalled(thread, span, wall);
    else if (SP_LIKELY(span->feed_number != 0))
        leave(thread, span, wall, &whole);
    else /* out of memory when it was entered */
        sp_count(&sp_stats.spans_dropped);
}

void sp_feed_restart_in_child(struct sp_feed *feed, uint64_t wall) {
    const struct sp_feed_used none = {0};
    for (uint32_t n = 0; n < count_of(feed); n++) {
        sp_feed_base_at(feed, n)->start = wall;
        set_before(sp_feed_base_at(feed, n), &none);
    }
    begin_anew(feed);
}

/* --- opened spans ----------------------------------------------------------------- */

/* Memory of totals, without malloc's part of each. Under the lock of opened spans. */
static struct sp_slab totals;
static uint32_t total_count;
static struct sp_feed_total *free_totals;

static struct sp_feed_total *make_total(void) {
    struct sp_feed_total *total = free_totals;
    if (total != NULL)
        free_totals = total->next_free;
    else if (sp_slab_reserve(&totals, total_count, sizeof *total))
        total = sp_slab_at(&totals, total_count++, sizeof *total);
    return total;
}

static void free_total(struct sp_feed_total *total) {
    if (total == NULL) return;
    total->next_free = free_totals;
    free_totals = total;
}

void sp_feed_open(struct sp_span *span, uint64_t parent, uint64_t wall) {
    span->feed_total = make_total();
    if (span->feed_total != NULL)
        *span->feed_total = (struct sp_feed_total){.parent = parent, .start = wall};
    else
        sp_count(&sp_stats.out_of_memory);
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
        free_total(total); /* of a session that is over */
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
    free_total(total);
}
