#include "calltree.h"

#include "callsite.h"
#include "stats.h"

#include <pthread.h>

struct path {
    _Atomic sp_key key;
    _Atomic uint32_t parent;
    uint32_t next; /* in path_table */
};

/* Written under `lock`. Readers without it know a path's number from a cell or
 * from path_count, both published after the path. Atomic all the same: a thread
 * that has not noticed yet that its session is over may look up a number that is
 * another path's by now. It finds some path, below its number as all parents are,
 * and what it makes of it belongs to no session. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct sp_slab paths;
static struct sp_table path_table;
static _Atomic uint32_t path_count = 1;
static uint32_t path_limit;

static struct path *path_at(uint32_t number) {
    return sp_slab_at(&paths, number, sizeof(struct path));
}

static sp_key path_key(uint32_t number) {
    return atomic_load_explicit(&path_at(number)->key, memory_order_relaxed);
}
static uint32_t path_parent(uint32_t number) {
    return atomic_load_explicit(&path_at(number)->parent, memory_order_relaxed);
}

static uint32_t hash_child(uint32_t parent, sp_key key) {
    return (uint32_t)sp_mix(key + ((uint64_t)parent << 20));
}

static uint32_t path_find_locked(uint32_t parent, sp_key key, uint32_t hash) {
    for (uint32_t n = sp_table_first(&path_table, hash); n != 0; n = path_at(n)->next)
        if (path_key(n) == key && path_parent(n) == parent) return n;
    return 0;
}

/* The path's number, made if new; 0 out of memory. */
static uint32_t path_intern_locked(uint32_t parent, sp_key key) {
    uint32_t hash = hash_child(parent, key);
    uint32_t known = path_find_locked(parent, key, hash);
    if (known != 0) return known;

    uint32_t number = atomic_load_explicit(&path_count, memory_order_relaxed);
    /* A thread that has not noticed yet that another session began. */
    if (parent >= number) return 0;
    if (number > path_limit) {
        sp_count(&sp_stats.nodes_folded);
        /* Under "(other)" all is "(other)": the fold adds one node a parent. */
        if (parent != SP_PATH_ROOT && path_key(parent) == SP_CALLSITE_OTHER)
            return parent;
        key = sp_key_make(SP_CALLSITE_OTHER, 0);
        hash = hash_child(parent, key);
        known = path_find_locked(parent, key, hash);
        if (known != 0) return known;
    }
    if (sp_table_full(&path_table)) {
        if (!sp_table_grow(&path_table)) return 0;
        for (uint32_t n = 1; n < number; n++)
            path_at(n)->next =
                sp_table_push(&path_table, hash_child(path_parent(n), path_key(n)), n);
    }
    if (!sp_slab_reserve(&paths, number, sizeof(struct path)) ||
        !sp_heap_reserve_path(number))
        return 0;
    struct path *path = path_at(number);
    atomic_store_explicit(&path->key, key, memory_order_relaxed);
    atomic_store_explicit(&path->parent, parent, memory_order_relaxed);
    path->next = sp_table_push(&path_table, hash, number);
    atomic_store_explicit(&path_count, number + 1, memory_order_release);
    return number;
}

void sp_paths_reset(uint32_t max_nodes) {
    pthread_mutex_lock(&lock);
    path_limit = max_nodes;
    sp_table_clear(&path_table);
    atomic_store_explicit(&path_count, 1, memory_order_release);
    pthread_mutex_unlock(&lock);
}

uint32_t sp_paths_count(void) {
    return atomic_load_explicit(&path_count, memory_order_acquire);
}
uint32_t sp_path_parent(uint32_t path) {
    return path_parent(path);
}
/* The root has no memory until there is another path; spans that memory was too short
 * for are its. */
sp_key sp_path_key(uint32_t path) {
    return path != SP_PATH_ROOT ? path_key(path) : SP_CALLSITE_OTHER;
}

void sp_paths_lock(void) {
    pthread_mutex_lock(&lock);
}
void sp_paths_unlock(void) {
    pthread_mutex_unlock(&lock);
}
void sp_paths_relock_in_child(void) {
    lock = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
}

/* --- cells ---------------------------------------------------------------- */

static uint32_t cells_count(const struct sp_cells *cells) {
    return atomic_load_explicit(&cells->count, memory_order_relaxed);
}

/* Cell numbers start at 1 in the table, where 0 ends a chain: the root cell,
 * number 0, is nobody's child and never looked up. */
static struct sp_cell *cell_find(const struct sp_cells *cells, uint32_t parent,
                                 sp_key key, uint32_t hash) {
    for (uint32_t n = sp_table_first(&cells->table, hash); n != 0;
         n = sp_cell_at(cells, n)->next) {
        struct sp_cell *cell = sp_cell_at(cells, n);
        if (cell->key == key && cell->parent == parent) return cell;
    }
    return NULL;
}

static struct sp_cell *cell_append(struct sp_cells *cells, uint32_t parent, sp_key key,
                                   uint32_t path) {
    uint32_t number = cells_count(cells);
    if (!sp_slab_reserve(&cells->slab, number, sizeof(struct sp_cell))) return NULL;
    struct sp_cell *cell = sp_cell_at(cells, number);
    for (int i = 0; i < SP_VALUE_COUNT; i++) sp_store(&cell->value[i], 0);
    cell->key = key;
    cell->last_child = NULL;
    cell->account =
        path != SP_PATH_ROOT ? sp_account_slow(&cells->accounts, path) : NULL;
    cell->path = path;
    cell->parent = parent;
    cell->next = 0;
    cell->split = 0;
    sp_store(&cell->system_told, 0);
    return cell;
}

/* Lets readers see the cell that cell_append prepared. */
static void cell_publish(struct sp_cells *cells) {
    atomic_store_explicit(&cells->count, cells_count(cells) + 1, memory_order_release);
}

bool sp_cells_reset(struct sp_cells *cells) {
    atomic_store_explicit(&cells->count, 0, memory_order_release);
    sp_table_clear(&cells->table);
    if (cell_append(cells, SP_PATH_ROOT, 0, SP_PATH_ROOT) == NULL) return false;
    cell_publish(cells);
    return true;
}

static bool cell_table_make_room(struct sp_cells *cells) {
    if (!sp_table_full(&cells->table)) return true;
    if (!sp_table_grow(&cells->table)) return false;
    for (uint32_t n = 1; n < cells_count(cells); n++) {
        struct sp_cell *cell = sp_cell_at(cells, n);
        cell->next =
            sp_table_push(&cells->table, hash_child(cell->parent, cell->key), n);
    }
    return true;
}

SP_COLD struct sp_cell *sp_cell_child_slow(struct sp_cells *cells,
                                           struct sp_cell *parent, sp_key key) {
    uint32_t hash = hash_child(parent->path, key);
    struct sp_cell *cell = cell_find(cells, parent->path, key, hash);
    if (cell == NULL) {
        pthread_mutex_lock(&lock);
        uint32_t path = path_intern_locked(parent->path, key);
        /* The path's own key: it may have been folded. */
        if (path != 0) key = path_key(path);
        pthread_mutex_unlock(&lock);
        if (path != 0 && path == parent->path) return parent;
        if (path != 0) {
            hash = hash_child(parent->path, key);
            cell = cell_find(cells, parent->path, key, hash);
        }
        if (cell == NULL) {
            if (path != 0 && cell_table_make_room(cells))
                cell = cell_append(cells, parent->path, key, path);
            if (cell == NULL) {
                sp_count(&sp_stats.out_of_memory);
                return parent;
            }
            cell->next = sp_table_push(&cells->table, hash, cells_count(cells));
            cell_publish(cells);
        }
    }
    parent->last_child = cell;
    return cell;
}

static struct sp_cell *cell_of_known_path(const struct sp_cells *cells, uint32_t path) {
    if (path == SP_PATH_ROOT) return sp_cell_at(cells, 0);
    uint32_t parent = path_parent(path);
    sp_key key = path_key(path);
    return cell_find(cells, parent, key, hash_child(parent, key));
}

struct sp_cell *sp_cell_of_path(struct sp_cells *cells, uint32_t path) {
    struct sp_cell *cell = cell_of_known_path(cells, path);
    if (cell != NULL) return cell;

    /* Climb to an ancestor that the thread knows, then come down again. A stack
     * of spans may be deeper than the C stack: no recursion. */
    uint32_t depth = 1, ancestor = path_parent(path);
    while ((cell = cell_of_known_path(cells, ancestor)) == NULL) {
        depth++;
        ancestor = path_parent(ancestor);
    }
    uint32_t *way = malloc(depth * sizeof *way);
    if (way == NULL) {
        sp_count(&sp_stats.out_of_memory);
        return cell;
    }
    for (uint32_t i = depth, step = path; i-- > 0; step = path_parent(step))
        way[i] = step;
    for (uint32_t i = 0; i < depth; i++)
        cell = sp_cell_child(cells, cell, path_key(way[i]));
    free(way);
    return cell;
}
