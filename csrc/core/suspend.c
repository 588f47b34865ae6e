#include "suspend.h"

#include "boundary.h"
#include "heap_span.h"
#include "stats.h"
#include "suspended.h"

bool (*sp_span_retain)(struct sp_span *span);

static bool is_fed(const struct sp_thread *thread, const struct sp_span *span) {
    return thread->feed.on && !sp_span_is_sampled_out(span);
}

/* The boundary in the usual case without a call. */
static inline void cross(struct sp_thread *thread, struct sp_cell *next) {
    if (SP_UNLIKELY(!sp_boundary_if_quick(thread, next))) sp_boundary(thread, next);
}

/* --- opened spans, and the feed -------------------------------------------------
 *
 * An opened span is read in place while it is open, and one that is suspended while
 * there is a feed is treated as if it were opened: under the lock of these. */

static bool needs_lock(const struct sp_thread *thread, const struct sp_span *top,
                       const struct sp_span *end) {
    if (thread->feed.on) return true;
    for (const struct sp_span *s = top; s != end; s = s->below)
        if (s->opened) return true;
    return false;
}

/* --- suspending ------------------------------------------------------------------ */

static void abandon_group(struct sp_thread *thread, struct sp_span *top, bool gone);

static void mark_suspended(struct sp_span *span, const void *key, uint64_t wall,
                           bool keeps_context) {
    span->idle_since = wall;
    span->keeps_context = keeps_context;
    span->thrown_through = false;
    span->kept_under = key;
    sp_span_set_suspended(span, true);
    atomic_thread_fence(memory_order_release);
    sp_span_set_state(span, span->opened ? SP_SPAN_OPEN : SP_SPAN_SUSPENDED);
}

static SP_COLD void leave_feed(struct sp_thread *thread, struct sp_span *top,
                               uint64_t wall) {
    for (struct sp_span *s = top; s != NULL; s = s->below)
        if (is_fed(thread, s)) sp_feed_suspend(thread, s, wall);
}

static inline bool suspend(struct sp_thread *thread, struct sp_span *bottom,
                           const void *key, bool keeps_context) {
    struct sp_span *top = thread->top, *below = bottom->below;
    bool locked = needs_lock(thread, top, below), kept;
    if (SP_UNLIKELY(locked)) sp_spans_lock();
    bool changes = thread->feed.on && sp_feed_begin_change(&thread->feed);
    cross(thread, bottom->outer);
    uint64_t wall = sp_load(&thread->at_wall);
    /* One by one: not all need be of this context. */
    for (struct sp_span *s = top; s != below && !keeps_context; s = s->below)
        sp_context_leave(thread, s, s);
    thread->top = below;
    bottom->below = NULL;
    sp_thread_charge_to(thread, bottom->outer->account);
    if (SP_UNLIKELY(thread->is_watched)) sp_span_publish_top(thread);
    if (SP_UNLIKELY(thread->feed.on)) leave_feed(thread, top, wall);
    for (struct sp_span *s = top; s != NULL; s = s->below)
        mark_suspended(s, key, wall, keeps_context);
    struct sp_span *before = sp_suspended_put(key, top, sp_span_retain, &kept);
    if (SP_UNLIKELY(thread->feed.on)) sp_feed_end_change(&thread->feed, changes);
    if (SP_UNLIKELY(locked)) sp_spans_unlock();
    if (SP_UNLIKELY(before != NULL)) abandon_group(thread, before, true);
    if (SP_UNLIKELY(!kept)) {
        sp_count(&sp_stats.out_of_memory);
        abandon_group(thread, top, false);
    }
    return kept;
}

bool sp_span_suspend(struct sp_thread *thread, struct sp_span *bottom,
                     const void *key) {
    return suspend(thread, bottom, key, false);
}

bool sp_span_suspend_all(struct sp_thread *thread, const void *key,
                         bool keeps_context) {
    struct sp_span *bottom = thread->top;
    while (bottom->below != NULL) bottom = bottom->below;
    return suspend(thread, bottom, key, keeps_context);
}

void sp_span_leave_behind(struct sp_thread *thread, struct sp_span *span) {
    sp_count(&sp_stats.abandoned);
    struct sp_context *context = thread->context;
    thread->context = &thread->own_context; /* the span's may be gone */
    sp_span_exit(thread, span);
    thread->context = context;
}

/* --- resuming -------------------------------------------------------------------- */

/* The group in the order in which it goes on the stack: `below` is the one above. */
static struct sp_span *reversed(struct sp_span *top) {
    struct sp_span *bottom = NULL;
    while (top != NULL) {
        struct sp_span *next = top->below;
        top->below = bottom;
        bottom = top;
        top = next;
    }
    return bottom;
}

/* Neither suspended nor on a stack: its exit finds it so. */
static void leave_alone(struct sp_thread *thread, struct sp_span *span) {
    bool locked = span->totalled; /* the collector reads it in place */
    if (locked) sp_spans_lock();
    if (!span->opened) {
        sp_span_charge_idle(thread, span, sp_clock_wall());
        sp_span_set_state(span, SP_SPAN_ENTERED);
    }
    sp_span_set_thread(span, NULL);
    span->below = NULL;
    if (locked) sp_spans_unlock();
    sp_span_set_suspended(span, false);
}

static struct sp_cell *cell_for(struct sp_thread *thread, const struct sp_span *span) {
    if (sp_span_is_sampled_out(span)) return &thread->sampled_out;
    if (SP_LIKELY(sp_span_thread(span) == thread)) return span->cell;
    return sp_cell_of_path(&thread->cells, span->path);
}

/* On top of what runs, whose cell is `outer`. */
static void put_back(struct sp_thread *thread, struct sp_span *span,
                     struct sp_cell *outer, uint64_t wall) {
    span->below = thread->top;
    /* In the place of the key, which sp_span_withdraw may be about to look up. */
    __atomic_store_n(&span->outer, outer, __ATOMIC_RELAXED);
    sp_span_set_thread(span, thread);
    if (!sp_span_is_sampled_out(span)) sp_span_charge_idle_to(span->cell, span, wall);
    sp_span_set_state(span, SP_SPAN_ENTERED);
    if (SP_LIKELY(!span->keeps_context)) sp_context_enter(thread, span);
    thread->top = span;
    /* From here on others that ask for its exit find out whom. */
    sp_span_set_suspended(span, false);
    if (sp_span_retain != NULL) atomic_thread_fence(memory_order_seq_cst);
    if (SP_UNLIKELY(atomic_load_explicit(&span->exit_requested, memory_order_acquire)))
        sp_thread_poke(thread); /* meanwhile */
    if (SP_LIKELY(!is_fed(thread, span))) return;
    bool irregular = span->cell->parent != outer->path;
    if (irregular) span->slow_exit = true;
    sp_feed_enter(thread, span, 0, irregular); /* its total knows its parent */
}

static void put_all_back(struct sp_thread *thread, struct sp_span *bottom,
                         struct sp_span *top) {
    bool locked = thread->feed.on;
    for (struct sp_span *s = bottom; s != NULL && !locked; s = s->below)
        locked = s->opened;
    if (SP_UNLIKELY(locked)) sp_spans_lock();
    struct sp_cell *outer = sp_cell_running(thread);
    for (struct sp_span *s = bottom; s != NULL; s = s->below)
        s->cell = cell_for(thread, s);
    bool changes = thread->feed.on && sp_feed_begin_change(&thread->feed);
    cross(thread, top->cell);
    uint64_t wall = sp_load(&thread->at_wall);
    for (struct sp_span *s = bottom, *next; s != NULL; s = next) {
        next = s->below;
        put_back(thread, s, outer, wall);
        outer = s->cell;
    }
    sp_thread_charge_to(thread,
                        sp_span_is_sampled_out(top) ? NULL : top->cell->account);
    if (SP_UNLIKELY(thread->is_watched)) sp_span_publish_top(thread);
    if (SP_UNLIKELY(thread->feed.on)) sp_feed_end_change(&thread->feed, changes);
    if (SP_UNLIKELY(locked)) sp_spans_unlock();
}

bool sp_span_resume(struct sp_thread *thread, struct sp_span *top) {
    if (SP_LIKELY(thread != NULL && top->generation == sp_thread_generation(thread))) {
        put_all_back(thread, reversed(top), top);
        return true;
    }
    struct sp_thread *charged = sp_thread_for_charges();
    for (struct sp_span *s = top, *below; s != NULL; s = below) {
        below = s->below;
        leave_alone(charged, s);
    }
    return false;
}

/* --- spans that are not resumed ------------------------------------------------------
 */

/* It is in no group any more, and on no stack. */
static void end_suspension(struct sp_thread *thread, struct sp_span *span) {
    sp_span_set_suspended(span, false);
    span->below = NULL;
    if (span->opened) return; /* open as before */
    bool locked = span->totalled;
    if (locked) sp_spans_lock();
    sp_span_charge_idle(thread != NULL ? thread : sp_thread_for_charges(), span,
                        sp_clock_wall());
    sp_span_set_state(span, SP_SPAN_ENTERED);
    if (locked) sp_spans_unlock();
}

bool sp_span_withdraw(struct sp_thread *thread, struct sp_span *span) {
    const void *key = __atomic_load_n(&span->kept_under, __ATOMIC_RELAXED);
    if (!sp_suspended_remove(key, span)) return false;
    end_suspension(thread, span);
    return true;
}

void sp_span_abandon(struct sp_thread *thread, struct sp_span *span) {
    /* It may be in none: it was left out when the group was taken, or was the one whose
     * group has ended. */
    sp_suspended_remove(span->kept_under, span);
    end_suspension(thread, span);
    if (span->generation == sp_session_running()) sp_count(&sp_stats.abandoned);
    sp_span_settle(thread, span);
}

/* The group is kept no longer. `gone`: its host does not know. */
static SP_COLD void abandon_group(struct sp_thread *thread, struct sp_span *top,
                                  bool gone) {
    for (struct sp_span *s = top, *below; s != NULL; s = below) {
        below = s->below;
        if (gone && sp_span_release != NULL && !s->is_native) {
            if (sp_span_retain == NULL && sp_span_claim != NULL) sp_span_claim(s);
            if (!sp_span_release(thread, s, sp_span_abandon))
                sp_span_abandon(thread, s);
        } else {
            sp_span_abandon(thread, s);
        }
    }
}

/* --- readers
 * -------------------------------------------------------------------------- */

struct visitor {
    uint32_t generation;
    uint64_t wall;
    void (*visit)(void *context, uint32_t path, uint64_t idle);
    void *context;
};

static void visit_one(void *context, struct sp_span *span) {
    const struct visitor *v = context;
    if (span->generation == v->generation && !sp_span_is_sampled_out(span) &&
        sp_span_state(span) == SP_SPAN_SUSPENDED && v->wall > span->idle_since)
        v->visit(v->context, span->path, v->wall - span->idle_since);
}

void sp_span_each_suspended(uint32_t generation, uint64_t wall,
                            void (*visit)(void *context, uint32_t path, uint64_t idle),
                            void *context) {
    struct visitor visitor = {generation, wall, visit, context};
    sp_suspended_each(visit_one, &visitor);
}

static void begin_again(void *context, struct sp_span *span) {
    span->idle_since = *(const uint64_t *)context;
    span->thread = NULL; /* another's are emptied: its cell may be anything's by now */
}

void sp_suspend_restart_in_child(void) {
    uint64_t wall = sp_clock_wall();
    sp_suspended_each(begin_again, &wall);
}
