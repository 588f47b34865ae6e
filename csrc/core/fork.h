/* What the core needs around fork(). */
#ifndef SPANPROF_CORE_FORK_H
#define SPANPROF_CORE_FORK_H

#include "platform.h"

/* Idempotent; any thread. Before a fork the core's locks are taken in rank
 * order, so that none is held by a thread that the child will not have. In the
 * child a running session goes on with the forking thread's open spans, all
 * values at zero and no reporter thread. */
void sp_fork_install(void);

/* How often this process is a child of a fork since then. */
extern sp_counter sp_forks;

#endif
