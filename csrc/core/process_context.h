/* What profilers outside of the process have to know before they look at its threads:
 * OpenTelemetry's process context (OTEP 4719). See docs/internals/publication.md.
 *
 * A mapping with an agreed name, which they find in /proc/PID/maps. A process has one
 * at most. Calls are serialised. */
#ifndef SPANPROF_CORE_PROCESS_CONTEXT_H
#define SPANPROF_CORE_PROCESS_CONTEXT_H

#include <stdbool.h>

/* False if the system refuses it, or if somebody else in the process has one. */
bool sp_process_context_publish(void);

/* Take it away, if there is one. */
void sp_process_context_drop(void);

/* In a child after fork, which has not inherited it. */
void sp_process_context_forget_in_child(void);

#endif
