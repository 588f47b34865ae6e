#include "fork.h"

#include "callsite.h"
#include "collector.h"
#include "heap_span.h"
#include "publish.h"
#include "shadow.h"
#include "span.h"
#include "suspend.h"
#include "suspended.h"

#include <pthread.h>

sp_counter sp_forks;

static void before(void) {
    sp_collector_lock();
    sp_spans_lock();
    sp_suspended_lock();
    sp_threads_lock();
    sp_paths_lock();
    sp_callsite_lock();
    sp_heap_spans_lock();
    sp_shadow_lock();
}

static void after_in_parent(void) {
    sp_shadow_unlock();
    sp_heap_spans_unlock();
    sp_callsite_unlock();
    sp_paths_unlock();
    sp_threads_unlock();
    sp_suspended_unlock();
    sp_spans_unlock();
    sp_collector_unlock();
}

static void after_in_child(void) {
    sp_count(&sp_forks);
    sp_shadow_relock_in_child();
    sp_heap_spans_relock_in_child();
    sp_callsite_relock_in_child();
    sp_paths_relock_in_child();
    sp_publish_restart_in_child();
    sp_threads_relock_in_child();
    sp_suspended_relock_in_child();
    sp_suspend_restart_in_child();
    sp_spans_relock_in_child();
    sp_session_restart_in_child();
    sp_collector_relock_in_child();
}

static void install(void) {
    pthread_atfork(before, after_in_parent, after_in_child);
}

void sp_fork_install(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, install);
}
