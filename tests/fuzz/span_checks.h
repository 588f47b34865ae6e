/* Whether the core tells what the model expects. Aborts if it does not. */
#ifndef SPANPROF_TESTS_FUZZ_SPAN_CHECKS_H
#define SPANPROF_TESTS_FUZZ_SPAN_CHECKS_H

#include "span_model.h"

#include "../../csrc/core/profile.h"

#define MODEL_NAMES 6u

extern struct model model;
extern sp_key model_keys[MODEL_NAMES]; /* the core's for the model's names */

/* A session has begun. The others are for the running one. */
void check_begin(void);

/* From here on the session's threads may go on for a while without a look at what time
 * was the system's: that is shared out over all spans that ran meanwhile. */
void check_no_system(void);

/* Every value of every node. */
void check_profile(const struct sp_profile *profile);
void check_snapshot(void);

/* Takes a delta: all so far are the cumulative profile. */
void check_delta(void);

/* Takes what waits in the feed: each span that is over is told of once, with what was
 * its own (5.1); one that is not is read in place (5.3). */
void check_feed(void);

#endif
