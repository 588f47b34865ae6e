/* Stress for the core: threads that open spans as fast as they can, threads that come
 * and go, exits from the wrong thread, one span that many enter, groups of spans that
 * some suspend and others resume, a collector that reads all the time, and sessions
 * that stop and start under all of them. For ThreadSanitizer, and useful without it: at
 * the end sums are compared.
 *
 *     threads [SECONDS]
 *
 * Exit status 0 if every check held. */
#include "../../csrc/core/callsite.h"
#include "../../csrc/core/charge.h"
#include "../../csrc/core/collector.h"
#include "../../csrc/core/span.h"
#include "../../csrc/core/stats.h"
#include "../../csrc/core/suspend.h"
#include "../../csrc/core/suspended.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define WORKERS 4
#define DEPTH 12
#define NAMES 16

static const struct sp_session_config config = {.track_wall = true,
                                                .track_cpu = true,
                                                .track_allocations = true,
                                                .track_heap = true,
                                                .max_pending_spans = 100000,
                                                .heap_by_span = true,
                                                .max_closed_heap_spans = 100,
                                                .max_nodes = 300,
                                                .max_label_values = 10,
                                                .publish_thread_context = true};
static _Atomic bool over;
static _Atomic int failures;
static sp_key names[NAMES];

#define CHECK(condition)                                                         \
    do {                                                                         \
        if (!(condition)) {                                                      \
            fprintf(stderr, "threads.c:%d: not so: %s\n", __LINE__, #condition); \
            atomic_fetch_add(&failures, 1);                                      \
        }                                                                        \
    } while (0)

static bool is_over(void) {
    return atomic_load_explicit(&over, memory_order_relaxed);
}

static uint32_t random_number(uint64_t *state) {
    return (uint32_t)sp_mix(*state += 0x9e3779b97f4a7c15u);
}

static void nap(long nanos) {
    struct timespec t = {0, nanos};
    nanosleep(&t, NULL);
}

/* --- blocks that threads make, and free for each other ------------------------ */

/* Slot n is the block at one address: nobody looks behind it. Whoever makes or frees it
 * owns the slot meanwhile, as an allocator's caller does. */
#define SLOTS 2000
enum slot { EMPTY, BUSY, MADE };
static _Atomic int slots[SLOTS];

static void *block_of(uint32_t slot) {
    /* Over several leaves of the map; every eighth is of 8 bytes' alignment. */
    uint64_t address = (uint64_t)slot * 999984 + 0x7e0000000000;
    return (void *)(uintptr_t)(slot % 8 == 0 ? address + 8 : address);
}

static bool take_slot(uint32_t slot, int state) {
    return atomic_compare_exchange_strong(&slots[slot], &state, BUSY);
}

static void free_slot(uint32_t slot) {
    if (!take_slot(slot, MADE)) return;
    sp_charge_free(block_of(slot));
    atomic_store(&slots[slot], EMPTY);
}

static void make_slot(uint32_t slot, uint32_t size) {
    if (sp_charge_passes(size) || !take_slot(slot, EMPTY)) return;
    struct sp_making making = sp_charge_make();
    sp_charge_made(&making, block_of(slot), size);
    atomic_store(&slots[slot], MADE);
}

static void use_blocks(uint64_t *seed) {
    for (int i = 0; i < 4; i++) {
        uint32_t choice = random_number(seed);
        if (choice % 2)
            make_slot(choice / 2 % SLOTS, choice % 7 ? choice >> 20 : 1u << 25);
        else
            free_slot(choice / 2 % SLOTS);
    }
}

/* --- spans nested at random, with counts to compare -------------------------- */

struct work {
    uint64_t seed;
    uint64_t begun; /* spans that were recorded */
    uint64_t misnested;
};

/* One tree of spans, entered and left within one session or across several. The exits
 * are as the binding does them: by the thread's state, session or not. */
static void one_tree(struct work *work) {
    struct sp_span spans[DEPTH];
    unsigned depth = 0;
    memset(spans, 0, sizeof spans);
    unsigned steps = 10 + random_number(&work->seed) % 60;
    while (steps-- > 0) {
        uint32_t choice = random_number(&work->seed);
        use_blocks(&work->seed);
        if (depth < DEPTH && choice % 3 != 0) {
            struct sp_thread *thread = sp_thread_current();
            if (thread == NULL) continue;
            sp_span_begin(thread, &spans[depth++], names[choice / 3 % NAMES]);
            work->begun++;
        } else if (depth > 0) {
            /* Now and then the one below the innermost. */
            if (depth > 1 && choice % 64 == 0) {
                sp_span_exit(sp_thread_self, &spans[depth - 2]);
                spans[depth - 2].id = 0;
                struct sp_span *last = &spans[depth - 1];
                sp_span_exit(sp_thread_self, last);
                depth -= 2;
                work->misnested++;
            } else {
                sp_span_exit(sp_thread_self, &spans[--depth]);
            }
        }
    }
    while (depth > 0) sp_span_exit(sp_thread_self, &spans[--depth]);
}

static void *worker(void *argument) {
    struct work *work = argument;
    while (!is_over()) one_tree(work);
    return NULL;
}

/* Has no state: the core has never seen it. */
static void *stranger(void *argument) {
    struct work *work = argument;
    while (!is_over()) {
        for (int i = 0; i < 50; i++) free_slot(random_number(&work->seed) % SLOTS);
        nap(1000);
    }
    return NULL;
}

/* --- spans that one thread suspends and another resumes -------------------------- */

/* As a coroutine would have it. It is whose that has entered its spans, or has taken
 * them out of the table: nothing but the table hands it on. */
#define GROUP 4
struct task {
    struct sp_span spans[GROUP]; /* the innermost last */
    unsigned count;
    bool opens; /* some of them were opened, and must be closed by us */
    struct sp_context context;
    struct task *next;
};

/* Those that open spans, until the end: one whose group is abandoned by a thread that
 * uses its key is nobody's. */
static _Atomic(struct task *) openers;

/* Few keys, so that they are met with by others; now and then two threads put a group
 * under one at a time, and the first is abandoned. */
#define KEYS 16
static char keys[KEYS];

static void end_task(struct task *task) {
    struct sp_thread *thread = sp_thread_self;
    while (task->count > 0) {
        struct sp_span *span = &task->spans[--task->count];
        sp_span_exit(thread, span);
        if (span->opened) sp_span_close(thread, span);
    }
    if (thread != NULL) thread->context = &thread->own_context;
    if (!task->opens) free(task);
}

static struct task *new_task(struct sp_thread *thread, struct work *work) {
    struct task *task = calloc(1, sizeof *task);
    task->context = *thread->context;
    task->opens = random_number(&work->seed) % 8 == 0;
    if (task->opens) {
        task->next = atomic_load(&openers);
        while (!atomic_compare_exchange_weak(&openers, &task->next, task)) continue;
    }
    unsigned count = 1 + random_number(&work->seed) % GROUP;
    while (task->count < count && (thread = sp_thread_current()) != NULL) {
        struct sp_span *span = &task->spans[task->count++];
        uint32_t choice = random_number(&work->seed);
        span->owner = task;
        thread->context = &task->context;
        work->begun++;
        if (!task->opens || choice % 2 == 0) {
            sp_span_begin(thread, span, names[choice / 8 % NAMES]);
            continue;
        }
        sp_span_open(thread, span, names[choice / 8 % NAMES], NULL);
        sp_span_enter(thread, span);
    }
    return task;
}

/* Whether all of its spans are at the top of the thread's stack: no session has ended
 * meanwhile. */
static bool runs(const struct sp_thread *thread, const struct task *task) {
    const struct sp_span *span = thread->top;
    for (unsigned n = task->count; n-- > 0; span = span->below)
        if (span != &task->spans[n]) return false;
    return task->count > 0;
}

static void abandon_task(struct sp_thread *thread, struct sp_span *top) {
    struct task *task = top->owner;
    for (struct sp_span *s = top, *below; s != NULL; s = below) {
        below = s->below;
        sp_span_abandon(thread, s);
        if (s->opened) sp_span_close(thread, s);
    }
    if (!task->opens) free(task);
}

/* Take up what is under some key, or begin it, and put it somewhere. */
static void one_step(struct work *work) {
    uint32_t choice = random_number(&work->seed);
    struct sp_thread *thread = sp_thread_current();
    if (thread == NULL) return;
    struct task *task;
    struct sp_span *top = sp_suspended_take(&keys[choice % KEYS], NULL);
    if (top == NULL) {
        task = new_task(thread, work);
    } else if (choice / KEYS % 16 == 0) {
        abandon_task(thread, top);
        return;
    } else {
        task = top->owner;
        thread->context = &task->context;
        sp_span_resume(thread, top);
    }
    use_blocks(&work->seed);
    if (choice / KEYS % 4 == 0) one_tree(work);
    thread = sp_thread_current();
    choice = random_number(&work->seed);
    if (thread == NULL || !runs(thread, task) || choice % 8 == 0) {
        end_task(task);
        return;
    }
    thread->context = &task->context;
    sp_span_suspend(thread, &task->spans[0], &keys[choice / 8 % KEYS]);
    thread->context = &thread->own_context;
}

static void *suspender(void *argument) {
    struct work *work = argument;
    while (!is_over()) {
        one_step(work);
        if (sp_thread_current() == NULL) nap(1000);
    }
    return NULL;
}

/* What nobody has resumed; the threads are over. */
static void abandon_the_rest(void) {
    for (unsigned n = 0; n < KEYS; n++) {
        struct sp_span *top = sp_suspended_take(&keys[n], NULL);
        if (top != NULL) abandon_task(sp_thread_current(), top);
    }
    CHECK(sp_suspended_count() == 0);
    struct task *task = atomic_exchange(&openers, NULL);
    while (task != NULL) {
        struct task *next = task->next;
        for (unsigned n = 0; n < GROUP; n++)
            if (task->spans[n].opened)
                sp_span_close(sp_thread_current(), &task->spans[n]);
        free(task);
        task = next;
    }
}

/* Lives for a few spans only; its state goes to the next one. */
static void *mayfly(void *argument) {
    struct work *work = argument;
    for (int i = 0; i < 5; i++) one_tree(work);
    for (int i = 0; i < 5; i++) one_step(work);
    /* Dies with a span entered, which is abandoned. */
    static struct sp_span left[WORKERS];
    struct sp_thread *thread = sp_thread_current();
    if (thread != NULL) {
        struct sp_span *span = &left[work->seed % WORKERS];
        span = memset(span, 0, sizeof *span);
        sp_span_begin(thread, span, names[0]);
        work->begun++;
    }
    return NULL;
}

static void *mayflies(void *argument) {
    struct work *work = argument;
    while (!is_over()) {
        pthread_t thread;
        CHECK(pthread_create(&thread, NULL, mayfly, work) == 0);
        pthread_join(thread, NULL);
    }
    return NULL;
}

/* --- exits from the wrong thread, and one span for many ----------------------- */

static pthread_mutex_t hand_lock = PTHREAD_MUTEX_INITIALIZER;
static struct sp_span *handed; /* entered by one thread, to be exited by another */
static _Atomic uint64_t let_go;

static bool on_release(struct sp_thread *thread, struct sp_span *span,
                       void (*take_off)(struct sp_thread *, struct sp_span *)) {
    take_off(thread, span);
    atomic_fetch_add(&let_go, 1);
    return true;
}

static void *giver(void *argument) {
    struct work *work = argument;
    while (!is_over()) {
        /* Kept for ever: another thread may look at it until the program ends. */
        struct sp_span *span = calloc(1, sizeof *span);
        struct sp_thread *thread = sp_thread_current();
        if (thread == NULL) {
            free(span);
            nap(1000);
            continue;
        }
        sp_span_begin(thread, span, names[1]);
        work->begun++;
        pthread_mutex_lock(&hand_lock);
        handed = span;
        pthread_mutex_unlock(&hand_lock);
        for (int i = 0; i < 50; i++) one_tree(work);
        nap(1000);
    }
    return NULL;
}

static void *taker(void *argument) {
    struct work *work = argument;
    while (!is_over()) {
        pthread_mutex_lock(&hand_lock);
        struct sp_span *span = handed;
        handed = NULL;
        pthread_mutex_unlock(&hand_lock);
        if (span != NULL && !sp_span_exit(sp_thread_current(), span)) work->misnested++;
        nap(1000);
    }
    return NULL;
}

/* The host serialises what is done to one span, as a lock of its own does here. */
static pthread_mutex_t shared_lock = PTHREAD_MUTEX_INITIALIZER;
static struct sp_span shared;

static void *sharer(void *argument) {
    struct work *work = argument;
    while (!is_over()) {
        pthread_mutex_lock(&shared_lock);
        struct sp_thread *thread = sp_thread_current();
        if (thread != NULL && shared.generation != sp_session_running()) {
            if (sp_span_state(&shared) == SP_SPAN_OPEN) sp_span_close(thread, &shared);
            if (sp_span_state(&shared) == SP_SPAN_NONE) {
                sp_span_open(thread, &shared, names[2], NULL);
                work->begun++;
            }
        }
        thread = sp_thread_current();
        bool mine = thread != NULL && sp_span_state(&shared) == SP_SPAN_OPEN;
        if (mine) sp_span_enter(thread, &shared);
        if (mine) sp_span_exit(thread, &shared);
        pthread_mutex_unlock(&shared_lock);
        nap(500);
    }
    return NULL;
}

/* --- names, while others make them as well ------------------------------------- */

static void *namer(void *argument) {
    struct work *work = argument;
    while (!is_over()) {
        char text[32];
        int length =
            snprintf(text, sizeof text, "n%u", random_number(&work->seed) % 500);
        struct sp_text name = {text, (size_t)length}, key = {"key", 3};
        uint32_t callsite = sp_callsite_intern(name, key, key, 1, 0);
        CHECK(memcmp(sp_callsite_get(callsite)->name->bytes, text, name.length) == 0);
        uint32_t labels = sp_labels_intern(&key, &name, 1, 10);
        CHECK(sp_labels_get(labels)->count == 1);
        struct sp_thread *thread = sp_thread_current();
        if (thread != NULL) {
            struct sp_span span = {0};
            sp_span_begin(thread, &span, sp_key_make(callsite, labels));
            work->begun++;
            sp_span_exit(sp_thread_self, &span);
        }
        nap(1000);
    }
    return NULL;
}

/* --- reading --------------------------------------------------------------------- */

static int64_t total(const struct sp_profile *profile, unsigned metrics) {
    int64_t sum = 0;
    for (uint32_t n = 0; n < profile->count; n++)
        for (int i = 0; i < SP_METRIC_COUNT; i++)
            if (metrics & SP_BIT(i)) sum += profile->nodes[n].value[i];
    return sum;
}

static void check_order(const struct sp_profile *profile) {
    for (uint32_t n = 0; n < profile->count; n++) {
        CHECK(profile->nodes[n].parent < (int32_t)n);
        for (int i = 0; i < SP_METRIC_COUNT; i++)
            CHECK(profile->nodes[n].value[i] >= 0);
    }
}

/* Reports come from the reporter thread; this reads beside it. */
static void *reader(void *argument) {
    (void)argument;
    struct sp_profile *earlier = NULL;
    while (!is_over()) {
        struct sp_profile *now = sp_snapshot();
        if (now == NULL) {
            nap(1000);
            continue;
        }
        check_order(now);
        if (earlier != NULL && earlier->start_unix == now->start_unix) {
            /* Of one session: no value has fallen. */
            struct sp_profile *between = sp_profile_merge(now, earlier, -1);
            for (uint32_t n = 0; n < between->count; n++)
                for (int i = 0; i < SP_METRIC_SUMS; i++)
                    CHECK(between->nodes[n].value[i] >= 0);
            sp_profile_free(between);
        }
        sp_profile_free(earlier);
        earlier = now;
    }
    sp_profile_free(earlier);
    return NULL;
}

static struct sp_profile *reported; /* by the reporter thread, read after the stop */

static void on_report(void *context, struct sp_profile *profile, bool last) {
    (void)context;
    (void)last;
    if (profile == NULL)
        return; /* a stop came between: the values come with the last */
    check_order(profile);
    struct sp_profile *sum = sp_profile_merge(reported, profile, 1);
    sp_profile_free(reported);
    sp_profile_free(profile);
    reported = sum;
}

static struct {
    uint64_t spans, busy, allocated;
} told; /* by the feed of spans; the same */

static void on_spans(void *context, struct sp_feed_batch *batch) {
    (void)context;
    for (size_t n = 0; n < batch->count; n++) {
        const struct sp_feed_record *record = &batch->records[n];
        CHECK(record->id != 0 && record->start <= record->end);
        told.busy += record->wall_busy;
        told.allocated += record->alloc_objects;
    }
    told.spans += batch->count;
    sp_feed_batch_free(batch);
}

static struct {
    uint64_t created, destroyed, busy, idle, cpu, allocated;
} updated; /* by the roster; the same */

static void on_updates(void *context, const struct sp_span_updates *updates) {
    (void)context;
    for (uint32_t n = 0; n < updates->count; n++) {
        const struct sp_span_update *update = &updates->items[n];
        CHECK(update->id != 0 && update->what != 0);
        if (update->what & SP_TOLD_CREATED) {
            CHECK(updates->scopes[update->scope_start] == update->id);
            updated.created++;
        }
        if (update->what & SP_TOLD_VALUES) {
            updated.busy += update->wall_busy;
            updated.idle += update->wall_idle;
            updated.cpu += update->cpu_user + update->cpu_system;
            updated.allocated += update->alloc_objects;
        }
        if (update->what & SP_TOLD_DESTROYED) updated.destroyed++;
    }
}

static void ignore_report(void *context, struct sp_profile *profile, bool last) {
    (void)context;
    (void)profile;
    (void)last;
}

static void one_session(long nanos, uint64_t *calls) {
    struct sp_host host = {.report = on_report,
                           .spans = on_spans,
                           .updates = on_updates,
                           .want_profile = true,
                           .interval = 2 * 1000 * 1000};
    reported = sp_profile_new(0);
    CHECK(sp_start(&config, &host) == SP_STARTED);
    nap(nanos);
    CHECK(sp_flush(-1));
    nap(nanos);
    struct sp_profile *final;
    CHECK(sp_stop(-1, &final));
    check_order(final);
    /* What was reported bit by bit is what the session came to. (A peak that a thread
     * tells of late may rise in a node that is in no report any more.) */
    for (int i = 0; i < SP_INUSE_PEAK_SPACE; i++)
        CHECK(total(reported, SP_BIT(i)) == total(final, SP_BIT(i)));
    *calls += (uint64_t)total(final, SP_BIT(SP_CALLS));
    sp_profile_free(final);
    sp_profile_free(reported);
}

/* --- the program --------------------------------------------------------------------
 */

static void run_threads(double seconds, bool restart) {
    struct {
        void *(*run)(void *);
    } kinds[] = {{worker},    {worker},    {mayflies}, {giver},  {taker},
                 {sharer},    {sharer},    {namer},    {reader}, {stranger},
                 {suspender}, {suspender}, {suspender}};
    enum { COUNT = sizeof kinds / sizeof kinds[0] };
    pthread_t threads[COUNT];
    struct work work[COUNT];
    memset(work, 0, sizeof work);
    atomic_store(&over, false);
    uint64_t calls = 0, sessions = 0;
    uint64_t misnested = sp_load(&sp_stats.misnested);
    uint64_t dropped = sp_load(&sp_stats.spans_dropped);

    struct sp_profile *final = NULL;
    struct sp_host feeder = {.report = ignore_report,
                             .spans = on_spans,
                             .updates = on_updates,
                             .interval = 3 * 1000 * 1000};
    memset(&told, 0, sizeof told);
    memset(&updated, 0, sizeof updated);
    if (!restart) CHECK(sp_start(&config, &feeder) == SP_STARTED);
    for (size_t i = 0; i < COUNT; i++) {
        work[i].seed = (i + 1) * 7919u;
        CHECK(pthread_create(&threads[i], NULL, kinds[i].run, &work[i]) == 0);
    }
    struct timespec start, now;
    clock_gettime(CLOCK_MONOTONIC, &start);
    do {
        if (restart)
            one_session(1000 * 1000 * (long)(1 + sessions % 10), &calls);
        else
            nap(10 * 1000 * 1000);
        sessions++;
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while ((double)(now.tv_sec - start.tv_sec) +
                 (double)(now.tv_nsec - start.tv_nsec) / 1e9 <
             seconds);
    atomic_store(&over, true);
    for (size_t i = 0; i < COUNT; i++) pthread_join(threads[i], NULL);

    uint64_t begun = 0, expected = 0;
    for (size_t i = 0; i < COUNT; i++) {
        begun += work[i].begun;
        expected += work[i].misnested;
    }
    misnested = sp_load(&sp_stats.misnested) - misnested;
    for (uint32_t slot = 0; slot < SLOTS; slot++) free_slot(slot);
    if (sp_span_state(&shared) == SP_SPAN_OPEN)
        sp_span_close(sp_thread_current(), &shared);
    abandon_the_rest();
    if (restart) {
        /* Spans begun between the last reading and the end of a session are lost. */
        CHECK(calls <= begun);
    } else {
        CHECK(sp_stop(-1, &final));
        check_order(final);
        calls = (uint64_t)total(final, SP_BIT(SP_CALLS));
        CHECK(calls == begun);
        CHECK(total(final, SP_BIT(SP_ALLOC_OBJECTS)) > 0);
        CHECK(total(final, SP_BIT(SP_INUSE_OBJECTS) | SP_BIT(SP_INUSE_SPACE)) == 0);
        CHECK(misnested >= expected);
        int64_t busy = total(final, SP_BIT(SP_WALL_BUSY));
        int64_t cpu = total(final, SP_BIT(SP_CPU_USER) | SP_BIT(SP_CPU_SYSTEM));
        CHECK(cpu <= busy + busy / 100 + 1000000);
        /* Every span is told of, or counted; and what they used is what there is. */
        dropped = sp_load(&sp_stats.spans_dropped) - dropped;
        CHECK(told.spans + dropped == begun);
        CHECK(updated.created == updated.destroyed);
        CHECK(updated.created >= told.spans); /* some were told of, and then dropped */
        int64_t allocated = total(final, SP_BIT(SP_ALLOC_OBJECTS));
        if (dropped == 0) {
            CHECK((int64_t)updated.busy == busy);
            CHECK((int64_t)updated.idle == total(final, SP_BIT(SP_WALL_IDLE)));
            CHECK((int64_t)updated.cpu == cpu);
            CHECK((int64_t)updated.allocated == allocated);
        }
        CHECK(dropped > 0 ? (int64_t)told.busy <= busy : (int64_t)told.busy == busy);
        CHECK(dropped > 0 ? (int64_t)told.allocated <= allocated
                          : (int64_t)told.allocated == allocated);
        sp_profile_free(final);
    }
    CHECK(calls > 0);
    CHECK(updated.created == updated.destroyed);
    fprintf(stderr,
            "%s: %llu spans, %llu recorded, %llu told, %llu misnested, %llu let go, "
            "%llu rounds\n",
            restart ? "many sessions" : "one session", (unsigned long long)begun,
            (unsigned long long)calls, (unsigned long long)told.spans,
            (unsigned long long)misnested, (unsigned long long)atomic_load(&let_go),
            (unsigned long long)sessions);
}

int main(int argc, char **argv) {
    double seconds = argc > 1 ? atof(argv[1]) : 5;
    struct sp_text none = {"", 0};
    for (int i = 0; i < NAMES; i++) {
        char text[16];
        int length = snprintf(text, sizeof text, "s%d", i);
        struct sp_text name = {text, (size_t)length};
        names[i] = sp_key_make(sp_callsite_intern(name, none, none, 1, 0), 0);
    }
    sp_span_release = on_release;
    run_threads(seconds / 2, false);
    run_threads(seconds / 2, true);
    if (failures != 0) fprintf(stderr, "%d checks did not hold\n", failures);
    return failures != 0;
}
