/* Head sampling: which roots, and with them which stacks of spans, are recorded.
 *
 * One decision for each span that has no parent. The usual sampler draws no number
 * for each of them: it draws how many to leave out before the next one that is taken.
 * That number has a geometric distribution, so that each root has the same chance,
 * whatever became of those before. (Vitter, "An efficient algorithm for sequential
 * random sampling", 1987.) */
#ifndef SPANPROF_CORE_SAMPLER_H
#define SPANPROF_CORE_SAMPLER_H

#include "platform.h"

enum sp_sampler_kind {
    SP_SAMPLER_NONE,  /* every span is recorded */
    SP_SAMPLER_RATIO, /* roots by chance */
    SP_SAMPLER_ASK,   /* the host decides */
};

enum sp_decision {
    SP_SAMPLED,
    SP_SAMPLED_OUT,
    SP_UNDECIDED, /* ask the host */
};

struct sp_sampler_config {
    enum sp_sampler_kind kind;
    double ratio;  /* 0 to 1 */
    bool has_seed; /* else a random one */
    uint64_t seed;
};

/* One thread's. Owner only. */
struct sp_sampler {
    uint64_t skip;   /* roots to leave out before the next decision; SP_SAMPLER_RATIO */
    uint64_t stream; /* state of the generator */
    bool on;         /* the thread's session has a sampler */
    bool asks;       /* SP_SAMPLER_ASK */
    bool has_stream; /* and `skip` was drawn of it */
    sp_counter sampled_out; /* spans, since the process began; others read it */
};

/* The session that begins has this one. */
void sp_sampler_begin(const struct sp_sampler_config *config);

/* The thread enters a session. */
void sp_sampler_reset(struct sp_sampler *sampler);

/* For a root, in a session that has a sampler. */
enum sp_decision sp_sampler_decide(struct sp_sampler *sampler);

/* In a child after fork: streams that are nobody else's, neither the parent's nor
 * another child's. The caller's is drawn anew. */
void sp_sampler_restart_in_child(struct sp_sampler *sampler);

#endif
