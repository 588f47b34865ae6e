/* Charging blocks to accounts, for those who make and free them (allocation hooks).
 *
 * The quick ways do the usual case or nothing, and call nothing: a hook that has them
 * inlined saves no register and goes on by a jump. The slow ways do every case. */
#ifndef SPANPROF_CORE_CHARGE_H
#define SPANPROF_CORE_CHARGE_H

#include "heap.h"
#include "thread.h"

/* Bytes. pymalloc passes on what is over 512; the debug allocator asks it for 32 more.
 */
#define SP_PASSES_MOST 448u

struct sp_making;

/* sp_charge_made for every block but NULL, on a thread that is charged. */
void *sp_charge_made_slow(const struct sp_making *making, void *block, size_t size);

/* The caller is about to free a block of its own, any but NULL. */
void sp_charge_free_slow(const void *block);

/* The block, which the calling thread has just allocated and which is charged to its
 * running span, is the profiler's after all: as if it had not been. `thread` is its
 * state and charged; `size` is what was asked for, less than SP_PUBLISH_STEP (what was
 * published stays so, and the next block must not pass for published with it). */
void sp_charge_undo(struct sp_thread *thread, const void *block, size_t size);

/* A block that was taken out of the map is free, or about to be. `thread` is the
 * caller's state or NULL; `size` what the map says, `now` sp_heap_now. */
void sp_charge_freed(struct sp_thread *thread, uint64_t now, sp_entry entry,
                     uint64_t size);

/* The same, but it is still there: back into the map. */
void sp_charge_restore(struct sp_thread *thread, uint64_t now, const void *block,
                       sp_entry entry, uint64_t size);

static inline bool sp_charge_allocated_quick(struct sp_thread *thread,
                                             struct sp_account *account,
                                             const void *block, size_t size) {
    uint64_t now = sp_load(&sp_heap_now);
    if (SP_UNLIKELY(now >> 32 != thread->cells.accounts.exact_generation)) {
        if (thread->cells.accounts.mode != SP_ALLOC_COUNT) return false;
        sp_add(&account->objects, 1);
        sp_add(&account->space, size);
        return true;
    }
    /* What is larger than SP_PUBLISH_STEP is to be published. */
    uint64_t space = sp_load(&account->space) + size;
    if (SP_UNLIKELY(space >= account->publish_space_at ||
                    !sp_shadow_put_quick(block, account->path, (uint16_t)now, size)))
        return false;
    sp_add(&account->objects, 1);
    sp_store(&account->space, space);
    sp_add(&thread->heap.live, size);
    return true;
}

/* True if there is nothing to do for a block of that size, which the calling thread is
 * about to make: it is nobody's, or no sample. Only small blocks pass, which no
 * allocator passes on to another one of those that are hooked, which would count them
 * again. (Of no bytes at all each would have no chance to be a sample.) */
static inline bool sp_charge_passes(size_t size) {
    int64_t left = sp_thread_allowance - (int64_t)size;
    if (SP_UNLIKELY(left <= 0 || size - 1 >= SP_PASSES_MOST)) return false;
    sp_thread_allowance = left;
    return true;
}

/* Around the call that makes a block: the call may go through another hook, and the
 * block is to count once. As sp_thread_pause and sp_thread_resume, but no span begins
 * or ends between the two. */
struct sp_making {
    struct sp_thread *charged; /* NULL: nobody is */
    int64_t allowance;
};

static inline struct sp_making sp_charge_make(void) {
    struct sp_making making = {sp_thread_charged, sp_thread_allowance};
    sp_thread_charged = NULL;
    sp_thread_allowance = SP_ALLOWANCE_OF_NOBODY;
    return making;
}

/* `block` is what the call returned, NULL if it failed: that is no allocation. Returns
 * it. */
static inline void *sp_charge_made(const struct sp_making *making, void *block,
                                   size_t size) {
    struct sp_thread *charged = making->charged;
    if (SP_LIKELY(charged != NULL && block != NULL) &&
        SP_UNLIKELY(
            !sp_charge_allocated_quick(charged, charged->alloc_account, block, size)))
        return sp_charge_made_slow(making, block, size);
    sp_thread_charged = charged;
    sp_thread_allowance = making->allowance;
    return block;
}

static inline void sp_raise(sp_counter *peak, uint64_t value) {
    if ((int64_t)value > (int64_t)sp_load(peak)) sp_store(peak, value);
}

/* Count a block as freed by the thread. Peaks are just before something is freed. */
static inline void sp_account_subtract(struct sp_thread *thread,
                                       struct sp_account *account, uint64_t objects,
                                       uint64_t space) {
    uint64_t freed = sp_load(&account->freed_space);
    uint64_t live = sp_load(&thread->heap.live);
    sp_raise(&account->peak, sp_load(&account->space) - freed);
    sp_raise(&thread->heap.peak, live);
    sp_store(&thread->heap.live, live - space);
    atomic_store_explicit(&account->freed_objects,
                          sp_load(&account->freed_objects) + objects,
                          memory_order_release);
    atomic_store_explicit(&account->freed_space, freed + space, memory_order_release);
}

/* The part of the map where a block may be that is about to be freed; NULL if it is
 * none of ours. `block` may be NULL. Ask sp_shadow_may_hold before. */
static inline struct sp_leaf *sp_charge_find(const void *block) {
    sp_leaf_slot *top = atomic_load_explicit(&sp_shadow_top, memory_order_acquire);
    return top != NULL ? sp_shadow_touched(top, (uintptr_t)block) : NULL;
}

/* The block is about to be freed, and sp_charge_find has returned `leaf`. True if
 * nothing is left to do: the block was none of ours, or the innermost span's. */
static inline bool sp_charge_free_quick(struct sp_leaf *leaf, const void *block) {
    uintptr_t address = (uintptr_t)block;
    if (SP_UNLIKELY(!sp_shadow_is_plain(address))) return false;
    _Atomic sp_entry *place = &leaf->entry[sp_shadow_index(address)];
    sp_entry entry = atomic_load_explicit(place, memory_order_relaxed);
    if (entry == 0) return true;
    uint64_t now = sp_load(&sp_heap_now);
    struct sp_thread *thread = sp_thread_self;
    uint32_t size = sp_entry_size(entry); /* SP_ENTRY_BESIDE is to be published */
    if (SP_UNLIKELY(thread == NULL)) return false;
    struct sp_account *account = thread->alloc_account;
    if (SP_UNLIKELY(
            account == NULL || thread->cells.accounts.exact_generation != now >> 32 ||
            account->path != sp_entry_owner(entry) ||
            sp_load(&account->freed_space) + size >= account->publish_freed_at ||
            sp_heap_age(now, entry) < 0))
        return false;
    atomic_store_explicit(place, 0, memory_order_relaxed);
    sp_account_subtract(thread, account, 1, size);
    return true;
}

static inline void sp_charge_free(const void *block) {
    if (SP_LIKELY(!sp_shadow_may_hold(block))) return;
    struct sp_leaf *leaf = sp_charge_find(block);
    if (leaf != NULL && !sp_charge_free_quick(leaf, block)) sp_charge_free_slow(block);
}

/* A realloc in two steps around the call: one block freed, one made. The old block
 * leaves the map before another thread can get its address, and comes back if the call
 * fails. Between the two nobody is charged, so that the call itself charges nothing. */
struct sp_moving {
    struct sp_making making;
    uint64_t now, old_size;
    sp_entry entry; /* 0: the old block is not in the map */
};

/* `old` may be NULL. */
static inline void sp_charge_move(struct sp_moving *moving, const void *old) {
    moving->now = sp_load(&sp_heap_now);
    moving->old_size = 0;
    moving->entry = sp_shadow_may_hold(old) && moving->now != 0 && old != NULL
                        ? sp_shadow_take(old, &moving->old_size)
                        : 0;
    moving->making = sp_charge_make();
}

/* `block` is what the call returned for `size` bytes, NULL if it failed. Returns it. */
static inline void *sp_charge_moved(const struct sp_moving *moving, const void *old,
                                    void *block, size_t size) {
    sp_entry entry = moving->entry;
    if (entry != 0 && block != NULL)
        sp_charge_freed(sp_thread_self, moving->now, entry, moving->old_size);
    else if (entry != 0)
        sp_charge_restore(sp_thread_self, moving->now, old, entry, moving->old_size);
    return sp_charge_made(&moving->making, block, size);
}

#endif
