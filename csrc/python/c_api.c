#include "c_api.h"

#include "current_context.h"
#include "span_object.h"

#include "../core/charge.h"
#include "../core/native.h"
#include <string.h>

/* A parent is the core's. */
static spanprof_parent given(const struct sp_parent *parent) {
    return (spanprof_parent){parent->id,
                             (uint64_t)parent->generation << 32 | parent->path};
}
static struct sp_parent taken(const spanprof_parent *parent) {
    return (struct sp_parent){parent->id, (uint32_t)parent->place,
                              (uint32_t)(parent->place >> 32)};
}

/* --- contexts ----------------------------------------------------------------------
 */

/* A thread that has let go of the GIL is in the context that it was in: nobody else
 * changes that. But to look into another context than the last one takes Python. Then
 * the innermost span of the thread is the parent. */
static SP_COLD void find_another_context(struct sp_thread *thread) {
    ModuleState *state = current_context_state();
    if (state != NULL && state->context_var != NULL) {
        current_context_sync(state, thread);
        return;
    }
    thread->context = &thread->own_context;
    thread->host.context = NULL;
}

static SP_NOINLINE void find_unknown_context(struct sp_thread *thread,
                                             const PyThreadState *tstate) {
    if (tstate == NULL) tstate = PyGILState_GetThisThreadState();
    if (tstate == NULL) {
        if (SP_UNLIKELY(thread->context != &thread->own_context))
            find_another_context(thread);
    } else if (!current_context_is_known(thread, tstate)) {
        find_another_context(thread);
    }
}

static inline void find_context(struct sp_thread *thread) {
    const PyThreadState *tstate = compat_attached_thread_state();
    if (SP_UNLIKELY(tstate == NULL || !current_context_is_known(thread, tstate)))
        find_unknown_context(thread, tstate);
}

/* --- the functions ------------------------------------------------------------------
 */

static struct sp_text text_of(const char *string) {
    return (struct sp_text){string != NULL ? string : "",
                            string != NULL ? strlen(string) : 0};
}

static SP_COLD uint32_t intern(spanprof_callsite *callsite) {
    uint32_t id = sp_callsite_intern(text_of(callsite->name), text_of(callsite->target),
                                     text_of(callsite->file), callsite->line, 0);
    __atomic_store_n(&callsite->id, id, __ATOMIC_RELEASE);
    return id;
}

static inline uint32_t id_of(spanprof_callsite *callsite) {
    uint32_t id = __atomic_load_n(&callsite->id, __ATOMIC_ACQUIRE);
    return SP_LIKELY(id != 0) ? id : intern(callsite);
}

static spanprof_span begin(spanprof_callsite *callsite) {
    struct sp_thread *thread = sp_thread_current();
    if (SP_UNLIKELY(thread == NULL)) return NULL;
    uint32_t id = id_of(callsite);
    find_context(thread);
    return (spanprof_span)sp_native_begin(thread, callsite, id);
}

static spanprof_span begin_with(spanprof_callsite *callsite,
                                const spanprof_options *options) {
    struct sp_thread *thread = sp_thread_current();
    if (SP_UNLIKELY(thread == NULL)) return NULL;
    struct sp_parent parent;
    if (options->parent != NULL) parent = taken(options->parent);
    uint32_t labels = labels_recorded_of_texts(options->labels, options->label_count);
    find_context(thread);
    return (spanprof_span)sp_native_begin_under(
        thread, sp_key_make(id_of(callsite), labels),
        options->parent != NULL ? &parent : NULL);
}

static void end(spanprof_span span) {
    struct sp_thread *thread = sp_thread_current();
    if (SP_LIKELY(thread != NULL)) find_context(thread);
    sp_native_end(thread, (struct sp_native *)span);
}

static spanprof_parent current(void) {
    struct sp_thread *thread = sp_thread_current();
    if (thread == NULL) return (spanprof_parent){0, 0};
    find_context(thread);
    struct sp_parent parent = sp_span_next_parent(thread);
    return given(&parent);
}

static int thread_attach(void) {
    return sp_thread_current() != NULL;
}

static void thread_detach(void) {
    sp_thread_leave();
}

static void track_alloc(const void *block, size_t size) {
    if (block == NULL) return;
    if (sp_thread_current() == NULL || sp_charge_passes(size)) return;
    struct sp_making making = sp_charge_make();
    sp_charge_made(&making, (void *)(uintptr_t)block, size);
}

static void track_free(const void *block) {
    if (block != NULL) sp_charge_free(block);
}

static const spanprof_api api = {
    .version = SPANPROF_ABI_VERSION,
    .size = sizeof api,
    .session = (const volatile uint32_t *)&sp_session_generation,
    .begin = begin,
    .begin_with = begin_with,
    .end = end,
    .current = current,
    .thread_attach = thread_attach,
    .thread_detach = thread_detach,
    .track_alloc = track_alloc,
    .track_free = track_free,
};

/* For those who open the library: cffi's ABI mode, other languages. */
__attribute__((visibility("default"))) const spanprof_api *spanprof_get_api(void);
const spanprof_api *spanprof_get_api(void) {
    return &api;
}

/* Whoever opens the library may call at once. */
static __attribute__((constructor)) void define_symbols(void) {
    c_api_define_symbols(&api);
}

int c_api_init(PyObject *module) {
    PyObject *capsule = PyCapsule_New((void *)(uintptr_t)&api, SPANPROF_CAPSULE, NULL);
    int failed =
        capsule == NULL || PyObject_SetAttrString(module, "_C_API", capsule) < 0;
    Py_XDECREF(capsule);
    return failed ? -1 : 0;
}
