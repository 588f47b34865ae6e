#include "session.h"

#include "callsite.h"
#include "calltree.h"
#include "clock.h"
#include "feed.h"
#include "heap.h"
#include "heap_span.h"
#include "publish.h"
#include "stats.h"

#include <time.h>

_Atomic uint32_t sp_session_generation;
struct sp_session_settings sp_session_config;
uint64_t sp_session_started_wall;
uint64_t sp_session_started_unix;

static uint32_t last_generation;

uint64_t sp_unix_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

int sp_session_begin(const struct sp_session_config *config) {
    if (sp_session_running() != 0) return -1;
    sp_clock_setup();
    sp_session_config.track_wall = config->track_wall;
    sp_session_config.track_cpu = config->track_cpu;
    sp_session_config.track_allocations = config->track_allocations;
    sp_session_config.track_heap = config->track_heap;
    sp_session_config.heap_interval = config->heap_interval;
    sp_labels_begin();
    sp_feed_begin(config->max_pending_spans);
    sp_sampler_begin(&config->sampler);
    if (++last_generation == 0) last_generation = 1;
    /* Before there are paths, for each of which it makes room. */
    if (config->track_heap) {
        sp_heap_spans_begin(last_generation, config->max_closed_heap_spans);
        sp_heap_begin(last_generation, config->heap_sample_bytes, config->heap_by_span);
    }
    /* The map's entries have so much room for a path, and for its "(other)". */
    uint32_t most = config->track_heap ? SP_OWNER_SPANS / 2 : UINT32_MAX;
    sp_paths_reset(config->max_nodes < most ? config->max_nodes : most);
    if (config->publish_thread_context) sp_publish_begin(last_generation);
    sp_session_started_unix = sp_unix_now();
    sp_session_started_wall = sp_clock_wall();
    sp_count(&sp_stats.sessions);
    atomic_store_explicit(&sp_session_generation, last_generation,
                          memory_order_release);
    return 0;
}

void sp_session_end(void) {
    atomic_store_explicit(&sp_session_generation, 0, memory_order_release);
    sp_publish_end();
    sp_heap_end();
}

void sp_session_restart_in_child(void) {
    sp_session_started_unix = sp_unix_now();
    sp_session_started_wall = sp_clock_wall();
    sp_heap_restart_in_child();
}
