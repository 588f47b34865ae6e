/* The hooks only interpose: one thread-local word tells whether a span wants the
 * count, two additions make it. They call nothing of CPython but the allocator
 * they wrap, take no lock, and are never taken out again: swapping allocators
 * while other threads allocate tears the structure that they read it from.
 *
 * For the same reason the wrapping allocator keeps the wrapped one's context and
 * finds the wrapped functions elsewhere: a thread that sees a mixture of the two
 * during the one swap still calls functions with the context they expect.
 *
 * OBJ and MEM call RAW for large blocks: the word is cleared around the wrapped
 * call, so that each block counts once. */
#include "alloc_hooks.h"

#include "compat.h"

#include "../core/thread.h"

#define DOMAINS 3

/* Written before the hooks are in place, never after. */
static PyMemAllocatorEx wrapped[DOMAINS];

static inline struct sp_cell *pause_counting(struct sp_thread *thread) {
    struct sp_cell *cell = thread->alloc_cell;
    thread->alloc_cell = NULL;
    return cell;
}

static inline void resume_counting(struct sp_thread *thread, struct sp_cell *cell,
                                   const void *block, size_t bytes) {
    thread->alloc_cell = cell;
    if (SP_UNLIKELY(block == NULL)) return; /* a failed call is no allocation */
    sp_add(&cell->value[SP_VALUE_ALLOCS], 1);
    sp_add(&cell->value[SP_VALUE_BYTES], bytes);
}

static inline bool counting(const struct sp_thread *thread) {
    return thread != NULL && thread->alloc_cell != NULL;
}

#define HOOKS(domain)                                                               \
    static void *malloc_##domain(void *context, size_t size) {                      \
        struct sp_thread *thread = sp_thread_self;                                  \
        if (!counting(thread)) return wrapped[domain].malloc(context, size);        \
        struct sp_cell *cell = pause_counting(thread);                              \
        void *block = wrapped[domain].malloc(context, size);                        \
        resume_counting(thread, cell, block, size);                                 \
        return block;                                                               \
    }                                                                               \
    static void *calloc_##domain(void *context, size_t count, size_t size) {        \
        struct sp_thread *thread = sp_thread_self;                                  \
        if (!counting(thread)) return wrapped[domain].calloc(context, count, size); \
        struct sp_cell *cell = pause_counting(thread);                              \
        void *block = wrapped[domain].calloc(context, count, size);                 \
        resume_counting(thread, cell, block, count *size);                          \
        return block;                                                               \
    }                                                                               \
    static void *realloc_##domain(void *context, void *old, size_t size) {          \
        struct sp_thread *thread = sp_thread_self;                                  \
        if (!counting(thread)) return wrapped[domain].realloc(context, old, size);  \
        struct sp_cell *cell = pause_counting(thread);                              \
        void *block = wrapped[domain].realloc(context, old, size);                  \
        resume_counting(thread, cell, block, size);                                 \
        return block;                                                               \
    }

HOOKS(0)
HOOKS(1)
HOOKS(2)

#define HOOKED(domain)                                                           \
    {                                                                            \
        wrapped[domain].ctx, malloc_##domain, calloc_##domain, realloc_##domain, \
            wrapped[domain].free                                                 \
    }

void alloc_hooks_install(void) {
    static bool installed;
    if (installed) return;
    installed = true;
    static const PyMemAllocatorDomain domains[DOMAINS] = {
        PYMEM_DOMAIN_RAW, PYMEM_DOMAIN_MEM, PYMEM_DOMAIN_OBJ};
    for (int i = 0; i < DOMAINS; i++) PyMem_GetAllocator(domains[i], &wrapped[i]);
    PyMemAllocatorEx hooks[DOMAINS] = {HOOKED(0), HOOKED(1), HOOKED(2)};
    for (int i = 0; i < DOMAINS; i++) PyMem_SetAllocator(domains[i], &hooks[i]);
}
