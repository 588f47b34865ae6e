#include "span.h"

#include "callsite.h"
#include "heap_span.h"
#include "stats.h"

#include <pthread.h>

void (*sp_span_release)(struct sp_span *span);

static void set_state(struct sp_span *span, enum sp_span_state state) {
    atomic_store_explicit(&span->state, (unsigned char)state, memory_order_relaxed);
}

static uint32_t generation_of(const struct sp_thread *thread) {
    return atomic_load_explicit(&thread->data_generation, memory_order_relaxed);
}

static struct sp_cell *current_cell(const struct sp_thread *thread) {
    return atomic_load_explicit(&thread->cell, memory_order_relaxed);
}

/* --- user and system ------------------------------------------------------ */

/* Share the system time since the last call over the CPU time that the touched
 * cells used meanwhile. The clock's slow path has just brought getrusage up to
 * date. What the kernel books later than it happened waits for the next round. */
static SP_COLD void split_system(struct sp_thread *thread) {
    uint64_t used = 0;
    for (uint32_t i = 0; i < thread->split_count; i++) {
        const struct sp_split_entry *entry = &thread->split[i];
        used += sp_load(&entry->cell->value[SP_VALUE_CPU]) - entry->cpu_before;
    }
    uint64_t system = sp_clock_system(&thread->clock);
    uint64_t due = system > thread->system_seen ? system - thread->system_seen : 0;
    if (due > used) due = used;
    thread->system_seen += due;

    /* Shares are differences of rounded running sums: they add up to `due`. */
    uint64_t used_so_far = 0, given = 0;
    for (uint32_t i = 0; i < thread->split_count && due > 0; i++) {
        const struct sp_split_entry *entry = &thread->split[i];
        used_so_far += sp_load(&entry->cell->value[SP_VALUE_CPU]) - entry->cpu_before;
        uint64_t upto = (uint64_t)((unsigned __int128)due * used_so_far / used);
        sp_add(&entry->cell->value[SP_VALUE_SYSTEM], upto - given);
        given = upto;
    }
    thread->split_count = 0;
    thread->split_round++;
}

SP_COLD void sp_span_split_system(struct sp_thread *thread) {
    uint64_t cpu; /* read only to bring getrusage up to date */
    sp_clock_cpu_of(&thread->clock, &cpu);
    split_system(thread);
}

static SP_COLD void split_touch(struct sp_thread *thread, struct sp_cell *cell) {
    if (thread->split_count == SP_SPLIT_CELLS) sp_span_split_system(thread);
    cell->split = thread->split_round;
    thread->split[thread->split_count++] =
        (struct sp_split_entry){cell, sp_load(&cell->value[SP_VALUE_CPU])};
}

/* --- the boundary --------------------------------------------------------- */

/* From here on the thread is at a boundary. Said before the clock is read: one that is
 * descheduled right after is not taken for a span that runs on. */
static inline uint32_t begin_boundary(struct sp_thread *thread) {
    uint32_t sequence = atomic_load_explicit(&thread->sequence, memory_order_relaxed);
    atomic_store_explicit(&thread->sequence, sequence + 1, memory_order_relaxed);
    atomic_thread_fence(memory_order_release);
    return sequence;
}

/* Charge the time since the last boundary to the cell that ran, make `next` the
 * running cell. Every enter and exit is this and a push or a pop. */
static inline void charge(struct sp_thread *thread, struct sp_cell *cell,
                          struct sp_cell *next, const struct sp_moment *last,
                          const struct sp_moment *now, uint32_t sequence) {
    sp_add(&cell->value[SP_VALUE_BUSY], now->wall - last->wall);
    sp_add(&cell->value[SP_VALUE_CPU], now->cpu - last->cpu);
    sp_store(&thread->at_wall, now->wall);
    sp_store(&thread->at_cpu, now->cpu);
    atomic_store_explicit(&thread->cell, next, memory_order_release);
    atomic_store_explicit(&thread->sequence, sequence + 2, memory_order_release);
}

static void boundary(struct sp_thread *thread, struct sp_cell *next) {
    struct sp_cell *cell = current_cell(thread);
    struct sp_moment last = {sp_load(&thread->at_wall), sp_load(&thread->at_cpu)};
    struct sp_moment now;
    uint32_t sequence = begin_boundary(thread);
    bool fresh = sp_clock_now(&thread->clock, &last, &now);
    if (thread->clock.want_cpu && SP_UNLIKELY(cell->split != thread->split_round))
        split_touch(thread, cell);
    charge(thread, cell, next, &last, &now, sequence);
    if (SP_UNLIKELY(fresh)) split_system(thread);
    sp_heap_tick(now.wall);
}

/* The same if nothing slow is due; else false, and nothing is done. Calls
 * nothing, so that those who call it have no registers to save. */
static inline bool boundary_if_quick(struct sp_thread *thread, struct sp_cell *next) {
    struct sp_cell *cell = current_cell(thread);
    struct sp_moment last = {sp_load(&thread->at_wall), sp_load(&thread->at_cpu)};
    struct sp_moment now;
    if (SP_UNLIKELY(cell->split != thread->split_round && thread->clock.want_cpu))
        return false;
    uint32_t sequence = begin_boundary(thread);
    if (SP_UNLIKELY(!sp_clock_now_quick(&thread->clock, &last, &now))) {
        atomic_store_explicit(&thread->sequence, sequence, memory_order_relaxed);
        return false;
    }
    charge(thread, cell, next, &last, &now, sequence);
    return true;
}

static uint64_t id_of(const struct sp_span *span) {
    return span != NULL ? span->id : 0;
}

/* The id of a span that was given as a parent. */
static uint64_t id_in_session(const struct sp_thread *thread,
                              const struct sp_span *parent) {
    return parent->generation == generation_of(thread) ? parent->id : 0;
}

/* --- who else wants to know ------------------------------------------------ */

/* Whatever has changed thread->top calls one of these if thread->is_watched. */

static SP_NOINLINE void publish_top(struct sp_thread *thread) {
    const struct sp_span *top = thread->top;
    sp_publish(&thread->publication,
               top == NULL || sp_span_is_sampled_out(top) ? 0 : top->id);
}

/* `parent` is the id of the span's parent. */
static SP_NOINLINE void tell_entered(struct sp_thread *thread, struct sp_span *span,
                                     uint64_t parent, bool irregular) {
    sp_publish(&thread->publication, span->id);
    if (thread->feed.on) sp_feed_enter(thread, span, parent, irregular);
}

static bool is_fed(const struct sp_thread *thread, const struct sp_span *span) {
    return thread->feed.on && !sp_span_is_sampled_out(span);
}

/* Its boundary has been charged. */
static SP_NOINLINE void tell_left(struct sp_thread *thread, struct sp_span *span) {
    publish_top(thread);
    if (is_fed(thread, span)) sp_feed_leave(thread, span, sp_load(&thread->at_wall));
}

/* --- entering ---------------------------------------------------------------- */

/* `parent` is the id of the span's parent, for the feed. */
static inline void push(struct sp_thread *thread, struct sp_span *span,
                        struct sp_cell *cell, uint64_t parent) {
    span->below = thread->top;
    span->outer = current_cell(thread);
    span->cell = cell;
    span->thread = thread;
    set_state(span, SP_SPAN_ENTERED);
    bool irregular = thread->feed.on && cell->parent != span->outer->path;
    bool changes = false;
    if (SP_UNLIKELY(irregular)) {
        span->slow_exit = true; /* see pop */
        changes = sp_feed_begin_change(&thread->feed);
    }
    boundary(thread, cell);
    thread->top = span;
    sp_thread_charge_to(thread, cell->account);
    if (SP_UNLIKELY(thread->is_watched)) tell_entered(thread, span, parent, irregular);
    if (SP_UNLIKELY(irregular)) sp_feed_end_change(&thread->feed, changes);
}

static inline void create(struct sp_thread *thread, struct sp_span *span, sp_key key,
                          struct sp_cell *cell) {
    span->id = thread->next_id++;
    span->key = key;
    span->path = cell->path;
    span->generation = generation_of(thread);
    sp_add(&cell->value[SP_VALUE_CALLS], 1);
}

void sp_span_begin(struct sp_thread *thread, struct sp_span *span, sp_key key) {
    struct sp_cell *cell = sp_cell_child(&thread->cells, current_cell(thread), key);
    create(thread, span, key, cell);
    span->opened = span->slow_exit = false;
    push(thread, span, cell, id_of(thread->top));
}

static SP_COLD void begin_at_slow(struct sp_thread *thread, struct sp_span *span,
                                  struct sp_site *site) {
    sp_span_begin(thread, span, sp_key_make(site->callsite, SP_LABELS_NONE));
    site->cell = span->cell;
}

void sp_span_begin_at(struct sp_thread *thread, struct sp_span *span,
                      struct sp_site *site) {
    struct sp_cell *outer = current_cell(thread), *cell = site->cell;
    sp_key key = sp_key_make(site->callsite, SP_LABELS_NONE);
    if (SP_UNLIKELY(cell == NULL || cell->parent != outer->path || cell->key != key ||
                    !boundary_if_quick(thread, cell))) {
        begin_at_slow(thread, span, site);
        return;
    }
    create(thread, span, key, cell);
    span->opened = span->slow_exit = false;
    span->below = thread->top;
    span->outer = outer;
    span->cell = cell;
    span->thread = thread;
    set_state(span, SP_SPAN_ENTERED);
    thread->top = span;
    sp_thread_charge_to(thread, cell->account);
    if (SP_UNLIKELY(thread->is_watched))
        tell_entered(thread, span, id_of(span->below), false);
}

static struct sp_cell *cell_under(struct sp_thread *thread, sp_key key,
                                  const struct sp_span *parent) {
    /* A parent of another session is unknown here, and no parent is better than
     * a wrong one. */
    uint32_t path =
        parent->generation == generation_of(thread) ? parent->path : SP_PATH_ROOT;
    return sp_cell_child(&thread->cells, sp_cell_of_path(&thread->cells, path), key);
}

void sp_span_begin_under(struct sp_thread *thread, struct sp_span *span, sp_key key,
                         const struct sp_span *parent) {
    struct sp_cell *cell = cell_under(thread, key, parent);
    create(thread, span, key, cell);
    span->opened = span->slow_exit = false;
    push(thread, span, cell, id_in_session(thread, parent));
}

/* --- sampling --------------------------------------------------------------- */

enum sp_decision sp_span_decide(struct sp_thread *thread,
                                const struct sp_span *parent) {
    if (!thread->sampler.on) return SP_SAMPLED;
    if (parent != NULL && parent->generation == generation_of(thread))
        return sp_span_is_sampled_out(parent) ? SP_SAMPLED_OUT : SP_SAMPLED;
    if (parent == NULL && thread->top != NULL)
        return sp_span_is_unheard(thread) ? SP_SAMPLED_OUT : SP_SAMPLED;
    return sp_sampler_decide(&thread->sampler);
}

static void count_sampled_out(struct sp_thread *thread) {
    sp_add(&thread->sampler.sampled_out, 1);
}

/* On top of one that is recorded: there is a boundary between the two. */
static void push_sampled_out(struct sp_thread *thread, struct sp_span *span) {
    span->below = thread->top;
    span->outer = current_cell(thread);
    span->cell = &thread->sampled_out;
    span->thread = thread;
    set_state(span, SP_SPAN_ENTERED);
    boundary(thread, span->cell);
    thread->top = span;
    sp_thread_charge_to(thread, NULL);
    if (SP_UNLIKELY(thread->is_watched)) publish_top(thread);
}

void sp_span_begin_sampled_out(struct sp_thread *thread, struct sp_span *span) {
    if (SP_LIKELY(sp_span_is_unheard(thread))) {
        sp_span_begin_unheard(thread, span);
        return;
    }
    span->path = SP_PATH_SAMPLED_OUT;
    span->generation = generation_of(thread);
    span->opened = false;
    span->slow_exit = true;
    push_sampled_out(thread, span);
    count_sampled_out(thread);
}

void sp_span_open_sampled_out(struct sp_thread *thread, struct sp_span *span) {
    span->path = SP_PATH_SAMPLED_OUT;
    span->generation = generation_of(thread);
    span->opened = span->slow_exit = true;
    span->feed_total = NULL;
    span->open_previous = span->open_next = NULL; /* its idle time is nobody's */
    set_state(span, SP_SPAN_OPEN);
    count_sampled_out(thread);
}

/* --- leaving the stack ---------------------------------------------------- */

static inline void pop(struct sp_thread *thread, struct sp_span *span) {
    bool irregular = thread->feed.on && thread->feed.irregular != 0;
    bool changes = false;
    if (SP_UNLIKELY(irregular)) changes = sp_feed_begin_change(&thread->feed);
    boundary(thread, span->outer);
    thread->top = span->below;
    sp_thread_charge_to(thread, span->outer->account);
    if (SP_UNLIKELY(thread->is_watched)) tell_left(thread, span);
    if (SP_UNLIKELY(irregular)) sp_feed_end_change(&thread->feed, changes);
}

/* Take a span out from under others, which go on running: what they use is
 * theirs as before, and what comes after them goes to the spans below. */
static SP_COLD bool unlink_from_middle(struct sp_thread *thread, struct sp_span *span) {
    for (struct sp_span *above = thread->top; above != NULL; above = above->below) {
        if (above->below != span) continue;
        above->below = span->below;
        above->outer = span->outer;
        if (is_fed(thread, span)) sp_feed_leave(thread, span, sp_clock_wall());
        return true;
    }
    return false;
}

static void settle_after_exit(struct sp_span *span);

SP_COLD void sp_span_exit_requested(struct sp_thread *thread) {
    struct sp_span *span = thread->top;
    while (span != NULL) {
        struct sp_span *below = span->below;
        if (atomic_load_explicit(&span->exit_requested, memory_order_acquire)) {
            if (span == thread->top)
                pop(thread, span);
            else
                unlink_from_middle(thread, span);
            settle_after_exit(span);
            if (sp_span_release != NULL) sp_span_release(span);
            below = thread->top; /* the host may have run anything: begin again */
        }
        span = below;
    }
}

/* The stack of a session that is over: its spans may have been exited elsewhere
 * since, and their memory freed. */
static bool is_stale(const struct sp_thread *thread) {
    return generation_of(thread) != sp_session_running();
}

static bool runs_on(const struct sp_thread *thread, const struct sp_span *span) {
    if (is_stale(thread)) return false;
    for (const struct sp_span *s = thread->top; s != NULL; s = s->below)
        if (s == span) return true;
    return false;
}

static SP_COLD bool exit_out_of_order(struct sp_thread *thread, struct sp_span *span) {
    if (thread != NULL && span->thread == thread && runs_on(thread, span)) {
        sp_count(&sp_stats.misnested);
        if (span == thread->top)
            pop(thread, span);
        else
            unlink_from_middle(thread, span);
        settle_after_exit(span);
        return true;
    }
    uint32_t running = sp_session_running();
    if (span->thread != thread && running != 0 && span->generation == running &&
        sp_span_state(span) == SP_SPAN_ENTERED) {
        sp_count(&sp_stats.misnested);
        atomic_store_explicit(&span->exit_requested, true, memory_order_release);
        sp_thread_poke(span->thread);
        return false;
    }
    /* Of a session that is over, or left behind by a thread that is. */
    settle_after_exit(span);
    return true;
}

bool sp_span_exit_quick(struct sp_thread *thread, struct sp_span *span) {
    if (SP_UNLIKELY(span->slow_exit || !boundary_if_quick(thread, span->outer)))
        return false;
    thread->top = span->below;
    sp_thread_charge_to(thread, span->outer->account);
    set_state(span, SP_SPAN_NONE);
    if (SP_UNLIKELY(thread->is_watched)) tell_left(thread, span);
    return true;
}

bool sp_span_exit(struct sp_thread *thread, struct sp_span *span) {
    if (SP_UNLIKELY(thread == NULL || thread->top != span))
        return exit_out_of_order(thread, span);
    if (sp_span_is_sampled_out(span) && sp_span_exit_unheard(thread, span)) return true;
    if (SP_LIKELY(sp_span_exit_quick(thread, span))) return true;
    pop(thread, span);
    settle_after_exit(span);
    return true;
}

struct sp_span *sp_span_find(struct sp_thread *thread, const void *owner) {
    if (is_stale(thread)) return NULL;
    struct sp_span *span = thread->top;
    while (span != NULL && span->owner != owner) span = span->below;
    return span;
}

SP_COLD void sp_span_abandon_all(struct sp_thread *thread) {
    if (thread->top == NULL) return;
    if (is_stale(thread)) {
        thread->top = NULL;
        sp_thread_charge_to(thread, NULL);
        sp_publish(&thread->publication, 0);
        return;
    }
    boundary(thread, sp_thread_idle_cell(thread));
    struct sp_span *span = thread->top;
    thread->top = NULL;
    sp_thread_charge_to(thread, NULL);
    sp_publish(&thread->publication, 0);
    while (span != NULL) {
        struct sp_span *below = span->below;
        if (is_fed(thread, span))
            sp_feed_leave(thread, span, sp_load(&thread->at_wall));
        settle_after_exit(span);
        sp_count(&sp_stats.abandoned);
        span = below;
    }
}

/* --- spans that are opened explicitly ------------------------------------- */

/* Guards the list and every opened span's state and idle_since, which the
 * collector reads in place. Such spans are rare; `with` never comes here. */
static pthread_mutex_t open_lock = PTHREAD_MUTEX_INITIALIZER;
static struct sp_span *open_spans;

static void charge_idle_locked(struct sp_thread *thread, struct sp_span *span,
                               uint64_t wall) {
    if (thread == NULL || span->generation != generation_of(thread)) return;
    uint64_t idle = wall > span->idle_since ? wall - span->idle_since : 0;
    span->idle_since = wall;
    if (span->feed_total != NULL) span->feed_total->idle += idle;
    if (idle > 0)
        sp_add(&sp_cell_of_path(&thread->cells, span->path)->value[SP_VALUE_IDLE],
               idle);
}

void sp_span_open(struct sp_thread *thread, struct sp_span *span, sp_key key,
                  const struct sp_span *parent) {
    struct sp_cell *cell =
        parent != NULL ? cell_under(thread, key, parent)
                       : sp_cell_child(&thread->cells, current_cell(thread), key);
    create(thread, span, key, cell);
    span->opened = span->slow_exit = true;
    pthread_mutex_lock(&open_lock);
    span->idle_since = sp_clock_wall();
    span->feed_total = NULL;
    if (thread->feed.on)
        sp_feed_open(
            span, parent != NULL ? id_in_session(thread, parent) : id_of(thread->top),
            span->idle_since);
    set_state(span, SP_SPAN_OPEN);
    span->open_previous = NULL;
    span->open_next = open_spans;
    if (open_spans != NULL) open_spans->open_previous = span;
    open_spans = span;
    pthread_mutex_unlock(&open_lock);
}

void sp_span_enter(struct sp_thread *thread, struct sp_span *span) {
    if (span->generation != generation_of(thread)) return; /* it is not recorded */
    if (sp_span_is_sampled_out(span)) {
        push_sampled_out(thread, span);
        return;
    }
    struct sp_cell *cell = sp_cell_of_path(&thread->cells, span->path);
    pthread_mutex_lock(&open_lock);
    charge_idle_locked(thread, span, sp_clock_wall());
    push(thread, span, cell, 0); /* its total knows its parent */
    pthread_mutex_unlock(&open_lock);
}

/* `span` has left the stack: an opened one idles again, another is no more. */
static void settle_after_exit(struct sp_span *span) {
    atomic_store_explicit(&span->exit_requested, false, memory_order_relaxed);
    if (!span->opened) {
        set_state(span, SP_SPAN_NONE);
        if (span->heap_owner != 0) sp_heap_span_closed(span);
        return;
    }
    pthread_mutex_lock(&open_lock);
    span->idle_since = sp_clock_wall();
    set_state(span, SP_SPAN_OPEN);
    pthread_mutex_unlock(&open_lock);
}

void sp_span_close(struct sp_thread *thread, struct sp_span *span) {
    if (sp_span_is_sampled_out(span)) {
        set_state(span, SP_SPAN_NONE);
        span->opened = false;
        return;
    }
    pthread_mutex_lock(&open_lock);
    uint64_t wall = sp_clock_wall();
    charge_idle_locked(thread, span, wall);
    if (span->open_previous != NULL)
        span->open_previous->open_next = span->open_next;
    else if (open_spans == span)
        open_spans = span->open_next;
    if (span->open_next != NULL) span->open_next->open_previous = span->open_previous;
    span->open_previous = span->open_next = NULL;
    set_state(span, SP_SPAN_NONE);
    span->opened = false;
    if (span->feed_total != NULL || (thread != NULL && thread->feed.on))
        sp_feed_close(thread, span, wall);
    pthread_mutex_unlock(&open_lock);
    if (span->heap_owner != 0) sp_heap_span_closed(span);
}

void sp_span_each_idle(uint32_t generation, uint64_t wall,
                       void (*visit)(void *context, uint32_t path, uint64_t idle),
                       void *context) {
    pthread_mutex_lock(&open_lock);
    for (const struct sp_span *s = open_spans; s != NULL; s = s->open_next)
        if (s->generation == generation && sp_span_state(s) == SP_SPAN_OPEN &&
            wall > s->idle_since)
            visit(context, s->path, wall - s->idle_since);
    pthread_mutex_unlock(&open_lock);
}

void sp_span_each_opened(uint32_t generation,
                         void (*visit)(void *context, const struct sp_span *span),
                         void *context) {
    for (const struct sp_span *s = open_spans; s != NULL; s = s->open_next)
        if (s->generation == generation) visit(context, s);
}

/* --- fork ------------------------------------------------------------------ */

void sp_spans_lock(void) {
    pthread_mutex_lock(&open_lock);
}
void sp_spans_unlock(void) {
    pthread_mutex_unlock(&open_lock);
}
void sp_spans_relock_in_child(void) {
    open_lock = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
    /* Their idle time up to here is the parent's to report. */
    uint64_t wall = sp_clock_wall();
    for (struct sp_span *s = open_spans; s != NULL; s = s->open_next)
        sp_feed_reopen_in_child(s, s->idle_since = wall);
}
