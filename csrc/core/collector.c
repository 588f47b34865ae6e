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
    bool stopping, ended;
    struct sp_profile *final; /* the last report's values, taken at the stop */
    int references;
};

/* Serialises the reading of sessions (sp_collect_*), which is also what keeps a
 * session from ending in the middle of it. */
static pthread_mutex_t collect_lock = PTHREAD_MUTEX_INITIALIZER;
static struct collector *current; /* changed under collect_lock */

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

static struct collector *collector_new(const struct sp_host *host) {
    struct collector *c = calloc(1, sizeof *c);
    if (c == NULL) return NULL;
    c->host = *host;
    c->references = 2;
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
    free(c);
}

/* --- the reporter thread ---------------------------------------------------- */

/* Wait until a report is due; true if it is the last one. */
static bool wait_until_due(struct collector *c) {
    struct timespec due = deadline_after(c->host.interval);
    pthread_mutex_lock(&c->mutex);
    while (!c->stopping && c->requested == c->begun) {
        if (c->host.interval == 0)
            pthread_cond_wait(&c->changed, &c->mutex);
        else if (pthread_cond_timedwait(&c->changed, &c->mutex, &due) == ETIMEDOUT)
            break;
    }
    bool last = c->stopping;
    c->begun = c->requested;
    pthread_mutex_unlock(&c->mutex);
    return last;
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
    for (bool last = false; !last;) {
        last = wait_until_due(c);
        uint64_t round = c->begun; /* only this thread changes it */
        c->host.report(c->host.context, take_delta(c, last), last);
        sp_count(&sp_stats.reports);
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

enum sp_start_status sp_start(const struct sp_session_config *config,
                              const struct sp_host *host) {
    sp_fork_install();
    struct collector *c = host != NULL ? collector_new(host) : NULL;
    if (host != NULL && c == NULL) return SP_START_NO_THREAD;
    pthread_mutex_lock(&collect_lock);
    enum sp_start_status status = SP_STARTED;
    if (sp_session_running() != 0) {
        status = SP_START_RUNNING;
    } else {
        sp_collect_reset();
        sp_session_begin(config);
        current = c;
        if (c != NULL && !spawn(c)) {
            sp_session_end();
            current = NULL;
            status = SP_START_NO_THREAD;
        } else if (c != NULL) {
            pthread_mutex_lock(&c->mutex);
            while (!c->running) pthread_cond_wait(&c->changed, &c->mutex);
            pthread_mutex_unlock(&c->mutex);
        }
    }
    pthread_mutex_unlock(&collect_lock);
    if (status != SP_STARTED && c != NULL) {
        c->references = 1;
        collector_release(c);
    }
    return status;
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
    if (c != NULL && c->host.want_profile)
        delta = sp_collect_delta(final);
    else
        *final = sp_collect_cumulative();
    sp_session_end();
    pthread_mutex_unlock(&collect_lock);
    if (c == NULL) return true;

    pthread_mutex_lock(&c->mutex);
    c->final = delta;
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
