/* What the core needs around fork(). */
#ifndef SPANPROF_CORE_FORK_H
#define SPANPROF_CORE_FORK_H

/* Idempotent; any thread. Before a fork the core's locks are taken in rank
 * order, so that none is held by a thread that the child will not have. In the
 * child a running session goes on with the forking thread's open spans, all
 * values at zero and no reporter thread. */
void sp_fork_install(void);

#endif
