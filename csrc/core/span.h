/* Spans: create, enter, exit, destroy, and where their time goes.
 *
 * The accounting, whole: a thread's time between two boundaries (an enter or an
 * exit) belongs to the span that was innermost then. Each boundary reads the
 * clock once and charges the time since the last one to that span's cell. Self
 * values come out directly, their sum is the time with any span entered by
 * construction, and nothing is ever subtracted.
 *
 * A `struct sp_span` is the caller's memory; it must live until the span is
 * exited and closed. Functions are called by the thread that `thread` belongs
 * to. Nothing here blocks but opening, entering and closing a span that was
 * opened explicitly, which take a short lock. */
#ifndef SPANPROF_CORE_SPAN_H
#define SPANPROF_CORE_SPAN_H

#include "thread.h"

enum sp_span_state {
    SP_SPAN_NONE,      /* not created, or destroyed */
    SP_SPAN_OPEN,      /* created, not running: idle time counts */
    SP_SPAN_ENTERED,   /* on its thread's running stack */
    SP_SPAN_SUSPENDED, /* off it for the time being, see suspend.h: idle time counts */
};

struct sp_span {
    struct sp_span *below; /* the span that ran when this one was entered */
    union {
        struct sp_cell *outer;  /* the cell charged before; `below`'s, or the root */
        const void *kept_under; /* while suspended: the key of its group */
    };
    struct sp_cell *cell;               /* its own, while entered */
    _Atomic(struct sp_thread *) thread; /* whose stack it is, or was, on; or NULL */
    void *owner;                        /* the host's object, for sp_span_release */
    const void *home; /* the host's: what suspends the span when it is suspended */
    union {
        struct {
            uint64_t id;
            uint32_t path;
            uint32_t generation;
        };
        struct sp_parent as_parent;
    };
    struct sp_parent
        before; /* the context's current span before this one was entered */
    union {
        uint64_t idle_since;     /* wall time, while open or suspended */
        const void *thrown_into; /* the host's, while entered and `thrown_through` */
    };
    sp_key key;
    _Atomic unsigned char state; /* enum sp_span_state */
    _Atomic bool exit_requested; /* by another thread than the running one */
    bool opened;                 /* explicitly: stays open after an exit */
    bool slow_exit;              /* opened, or owns blocks: its exit has more to do */
    bool totalled; /* opened, or was suspended while there was a feed: it is in the list
                      of opened spans, and has a feed_total */
    _Atomic bool suspended; /* is in a group of suspended spans, or was until a thread
                               that is about to resume it took it out; an opened one is
                               open as well */
    bool keeps_context;   /* while suspended: is current in its context all the same */
    bool is_native;       /* of native.h: the host has no object for it */
    bool thrown_through;  /* the host's, see suspension.c; false when it is entered */
    uint32_t heap_owner;  /* its record in heap_span.h, or 0 */
    uint32_t feed_number; /* of its base in feed.h, from 1, while entered; or 0 */
    struct sp_feed_total *feed_total;          /* of a totalled span; or NULL */
    struct sp_span *open_previous, *open_next; /* list of opened spans */
};

static inline enum sp_span_state sp_span_state(const struct sp_span *span) {
    return (enum sp_span_state)atomic_load_explicit(&span->state, memory_order_acquire);
}

/* Any thread: whether it is suspended; and once it is not, on whose stack it may be. */
static inline bool sp_span_is_suspended(const struct sp_span *span) {
    return atomic_load_explicit(&span->suspended, memory_order_acquire);
}
static inline void sp_span_set_suspended(struct sp_span *span, bool suspended) {
    atomic_store_explicit(&span->suspended, suspended, memory_order_release);
}
static inline struct sp_thread *sp_span_thread(const struct sp_span *span) {
    return atomic_load_explicit(&span->thread, memory_order_relaxed);
}
static inline void sp_span_set_thread(struct sp_span *span, struct sp_thread *thread) {
    atomic_store_explicit(&span->thread, thread, memory_order_relaxed);
}

static inline bool sp_span_is_sampled_out(const struct sp_span *span) {
    return span->path == SP_PATH_SAMPLED_OUT;
}

/* Called on the running thread for a span that is to be taken off its stack on
 * another's behalf, as another thread has asked for its exit; and for one that is
 * abandoned, because what would have resumed it is gone (after sp_span_retain, if there
 * is one). The host calls `take_off(thread, span)`, and then holds the span no longer,
 * which may free it: both while no other thread exits this very span. False if that
 * cannot be done now: the thread may be elsewhere than in the host's part that the span
 * belongs to. It is asked again when the thread next opens or closes a span. May be
 * NULL. Not called for native spans. */
extern bool (*sp_span_release)(struct sp_thread *thread, struct sp_span *span,
                               void (*take_off)(struct sp_thread *, struct sp_span *));

/* Called for a span that is suspended and about to be exited, by who exits it. From
 * here on it counts as one that was entered: the host holds no less for it. May be
 * NULL. */
extern void (*sp_span_claim)(struct sp_span *span);

/* Create and enter a span below the context's current one (context.h), or below
 * `parent` (which may run on another thread or have ended; of another session it counts
 * as none). */
void sp_span_begin(struct sp_thread *thread, struct sp_span *span, sp_key key);
void sp_span_begin_under(struct sp_thread *thread, struct sp_span *span, sp_key key,
                         const struct sp_span *parent);

/* Whether the thread's next span is a child of its innermost one, or a root if there is
 * none; if false, it may be all the same. */
static inline bool sp_span_has_top_as_parent(const struct sp_thread *thread) {
    return SP_LIKELY(thread->context->current.id ==
                     (thread->top != NULL ? thread->top->id : 0));
}

/* The parent of the thread's next span: its context's current span; where that knows of
 * none, the innermost one that runs. */
struct sp_parent sp_span_next_parent(const struct sp_thread *thread);

/* As sp_span_begin, for a span without recorded labels, at the site's callsite.
 * Finds the cell in the site, and makes no call in the usual case. */
void sp_span_begin_at(struct sp_thread *thread, struct sp_span *span,
                      struct sp_site *site);

/* --- sampling ---------------------------------------------------------------
 * Before a span is created, its host asks whether it is to be. One that is not (it is
 * *sampled out*) takes its place on the thread's stack all the same, as its descendants
 * are to know; but no clock is read for it, and its time and blocks are nobody's. It
 * has no id. Every span of a session without a sampler is sampled. */

/* The decision for a span below the context's current one, or below `parent` if not
 * NULL: that one's, or for a root a new one. To be called once for each span. */
enum sp_decision sp_span_decide(struct sp_thread *thread, const struct sp_span *parent);

/* In place of sp_span_begin (_under, _at) and sp_span_open; the other functions take
 * such spans as well. */
void sp_span_begin_sampled_out(struct sp_thread *thread, struct sp_span *span);
void sp_span_open_sampled_out(struct sp_thread *thread, struct sp_span *span);

/* Whether the thread runs no span that is recorded, so that another one that is sampled
 * out changes nothing of what is charged to whom. */
static inline bool sp_span_is_unheard(const struct sp_thread *thread) {
    return SP_UNLIKELY(thread->sampler.on) &&
           sp_thread_is_nobodys(
               thread, atomic_load_explicit(&thread->cell, memory_order_relaxed));
}

/* sp_span_decide without a parent, if that is SP_SAMPLED_OUT and quickly known. The
 * thread is one where sp_span_is_unheard. */
static inline bool sp_span_skips(struct sp_thread *thread) {
    const struct sp_parent *current = &thread->context->current;
    if (SP_UNLIKELY(current->id != 0)) return false;
    if (atomic_load_explicit(&thread->cell, memory_order_relaxed) ==
        &thread->sampled_out)
        return current->path == SP_PATH_SAMPLED_OUT;
    if (SP_UNLIKELY(current->generation != 0)) return false;
    if (SP_UNLIKELY(thread->sampler.skip == 0)) return false;
    thread->sampler.skip--;
    return true;
}

static inline void sp_span_set_sampled_out(const struct sp_thread *thread,
                                           struct sp_span *span) {
    span->id = 0;
    span->path = SP_PATH_SAMPLED_OUT;
    span->generation =
        atomic_load_explicit(&thread->data_generation, memory_order_relaxed);
    span->opened = span->totalled = span->thrown_through = false;
    sp_span_set_suspended(span, false);
    span->slow_exit = true;
}

/* sp_span_begin_sampled_out where sp_span_is_unheard. */
static inline void sp_span_begin_unheard(struct sp_thread *thread,
                                         struct sp_span *span) {
    span->below = thread->top;
    span->outer = atomic_load_explicit(&thread->cell, memory_order_relaxed);
    span->cell = &thread->sampled_out;
    sp_span_set_thread(span, thread);
    sp_span_set_sampled_out(thread, span);
    atomic_store_explicit(&span->state, SP_SPAN_ENTERED, memory_order_relaxed);
    span->before = thread->context->current;
    thread->context->current = span->as_parent;
    /* All before is nobody's, and so is all from here on: no boundary. */
    atomic_store_explicit(&thread->cell, &thread->sampled_out, memory_order_relaxed);
    thread->top = span;
    sp_add(&thread->sampler.sampled_out, 1);
}

/* sp_span_exit of the innermost span, if it began so. Else false, and nothing is done.
 */
static inline bool sp_span_exit_unheard(struct sp_thread *thread,
                                        struct sp_span *span) {
    if (SP_UNLIKELY(span->opened || !sp_thread_is_nobodys(thread, span->outer)))
        return false;
    atomic_store_explicit(&thread->cell, span->outer, memory_order_relaxed);
    if (thread->context->current.path == SP_PATH_SAMPLED_OUT)
        thread->context->current = span->before;
    thread->top = span->below;
    atomic_store_explicit(&span->state, SP_SPAN_NONE, memory_order_relaxed);
    return true;
}

/* Create a span without entering it. `parent` NULL: the running span. */
void sp_span_open(struct sp_thread *thread, struct sp_span *span, sp_key key,
                  const struct sp_span *parent);

/* Enter an open span. */
void sp_span_enter(struct sp_thread *thread, struct sp_span *span);

/* Exit an entered span: an opened one is open again, another is destroyed.
 * `thread` may be NULL, or another one than the span runs on: then the running
 * thread takes the span off at its next boundary, and false is returned (the
 * span's memory must stay until sp_span_release). */
bool sp_span_exit(struct sp_thread *thread, struct sp_span *span);

/* The same for the thread's innermost span in the usual case; else false, and
 * nothing is done. Makes no call. */
bool sp_span_exit_quick(struct sp_thread *thread, struct sp_span *span);

/* Destroy a span that is open and not entered. `thread` may be NULL. */
void sp_span_close(struct sp_thread *thread, struct sp_span *span);

/* The innermost running span whose owner is `owner`, or NULL. */
struct sp_span *sp_span_find(struct sp_thread *thread, const void *owner);

/* For feed.c: have the system time up to now shared out. Owner only. */
void sp_span_split_system(struct sp_thread *thread);

/* For thread.c: the spans that other threads asked to be exited; the end of the
 * thread or of its session. */
void sp_span_exit_requested(struct sp_thread *thread);
void sp_span_abandon_all(struct sp_thread *thread);

/* For profile.c: visits every opened span of the generation that is idle. */
void sp_span_each_idle(uint32_t generation, uint64_t wall,
                       void (*visit)(void *context, uint32_t path, uint64_t idle),
                       void *context);

/* For feed_read.c: visits every opened span of the generation. The caller holds the
 * lock of opened spans. */
void sp_span_each_opened(uint32_t generation,
                         void (*visit)(void *context, const struct sp_span *span),
                         void *context);

/* The lock of opened spans. Fork: taken before, released after in the parent, made anew
 * in the child. */
void sp_spans_lock(void);
void sp_spans_unlock(void);
void sp_spans_relock_in_child(void);

/* For suspend.c. Under that lock: the span has a place in the list. */
void sp_span_list(struct sp_span *span);

/* A suspended span leaves its group, its idle time charged, and is neither suspended
 * nor entered; see suspend.h. `thread` may be NULL. False, and nothing is done, if
 * another thread has taken the group and is about to resume it. */
bool sp_span_withdraw(struct sp_thread *thread, struct sp_span *span);

#endif
