/* Counters of what the profiler did and of everything it could not do.
 *
 * All of them are process-wide, atomic, only ever rise, and are written off the
 * hot path; reading them needs no lock. */
#ifndef SPANPROF_CORE_STATS_H
#define SPANPROF_CORE_STATS_H

#include "platform.h"

/*        field                    what it counts                                    */
#define SP_STATS(X)                                                                    \
    X(sessions)           /* sessions started */                                       \
    X(misnested)          /* spans exited out of order, or on another thread */        \
    X(abandoned)          /* spans still entered when their thread ended */            \
    X(nodes_folded)       /* spans that went to an (other) node: max_nodes */          \
    X(labels_folded)      /* label values that became (other): max_label_values */     \
    X(callsites_folded)   /* callsites that became (other): too many names */          \
    X(out_of_memory)      /* spans not recorded because memory ran out */              \
    X(heap_untracked)     /* blocks that the shadow map could not take up */           \
    X(heap_map_refused)   /* times it got no address space from the system */          \
    X(heap_table_refused) /* times its table for odd blocks got no memory */           \
    X(heap_spans_folded)  /* finished spans no longer told apart, for their number */  \
    X(suspensions_unseen) /* sessions without suspension: no free sys.monitoring id */ \
    X(spans_dropped)      /* spans that are missing in the feed of single spans */     \
    X(clock_synchronisations)  /* times a thread's clocks were read by system call */  \
    X(threads_attached)        /* threads that opened a span */                        \
    X(threads_ended)           /* of those, how many have ended */                     \
    X(snapshots)               /* times all threads' values were read */               \
    X(snapshot_nanos)          /* time that took, in all */                            \
    X(running_skipped)         /* running spans left to the next snapshot */           \
    X(process_context_refused) /* sessions that outside profilers were not told of */  \
    X(reports)                 /* times reporters were called */

struct sp_stats {
#define X(field) sp_counter field;
    SP_STATS(X)
#undef X
};

extern struct sp_stats sp_stats;

#endif
