/* The hooks only interpose: one thread-local word tells whether a span wants the
 * count, two additions make it. They call nothing of CPython but the allocator
 * they wrap, take no lock, and are never taken out again: swapping allocators
 * while other threads allocate tears the structure that they read it from.
 *
 * For the same reason the wrapping allocator keeps the wrapped one's context and
 * finds the wrapped functions elsewhere: a thread that sees a mixture of the two
 * during the one swap still calls functions with the context they expect. And all
 * threads have seen those functions before the first of them can see a hook, which
 * matters where processors read ahead (membarrier(2); without it, on a kernel before
 * 4.14, it rests on the order of stores alone).
 *
 * OBJ and MEM call RAW for large blocks: the word is cleared around the wrapped
 * call, so that each block counts once. */
#include "alloc_hooks.h"

#include "charged.h"
#include "compat.h"

#include <linux/membarrier.h>
#include <sys/syscall.h>
#include <unistd.h>

#define DOMAINS 3

/* Written while the hooks are not in place. */
static PyMemAllocatorEx wrapped[DOMAINS];

/* Functions of their own, so that the hooks save no registers where nothing is
 * charged. */
#define APART __attribute__((noinline))

static APART void *malloc_charged(size_t size, const PyMemAllocatorEx *allocator) {
    return charged_malloc(allocator->malloc, allocator->ctx, size);
}

static APART void *calloc_charged(size_t count, size_t size,
                                  const PyMemAllocatorEx *allocator) {
    return charged_calloc(allocator->calloc, allocator->ctx, count, size);
}

static APART void *reallocate(void *old, size_t size,
                              const PyMemAllocatorEx *allocator) {
    return charged_realloc(allocator->realloc, allocator->ctx, old, size);
}

static APART void free_slow(void *block, const PyMemAllocatorEx *allocator) {
    sp_charge_free_slow(block);
    allocator->free(allocator->ctx, block);
}

static APART void free_maybe(void *block, const PyMemAllocatorEx *allocator) {
    struct sp_leaf *leaf = sp_charge_find(block);
    if (SP_LIKELY(leaf == NULL || sp_charge_free_quick(leaf, block)))
        allocator->free(allocator->ctx, block);
    else
        free_slow(block, allocator);
}

/* No product of such numbers overflows. */
#define SMALL_COUNT 0xffffu

static inline bool calloc_passes(size_t count, size_t size) {
    return (count | size) <= SMALL_COUNT && sp_charge_passes(count * size);
}

/* A block that moves may go from one hooked allocator to another. */
static inline bool realloc_passes(const void *old, size_t size) {
    return !sp_shadow_may_hold(old) &&
           (sp_thread_charged == NULL || (old == NULL && sp_charge_passes(size)));
}

#define HOOKS(domain)                                                        \
    static void *malloc_##domain(void *context, size_t size) {               \
        if (SP_LIKELY(sp_charge_passes(size)))                               \
            return wrapped[domain].malloc(context, size);                    \
        return malloc_charged(size, &wrapped[domain]);                       \
    }                                                                        \
    static void *calloc_##domain(void *context, size_t count, size_t size) { \
        if (SP_LIKELY(calloc_passes(count, size)))                           \
            return wrapped[domain].calloc(context, count, size);             \
        return calloc_charged(count, size, &wrapped[domain]);                \
    }                                                                        \
    static void *realloc_##domain(void *context, void *old, size_t size) {   \
        if (SP_LIKELY(realloc_passes(old, size)))                            \
            return wrapped[domain].realloc(context, old, size);              \
        return reallocate(old, size, &wrapped[domain]);                      \
    }                                                                        \
    static void free_##domain(void *context, void *block) {                  \
        if (SP_LIKELY(!sp_shadow_may_hold(block)))                           \
            wrapped[domain].free(context, block);                            \
        else                                                                 \
            free_maybe(block, &wrapped[domain]);                             \
    }

HOOKS(0)
HOOKS(1)
HOOKS(2)

#define HOOKS_OF(domain) \
    { NULL, malloc_##domain, calloc_##domain, realloc_##domain, free_##domain }

static const PyMemAllocatorDomain domains[DOMAINS] = {
    PYMEM_DOMAIN_RAW, PYMEM_DOMAIN_MEM, PYMEM_DOMAIN_OBJ};
static bool installed;

/* Whether a block made now passes our hooks of the domain. Whoever hooks after us
 * calls us; whoever hooked before us and takes its hooks out takes out ours as well, as
 * it puts back what it found. No look at the allocator tells these apart, so one block
 * is made, on a thread state that only counts. */
static bool is_hooked(int domain) {
    static void *(*const makers[DOMAINS])(size_t) = {PyMem_RawMalloc, PyMem_Malloc,
                                                     PyObject_Malloc};
    static void (*const freers[DOMAINS])(void *) = {PyMem_RawFree, PyMem_Free,
                                                    PyObject_Free};
    struct sp_account account = {0};
    struct sp_thread *probe = calloc(1, sizeof *probe);
    if (probe == NULL)
        return true; /* nobody is to be told of a fault that may not be */
    struct sp_thread *charged = sp_thread_pause();
    probe->cells.accounts.mode = SP_ALLOC_COUNT;
    probe->cells.accounts.exact_generation = SP_NO_GENERATION;
    sp_thread_charge_to(probe, &account);
    void *block = makers[domain](1);
    sp_thread_charge_to(probe, NULL);
    sp_thread_resume(charged);
    freers[domain](block);
    free(probe);
    return block == NULL || sp_load(&account.objects) > 0;
}

bool alloc_hooks_lost(void) {
    for (int i = 0; installed && i < DOMAINS; i++)
        if (!is_hooked(i)) return true;
    return false;
}

/* A memory barrier on every thread of the process. */
static void have_all_threads_see(void) {
    atomic_thread_fence(memory_order_seq_cst);
#ifdef SYS_membarrier
    syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0);
    syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0);
#endif
}

void alloc_hooks_install(void) {
    const PyMemAllocatorEx hooks[DOMAINS] = {HOOKS_OF(0), HOOKS_OF(1), HOOKS_OF(2)};
    for (int i = 0; i < DOMAINS; i++) {
        /* Nobody calls hooks that were taken out, so what they wrap may change. */
        if (installed && is_hooked(i)) continue;
        PyMem_GetAllocator(domains[i], &wrapped[i]);
        have_all_threads_see();
        PyMemAllocatorEx hook = hooks[i];
        hook.ctx = wrapped[i].ctx;
        PyMem_SetAllocator(domains[i], &hook);
    }
    installed = true;
}
