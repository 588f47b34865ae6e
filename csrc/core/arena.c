#include "arena.h"

#include <stdint.h>
#include <stdlib.h>

#define BLOCK_SIZE ((size_t)1 << 16)

struct sp_arena_block {
    struct sp_arena_block *previous;
    size_t size;
    max_align_t memory[];
};

void *sp_arena_take(struct sp_arena *arena, size_t count, size_t size) {
    size_t unit = sizeof(max_align_t);
    if (size != 0 && count > (SIZE_MAX - BLOCK_SIZE) / size) return NULL;
    size_t wanted = (count * size + unit - 1) / unit * unit;
    struct sp_arena_block *block = arena->blocks;
    if (block == NULL || block->size - arena->used < wanted) {
        size_t room = wanted > BLOCK_SIZE ? wanted : BLOCK_SIZE;
        block = calloc(1, sizeof *block + room);
        if (block == NULL) return NULL;
        block->previous = arena->blocks;
        block->size = room;
        arena->blocks = block;
        arena->used = 0;
    }
    void *memory = (char *)block->memory + arena->used;
    arena->used += wanted;
    return memory;
}

void sp_arena_free(struct sp_arena *arena) {
    while (arena->blocks != NULL) {
        struct sp_arena_block *block = arena->blocks;
        arena->blocks = block->previous;
        free(block);
    }
    arena->used = 0;
}
