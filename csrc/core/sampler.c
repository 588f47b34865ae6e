#include "sampler.h"

#include <math.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

/* Of the running session. Atomic, as a thread that has not noticed yet that its
 * session is over may read them while the next one begins. */
static _Atomic int kind;
static _Atomic double ratio;
static _Atomic uint64_t base;    /* of all streams */
static _Atomic uint64_t streams; /* taken so far */

/* What tells this process from those that it was forked from; 0 if there are none.
 * Written while there is one thread. */
static uint64_t fork_salt;

#define GOLDEN 0x9e3779b97f4a7c15u

static uint64_t entropy(void) {
    uint64_t value;
    if (getrandom(&value, sizeof value, GRND_NONBLOCK) == sizeof value) return value;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return sp_mix((uint64_t)now.tv_nsec * GOLDEN + (uint64_t)now.tv_sec) +
           (uint64_t)getpid();
}

void sp_sampler_begin(const struct sp_sampler_config *config) {
    uint64_t seed = config->has_seed ? config->seed : entropy();
    /* A child that starts a session of its own has the seed in common with others. */
    if (fork_salt != 0) seed = sp_mix(seed + GOLDEN) ^ fork_salt;
    atomic_store_explicit(&base, sp_mix(seed + GOLDEN), memory_order_relaxed);
    atomic_store_explicit(&streams, 0, memory_order_relaxed);
    atomic_store_explicit(&ratio, config->ratio, memory_order_relaxed);
    /* One that takes all is none. */
    bool takes_all = config->kind == SP_SAMPLER_RATIO && config->ratio >= 1;
    atomic_store_explicit(&kind, takes_all ? SP_SAMPLER_NONE : (int)config->kind,
                          memory_order_relaxed);
}

void sp_sampler_reset(struct sp_sampler *sampler) {
    int wanted = atomic_load_explicit(&kind, memory_order_relaxed);
    sampler->on = wanted != SP_SAMPLER_NONE;
    sampler->asks = wanted == SP_SAMPLER_ASK;
    sampler->has_stream = false;
    sampler->skip = 0;
}

/* splitmix64 (Steele, Lea, Flood, 2014). */
static uint64_t next_random(struct sp_sampler *sampler) {
    sampler->stream += GOLDEN;
    return sp_mix(sampler->stream);
}

/* How many roots in a row are left out: k or more with probability (1 - ratio)^k. */
static uint64_t draw_skip(struct sp_sampler *sampler) {
    double taken = atomic_load_explicit(&ratio, memory_order_relaxed);
    if (taken >= 1) return 0;
    if (taken <= 0) return UINT64_MAX;
    /* Above 0, and at most 1. */
    double uniform = (double)((next_random(sampler) >> 11) + 1) * 0x1p-53;
    double skip = floor(log(uniform) / log1p(-taken));
    return skip < 0x1p63 ? (uint64_t)skip : UINT64_MAX;
}

static void take_stream(struct sp_sampler *sampler) {
    uint64_t number = atomic_fetch_add_explicit(&streams, 1, memory_order_relaxed);
    uint64_t from = atomic_load_explicit(&base, memory_order_relaxed);
    sampler->stream = sp_mix(from + number * GOLDEN);
    sampler->has_stream = true;
}

enum sp_decision sp_sampler_decide(struct sp_sampler *sampler) {
    if (sampler->asks) return SP_UNDECIDED;
    if (SP_UNLIKELY(!sampler->has_stream)) {
        take_stream(sampler);
        sampler->skip = draw_skip(sampler);
    }
    if (SP_LIKELY(sampler->skip > 0)) {
        sampler->skip--;
        return SP_SAMPLED_OUT;
    }
    sampler->skip = draw_skip(sampler);
    return SP_SAMPLED;
}

void sp_sampler_restart_in_child(struct sp_sampler *sampler) {
    /* Children that were forked one after the other have nothing else that differs. */
    fork_salt = sp_mix(fork_salt + GOLDEN * (uint64_t)getpid()) | 1;
    uint64_t from = atomic_load_explicit(&base, memory_order_relaxed);
    atomic_store_explicit(&base, sp_mix(from ^ fork_salt), memory_order_relaxed);
    /* What is still to be skipped says nothing of what comes after: a geometric
     * distribution has no memory. */
    if (sampler == NULL) return;
    sampler->has_stream = false;
    sampler->skip = 0;
}
