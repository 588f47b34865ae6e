/* Profiles: the values of every node, self-contained and immutable.
 *
 * A profile owns its memory; callsites and label sets in it are ids, which stay
 * valid for the life of the process. Nodes are ordered so that a parent comes
 * before its children. */
#ifndef SPANPROF_CORE_PROFILE_H
#define SPANPROF_CORE_PROFILE_H

#include "calltree.h"
#include "metric.h"

struct sp_node {
    int32_t parent; /* index of a node before this one, -1 at a root */
    uint32_t callsite;
    uint32_t labels;                /* its own; ancestors' labels hold for it as well */
    int64_t value[SP_METRIC_COUNT]; /* self values; negative only by subtraction */
};

/* How old the live blocks of a node are: bytes by class of age, the youngest first. */
#define SP_AGE_CLASSES 6u
extern const uint32_t sp_age_limits[SP_AGE_CLASSES]; /* lower limits, in seconds */
struct sp_ages {
    int64_t space[SP_AGE_CLASSES];
    /* At how many heap snapshots in a row, up to this one, the bytes of that age and
     * older were more than at the one before. At most 255. */
    uint8_t growing[SP_AGE_CLASSES];
};

struct sp_profile {
    uint64_t start_unix; /* ns since 1970 */
    uint64_t duration;   /* ns */
    uint32_t kinds;      /* bits of enum sp_kind that were measured */
    uint32_t count;
    uint32_t room; /* nodes that there is memory for */
    /* Of the session: the highest that its live bytes were, all nodes together. */
    int64_t heap_peak;
    /* The time that levels are of (SP_LEVEL), ns since 1970; see sp_profile_merge. */
    uint64_t level_start, level_end;
    struct sp_ages *ages; /* by node; NULL if none were taken */
    uint64_t *span_ids;   /* by node, if each is a single span; else NULL */
    struct sp_node nodes[];
};

/* NULL out of memory. The caller fills in the nodes. */
struct sp_profile *sp_profile_new(uint32_t count);
struct sp_profile *sp_profile_copy(const struct sp_profile *profile);
void sp_profile_free(struct sp_profile *profile);

/* Have room for ages, all zero. False out of memory. */
bool sp_profile_add_ages(struct sp_profile *profile);
void sp_profile_drop_ages(struct sp_profile *profile);

/* Have room for ids of spans, all zero. A profile that is made of this one has none.
 * False out of memory. */
bool sp_profile_add_span_ids(struct sp_profile *profile);

/* a + sign * b, matched by stack; nodes without any value left are dropped.
 * The result spans both for a sum, and what a has after b for a difference.
 *
 * Levels and peaks of two profiles of which one begins where the other ends or later
 * are the later one's levels and the higher one's peaks. Those of overlapping times
 * come from several processes and are added up. A difference is how much they grew;
 * it has no ages.
 * NULL out of memory. */
struct sp_profile *sp_profile_merge(const struct sp_profile *a,
                                    const struct sp_profile *b, int sign);

/* The `most` nodes that weigh most go to *first, all other values to *rest
 * (NULL if there are none). Nothing is lost: *first + *rest is the profile.
 * A node's weight is its largest share of any metric's total. -1 out of
 * memory, nothing made. */
int sp_profile_split(const struct sp_profile *profile, uint32_t most,
                     struct sp_profile **first, struct sp_profile **rest);

/* Drop nodes that hold nothing and lead to nothing, in place. False out of
 * memory, nothing changed. */
bool sp_profile_prune(struct sp_profile *profile);

/* True if all values of the node are zero. */
bool sp_node_empty(const struct sp_node *node);

/* Sum of a series over all nodes. */
int64_t sp_profile_total(const struct sp_profile *profile,
                         const struct sp_series *series);

/* --- reading the running session ------------------------------------------ */

/* Read all threads' values without stopping them. One caller at a time (the
 * collector's lock). `sp_collect_cumulative` gives the values since the session
 * began, `sp_collect_delta` those since the last delta (and, unless NULL, stores
 * the cumulative ones of the same moment); both count what running
 * and open spans have used up to now. NULL out of memory (nothing is lost: the
 * values come with the next call). Values never fall from one call to the next. */
struct sp_profile *sp_collect_cumulative(void);
struct sp_profile *sp_collect_delta(struct sp_profile **cumulative);

/* Forget what was reported: at session start, and in a child after fork. */
void sp_collect_reset(void);

#endif
