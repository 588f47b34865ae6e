/* A lock of four bytes, for sections of some nanoseconds. Who has to wait lets others
 * run: the holder may be one of them. */
#ifndef SPANPROF_CORE_LOCK_H
#define SPANPROF_CORE_LOCK_H

#include "platform.h"

#include <sched.h>

struct sp_lock {
    _Atomic int held;
};

static SP_COLD void sp_lock_wait(struct sp_lock *lock) {
    for (unsigned attempt = 1;; attempt++) {
        if (atomic_load_explicit(&lock->held, memory_order_relaxed) == 0 &&
            atomic_exchange_explicit(&lock->held, 1, memory_order_acquire) == 0)
            return;
        if (attempt % 64 == 0) sched_yield();
    }
}

static inline void sp_lock_take(struct sp_lock *lock) {
    if (SP_UNLIKELY(atomic_exchange_explicit(&lock->held, 1, memory_order_acquire)))
        sp_lock_wait(lock);
}

static inline void sp_lock_release(struct sp_lock *lock) {
    atomic_store_explicit(&lock->held, 0, memory_order_release);
}

#endif
