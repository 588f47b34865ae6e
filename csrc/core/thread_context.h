/* The thread-local pointer that profilers outside of the process look for. */
#ifndef SPANPROF_CORE_THREAD_CONTEXT_H
#define SPANPROF_CORE_THREAD_CONTEXT_H

struct sp_thread_context;

/* The calling thread's record is that one from now on; NULL: it has none. */
void sp_thread_context_point(struct sp_thread_context *context);

#endif
