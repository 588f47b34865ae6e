#include "call_lock.h"

#include "compat.h"

#include <time.h>

static uintptr_t self(void) {
    static _Thread_local char here;
    return (uintptr_t)&here;
}

bool call_lock_take(struct call_lock *lock) {
    if (atomic_load_explicit(&lock->owner, memory_order_relaxed) == self())
        return false;
    /* Taken while attached only: at the interpreter's end a thread may not come back
     * from where it attaches, and is not to hold the lock there. */
    while (pthread_mutex_trylock(&lock->mutex) != 0) {
        if (compat_is_finalizing()) return false;
        Py_BEGIN_ALLOW_THREADS
        nanosleep(&(struct timespec){0, 50000}, NULL);
        Py_END_ALLOW_THREADS
    }
    atomic_store_explicit(&lock->owner, self(), memory_order_relaxed);
    return true;
}

void call_lock_release(struct call_lock *lock) {
    atomic_store_explicit(&lock->owner, 0, memory_order_relaxed);
    pthread_mutex_unlock(&lock->mutex);
}

void call_lock_restart_in_child(struct call_lock *lock) {
    if (atomic_load_explicit(&lock->owner, memory_order_relaxed) == self()) return;
    lock->mutex = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
    atomic_store_explicit(&lock->owner, 0, memory_order_relaxed);
}
