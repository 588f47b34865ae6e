#include "ages.h"

#include "heap.h"
#include "heap_span.h"

#include <string.h>
#include <time.h>

const uint32_t sp_age_limits[SP_AGE_CLASSES] = {0, 1, 10, 60, 600, 3600};

/* A class is compared with itself a quarter of its lower limit ago at the soonest: what
 * is an hour old leaks, if it does, slowly. */
#define WINDOWS_PER_LIMIT 4

static uint64_t limit = 50; /* see sp_ages_limit */

void sp_ages_limit(uint64_t parts) {
    limit = parts;
}

struct record {
    struct sp_ages ages;
    int64_t
        compared[SP_AGE_CLASSES]; /* bytes of that age and older, at the last look */
};

static struct sp_slab records;
static uint32_t record_count;
static uint64_t looked_at[SP_AGE_CLASSES]; /* wall time */
static uint64_t walked_at, walk_nanos;

static struct record *record_of(uint32_t path) {
    return sp_slab_at(&records, path, sizeof(struct record));
}

void sp_ages_reset(void) {
    record_count = 0;
    walked_at = walk_nanos = 0;
    memset(looked_at, 0, sizeof looked_at);
}

const struct sp_ages *sp_ages_of(uint32_t path) {
    return &record_of(path)->ages;
}

static void add_block(void *context, sp_entry entry, uint64_t size) {
    uint64_t now = *(const uint64_t *)context;
    int age = sp_heap_age(now, entry);
    uint32_t path = sp_owner_path(sp_entry_owner(entry));
    if (age < 0 || path >= record_count) return; /* younger than this reading */
    uint64_t objects = 1;
    if (sp_heap_is_sampled()) sp_heap_weigh(size, &objects, &size);
    /* At least so old: both ends are somewhere in their ticks. */
    uint32_t seconds = age > 0 ? (uint32_t)(age - 1) / SP_TICKS_PER_SECOND : 0;
    unsigned k = SP_AGE_CLASSES - 1;
    while (seconds < sp_age_limits[k]) k--;
    record_of(path)->ages.space[k] += (int64_t)size;
}

static uint64_t nanos_of(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void walk(void) {
    for (uint32_t path = 0; path < record_count; path++)
        memset(record_of(path)->ages.space, 0, sizeof(int64_t[SP_AGE_CLASSES]));
    uint64_t now = sp_load(&sp_heap_now);
    sp_shadow_walk(add_block, &now);
    if (!sp_heap_is_sampled()) return;
    for (uint32_t path = 0; path < record_count; path++)
        for (unsigned k = 0; k < SP_AGE_CLASSES; k++)
            record_of(path)->ages.space[k] >>= SP_SAMPLE_SHIFT;
}

static void compare_class(unsigned k) {
    for (uint32_t path = 1; path < record_count; path++) {
        struct record *record = record_of(path);
        int64_t old = 0;
        for (unsigned c = k; c < SP_AGE_CLASSES; c++) old += record->ages.space[c];
        uint8_t *growing = &record->ages.growing[k];
        if (old > record->compared[k])
            *growing = *growing < UINT8_MAX ? (uint8_t)(*growing + 1) : UINT8_MAX;
        else
            *growing = 0;
        record->compared[k] = old;
    }
}

bool sp_ages_take(uint32_t count, uint64_t wall, bool is_report) {
    for (; record_count < count; record_count++) {
        if (!sp_slab_reserve(&records, record_count, sizeof(struct record)))
            return false;
        memset(record_of(record_count), 0, sizeof(struct record));
    }
    uint64_t now = nanos_of(CLOCK_MONOTONIC);
    if (walked_at != 0 && now - walked_at < limit * walk_nanos) return true;
    uint64_t began = nanos_of(CLOCK_THREAD_CPUTIME_ID);
    walk();
    walk_nanos = nanos_of(CLOCK_THREAD_CPUTIME_ID) - began;
    walked_at = nanos_of(CLOCK_MONOTONIC);
    for (unsigned k = 0; is_report && k < SP_AGE_CLASSES; k++) {
        uint64_t window = sp_age_limits[k] * (uint64_t)1000000000 / WINDOWS_PER_LIMIT;
        if (wall - looked_at[k] < window) continue;
        looked_at[k] = wall;
        compare_class(k);
    }
    return true;
}
