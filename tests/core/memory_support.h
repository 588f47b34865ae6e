/* Memory that runs out for the core when a test says so. What support files take for
 * themselves does not run out: they get the C library's functions here. */
#ifndef SPANPROF_TESTS_MEMORY_SUPPORT_H
#define SPANPROF_TESTS_MEMORY_SUPPORT_H

#include <stddef.h>

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *old, size_t size);

#define malloc __real_malloc
#define calloc __real_calloc
#define realloc __real_realloc

#endif
