#include "clock.h"

#include "stats.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#define SECOND 1000000000u
#define MILLISECOND 1000000u

/* How long ticks alone carry the clocks. The shorter one bounds how far the CPU
 * clock can stray from the kernel's (which leaves out time that a hypervisor or
 * an interrupt took) and how stale the user/system split may get. */
#define SYNC_WITH_CPU MILLISECOND
#define SYNC_WALL_ONLY (64 * (uint64_t)MILLISECOND)

/* Layout fixed by the kernel (uapi/linux/rseq.h); older libcs lack the header. */
struct rseq_descriptor {
    uint32_t version, flags;
    uint64_t start_ip, post_commit_offset, abort_ip;
} __attribute__((aligned(32)));
struct rseq_area {
    uint32_t cpu_id_start;
    uint32_t cpu_id;
    uint64_t rseq_cs;
};

/* What a thread's rseq_cs points to. In memory of its own that is never given back:
 * the kernel follows the pointer whenever it switches the thread out, also after the
 * library that holds this code was unloaded, and kills the process if nothing is
 * there. */
struct rseq_never {
    struct rseq_descriptor descriptor;
    uint32_t signature, abort_site;
};
static struct rseq_never *rseq_never;

/* A thread without rseq compares this word with itself. */
static volatile uint64_t undisturbed;

struct pair {
    uint64_t ticks, wall;
};

/* Written under `setup_lock`; kinds and rseq_offset settle at the first setup.
 * `multiplier` is read by every thread at its synchronisations. */
static pthread_mutex_t setup_lock = PTHREAD_MUTEX_INITIALIZER;
static bool settled;
static enum sp_clock_wall_kind wall_kind = SP_WALL_GETTIME;
static enum sp_clock_cpu_kind cpu_kind = SP_CPU_GETTIME;
static ptrdiff_t rseq_offset;
static struct pair calibration_origin;
static sp_counter calibrated_at;
static sp_counter multiplier;
static struct sp_clock_source injected;

static uint64_t gettime(clockid_t id) {
    struct timespec t;
    if (clock_gettime(id, &t) != 0) return 0;
    return (uint64_t)t.tv_sec * SECOND + (uint64_t)t.tv_nsec;
}

/* --- tick counter ------------------------------------------------------- */

static struct pair read_pair(void) {
    struct pair best = {0, 0};
    uint64_t narrowest = UINT64_MAX;
    for (int i = 0; i < 5; i++) {
        uint64_t before = sp_ticks();
        uint64_t wall = gettime(CLOCK_MONOTONIC);
        uint64_t width = sp_ticks() - before;
        if (width < narrowest) {
            narrowest = width;
            best = (struct pair){before + width / 2, wall};
        }
    }
    return best;
}

/* Take the first pair as early as possible: the longer the base line, the
 * better the first calibration. */
__attribute__((constructor)) static void take_origin(void) {
    if (SP_HAVE_TICKS) calibration_origin = read_pair();
}

static void calibrate(void) {
    struct pair now = read_pair();
    uint64_t wall = now.wall - calibration_origin.wall;
    uint64_t ticks = now.ticks - calibration_origin.ticks;
    if (wall == 0 || ticks == 0) return;
    uint64_t fresh = (uint64_t)(((unsigned __int128)wall << 32) / ticks);
    uint64_t old = sp_load(&multiplier);
    uint64_t off = fresh > old ? fresh - old : old - fresh;
    if (old != 0 && off > old / 1000) {
        /* The two clocks parted (a suspended machine, a migrated guest): the
         * base line is spoilt, the rate itself is not. */
        calibration_origin = now;
    } else {
        sp_store(&multiplier, fresh);
    }
    sp_store(&calibrated_at, now.wall);
}

static bool first_line_is(const char *path, const char *expected) {
    char line[64] = "";
    FILE *file = fopen(path, "re");
    if (file == NULL) return false;
    bool same = fgets(line, sizeof line, file) != NULL &&
                strncmp(line, expected, strlen(expected)) == 0;
    fclose(file);
    return same;
}

static bool ticks_usable(void) {
#if defined(__x86_64__)
    /* The kernel trusts the TSC across cores and sleep states exactly when it
     * uses it as its own clock source. */
    return first_line_is(
        "/sys/devices/system/clocksource/clocksource0/current_clocksource", "tsc\n");
#elif defined(__aarch64__)
    return first_line_is(
        "/sys/devices/system/clocksource/clocksource0/current_clocksource",
        "arch_sys_counter\n");
#else
    return false;
#endif
}

/* --- restartable sequences ---------------------------------------------- */

static struct rseq_area *rseq_area(void) {
    return (struct rseq_area *)(void *)(sp_thread_pointer() + rseq_offset);
}

static volatile uint64_t *rseq_marker(void) {
    struct rseq_area *area = rseq_area();
    /* cpu_id is -1 or -2 in a thread that libc did not register. */
    return (int32_t)area->cpu_id < 0 ? NULL : &area->rseq_cs;
}

static bool rseq_usable(void) {
    if (sp_thread_pointer() == NULL) return false;
    /* glibc 2.35 and later; looked up so that a build on an older one runs. */
    const ptrdiff_t *offset = dlsym(RTLD_DEFAULT, "__rseq_offset");
    const unsigned *size = dlsym(RTLD_DEFAULT, "__rseq_size");
    if (offset == NULL || size == NULL || *size == 0) return false;
    rseq_offset = *offset;
    rseq_never = mmap(NULL, sizeof *rseq_never, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (rseq_never == MAP_FAILED) return false;
    rseq_never->descriptor.start_ip = (uintptr_t)rseq_never;
    rseq_never->descriptor.post_commit_offset = 1;
    rseq_never->descriptor.abort_ip = (uintptr_t)&rseq_never->abort_site;
    rseq_never->signature = SP_RSEQ_SIGNATURE;

    volatile uint64_t *marker = rseq_marker();
    if (marker == NULL || *marker != 0) return false; /* somebody else's */
    /* Self-test: each sleep must clear the field. Several, as a kernel that clears it
     * only when it interrupts user code (some since 6.19) would pass one by luck. */
    for (int i = 0; i < 8; i++) {
        *marker = (uintptr_t)rseq_never;
        struct timespec nap = {0, 1000};
        nanosleep(&nap, NULL);
        bool cleared = *marker == 0;
        *marker = 0;
        if (!cleared) return false;
    }
    return true;
}

/* --- set-up -------------------------------------------------------------- */

void sp_clock_setup(void) {
    pthread_mutex_lock(&setup_lock);
    if (!settled) {
        settled = true;
        const char *forced = getenv("SPANPROF_CLOCK");
        bool fallback = forced != NULL && strcmp(forced, "gettime") == 0;
        if (!fallback && ticks_usable()) wall_kind = SP_WALL_TICKS;
        if (!fallback && rseq_usable()) cpu_kind = SP_CPU_RSEQ;
        /* Two milliseconds hold a reading's error of some 20 ns to 10 ppm, and
         * a program is rarely quicker from its import of us to its session. */
        while (wall_kind == SP_WALL_TICKS &&
               gettime(CLOCK_MONOTONIC) - calibration_origin.wall < 2 * MILLISECOND) {}
    }
    if (wall_kind == SP_WALL_TICKS) calibrate();
    pthread_mutex_unlock(&setup_lock);
}

enum sp_clock_wall_kind sp_clock_wall_kind(void) {
    return injected.wall != NULL ? SP_WALL_INJECTED : wall_kind;
}

enum sp_clock_cpu_kind sp_clock_cpu_kind(void) {
    return injected.wall != NULL ? SP_CPU_INJECTED : cpu_kind;
}

void sp_clock_inject(const struct sp_clock_source *source) {
    injected = source != NULL ? *source : (struct sp_clock_source){NULL, NULL, NULL};
}

/* --- reading -------------------------------------------------------------- */

uint64_t sp_clock_wall(void) {
    return injected.wall != NULL ? injected.wall(NULL) : gettime(CLOCK_MONOTONIC);
}

#ifndef CLOCK_MONOTONIC_COARSE
#define CLOCK_MONOTONIC_COARSE CLOCK_MONOTONIC
#endif

uint64_t sp_clock_wall_coarse(void) {
    return injected.wall != NULL ? injected.wall(NULL)
                                 : gettime(CLOCK_MONOTONIC_COARSE);
}

bool sp_clock_cpu_of(const struct sp_clock *clock, uint64_t *cpu) {
    if (injected.wall != NULL) {
        *cpu = injected.cpu(clock->key);
        return true;
    }
    struct timespec t;
    clockid_t id = atomic_load_explicit(&clock->cpu_clock, memory_order_relaxed);
    if (clock_gettime(id, &t) != 0) return false;
    *cpu = (uint64_t)t.tv_sec * SECOND + (uint64_t)t.tv_nsec;
    return true;
}

uint64_t sp_clock_system(struct sp_clock *clock) {
    if (injected.wall != NULL) return injected.system(clock->key);
    struct rusage usage;
    if (getrusage(RUSAGE_THREAD, &usage) != 0) return 0;
    return (uint64_t)usage.ru_stime.tv_sec * SECOND +
           (uint64_t)usage.ru_stime.tv_usec * 1000u;
}

static void use_ticks(struct sp_clock *clock, uint64_t ticks) {
    uint64_t rate = sp_load(&multiplier);
    uint64_t span = clock->want_cpu ? SYNC_WITH_CPU : SYNC_WALL_ONLY;
    uint64_t most = (span << 32) / rate;
    uint64_t unoverflowed = UINT64_MAX / rate;
    clock->ticks_base = ticks;
    clock->multiplier = rate;
    clock->ticks_max = most < unoverflowed ? most : unoverflowed;
}

/* The fast path stays shut until the next synchronisation. */
static void use_no_ticks(struct sp_clock *clock) {
    clock->ticks_max = 0;
}

static bool synchronise(struct sp_clock *clock, struct sp_moment *now) {
    bool ticking = wall_kind == SP_WALL_TICKS;
    if (clock->want_cpu) {
        /* Armed first: if the thread is switched out before the clocks below
         * have been read, the next reading must not trust them. */
        *clock->marker = clock->armed;
        now->cpu = gettime(CLOCK_THREAD_CPUTIME_ID);
    } else {
        now->cpu = 0;
    }
    uint64_t ticks = sp_ticks();
    now->wall = gettime(CLOCK_MONOTONIC);
    clock->base = *now;
    /* Without rseq nothing tells us that CPU time stood still. */
    if (ticking && (clock->has_rseq || !clock->want_cpu)) {
        use_ticks(clock, ticks);
        if (now->wall - sp_load(&calibrated_at) > SECOND &&
            pthread_mutex_trylock(&setup_lock) == 0) {
            calibrate();
            pthread_mutex_unlock(&setup_lock);
        }
    } else {
        use_no_ticks(clock);
    }
    sp_count(&sp_stats.clock_synchronisations);
    return clock->want_cpu;
}

SP_COLD bool sp_clock_now_slow(struct sp_clock *clock, struct sp_moment *now) {
    if (injected.wall != NULL) {
        now->wall = injected.wall(clock->key);
        now->cpu = clock->want_cpu ? injected.cpu(clock->key) : 0;
        return clock->want_cpu;
    }
    if (wall_kind == SP_WALL_TICKS && (clock->has_rseq || !clock->want_cpu))
        return synchronise(clock, now);

    /* No ticks: the vDSO's wall clock each time, CPU time from it if we may. */
    now->wall = gettime(CLOCK_MONOTONIC);
    uint64_t elapsed = now->wall - clock->base.wall;
    if (!clock->want_cpu) {
        now->cpu = 0;
        return false;
    }
    if (clock->has_rseq) {
        if (elapsed < SYNC_WITH_CPU && *clock->marker == clock->armed) {
            now->cpu = clock->base.cpu + elapsed;
            return false;
        }
        return synchronise(clock, now);
    }
    now->cpu = gettime(CLOCK_THREAD_CPUTIME_ID);
    if (elapsed < SYNC_WITH_CPU) return false;
    clock->base = *now;
    return true;
}

void sp_clock_attach(struct sp_clock *clock, bool want_cpu, struct sp_moment *now) {
    clock->want_cpu = want_cpu;
    clock->has_rseq = false;
    clock->marker = &undisturbed;
    clock->armed = 0;
    use_no_ticks(clock);
    if (injected.wall != NULL) {
        sp_clock_now_slow(clock, now);
        return;
    }
    clockid_t mine;
    if (pthread_getcpuclockid(pthread_self(), &mine) != 0) mine = -1;
    atomic_store_explicit(&clock->cpu_clock, mine, memory_order_relaxed);
    if (want_cpu && cpu_kind == SP_CPU_RSEQ) {
        volatile uint64_t *marker = rseq_marker();
        if (marker != NULL) {
            clock->has_rseq = true;
            clock->marker = marker;
            clock->armed = (uintptr_t)rseq_never;
        }
    }
    synchronise(clock, now);
}
