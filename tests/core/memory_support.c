/* Memory that runs out when a test says so. The library's calls for memory, and
 * for threads, come here (the linker's --wrap), nobody else's do. */
#include "memory_support.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/mman.h>

typedef void *(*thread_body)(void *argument);

void *__real_mmap(void *place, size_t size, int access, int flags, int file, off_t at);
void *__real_mmap64(void *place, size_t size, int access, int flags, int file,
                    off_t at);
void *__real_mremap(void *old, size_t old_size, size_t size, int flags);
int __real_pthread_create(pthread_t *thread, const pthread_attr_t *attributes,
                          thread_body body, void *argument);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *old, size_t size);
void *__wrap_mmap(void *place, size_t size, int access, int flags, int file, off_t at);
void *__wrap_mmap64(void *place, size_t size, int access, int flags, int file,
                    off_t at);
void *__wrap_mremap(void *old, size_t old_size, size_t size, int flags);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes,
                          thread_body body, void *argument);
int64_t spt_memory_refuse(int64_t after, int64_t count);

/* Calls that get their memory still, and those after them that do not. */
static _Atomic int64_t calls_left = INT64_MAX, refusals_left, refused;

/* From the call after so many, that many calls get no memory; 0: all do again. Returns
 * how many got none since the last time. */
int64_t spt_memory_refuse(int64_t after, int64_t count) {
    int64_t before = refused;
    refused = 0;
    calls_left = after;
    refusals_left = count;
    return before;
}

static bool refuses(void) {
    if (refusals_left <= 0 || atomic_fetch_sub(&calls_left, 1) > 0) return false;
    if (atomic_fetch_sub(&refusals_left, 1) <= 0) return false;
    refused++;
    return true;
}

void *__wrap_malloc(size_t size) {
    return refuses() ? NULL : __real_malloc(size);
}
void *__wrap_calloc(size_t count, size_t size) {
    return refuses() ? NULL : __real_calloc(count, size);
}
void *__wrap_realloc(void *old, size_t size) {
    return refuses() ? NULL : __real_realloc(old, size);
}
void *__wrap_mmap(void *place, size_t size, int access, int flags, int file, off_t at) {
    return refuses() ? MAP_FAILED : __real_mmap(place, size, access, flags, file, at);
}
void *__wrap_mmap64(void *place, size_t size, int access, int flags, int file,
                    off_t at) {
    return refuses() ? MAP_FAILED : __real_mmap64(place, size, access, flags, file, at);
}
void *__wrap_mremap(void *old, size_t old_size, size_t size, int flags) {
    return refuses() ? MAP_FAILED : __real_mremap(old, old_size, size, flags);
}
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes,
                          thread_body body, void *argument) {
    return refuses() ? EAGAIN
                     : __real_pthread_create(thread, attributes, body, argument);
}
