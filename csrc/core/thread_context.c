/* A file of its own, as it is compiled in another way: see csrc/meson.build. */
#include "thread_context.h"

#include <stddef.h>

/* Readers find it by name in the dynamic symbol table, and learn where a thread keeps
 * it from the relocation that names it. So it is neither hidden nor of another model
 * of thread-local storage than the one that is the default. */
extern __attribute__((
    visibility("default"))) _Thread_local struct sp_thread_context *otel_thread_ctx_v1;
_Thread_local struct sp_thread_context *otel_thread_ctx_v1;

void sp_thread_context_point(struct sp_thread_context *context) {
    otel_thread_ctx_v1 = context;
}
