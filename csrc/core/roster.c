#include "roster.h"

#include "bigmem.h"
#include "heap.h"
#include "stats.h"
#include "table.h"

#include <stdlib.h>
#include <string.h>

/* So many spans that are over are still known as parents: a task may be started in a
 * span and outlive it. */
#define REMEMBERED 16384u

/* Updates told at a time. */
#define TOLD_AT_ONCE 4096u

enum state {
    FREE,
    SEEN,   /* met, and not told of yet */
    OPEN,   /* told of */
    OWNING, /* ended, but owns blocks */
    OVER,   /* told to be over; remembered as a parent */
};

/* What reporters were told of a span, in all. */
struct told {
    uint64_t busy, idle, cpu, system, objects, space;
};

struct entry {
    uint64_t id, parent;
    union {
        struct told told;
        struct {
            uint32_t callsite, labels;
        } what; /* while SEEN */
    };
    uint32_t next;         /* in its chain of the table; or the next free one */
    uint32_t parent_entry; /* the parent's, if its id is still `parent` */
    uint32_t round;        /* the last one that met it */
    unsigned char state;   /* enum state */
};
_Static_assert(sizeof(struct entry) == 80,
               "of an open span, see docs/internals/feed.md");

struct sp_roster {
    bool with_heap;
    struct entry *entries; /* numbers from 1; they move when there are more */
    struct sp_table by_id;
    uint32_t count, room, first_free, round;
    uint32_t over[REMEMBERED]; /* entries, the oldest at `over_at` once it is full */
    uint32_t over_at;
    uint32_t *path; /* of parents to introduce */
    uint32_t path_room;

    struct sp_span_update updates[TOLD_AT_ONCE];
    uint32_t update_count;
    uint64_t *scopes;
    uint32_t scope_count, scope_room;
    void (*tell)(void *context, const struct sp_span_updates *updates);
    void *context;
};

/* --- entries ---------------------------------------------------------------------- */

static struct entry *entry_at(const struct sp_roster *roster, uint32_t number) {
    return &roster->entries[number];
}

static uint32_t hash_of(uint64_t id) {
    return (uint32_t)sp_mix(id);
}

/* 0 if there is none. */
static uint32_t find(const struct sp_roster *roster, uint64_t id) {
    uint32_t number = sp_table_first(&roster->by_id, hash_of(id));
    while (number != 0 && entry_at(roster, number)->id != id)
        number = entry_at(roster, number)->next;
    return number;
}

static void put(struct sp_roster *roster, uint32_t number) {
    struct entry *entry = entry_at(roster, number);
    entry->next = sp_table_push(&roster->by_id, hash_of(entry->id), number);
}

static size_t bucket_bytes(const struct sp_table *table) {
    return table->buckets != NULL ? ((size_t)table->mask + 1) * sizeof(uint32_t) : 0;
}

/* Pages of their own for what may be large for a short while: malloc would keep them,
 * and each session's reporter thread may have another arena. */
static bool make_buckets(struct sp_roster *roster) {
    struct sp_table *table = &roster->by_id;
    if (!sp_table_full(table)) return true;
    uint32_t size = table->buckets == NULL ? 1024 : 2 * (table->mask + 1);
    uint32_t *buckets = sp_big_grow(NULL, 0, size * sizeof *buckets);
    if (buckets == NULL) return table->buckets != NULL;
    if (table->buckets != NULL) munmap(table->buckets, bucket_bytes(table));
    *table = (struct sp_table){buckets, size - 1, 0};
    for (uint32_t number = 1; number <= roster->count; number++)
        if (entry_at(roster, number)->state != FREE) put(roster, number);
    return true;
}

static bool make_room(struct sp_roster *roster) {
    uint32_t room = roster->room == 0 ? 1024 : 2 * roster->room;
    struct entry *entries =
        room < UINT32_MAX / 4
            ? sp_big_grow(roster->entries, roster->room * sizeof *entries,
                          room * sizeof *entries)
            : NULL;
    if (entries == NULL) return false;
    roster->entries = entries;
    roster->room = room;
    return true;
}

static uint32_t make_entry(struct sp_roster *roster) {
    if (!make_buckets(roster)) return 0;
    uint32_t number = roster->first_free;
    if (number != 0) {
        roster->first_free = entry_at(roster, number)->next;
        return number;
    }
    if (roster->count + 1 >= roster->room && !make_room(roster)) return 0;
    return ++roster->count;
}

static void forget(struct sp_roster *roster, uint32_t number) {
    struct entry *entry = entry_at(roster, number);
    uint32_t *link = &roster->by_id.buckets[hash_of(entry->id) & roster->by_id.mask];
    while (*link != number) link = &entry_at(roster, *link)->next;
    *link = entry->next;
    roster->by_id.used--;
    entry->state = FREE;
    entry->next = roster->first_free;
    roster->first_free = number;
}

/* The span has been met in this round: known, or to be told of. 0 out of memory. */
static uint32_t meet(struct sp_roster *roster, uint64_t id, uint64_t parent,
                     uint32_t callsite, uint32_t labels) {
    uint32_t number = find(roster, id);
    if (number == 0) {
        number = make_entry(roster);
        if (number == 0) {
            sp_count(&sp_stats.out_of_memory);
            return 0;
        }
        struct entry *entry = entry_at(roster, number);
        *entry = (struct entry){.id = id, .parent = parent, .state = SEEN};
        entry->what.callsite = callsite;
        entry->what.labels = labels;
        put(roster, number);
    }
    entry_at(roster, number)->round = roster->round;
    return number;
}

/* --- updates ---------------------------------------------------------------------- */

static void tell_now(struct sp_roster *roster) {
    if (roster->update_count == 0) return;
    struct sp_span_updates updates = {roster->update_count, roster->updates,
                                      roster->scopes};
    roster->tell(roster->context, &updates);
    roster->update_count = roster->scope_count = 0;
}

static bool make_scope_room(struct sp_roster *roster) {
    if (roster->scope_count < roster->scope_room) return true;
    uint32_t room = roster->scope_room == 0 ? 4096 : 2 * roster->scope_room;
    uint64_t *longer = realloc(roster->scopes, room * sizeof *longer);
    if (longer == NULL) return false;
    roster->scopes = longer;
    roster->scope_room = room;
    return true;
}

/* A scope that it may get has room for the span itself. */
static struct sp_span_update *next_update(struct sp_roster *roster, uint64_t id) {
    if (roster->update_count == TOLD_AT_ONCE || !make_scope_room(roster))
        tell_now(roster);
    struct sp_span_update *update = &roster->updates[roster->update_count++];
    *update = (struct sp_span_update){.id = id};
    return update;
}

static bool add_to_scope(struct sp_roster *roster, uint64_t id) {
    if (!make_scope_room(roster)) {
        sp_count(&sp_stats.out_of_memory);
        return false;
    }
    roster->scopes[roster->scope_count++] = id;
    return true;
}

/* Of an entry whose parent, if there is one, was told of. */
static void introduce(struct sp_roster *roster, struct entry *entry,
                      struct sp_span_update *update) {
    update->what |= SP_TOLD_CREATED;
    update->callsite = entry->what.callsite;
    update->labels = entry->what.labels;
    update->scope_start = roster->scope_count;
    entry->told = (struct told){0};
    entry->state = OPEN;
    for (const struct entry *each = entry; add_to_scope(roster, each->id);) {
        const struct entry *parent =
            each->parent_entry != 0 ? entry_at(roster, each->parent_entry) : NULL;
        if (parent == NULL || parent->id != each->parent || parent->state == FREE ||
            parent->state == SEEN)
            break;
        each = parent;
    }
    update->scope_count = roster->scope_count - update->scope_start;
}

/* An update for the entry, in which it is introduced if need be, its ancestors before
 * it. */
static struct sp_span_update *update_for(struct sp_roster *roster, uint32_t number) {
    struct entry *entry = entry_at(roster, number);
    uint32_t depth = 0;
    while (entry->state == SEEN) {
        uint32_t parent = entry->parent != 0 ? find(roster, entry->parent) : 0;
        entry->parent_entry = parent;
        if (parent == 0 || entry_at(roster, parent)->state != SEEN) break;
        if (depth == roster->path_room) {
            uint32_t room = depth == 0 ? 64 : 2 * depth;
            uint32_t *longer = realloc(roster->path, room * sizeof *longer);
            if (longer == NULL) {
                sp_count(&sp_stats.out_of_memory);
                break; /* its scope ends here */
            }
            roster->path = longer;
            roster->path_room = room;
        }
        roster->path[depth++] = number;
        entry = entry_at(roster, number = parent);
    }
    for (;; number = roster->path[--depth]) {
        entry = entry_at(roster, number);
        struct sp_span_update *update = next_update(roster, entry->id);
        if (entry->state == SEEN) introduce(roster, entry, update);
        if (depth == 0) return update;
    }
}

static uint64_t grow(uint64_t *told, uint64_t now) {
    if (now <= *told) return 0; /* a reading was ahead of the thread's own clock */
    uint64_t more = now - *told;
    *told = now;
    return more;
}

/* Tell by how much the values grew. */
static void tell_values(struct entry *entry, struct sp_span_update *update,
                        const struct told *now) {
    struct told *told = &entry->told;
    update->what |= SP_TOLD_VALUES;
    update->wall_busy = grow(&told->busy, now->busy);
    update->wall_idle = grow(&told->idle, now->idle);
    /* What was taken for user time before the split was known stays that. */
    uint64_t cpu = grow(&told->cpu, now->cpu);
    uint64_t system = now->system > told->system ? now->system - told->system : 0;
    if (system > cpu) system = cpu;
    told->system += system;
    update->cpu_user = cpu - system;
    update->cpu_system = system;
    update->alloc_objects = grow(&told->objects, now->objects);
    update->alloc_space = grow(&told->space, now->space);
}

static bool is_more(const struct told *now, const struct told *than) {
    return now->busy > than->busy || now->idle > than->idle || now->cpu > than->cpu ||
           now->objects > than->objects || now->space > than->space;
}

/* --- ends ------------------------------------------------------------------------- */

static void remember(struct sp_roster *roster, uint32_t number) {
    uint32_t *place = &roster->over[roster->over_at++ % REMEMBERED];
    if (*place != 0) forget(roster, *place);
    *place = number;
}

/* The span owns nothing any more, and will not. */
static void tell_end(struct sp_roster *roster, uint32_t number,
                     struct sp_span_update *update) {
    if (roster->with_heap) update->what |= SP_TOLD_HEAP;
    update->what |= SP_TOLD_DESTROYED;
    entry_at(roster, number)->state = OVER;
    remember(roster, number);
}

/* --- what owns blocks ---------------------------------------------------------------
 */

static int by_id(const void *a, const void *b) {
    const struct sp_heap_span_view *x = a, *y = b;
    return (x->id > y->id) - (x->id < y->id);
}

static bool owns_blocks(const struct sp_round *round, uint64_t id) {
    if (round->heap_count == 0) return false;
    struct sp_heap_span_view key = {.id = id};
    return bsearch(&key, round->heap, round->heap_count, sizeof key, by_id) != NULL;
}

struct views {
    struct sp_heap_span_view *items;
    size_t count, room;
    bool failed;
};

static void add_view(void *context, const struct sp_heap_span_view *view) {
    struct views *views = context;
    if (views->count == views->room) {
        size_t room = views->room == 0 ? 256 : 2 * views->room;
        struct sp_heap_span_view *longer = realloc(views->items, room * sizeof *longer);
        if (longer == NULL) {
            views->failed = true;
            return;
        }
        views->items = longer;
        views->room = room;
    }
    views->items[views->count] = *view;
    if (sp_heap_is_sampled()) {
        views->items[views->count].objects = sp_heap_rounded(view->objects);
        views->items[views->count].space = sp_heap_rounded(view->space);
    }
    views->count++;
}

static void read_heap(struct sp_round *round) {
    struct views views = {.failed = false};
    sp_heap_spans_each(add_view, &views);
    if (views.failed) sp_count(&sp_stats.out_of_memory);
    if (views.count != 0) qsort(views.items, views.count, sizeof *views.items, by_id);
    round->heap = views.items;
    round->heap_count = views.count;
    round->heap_known = !views.failed;
}

/* --- rounds ----------------------------------------------------------------------- */

/* Append what is there now, in order; where the next one goes. Ends with a batch that
 * is not full: threads may add more for as long as anybody takes. */
static struct sp_feed_batch **take_all(struct sp_feed_batch **last) {
    while ((*last = sp_feed_take()) != NULL) {
        bool full = (*last)->count == SP_FEED_BATCH;
        last = &(*last)->next;
        if (!full) break;
    }
    return last;
}

void sp_round_read(struct sp_round *round, const struct sp_roster *roster, bool last) {
    /* In this order: of what is told to have ended, all parents are found; and a span
     * that is nowhere was dropped. See docs/internals/feed.md. */
    struct sp_feed_batch **end = take_all(&round->over);
    if (roster != NULL) sp_feed_read_open(&round->open);
    if (last) take_all(end); /* the first time may have been long */
    if (roster == NULL) return;
    bool all = true;
    if (!last) round->next = sp_feed_peek(&all);
    if (!all) round->open.complete = false;
    if (roster->with_heap) read_heap(round);
}

void sp_round_free(struct sp_round *round) {
    sp_open_spans_free(&round->open);
    sp_feed_batch_free(round->next);
    free(round->heap);
    round->next = NULL;
    round->heap = NULL;
}

/* --- telling of a round --------------------------------------------------------------
 */

static void meet_all(struct sp_roster *roster, const struct sp_feed_batch *batch) {
    for (size_t n = 0; n < batch->count; n++) {
        const struct sp_feed_record *record = &batch->records[n];
        meet(roster, record->id, record->parent, record->callsite, record->labels);
    }
}

static void tell_over(struct sp_roster *roster, const struct sp_round *round,
                      const struct sp_feed_record *record) {
    uint32_t number = find(roster, record->id);
    if (number == 0) return; /* no memory for it */
    struct entry *entry = entry_at(roster, number);
    if (entry->state == OWNING || entry->state == OVER) return; /* was taken for lost */
    struct told now = {
        .busy = record->wall_busy,
        .idle = record->wall_idle,
        .cpu = record->cpu_user + record->cpu_system,
        .system = record->cpu_system,
        .objects = record->alloc_objects,
        .space = record->alloc_space,
    };
    struct sp_span_update *update = update_for(roster, number);
    tell_values(entry, update, &now);
    if (roster->with_heap && (!round->heap_known || owns_blocks(round, record->id)))
        entry->state = OWNING;
    else
        tell_end(roster, number, update);
}

static void tell_open(struct sp_roster *roster, const struct sp_open_span *span) {
    uint32_t number = find(roster, span->id);
    if (number == 0) return;
    struct entry *entry = entry_at(roster, number);
    struct told now = {span->used.busy, span->idle,         span->used.cpu,
                       span->system,    span->used.objects, span->used.space};
    /* It may have ended before it was looked at, and be told of already. */
    if (entry->state == OWNING || entry->state == OVER) return;
    if (entry->state == OPEN && !is_more(&now, &entry->told)) return;
    struct sp_span_update *update = update_for(roster, number);
    tell_values(entry, update, &now);
}

static void tell_heap(struct sp_roster *roster, const struct sp_heap_span_view *view) {
    uint32_t number = find(roster, view->id);
    if (number == 0) return;
    const struct entry *entry = entry_at(roster, number);
    if (entry->state != OPEN && entry->state != OWNING) return; /* not told of yet */
    struct sp_span_update *update = next_update(roster, view->id);
    update->what = SP_TOLD_HEAP;
    update->inuse_objects = view->objects;
    update->inuse_space = view->space;
}

/* Spans that were told of and are nowhere: their records were dropped. And those that
 * had ended and own nothing any more. */
static void tell_gone(struct sp_roster *roster, const struct sp_round *round) {
    for (uint32_t number = 1; number <= roster->count; number++) {
        struct entry *entry = entry_at(roster, number);
        bool lost = entry->state == OPEN && round->open.complete &&
                    entry->round != roster->round;
        if (!lost && entry->state != OWNING) continue;
        if (roster->with_heap && (!round->heap_known || owns_blocks(round, entry->id)))
            entry->state = OWNING;
        else
            tell_end(roster, number, next_update(roster, entry->id));
    }
}

/* The session is over, and so are all spans; what they have in use has been told. */
static void tell_all_ends(struct sp_roster *roster, const struct sp_round *round) {
    for (uint32_t number = 1; number <= roster->count; number++) {
        struct entry *entry = entry_at(roster, number);
        if (entry->state != OPEN && entry->state != OWNING) continue;
        entry->state = OVER;
        struct sp_span_update *update = next_update(roster, entry->id);
        update->what = SP_TOLD_DESTROYED;
        if (roster->with_heap && !owns_blocks(round, entry->id))
            update->what |= SP_TOLD_HEAP;
    }
}

void sp_roster_tell(struct sp_roster *roster, const struct sp_round *round,
                    enum sp_round_kind kind,
                    void (*tell)(void *context, const struct sp_span_updates *updates),
                    void *context) {
    roster->tell = tell;
    roster->context = context;
    roster->round++;
    const struct sp_open_spans *open = &round->open;
    for (const struct sp_feed_batch *b = round->over; b != NULL; b = b->next)
        meet_all(roster, b);
    for (size_t n = 0; n < open->count; n++)
        meet(roster, open->items[n].id, open->items[n].parent, open->items[n].callsite,
             open->items[n].labels);
    if (round->next != NULL) meet_all(roster, round->next);

    for (const struct sp_feed_batch *b = round->over; b != NULL; b = b->next)
        for (size_t n = 0; n < b->count; n++) tell_over(roster, round, &b->records[n]);
    if (kind != SP_ROUND_OVER)
        for (size_t n = 0; n < open->count; n++) tell_open(roster, &open->items[n]);
    if (kind == SP_ROUND_HEAP || kind == SP_ROUND_LAST)
        for (size_t n = 0; n < round->heap_count; n++)
            tell_heap(roster, &round->heap[n]);
    if (kind != SP_ROUND_OVER) tell_gone(roster, round);
    if (kind == SP_ROUND_LAST) tell_all_ends(roster, round);
    tell_now(roster);
}

/* --- the object ------------------------------------------------------------------- */

struct sp_roster *sp_roster_new(bool with_heap) {
    struct sp_roster *roster = sp_big_alloc(sizeof *roster);
    if (roster == NULL) return NULL;
    roster->with_heap = with_heap;
    if (make_scope_room(roster)) return roster;
    sp_roster_free(roster);
    return NULL;
}

void sp_roster_free(struct sp_roster *roster) {
    if (roster == NULL) return;
    if (roster->entries != NULL)
        munmap(roster->entries, roster->room * sizeof *roster->entries);
    if (roster->by_id.buckets != NULL)
        munmap(roster->by_id.buckets, bucket_bytes(&roster->by_id));
    free(roster->path);
    free(roster->scopes);
    sp_big_free(roster, sizeof *roster);
}
