#include "suspended.h"

#include "lock.h"

#include <stdlib.h>
#include <string.h>

/* Parts of the table, each with its lock: threads rarely meet. */
#define PARTS 64u
#define SMALLEST 8u /* places of a part that has any */

struct place {
    const void *key; /* NULL: empty */
    struct sp_span *top;
};

/* On a cache line of its own. */
struct part {
    struct sp_lock lock;
    uint32_t count;
    uint32_t mask; /* places less one */
    struct place *places;
    char rest[40];
};

static _Alignas(64) struct part parts[PARTS];

static uint64_t hash_of(const void *key) {
    return sp_mix((uintptr_t)key >> 4);
}
static struct part *part_of(uint64_t hash) {
    return &parts[hash % PARTS];
}
static uint32_t home_of(const struct part *part, uint64_t hash) {
    return (uint32_t)(hash / PARTS) & part->mask;
}

/* The key's place, or the empty one where it would be. The part has places. */
static uint32_t find(const struct part *part, const void *key, uint64_t hash) {
    uint32_t n = home_of(part, hash);
    while (part->places[n].key != NULL && part->places[n].key != key)
        n = (n + 1) & part->mask;
    return n;
}

static _Atomic bool refused;

void sp_suspended_refuse(bool refuse) {
    atomic_store_explicit(&refused, refuse, memory_order_relaxed);
}

static bool resize(struct part *part, uint32_t size) {
    struct place *places = NULL;
    if (SP_LIKELY(!atomic_load_explicit(&refused, memory_order_relaxed)))
        places = calloc(size, sizeof *places);
    if (places == NULL) return false;
    struct part wider = {.mask = size - 1, .places = places};
    for (uint32_t n = 0; part->count > 0 && n <= part->mask; n++) {
        const struct place *place = &part->places[n];
        if (place->key != NULL)
            places[find(&wider, place->key, hash_of(place->key))] = *place;
    }
    free(part->places);
    part->places = places;
    part->mask = size - 1;
    return true;
}

/* Room for one more: at most four fifths are in use. */
static bool make_room(struct part *part) {
    if (part->places == NULL) return resize(part, SMALLEST);
    uint32_t size = part->mask + 1;
    return 5 * (part->count + 1) <= 4 * size || resize(part, 2 * size);
}

static void remove_at(struct part *part, uint32_t gap) {
    for (uint32_t n = (gap + 1) & part->mask; part->places[n].key != NULL;
         n = (n + 1) & part->mask) {
        uint32_t home = home_of(part, hash_of(part->places[n].key));
        /* It may move to the gap if that is not before its home. */
        if (((n - home) & part->mask) < ((n - gap) & part->mask)) continue;
        part->places[gap] = part->places[n];
        gap = n;
    }
    part->places[gap] = (struct place){NULL, NULL};
    part->count--;
    uint32_t size = part->mask + 1;
    if (SP_UNLIKELY(size > 64 * SMALLEST && part->count < size / 8))
        resize(part, size / 4); /* if there is no memory it stays as it is */
}

static struct sp_span *retained(struct sp_span *top, bool (*retain)(struct sp_span *)) {
    struct sp_span **link = &top;
    while (*link != NULL)
        if (retain(*link))
            link = &(*link)->below;
        else
            *link = (*link)->below;
    return top;
}

struct sp_span *sp_suspended_put(const void *key, struct sp_span *top,
                                 bool (*retain)(struct sp_span *), bool *kept) {
    uint64_t hash = hash_of(key);
    struct part *part = part_of(hash);
    struct sp_span *before = NULL;
    sp_lock_take(&part->lock);
    bool room = make_room(part);
    struct place *place = NULL;
    if (SP_LIKELY(part->places != NULL)) place = &part->places[find(part, key, hash)];
    /* What is there must go in any case: the key is another's by now. */
    *kept = SP_LIKELY(room) || (place != NULL && place->key != NULL);
    if (SP_LIKELY(*kept)) {
        before = place->top;
        if (SP_UNLIKELY(before != NULL) && retain != NULL)
            before = retained(before, retain);
        part->count += place->key == NULL;
        *place = (struct place){key, top};
    }
    sp_lock_release(&part->lock);
    return before;
}

struct sp_span *sp_suspended_take(const void *key, bool (*retain)(struct sp_span *)) {
    uint64_t hash = hash_of(key);
    struct part *part = part_of(hash);
    struct sp_span *top = NULL;
    sp_lock_take(&part->lock);
    if (part->count > 0) {
        uint32_t n = find(part, key, hash);
        top = part->places[n].top;
        if (top != NULL) {
            remove_at(part, n);
            if (retain != NULL) top = retained(top, retain);
        }
    }
    sp_lock_release(&part->lock);
    return top;
}

bool sp_suspended_has(const void *key) {
    uint64_t hash = hash_of(key);
    struct part *part = part_of(hash);
    sp_lock_take(&part->lock);
    bool found = part->count > 0 && part->places[find(part, key, hash)].key != NULL;
    sp_lock_release(&part->lock);
    return found;
}

bool sp_suspended_remove(const void *key, struct sp_span *span) {
    uint64_t hash = hash_of(key);
    struct part *part = part_of(hash);
    bool found = false;
    sp_lock_take(&part->lock);
    if (part->count > 0) {
        uint32_t n = find(part, key, hash);
        struct sp_span **link = &part->places[n].top;
        while (*link != NULL && *link != span) link = &(*link)->below;
        found = *link != NULL;
        if (found) *link = span->below;
        if (found && part->places[n].top == NULL) remove_at(part, n);
    }
    sp_lock_release(&part->lock);
    return found;
}

void sp_suspended_each(void (*visit)(void *context, struct sp_span *span),
                       void *context) {
    for (struct part *part = parts; part != parts + PARTS; part++) {
        sp_lock_take(&part->lock);
        for (uint32_t n = 0; part->count > 0 && n <= part->mask; n++)
            for (struct sp_span *s = part->places[n].top; s != NULL; s = s->below)
                visit(context, s);
        sp_lock_release(&part->lock);
    }
}

uint64_t sp_suspended_count(void) {
    uint64_t count = 0;
    for (struct part *part = parts; part != parts + PARTS; part++) {
        sp_lock_take(&part->lock);
        count += part->count;
        sp_lock_release(&part->lock);
    }
    return count;
}

void sp_suspended_lock(void) {
    for (unsigned n = 0; n < PARTS; n++) sp_lock_take(&parts[n].lock);
}
void sp_suspended_unlock(void) {
    for (unsigned n = 0; n < PARTS; n++) sp_lock_release(&parts[n].lock);
}
void sp_suspended_relock_in_child(void) {
    sp_suspended_unlock();
}
