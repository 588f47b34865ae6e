/* From a place in Python code to a callsite of the core. */
#ifndef SPANPROF_PYTHON_CALLSITE_OF_H
#define SPANPROF_PYTHON_CALLSITE_OF_H

#include "state.h"

#include "../core/thread.h"

/* The callsite of the instruction that called us, under that name. Needs a
 * thread state, never fails, leaves no exception. */
uint32_t callsite_of_caller_slow(ModuleState *state, struct sp_thread *thread,
                                 const void *place, PyObject *name);

/* The cache entry of the instruction that the frame, which is the current one, is at,
 * and of the name; or NULL: ask the slow one. */
static inline struct sp_site *site_in(const struct _PyInterpreterFrame *frame,
                                      struct sp_thread *thread, PyObject *name) {
    const void *place = compat_place_in(frame);
    struct sp_site *site = sp_site_find(thread, place);
    if (SP_LIKELY(site->name == name && site->place == place)) return site;
    return NULL;
}

static inline uint32_t callsite_of_caller(ModuleState *state, struct sp_thread *thread,
                                          PyObject *name) {
    const struct _PyInterpreterFrame *frame = compat_frame();
    const struct sp_site *site = site_in(frame, thread, name);
    if (site != NULL) return site->callsite;
    return callsite_of_caller_slow(state, thread, compat_place_in(frame), name);
}

/* Keep a weak reference to the code object in the dict, under its address, until it
 * dies: then the caches of callsites are forgotten as well, before the address can be
 * another's. False, without an exception, if its death would go unnoticed. */
bool callsite_watch(PyObject *references, PyCodeObject *code);

/* The callsite of a function that is decorated. */
uint32_t callsite_of_function(PyObject *function, PyObject *name);

#endif
