/* Starting, reading and stopping a session, and the thread that reports it.
 *
 * The reporter thread is a plain POSIX thread with all signals blocked. It
 * belongs to no interpreter: what it reports to is the host, which attaches to
 * one if it must. Calls below may come from any thread, also from the host's
 * `report` (which then does not wait for itself); start and stop are
 * serialised by the caller. */
#ifndef SPANPROF_CORE_COLLECTOR_H
#define SPANPROF_CORE_COLLECTOR_H

#include "feed_read.h"
#include "profile.h"
#include "roster.h"
#include "session.h"

/* Called on the reporter thread, never concurrently. sp_start waits for `begin`, which
 * must be brief; the others may block. `report` takes over `profile`, the values since
 * its last call; NULL if the host wants none, if a stop came between (they are in the
 * last report then), or out of memory (they come with the next one). `last` is true
 * once, at the end. `updates` tells of single spans (roster.h) and `spans` takes over
 * those that are over, in that order, before each report, and between reports as soon
 * as many wait. */
struct sp_host {
    void *context;
    void (*begin)(void *context);
    void (*report)(void *context, struct sp_profile *profile, bool last);
    /* Without either of these the session needs no feed. */
    void (*updates)(void *context, const struct sp_span_updates *updates); /* or NULL */
    void (*spans)(void *context, struct sp_feed_batch *batch);             /* or NULL */
    void (*end)(void *context); /* frees the context */
    bool want_profile;
    uint64_t interval; /* ns between reports; 0: only at flush and stop */
};

enum sp_start_status { SP_STARTED, SP_START_RUNNING, SP_START_NO_THREAD };

/* `host` NULL: no reporter thread. On failure the host's context stays the
 * caller's. */
enum sp_start_status sp_start(const struct sp_session_config *config,
                              const struct sp_host *host);

/* In a child after fork, the same for the session that runs: it goes on, with values
 * from zero, and open spans with it. SP_START_RUNNING if none runs. */
enum sp_start_status sp_go_on_in_child(const struct sp_session_config *config,
                                       const struct sp_host *host);

/* Wait until a report that began after this call has been delivered, at most
 * `timeout` ns (negative: as long as it takes). False if time ran out. */
bool sp_flush(int64_t timeout);

/* End the session: its values up to now go out in a last report, for which this
 * waits like sp_flush. *final is the cumulative profile, the caller's to free
 * (NULL out of memory). False if the reporter thread has not ended in time: it
 * goes on alone and ends when its host lets it. */
bool sp_stop(int64_t timeout, struct sp_profile **final);

/* Cumulative values of the running session; NULL out of memory. */
struct sp_profile *sp_snapshot(void);

/* Fork: taken before, released after in the parent; the child has no reporter
 * thread and has reported nothing. */
void sp_collector_lock(void);
void sp_collector_unlock(void);
void sp_collector_relock_in_child(void);

#endif
