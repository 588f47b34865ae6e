#include "native.h"

#include "boundary.h"
#include "callsite.h"
#include "stats.h"

#include <stdlib.h>

/* Those that wait to be used again are plain, and their list's thread's. */

static SP_COLD struct sp_native *make(struct sp_thread *thread) {
    struct sp_native *native = calloc(1, sizeof *native);
    if (native == NULL) {
        sp_count(&sp_stats.out_of_memory);
        return NULL;
    }
    native->span.is_native = true;
    sp_span_set_thread(&native->span, thread);
    return native;
}

static inline struct sp_native *take(struct sp_thread *thread) {
    struct sp_native *native = thread->free_natives;
    if (SP_UNLIKELY(native == NULL)) return make(thread);
    thread->free_natives = native->next_free;
    return native;
}

static inline void give_back_to(struct sp_thread *thread, struct sp_native *native) {
    native->next_free = thread->free_natives;
    thread->free_natives = native;
}

static void give_back(struct sp_native *native) {
    struct sp_thread *thread = sp_thread_self;
    if (SP_UNLIKELY(thread == NULL)) {
        free(native);
        return;
    }
    sp_span_set_plain(&native->span);
    sp_span_set_thread(&native->span, thread);
    give_back_to(thread, native);
}

void sp_native_free(struct sp_span *span) {
    give_back((struct sp_native *)span);
}

/* Nobody to ask here. */
static inline bool is_sampled_out(struct sp_thread *thread,
                                  const struct sp_parent *parent) {
    if (SP_LIKELY(!thread->sampler.on)) return false;
    struct sp_span above;
    if (parent != NULL) above.as_parent = *parent;
    return sp_span_decide(thread, parent != NULL ? &above : NULL) == SP_SAMPLED_OUT;
}

static SP_NOINLINE struct sp_native *begin_slow(struct sp_thread *thread,
                                                const void *place, uint32_t callsite) {
    struct sp_native *native = take(thread);
    if (SP_UNLIKELY(native == NULL)) return NULL;
    if (SP_UNLIKELY(is_sampled_out(thread, NULL))) {
        sp_span_begin_sampled_out(thread, &native->span);
        return native;
    }
    struct sp_site *site = sp_site_find(thread, place);
    if (SP_UNLIKELY(site->place != place))
        *site = (struct sp_site){place, place, NULL, callsite};
    sp_span_begin_at(thread, &native->span, site);
    return native;
}

/* The usual case is that of a callsite that was the last one there, too. */
struct sp_native *sp_native_begin(struct sp_thread *thread, const void *place,
                                  uint32_t callsite) {
    struct sp_native *native = thread->free_natives;
    struct sp_cell *cell = sp_cell_running(thread)->last_child;
    if (SP_UNLIKELY(native == NULL || cell == NULL ||
                    cell->key != sp_key_make(callsite, SP_LABELS_NONE) ||
                    thread->sampler.on ||
                    !sp_span_begin_quick(thread, &native->span, cell)))
        return begin_slow(thread, place, callsite);
    thread->free_natives = native->next_free;
    return native;
}

struct sp_native *sp_native_begin_under(struct sp_thread *thread, sp_key key,
                                        const struct sp_parent *parent) {
    struct sp_native *native = take(thread);
    if (SP_UNLIKELY(native == NULL)) return NULL;
    struct sp_span above;
    if (parent != NULL) above.as_parent = *parent;
    if (SP_UNLIKELY(is_sampled_out(thread, parent)))
        sp_span_begin_sampled_out(thread, &native->span);
    else if (parent != NULL)
        sp_span_begin_under(thread, &native->span, key, &above);
    else
        sp_span_begin(thread, &native->span, key);
    return native;
}

static SP_NOINLINE void end_slow(struct sp_thread *thread, struct sp_native *native) {
    if (native != NULL && SP_LIKELY(sp_span_exit(thread, &native->span)))
        give_back(native);
}

void sp_native_end(struct sp_thread *thread, struct sp_native *native) {
    if (SP_LIKELY(thread != NULL && native != NULL && thread->top == &native->span &&
                  sp_span_exit_quick_inline(thread, &native->span)))
        give_back_to(thread, native);
    else
        end_slow(thread, native);
}
