/* The core's hot paths, for instructions.py to count the instructions of: what
 * instructions.c CASE TIMES does between the two functions measured_first and
 * measured_second. The clock is quick and stands still, so that nothing depends on when
 * it is run; what a quick reading executes is the same. */
#include "../csrc/core/boundary.h"
#include "../csrc/core/callsite.h"
#include "../csrc/core/charge.h"
#include "../csrc/core/native.h"
#include "../tests/core/support.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEPTH 10u
#define BLOCK ((void *)(uintptr_t)0x7f0000000040)
#define SIZE 64u

static struct sp_thread *thread;
static struct sp_span outer, spans[DEPTH];
static struct sp_native *native;
static uint32_t callsite;
static const char place;
static unsigned depth;

/* What is counted is between their first and last instruction. */
__attribute__((noinline, used)) void measured_first(void (*volatile *step)(void));
__attribute__((noinline, used)) void measured_second(void (*volatile *step)(void));
void measured_first(void (*volatile *step)(void)) {
    (*step)();
    __asm__ volatile("" ::: "memory");
}
void measured_second(void (*volatile *step)(void)) {
    (*step)();
    __asm__ volatile("" ::: "memory");
}

/* As the extension module finds it, by the instruction and the span's name. */
static void begin_at_site(void) {
    struct sp_site *site = sp_site_find(thread, &place);
    if (SP_UNLIKELY(site->place != &place || site->name != &place))
        *site = (struct sp_site){&place, &place, NULL, callsite};
    sp_span_begin_at(thread, &spans[depth++], site);
}
static void begin(void) {
    sp_span_begin(thread, &spans[depth++], sp_key_make(callsite, SP_LABELS_NONE));
}
static void leave(void) {
    sp_span_exit(thread, &spans[--depth]);
}
static void begin_native(void) {
    native = sp_native_begin(thread, &place, callsite);
}
static void end_native(void) {
    sp_native_end(thread, native);
}

/* As the allocation hooks do it, around a call that takes nothing, but may look at all
 * that the hook has written. Registers that a call would save are not counted. */
static void make_block(void) {
    if (SP_LIKELY(sp_charge_passes(SIZE))) return;
    struct sp_making making = sp_charge_make();
    __asm__ volatile("" ::: "memory");
    sp_charge_made(&making, BLOCK, SIZE);
}
static void free_block(void) {
    sp_charge_free(BLOCK);
}

static const struct {
    const char *name;
    void (*first)(void), (*second)(void);
    unsigned times;          /* of the first before the second */
    bool runs, counts, heap; /* a session, and what it tracks */
    uint64_t sample_bytes;
} cases[] = {
    {"span", begin_at_site, leave, 1, true, false, false, 0},
    {"span 10 deep", begin_at_site, leave, DEPTH, true, false, false, 0},
    {"span without a site", begin, leave, 1, true, false, false, 0},
    {"span counting blocks", begin_at_site, leave, 1, true, true, false, 0},
    {"native span", begin_native, end_native, 1, true, false, false, 0},
    {"block without session", make_block, free_block, 1, false, false, false, 0},
    {"block counted", make_block, free_block, 1, true, true, false, 0},
    {"block sampled", make_block, free_block, 1, true, true, true, 1 << 20},
    {"block exact", make_block, free_block, 1, true, true, true, 0},
};

static void run(size_t n, unsigned long times) {
    void (*volatile first)(void) = cases[n].first;
    void (*volatile second)(void) = cases[n].second;
    for (unsigned long i = 0; i < times; i += cases[n].times) {
        for (unsigned k = 0; k < cases[n].times; k++) measured_first(&first);
        for (unsigned k = 0; k < cases[n].times; k++) measured_second(&second);
    }
}

static void start(size_t n) {
    struct sp_text name = {"case", 4}, none = {"", 0};
    callsite = sp_callsite_intern(name, none, none, 0, 0);
    if (!cases[n].runs) return;
    spt_clock_set_wall(1000000);
    spt_clock_use(true);
    sp_heap_seed(1);
    if (spt_start_memory(cases[n].counts, cases[n].heap, 1000, cases[n].sample_bytes,
                         false, 1000, 0) != 0)
        abort();
    thread = sp_thread_current();
    spt_clock_set_quick(thread, true);
    sp_span_begin(thread, &outer, sp_key_make(callsite, SP_LABELS_NONE));
}

int main(int argc, char **argv) {
    for (size_t n = 0; n < sizeof cases / sizeof cases[0]; n++) {
        if (argc == 1) {
            puts(cases[n].name);
        } else if (argc == 3 && strcmp(argv[1], cases[n].name) == 0) {
            start(n);
            run(n, strtoul(argv[2], NULL, 10));
            return 0;
        }
    }
    return argc == 1 ? 0 : 2;
}
