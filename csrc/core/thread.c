#include "thread.h"

#include "span.h"
#include "stats.h"

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>

SP_TLS struct sp_thread *sp_thread_self, *sp_thread_charged;
SP_TLS int64_t sp_thread_allowance = SP_ALLOWANCE_OF_NOBODY;
_Atomic uint32_t sp_site_epoch = 1;
void (*_Atomic sp_thread_joined)(void);
void (*_Atomic sp_thread_find_context)(struct sp_thread *thread);

/* Guards the free list and the making of states. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static _Atomic(struct sp_thread *) registry;
static struct sp_thread *free_list;
static uint64_t serial;

/* Its destructor tells us that a thread ends. */
static pthread_key_t exit_key;
static pthread_once_t exit_key_once = PTHREAD_ONCE_INIT;

static void release_locked(struct sp_thread *thread) {
    atomic_store_explicit(&thread->alive, false, memory_order_relaxed);
    thread->next_free = free_list;
    free_list = thread;
}

static void end(struct sp_thread *thread) {
    sp_span_abandon_all(thread);
    sp_publish(&thread->publication, 0);
    pthread_mutex_lock(&lock);
    release_locked(thread);
    pthread_mutex_unlock(&lock);
    sp_count(&sp_stats.threads_ended);
}

/* Runs while the thread dies, perhaps after the interpreter has: touches
 * nothing but our own memory. */
static void on_thread_exit(void *value) {
    sp_thread_pause();
    sp_thread_self = NULL;
    sp_publication_detach();
    end(value);
}

void sp_thread_leave(void) {
    struct sp_thread *thread = sp_thread_self;
    if (thread == NULL || thread->is_profilers) return;
    pthread_setspecific(exit_key, NULL);
    on_thread_exit(thread);
}

static void make_exit_key(void) {
    pthread_key_create(&exit_key, on_thread_exit);
}

static void leave_context(struct sp_thread *thread) {
    thread->context = &thread->own_context;
    thread->host.context = NULL;
    thread->host.version = 0;
    thread->host.sees_switches = false;
}

/* A state of an ended thread, or a new one; NULL out of memory. */
static struct sp_thread *acquire(void) {
    pthread_mutex_lock(&lock);
    struct sp_thread *thread = free_list;
    if (thread != NULL) {
        free_list = thread->next_free;
    } else if ((thread = calloc(1, sizeof *thread)) != NULL) {
        /* 2^36 ids for each state, so that no two threads share a counter. */
        thread->next_id = (++serial << 36) + 1;
        thread->sampled_out.path = SP_PATH_SAMPLED_OUT;
        thread->next = atomic_load_explicit(&registry, memory_order_relaxed);
        atomic_store_explicit(&registry, thread, memory_order_release);
    }
    if (thread != NULL) {
        thread->next_free = NULL;
        thread->is_profilers = false;
        thread->own_context.current = (struct sp_parent){0, SP_PATH_ROOT, 0};
        leave_context(thread);
        atomic_store_explicit(&thread->generation, 0, memory_order_relaxed);
        atomic_store_explicit(&thread->alive, true, memory_order_relaxed);
    }
    pthread_mutex_unlock(&lock);
    if (thread != NULL) sp_count(&sp_stats.threads_attached);
    return thread;
}

/* Start the thread's clocks here and now, at the root. */
static void settle(struct sp_thread *thread) {
    struct sp_moment now;
    sp_clock_attach(&thread->clock, sp_session_config.track_cpu, &now);
    thread->system_seen =
        sp_session_config.track_cpu ? sp_clock_system(&thread->clock) : 0;
    thread->split_count = 0;
    thread->split_round++;
    sp_store(&thread->at_wall, now.wall);
    sp_store(&thread->at_cpu, now.cpu);
    atomic_store_explicit(&thread->cell, sp_thread_idle_cell(thread),
                          memory_order_release);
    sp_thread_charge_to(thread, NULL);
}

SP_COLD void sp_sites_forget(struct sp_thread *thread) {
    for (size_t i = 0; i < SP_SITES; i++)
        thread->sites[i] = (struct sp_site){NULL, NULL, NULL, 0};
}

/* Leave what belongs to another session behind. */
static bool enter_generation(struct sp_thread *thread, uint32_t generation) {
    atomic_store_explicit(&thread->data_generation, 0, memory_order_release);
    /* Its spans stay entered until they exit, which will find them gone. */
    thread->top = NULL;
    sp_thread_charge_to(thread, NULL);
    sp_sites_forget(thread);
    sp_accounts_reset(&thread->cells.accounts,
                      sp_heap_mode(generation, sp_session_config.track_allocations),
                      generation);
    sp_thread_heap_reset(&thread->heap);
    sp_feed_reset(&thread->feed);
    sp_publication_reset(&thread->publication, generation);
    thread->is_watched = thread->feed.on || thread->publication.generation != 0;
    sp_sampler_reset(&thread->sampler);
    thread->own_context.current = (struct sp_parent){0, SP_PATH_ROOT, 0};
    thread->undecided.last_child = NULL;
    if (!sp_cells_reset(&thread->cells)) {
        /* Nobody reads its accounts: what it frees must not go there. */
        sp_accounts_reset(&thread->cells.accounts, SP_ALLOC_OFF, 0);
        sp_count(&sp_stats.out_of_memory);
        return false;
    }
    settle(thread);
    atomic_store_explicit(&thread->data_generation, generation, memory_order_release);
    return true;
}

/* Make the thread's data those of the generation. One that has only now got its
 * state goes on with the values of a thread that has ended. */
static bool settle_in(struct sp_thread *thread, uint32_t generation, bool adopted) {
    if (atomic_load_explicit(&thread->data_generation, memory_order_relaxed) !=
        generation)
        return enter_generation(thread, generation);
    if (adopted) {
        settle(thread);
        sp_feed_adopt(&thread->feed);
    }
    return true;
}

static struct sp_thread *join(uint32_t generation) {
    struct sp_thread *thread = sp_thread_self;
    bool adopted = thread == NULL;
    if (adopted) {
        pthread_once(&exit_key_once, make_exit_key);
        thread = acquire();
        if (thread == NULL) {
            sp_count(&sp_stats.out_of_memory);
            return NULL;
        }
        sp_thread_self = thread;
        pthread_setspecific(exit_key, thread);
    }
    return settle_in(thread, generation, adopted) ? thread : NULL;
}

SP_COLD struct sp_thread *sp_thread_join(uint32_t generation) {
    /* The caller's glance at the generation ordered nothing. This one comes after
     * all that the last session's readers did to the memory used anew here. */
    if (sp_session_running() != generation) return NULL;
    struct sp_thread *thread = join(generation);
    /* The profiler's own thread comes here each time, and is turned away. */
    if (thread == NULL || thread->is_profilers) return NULL;
    atomic_store_explicit(&thread->generation, generation, memory_order_seq_cst);
    leave_context(thread);
    void (*find_context)(struct sp_thread *) =
        atomic_load_explicit(&sp_thread_find_context, memory_order_relaxed);
    if (find_context != NULL) find_context(thread);
    sp_publication_attach(&thread->publication);
    sp_span_exit_requested(thread);
    void (*joined)(void) =
        atomic_load_explicit(&sp_thread_joined, memory_order_relaxed);
    if (joined != NULL) joined();
    return thread;
}

struct sp_thread *sp_thread_for_charges(void) {
    uint32_t generation = sp_session_running();
    return generation != 0 ? join(generation) : NULL;
}

void sp_thread_set_profilers(void) {
    pthread_once(&exit_key_once, make_exit_key);
    struct sp_thread *thread = sp_thread_self;
    if (thread == NULL && (thread = acquire()) == NULL) return;
    thread->is_profilers = true;
    sp_thread_self = thread;
    pthread_setspecific(exit_key, thread);
}

void sp_thread_poke(struct sp_thread *thread) {
    atomic_store_explicit(&thread->generation, 0, memory_order_seq_cst);
}

struct sp_thread *sp_thread_list(void) {
    return atomic_load_explicit(&registry, memory_order_acquire);
}

/* What is left for later of the time of a span that runs. */
#define MARGIN 1000u /* ns */

/* The cell that runs, what it was charged, and when the thread's last boundary was, as
 * they were at one moment. */
static bool read_boundary(const struct sp_thread *thread, struct sp_running *running,
                          struct sp_moment *at) {
    for (int attempt = 0; attempt < 200; attempt++) {
        uint32_t before = atomic_load_explicit(&thread->sequence, memory_order_acquire);
        if (before % 2 == 0) {
            running->cell = atomic_load_explicit(&thread->cell, memory_order_acquire);
            if (running->cell == NULL) return false;
            at->wall = sp_load(&thread->at_wall);
            at->cpu = sp_load(&thread->at_cpu);
            running->busy_charged = sp_load(&running->cell->value[SP_VALUE_BUSY]);
            running->cpu_charged = sp_load(&running->cell->value[SP_VALUE_CPU]);
            atomic_thread_fence(memory_order_acquire);
            if (atomic_load_explicit(&thread->sequence, memory_order_relaxed) == before)
                return true;
        }
        if (attempt % 20 == 19) sched_yield();
    }
    sp_count(&sp_stats.running_skipped);
    return false;
}

/* What is told must not be more than what the thread will be charged. Its wall clock
 * may be behind by some nanoseconds, and its store of the sequence come to be seen that
 * much late. Its CPU clock may be behind by as much as an interrupt took between the
 * readings of the two clocks that it goes by; but while it is not descheduled it counts
 * as much as the wall clock, and when it has been, it is put right first. */
static void leave_margin(struct sp_running *running) {
    running->busy = running->busy > MARGIN ? running->busy - MARGIN : 0;
    if (running->cpu > running->busy) running->cpu = running->busy;
}

bool sp_thread_read_running(const struct sp_thread *thread,
                            struct sp_running *running) {
    const struct sp_cell *cell =
        atomic_load_explicit(&thread->cell, memory_order_acquire);
    if (cell == NULL || cell->path == SP_PATH_ROOT ||
        cell->path == SP_PATH_SAMPLED_OUT ||
        !atomic_load_explicit(&thread->alive, memory_order_relaxed))
        return false;
    uint64_t wall = sp_clock_wall(), cpu = 0;
    if (!sp_session_config.track_cpu || !sp_clock_cpu_of(&thread->clock, &cpu)) cpu = 0;
    struct sp_moment at;
    if (!read_boundary(thread, running, &at) || running->cell != cell) return false;
    running->busy = wall > at.wall ? wall - at.wall : 0;
    running->cpu = cpu > at.cpu ? cpu - at.cpu : 0;
    if (sp_clock_wall_kind() != SP_WALL_INJECTED) leave_margin(running);
    return true;
}

uint64_t sp_threads_sampled_out(void) {
    uint64_t sum = 0;
    for (const struct sp_thread *t = sp_thread_list(); t != NULL; t = t->next)
        sum += sp_load(&t->sampler.sampled_out);
    return sum;
}

struct sp_thread *sp_thread_new_detached(void *key, uint32_t generation) {
    struct sp_thread *thread = acquire();
    if (thread == NULL) return NULL;
    thread->clock.key = key;
    if (!settle_in(thread, generation, true)) return NULL;
    atomic_store_explicit(&thread->generation, generation, memory_order_relaxed);
    return thread;
}

void sp_thread_end_detached(struct sp_thread *thread) {
    end(thread);
    thread->clock.key = NULL;
}

void sp_threads_lock(void) {
    pthread_mutex_lock(&lock);
}
void sp_threads_unlock(void) {
    pthread_mutex_unlock(&lock);
}

static void zero_values(struct sp_thread *thread) {
    uint32_t count = atomic_load_explicit(&thread->cells.count, memory_order_relaxed);
    for (uint32_t n = 0; n < count; n++) {
        struct sp_cell *cell = sp_cell_at(&thread->cells, n);
        for (int i = 0; i < SP_VALUE_COUNT; i++) sp_store(&cell->value[i], 0);
        sp_store(&cell->system_told, 0);
    }
    sp_accounts_zero(&thread->cells.accounts);
}

void sp_threads_relock_in_child(void) {
    lock = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
    free_list = NULL;
    for (struct sp_thread *t = sp_thread_list(); t != NULL; t = t->next) {
        if (t == sp_thread_self) continue;
        /* The parent reports what these threads did, and no other will. */
        t->top = NULL;
        t->alloc_account = NULL;
        sp_publication_clear(&t->publication);
        atomic_store_explicit(&t->data_generation, 0, memory_order_relaxed);
        release_locked(t);
    }
    struct sp_thread *self = sp_thread_self;
    sp_sampler_restart_in_child(self != NULL ? &self->sampler : NULL);
    if (self == NULL) return;
    sp_publication_restart_in_child(&self->publication);
    /* The caller's open spans go on, from zero, on the child's own clocks. */
    struct sp_cell *cell = atomic_load_explicit(&self->cell, memory_order_relaxed);
    struct sp_account *alloc_account = self->alloc_account;
    if (cell == NULL) return;
    zero_values(self);
    settle(self);
    sp_feed_restart_in_child(&self->feed, sp_load(&self->at_wall));
    sp_thread_heap_reset(&self->heap); /* not the parent's samples once more */
    atomic_store_explicit(&self->cell, cell, memory_order_relaxed);
    sp_thread_charge_to(self, alloc_account);
}
