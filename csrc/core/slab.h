/* Numbered items of one size in memory that grows and never moves.
 *
 * Chunk k holds 64 * 2^k items, so that a number finds its item with one count
 * of leading zeros, a small user wastes little, and readers on other threads
 * may follow any number that was published to them while the owner appends.
 * Memory stays until sp_slab_free: a reader that is late finds old items, never
 * a hole. */
#ifndef SPANPROF_CORE_SLAB_H
#define SPANPROF_CORE_SLAB_H

#include "platform.h"

#include <stdlib.h>

#define SP_SLAB_FIRST 64u
#define SP_SLAB_CHUNKS 22u

struct sp_slab {
    _Atomic(char *) chunks[SP_SLAB_CHUNKS];
};

static inline unsigned sp_slab_chunk_of(uint32_t number) {
    return 25u - (unsigned)__builtin_clz(number + SP_SLAB_FIRST);
}
static inline uint32_t sp_slab_chunk_start(unsigned chunk) {
    return (SP_SLAB_FIRST << chunk) - SP_SLAB_FIRST;
}
static inline uint32_t sp_slab_chunk_size(unsigned chunk) {
    return SP_SLAB_FIRST << chunk;
}

/* The item of that number, which sp_slab_reserve has covered. */
static inline void *sp_slab_at(const struct sp_slab *slab, uint32_t number,
                               size_t item_size) {
    unsigned chunk = sp_slab_chunk_of(number);
    char *memory = atomic_load_explicit(&slab->chunks[chunk], memory_order_acquire);
    return memory + (size_t)(number - sp_slab_chunk_start(chunk)) * item_size;
}

/* Makes the item exist (zero if never used before). False if memory ran out or
 * the number is past 2^28. Owner only. */
static inline bool sp_slab_reserve(struct sp_slab *slab, uint32_t number,
                                   size_t item_size) {
    unsigned chunk = sp_slab_chunk_of(number);
    if (chunk >= SP_SLAB_CHUNKS) return false;
    if (atomic_load_explicit(&slab->chunks[chunk], memory_order_relaxed) != NULL)
        return true;
    char *memory = calloc(sp_slab_chunk_size(chunk), item_size);
    if (memory == NULL) return false;
    atomic_store_explicit(&slab->chunks[chunk], memory, memory_order_release);
    return true;
}

static inline void sp_slab_free(struct sp_slab *slab) {
    for (unsigned chunk = 0; chunk < SP_SLAB_CHUNKS; chunk++) {
        free(atomic_load_explicit(&slab->chunks[chunk], memory_order_relaxed));
        atomic_store_explicit(&slab->chunks[chunk], NULL, memory_order_relaxed);
    }
}

#endif
