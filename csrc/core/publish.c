#include "publish.h"

#include "process_context.h"
#include "session.h"
#include "stats.h"
#include "thread.h"
#include "thread_context.h"

#include <assert.h>
#include <linux/membarrier.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <unistd.h>

static_assert(offsetof(struct sp_thread_context, span_id) == 16, "as OTEP 4947 has it");
static_assert(offsetof(struct sp_thread_context, valid) == 24, "as OTEP 4947 has it");
static_assert(offsetof(struct sp_thread_context, trace_flags) == 25, "the same");
static_assert(offsetof(struct sp_thread_context, attributes_size) == 26, "the same");

/* Of the session that publishes, or 0. Written by whoever begins or ends a session.
 * Atomic, as a thread that enters a session that is over reads them meanwhile. */
static _Atomic uint32_t publishing;
static sp_counter trace_id[2];

/* --- the session ------------------------------------------------------------------ */

/* One id for the whole session. Span ids count from the same number in every process:
 * together the two are unique, as those who collect from many have to rely on. */
static void draw_trace_id(void) {
    uint64_t drawn[2] = {0, 0};
    if (getrandom(drawn, sizeof drawn, GRND_NONBLOCK) != sizeof drawn) {
        drawn[0] = sp_mix(sp_unix_now());
        drawn[1] = sp_mix(drawn[0] ^ (uint64_t)getpid());
    }
    sp_store(&trace_id[0], drawn[0] != 0 ? drawn[0] : 1); /* all 0 would be no id */
    sp_store(&trace_id[1], drawn[1]);
}

static void membarrier(int command) {
    syscall(SYS_membarrier, command, 0u, 0);
}

void sp_publish_begin(uint32_t generation) {
    membarrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED);
    draw_trace_id();
    if (!sp_process_context_publish()) sp_count(&sp_stats.process_context_refused);
    atomic_store_explicit(&publishing, generation, memory_order_release);
}

void sp_publish_end(void) {
    if (atomic_load_explicit(&publishing, memory_order_relaxed) == 0) return;
    atomic_store_explicit(&publishing, 0, memory_order_relaxed);
    /* Every thread has seen by now that the session is over, or its record is written.
     * Where the system knows no such call, one that was in the middle of writing its
     * record may leave it valid until its next span. */
    membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED);
    for (struct sp_thread *t = sp_thread_list(); t != NULL; t = t->next)
        atomic_store_explicit(&t->publication.context.valid, 0, memory_order_relaxed);
    sp_process_context_drop();
}

void sp_publish_restart_in_child(void) {
    if (atomic_load_explicit(&publishing, memory_order_relaxed) == 0) return;
    draw_trace_id();
    sp_process_context_forget_in_child();
    if (!sp_process_context_publish()) sp_count(&sp_stats.process_context_refused);
}

bool sp_publish_trace_id(unsigned char id[16]) {
    if (atomic_load_explicit(&publishing, memory_order_acquire) == 0) return false;
    uint64_t words[2] = {sp_load(&trace_id[0]), sp_load(&trace_id[1])};
    __builtin_memcpy(id, words, sizeof words);
    return true;
}

/* --- the owner ----------------------------------------------------------------------
 */

static void set_valid(struct sp_publication *publication, bool valid) {
    atomic_signal_fence(memory_order_seq_cst);
    atomic_store_explicit(&publication->context.valid, valid, memory_order_relaxed);
    atomic_signal_fence(memory_order_seq_cst);
}

static void set_trace(struct sp_publication *publication) {
    sp_store(&publication->context.trace_id[0], sp_load(&trace_id[0]));
    sp_store(&publication->context.trace_id[1], sp_load(&trace_id[1]));
    publication->context.trace_flags = SP_TRACE_FLAGS;
    publication->context.attributes_size = 0;
}

void sp_publication_reset(struct sp_publication *publication, uint32_t generation) {
    sp_publication_clear(publication);
    if (atomic_load_explicit(&publishing, memory_order_acquire) != generation) return;
    set_trace(publication);
    publication->generation = generation;
}

void sp_publication_attach(struct sp_publication *publication) {
    if (publication->generation != 0) sp_thread_context_point(&publication->context);
}

void sp_publication_detach(void) {
    sp_thread_context_point(NULL);
}

void sp_publication_clear(struct sp_publication *publication) {
    set_valid(publication, false);
    publication->generation = 0;
}

void sp_publication_restart_in_child(struct sp_publication *publication) {
    struct sp_thread_context *context = &publication->context;
    bool valid = atomic_load_explicit(&context->valid, memory_order_relaxed) != 0;
    if (publication->generation == 0) return;
    set_valid(publication, false);
    set_trace(publication);
    set_valid(publication, valid);
}
