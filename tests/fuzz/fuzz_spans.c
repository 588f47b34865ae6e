/* Span operations in any order, on any thread, in the core and in a model: every value
 * of every node and of every single span agrees. One OS thread plays all threads, by an
 * injected clock. */
#include "input.h"
#include "span_checks.h"

#include "../../csrc/core/callsite.h"
#include "../../csrc/core/collector.h"
#include "../../csrc/core/suspend.h"
#include "../../csrc/core/suspended.h"
#include "../core/support.h"

#include <string.h>

#define PLAIN_NAMES 4u /* the other ones have labels */
#define CONTEXTS 6u
#define MOST_STEPS 200u
#define FEED_LIMIT 512u

static struct sp_thread *threads[MODEL_THREADS];
static uint64_t cpu[MODEL_THREADS], system_time[MODEL_THREADS], wall = 1000000;

/* What is behind a span of the model, by its number. */
static struct sp_span *real[MODEL_SPANS]; /* NULL: freed, or a native one is over */
static bool is_native[MODEL_SPANS], is_held[MODEL_SPANS];
static struct model_span *ended[2]; /* the last that are over: they may be parents */

static struct sp_context *contexts[CONTEXTS];
static struct model_context model_contexts[CONTEXTS];
static unsigned context_count;

static const char places[PLAIN_NAMES];
static bool fed, sampled; /* the session's; the sampler's next answers */
static const char *const counted[] = {"misnested", "abandoned", "nodes_folded"};
static int64_t counted_before[3];
static uint64_t sampled_out_before;

static unsigned number_of(const struct model_span *span) {
    return (unsigned)(span - model.spans);
}

/* --- time ------------------------------------------------------------------------ */

static void advance(uint64_t nanos, unsigned runs, uint64_t used, uint64_t booked,
                    unsigned quick) {
    wall += nanos;
    spt_clock_set_wall(wall);
    cpu[runs] += used;
    system_time[runs] += booked;
    spt_clock_set(runs + 1, cpu[runs], system_time[runs]);
    for (unsigned n = 0; n < MODEL_THREADS; n++)
        if (threads[n] != NULL) spt_clock_set_quick(threads[n], quick >> n & 1);
    if (quick != 0) check_no_system();
    model_advance(&model, &model.threads[runs], nanos, used, booked);
}

/* --- sessions and threads --------------------------------------------------------- */

static void start(uint8_t how) {
    static const uint32_t limits[] = {100000, 100000, 2, 5};
    if (model.session != 0) return;
    fed = (how & 3) != 3;
    spt_feed_limit(fed ? FEED_LIMIT : 0);
    bool sampling = how >> 2 & 1;
    spt_sampler(sampling ? SP_SAMPLER_ASK : SP_SAMPLER_NONE, 0, false, 0);
    uint32_t limit = limits[how >> 3 & 3];
    CHECK_EQUAL(0, spt_start(true, true, true, limit, 1000));
    model_start(&model, limit, sampling);
    check_begin();
}

static void stop(bool with_delta) {
    if (model.session == 0) return;
    if (with_delta) check_delta();
    if (fed) check_feed();
    struct sp_profile *last = NULL;
    sp_stop(-1, &last);
    CHECK(last != NULL);
    check_profile(last);
    sp_profile_free(last);
    model.session = 0;
}

/* In a session, which gives it its first values. */
static void make_thread(void) {
    start(0);
    for (unsigned n = 0; n < MODEL_THREADS; n++) {
        if (threads[n] != NULL) continue;
        cpu[n] = system_time[n] = 0;
        spt_clock_set(n + 1, 0, 0);
        threads[n] = spt_thread_new(n + 1);
        CHECK(threads[n] != NULL);
        struct model_thread *thread = &model.threads[n];
        *thread = (struct model_thread){.alive = true};
        thread->context = &thread->own_context;
        return;
    }
}

static void end_thread(unsigned n) {
    if (threads[n] == NULL) return;
    spt_thread_use_context(threads[n], NULL);
    sp_thread_end_detached(threads[n]);
    model_end_thread(&model, &model.threads[n]);
    threads[n] = NULL;
}

static unsigned take_thread(struct input *input) {
    unsigned n = input_below(input, MODEL_THREADS);
    while (threads[n] == NULL) n = (n + 1) % MODEL_THREADS;
    return n;
}

/* The thread is about to do something with spans. */
static struct sp_thread *turn(unsigned n) {
    struct sp_thread *thread = spt_thread_ready(threads[n]);
    CHECK_EQUAL(model.session != 0, thread != NULL);
    model_turn(&model, &model.threads[n]);
    return thread;
}

/* --- spans ------------------------------------------------------------------------ */

static bool has_room(void) {
    return model.session != 0 && model.span_count < MODEL_SPANS;
}

static void was_made(struct model_span *span, struct sp_span *made, bool native) {
    unsigned n = number_of(span);
    CHECK_EQUAL(span->out, sp_span_is_sampled_out(made));
    span->id = made->id;
    real[n] = made;
    is_native[n] = is_held[n] = native;
}

/* Any span of the program: idle, running anywhere, destroyed, of any session; or NULL.
 */
static struct model_span *any_parent(unsigned choice) {
    for (unsigned n = 0; n < model.span_count; n++) {
        unsigned at = (choice + n) % model.span_count;
        if (real[at] != NULL && !is_native[at]) return &model.spans[at];
    }
    return NULL;
}

static bool is_sampled(struct sp_thread *thread, const struct sp_span *parent) {
    enum sp_decision decision = sp_span_decide(thread, parent);
    return decision == SP_SAMPLED || (decision == SP_UNDECIDED && sampled);
}

static struct sp_site *site_of(struct sp_thread *thread, uint32_t name) {
    struct sp_site *site = sp_site_find(thread, &places[name]);
    if (site->place != &places[name])
        *site = (struct sp_site){&places[name], &places[name], NULL,
                                 sp_key_callsite(model_keys[name])};
    return site;
}

static void begin(unsigned t, uint8_t how, struct model_span *parent) {
    struct sp_thread *thread = turn(t);
    if (!has_room()) return;
    uint32_t name = how % MODEL_NAMES;
    struct sp_span *span = spt_span_new();
    const struct sp_span *above = parent != NULL ? real[number_of(parent)] : NULL;
    if (!is_sampled(thread, above))
        sp_span_begin_sampled_out(thread, span);
    else if (above != NULL)
        sp_span_begin_under(thread, span, model_keys[name], above);
    else if (name < PLAIN_NAMES && how >= 128)
        sp_span_begin_at(thread, span, site_of(thread, name));
    else
        sp_span_begin(thread, span, model_keys[name]);
    was_made(model_begin(&model, &model.threads[t], name, parent, sampled), span,
             false);
}

/* Where the sampler would have to be asked, it is recorded. */
static void begin_native(unsigned t, uint8_t how) {
    struct sp_thread *thread = turn(t);
    if (!has_room()) return;
    uint32_t name = how % MODEL_NAMES;
    struct sp_native *native =
        name < PLAIN_NAMES
            ? sp_native_begin(thread, &places[name], sp_key_callsite(model_keys[name]))
            : sp_native_begin_under(thread, model_keys[name], NULL);
    CHECK(native != NULL);
    was_made(model_begin(&model, &model.threads[t], name, NULL, true), &native->span,
             true);
}

static void open_span(unsigned t, uint8_t how, struct model_span *parent) {
    struct sp_thread *thread = turn(t);
    if (!has_room()) return;
    uint32_t name = how % MODEL_NAMES;
    struct sp_span *span = spt_span_new();
    const struct sp_span *above = parent != NULL ? real[number_of(parent)] : NULL;
    if (is_sampled(thread, above))
        sp_span_open(thread, span, model_keys[name], above);
    else
        sp_span_open_sampled_out(thread, span);
    was_made(model_open(&model, &model.threads[t], name, parent, sampled), span, false);
}

static void leave(unsigned t, struct sp_thread *thread, struct model_span *span) {
    unsigned n = number_of(span);
    if (!is_native[n]) {
        CHECK_EQUAL(model_exit(&model, &model.threads[t], span),
                    sp_span_exit(thread, real[n]));
    } else if (is_held[n]) {
        is_held[n] = false;
        if (!span->over) model_exit(&model, &model.threads[t], span);
        spt_native_end(threads[t], (struct sp_native *)real[n]);
    }
}

/* The first from `choice` on for which that is true; or NULL. */
static struct model_span *find(unsigned choice,
                               bool (*fits)(const struct model_span *span)) {
    for (unsigned n = 0; n < model.span_count; n++) {
        struct model_span *span = &model.spans[(choice + n) % model.span_count];
        if (!span->is_nobody && fits(span)) return span;
    }
    return NULL;
}

static bool can_be_entered(const struct model_span *span) {
    return span->idle && span->kept_under < 0;
}
/* Also out of order, on another thread, of an earlier session, or suspended. */
static bool can_be_exited(const struct model_span *span) {
    if (is_native[number_of(span)]) return is_held[number_of(span)];
    return span->kept_under >= 0 || span->adrift ||
           (span->on != NULL && !span->asked_to_exit);
}
static bool can_be_closed(const struct model_span *span) {
    return span->idle && span->opened;
}
static bool can_be_abandoned(const struct model_span *span) {
    return span->kept_under >= 0 && !is_native[number_of(span)];
}

/* --- contexts and suspended spans ----------------------------------------------------
 */

static bool is_free(unsigned context) {
    for (unsigned n = 0; n < MODEL_THREADS; n++)
        if (threads[n] != NULL && model.threads[n].context == &model_contexts[context])
            return false;
    return true;
}

/* The thread goes on in its own context, in another one that nobody is in, or in a new
 * one, which is a copy of that in which it is. */
static void use_context(unsigned t, uint8_t choice) {
    struct model_thread *thread = &model.threads[t];
    if (choice % 3 == 0) {
        spt_thread_use_context(threads[t], NULL);
        thread->context = &thread->own_context;
        return;
    }
    unsigned n = choice / 3u % CONTEXTS;
    if (choice % 3 == 1 && context_count < CONTEXTS) {
        n = context_count++;
        contexts[n] = spt_context_copy(threads[t]);
        model_contexts[n] = *thread->context;
    }
    if (n >= context_count || !is_free(n)) return;
    spt_thread_use_context(threads[t], contexts[n]);
    thread->context = &model_contexts[n];
}

/* The thread's context, if not its own, says that its next span is a root. */
static void clear_context(unsigned t) {
    struct model_thread *thread = &model.threads[t];
    if (!has_room() || thread->context == &thread->own_context) return;
    spt_context_clear(contexts[thread->context - model_contexts]);
    real[model.span_count] = NULL;
    is_held[model.span_count] = is_native[model.span_count] = false;
    model_clear(&model, thread->context);
}

static const void *place_of(unsigned key) {
    return (const void *)(uintptr_t)(16 * (1 + key));
}

static void suspend(unsigned t, struct sp_thread *thread, uint8_t choice) {
    struct model_thread *expected = &model.threads[t];
    if (model.session == 0 || expected->depth == 0) return;
    for (unsigned n = 0; n < expected->depth; n++)
        if (expected->stack[n]->session != model.session) return;
    unsigned count = 1 + choice / MODEL_KEYS % expected->depth;
    const struct model_span *bottom = expected->stack[expected->depth - count];
    CHECK(sp_span_suspend(thread, real[number_of(bottom)],
                          place_of(choice % MODEL_KEYS)));
    model_suspend(&model, expected, count, choice % MODEL_KEYS);
}

/* On no thread: on one that records nothing. */
static void resume(struct sp_thread *thread, struct model_thread *expected,
                   unsigned key) {
    struct sp_span *top = sp_suspended_take(place_of(key), NULL);
    CHECK_EQUAL(model.group_size[key] != 0, top != NULL);
    if (top == NULL) return;
    sp_span_resume(thread, top);
    model_resume(&model, expected, key);
}

/* --- the program
 * ---------------------------------------------------------------------- */

static void step(struct input *input) {
    unsigned t, what = input_below(input, 32);
    struct model_span *span;
    struct sp_thread *thread;
    switch (what) {
    case 0:
    case 1:
    case 2:
        t = take_thread(input);
        begin(t, input_byte(input), NULL);
        break;
    case 3:
        t = take_thread(input);
        span = any_parent(input_byte(input));
        begin(t, input_byte(input), span);
        break;
    case 4:
        t = take_thread(input);
        begin_native(t, input_byte(input));
        break;
    case 5:
        t = take_thread(input);
        what = input_byte(input);
        open_span(t, input_byte(input), what % 2 ? any_parent(what / 2) : NULL);
        break;
    case 6:
    case 7:
    case 8:
        t = take_thread(input);
        thread = turn(t);
        if (model.threads[t].depth > 0)
            leave(t, thread, model.threads[t].stack[model.threads[t].depth - 1]);
        break;
    case 9:
    case 10:
        t = take_thread(input);
        thread = turn(t);
        span = find(input_byte(input), can_be_exited);
        if (span != NULL) leave(t, thread, span);
        break;
    case 11:
        t = take_thread(input);
        thread = turn(t);
        span = find(input_byte(input), can_be_entered);
        if (span == NULL || thread == NULL) break;
        sp_span_enter(thread, real[number_of(span)]);
        model_enter(&model, &model.threads[t], span);
        break;
    case 12:
        t = take_thread(input);
        thread = turn(t);
        span = find(input_byte(input), can_be_closed);
        if (span == NULL) break;
        sp_span_close(thread, real[number_of(span)]);
        model_close(&model, span);
        break;
    case 13:
    case 14:
    case 15:
    case 16: {
        t = take_thread(input);
        uint64_t nanos = input_number(input, 2), system = input_byte(input);
        advance(nanos, t, nanos, nanos * system / 255, input_byte(input));
        break;
    }
    case 17:
        t = take_thread(input);
        advance(input_number(input, 3), t, 0, 0, 0);
        break;
    case 18:
        t = take_thread(input);
        turn(t);
        what = input_byte(input);
        spt_thread_allocate(threads[t], what % 16, what);
        model_allocate(&model, &model.threads[t], what % 16, what);
        break;
    case 19:
        if (model.session != 0 && fed) check_feed();
        break;
    case 20:
        if (model.session != 0) check_snapshot();
        break;
    case 21:
        if (model.session != 0) check_delta();
        break;
    case 22:
        sampled = input_byte(input) % 2;
        break;
    case 23:
    case 24:
        t = take_thread(input);
        use_context(t, input_byte(input));
        break;
    case 25:
        clear_context(take_thread(input));
        break;
    case 26:
        t = take_thread(input);
        what = input_byte(input);
        /* Also while others have asked for exits that the thread has not seen to. */
        thread = what >= 192 ? threads[t] : turn(t);
        suspend(t, thread, (uint8_t)what);
        break;
    case 27:
        t = take_thread(input);
        thread = turn(t);
        resume(thread, thread != NULL ? &model.threads[t] : NULL,
               input_below(input, MODEL_KEYS));
        break;
    case 28:
        resume(NULL, NULL, input_below(input, MODEL_KEYS));
        break;
    case 29:
        t = take_thread(input);
        thread = turn(t);
        span = find(input_byte(input), can_be_abandoned);
        if (span == NULL) break;
        sp_span_abandon(thread, real[number_of(span)]);
        model_abandon(&model, span);
        break;
    case 30:
        make_thread();
        break;
    case 31:
        what = input_byte(input);
        if (what < 128)
            end_thread(take_thread(input));
        else if (what < 192)
            stop(what % 2);
        start(input_byte(input));
        break;
    }
    if (threads[0] == NULL) make_thread();
}

static void free_span(struct model_span *span) {
    if (span == NULL) return;
    unsigned n = number_of(span);
    if (real[n] != NULL) CHECK_EQUAL(SP_SPAN_NONE, sp_span_state(real[n]));
    if (!is_native[n]) spt_span_free(real[n]);
    real[n] = NULL;
}

/* Free what is over, all but the last ones. */
static void tidy(void) {
    while (spt_take_released() != NULL) {}
    for (unsigned n = 0; n < model.span_count; n++) {
        struct model_span *span = &model.spans[n];
        if (real[n] == NULL || !span->over || is_held[n]) continue;
        if (is_native[n]) {
            real[n] = NULL; /* the core has freed it */
        } else if (span != ended[0] && span != ended[1]) {
            free_span(ended[0]);
            ended[0] = ended[1];
            ended[1] = span;
        }
    }
}

static void begin_program(void) {
    memset(&model, 0, offsetof(struct model, spans));
    memset(model.group_size, 0, sizeof model.group_size);
    model.span_count = 0;
    model.now = wall;
    context_count = 0;
    sampled = true;
    for (size_t n = 0; n < sizeof counted / sizeof counted[0]; n++)
        counted_before[n] = spt_stat(counted[n]);
    sampled_out_before = sp_threads_sampled_out();
    make_thread();
}

static void check_counts(void) {
    const uint64_t expected[] = {model.misnested, model.abandoned, model.folded};
    for (size_t n = 0; n < sizeof counted / sizeof counted[0]; n++)
        CHECK_EQUAL(expected[n], spt_stat(counted[n]) - counted_before[n]);
    CHECK_EQUAL(model.sampled_out, sp_threads_sampled_out() - sampled_out_before);
}

/* Leave nothing behind. */
static void end_program(void) {
    for (unsigned n = 0; n < MODEL_THREADS; n++) end_thread(n);
    for (unsigned key = 0; key < MODEL_KEYS; key++) resume(NULL, NULL, key);
    for (unsigned n = 0; n < model.span_count; n++) {
        struct sp_span *span = real[n];
        if (span == NULL) continue;
        if (is_native[n]) {
            if (is_held[n]) spt_native_end(NULL, (struct sp_native *)span);
            real[n] = NULL;
            continue;
        }
        if (sp_span_state(span) == SP_SPAN_ENTERED) sp_span_exit(NULL, span);
        if (sp_span_state(span) == SP_SPAN_OPEN) sp_span_close(NULL, span);
        free_span(&model.spans[n]);
    }
    while (spt_take_released() != NULL) {}
    ended[0] = ended[1] = NULL;
    for (unsigned n = 0; n < context_count; n++) spt_context_free(contexts[n]);
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    const struct sp_text none = {"", 0}, key = {"key", 3};
    for (uint32_t n = 0; n < MODEL_NAMES; n++) {
        struct sp_text letter = {&"abcdxy"[n], 1};
        struct sp_text name =
            n < PLAIN_NAMES ? letter : (struct sp_text){"labelled", 8};
        uint32_t labels =
            n < PLAIN_NAMES ? SP_LABELS_NONE : sp_labels_intern(&key, &letter, 1, 1000);
        model_keys[n] = sp_key_make(sp_callsite_intern(name, none, none, 0, 0), labels);
    }
    spt_clock_set_wall(wall);
    spt_clock_use(true);
    spt_take_released();
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct input input = {data, data + size};
    begin_program();
    for (unsigned n = 0; n < MOST_STEPS && !input_is_over(&input); n++) {
        step(&input);
        tidy();
    }
    if (model.session != 0) check_snapshot();
    stop(false);
    check_counts();
    end_program();
    return 0;
}
