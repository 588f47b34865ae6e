/* Memory for large things that live shortly: pages of their own, given back to
 * the system when freed. The C library's heap would keep them, and a snapshot
 * of many nodes now and then would look like a leak. */
#ifndef SPANPROF_CORE_BIGMEM_H
#define SPANPROF_CORE_BIGMEM_H

#include <stdlib.h>
#include <sys/mman.h>

#define SP_BIG ((size_t)1 << 18)

/* Pages that grow: `old` of that size (NULL: none yet) becomes `size` bytes, at another
 * place perhaps; what is new is zero, and no memory before it is touched. NULL if there
 * is none, and `old` is as it was. Free with munmap. */
static inline void *sp_big_grow(void *old, size_t old_size, size_t size) {
    void *memory = old == NULL
                       ? mmap(NULL, size, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
                       : mremap(old, old_size, size, MREMAP_MAYMOVE);
    return memory != MAP_FAILED ? memory : NULL;
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
