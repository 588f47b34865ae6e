/* Greenlets: each has a stack of spans of its own, which is suspended while another one
 * runs on the thread. greenlet tells of switches (greenlet.settrace); a program that
 * has not imported it pays nothing. docs/internals/suspension.md */
#ifndef SPANPROF_PYTHON_GREENLETS_H
#define SPANPROF_PYTHON_GREENLETS_H

#include "state.h"

#include "../core/thread.h"

/* If greenlet was imported, have it tell of the calling thread's switches from now on.
 * May leave an exception. What runs on the thread may be suspended thereby. */
void greenlets_look(ModuleState *state, struct sp_thread *thread);

int greenlets_init(PyObject *module);

#endif
