/* Allocators that charge what they hand out, made of others that do not. */
#ifndef SPANPROF_PYTHON_CHARGED_H
#define SPANPROF_PYTHON_CHARGED_H

#include "../core/charge.h"

/* True if blocks of this thread are somebody's. `thread` may be NULL. */
static inline bool charged_is_on(const struct sp_thread *thread) {
    return thread != NULL && thread->alloc_account != NULL;
}

/* Around the call of the wrapped allocator, on a thread that is charged: it may pass
 * another of our hooks, and the block is to count once. A failed call is no allocation.
 */
static inline struct sp_account *charged_begin(struct sp_thread *thread) {
    struct sp_account *account = thread->alloc_account;
    thread->alloc_account = NULL;
    return account;
}
static inline void *charged_end(struct sp_thread *thread, struct sp_account *account,
                                void *block, size_t size) {
    thread->alloc_account = account;
    if (SP_UNLIKELY(block == NULL)) return NULL;
    return sp_charge_allocated(thread, account, block, size);
}

static inline void *charged_malloc(struct sp_thread *thread,
                                   void *(*wrapped)(void *, size_t), void *context,
                                   size_t size) {
    struct sp_account *account = charged_begin(thread);
    return charged_end(thread, account, wrapped(context, size), size);
}

static inline void *charged_calloc(struct sp_thread *thread,
                                   void *(*wrapped)(void *, size_t, size_t),
                                   void *context, size_t count, size_t size) {
    struct sp_account *account = charged_begin(thread);
    return charged_end(thread, account, wrapped(context, count, size), count * size);
}

/* Charged or not: the old block may be somebody's in any case. */
static inline void *charged_realloc(void *(*wrapped)(void *, void *, size_t),
                                    void *context, void *old, size_t size) {
    struct sp_moving moving;
    sp_charge_move(&moving, old);
    return sp_charge_moved(&moving, old, wrapped(context, old, size), size);
}

#endif
