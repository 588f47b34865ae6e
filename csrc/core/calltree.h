/* The call tree: which stacks exist, and each thread's values for them.
 *
 * A *path* is a node of the session's tree: a callsite (with labels) under a
 * parent path. Paths are shared by all threads and numbered; path 0 is the
 * root, where no span runs. A *cell* is one thread's counters for one path:
 * only that thread writes them, so the hot path needs no lock and no locked
 * instruction, and adding up the cells of all threads by path number gives the
 * profile. Both only grow during a session; the next one starts them anew in
 * the same memory (hence a late reader sees stale numbers, never freed memory). */
#ifndef SPANPROF_CORE_CALLTREE_H
#define SPANPROF_CORE_CALLTREE_H

#include "heap.h"
#include "platform.h"
#include "slab.h"
#include "table.h"

/* What a cell counts; memory is counted by its account, see heap.h. CPU time is split
 * into user and system when read. */
enum sp_value {
    SP_VALUE_CALLS,
    SP_VALUE_BUSY,
    SP_VALUE_IDLE,
    SP_VALUE_CPU,
    SP_VALUE_SYSTEM,
    SP_VALUE_COUNT
};

#define SP_PATH_ROOT 0u
/* Of spans that are sampled out, and of the cell that they run in: no path's number. */
#define SP_PATH_SAMPLED_OUT UINT32_MAX

/* A node's name: callsite in the low half, label set in the high half. */
typedef uint64_t sp_key;

static inline sp_key sp_key_make(uint32_t callsite, uint32_t labels) {
    return (uint64_t)labels << 32 | callsite;
}
static inline uint32_t sp_key_callsite(sp_key key) {
    return (uint32_t)key;
}
static inline uint32_t sp_key_labels(sp_key key) {
    return (uint32_t)(key >> 32);
}

struct sp_cell {
    sp_counter value[SP_VALUE_COUNT]; /* written by the owning thread alone */
    sp_key key;
    struct sp_cell *last_child; /* the child entered last; owner only */
    sp_counter system_told;     /* of the system's time: given to single spans */
    struct sp_account *account; /* of the path's memory; NULL at the root, if nothing
                                   is tracked, or out of memory */
    uint32_t path;
    uint32_t parent; /* path of the parent */
    uint32_t next;   /* in the thread's table of cells */
    uint32_t split;  /* last split round that touched the cell, see span.c */
};

/* One thread's cells. Only `count` and the cells' values and paths are read by
 * other threads. */
struct sp_cells {
    struct sp_slab slab;
    struct sp_table table; /* by (parent path, key) */
    _Atomic uint32_t count;
    struct sp_accounts accounts;
};

static inline struct sp_cell *sp_cell_at(const struct sp_cells *cells,
                                         uint32_t number) {
    return sp_slab_at(&cells->slab, number, sizeof(struct sp_cell));
}

/* Forget all cells and make the root cell. False if memory ran out. */
bool sp_cells_reset(struct sp_cells *cells);

/* The cell of `key` under `parent`, made if new. Beyond the session's limit of
 * nodes it is the parent's "(other)" cell; out of memory it is the parent. */
struct sp_cell *sp_cell_child_slow(struct sp_cells *cells, struct sp_cell *parent,
                                   sp_key key);

static inline struct sp_cell *sp_cell_child(struct sp_cells *cells,
                                            struct sp_cell *parent, sp_key key) {
    struct sp_cell *child = parent->last_child;
    if (SP_LIKELY(child != NULL && child->key == key)) return child;
    return sp_cell_child_slow(cells, parent, key);
}

/* The thread's cell for a path that some thread has made. */
struct sp_cell *sp_cell_of_path(struct sp_cells *cells, uint32_t path);

/* Start the session's paths anew: at most `max_nodes`, beside "(other)" ones. */
void sp_paths_reset(uint32_t max_nodes);
uint32_t sp_paths_count(void); /* with the root */
uint32_t sp_path_parent(uint32_t path);
sp_key sp_path_key(uint32_t path);

/* Fork: taken before, released after in the parent, made anew in the child. */
void sp_paths_lock(void);
void sp_paths_unlock(void);
void sp_paths_relock_in_child(void);

#endif
