/* Hooks around CPython's allocators, see alloc_hooks.c. */
#ifndef SPANPROF_PYTHON_ALLOC_HOOKS_H
#define SPANPROF_PYTHON_ALLOC_HOOKS_H

#include <stdbool.h>

/* Put the hooks in place, or back in place. With the GIL, or attached. */
void alloc_hooks_install(void);

/* Whether somebody has taken the hooks out: from then on, nothing is counted. */
bool alloc_hooks_lost(void);

#endif
