#include "shadow.h"

#include "stats.h"
#include "table.h"

#include <pthread.h>
#include <sys/mman.h>

sp_leaf_slot *_Atomic sp_shadow_top;
_Atomic uint8_t sp_shadow_filter[(size_t)1 << SP_SHADOW_FILTER_BITS];
_Atomic bool sp_shadow_is_few;

#define PAGE_BYTES ((size_t)8 << (SP_SHADOW_PAGE_BITS - 4))

/* A block whose entry does not say all. Number 0 is no item. */
struct beside {
    uintptr_t address;
    sp_entry entry;
    uint64_t size;
    uint32_t next; /* in its bucket, or in the list of free items */
};

/* Guards the table, and the making and listing of leaves. A leaf lock. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct beside *beside;
static uint32_t beside_room, beside_used, beside_free;
static struct sp_table beside_table;
/* How many there are: those who free an odd address need not lock for nothing. */
static _Atomic uint32_t beside_count;

/* All leaves, for the walk; room for `leaf_room`. */
static uintptr_t *leaves; /* leaf numbers */
static size_t leaf_count, leaf_room;

static sp_counter mapped, resident;
static _Atomic bool refused;

static bool is_refused(void) {
    return SP_UNLIKELY(atomic_load_explicit(&refused, memory_order_relaxed));
}

void sp_shadow_refuse(bool refuse) {
    atomic_store_explicit(&refused, refuse, memory_order_relaxed);
}

static void count_bytes(sp_counter *counter, uint64_t bytes) {
    atomic_fetch_add_explicit(counter, bytes, memory_order_relaxed);
}

static void *refused_address_space(void) {
    sp_count(&sp_stats.heap_map_refused);
    return NULL;
}

/* Address space that takes memory where it is written alone. Large pages would
 * fill it for a few entries; a core dump wants none of it. */
static void *map(size_t size) {
    if (is_refused()) return refused_address_space();
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return refused_address_space();
    madvise(memory, size, MADV_NOHUGEPAGE);
    madvise(memory, size, MADV_DONTDUMP);
    count_bytes(&mapped, size);
    return memory;
}

/* --- leaves ----------------------------------------------------------------- */

static bool list_make_room_locked(void) {
    if (leaf_count < leaf_room) return true;
    size_t room = leaf_room == 0 ? 64 : 2 * leaf_room;
    uintptr_t *longer = is_refused() ? NULL : realloc(leaves, room * sizeof *longer);
    if (longer == NULL) return false;
    leaves = longer;
    leaf_room = room;
    return true;
}

static struct sp_leaf *leaf_make_locked(sp_leaf_slot *slot, uintptr_t number) {
    struct sp_leaf *leaf = atomic_load_explicit(slot, memory_order_relaxed);
    if (leaf != NULL || !list_make_room_locked()) return leaf;
    leaf = map(sizeof *leaf);
    if (leaf == NULL) return NULL;
    leaves[leaf_count++] = number;
    atomic_store_explicit(slot, leaf, memory_order_release);
    return leaf;
}

SP_COLD struct sp_leaf *sp_shadow_leaf_slow(uintptr_t address) {
    uintptr_t number = sp_shadow_slot(address);
    sp_leaf_slot *top = atomic_load_explicit(&sp_shadow_top, memory_order_acquire);
    pthread_mutex_lock(&lock);
    struct sp_leaf *leaf = leaf_make_locked(&top[number], number);
    pthread_mutex_unlock(&lock);
    return leaf;
}

static _Atomic uint8_t *filter_of(uintptr_t address) {
    return &sp_shadow_filter[sp_shadow_filter_index(address)];
}

static void filter_mark(uintptr_t address) {
    if (!atomic_load_explicit(&sp_shadow_is_few, memory_order_relaxed))
        atomic_store_explicit(filter_of(address), SP_FILTER_MANY, memory_order_relaxed);
}

/* Before the block is entered. */
SP_COLD void sp_shadow_filter_add(uintptr_t address) {
    _Atomic uint8_t *filter = filter_of(address);
    uint8_t count = atomic_load_explicit(filter, memory_order_relaxed);
    while (count != SP_FILTER_MANY && !atomic_compare_exchange_weak_explicit(
                                          filter, &count, (uint8_t)(count + 1),
                                          memory_order_relaxed, memory_order_relaxed)) {
    }
}

/* After it is gone. What was many once cannot be counted down. */
SP_COLD void sp_shadow_filter_subtract(uintptr_t address) {
    _Atomic uint8_t *filter = filter_of(address);
    uint8_t count = atomic_load_explicit(filter, memory_order_relaxed);
    while (count != SP_FILTER_MANY && count != 0 &&
           !atomic_compare_exchange_weak_explicit(filter, &count, (uint8_t)(count - 1),
                                                  memory_order_relaxed,
                                                  memory_order_relaxed)) {}
}

/* False in tests that play a machine without memory alone: the system gives pages
 * or kills, it does not refuse them. */
SP_COLD bool sp_shadow_touch_slow(struct sp_leaf *leaf, uintptr_t address) {
    if (is_refused()) return false;
    /* Before, for those who see the page touched; after, for a page that stays touched
     * where the whole map is wiped in between. */
    filter_mark(address);
    if (!atomic_exchange_explicit(&leaf->touched[sp_shadow_page(address)], 1,
                                  memory_order_acq_rel))
        count_bytes(&resident, PAGE_BYTES);
    filter_mark(address);
    return true;
}

static struct sp_leaf *leaf_numbered(uintptr_t number) {
    return sp_shadow_leaf(sp_shadow_top, number << SP_SHADOW_LEAF_BITS);
}

uint64_t sp_shadow_mapped(void) {
    return sp_load(&mapped);
}
uint64_t sp_shadow_resident(void) {
    return sp_load(&resident);
}

/* --- beside the map --------------------------------------------------------- */

static uint32_t hash_address(uintptr_t address) {
    return (uint32_t)sp_mix(address);
}

static bool beside_make_room_locked(void) {
    if (beside_free == 0 && beside_used == beside_room) {
        uint32_t room = beside_room == 0 ? 64 : 2 * beside_room;
        struct beside *more =
            is_refused() ? NULL : realloc(beside, ((size_t)room + 1) * sizeof *more);
        if (more == NULL) return false;
        beside = more;
        beside_room = room;
    }
    if (!sp_table_full(&beside_table)) return true;
    if (is_refused() || !sp_table_grow(&beside_table)) return false;
    for (uint32_t n = 1; n <= beside_used; n++)
        if (beside[n].address != 0)
            beside[n].next =
                sp_table_push(&beside_table, hash_address(beside[n].address), n);
    return true;
}

SP_COLD bool sp_shadow_put_beside(uintptr_t address, sp_entry entry, uint64_t size) {
    pthread_mutex_lock(&lock);
    bool done = beside_make_room_locked();
    if (done) {
        uint32_t number = beside_free;
        if (number != 0)
            beside_free = beside[number].next;
        else
            number = ++beside_used;
        uint32_t next = sp_table_push(&beside_table, hash_address(address), number);
        beside[number] = (struct beside){address, entry, size, next};
        atomic_fetch_add_explicit(&beside_count, 1, memory_order_relaxed);
    } else {
        sp_count(&sp_stats.heap_table_refused);
    }
    pthread_mutex_unlock(&lock);
    return done;
}

SP_COLD sp_entry sp_shadow_take_beside(uintptr_t address, uint64_t *size) {
    if (atomic_load_explicit(&beside_count, memory_order_relaxed) == 0) return 0;
    sp_entry entry = 0;
    pthread_mutex_lock(&lock);
    if (beside_table.buckets != NULL) {
        uint32_t *link =
            &beside_table.buckets[hash_address(address) & beside_table.mask];
        while (*link != 0 && beside[*link].address != address)
            link = &beside[*link].next;
        uint32_t number = *link;
        if (number != 0) {
            struct beside *item = &beside[number];
            *link = item->next;
            beside_table.used--;
            entry = item->entry;
            *size = item->size;
            item->address = 0;
            item->next = beside_free;
            beside_free = number;
            atomic_fetch_sub_explicit(&beside_count, 1, memory_order_relaxed);
        }
    }
    pthread_mutex_unlock(&lock);
    return entry;
}

/* --- all of it -------------------------------------------------------------- */

/* The filter goes first, see sp_shadow_touch_slow. */
static void wipe_locked(void) {
    for (size_t i = 0; i < sizeof sp_shadow_filter; i++)
        atomic_store_explicit(&sp_shadow_filter[i], 0, memory_order_release);
    for (size_t i = 0; i < leaf_count; i++) {
        struct sp_leaf *leaf = leaf_numbered(leaves[i]);
        madvise(leaf, sizeof *leaf, MADV_DONTNEED);
    }
    sp_store(&resident, 0);
    sp_table_clear(&beside_table);
    beside_used = beside_free = 0;
    atomic_store_explicit(&beside_count, 0, memory_order_relaxed);
}

bool sp_shadow_setup(bool few) {
    pthread_mutex_lock(&lock);
    atomic_store_explicit(&sp_shadow_is_few, few, memory_order_relaxed);
    wipe_locked();
    sp_leaf_slot *top = atomic_load_explicit(&sp_shadow_top, memory_order_relaxed);
    if (top == NULL) {
        top = map(SP_SHADOW_LEAVES * sizeof *top);
        atomic_store_explicit(&sp_shadow_top, top, memory_order_release);
    }
    pthread_mutex_unlock(&lock);
    return top != NULL;
}

void sp_shadow_wipe(void) {
    pthread_mutex_lock(&lock);
    wipe_locked();
    pthread_mutex_unlock(&lock);
}

/* Visit every entry of the leaves that is not 0. Not under the lock, which hooks may
 * wait for: leaves are never unmapped, and those that come meanwhile hold what came
 * meanwhile. */
static void each_entry(void (*visit)(void *context, _Atomic sp_entry *entry),
                       void *context) {
    size_t per_page = SP_SHADOW_ENTRIES / SP_SHADOW_PAGES;
    for (size_t i = 0;; i++) {
        pthread_mutex_lock(&lock);
        struct sp_leaf *leaf = i < leaf_count ? leaf_numbered(leaves[i]) : NULL;
        pthread_mutex_unlock(&lock);
        if (leaf == NULL) return;
        for (size_t page = 0; page < SP_SHADOW_PAGES; page++) {
            if (!atomic_load_explicit(&leaf->touched[page], memory_order_relaxed))
                continue;
            _Atomic sp_entry *entry = &leaf->entry[page * per_page];
            for (_Atomic sp_entry *end = entry + per_page; entry != end; entry++)
                if (atomic_load_explicit(entry, memory_order_relaxed) != 0)
                    visit(context, entry);
        }
    }
}

struct walk {
    void (*visit)(void *context, sp_entry entry, uint64_t size);
    void *context;
};

static void walk_entry(void *context, _Atomic sp_entry *place) {
    const struct walk *walk = context;
    sp_entry entry = atomic_load_explicit(place, memory_order_relaxed);
    if (entry != 0 && sp_entry_size(entry) != SP_ENTRY_BESIDE)
        walk->visit(walk->context, entry, sp_entry_size(entry));
}

void sp_shadow_walk(void (*visit)(void *context, sp_entry entry, uint64_t size),
                    void *context) {
    struct walk walk = {visit, context};
    each_entry(walk_entry, &walk);
    pthread_mutex_lock(&lock);
    for (uint32_t n = 1; n <= beside_used; n++)
        if (beside[n].address != 0) visit(context, beside[n].entry, beside[n].size);
    pthread_mutex_unlock(&lock);
}

struct ages {
    uint16_t now, oldest, valid;
};

static sp_entry rejuvenated(const struct ages *ages, sp_entry entry) {
    uint16_t age = (uint16_t)(ages->now - sp_entry_born(entry));
    if (age <= ages->oldest) return entry;
    if (age > ages->valid) return 0;
    return sp_entry_make(sp_entry_owner(entry), (uint16_t)(ages->now - ages->oldest),
                         sp_entry_size(entry));
}

/* The owner may free the block in the middle: what it stores stands. */
static void rejuvenate_entry(void *context, _Atomic sp_entry *place) {
    sp_entry entry = atomic_load_explicit(place, memory_order_relaxed);
    sp_entry younger = rejuvenated(context, entry);
    if (younger != entry)
        atomic_compare_exchange_strong_explicit(
            place, &entry, younger, memory_order_relaxed, memory_order_relaxed);
}

void sp_shadow_rejuvenate(uint16_t now, uint16_t oldest, uint16_t valid) {
    struct ages ages = {now, oldest, valid};
    each_entry(rejuvenate_entry, &ages);
    pthread_mutex_lock(&lock);
    for (uint32_t n = 1; n <= beside_used; n++)
        beside[n].entry = rejuvenated(&ages, beside[n].entry);
    pthread_mutex_unlock(&lock);
}

void sp_shadow_lock(void) {
    pthread_mutex_lock(&lock);
}
void sp_shadow_unlock(void) {
    pthread_mutex_unlock(&lock);
}
void sp_shadow_relock_in_child(void) {
    lock = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
    wipe_locked();
}
