/* The process's one session: its settings and its generation.
 *
 * A generation numbers a session and is never used twice. Threads and spans
 * carry the generation that their data belong to; whatever carries another one
 * is left alone, so starting and stopping need not visit or stop any thread. */
#ifndef SPANPROF_CORE_SESSION_H
#define SPANPROF_CORE_SESSION_H

#include "platform.h"
#include "sampler.h"

struct sp_session_config {
    bool track_wall, track_cpu, track_allocations;
    bool track_heap; /* with track_allocations */
    uint32_t max_nodes;
    uint32_t max_label_values;
    uint64_t heap_sample_bytes; /* 0: every block */
    uint64_t heap_interval;     /* ns between heap snapshots; 0: at every report */
    bool heap_by_span; /* keep what single spans have in use, see heap_span.h */
    uint32_t max_closed_heap_spans;
    uint64_t max_pending_spans; /* per thread, in the feed of spans; 0: no feed */
    struct sp_sampler_config sampler;
    bool publish_thread_context; /* see publish.h */
};

/* The running session's generation, 0 while none runs. The one word that a span
 * looks at when there is no session. */
extern _Atomic uint32_t sp_session_generation;

static inline uint32_t sp_session_running(void) {
    return atomic_load_explicit(&sp_session_generation, memory_order_acquire);
}

/* Settings of the running session, or of the last one; the fields of a struct
 * sp_session_config. Atomic, as a thread that has not noticed yet that its session is
 * over may read them while the next one begins. */
struct sp_session_settings {
    _Atomic bool track_wall, track_cpu, track_allocations, track_heap;
    uint64_t heap_interval; /* under the collector's lock */
};
extern struct sp_session_settings sp_session_config;
extern uint64_t sp_session_started_wall; /* CLOCK_MONOTONIC, ns */
extern uint64_t sp_session_started_unix; /* ns */

/* 0, or -1 if a session runs already. Callers serialise begin and end. */
int sp_session_begin(const struct sp_session_config *config);

/* After this no span is recorded. Callers take the last snapshot before. */
void sp_session_end(void);

/* Unix time in ns. */
uint64_t sp_unix_now(void);

/* In a child after fork: a running session's values count from here. */
void sp_session_restart_in_child(void);

#endif
