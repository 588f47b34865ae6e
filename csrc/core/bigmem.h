/* Memory for large things that live shortly: pages of their own, given back to
 * the system when freed. The C library's heap would keep them, and a snapshot
 * of many nodes now and then would look like a leak. */
#ifndef SPANPROF_CORE_BIGMEM_H
#define SPANPROF_CORE_BIGMEM_H

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define SP_BIG ((size_t)1 << 18)

/* ThreadSanitizer does not see where mremap puts things: to it that is still what was
 * there before, the stack of a thread that has ended, say. */
#if defined(__SANITIZE_THREAD__)
#define SP_BIG_MOVES_BY_COPY 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define SP_BIG_MOVES_BY_COPY 1
#endif
#endif

/* Pages that grow: `old` of that size (NULL: none yet) becomes `size` bytes, at another
 * place perhaps; what is new is zero, and no memory before it is touched. NULL if there
 * is none, and `old` is as it was. Free with munmap. */
static inline void *sp_big_grow(void *old, size_t old_size, size_t size) {
#ifndef SP_BIG_MOVES_BY_COPY
    if (old != NULL) {
        void *moved = mremap(old, old_size, size, MREMAP_MAYMOVE);
        return moved != MAP_FAILED ? moved : NULL;
    }
#endif
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return NULL;
    if (old != NULL) {
        memcpy(memory, old, old_size < size ? old_size : size);
        munmap(old, old_size);
    }
    return memory;
}

/* Zeroed; NULL if there is none. Free with the same size. */
static inline void *sp_big_alloc(size_t size) {
    if (size < SP_BIG) return calloc(1, size > 0 ? size : 1);
    void *memory =
        mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return NULL;
    madvise(memory, size,
            MADV_HUGEPAGE); /* page faults are half of a snapshot's time */
    return memory;
}

static inline void sp_big_free(void *memory, size_t size) {
    if (memory == NULL) return;
    if (size < SP_BIG)
        free(memory);
    else
        munmap(memory, size);
}

#endif
