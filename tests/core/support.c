/* Test support, compiled into the library that the tests load: an injected clock
 * that is an array, simulated threads, spans on the heap (where a sanitizer sees
 * them), and a host for the collector. Nothing here decides anything. */
#include "../../csrc/core/ages.h"
#include "../../csrc/core/arrow.h"
#include "../../csrc/core/callsite.h"
#include "../../csrc/core/charge.h"
#include "../../csrc/core/collector.h"
#include "../../csrc/core/heap_span.h"
#include "../../csrc/core/native.h"
#include "../../csrc/core/pprof.h"
#include "../../csrc/core/roster.h"
#include "../../csrc/core/span.h"
#include "../../csrc/core/stats.h"
#include "../../csrc/core/suspend.h"
#include "../../csrc/core/suspended.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "memory_support.h"
#include "support.h"

struct entry {
    const char *name;
    uint64_t value;
};

static uint64_t look_up(const struct entry *entries, size_t count, const char *name) {
    for (size_t i = 0; i < count; i++)
        if (strcmp(entries[i].name, name) == 0) return entries[i].value;
    abort();
}
#define LOOK_UP(entries, name) \
    look_up(entries, sizeof(entries) / sizeof((entries)[0]), name)

size_t spt_layout(const char *what) {
    const struct entry entries[] = {
        {"sp_string", sizeof(struct sp_string)},
        {"sp_callsite", sizeof(struct sp_callsite)},
        {"sp_label", sizeof(struct sp_label)},
        {"sp_labels", sizeof(struct sp_labels)},
        {"sp_text", sizeof(struct sp_text)},
        {"sp_series", sizeof(struct sp_series)},
        {"sp_node", sizeof(struct sp_node)},
        {"sp_node.value", offsetof(struct sp_node, value)},
        {"sp_ages", sizeof(struct sp_ages)},
        {"sp_profile", sizeof(struct sp_profile)},
        {"sp_profile.nodes", offsetof(struct sp_profile, nodes)},
        {"sp_feed_record", sizeof(struct sp_feed_record)},
        {"sp_feed_batch.records", offsetof(struct sp_feed_batch, records)},
        {"sp_thread_context", sizeof(struct sp_thread_context)},
        {"ArrowSchema", sizeof(struct ArrowSchema)},
        {"ArrowArray", sizeof(struct ArrowArray)},
        {"metrics", SP_METRIC_COUNT},
        {"cell", sizeof(struct sp_cell)},
    };
    return LOOK_UP(entries, what);
}

int64_t spt_stat(const char *name) {
    const struct entry entries[] = {
#define X(field) {#field, sp_load(&sp_stats.field)},
        SP_STATS(X)
#undef X
    };
    return (int64_t)LOOK_UP(entries, name);
}

void spt_free(void *memory) {
    free(memory);
}

/* So many callsites in one file, one a line. */
void spt_callsites_make(uint32_t count) {
    struct sp_text text = {"many", 4};
    for (uint32_t line = 1; line <= count; line++)
        sp_callsite_intern(text, text, text, line, 0);
}

/* Write down which lines were run, for a process that ends by _exit. */
void spt_note_coverage(void) {
#ifdef SPT_COVERAGE
    extern void __gcov_dump(void);
    __gcov_dump();
#endif
}

size_t spt_series_count(void) {
    return sp_series_count;
}

const struct sp_series *spt_series(size_t index) {
    return &sp_series[index];
}

const char *spt_metric_name(size_t index) {
    return sp_metric_names[index];
}

/* --- the injected clock ---------------------------------------------------- */

#define KEYS 64u
static sp_counter manual_wall, manual_cpu[KEYS], manual_system[KEYS];

static uint64_t read_wall(void *key) {
    (void)key;
    return sp_load(&manual_wall);
}
static uint64_t read_cpu(void *key) {
    return sp_load(&manual_cpu[(uintptr_t)key]);
}
static uint64_t read_system(void *key) {
    return sp_load(&manual_system[(uintptr_t)key]);
}

void spt_clock_use(bool injected) {
    static const struct sp_clock_source source = {read_wall, read_cpu, read_system};
    sp_clock_inject(injected ? &source : NULL);
}

void spt_clock_set_wall(uint64_t wall) {
    sp_store(&manual_wall, wall);
}

void spt_clock_set(unsigned key, uint64_t cpu, uint64_t system) {
    if (key >= KEYS) abort();
    sp_store(&manual_cpu[key], cpu);
    sp_store(&manual_system[key], system);
}

/* The thread's boundaries are quick from now on, as if its clock had just been
 * synchronised, and stood still since; or slow again. */
void spt_clock_set_quick(struct sp_thread *thread, bool quick) {
    struct sp_clock *clock = &thread->clock;
    clock->ticks_base = clock->multiplier = 0;
    clock->ticks_max = quick ? UINT64_MAX : 0;
    clock->base = (struct sp_moment){read_wall(clock->key), read_cpu(clock->key)};
}

/* --- sessions and threads -------------------------------------------------- */

/* Of the sessions that are started from now on. */
static uint64_t max_pending;
void spt_feed_limit(uint64_t limit) {
    max_pending = limit;
}

static struct sp_sampler_config sampler;
void spt_sampler(int kind, double ratio, bool has_seed, uint64_t seed) {
    sampler =
        (struct sp_sampler_config){(enum sp_sampler_kind)kind, ratio, has_seed, seed};
}

static bool publishes;
void spt_publish(bool wanted) {
    publishes = wanted;
}

static struct sp_session_config config = {
    .track_wall = true, .track_cpu = true, .max_nodes = 1000, .max_label_values = 1000};

int spt_start(bool wall, bool cpu, bool allocations, uint32_t max_nodes,
              uint32_t max_label_values) {
    struct sp_session_config wanted = {.track_wall = wall,
                                       .track_cpu = cpu,
                                       .track_allocations = allocations,
                                       .max_nodes = max_nodes,
                                       .max_label_values = max_label_values,
                                       .sampler = sampler,
                                       .max_pending_spans = max_pending,
                                       .publish_thread_context = publishes};
    return (int)sp_start(&wanted, NULL);
}

uint32_t spt_generation(void) {
    return sp_session_running();
}

struct sp_thread *spt_thread_new(unsigned key) {
    return sp_thread_new_detached((void *)(uintptr_t)key, sp_session_running());
}

/* The calling OS thread is the one given from now on. Returns who it was. */
static struct sp_thread *become(struct sp_thread *thread) {
    struct sp_thread *before = sp_thread_self;
    sp_thread_self = thread;
    sp_thread_pause();
    sp_thread_resume(thread);
    return before;
}

/* What the simulated thread finds when it is about to do something with a span. */
struct sp_thread *spt_thread_ready(struct sp_thread *thread) {
    struct sp_thread *mine = become(thread);
    struct sp_thread *ready = sp_thread_current();
    become(mine);
    return ready;
}

struct sp_thread *spt_thread_mine(void) {
    return sp_thread_current();
}

/* --- contexts ---------------------------------------------------------------- */

/* By the threads' keys; NULL: the thread's own. */
static struct sp_context *contexts[KEYS];

static void find_context(struct sp_thread *thread) {
    struct sp_context *context = contexts[(uintptr_t)thread->clock.key];
    if (context != NULL) thread->context = context;
}

/* A copy of the thread's. */
struct sp_context *spt_context_copy(const struct sp_thread *thread) {
    struct sp_context *context = malloc(sizeof *context);
    *context = *thread->context;
    return context;
}
void spt_context_free(struct sp_context *context) {
    free(context);
}

/* The context is the thread's from now on; NULL: its own is. */
void spt_thread_use_context(struct sp_thread *thread, struct sp_context *context) {
    atomic_store_explicit(&sp_thread_find_context, find_context, memory_order_relaxed);
    contexts[(uintptr_t)thread->clock.key] = context;
    thread->context = context != NULL ? context : &thread->own_context;
}

/* The context says that its next span is a root. */
void spt_context_clear(struct sp_context *context) {
    context->current = (struct sp_parent){0, SP_PATH_ROOT, sp_session_running()};
}

/* --- memory ------------------------------------------------------------------ */

int spt_start_heap(uint32_t max_nodes, uint64_t sample_bytes, bool by_span,
                   uint32_t max_closed) {
    struct sp_session_config wanted = {.track_allocations = true,
                                       .track_heap = true,
                                       .max_nodes = max_nodes,
                                       .max_label_values = 1000,
                                       .heap_sample_bytes = sample_bytes,
                                       .heap_by_span = by_span,
                                       .sampler = sampler,
                                       .max_pending_spans = max_pending,
                                       .max_closed_heap_spans = max_closed};
    sp_ages_limit(0);
    return (int)sp_start(&wanted, NULL);
}

/* Every setting that memory has; times are taken as well. */
int spt_start_memory(bool allocations, bool heap, uint32_t max_nodes,
                     uint64_t sample_bytes, bool by_span, uint32_t max_closed,
                     uint64_t heap_interval) {
    struct sp_session_config wanted = {.track_wall = true,
                                       .track_cpu = true,
                                       .track_allocations = allocations,
                                       .track_heap = heap,
                                       .max_nodes = max_nodes,
                                       .max_label_values = 1000,
                                       .heap_sample_bytes = sample_bytes,
                                       .heap_interval = heap_interval,
                                       .heap_by_span = by_span,
                                       .sampler = sampler,
                                       .max_pending_spans = max_pending,
                                       .max_closed_heap_spans = max_closed};
    sp_ages_limit(0);
    return (int)sp_start(&wanted, NULL);
}

/* Blocks are addresses that nobody looks behind. These do as the allocation hooks do,
 * on the thread given; NULL is one that has no state. */
void spt_block_make(struct sp_thread *thread, uint64_t address, uint64_t size) {
    struct sp_thread *mine = become(thread);
    if (!sp_charge_passes(size)) {
        struct sp_making making = sp_charge_make();
        sp_charge_made(&making, (void *)address, size);
    }
    become(mine);
}

/* `count` of them, `step` apart: a loop over the ABI takes its time. */
void spt_block_make_many(struct sp_thread *thread, uint64_t address, uint64_t step,
                         uint64_t count, uint64_t size) {
    for (uint64_t n = 0; n < count; n++)
        spt_block_make(thread, address + n * step, size);
}

/* It was made, but is not given to anybody: as if it had not been. */
void spt_block_undo(struct sp_thread *thread, uint64_t address, uint64_t size) {
    struct sp_thread *mine = become(thread);
    sp_charge_undo(thread, (void *)address, size);
    become(mine);
}

void spt_block_free(struct sp_thread *thread, uint64_t address) {
    struct sp_thread *mine = become(thread);
    sp_charge_free((void *)address);
    become(mine);
}

bool spt_block_may_be_ours(uint64_t address) {
    return sp_shadow_may_hold((void *)address);
}

/* `made` 0: the call fails. */
void spt_block_move(struct sp_thread *thread, uint64_t old, uint64_t made,
                    uint64_t size) {
    struct sp_thread *mine = become(thread);
    struct sp_moving moving;
    sp_charge_move(&moving, (void *)old);
    sp_charge_moved(&moving, (void *)old, (void *)made, size);
    become(mine);
}

/* The call fails, and `other` makes a block in the meantime. */
void spt_block_move_fails(struct sp_thread *thread, uint64_t old, uint64_t size,
                          struct sp_thread *other, uint64_t others) {
    struct sp_thread *mine = become(thread);
    struct sp_moving moving;
    sp_charge_move(&moving, (void *)old);
    struct sp_thread *moves = become(other);
    struct sp_making making = sp_charge_make();
    sp_charge_made(&making, (void *)others, 1);
    become(moves);
    sp_charge_moved(&moving, (void *)old, NULL, size);
    become(mine);
}

struct spt_walk {
    uint64_t now;
    uint64_t objects, space;
    uint32_t path;
};

static void add_if_of_path(void *context, sp_entry entry, uint64_t size) {
    struct spt_walk *walk = context;
    if (sp_heap_age(walk->now, entry) < 0 ||
        sp_owner_path(sp_entry_owner(entry)) != walk->path)
        return;
    walk->objects++;
    walk->space += size;
}

/* What the shadow map says that a path has in use. */
void spt_heap_walk(uint32_t path, struct spt_walk *walk) {
    *walk = (struct spt_walk){sp_load(&sp_heap_now), 0, 0, path};
    sp_shadow_walk(add_if_of_path, walk);
}

struct all_live {
    uint64_t now;
    struct spt_live *paths;
    uint32_t count;
};

static void add_to_its_path(void *context, sp_entry entry, uint64_t size) {
    const struct all_live *all = context;
    uint32_t path = sp_owner_path(sp_entry_owner(entry));
    if (sp_heap_age(all->now, entry) < 0) return;
    if (path >= all->count) abort();
    uint64_t objects = 1;
    if (sp_heap_is_sampled()) sp_heap_weigh(size, &objects, &size);
    all->paths[path].objects += objects;
    all->paths[path].space += size;
}

/* What the map says that each path below `count`, which are all, has in use; in fixed
 * point if sampled. */
void spt_heap_live(struct spt_live *paths, uint32_t count) {
    memset(paths, 0, count * sizeof *paths);
    struct all_live all = {sp_load(&sp_heap_now), paths, count};
    sp_shadow_walk(add_to_its_path, &all);
}

/* Have the thread be in the middle of the map's slowest part for a while. */
void spt_block_churn(struct sp_thread *thread, uint64_t address, uint64_t rounds) {
    for (uint64_t round = 0; round < rounds; round++)
        for (uint64_t n = 0; n < 64; n++) {
            if (round > 0) spt_block_free(NULL, address + 16 * n + 8);
            spt_block_make(thread, address + 16 * n + 8, 1);
        }
}

uint64_t spt_heap_now(void) {
    return sp_load(&sp_heap_now);
}

static void add_owner(void *context, const struct sp_heap_span_view *view) {
    struct spt_owners *owners = context;
    if (owners->count == sizeof owners->view / sizeof owners->view[0]) abort();
    owners->view[owners->count++] = *view;
}

void spt_heap_spans(struct spt_owners *owners) {
    owners->count = 0;
    sp_heap_spans_each(add_owner, owners);
}

/* As the allocation hooks do it where nothing but counts is wanted. */
void spt_thread_allocate(struct sp_thread *thread, uint64_t count, uint64_t bytes) {
    if (thread->alloc_account == NULL) return;
    sp_add(&thread->alloc_account->objects, count);
    sp_add(&thread->alloc_account->space, bytes);
}

uint32_t spt_thread_cells(const struct sp_thread *thread) {
    return atomic_load_explicit(&thread->cells.count, memory_order_acquire);
}

/* --- spans ------------------------------------------------------------------ */

struct sp_span *spt_span_new(void) {
    return calloc(1, sizeof(struct sp_span));
}
/* One after the other. */
void spt_spans_make(struct sp_thread *thread, sp_key key, uint64_t count) {
    for (uint64_t n = 0; n < count; n++) {
        struct sp_span span = {0};
        sp_span_begin(thread, &span, key);
        sp_span_exit(thread, &span);
    }
}
/* As one callsite opens them, which keeps its cell. */
struct sp_site *spt_site_new(uint32_t callsite) {
    struct sp_site *site = calloc(1, sizeof *site);
    site->callsite = callsite;
    return site;
}
void spt_site_free(struct sp_site *site) {
    free(site);
}
void spt_span_set_owner(struct sp_span *span, const void *owner) {
    span->owner = (void *)(uintptr_t)owner;
}
void spt_span_free(struct sp_span *span) {
    free(span);
}
int spt_span_state(const struct sp_span *span) {
    return (int)sp_span_state(span);
}
uint64_t spt_span_id(const struct sp_span *span) {
    return span->id;
}
bool spt_span_is_sampled_out(const struct sp_span *span) {
    return sp_span_is_sampled_out(span);
}
uint32_t spt_span_path(const struct sp_span *span) {
    return span->path;
}
bool spt_span_skips(struct sp_thread *thread) {
    return sp_span_is_unheard(thread) && sp_span_skips(thread);
}
bool spt_span_is_suspended(const struct sp_span *span) {
    return span->suspended;
}
/* Of a span on a stack or in a group. */
struct sp_span *spt_span_below(const struct sp_span *span) {
    return span->below;
}
/* Put them into a group by hand: `above` on top of `below`. */
void spt_span_link(struct sp_span *above, struct sp_span *below) {
    above->below = below;
}
/* What sp_suspended_each visits. */
static uint64_t visited;
static void count_visit(void *context, struct sp_span *span) {
    (void)context;
    (void)span;
    visited++;
}
uint64_t spt_suspended_visit(void) {
    visited = 0;
    sp_suspended_each(count_visit, NULL);
    return visited;
}
/* The next key whose hash has these low bits: as the table has it, those of its part
 * and then those of its place there. */
uint64_t spt_suspended_key_after(uint64_t key, uint64_t mask, uint64_t bits) {
    do key += 16;
    while ((sp_mix(key >> 4) & mask) != bits);
    return key;
}
static const struct sp_span *not_retained;
static bool retain_but_one(struct sp_span *span) {
    return span != not_retained;
}
/* sp_suspended_take while another thread is about to abandon that span. */
struct sp_span *spt_suspended_take_but(const void *key, const struct sp_span *span) {
    not_retained = span;
    return sp_suspended_take(key, retain_but_one);
}
/* The host's, of an entered span. */
void spt_span_set_thrown_into(struct sp_span *span, const void *frame) {
    span->thrown_into = frame;
}
const void *spt_span_thrown_into(const struct sp_span *span) {
    return span->thrown_into;
}

/* By the thread given, or if that is NULL by one that has no state. */
void spt_native_end(struct sp_thread *thread, struct sp_native *native) {
    struct sp_thread *mine = become(thread);
    sp_native_end(sp_thread_current(), native);
    become(mine);
}

static pthread_mutex_t released_lock = PTHREAD_MUTEX_INITIALIZER;
static struct sp_span *released[4096];
static unsigned released_count;

static bool keep_released(struct sp_thread *thread, struct sp_span *span,
                          void (*take_off)(struct sp_thread *, struct sp_span *)) {
    take_off(thread, span);
    pthread_mutex_lock(&released_lock);
    if (released_count == sizeof released / sizeof released[0]) abort();
    released[released_count++] = span;
    pthread_mutex_unlock(&released_lock);
    return true;
}

/* The next span that the core has let go of, or NULL. */
struct sp_span *spt_take_released(void) {
    sp_span_release = keep_released;
    pthread_mutex_lock(&released_lock);
    struct sp_span *span = released_count > 0 ? released[--released_count] : NULL;
    pthread_mutex_unlock(&released_lock);
    return span;
}

/* --- the real clocks -------------------------------------------------------- */

struct spt_readings {
    uint64_t backwards;  /* readings before the one before */
    uint64_t wall_error; /* most that a reading lay outside CLOCK_MONOTONIC's */
    uint64_t cpu_error;  /* the same for CLOCK_THREAD_CPUTIME_ID, without the edges */
    uint64_t cpu_elapsed, cpu_measured; /* whole trial: the kernel's, the clock's */
};

static uint64_t gettime(clockid_t id) {
    struct timespec t;
    clock_gettime(id, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

uint64_t spt_thread_cpu(void) {
    return gettime(CLOCK_THREAD_CPUTIME_ID);
}

static uint64_t outside(uint64_t value, uint64_t low, uint64_t high) {
    return value < low ? low - value : value > high ? value - high : 0;
}

void spt_clock_trial(uint64_t count, bool want_cpu, struct spt_readings *readings) {
    struct sp_clock clock = {.key = NULL};
    struct sp_moment last, now;
    memset(readings, 0, sizeof *readings);
    sp_clock_setup();
    sp_clock_attach(&clock, want_cpu, &last);
    uint64_t cpu_start = spt_thread_cpu(), measured_start = last.cpu;
    for (uint64_t i = 0; i < count; i++) {
        /* Most readings in a row, as spans take them; some beside the kernel's. */
        bool compare = i % 64 == 0;
        uint64_t wall_low = compare ? gettime(CLOCK_MONOTONIC) : 0;
        uint64_t cpu_low = compare && want_cpu ? spt_thread_cpu() : 0;
        sp_clock_now(&clock, &last, &now);
        if (now.wall < last.wall || now.cpu < last.cpu) readings->backwards++;
        if (compare) {
            uint64_t cpu_high = want_cpu ? spt_thread_cpu() : 0;
            uint64_t wall_high = gettime(CLOCK_MONOTONIC);
            uint64_t error = outside(now.wall, wall_low, wall_high);
            if (error > readings->wall_error) readings->wall_error = error;
            error = want_cpu ? outside(now.cpu, cpu_low, cpu_high) : 0;
            if (error > readings->cpu_error) readings->cpu_error = error;
        }
        last = now;
    }
    readings->cpu_measured = last.cpu - measured_start;
    readings->cpu_elapsed = spt_thread_cpu() - cpu_start;
}

/* Use that much CPU; returns what it came to, in ns. */
uint64_t spt_burn(uint64_t nanos) {
    uint64_t start = spt_thread_cpu(), now;
    do now = spt_thread_cpu();
    while (now - start < nanos);
    return now - start;
}

/* Whether a descheduling is noticed: sleeps, then asks the clock's own marker. */
bool spt_rseq_is_live(void) {
    struct sp_clock clock = {.key = NULL};
    struct sp_moment now;
    sp_clock_setup();
    sp_clock_attach(&clock, true, &now);
    if (!clock.has_rseq) return false;
    /* Switched out in the middle of it: once more. */
    while (*clock.marker != clock.armed) sp_clock_attach(&clock, true, &now);
    struct timespec nap = {0, 1000000};
    nanosleep(&nap, NULL);
    return *clock.marker != clock.armed;
}

/* --- the roster -------------------------------------------------------------- */

/* Updates of the last round, kept. */
static struct {
    struct sp_span_update *items;
    uint64_t *scopes;
    size_t count, scope_count;
} kept;

static void keep(void *context, const struct sp_span_updates *updates) {
    (void)context;
    kept.items =
        realloc(kept.items, (kept.count + updates->count) * sizeof *kept.items);
    for (uint32_t n = 0; n < updates->count; n++) {
        struct sp_span_update *item = &kept.items[kept.count++];
        *item = updates->items[n];
        kept.scopes = realloc(kept.scopes, (kept.scope_count + item->scope_count + 1) *
                                               sizeof *kept.scopes);
        memcpy(kept.scopes + kept.scope_count, updates->scopes + item->scope_start,
               item->scope_count * sizeof *kept.scopes);
        item->scope_start = (uint32_t)kept.scope_count;
        kept.scope_count += item->scope_count;
    }
}

size_t spt_roster_round(struct sp_roster *roster, int kind) {
    kept.count = kept.scope_count = 0;
    struct sp_round round = {.over = NULL};
    sp_round_read(&round, roster, kind == SP_ROUND_LAST);
    sp_roster_tell(roster, &round, (enum sp_round_kind)kind, keep, NULL);
    while (round.over != NULL) {
        struct sp_feed_batch *next = round.over->next;
        sp_feed_batch_free(round.over);
        round.over = next;
    }
    sp_round_free(&round);
    return kept.count;
}

const struct sp_span_update *spt_roster_updates(void) {
    return kept.items;
}
const uint64_t *spt_roster_scopes(void) {
    return kept.scopes;
}

/* --- a host for the collector ------------------------------------------------ */

enum spt_deed { SPT_NOTHING, SPT_HANG, SPT_FLUSH, SPT_STOP, SPT_SNAPSHOT, SPT_SPAN };

struct spt_host {
    enum spt_deed deed; /* what it does in each report */
    sp_key key;
    pthread_mutex_t mutex; /* guards all below */
    pthread_cond_t changed;
    bool let_go;
    uint64_t begun, reports, lasts, after_last, ended, concurrent, inside;
    uint64_t unblocked_signals, without_profile, deed_result;
    uint64_t spans, busy;                  /* that are over; what they used */
    uint64_t created, destroyed, disorder; /* spans told of one by one */
    uint64_t told_busy;
    struct sp_profile *sum;
};

struct spt_host *spt_host_new(enum spt_deed deed, sp_key key) {
    struct spt_host *host = calloc(1, sizeof *host);
    host->deed = deed;
    host->key = key;
    pthread_mutex_init(&host->mutex, NULL);
    pthread_cond_init(&host->changed, NULL);
    host->sum = sp_profile_new(0);
    return host;
}

static void on_begin(void *context) {
    struct spt_host *host = context;
    sigset_t blocked;
    pthread_sigmask(SIG_SETMASK, NULL, &blocked);
    pthread_mutex_lock(&host->mutex);
    host->begun++;
    for (int signal = 1; signal < 32; signal++)
        if (signal != SIGKILL && signal != SIGSTOP && !sigismember(&blocked, signal))
            host->unblocked_signals++;
    pthread_mutex_unlock(&host->mutex);
}

static uint64_t do_deed(struct spt_host *host) {
    struct sp_profile *profile = NULL;
    uint64_t result = 0;
    switch (host->deed) {
    case SPT_NOTHING:
        break;
    case SPT_HANG:
        pthread_mutex_lock(&host->mutex);
        while (!host->let_go) pthread_cond_wait(&host->changed, &host->mutex);
        pthread_mutex_unlock(&host->mutex);
        break;
    case SPT_FLUSH:
        result = sp_flush(-1);
        break;
    case SPT_STOP:
        result = sp_stop(-1, &profile);
        sp_profile_free(profile);
        break;
    case SPT_SNAPSHOT:
        profile = sp_snapshot();
        result = profile != NULL;
        sp_profile_free(profile);
        break;
    case SPT_SPAN: {
        struct sp_thread *thread = sp_thread_current();
        result = thread == NULL; /* rule 6.7: nothing of the reporter's is recorded */
        break;
    }
    }
    return result;
}

static void on_report(void *context, struct sp_profile *profile, bool last) {
    struct spt_host *host = context;
    pthread_mutex_lock(&host->mutex);
    host->reports++;
    if (host->lasts > 0) host->after_last++;
    if (last) host->lasts++;
    if (host->inside++ > 0) host->concurrent++;
    if (profile == NULL) {
        host->without_profile++;
    } else {
        struct sp_profile *sum = sp_profile_merge(host->sum, profile, 1);
        sp_profile_free(sum != NULL ? host->sum : NULL); /* there is memory or not */
        sp_profile_free(profile);
        if (sum != NULL) host->sum = sum;
    }
    pthread_mutex_unlock(&host->mutex);
    uint64_t result = do_deed(host);
    pthread_mutex_lock(&host->mutex);
    host->deed_result += result;
    host->inside--;
    pthread_mutex_unlock(&host->mutex);
}

static void on_end(void *context) {
    struct spt_host *host = context;
    pthread_mutex_lock(&host->mutex);
    host->ended++;
    pthread_mutex_unlock(&host->mutex);
}

static void on_spans(void *context, struct sp_feed_batch *batch) {
    struct spt_host *host = context;
    pthread_mutex_lock(&host->mutex);
    for (size_t n = 0; n < batch->count; n++) host->busy += batch->records[n].wall_busy;
    host->spans += batch->count;
    pthread_mutex_unlock(&host->mutex);
    sp_feed_batch_free(batch);
}

static void on_updates(void *context, const struct sp_span_updates *updates) {
    struct spt_host *host = context;
    pthread_mutex_lock(&host->mutex);
    for (uint32_t n = 0; n < updates->count; n++) {
        const struct sp_span_update *update = &updates->items[n];
        if (update->what & SP_TOLD_CREATED) host->created++;
        if (update->what & SP_TOLD_VALUES) host->told_busy += update->wall_busy;
        if (update->what & SP_TOLD_DESTROYED) host->destroyed++;
        if (host->destroyed > host->created) host->disorder++;
    }
    pthread_mutex_unlock(&host->mutex);
}

static struct sp_host host_of(struct spt_host *host, uint64_t interval,
                              bool want_profile) {
    return (struct sp_host){.context = host,
                            .begin = on_begin,
                            .report = on_report,
                            .end = on_end,
                            .want_profile = want_profile,
                            .interval = interval};
}

int spt_host_start(struct spt_host *host, uint64_t interval, bool want_profile) {
    struct sp_host wanted = host_of(host, interval, want_profile);
    return (int)sp_start(&config, &wanted);
}

/* With a feed of spans, if spt_feed_limit gave it room. */
int spt_host_start_fed(struct spt_host *host, uint64_t interval, bool want_spans,
                       bool want_updates) {
    struct sp_session_config wanted = config;
    struct sp_host listens = host_of(host, interval, true);
    wanted.max_pending_spans = max_pending;
    if (want_spans) listens.spans = on_spans;
    if (want_updates) listens.updates = on_updates;
    return (int)sp_start(&wanted, &listens);
}

/* In a child: the parent's session goes on. */
int spt_host_go_on(struct spt_host *host) {
    struct sp_host wanted = host_of(host, 0, true);
    return (int)sp_go_on_in_child(&config, &wanted);
}

void spt_host_release(struct spt_host *host) {
    pthread_mutex_lock(&host->mutex);
    host->let_go = true;
    pthread_cond_broadcast(&host->changed);
    pthread_mutex_unlock(&host->mutex);
}

uint64_t spt_host_seen(struct spt_host *host, const char *what) {
    pthread_mutex_lock(&host->mutex);
    const struct entry entries[] = {
        {"begun", host->begun},
        {"reports", host->reports},
        {"lasts", host->lasts},
        {"after_last", host->after_last},
        {"ended", host->ended},
        {"concurrent", host->concurrent},
        {"unblocked_signals", host->unblocked_signals},
        {"without_profile", host->without_profile},
        {"deed_result", host->deed_result},
        {"spans", host->spans},
        {"busy", host->busy},
        {"created", host->created},
        {"destroyed", host->destroyed},
        {"disorder", host->disorder},
        {"told_busy", host->told_busy},
    };
    pthread_mutex_unlock(&host->mutex);
    return LOOK_UP(entries, what);
}

/* The sum of all profiles reported so far; the caller's to free. */
struct sp_profile *spt_host_sum(struct spt_host *host) {
    pthread_mutex_lock(&host->mutex);
    struct sp_profile *sum = sp_profile_copy(host->sum);
    pthread_mutex_unlock(&host->mutex);
    return sum;
}
