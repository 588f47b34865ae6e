/* What differs between compilers and processors, and nothing else.
 *
 * Porting to another processor means three functions here (ticks, thread
 * pointer, and whether the tick counter is fit for use); every one of them may
 * say "not available", which leaves the portable clocks of clock.c. */
#ifndef SPANPROF_CORE_PLATFORM_H
#define SPANPROF_CORE_PLATFORM_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SP_LIKELY(x) __builtin_expect(!!(x), 1)
#define SP_UNLIKELY(x) __builtin_expect(!!(x), 0)
#define SP_COLD __attribute__((cold, noinline))
#define SP_NOINLINE __attribute__((noinline))

/* One mov from %fs instead of a call: our one thread-local word is worth the
 * few bytes of static TLS that it takes from glibc's surplus. */
#define SP_TLS _Thread_local __attribute__((tls_model("initial-exec")))

#if defined(__x86_64__)
#define SP_HAVE_TICKS 1
static inline uint64_t sp_ticks(void) {
    return __builtin_ia32_rdtsc();
}
static inline char *sp_thread_pointer(void) {
    char *self;
    __asm__("mov %%fs:0, %0" : "=r"(self));
    return self;
}
#define SP_RSEQ_SIGNATURE 0x53053053u
#elif defined(__aarch64__)
#define SP_HAVE_TICKS 1
static inline uint64_t sp_ticks(void) {
    uint64_t ticks;
    __asm__ volatile("mrs %0, cntvct_el0" : "=r"(ticks));
    return ticks;
}
static inline char *sp_thread_pointer(void) {
    return (char *)__builtin_thread_pointer();
}
#define SP_RSEQ_SIGNATURE 0xd428bc00u
#else
#define SP_HAVE_TICKS 0
static inline uint64_t sp_ticks(void) {
    return 0;
}
static inline char *sp_thread_pointer(void) {
    return NULL;
}
#define SP_RSEQ_SIGNATURE 0u
#endif

/* A counter with one writer: readers on other threads see whole values, and
 * the writer pays no locked instruction. */
typedef _Atomic uint64_t sp_counter;

static inline uint64_t sp_load(const sp_counter *counter) {
    return atomic_load_explicit(counter, memory_order_relaxed);
}
static inline void sp_store(sp_counter *counter, uint64_t value) {
    atomic_store_explicit(counter, value, memory_order_relaxed);
}
static inline void sp_add(sp_counter *counter, uint64_t value) {
    sp_store(counter, sp_load(counter) + value);
}

/* A counter with many writers, for what is rare enough to afford it. */
static inline void sp_count(sp_counter *counter) {
    atomic_fetch_add_explicit(counter, 1, memory_order_relaxed);
}

static inline uint64_t sp_mix(uint64_t x) {
    /* Finalizer of splitmix64 (Steele, Lea, Flood, 2014). */
    x ^= x >> 30;
    x *= 0xbf58476d1ce4e5b9u;
    x ^= x >> 27;
    x *= 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

#endif
