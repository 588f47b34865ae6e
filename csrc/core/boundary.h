/* The boundary between what one span used and what the next one will: for those files
 * that move spans to and from a thread's stack. */
#ifndef SPANPROF_CORE_BOUNDARY_H
#define SPANPROF_CORE_BOUNDARY_H

#include "span.h"

static inline void sp_span_set_state(struct sp_span *span, enum sp_span_state state) {
    atomic_store_explicit(&span->state, (unsigned char)state, memory_order_relaxed);
}

static inline uint32_t sp_thread_generation(const struct sp_thread *thread) {
    return atomic_load_explicit(&thread->data_generation, memory_order_relaxed);
}

static inline struct sp_cell *sp_cell_running(const struct sp_thread *thread) {
    return atomic_load_explicit(&thread->cell, memory_order_relaxed);
}

/* From here on the thread is at a boundary. Said before the clock is read: one that is
 * descheduled right after is not taken for a span that runs on. */
static inline uint32_t sp_boundary_begin(struct sp_thread *thread) {
    uint32_t sequence = atomic_load_explicit(&thread->sequence, memory_order_relaxed);
    atomic_store_explicit(&thread->sequence, sequence + 1, memory_order_relaxed);
    atomic_thread_fence(memory_order_release);
    return sequence;
}

/* Charge the time since the last boundary to the cell that ran, make `next` the
 * running cell. Every enter and exit is this and a push or a pop. */
static inline void sp_boundary_charge(struct sp_thread *thread, struct sp_cell *cell,
                                      struct sp_cell *next,
                                      const struct sp_moment *last,
                                      const struct sp_moment *now, uint32_t sequence) {
    sp_add(&cell->value[SP_VALUE_BUSY], now->wall - last->wall);
    sp_add(&cell->value[SP_VALUE_CPU], now->cpu - last->cpu);
    sp_store(&thread->at_wall, now->wall);
    sp_store(&thread->at_cpu, now->cpu);
    atomic_store_explicit(&thread->cell, next, memory_order_release);
    atomic_store_explicit(&thread->sequence, sequence + 2, memory_order_release);
}

void sp_boundary(struct sp_thread *thread, struct sp_cell *next);

/* The same if nothing slow is due; else false, and nothing is done. Calls
 * nothing, so that those who call it have no registers to save. */
static inline bool sp_boundary_if_quick(struct sp_thread *thread,
                                        struct sp_cell *next) {
    struct sp_cell *cell = sp_cell_running(thread);
    struct sp_moment last = {sp_load(&thread->at_wall), sp_load(&thread->at_cpu)};
    struct sp_moment now;
    if (SP_UNLIKELY(cell->split != thread->split_round && thread->clock.want_cpu))
        return false;
    uint32_t sequence = sp_boundary_begin(thread);
    if (SP_UNLIKELY(!sp_clock_now_quick(&thread->clock, &last, &now))) {
        atomic_store_explicit(&thread->sequence, sequence, memory_order_relaxed);
        return false;
    }
    sp_boundary_charge(thread, cell, next, &last, &now, sequence);
    return true;
}

/* The span becomes its context's current one. */
static inline void sp_context_enter(struct sp_thread *thread, struct sp_span *span) {
    struct sp_context *context = thread->context;
    span->before = context->current;
    context->current = span->as_parent;
}

/* It is that no longer, if it was: it may have been entered in another context. */
static inline void sp_context_leave(struct sp_thread *thread, const struct sp_span *top,
                                    const struct sp_span *bottom) {
    struct sp_context *context = thread->context;
    if (SP_LIKELY(context->current.id == top->id && context->current.path == top->path))
        context->current = bottom->before;
}

/* The thread's innermost span is another one: tell outside profilers. To be called if
 * `is_watched`. */
void sp_span_publish_top(struct sp_thread *thread);

/* The span has been entered, or has left the stack; its boundary has been charged, and
 * thread->top is set. `parent` is the id of the span's parent. To be called if
 * `is_watched`. */
void sp_span_tell_entered(struct sp_thread *thread, struct sp_span *span,
                          uint64_t parent, bool irregular);
void sp_span_tell_left(struct sp_thread *thread, struct sp_span *span);

static inline uint64_t sp_span_id_of(const struct sp_span *span) {
    return span != NULL ? span->id : 0;
}

static inline void sp_span_create(struct sp_thread *thread, struct sp_span *span,
                                  sp_key key, struct sp_cell *cell) {
    span->id = thread->next_id++;
    span->key = key;
    span->path = cell->path;
    span->generation = sp_thread_generation(thread);
    sp_add(&cell->value[SP_VALUE_CALLS], 1);
}

/* What a span is that was not opened, has never been suspended, and owns nothing. */
static inline void sp_span_set_plain(struct sp_span *span) {
    span->opened = span->slow_exit = span->totalled = span->thrown_through = false;
    sp_span_set_suspended(span, false);
}

/* Create and enter a span in a cell that is below the running one, if its context's
 * current span is the innermost one and nothing slow is due; else false, and nothing is
 * done. The span is plain and the thread's. */
static inline bool sp_span_begin_quick(struct sp_thread *thread, struct sp_span *span,
                                       struct sp_cell *cell) {
    struct sp_cell *outer = sp_cell_running(thread);
    if (SP_UNLIKELY(!sp_span_has_top_as_parent(thread) ||
                    !sp_boundary_if_quick(thread, cell)))
        return false;
    sp_span_create(thread, span, cell->key, cell);
    span->below = thread->top;
    span->outer = outer;
    span->cell = cell;
    sp_span_set_state(span, SP_SPAN_ENTERED);
    sp_context_enter(thread, span);
    thread->top = span;
    sp_thread_charge_to(thread, cell->account);
    if (SP_UNLIKELY(thread->is_watched))
        sp_span_tell_entered(thread, span, sp_span_id_of(span->below), false);
    return true;
}

/* sp_span_exit_quick, for those who have it inlined. */
static inline bool sp_span_exit_quick_inline(struct sp_thread *thread,
                                             struct sp_span *span) {
    if (SP_UNLIKELY(span->slow_exit || !sp_boundary_if_quick(thread, span->outer)))
        return false;
    sp_context_leave(thread, span, span);
    thread->top = span->below;
    sp_thread_charge_to(thread, span->outer->account);
    sp_span_set_state(span, SP_SPAN_NONE);
    if (SP_UNLIKELY(thread->is_watched)) sp_span_tell_left(thread, span);
    return true;
}

/* The span has idled up to that time; `cell` is the calling thread's of its path. An
 * opened or totalled span: under the lock. */
static inline void sp_span_charge_idle_to(struct sp_cell *cell, struct sp_span *span,
                                          uint64_t wall) {
    uint64_t idle = wall > span->idle_since ? wall - span->idle_since : 0;
    span->idle_since = wall;
    if (span->totalled && span->feed_total != NULL) span->feed_total->idle += idle;
    sp_add(&cell->value[SP_VALUE_IDLE], idle);
}

/* The same for whichever thread, which may be NULL. */
void sp_span_charge_idle(struct sp_thread *thread, struct sp_span *span, uint64_t wall);

/* A span that has left the stack or its group: an opened one idles, another is no more.
 */
void sp_span_settle(struct sp_thread *thread, struct sp_span *span);

#endif
