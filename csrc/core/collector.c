#include "collector.h"

#include "fork.h"
#include "stats.h"
#include "thread.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>

/* Of one session; the reporter thread and the session hold one reference each.
 * A thread that outlives its session (its host hangs) keeps its own. */
struct collector {
    struct sp_host host;
    pthread_mutex_t mutex; /* guards all below; a leaf but for the collect lock */
    pthread_cond_t changed;
    pthread_t thread;
    bool running;                         /* `thread` is set */
    uint64_t requested, begun, delivered; /* reports, counted */
    bool stopping, ended, spans_due;
    struct sp_profile *final; /* the last report's values, taken at the stop */
    struct sp_round final_round;
    int references;

    /* The reporter thread's. */
    struct sp_roster *roster; /* or NULL */
    uint64_t heap_interval;   /* ns; of what single spans have in use */
    struct timespec heap_due_at;
};

/* Serialises the reading of sessions (sp_collect_*), which is also what keeps a
 * session from ending in the middle of it. */
static pthread_mutex_t collect_lock = PTHREAD_MUTEX_INITIALIZER;
static struct collector *current; /* changed under collect_lock */

/* How often to look at the rings, as a call of wake may find a lock taken. */
#define LOOK ((uint64_t)20000000) /* ns */

/* --- time ------------------------------------------------------------------ */

static struct timespec deadline_after(uint64_t nanos) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    uint64_t limit = (uint64_t)365 * 86400 * 1000000000u;
    if (nanos > limit) nanos = limit;
    uint64_t sum = (uint64_t)t.tv_nsec + nanos;
    t.tv_sec += (time_t)(sum / 1000000000u);
    t.tv_nsec = (long)(sum % 1000000000u);
    return t;
}

/* --- the object ------------------------------------------------------------- */

static struct collector *collector_new(const struct sp_host *host,
                                       const struct sp_session_config *config) {
    struct collector *c = calloc(1, sizeof *c);
    if (c == NULL) return NULL;
    if (host->updates != NULL &&
        (c->roster = sp_roster_new(config->heap_by_span)) == NULL) {
        free(c);
        return NULL;
    }
    c->host = *host;
    c->references = 2;
    c->heap_interval = config->heap_interval;
    pthread_mutex_init(&c->mutex, NULL);
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&c->changed, &attributes);
    pthread_condattr_destroy(&attributes);
    return c;
}

static void collector_release(struct collector *c) {
    pthread_mutex_lock(&c->mutex);
    bool last = --c->references == 0;
    pthread_mutex_unlock(&c->mutex);
    if (!last) return;
    pthread_cond_destroy(&c->changed);
    pthread_mutex_destroy(&c->mutex);
    sp_roster_free(c->roster);
    free(c);
}

/* --- the feed of spans -------------------------------------------------------- */

static bool has_feed(const struct collector *c) {
    return c->host.spans != NULL || c->host.updates != NULL;
}

/* For sp_feed_is_due: a thread of the program, which must not wait. */
static void wake(void) {
    if (pthread_mutex_trylock(&collect_lock) != 0) return;
    struct collector *c = current;
    if (c != NULL && has_feed(c) && pthread_mutex_trylock(&c->mutex) == 0) {
        c->spans_due = true;
        pthread_cond_broadcast(&c->changed);
        pthread_mutex_unlock(&c->mutex);
    }
    pthread_mutex_unlock(&collect_lock);
}

static bool look_at_rings(const struct collector *c) {
    if (pthread_mutex_trylock(&collect_lock) != 0) return false;
    bool spans_due = current == c && sp_feed_some_due();
    pthread_mutex_unlock(&collect_lock);
    return spans_due;
}

/* What there is to tell of single spans. */
static struct sp_round take_round(struct collector *c) {
    struct sp_round round = {.over = NULL};
    pthread_mutex_lock(&collect_lock);
    /* A stop may have come between: then the rest is in `final_round`. */
    if (current == c) sp_round_read(&round, c->roster, false);
    pthread_mutex_unlock(&collect_lock);
    return round;
}

static void deliver_round(struct collector *c, struct sp_round *round,
                          enum sp_round_kind kind) {
    if (c->roster != NULL)
        sp_roster_tell(c->roster, round, kind, c->host.updates, c->host.context);
    for (struct sp_feed_batch *batch = round->over, *next; batch != NULL;
         batch = next) {
        next = batch->next;
        if (c->host.spans != NULL)
            c->host.spans(c->host.context, batch);
        else
            sp_feed_batch_free(batch);
    }
    sp_round_free(round);
}

/* --- the reporter thread ---------------------------------------------------- */

enum due { DUE_SPANS, DUE_REPORT, DUE_FLUSH, DUE_LAST };

static bool is_before(const struct timespec *a, const struct timespec *b) {
    return a->tv_sec < b->tv_sec || (a->tv_sec == b->tv_sec && a->tv_nsec < b->tv_nsec);
}

/* Wait until `deadline` (NULL: for ever) or until something changes; false if it has
 * come. With a feed no longer than until it is time to look at the rings. */
static bool wait_a_while(struct collector *c, const struct timespec *deadline) {
    struct timespec look;
    bool looks = has_feed(c);
    if (looks) look = deadline_after(LOOK);
    if (looks && (deadline == NULL || is_before(&look, deadline))) {
        if (pthread_cond_timedwait(&c->changed, &c->mutex, &look) == ETIMEDOUT &&
            look_at_rings(c))
            c->spans_due = true;
        return true;
    }
    if (deadline == NULL) {
        pthread_cond_wait(&c->changed, &c->mutex);
        return true;
    }
    return pthread_cond_timedwait(&c->changed, &c->mutex, deadline) != ETIMEDOUT;
}

/* Wait until something is to be done. `report_at` is when the next report is due. */
static enum due wait_until_due(struct collector *c, const struct timespec *report_at) {
    const struct timespec *deadline = c->host.interval == 0 ? NULL : report_at;
    enum due due = DUE_REPORT;
    pthread_mutex_lock(&c->mutex);
    while (!c->stopping && c->requested == c->begun && !c->spans_due)
        if (!wait_a_while(c, deadline)) break;
    if (c->stopping)
        due = DUE_LAST;
    else if (c->requested != c->begun)
        due = DUE_FLUSH;
    else if (c->spans_due)
        due = DUE_SPANS;
    c->spans_due = false;
    if (due != DUE_SPANS) c->begun = c->requested;
    pthread_mutex_unlock(&c->mutex);
    return due;
}

static struct sp_profile *take_delta(struct collector *c, bool last) {
    if (last) return c->final;
    struct sp_profile *profile = NULL;
    pthread_mutex_lock(&collect_lock);
    /* A stop may have come between: then the values are in `final`. */
    if (c->host.want_profile && current == c) profile = sp_collect_delta(NULL);
    pthread_mutex_unlock(&collect_lock);
    return profile;
}

static bool has_come(const struct timespec *time) {
    struct timespec now = deadline_after(0);
    return is_before(time, &now);
}

/* What is told of single spans. */
static enum sp_round_kind kind_of(struct collector *c, enum due due) {
    if (due == DUE_LAST) return SP_ROUND_LAST;
    if (due == DUE_SPANS) return SP_ROUND_OVER;
    if (due == DUE_REPORT && !has_come(&c->heap_due_at)) return SP_ROUND_REPORT;
    /* Reports are not quite as regular as that. */
    c->heap_due_at = deadline_after(c->heap_interval - c->heap_interval / 10);
    return SP_ROUND_HEAP;
}

static void *run(void *argument) {
    struct collector *c = argument;
    pthread_detach(pthread_self());
    pthread_setname_np(pthread_self(), "spanprof");
    sp_thread_set_profilers();
    if (c->host.begin != NULL) c->host.begin(c->host.context);
    pthread_mutex_lock(&c->mutex);
    c->thread = pthread_self();
    c->running = true;
    pthread_cond_broadcast(&c->changed);
    pthread_mutex_unlock(&c->mutex);
    struct timespec report_at = deadline_after(c->host.interval);
    for (bool last = false; !last;) {
        enum due due = wait_until_due(c, &report_at);
        last = due == DUE_LAST;
        if (has_feed(c)) {
            struct sp_round spans = last ? c->final_round : take_round(c);
            deliver_round(c, &spans, kind_of(c, due));
        }
        if (due == DUE_SPANS) continue;
        uint64_t round = c->begun; /* only this thread changes it */
        c->host.report(c->host.context, take_delta(c, last), last);
        sp_count(&sp_stats.reports);
        report_at = deadline_after(c->host.interval);
        pthread_mutex_lock(&c->mutex);
        c->delivered = round;
        pthread_cond_broadcast(&c->changed);
        pthread_mutex_unlock(&c->mutex);
    }
    if (c->host.end != NULL) c->host.end(c->host.context);
    pthread_mutex_lock(&c->mutex);
    c->ended = true;
    pthread_cond_broadcast(&c->changed);
    pthread_mutex_unlock(&c->mutex);
    collector_release(c);
    return NULL;
}

static bool spawn(struct collector *c) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_t thread;
    bool done = pthread_create(&thread, NULL, run, c) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return done;
}

/* --- calls ------------------------------------------------------------------- */

/* Give the session a reporter thread, and wait until it runs. Under collect_lock. */
static bool attach(struct collector *c) {
    if (!spawn(c)) return false;
    current = c;
    pthread_mutex_lock(&c->mutex);
    while (!c->running) pthread_cond_wait(&c->changed, &c->mutex);
    pthread_mutex_unlock(&c->mutex);
    if (has_feed(c)) atomic_store_explicit(&sp_feed_is_due, wake, memory_order_release);
    return true;
}

static enum sp_start_status begin_locked(const struct sp_session_config *config,
                                         struct collector *c) {
    if (sp_session_running() != 0) return SP_START_RUNNING;
    sp_collect_reset();
    sp_session_begin(config);
    if (c == NULL || attach(c)) return SP_STARTED;
    sp_session_end();
    return SP_START_NO_THREAD;
}

static enum sp_start_status go_on_locked(struct collector *c) {
    if (sp_session_running() == 0 || current != NULL) return SP_START_RUNNING;
    return c == NULL || attach(c) ? SP_STARTED : SP_START_NO_THREAD;
}

static enum sp_start_status start(const struct sp_session_config *config,
                                  const struct sp_host *host, bool goes_on) {
    sp_fork_install();
    struct collector *c = host != NULL ? collector_new(host, config) : NULL;
    if (host != NULL && c == NULL) return SP_START_NO_THREAD;
    pthread_mutex_lock(&collect_lock);
    enum sp_start_status status = goes_on ? go_on_locked(c) : begin_locked(config, c);
    pthread_mutex_unlock(&collect_lock);
    if (status != SP_STARTED && c != NULL) {
        c->references = 1;
        collector_release(c);
    }
    return status;
}

enum sp_start_status sp_start(const struct sp_session_config *config,
                              const struct sp_host *host) {
    return start(config, host, false);
}

enum sp_start_status sp_go_on_in_child(const struct sp_session_config *config,
                                       const struct sp_host *host) {
    return start(config, host, true);
}

/* Wait for `done(c)`; c->mutex is held. The reporter thread waits not for itself. */
static bool wait_for(struct collector *c, int64_t timeout,
                     bool (*done)(const struct collector *c, uint64_t round),
                     uint64_t round) {
    if (c->running && pthread_equal(pthread_self(), c->thread)) return true;
    struct timespec until = deadline_after(timeout > 0 ? (uint64_t)timeout : 0);
    while (!done(c, round)) {
        if (timeout < 0)
            pthread_cond_wait(&c->changed, &c->mutex);
        else if (pthread_cond_timedwait(&c->changed, &c->mutex, &until) == ETIMEDOUT)
            return done(c, round);
    }
    return true;
}

static bool is_delivered(const struct collector *c, uint64_t round) {
    return c->delivered >= round || c->ended;
}
static bool is_ended(const struct collector *c, uint64_t round) {
    (void)round;
    return c->ended;
}

bool sp_flush(int64_t timeout) {
    pthread_mutex_lock(&collect_lock);
    struct collector *c = current;
    if (c != NULL) {
        pthread_mutex_lock(&c->mutex);
        c->references++;
    }
    pthread_mutex_unlock(&collect_lock);
    if (c == NULL) return true;
    uint64_t round = ++c->requested;
    pthread_cond_broadcast(&c->changed);
    bool done = wait_for(c, timeout, is_delivered, round);
    pthread_mutex_unlock(&c->mutex);
    collector_release(c);
    return done;
}

bool sp_stop(int64_t timeout, struct sp_profile **final) {
    pthread_mutex_lock(&collect_lock);
    *final = NULL;
    if (sp_session_running() == 0) {
        pthread_mutex_unlock(&collect_lock);
        return true;
    }
    struct collector *c = current;
    current = NULL;
    struct sp_profile *delta = NULL;
    /* Threads go on meanwhile. What is told is to be in the profile as well, so it is
     * taken first. */
    struct sp_round round = {.over = NULL};
    if (c != NULL && has_feed(c)) sp_round_read(&round, c->roster, true);
    if (c != NULL && c->host.want_profile)
        delta = sp_collect_delta(final);
    else
        *final = sp_collect_cumulative();
    uint32_t generation = sp_session_running();
    sp_session_end();
    sp_feed_end(generation);
    pthread_mutex_unlock(&collect_lock);
    if (c == NULL) return true;

    pthread_mutex_lock(&c->mutex);
    c->final = delta;
    c->final_round = round;
    c->stopping = true;
    pthread_cond_broadcast(&c->changed);
    bool done = wait_for(c, timeout, is_ended, 0);
    pthread_mutex_unlock(&c->mutex);
    collector_release(c);
    return done;
}

struct sp_profile *sp_snapshot(void) {
    pthread_mutex_lock(&collect_lock);
    struct sp_profile *profile =
        sp_session_running() != 0 ? sp_collect_cumulative() : NULL;
    pthread_mutex_unlock(&collect_lock);
    return profile;
}

void sp_collector_lock(void) {
    pthread_mutex_lock(&collect_lock);
}
void sp_collector_unlock(void) {
    pthread_mutex_unlock(&collect_lock);
}
void sp_collector_relock_in_child(void) {
    collect_lock = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
    current = NULL; /* the thread is the parent's; so is its state, left as it is */
    sp_collect_reset();
}
