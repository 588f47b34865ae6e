/* A lock that may be held while Python is called. A critical section is no such thing:
 * it is let go of whenever the thread waits for anything, and so is the GIL. */
#ifndef SPANPROF_PYTHON_CALL_LOCK_H
#define SPANPROF_PYTHON_CALL_LOCK_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct call_lock {
    pthread_mutex_t mutex;
    _Atomic uintptr_t owner; /* 0: nobody, or it is about to be somebody's */
};

#define CALL_LOCK_INIT \
    { PTHREAD_MUTEX_INITIALIZER, 0 }

/* The thread is attached to an interpreter, and is not while it waits. False, and the
 * lock is not taken, if the thread holds it already: what Python code it calls may come
 * here. */
bool call_lock_take(struct call_lock *lock);
void call_lock_release(struct call_lock *lock);

/* In a forked child: who held it is gone, unless it is the calling thread. */
void call_lock_restart_in_child(struct call_lock *lock);

#endif
