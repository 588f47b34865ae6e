/* Memory for building one thing and dropping it whole. Not thread-safe. */
#ifndef SPANPROF_CORE_ARENA_H
#define SPANPROF_CORE_ARENA_H

#include <stddef.h>

struct sp_arena_block;

struct sp_arena {
    struct sp_arena_block *blocks;
    size_t used;
};

/* Zeroed memory aligned for any object, NULL if there is none. Starts from an
 * arena of all zeros. */
void *sp_arena_take(struct sp_arena *arena, size_t count, size_t size);
void sp_arena_free(struct sp_arena *arena);

#endif
