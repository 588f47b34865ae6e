/* Counting what CPython's allocators hand out, by the running span. */
#ifndef SPANPROF_PYTHON_ALLOC_HOOKS_H
#define SPANPROF_PYTHON_ALLOC_HOOKS_H

/* Put the hooks in place, once; they stay. Needs a thread state. */
void alloc_hooks_install(void);

#endif
