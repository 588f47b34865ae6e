/* A profiler as those outside of the process are, in the process: it stops the thread
 * that publishes anywhere, and looks. */
#include "../../csrc/core/span.h"

#include <signal.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

extern _Thread_local const struct sp_thread_context *otel_thread_ctx_v1;

struct spt_samples {
    uint64_t taken, valid, wrong;
};

const struct sp_thread_context *spt_thread_context(const struct sp_thread *thread) {
    return &thread->publication.context;
}

/* The thread whose spans are sampled: one that stays, and one child at a time. */
static struct {
    const struct sp_thread *thread;
    uint64_t outer_id;
    unsigned char trace_id[16];
    volatile uint64_t taken, valid, wrong;
} seen;

static void on_sample(int number) {
    (void)number;
    const struct sp_thread_context *context = otel_thread_ctx_v1;
    seen.taken++;
    if (context == NULL || context->valid == 0) return;
    seen.valid++;
    uint64_t id = be64toh(sp_load(&context->span_id));
    uint64_t newest = *(const volatile uint64_t *)&seen.thread->next_id - 1;
    if (context->valid != 1 || (id != seen.outer_id && id != newest) ||
        memcmp(context->trace_id, seen.trace_id, sizeof seen.trace_id) != 0)
        seen.wrong++;
}

static timer_t start_timer(void) {
    struct sigaction action = {.sa_handler = on_sample, .sa_flags = SA_RESTART};
    sigaction(SIGPROF, &action, NULL);
    struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGPROF};
    event.sigev_notify_thread_id = gettid();
    timer_t timer;
    timer_create(CLOCK_MONOTONIC, &event, &timer);
    /* No divisor of anything, so that it does not fall into step with the spans. */
    struct itimerspec often = {{0, 31013}, {0, 31013}};
    timer_settime(timer, 0, &often, NULL);
    return timer;
}

/* Run spans on the calling thread, whose state is given, until so many samples have
 * been taken, or for ten seconds. */
void spt_sample_spans(struct sp_thread *thread, sp_key key, uint64_t wanted,
                      struct spt_samples *samples) {
    struct sp_span outer = {0}, inner = {0};
    sp_span_begin(thread, &outer, key);
    seen.thread = thread;
    seen.outer_id = outer.id;
    seen.taken = seen.valid = seen.wrong = 0;
    sp_publish_trace_id(seen.trace_id);
    timer_t timer = start_timer();
    time_t until = time(NULL) + 10;
    while (seen.taken < wanted && time(NULL) < until)
        for (int n = 0; n < 1000; n++) {
            sp_span_begin(thread, &inner, key);
            sp_span_exit(thread, &inner);
        }
    timer_delete(timer);
    signal(SIGPROF, SIG_IGN); /* one may be under way still */
    sp_span_exit(thread, &outer);
    *samples = (struct spt_samples){seen.taken, seen.valid, seen.wrong};
}
