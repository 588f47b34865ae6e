#include "span.h"

#include "boundary.h"
#include "callsite.h"
#include "heap_span.h"
#include "native.h"
#include "stats.h"
#include "suspend.h"

#include <pthread.h>

bool (*sp_span_release)(struct sp_thread *thread, struct sp_span *span,
                        void (*take_off)(struct sp_thread *, struct sp_span *));
void (*sp_span_claim)(struct sp_span *span);

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

void sp_boundary(struct sp_thread *thread, struct sp_cell *next) {
    struct sp_cell *cell = sp_cell_running(thread);
    struct sp_moment last = {sp_load(&thread->at_wall), sp_load(&thread->at_cpu)};
    struct sp_moment now;
    uint32_t sequence = sp_boundary_begin(thread);
    bool fresh = sp_clock_now(&thread->clock, &last, &now);
    if (thread->clock.want_cpu && SP_UNLIKELY(cell->split != thread->split_round))
        split_touch(thread, cell);
    sp_boundary_charge(thread, cell, next, &last, &now, sequence);
    if (SP_UNLIKELY(fresh)) split_system(thread);
    sp_heap_tick(now.wall);
}

/* --- making ----------------------------------------------------------------- */

static const struct sp_parent nobody = {0, SP_PATH_ROOT, 0};

/* A span that was given as a parent. Of one of another session nothing is known here,
 * and no parent is better than a wrong one. */
static struct sp_parent in_session(const struct sp_thread *thread,
                                   const struct sp_span *parent) {
    return parent->generation == sp_thread_generation(thread) ? parent->as_parent
                                                              : nobody;
}

struct sp_parent sp_span_next_parent(const struct sp_thread *thread) {
    const struct sp_parent *current = &thread->context->current;
    if (current->generation == sp_thread_generation(thread)) return *current;
    return thread->top != NULL ? thread->top->as_parent : nobody;
}

static struct sp_cell *cell_under(struct sp_thread *thread, sp_key key,
                                  const struct sp_parent *parent) {
    struct sp_cell *cell = sp_cell_running(thread);
    /* One that is sampled out since the span was decided on: as if there were none. */
    uint32_t above = parent->path != SP_PATH_SAMPLED_OUT ? parent->path : SP_PATH_ROOT;
    if (cell->path != above || cell == &thread->undecided)
        cell = sp_cell_of_path(&thread->cells, above);
    return sp_cell_child(&thread->cells, cell, key);
}

/* The stack of a session that is over: its spans may have been exited elsewhere
 * since, and their memory freed. */
static bool is_stale(const struct sp_thread *thread) {
    return sp_thread_generation(thread) != sp_session_running();
}

/* --- who else wants to know ------------------------------------------------ */

/* Whatever has changed thread->top calls one of these if thread->is_watched. */

void sp_span_publish_top(struct sp_thread *thread) {
    const struct sp_span *top = is_stale(thread) ? NULL : thread->top;
    sp_publish(&thread->publication,
               top == NULL || sp_span_is_sampled_out(top) ? 0 : top->id);
}

SP_NOINLINE void sp_span_tell_entered(struct sp_thread *thread, struct sp_span *span,
                                      uint64_t parent, bool irregular) {
    sp_publish(&thread->publication, span->id);
    if (thread->feed.on) sp_feed_enter(thread, span, parent, irregular);
}

static bool is_fed(const struct sp_thread *thread, const struct sp_span *span) {
    return thread->feed.on && !sp_span_is_sampled_out(span);
}

SP_NOINLINE void sp_span_tell_left(struct sp_thread *thread, struct sp_span *span) {
    sp_span_publish_top(thread);
    if (is_fed(thread, span)) sp_feed_leave(thread, span, sp_load(&thread->at_wall));
}

/* --- entering ---------------------------------------------------------------- */

/* `parent` is the id of the span's parent, for the feed. */
static inline void push(struct sp_thread *thread, struct sp_span *span,
                        struct sp_cell *cell, uint64_t parent) {
    span->below = thread->top;
    span->outer = sp_cell_running(thread);
    span->cell = cell;
    sp_span_set_thread(span, thread);
    sp_span_set_state(span, SP_SPAN_ENTERED);
    bool irregular = thread->feed.on && cell->parent != span->outer->path;
    bool changes = false;
    if (SP_UNLIKELY(irregular)) {
        span->slow_exit = true; /* see pop */
        changes = sp_feed_begin_change(&thread->feed);
    }
    sp_boundary(thread, cell);
    sp_context_enter(thread, span);
    thread->top = span;
    sp_thread_charge_to(thread, cell->account);
    if (SP_UNLIKELY(thread->is_watched))
        sp_span_tell_entered(thread, span, parent, irregular);
    if (SP_UNLIKELY(irregular)) sp_feed_end_change(&thread->feed, changes);
}

static inline void begin_in(struct sp_thread *thread, struct sp_span *span, sp_key key,
                            struct sp_cell *cell, uint64_t parent) {
    sp_span_create(thread, span, key, cell);
    sp_span_set_plain(span);
    push(thread, span, cell, parent);
}

static SP_COLD void begin_below(struct sp_thread *thread, struct sp_span *span,
                                sp_key key, const struct sp_parent *parent) {
    begin_in(thread, span, key, cell_under(thread, key, parent), parent->id);
}

void sp_span_begin(struct sp_thread *thread, struct sp_span *span, sp_key key) {
    /* What is sampled out is nobody's parent, though its id is that of none. */
    if (SP_UNLIKELY(!sp_span_has_top_as_parent(thread) ||
                    sp_cell_running(thread) == &thread->sampled_out)) {
        struct sp_parent parent = sp_span_next_parent(thread);
        begin_below(thread, span, key, &parent);
        return;
    }
    struct sp_cell *cell = sp_cell_child(&thread->cells, sp_cell_running(thread), key);
    begin_in(thread, span, key, cell, sp_span_id_of(thread->top));
}

static SP_COLD void begin_at_slow(struct sp_thread *thread, struct sp_span *span,
                                  struct sp_site *site) {
    sp_span_begin(thread, span, sp_key_make(site->callsite, SP_LABELS_NONE));
    site->cell = span->cell;
}

void sp_span_begin_at(struct sp_thread *thread, struct sp_span *span,
                      struct sp_site *site) {
    struct sp_cell *cell = site->cell;
    sp_key key = sp_key_make(site->callsite, SP_LABELS_NONE);
    sp_span_set_plain(span);
    sp_span_set_thread(span, thread);
    if (SP_UNLIKELY(cell == NULL || cell->parent != sp_cell_running(thread)->path ||
                    cell->key != key || !sp_span_begin_quick(thread, span, cell)))
        begin_at_slow(thread, span, site);
}

void sp_span_begin_under(struct sp_thread *thread, struct sp_span *span, sp_key key,
                         const struct sp_span *parent) {
    struct sp_parent above = in_session(thread, parent);
    begin_below(thread, span, key, &above);
}

/* --- sampling --------------------------------------------------------------- */

enum sp_decision sp_span_decide(struct sp_thread *thread,
                                const struct sp_span *parent) {
    if (!thread->sampler.on) return SP_SAMPLED;
    struct sp_parent above =
        parent != NULL ? in_session(thread, parent) : sp_span_next_parent(thread);
    if (above.path == SP_PATH_SAMPLED_OUT) return SP_SAMPLED_OUT;
    return above.id != 0 ? SP_SAMPLED : sp_sampler_decide(&thread->sampler);
}

static void count_sampled_out(struct sp_thread *thread) {
    sp_add(&thread->sampler.sampled_out, 1);
}

/* On top of one that is recorded: there is a boundary between the two. */
static void push_sampled_out(struct sp_thread *thread, struct sp_span *span) {
    span->below = thread->top;
    span->outer = sp_cell_running(thread);
    span->cell = &thread->sampled_out;
    sp_span_set_thread(span, thread);
    sp_span_set_state(span, SP_SPAN_ENTERED);
    sp_boundary(thread, span->cell);
    sp_context_enter(thread, span);
    thread->top = span;
    sp_thread_charge_to(thread, NULL);
    if (SP_UNLIKELY(thread->is_watched)) sp_span_publish_top(thread);
}

void sp_span_begin_sampled_out(struct sp_thread *thread, struct sp_span *span) {
    if (SP_LIKELY(sp_span_is_unheard(thread))) {
        sp_span_begin_unheard(thread, span);
        return;
    }
    sp_span_set_sampled_out(thread, span);
    push_sampled_out(thread, span);
    count_sampled_out(thread);
}

void sp_span_open_sampled_out(struct sp_thread *thread, struct sp_span *span) {
    sp_span_set_sampled_out(thread, span);
    span->opened = true;
    span->feed_total = NULL;
    span->open_previous = span->open_next = NULL; /* its idle time is nobody's */
    sp_span_set_state(span, SP_SPAN_OPEN);
    count_sampled_out(thread);
}

/* --- leaving the stack ---------------------------------------------------- */

static inline void pop(struct sp_thread *thread, struct sp_span *span) {
    bool irregular = thread->feed.on && thread->feed.irregular != 0;
    bool changes = false;
    if (SP_UNLIKELY(irregular)) changes = sp_feed_begin_change(&thread->feed);
    sp_boundary(thread, span->outer);
    sp_context_leave(thread, span, span);
    thread->top = span->below;
    sp_thread_charge_to(thread, span->outer->account);
    if (SP_UNLIKELY(thread->is_watched)) sp_span_tell_left(thread, span);
    if (SP_UNLIKELY(irregular)) sp_feed_end_change(&thread->feed, changes);
}

static bool is_span(const struct sp_parent *current, const struct sp_span *span) {
    return current->id == span->id && current->path == span->path;
}

/* The span is none of its context's any more: what was entered after it in there comes
 * after the one before it. A span of another context that was copied while this one was
 * current still has it as parent. */
static void leave_context_from_middle(struct sp_thread *thread,
                                      const struct sp_span *span) {
    struct sp_parent *current = &thread->context->current;
    for (struct sp_span *above = thread->top; above != span; above = above->below)
        if (is_span(current, above)) current = &above->before;
    if (is_span(current, span)) *current = span->before;
}

/* Take a span out from under others, which go on running: what they use is
 * theirs as before, and what comes after them goes to the spans below. */
static SP_COLD bool unlink_from_middle(struct sp_thread *thread, struct sp_span *span) {
    for (struct sp_span *above = thread->top; above != NULL; above = above->below) {
        if (above->below != span) continue;
        leave_context_from_middle(thread, span);
        above->below = span->below;
        above->outer = span->outer;
        if (is_fed(thread, span)) sp_feed_leave(thread, span, sp_clock_wall());
        return true;
    }
    return false;
}

static void take_off(struct sp_thread *thread, struct sp_span *span) {
    if (span == thread->top)
        pop(thread, span);
    else
        unlink_from_middle(thread, span);
    sp_span_settle(thread, span);
}

SP_COLD void sp_span_exit_requested(struct sp_thread *thread) {
    struct sp_span *span = thread->top;
    bool left = false;
    while (span != NULL) {
        struct sp_span *next = span->below;
        if (atomic_load_explicit(&span->exit_requested, memory_order_acquire)) {
            bool done = true;
            if (span->is_native) {
                take_off(thread, span);
                sp_native_free(span);
            } else if (sp_span_release != NULL) {
                done = sp_span_release(thread, span, take_off);
            } else {
                take_off(thread, span);
            }
            /* The host may have run anything: begin again. */
            if (done) next = thread->top;
            left = left || !done;
        }
        span = next;
    }
    if (left) sp_thread_poke(thread);
}

static bool runs_on(const struct sp_thread *thread, const struct sp_span *span) {
    if (is_stale(thread)) return false;
    for (const struct sp_span *s = thread->top; s != NULL; s = s->below)
        if (s == span) return true;
    return false;
}

/* Have the thread whose stack the span is on, or is about to be put on, exit it. False
 * if that thread has ended meanwhile. */
static bool request_exit(struct sp_span *span) {
    struct sp_thread *other = sp_span_thread(span);
    atomic_store_explicit(&span->exit_requested, true, memory_order_release);
    /* Either it sees this once the span is on its stack, or we see that it is. */
    atomic_thread_fence(memory_order_seq_cst);
    if (sp_span_is_suspended(span)) return true;
    if (sp_span_state(span) == SP_SPAN_NONE) return false;
    if (sp_span_thread(span) != NULL) other = sp_span_thread(span);
    if (other != NULL) sp_thread_poke(other);
    return true;
}

enum whereabouts {
    ON_NO_STACK,
    ON_ANOTHERS_STACK, /* or about to be put on one */
    LOOKED_AT,         /* of a session that is over, on the stack of a thread that may
                          not have noticed: where threads run at the same time, it may
                          be looking at the span at this moment */
    IN_A_GROUP,        /* suspended */
};

/* As far as others cannot change it. To be asked again if it is IN_A_GROUP, and then
 * could not be taken out. */
static enum whereabouts whereabouts(const struct sp_thread *thread,
                                    const struct sp_span *span) {
    enum sp_span_state state;
    bool suspended;
    do {
        if (span->opened) sp_spans_lock(); /* suspended and resumed under this */
        state = sp_span_state(span);
        suspended = sp_span_is_suspended(span);
        if (span->opened) sp_spans_unlock();
        /* Else it was resumed between the two. */
    } while (state == SP_SPAN_SUSPENDED && !suspended);
    if (suspended) return IN_A_GROUP;
    const struct sp_thread *other = sp_span_thread(span);
    if (state != SP_SPAN_ENTERED || other == NULL || other == thread)
        return ON_NO_STACK;
    /* Once: the session may end at any time. */
    if (span->generation == sp_session_running()) return ON_ANOTHERS_STACK;
    if (sp_span_retain != NULL && other != sp_thread_self &&
        atomic_load_explicit(&other->alive, memory_order_relaxed) &&
        sp_thread_generation(other) == span->generation)
        return LOOKED_AT;
    return ON_NO_STACK; /* left behind */
}

/* Other threads suspend and resume it meanwhile; but for these the host sees to it that
 * nobody else exits or abandons it. */
static bool exit_elsewhere(struct sp_thread *thread, struct sp_span *span) {
    enum whereabouts where = whereabouts(thread, span);
    if (where == IN_A_GROUP && sp_span_withdraw(thread, span)) {
        if (sp_span_claim != NULL) sp_span_claim(span);
        if (span->generation == sp_session_running()) sp_count(&sp_stats.misnested);
        where = ON_NO_STACK;
    }
    /* There are few of these, handed over and left at a session's end: they stay. */
    if (where == LOOKED_AT) return false;
    if (where != ON_NO_STACK && request_exit(span)) {
        sp_count(&sp_stats.misnested);
        return false;
    }
    sp_span_settle(thread, span);
    return true;
}

/* One that is not on top of the thread's stack. */
static SP_COLD bool exit_out_of_order(struct sp_thread *thread, struct sp_span *span) {
    if (thread == NULL || sp_span_thread(span) != thread || !runs_on(thread, span))
        return exit_elsewhere(thread, span);
    /* Spans of two coroutines that take turns, where their suspension cannot be
     * seen, are each nested well in their own. */
    if (span->home == thread->top->home) sp_count(&sp_stats.misnested);
    unlink_from_middle(thread, span);
    sp_span_settle(thread, span);
    return true;
}

bool sp_span_exit_quick(struct sp_thread *thread, struct sp_span *span) {
    return sp_span_exit_quick_inline(thread, span);
}

bool sp_span_exit(struct sp_thread *thread, struct sp_span *span) {
    if (SP_UNLIKELY(thread == NULL || thread->top != span))
        return exit_out_of_order(thread, span);
    if (sp_span_is_sampled_out(span) && sp_span_exit_unheard(thread, span)) return true;
    if (SP_LIKELY(sp_span_exit_quick_inline(thread, span))) return true;
    pop(thread, span);
    sp_span_settle(thread, span);
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
    sp_boundary(thread, sp_thread_idle_cell(thread));
    struct sp_span *span = thread->top;
    thread->top = NULL;
    sp_thread_charge_to(thread, NULL);
    sp_publish(&thread->publication, 0);
    while (span != NULL) {
        struct sp_span *below = span->below;
        if (is_fed(thread, span))
            sp_feed_leave(thread, span, sp_load(&thread->at_wall));
        sp_span_settle(thread, span);
        sp_count(&sp_stats.abandoned);
        span = below;
    }
}

/* --- spans that are opened explicitly ------------------------------------- */

/* Guards the list and every opened span's state and idle_since, which the
 * collector reads in place. Such spans are rare; `with` never comes here. */
static pthread_mutex_t open_lock = PTHREAD_MUTEX_INITIALIZER;
static struct sp_span *open_spans;

void sp_span_charge_idle(struct sp_thread *thread, struct sp_span *span,
                         uint64_t wall) {
    if (thread == NULL || span->generation != sp_thread_generation(thread) ||
        sp_span_is_sampled_out(span))
        return;
    sp_span_charge_idle_to(sp_cell_of_path(&thread->cells, span->path), span, wall);
}

void sp_span_list(struct sp_span *span) {
    span->open_previous = NULL;
    span->open_next = open_spans;
    if (open_spans != NULL) open_spans->open_previous = span;
    open_spans = span;
}

static void unlist(struct sp_span *span) {
    if (span->open_previous != NULL)
        span->open_previous->open_next = span->open_next;
    else if (open_spans == span)
        open_spans = span->open_next;
    if (span->open_next != NULL) span->open_next->open_previous = span->open_previous;
    span->open_previous = span->open_next = NULL;
}

void sp_span_open(struct sp_thread *thread, struct sp_span *span, sp_key key,
                  const struct sp_span *parent) {
    struct sp_parent above =
        parent != NULL ? in_session(thread, parent) : sp_span_next_parent(thread);
    sp_span_create(thread, span, key, cell_under(thread, key, &above));
    span->opened = span->slow_exit = span->totalled = true;
    sp_span_set_suspended(span, false);
    span->thrown_through = false;
    pthread_mutex_lock(&open_lock);
    span->idle_since = sp_clock_wall();
    span->feed_total = NULL;
    if (thread->feed.on) sp_feed_open(span, above.id, span->idle_since);
    sp_span_set_state(span, SP_SPAN_OPEN);
    sp_span_list(span);
    pthread_mutex_unlock(&open_lock);
}

void sp_span_enter(struct sp_thread *thread, struct sp_span *span) {
    if (span->generation != sp_thread_generation(thread))
        return; /* it is not recorded */
    if (sp_span_is_sampled_out(span)) {
        push_sampled_out(thread, span);
        return;
    }
    struct sp_cell *cell = sp_cell_of_path(&thread->cells, span->path);
    pthread_mutex_lock(&open_lock);
    sp_span_charge_idle(thread, span, sp_clock_wall());
    push(thread, span, cell, 0); /* its total knows its parent */
    pthread_mutex_unlock(&open_lock);
}

/* Those that were suspended, where there is a feed, have a place in the list and a
 * total as if they were opened. */
static SP_COLD void close_totalled(struct sp_thread *thread, struct sp_span *span) {
    pthread_mutex_lock(&open_lock);
    unlist(span);
    span->totalled = false;
    sp_feed_close(thread, span, sp_clock_wall());
    pthread_mutex_unlock(&open_lock);
}

void sp_span_settle(struct sp_thread *thread, struct sp_span *span) {
    atomic_store_explicit(&span->exit_requested, false, memory_order_relaxed);
    if (!span->opened) {
        if (SP_UNLIKELY(span->totalled)) close_totalled(thread, span);
        if (span->heap_owner != 0) sp_heap_span_closed(span);
        /* Last: from here on another thread may exit it, and free its memory. */
        atomic_thread_fence(memory_order_release);
        sp_span_set_state(span, SP_SPAN_NONE);
        return;
    }
    pthread_mutex_lock(&open_lock);
    /* One that was suspended has been idle for a while. */
    if (sp_span_state(span) != SP_SPAN_OPEN) span->idle_since = sp_clock_wall();
    sp_span_set_state(span, SP_SPAN_OPEN);
    pthread_mutex_unlock(&open_lock);
}

void sp_span_close(struct sp_thread *thread, struct sp_span *span) {
    if (SP_UNLIKELY(span->suspended)) sp_span_withdraw(thread, span);
    if (sp_span_is_sampled_out(span)) {
        sp_span_set_state(span, SP_SPAN_NONE);
        span->opened = false;
        return;
    }
    pthread_mutex_lock(&open_lock);
    uint64_t wall = sp_clock_wall();
    sp_span_charge_idle(thread, span, wall);
    unlist(span);
    sp_span_set_state(span, SP_SPAN_NONE);
    span->opened = span->totalled = false;
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
    for (struct sp_span *s = open_spans; s != NULL; s = s->open_next) {
        sp_feed_reopen_in_child(s, wall);
        if (sp_span_state(s) != SP_SPAN_ENTERED) s->idle_since = wall;
    }
}
