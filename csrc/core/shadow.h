/* The shadow map: which block of memory is whose.
 *
 * For every 16 bytes of address space there are 8 bytes of *entry*, at a place
 * that two loads find; the entry of a block is that of its first byte, and 0 means
 * that the block is not ours. No lock, no hashing, and the cache locality of the
 * heap itself. (The idea is AddressSanitizer's shadow memory, Serebryany et al.,
 * USENIX ATC 2012.) Address space is mapped leaf by leaf as blocks turn up there,
 * and the system gives memory to the pages that are written alone.
 *
 * A leaf keeps a byte for each of its pages that was ever written, for those who
 * free what was never ours, and for the walk: neither touches fresh pages.
 *
 * What does not fit an entry (sizes of 16 MiB and more, blocks that do not begin at
 * a multiple of 16) has the rest of it in a small hash table under a lock.
 *
 * Nothing here calls anything but the C library, and of that no allocator but
 * malloc: the functions are for allocation hooks. The lock is a leaf. */
#ifndef SPANPROF_CORE_SHADOW_H
#define SPANPROF_CORE_SHADOW_H

#include "platform.h"

/* Entry: size in bits 0 to 23, `born` in 24 to 39, owner in 40 to 63. */
typedef uint64_t sp_entry;

#define SP_ENTRY_BESIDE 0xffffffu /* as a size: see the table */
#define SP_OWNER_MAX 0xffffffu

static inline sp_entry sp_entry_make(uint32_t owner, uint16_t born, uint32_t size) {
    return (uint64_t)owner << 40 | (uint64_t)born << 24 | size;
}
static inline uint32_t sp_entry_owner(sp_entry entry) {
    return (uint32_t)(entry >> 40);
}
static inline uint16_t sp_entry_born(sp_entry entry) {
    return (uint16_t)(entry >> 24);
}
static inline uint32_t sp_entry_size(sp_entry entry) {
    return (uint32_t)entry & 0xffffffu;
}

#define SP_SHADOW_ADDRESS_BITS 48
#define SP_SHADOW_LEAF_BITS 26 /* address space of one leaf: 64 MiB */
#define SP_SHADOW_PAGE_BITS 13 /* address space of one page of entries: 8 KiB */
#define SP_SHADOW_PAGES ((size_t)1 << (SP_SHADOW_LEAF_BITS - SP_SHADOW_PAGE_BITS))
#define SP_SHADOW_ENTRIES ((size_t)1 << (SP_SHADOW_LEAF_BITS - 4))
#define SP_SHADOW_LEAVES ((size_t)1 << (SP_SHADOW_ADDRESS_BITS - SP_SHADOW_LEAF_BITS))

struct sp_leaf {
    /* 1 if an entry in that page was ever written, or a block there is in the table
     * (addresses above 48 bits are where their lower bits are). Any thread; never
     * cleared but by sp_shadow_wipe. */
    _Atomic uint8_t touched[SP_SHADOW_PAGES];
    /* Written by whoever owns the block at that address. */
    _Atomic sp_entry entry[SP_SHADOW_ENTRIES];
};

typedef _Atomic(struct sp_leaf *) sp_leaf_slot;

/* NULL until sp_shadow_setup has found room. Written once. */
extern sp_leaf_slot *_Atomic sp_shadow_top;

/* One load tells most of those who free a block that it is none of ours: by the last
 * bits of a page's number, how many blocks are there. Where nearly every block is in
 * the map nobody counts them (sp_shadow_setup), and it is SP_FILTER_MANY once one was.
 */
#define SP_SHADOW_FILTER_BITS 16
#define SP_FILTER_MANY 255u
extern _Atomic uint8_t sp_shadow_filter[(size_t)1 << SP_SHADOW_FILTER_BITS];

/* Make the map ready, and empty. With `few`, the filter counts: for a map that holds
 * one block in many. False if the system has no address space for it. */
bool sp_shadow_setup(bool few);

/* Forget every block and give the memory back. Entries that other threads write or
 * clear meanwhile may survive or not. */
void sp_shadow_wipe(void);

/* Visit every block. Others may go on meanwhile: a block that comes or goes is seen
 * or not. */
void sp_shadow_walk(void (*visit)(void *context, sp_entry entry, uint64_t size),
                    void *context);

/* Let no entry be older than `oldest` ticks at tick `now`; forget those that are older
 * than `valid`, which are of no session. */
void sp_shadow_rejuvenate(uint16_t now, uint16_t oldest, uint16_t valid);

/* Bytes of address space, and of memory, that the map takes. */
uint64_t sp_shadow_mapped(void);
uint64_t sp_shadow_resident(void);

/* Fork: the lock is taken before, released after in the parent; the child's map is
 * empty. */
void sp_shadow_lock(void);
void sp_shadow_unlock(void);
void sp_shadow_relock_in_child(void);

/* For tests: all that asks the system for memory fails from now on. */
void sp_shadow_refuse(bool refuse);

/* --- for hooks -------------------------------------------------------------- */

struct sp_leaf *sp_shadow_leaf_slow(uintptr_t address);
bool sp_shadow_touch_slow(struct sp_leaf *leaf, uintptr_t address);
extern _Atomic bool sp_shadow_is_few;
void sp_shadow_filter_add(uintptr_t address);
void sp_shadow_filter_subtract(uintptr_t address);
bool sp_shadow_put_beside(uintptr_t address, sp_entry entry, uint64_t size);
sp_entry sp_shadow_take_beside(uintptr_t address, uint64_t *size);

static inline bool sp_shadow_is_plain(uintptr_t address) {
    return (address & (15 | ~(((uintptr_t)1 << SP_SHADOW_ADDRESS_BITS) - 1))) == 0;
}

static inline size_t sp_shadow_slot(uintptr_t address) {
    return address >> SP_SHADOW_LEAF_BITS & (SP_SHADOW_LEAVES - 1);
}
static inline struct sp_leaf *sp_shadow_leaf(sp_leaf_slot *top, uintptr_t address) {
    return atomic_load_explicit(&top[sp_shadow_slot(address)], memory_order_acquire);
}
static inline size_t sp_shadow_page(uintptr_t address) {
    return address >> SP_SHADOW_PAGE_BITS & (SP_SHADOW_PAGES - 1);
}
static inline size_t sp_shadow_index(uintptr_t address) {
    return address >> 4 & (SP_SHADOW_ENTRIES - 1);
}

static inline size_t sp_shadow_filter_index(uintptr_t address) {
    return address >> SP_SHADOW_PAGE_BITS & (((size_t)1 << SP_SHADOW_FILTER_BITS) - 1);
}
/* False if no block at that address is in the map. It may be NULL. */
static inline bool sp_shadow_may_hold(const void *block) {
    return atomic_load_explicit(
               &sp_shadow_filter[sp_shadow_filter_index((uintptr_t)block)],
               memory_order_relaxed) != 0;
}

/* The leaf of an address, or NULL if nothing was ever put near it. */
static inline struct sp_leaf *sp_shadow_touched(sp_leaf_slot *top, uintptr_t address) {
    struct sp_leaf *leaf = sp_shadow_leaf(top, address);
    /* Acquire: who frees what is put now sees the filter as it was before. */
    if (leaf == NULL || !atomic_load_explicit(&leaf->touched[sp_shadow_page(address)],
                                              memory_order_acquire))
        return NULL;
    return leaf;
}

/* Enter a block of less than 16 MiB, which the caller owns, if its place in the map is
 * there already and the entry holds all; else false. The map is there. */
static inline bool sp_shadow_put_quick(const void *block, uint32_t owner, uint16_t born,
                                       uint64_t size) {
    uintptr_t address = (uintptr_t)block;
    sp_leaf_slot *top = atomic_load_explicit(&sp_shadow_top, memory_order_relaxed);
    if (SP_UNLIKELY(!sp_shadow_is_plain(address))) return false;
    struct sp_leaf *leaf = sp_shadow_touched(top, address);
    if (SP_UNLIKELY(leaf == NULL)) return false;
    atomic_store_explicit(&leaf->entry[sp_shadow_index(address)],
                          sp_entry_make(owner, born, (uint32_t)size),
                          memory_order_relaxed);
    return true;
}

/* The same in every case. False if there is no memory for it. */
static inline bool sp_shadow_put(const void *block, uint32_t owner, uint16_t born,
                                 uint64_t size) {
    uintptr_t address = (uintptr_t)block;
    sp_leaf_slot *top = atomic_load_explicit(&sp_shadow_top, memory_order_relaxed);
    sp_entry entry = sp_entry_make(
        owner, born, size < SP_ENTRY_BESIDE ? (uint32_t)size : SP_ENTRY_BESIDE);
    if (SP_UNLIKELY(top == NULL)) return false;
    struct sp_leaf *leaf = sp_shadow_leaf(top, address);
    if (SP_UNLIKELY(leaf == NULL) && (leaf = sp_shadow_leaf_slow(address)) == NULL)
        return false;
    size_t page = sp_shadow_page(address);
    if (SP_UNLIKELY(
            !atomic_load_explicit(&leaf->touched[page], memory_order_acquire)) &&
        !sp_shadow_touch_slow(leaf, address))
        return false;
    if (atomic_load_explicit(&sp_shadow_is_few, memory_order_relaxed))
        sp_shadow_filter_add(address);
    if (SP_UNLIKELY(!sp_shadow_is_plain(address)))
        return sp_shadow_put_beside(address, entry, size);
    if (SP_UNLIKELY(size >= SP_ENTRY_BESIDE) &&
        !sp_shadow_put_beside(address, entry, size))
        return false;
    atomic_store_explicit(&leaf->entry[sp_shadow_index(address)], entry,
                          memory_order_relaxed);
    return true;
}

/* Take a block out that the caller is about to free. 0 if it is not in the map. */
static inline sp_entry sp_shadow_take(const void *block, uint64_t *size) {
    uintptr_t address = (uintptr_t)block;
    sp_leaf_slot *top = atomic_load_explicit(&sp_shadow_top, memory_order_relaxed);
    if (SP_UNLIKELY(top == NULL)) return 0;
    sp_entry entry;
    if (SP_UNLIKELY(!sp_shadow_is_plain(address))) {
        entry = sp_shadow_take_beside(address, size);
        if (entry == 0) return 0;
    } else {
        struct sp_leaf *leaf = sp_shadow_touched(top, address);
        if (leaf == NULL) return 0;
        _Atomic sp_entry *place = &leaf->entry[sp_shadow_index(address)];
        entry = atomic_load_explicit(place, memory_order_relaxed);
        if (entry == 0) return 0;
        atomic_store_explicit(place, 0, memory_order_relaxed);
        *size = sp_entry_size(entry);
        if (SP_UNLIKELY(*size == SP_ENTRY_BESIDE)) sp_shadow_take_beside(address, size);
    }
    if (atomic_load_explicit(&sp_shadow_is_few, memory_order_relaxed))
        sp_shadow_filter_subtract(address);
    return entry;
}

#endif
