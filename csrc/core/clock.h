/* Wall clock and thread CPU clock, both read in about ten nanoseconds.
 *
 * Wall time is CLOCK_MONOTONIC, interpolated between readings of it by the
 * processor's tick counter. CPU time rests on one observation: a thread that
 * was not descheduled between two moments has used as much CPU as wall time has
 * passed. Linux tells which case it is through restartable sequences (rseq(2)):
 * on switching a thread out, the kernel clears its `rseq_cs` field if the
 * thread is outside the critical section that the field describes. We point
 * the field at a descriptor whose range is never executed; while our pointer
 * stands, CPU time is base + elapsed ticks. Otherwise CLOCK_THREAD_CPUTIME_ID
 * is read and the pointer set again. docs/internals/clock.md has the whole
 * argument.
 *
 * One `struct sp_clock` belongs to one thread, which alone may read through it.
 * All values are nanoseconds. Nothing here allocates or takes a lock. */
#ifndef SPANPROF_CORE_CLOCK_H
#define SPANPROF_CORE_CLOCK_H

#include "platform.h"

#include <time.h>

struct sp_moment {
    uint64_t wall; /* CLOCK_MONOTONIC */
    uint64_t cpu;  /* CLOCK_THREAD_CPUTIME_ID of the reading thread */
};

struct sp_clock {
    uint64_t ticks_base; /* tick counter at the last synchronisation */
    uint64_t ticks_max;  /* elapsed ticks beyond which to synchronise again */
    uint64_t multiplier; /* nanoseconds per tick, 32 fractional bits */
    struct sp_moment base;
    volatile uint64_t *marker; /* the thread's rseq_cs, or a word that never changes */
    uint64_t armed;            /* what *marker holds while undisturbed */
    _Atomic int cpu_clock;     /* clockid_t of the thread, for readers elsewhere */
    bool want_cpu, has_rseq;
    void *key; /* passed to an injected clock source */
};

/* Test seam: replaces all three readings. Functions may be called from any
 * thread that opens spans; `key` is the sp_clock's, or NULL for the reader. */
struct sp_clock_source {
    uint64_t (*wall)(void *key);
    uint64_t (*cpu)(void *key);
    uint64_t (*system)(void *key);
};

enum sp_clock_wall_kind { SP_WALL_GETTIME, SP_WALL_TICKS, SP_WALL_INJECTED };
enum sp_clock_cpu_kind { SP_CPU_GETTIME, SP_CPU_RSEQ, SP_CPU_INJECTED };

/* Choose and calibrate the clocks; called at each session start, cheap after
 * the first. `SPANPROF_CLOCK=gettime` in the environment forces the fall-backs. */
void sp_clock_setup(void);
enum sp_clock_wall_kind sp_clock_wall_kind(void);
enum sp_clock_cpu_kind sp_clock_cpu_kind(void);

/* NULL takes the injected source away. Only while no session runs. */
void sp_clock_inject(const struct sp_clock_source *source);

/* Bind the clock to the calling thread and read it for the first time. */
void sp_clock_attach(struct sp_clock *clock, bool want_cpu, struct sp_moment *now);

/* Any thread: the shared wall clock, and the CPU time of the thread that the
 * clock is bound to. The latter is a system call and false once it has ended. */
uint64_t sp_clock_wall(void);
/* The same some milliseconds late, for a fifth of the price. */
uint64_t sp_clock_wall_coarse(void);
bool sp_clock_cpu_of(const struct sp_clock *clock, uint64_t *cpu);

/* System CPU time of the calling thread. Only right after the thread clock was
 * read: getrusage alone lags by up to a scheduler tick. */
uint64_t sp_clock_system(struct sp_clock *clock);

bool sp_clock_now_slow(struct sp_clock *clock, struct sp_moment *now);

/* Read the time, never before `*last`, if that takes no system call; else false. */
static inline bool sp_clock_now_quick(const struct sp_clock *clock,
                                      const struct sp_moment *last,
                                      struct sp_moment *now) {
    uint64_t elapsed = sp_ticks() - clock->ticks_base;
    if (SP_UNLIKELY(elapsed >= clock->ticks_max || *clock->marker != clock->armed))
        return false;
    uint64_t nanos = (elapsed * clock->multiplier) >> 32;
    uint64_t wall = clock->base.wall + nanos, cpu = clock->base.cpu + nanos;
    /* Interpolation may run ahead of the clock that it is then put right by. */
    now->wall = SP_LIKELY(wall > last->wall) ? wall : last->wall;
    now->cpu = SP_LIKELY(cpu > last->cpu) ? cpu : last->cpu;
    return true;
}

/* Read the time, never before `*last`. True if the thread's CPU clock was read
 * afresh, so that sp_clock_system is current and due. */
static inline bool sp_clock_now(struct sp_clock *clock, const struct sp_moment *last,
                                struct sp_moment *now) {
    if (SP_LIKELY(sp_clock_now_quick(clock, last, now))) return false;
    struct sp_moment read;
    bool fresh = sp_clock_now_slow(clock, &read);
    now->wall = read.wall > last->wall ? read.wall : last->wall;
    now->cpu = read.cpu > last->cpu ? read.cpu : last->cpu;
    return fresh;
}

#endif
