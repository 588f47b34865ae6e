/* Allocators that charge what they hand out, made of others that do not. */
#ifndef SPANPROF_PYTHON_CHARGED_H
#define SPANPROF_PYTHON_CHARGED_H

#include "../core/charge.h"

static inline void *charged_malloc(void *(*wrapped)(void *, size_t), void *context,
                                   size_t size) {
    struct sp_making making = sp_charge_make();
    return sp_charge_made(&making, wrapped(context, size), size);
}

static inline void *charged_calloc(void *(*wrapped)(void *, size_t, size_t),
                                   void *context, size_t count, size_t size) {
    struct sp_making making = sp_charge_make();
    return sp_charge_made(&making, wrapped(context, count, size), count * size);
}

/* The old block may be somebody's in any case. */
static inline void *charged_realloc(void *(*wrapped)(void *, void *, size_t),
                                    void *context, void *old, size_t size) {
    struct sp_moving moving;
    sp_charge_move(&moving, old);
    return sp_charge_moved(&moving, old, wrapped(context, old, size), size);
}

#endif
