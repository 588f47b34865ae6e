/* An index of numbered items: chained hashing where each item stores the number
 * of the next one in its bucket, so that the buckets are the only memory. Not
 * thread-safe; the owner guards it. Number 0 ends a chain. */
#ifndef SPANPROF_CORE_TABLE_H
#define SPANPROF_CORE_TABLE_H

#include "platform.h"

#include <stdlib.h>
#include <string.h>

static inline uint32_t sp_hash_bytes(const char *bytes, size_t length) {
    uint64_t hash = 0x9e3779b97f4a7c15u ^ length;
    while (length >= 8) {
        uint64_t word;
        memcpy(&word, bytes, 8);
        hash = sp_mix(hash ^ word);
        bytes += 8;
        length -= 8;
    }
    uint64_t rest = 0;
    memcpy(&rest, bytes, length);
    return (uint32_t)sp_mix(hash ^ rest);
}

struct sp_table {
    uint32_t *buckets; /* `mask + 1` of them, NULL before the first insert */
    uint32_t mask;
    uint32_t used;
};

static inline uint32_t sp_table_first(const struct sp_table *table, uint32_t hash) {
    return table->buckets == NULL ? 0 : table->buckets[hash & table->mask];
}

/* Puts `number` at the head of its chain and returns what must become its
 * `next`. Call sp_table_full before. */
static inline uint32_t sp_table_push(struct sp_table *table, uint32_t hash,
                                     uint32_t number) {
    uint32_t *bucket = &table->buckets[hash & table->mask];
    uint32_t next = *bucket;
    *bucket = number;
    table->used++;
    return next;
}

static inline bool sp_table_full(const struct sp_table *table) {
    return table->buckets == NULL || table->used > table->mask;
}

/* Doubles the buckets, leaving them empty: the owner pushes every item again.
 * False, and nothing changed, if memory ran out. */
static inline bool sp_table_grow(struct sp_table *table) {
    uint32_t size = table->buckets == NULL ? 64 : 2 * (table->mask + 1);
    uint32_t *buckets = calloc(size, sizeof *buckets);
    if (buckets == NULL) return false;
    free(table->buckets);
    *table = (struct sp_table){buckets, size - 1, 0};
    return true;
}

static inline void sp_table_clear(struct sp_table *table) {
    if (table->buckets != NULL)
        memset(table->buckets, 0, ((size_t)table->mask + 1) * sizeof *table->buckets);
    table->used = 0;
}

static inline void sp_table_free(struct sp_table *table) {
    free(table->buckets);
    *table = (struct sp_table){NULL, 0, 0};
}

#endif
