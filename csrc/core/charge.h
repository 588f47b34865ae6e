/* Charging blocks to accounts, as allocation hooks do it: each a few additions and
 * one store into the shadow map. */
#ifndef SPANPROF_CORE_CHARGE_H
#define SPANPROF_CORE_CHARGE_H

#include "heap.h"
#include "stats.h"
#include "thread.h"

/* The thread's account of a path, for a free; NULL if there can be none. */
static inline struct sp_account *sp_account_of(struct sp_accounts *accounts,
                                               uint32_t path) {
    if (SP_LIKELY(path <
                  atomic_load_explicit(&accounts->count, memory_order_relaxed))) {
        char *chunk = atomic_load_explicit(
            &accounts->accounts.chunks[sp_slab_chunk_of(path)], memory_order_relaxed);
        if (SP_LIKELY(chunk != NULL))
            return sp_slab_at(&accounts->accounts, path, sizeof(struct sp_account));
    }
    return sp_account_slow(accounts, path);
}

static inline void sp_account_publish_if_due(struct sp_thread *thread,
                                             struct sp_account *account) {
    if (SP_UNLIKELY(sp_load(&account->space) + sp_load(&account->freed_space) >=
                    account->publish_at))
        sp_heap_publish(thread, account);
}

static inline void sp_account_add(struct sp_thread *thread, struct sp_account *account,
                                  uint64_t objects, uint64_t space) {
    sp_add(&account->objects, objects);
    sp_add(&account->space, space);
    sp_add(&thread->heap.live, space);
    sp_account_publish_if_due(thread, account);
}

static inline void sp_raise(sp_counter *peak, uint64_t value) {
    if ((int64_t)value > (int64_t)sp_load(peak)) sp_store(peak, value);
}

/* Peaks are just before something is freed. */
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
    sp_account_publish_if_due(thread, account);
}

/* The calling thread has made a block, which is its innermost span's. `account` is
 * that span's, and not NULL. */
static inline void sp_charge_allocated(struct sp_thread *thread,
                                       struct sp_account *account, const void *block,
                                       size_t size) {
    enum sp_alloc_mode mode = thread->cells.accounts.mode;
    if (mode == SP_ALLOC_SAMPLED) {
        thread->heap.sample_in -= size > 0 ? (int64_t)size : 1;
        if (SP_UNLIKELY(thread->heap.sample_in < 0))
            sp_heap_sample(thread, account, block, size);
        return;
    }
    if (mode == SP_ALLOC_COUNT) {
        sp_add(&account->objects, 1);
        sp_add(&account->space, size);
        return;
    }
    /* Of a session that is over, or that the thread does not know yet: not ours. */
    uint64_t now = sp_load(&sp_heap_now);
    if (SP_UNLIKELY(sp_heap_generation(now) != thread->cells.accounts.generation))
        return;
    if (SP_LIKELY(sp_shadow_put(block, account->path, (uint16_t)now, size)))
        sp_account_add(thread, account, 1, size);
    else
        sp_heap_lose(account, 1, size);
}

/* A block that was in the map is no more. `thread` is the caller's state or NULL. */
static inline void sp_charge_freed(struct sp_thread *thread, uint64_t now,
                                   sp_entry entry, uint64_t size) {
    if (SP_UNLIKELY(sp_heap_age(now, entry) < 0)) return; /* of an earlier session */
    uint32_t path = sp_entry_owner(entry);
    uint64_t objects = 1;
    if (SP_UNLIKELY(sp_heap_is_sampled())) sp_heap_weigh(size, &objects, &size);
    if (SP_LIKELY(thread != NULL &&
                  thread->cells.accounts.generation == sp_heap_generation(now))) {
        struct sp_account *account = sp_account_of(&thread->cells.accounts, path);
        if (SP_LIKELY(account != NULL)) {
            sp_account_subtract(thread, account, objects, size);
            return;
        }
    }
    sp_heap_free_stray(now, path, objects, size);
}

/* A block that was taken out of the map is still there. */
static inline void sp_charge_restore(struct sp_thread *thread, uint64_t now,
                                     const void *block, sp_entry entry, uint64_t size) {
    if (sp_shadow_put(block, sp_entry_owner(entry), sp_entry_born(entry), size)) return;
    sp_count(&sp_stats.heap_untracked);
    sp_charge_freed(thread, now, entry, size);
}

/* The caller is about to free a block of its own, any but NULL. */
static inline void sp_charge_free(const void *block) {
    uint64_t now = sp_load(&sp_heap_now);
    if (now == 0) return;
    uint64_t size;
    sp_entry entry = sp_shadow_take(block, &size);
    if (entry != 0) sp_charge_freed(sp_thread_self, now, entry, size);
}

#endif
