#include "heap.h"

#include "charge.h"
#include "clock.h"
#include "heap_span.h"
#include "span.h"
#include "stats.h"
#include "thread.h"

#include <assert.h>
#include <math.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#define TICK ((uint64_t)1000000000 / SP_TICKS_PER_SECOND) /* ns */

/* A tick number has 16 bits; what is older than half of them counts as that old. */
#define OLDEST 0x8000u

sp_counter sp_heap_now;
sp_counter sp_heap_next_tick = UINT64_MAX;
sp_counter sp_heap_sample_bytes;

/* Grows under the lock of the paths; values are zeroed when a session begins. */
static struct sp_slab heap_paths;
static _Atomic uint32_t heap_path_count;

static _Atomic bool by_span; /* of the running session */
static bool is_by_span(void) {
    return atomic_load_explicit(&by_span, memory_order_relaxed);
}

static uint32_t path_count(void) {
    return atomic_load_explicit(&heap_path_count, memory_order_acquire);
}

static struct sp_heap_shared *shared_of(uint32_t generation, uint32_t path) {
    struct sp_heap_path *item =
        sp_slab_at(&heap_paths, path, sizeof(struct sp_heap_path));
    return &item->of[generation & 1];
}

/* --- the session -------------------------------------------------------------- */

static void zero_shared(uint32_t generation) {
    for (uint32_t path = 0; path < path_count(); path++) {
        struct sp_heap_shared *shared = shared_of(generation, path);
        sp_store(&shared->stray_objects, 0);
        sp_store(&shared->stray_space, 0);
        sp_store(&shared->level, 0);
        sp_store(&shared->peak, 0);
    }
}

bool sp_heap_reserve_path(uint32_t path) {
    if (sp_load(&sp_heap_now) == 0 || path < path_count()) return true;
    if (!sp_slab_reserve(&heap_paths, path, sizeof(struct sp_heap_path))) return false;
    atomic_store_explicit(&heap_path_count, path + 1, memory_order_release);
    return true;
}

static uint64_t now_of(uint32_t generation, uint64_t passed, uint16_t tick) {
    return (uint64_t)generation << 32 | passed << 16 | tick;
}

static uint16_t last_tick; /* of the session before; under the collector's lock */

void sp_heap_begin(uint32_t generation, uint64_t sample_bytes, bool owned_by_spans) {
    sp_shadow_setup(sample_bytes != 0);
    /* No two sessions share a tick: what a thread that has not noticed the end of the
     * last one enters now is older than this one. */
    last_tick++;
    sp_store(&sp_heap_sample_bytes, sample_bytes);
    atomic_store_explicit(&by_span, owned_by_spans, memory_order_relaxed);
    sp_store(&sp_heap_next_tick, sp_clock_wall() + TICK);
    sp_store(&sp_heap_now, now_of(generation, 0, last_tick));
    sp_heap_reserve_path(SP_PATH_ROOT);
    zero_shared(generation);
}

void sp_heap_end(void) {
    uint64_t now = sp_load(&sp_heap_now);
    if (now == 0) return;
    sp_store(&sp_heap_now, 0);
    sp_store(&sp_heap_sample_bytes, 0); /* the next session need not come by here */
    sp_store(&sp_heap_next_tick, UINT64_MAX);
    last_tick = (uint16_t)now;
    sp_shadow_wipe();
}

void sp_heap_restart_in_child(void) {
    uint32_t generation = sp_heap_generation(sp_load(&sp_heap_now));
    if (generation != 0) zero_shared(generation);
}

SP_COLD void sp_heap_tick_slow(uint64_t wall) {
    uint64_t next = sp_load(&sp_heap_next_tick), now = sp_load(&sp_heap_now);
    if (now == 0 || wall < next) return;
    uint64_t ticks = (wall - next) / TICK + 1;
    if (!atomic_compare_exchange_strong_explicit(
            &sp_heap_next_tick, &next, next + ticks * TICK, memory_order_relaxed,
            memory_order_relaxed))
        return; /* another thread has told it */
    uint16_t passed = (uint16_t)(now >> 16), tick = (uint16_t)now;
    if (passed + ticks > UINT16_MAX) {
        sp_shadow_rejuvenate(tick, OLDEST, passed);
        passed = OLDEST;
        if (ticks > UINT16_MAX - OLDEST) ticks = UINT16_MAX - OLDEST;
    }
    uint64_t later =
        now_of(sp_heap_generation(now), passed + ticks, (uint16_t)(tick + ticks));
    /* Fails if the session is over. */
    atomic_compare_exchange_strong_explicit(&sp_heap_now, &now, later,
                                            memory_order_relaxed, memory_order_relaxed);
}

enum sp_alloc_mode sp_heap_mode(uint32_t generation, bool track_allocations) {
    if (!track_allocations) return SP_ALLOC_OFF;
    if (sp_heap_generation(sp_load(&sp_heap_now)) != generation) return SP_ALLOC_COUNT;
    return sp_heap_is_sampled() ? SP_ALLOC_SAMPLED : SP_ALLOC_EXACT;
}

/* --- accounts ----------------------------------------------------------------- */

static struct sp_slab *slab_of(struct sp_accounts *accounts, size_t *item_size) {
    bool counts = accounts->mode == SP_ALLOC_COUNT;
    *item_size = counts ? SP_ACCOUNT_COUNTS : sizeof(struct sp_account);
    return counts ? &accounts->counts : &accounts->accounts;
}

static void zero_items(struct sp_slab *slab, size_t item_size, uint32_t count) {
    for (unsigned chunk = 0; sp_slab_chunk_start(chunk) < count; chunk++) {
        char *memory = atomic_load_explicit(&slab->chunks[chunk], memory_order_relaxed);
        if (memory == NULL) continue;
        uint32_t left = count - sp_slab_chunk_start(chunk);
        uint32_t size = sp_slab_chunk_size(chunk);
        for (uint32_t n = 0; n < (left < size ? left : size); n++) {
            struct sp_account *account = (void *)(memory + n * item_size);
            sp_store(&account->objects, 0);
            sp_store(&account->space, 0);
            if (item_size == SP_ACCOUNT_COUNTS) continue;
            sp_store(&account->freed_objects, 0);
            sp_store(&account->freed_space, 0);
            sp_store(&account->peak, 0);
            account->publish_space_at = account->publish_freed_at = 0;
        }
    }
}

void sp_accounts_zero(struct sp_accounts *accounts) {
    size_t item_size;
    struct sp_slab *slab = slab_of(accounts, &item_size);
    zero_items(slab, item_size,
               atomic_load_explicit(&accounts->count, memory_order_relaxed));
}

void sp_accounts_reset(struct sp_accounts *accounts, enum sp_alloc_mode mode,
                       uint32_t generation) {
    sp_accounts_zero(accounts);
    atomic_store_explicit(&accounts->count, 0, memory_order_release);
    accounts->mode = mode;
    accounts->generation = mode >= SP_ALLOC_EXACT ? generation : 0;
    bool is_quick = mode == SP_ALLOC_EXACT && !is_by_span() &&
                    atomic_load_explicit(&sp_shadow_top, memory_order_acquire) != NULL;
    accounts->exact_generation = is_quick ? generation : SP_NO_GENERATION;
}

SP_COLD struct sp_account *sp_account_slow(struct sp_accounts *accounts,
                                           uint32_t path) {
    if (accounts->mode == SP_ALLOC_OFF) return NULL;
    size_t item_size;
    struct sp_slab *slab = slab_of(accounts, &item_size);
    if (!sp_slab_reserve(slab, path, item_size)) {
        sp_count(&sp_stats.out_of_memory);
        return NULL;
    }
    struct sp_account *account = sp_slab_at(slab, path, item_size);
    if (accounts->mode != SP_ALLOC_COUNT) account->path = path;
    if (path >= atomic_load_explicit(&accounts->count, memory_order_relaxed))
        atomic_store_explicit(&accounts->count, path + 1, memory_order_release);
    return account;
}

/* --- publishing --------------------------------------------------------------- */

static void raise_shared(sp_counter *peak, uint64_t value) {
    uint64_t known = sp_load(peak);
    while ((int64_t)value > (int64_t)known &&
           !atomic_compare_exchange_weak_explicit(
               peak, &known, value, memory_order_relaxed, memory_order_relaxed)) {}
}

static void publish_change(uint32_t generation, uint32_t path, uint64_t change) {
    struct sp_heap_shared *shared = shared_of(generation, path);
    uint64_t before =
        atomic_fetch_add_explicit(&shared->level, change, memory_order_relaxed);
    raise_shared(&shared->peak, before + change);
}

/* Tell the path, and all, what the account and the thread hold now. The first block
 * of every account is told. */
static void publish(struct sp_thread *thread, struct sp_account *account) {
    uint32_t generation = thread->cells.accounts.generation;
    uint64_t space = sp_load(&account->space), freed = sp_load(&account->freed_space);
    uint64_t published = account->publish_space_at - account->publish_freed_at;
    account->publish_space_at = space + SP_PUBLISH_STEP;
    account->publish_freed_at = freed + SP_PUBLISH_STEP;
    publish_change(generation, account->path, space - freed - published);
    uint64_t live = sp_load(&thread->heap.live);
    publish_change(generation, SP_PATH_ROOT, live - thread->heap.published);
    thread->heap.published = live;
    atomic_store_explicit(&thread->heap.took_part, true, memory_order_relaxed);
    sp_heap_tick(sp_clock_wall_coarse());
}

static void publish_if_due(struct sp_thread *thread, struct sp_account *account) {
    if (sp_load(&account->space) >= account->publish_space_at ||
        sp_load(&account->freed_space) >= account->publish_freed_at)
        publish(thread, account);
}

static void charge(struct sp_thread *thread, struct sp_account *account,
                   uint64_t objects, uint64_t space) {
    sp_add(&account->objects, objects);
    sp_add(&account->space, space);
    sp_add(&thread->heap.live, space);
    publish_if_due(thread, account);
}

/* A block could not be entered in the map: it is allocated, and not live. */
static SP_COLD void lose(struct sp_account *account, uint64_t objects, uint64_t space) {
    sp_count(&sp_stats.heap_untracked);
    sp_add(&account->objects, objects);
    sp_add(&account->space, space);
    sp_add(&account->freed_objects, objects);
    sp_add(&account->freed_space, space);
}

/* A thread without accounts of the running session frees a block. */
static SP_COLD void free_stray(uint64_t now, uint32_t path, uint64_t objects,
                               uint64_t space) {
    uint32_t generation = sp_heap_generation(now);
    if (path >= path_count()) return;
    struct sp_heap_shared *shared = shared_of(generation, path);
    atomic_fetch_add_explicit(&shared->stray_objects, objects, memory_order_release);
    atomic_fetch_add_explicit(&shared->stray_space, space, memory_order_release);
    atomic_fetch_sub_explicit(&shared->level, space, memory_order_relaxed);
    shared = shared_of(generation, SP_PATH_ROOT);
    atomic_fetch_add_explicit(&shared->stray_objects, objects, memory_order_relaxed);
    atomic_fetch_add_explicit(&shared->stray_space, space, memory_order_relaxed);
    atomic_fetch_sub_explicit(&shared->level, space, memory_order_relaxed);
}

/* --- sampling ----------------------------------------------------------------- */

static sp_counter seed, seeded;

void sp_heap_seed(uint64_t number) {
    sp_store(&seed, number);
    sp_store(&seeded, 0);
}

static uint64_t new_randomness(void) {
    uint64_t number = sp_load(&seed);
    if (number != 0)
        return sp_mix(number +
                      atomic_fetch_add_explicit(&seeded, 1, memory_order_relaxed)) |
               1;
    if (getrandom(&number, sizeof number, GRND_NONBLOCK) != sizeof number) {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        number = sp_mix((uint64_t)t.tv_nsec + (uintptr_t)&number);
    }
    return number | 1; /* 0 means: not seeded */
}

/* Bytes to the next sample: exponential, as the bytes' samples are a Poisson process
 * and have no memory. */
static int64_t draw(struct sp_thread_heap *heap) {
    if (heap->randomness == 0) heap->randomness = new_randomness();
    heap->randomness += 0x9e3779b97f4a7c15u; /* splitmix64 */
    if (heap->randomness == 0) heap->randomness = 1;
    double uniform = (double)((sp_mix(heap->randomness) >> 11) + 1) * 0x1p-53;
    /* The number of the byte that is one: counted from 1, or a block would have the
     * chance of one that is a byte longer. */
    return (int64_t)(-log(uniform) * (double)sp_load(&sp_heap_sample_bytes)) + 1;
}

void sp_heap_weigh(uint64_t size, uint64_t *objects, uint64_t *space) {
    double scale = (double)((uint64_t)1 << SP_SAMPLE_SHIFT);
    double bytes = size > 0 ? (double)size : 1;
    double probability = -expm1(-bytes / (double)sp_load(&sp_heap_sample_bytes));
    *objects = (uint64_t)(scale / probability + 0.5);
    *space = (uint64_t)((double)size * scale / probability + 0.5);
}

void sp_thread_heap_reset(struct sp_thread_heap *heap) {
    sp_store(&heap->live, 0);
    sp_store(&heap->peak, 0);
    atomic_store_explicit(&heap->took_part, false, memory_order_relaxed);
    heap->published = 0;
    heap->randomness = 0;
    heap->sample_in = sp_heap_is_sampled() ? draw(heap) : 0;
}

/* --- charging ----------------------------------------------------------------- */

static void charge_block(struct sp_thread *thread, struct sp_account *account,
                         const void *block, size_t size) {
    uint64_t now = sp_load(&sp_heap_now);
    /* Of a session that is over, or that the thread does not know yet: not ours. */
    if (sp_heap_generation(now) != thread->cells.accounts.generation) return;
    uint64_t objects = 1, space = size;
    if (thread->cells.accounts.mode == SP_ALLOC_SAMPLED) {
        uint64_t step = size > 0 ? size : 1; /* nothing would have no chance */
        if (thread->heap.sample_in > 0 && step < (uint64_t)thread->heap.sample_in) {
            thread->heap.sample_in -= (int64_t)step;
            return;
        }
        thread->heap.sample_in = draw(&thread->heap);
        sp_heap_weigh(size, &objects, &space);
    }
    uint32_t owner = account->path;
    if (is_by_span() && thread->top != NULL && thread->top->path == owner)
        owner = sp_heap_span_owner(sp_heap_generation(now), thread->top, owner);
    if (sp_shadow_put(block, owner, (uint16_t)now, size)) {
        charge(thread, account, objects, space);
        sp_heap_span_add(owner, objects, space);
    } else {
        lose(account, objects, space);
    }
}

SP_COLD void *sp_charge_made_slow(const struct sp_making *making, void *block,
                                  size_t size) {
    struct sp_thread *charged = making->charged;
    charged->heap.sample_in = making->allowance;
    charge_block(charged, charged->alloc_account, block, size);
    sp_thread_resume(charged);
    return block;
}

void sp_charge_undo(struct sp_thread *thread, const void *block, size_t size) {
    assert(size < SP_PUBLISH_STEP);
    struct sp_account *account = thread->alloc_account;
    uint64_t now = sp_load(&sp_heap_now), objects = 1, space = size;
    if (thread->cells.accounts.mode == SP_ALLOC_COUNT) {
        sp_add(&account->objects, 0 - objects);
        sp_add(&account->space, 0 - space);
        return;
    }
    if (sp_heap_generation(now) != thread->cells.accounts.generation) return;
    sp_entry entry = sp_shadow_take(block, &space);
    if (entry == 0) return; /* it was no sample */
    if (sp_heap_is_sampled()) sp_heap_weigh(space, &objects, &space);
    sp_heap_span_subtract(sp_heap_generation(now), sp_entry_owner(entry), objects,
                          space);
    sp_add(&account->objects, 0 - objects);
    sp_add(&account->space, 0 - space);
    sp_add(&thread->heap.live, 0 - space);
}

/* The thread's account of a path, for a free; NULL if there can be none. */
static struct sp_account *account_of(struct sp_accounts *accounts, uint32_t path) {
    if (path < atomic_load_explicit(&accounts->count, memory_order_relaxed) &&
        atomic_load_explicit(&accounts->accounts.chunks[sp_slab_chunk_of(path)],
                             memory_order_relaxed) != NULL) {
        struct sp_account *account =
            sp_slab_at(&accounts->accounts, path, sizeof *account);
        account->path = path;
        return account;
    }
    return sp_account_slow(accounts, path);
}

void sp_charge_freed(struct sp_thread *thread, uint64_t now, sp_entry entry,
                     uint64_t size) {
    if (sp_heap_age(now, entry) < 0) return; /* of an earlier session */
    uint32_t owner = sp_entry_owner(entry), path = sp_owner_path(owner);
    uint64_t objects = 1;
    if (sp_heap_is_sampled()) sp_heap_weigh(size, &objects, &size);
    sp_heap_span_subtract(sp_heap_generation(now), owner, objects, size);
    struct sp_account *account = NULL;
    if (thread != NULL && thread->cells.accounts.generation == sp_heap_generation(now))
        account = account_of(&thread->cells.accounts, path);
    if (account == NULL) {
        free_stray(now, path, objects, size);
        return;
    }
    sp_account_subtract(thread, account, objects, size);
    publish_if_due(thread, account);
}

void sp_charge_restore(struct sp_thread *thread, uint64_t now, const void *block,
                       sp_entry entry, uint64_t size) {
    if (sp_shadow_put(block, sp_entry_owner(entry), sp_entry_born(entry), size)) return;
    sp_count(&sp_stats.heap_untracked);
    sp_charge_freed(thread, now, entry, size);
}

void sp_charge_free_slow(const void *block) {
    uint64_t now = sp_load(&sp_heap_now), size;
    if (now == 0) return;
    sp_entry entry = sp_shadow_take(block, &size);
    if (entry != 0) sp_charge_freed(sp_thread_self, now, entry, size);
}

/* --- reading ------------------------------------------------------------------ */

typedef void add_function(struct sp_heap_sums *sums, const struct sp_account *account,
                          bool counts);

static void each_account(const struct sp_accounts *accounts, add_function *add,
                         struct sp_heap_sums *sums, uint32_t count) {
    bool counts = accounts->mode == SP_ALLOC_COUNT;
    const struct sp_slab *slab = counts ? &accounts->counts : &accounts->accounts;
    size_t item_size = counts ? SP_ACCOUNT_COUNTS : sizeof(struct sp_account);
    uint32_t have = atomic_load_explicit(&accounts->count, memory_order_acquire);
    if (have < count) count = have;
    for (unsigned chunk = 0; sp_slab_chunk_start(chunk) < count; chunk++) {
        const char *memory =
            atomic_load_explicit(&slab->chunks[chunk], memory_order_acquire);
        if (memory == NULL) continue;
        uint32_t start = sp_slab_chunk_start(chunk), size = sp_slab_chunk_size(chunk);
        uint32_t here = count - start < size ? count - start : size;
        for (uint32_t n = 0; n < here; n++)
            add(&sums[start + n], (const void *)(memory + n * item_size), counts);
    }
}

static uint64_t load_after(const sp_counter *counter) {
    return atomic_load_explicit(counter, memory_order_acquire);
}

/* What a thread has allocated and freed at one moment: nothing was freed while it was
 * read. (A reader that is descheduled in the middle would else take what was allocated
 * and freed meanwhile for something in use.) */
static void add(struct sp_heap_sums *sums, const struct sp_account *account,
                bool counts) {
    if (counts) {
        sums->objects += sp_load(&account->objects);
        sums->space += sp_load(&account->space);
        return;
    }
    uint64_t objects, space, freed_objects, freed_space, peak;
    int attempts = 100;
    do {
        freed_space = load_after(&account->freed_space);
        freed_objects = load_after(&account->freed_objects);
        objects = load_after(&account->objects);
        space = load_after(&account->space);
        peak = load_after(&account->peak);
    } while (sp_load(&account->freed_objects) != freed_objects && --attempts > 0);
    sums->objects += objects;
    sums->space += space;
    sums->freed_objects += freed_objects;
    sums->freed_space += freed_space;
    if ((objects | freed_objects) != 0) sums->users++;
    if ((int64_t)peak > (int64_t)sums->peak) sums->peak = peak;
}

void sp_accounts_add(const struct sp_accounts *accounts, struct sp_heap_sums *sums,
                     uint32_t count) {
    each_account(accounts, add, sums, count);
}

void sp_heap_add_strays(uint32_t generation, struct sp_heap_sums *sums,
                        uint32_t count) {
    if (path_count() < count) count = path_count();
    for (uint32_t path = 0; path < count; path++) {
        const struct sp_heap_shared *shared = shared_of(generation, path);
        uint64_t objects = load_after(&shared->stray_objects);
        sums[path].freed_objects += objects;
        sums[path].freed_space += load_after(&shared->stray_space);
        if (objects != 0) sums[path].users++;
    }
}

uint64_t sp_heap_peak(uint32_t generation, uint32_t path,
                      const struct sp_heap_sums *sums) {
    uint64_t live = sums->space - sums->freed_space;
    if (path >= path_count()) return live;
    sp_counter *shared = &shared_of(generation, path)->peak;
    raise_shared(shared, live);
    /* One thread's own high-water mark is exact; if others took part, it says nothing:
     * they may have freed what it allocated. */
    if (sums->users == 1) raise_shared(shared, sums->peak);
    return sp_load(shared);
}
