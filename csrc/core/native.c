#include "native.h"

#include "stats.h"

#include <stdlib.h>

void (*_Atomic sp_native_find_context)(struct sp_thread *thread);

static inline void find_context(struct sp_thread *thread) {
    void (*find)(struct sp_thread *) =
        atomic_load_explicit(&sp_native_find_context, memory_order_relaxed);
    if (find != NULL) find(thread);
}

static SP_COLD struct sp_native *make(void) {
    struct sp_native *native = calloc(1, sizeof *native);
    if (native == NULL) {
        sp_count(&sp_stats.out_of_memory);
        return NULL;
    }
    native->span.is_native = true;
    return native;
}

static inline struct sp_native *take(struct sp_thread *thread) {
    struct sp_native *native = thread->free_natives;
    if (SP_UNLIKELY(native == NULL)) return make();
    thread->free_natives = native->next_free;
    return native;
}

static inline void give_back(struct sp_native *native) {
    struct sp_thread *thread = sp_thread_self;
    if (SP_UNLIKELY(thread == NULL)) {
        free(native);
        return;
    }
    native->next_free = thread->free_natives;
    thread->free_natives = native;
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

struct sp_native *sp_native_begin(struct sp_thread *thread, const void *place,
                                  uint32_t callsite) {
    find_context(thread);
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

struct sp_native *sp_native_begin_under(struct sp_thread *thread, sp_key key,
                                        const struct sp_parent *parent) {
    find_context(thread);
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

void sp_native_end(struct sp_native *native) {
    if (SP_UNLIKELY(native == NULL)) return;
    struct sp_thread *thread = sp_thread_current();
    if (SP_LIKELY(thread != NULL)) find_context(thread);
    if (SP_LIKELY(sp_span_exit(thread, &native->span))) give_back(native);
}
