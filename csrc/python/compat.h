/* All that spanprof knows about CPython versions. Nothing else tests
 * PY_VERSION_HEX or Py_GIL_DISABLED. */
#ifndef SPANPROF_PYTHON_COMPAT_H
#define SPANPROF_PYTHON_COMPAT_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdbool.h>
#include <structmember.h>

/* Frames, contexts and the collector's flags of an object are laid out as their minor
 * version's headers say. */
#define Py_BUILD_CORE 1
#undef _PyGC_FINALIZED
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wsign-conversion"
#pragma GCC diagnostic ignored "-Wunused-parameter"
#pragma GCC diagnostic ignored "-Wpedantic"
#include <internal/pycore_context.h>
#include <internal/pycore_frame.h>
#include <internal/pycore_gc.h>
#include <internal/pycore_hamt.h>
#if PY_VERSION_HEX >= 0x030c0000
#include <internal/pycore_instruments.h>
#endif
#if PY_VERSION_HEX >= 0x030e0000
#include <internal/pycore_interpframe.h>
#endif
#if defined(Py_GIL_DISABLED) && PY_VERSION_HEX < 0x030e0000
#include <internal/pycore_object.h>
#endif
#if defined(Py_GIL_DISABLED) && PY_VERSION_HEX >= 0x030e0000
#include <internal/pycore_tstate.h>
#endif
#pragma GCC diagnostic pop
#undef Py_BUILD_CORE

/* One load tells which instruction runs. From 3.14 on, and where each thread may have
 * bytecode of its own, only the interpreter's functions do. */
#if PY_VERSION_HEX < 0x030e0000 && !defined(Py_GIL_DISABLED)
#define SPANPROF_READS_INSTRUCTIONS 1
#else
#define SPANPROF_READS_INSTRUCTIONS 0
#endif

/* Whether code can be watched for its suspensions (sys.monitoring, PEP 669). */
#define SPANPROF_MONITORING (PY_VERSION_HEX >= 0x030c0000)

/* Up to 3.13, `with` builds two bound methods unless __enter__ and __exit__ are
 * descriptors that return the object itself (docs/internals/with-statement.md).
 * From 3.14 on it binds nothing for ordinary methods. */
#define SPANPROF_SELF_DESCRIPTORS (PY_VERSION_HEX < 0x030e0000)

/* One list of spare objects per interpreter needs the GIL. */
#ifdef Py_GIL_DISABLED
#define SPANPROF_FREE_LIST 0
#else
#define SPANPROF_FREE_LIST 64
#endif

/* So does a cache of contexts. */
#ifdef Py_GIL_DISABLED
#define SPANPROF_CONTEXT_CACHE 0
#else
#define SPANPROF_CONTEXT_CACHE 1024
#endif

/* With the GIL nobody else is in an object's state: the usual cases need no
 * critical section, and the others are out of their way. */
#ifdef Py_GIL_DISABLED
#define SPANPROF_QUICK_PATHS 0
#define SPANPROF_SLOW
#else
#define SPANPROF_QUICK_PATHS 1
#define SPANPROF_SLOW __attribute__((cold, noinline))
#endif

/* Whether somebody can be told when a dictionary changes. */
#define SPANPROF_DICT_WATCHERS (PY_VERSION_HEX >= 0x030c0000)

/* An object's own state, against other threads on free-threaded builds. */
#if PY_VERSION_HEX >= 0x030d0000
#define SPANPROF_LOCK(object) Py_BEGIN_CRITICAL_SECTION(object)
#define SPANPROF_UNLOCK() Py_END_CRITICAL_SECTION()
#else
#define SPANPROF_LOCK(object) {
#define SPANPROF_UNLOCK() }
#endif

/* Give an object from a free list its first reference again. Beyond setting the
 * count, _Py_NewReference serves debug builds only. */
static inline void compat_revive(PyObject *object) {
#ifdef Py_DEBUG
    _Py_NewReference(object);
#else
    Py_SET_REFCNT(object, 1);
#endif
}

static inline PyThreadState *compat_thread_state(void) {
#if PY_VERSION_HEX >= 0x030d0000
    return PyThreadState_GetUnchecked();
#else
    return _PyThreadState_UncheckedGet();
#endif
}

/* The calling thread's, which may be any; NULL if it is not attached. */
static inline PyThreadState *compat_attached_thread_state(void) {
    PyThreadState *state = compat_thread_state();
#if PY_VERSION_HEX < 0x030c0000
    /* That was whoever has the GIL. */
    if (state != PyGILState_GetThisThreadState()) return NULL;
#endif
    return state;
}

/* Whether the calling thread, which may be any, is attached to the main interpreter.
 * (PyGILState_Check says yes to everybody once there was a subinterpreter.) */
static inline bool compat_is_attached_to_main(void) {
    PyThreadState *state = compat_attached_thread_state();
    return state != NULL &&
           PyThreadState_GetInterpreter(state) == PyInterpreterState_Main();
}

/* The exception that is set, which is so no longer. New reference. */
static inline PyObject *compat_take_exception(void) {
#if PY_VERSION_HEX >= 0x030c0000
    return PyErr_GetRaisedException();
#else
    PyObject *type, *error, *traceback;
    PyErr_Fetch(&type, &error, &traceback);
    PyErr_NormalizeException(&type, &error, &traceback);
    if (traceback != NULL) PyException_SetTraceback(error, traceback);
    Py_XDECREF(type);
    Py_XDECREF(traceback);
    return error;
#endif
}

static inline struct _PyInterpreterFrame *compat_frame_of(const PyThreadState *state) {
#if PY_VERSION_HEX >= 0x030d0000
    return state->current_frame;
#else
    return state->cframe->current_frame;
#endif
}
static inline struct _PyInterpreterFrame *compat_frame(void) {
    return compat_frame_of(compat_thread_state());
}

/* Whether the frame is that of a coroutine, generator or async generator: what may be
 * suspended, and stays at its address until it ends. */
static inline bool compat_frame_may_suspend(const struct _PyInterpreterFrame *frame) {
    return frame->owner == FRAME_OWNED_BY_GENERATOR;
}

/* That of a coroutine, generator or async generator that has not begun; NULL of
 * anything else. */
static inline struct _PyInterpreterFrame *
compat_frame_of_new_generator(PyObject *object) {
    if (!PyGen_CheckExact(object) && !PyCoro_CheckExact(object) &&
        !PyAsyncGen_CheckExact(object))
        return NULL;
    PyGenObject *generator = (PyGenObject *)object; /* they begin alike */
    if (generator->gi_frame_state != FRAME_CREATED) return NULL;
    return (struct _PyInterpreterFrame *)&generator->gi_iframe;
}

/* Its first step will not tell the hooks of sys.set_asyncgen_hooks(). */
static inline void compat_hide_from_loop(PyObject *async_generator) {
    ((PyAsyncGenObject *)async_generator)->ag_hooks_inited = 1;
}

/* The frame that called this one, or NULL. */
static inline struct _PyInterpreterFrame *
compat_frame_caller(const struct _PyInterpreterFrame *frame) {
    return frame->previous;
}

/* Borrowed; NULL if it runs no Python code. */
static inline PyCodeObject *compat_frame_code(struct _PyInterpreterFrame *frame) {
#if PY_VERSION_HEX >= 0x030e0000
    PyObject *code = PyStackRef_AsPyObjectBorrow(frame->f_executable);
#elif PY_VERSION_HEX >= 0x030d0000
    PyObject *code = frame->f_executable;
#else
    PyObject *code = (PyObject *)frame->f_code;
#if PY_VERSION_HEX >= 0x030c0000
    if (frame->owner == FRAME_OWNED_BY_CSTACK) return NULL; /* the interpreter's own */
#endif
#endif
    return code != NULL && PyCode_Check(code) ? (PyCodeObject *)code : NULL;
}

/* Whether that tool of sys.monitoring's (-1: none) is told when the code yields. */
static inline bool compat_is_told_of(PyCodeObject *code, int tool) {
#if SPANPROF_MONITORING
    return tool > 0 && code->_co_monitoring != NULL &&
           (code->_co_monitoring->local_monitors.tools[PY_MONITORING_EVENT_PY_YIELD] &
            1 << tool) != 0;
#else
    (void)code;
    (void)tool;
    return true;
#endif
}

/* Borrowed; of a frame that runs Python code. */
static inline PyObject *compat_frame_globals(const struct _PyInterpreterFrame *frame) {
    return frame->f_globals;
}

/* A context's variables: an immutable mapping, which every copy of the context shares
 * until a variable is set in one of the two. */
static inline PyObject *compat_context_vars(PyObject *context) {
    return (PyObject *)((PyContext *)context)->ctx_vars;
}

/* The root of the tree of nodes that they are in. */
static inline PyObject *compat_context_root(PyObject *context) {
    return (PyObject *)((PyContext *)context)->ctx_vars->h_root;
}

/* Nodes are no objects that a program can have. */
static inline bool compat_is_context_node(PyObject *object) {
    const char *name = Py_TYPE(object)->tp_name;
    return strcmp(name, "hamt_bitmap_node") == 0 ||
           strcmp(name, "hamt_array_node") == 0 ||
           strcmp(name, "hamt_collision_node") == 0;
}

/* Whether no other context has them, and they are those of our last
 * compat_context_mark. The mark is the collector's note that an object was finalized,
 * which means nothing for one that has no finalizer; it begins unset with each new
 * mapping, so it cannot be mistaken for that of one that was at the same address
 * before. */
static inline bool compat_context_is_marked(PyObject *context) {
    PyObject *vars = compat_context_vars(context);
    return vars != NULL && Py_REFCNT(vars) == 1 && _PyGC_FINALIZED(vars);
}
static inline void compat_context_mark(PyObject *context) {
    _PyGC_SET_FINALIZED(compat_context_vars(context));
}

/* Another reference to an object that may be about to die on another thread; false if
 * it is. `compat_share` comes before, while there is a reference. */
#ifdef Py_GIL_DISABLED
#if PY_VERSION_HEX >= 0x030e0000
#define compat_share(object) PyUnstable_EnableTryIncRef(object)
#define compat_try_incref(object) (PyUnstable_TryIncRef(object) != 0)
#else
#define compat_share(object) _PyObject_SetMaybeWeakref(object)
#define compat_try_incref(object) (_Py_TryIncref(object) != 0)
#endif
#endif

/* Whether an integer is one that was just made, by PyObject_Malloc and for us alone.
 * Small ones are everybody's; from 3.14 on the others come from a free list. */
static inline bool compat_is_fresh_int(PyObject *number) {
    return PY_VERSION_HEX < 0x030e0000 && Py_REFCNT(number) == 1;
}

/* What was asked for when an offset in a code object was made an integer for
 * sys.monitoring (PyLong_FromSsize_t, later PyLong_FromLong). */
#if PY_VERSION_HEX >= 0x030d0000
#define SPANPROF_OFFSET_SIZE sizeof(PyLongObject)
#elif PY_VERSION_HEX >= 0x030c0000
#define SPANPROF_OFFSET_SIZE \
    (offsetof(PyLongObject, long_value.ob_digit) + sizeof(digit))
#endif
/* Whether the object has that many references, all of them counted by the calling
 * thread, and the collector does not know it. If the caller can tell where each of
 * these is, and they are its own thread's, then no other thread has it or can come by
 * it: its state needs no lock. (One that was handed over without being counted is
 * another thread's to hold, which is why it is not enough that they were counted here.)
 */
static inline bool compat_is_private(PyObject *object, uint32_t references) {
#ifdef Py_GIL_DISABLED
    return __atomic_load_n(&object->ob_tid, __ATOMIC_RELAXED) == _Py_ThreadId() &&
           __atomic_load_n(&object->ob_ref_local, __ATOMIC_RELAXED) == references &&
           __atomic_load_n(&object->ob_ref_shared, __ATOMIC_RELAXED) == 0 &&
           !PyObject_GC_IsTracked(object);
#else
    (void)object;
    (void)references;
    return false;
#endif
}

/* Have threads that use the object without owning it not count their references, where
 * counting would pass its cache line back and forth. It is then freed by the collector.
 */
static inline void compat_share_widely(PyObject *object) {
#if defined(Py_GIL_DISABLED) && PY_VERSION_HEX >= 0x030e0000
    PyUnstable_Object_EnableDeferredRefcount(object);
#else
    (void)object;
#endif
}

/* What an instance of ours gives back when it is freed. Where each thread counts a
 * type's instances for itself, as PyObject_GC_New does, so does this. */
static inline void compat_decref_type(PyTypeObject *type) {
#if defined(Py_GIL_DISABLED) && PY_VERSION_HEX >= 0x030e0000
    _PyThreadStateImpl *state = (_PyThreadStateImpl *)compat_thread_state();
    size_t place = (size_t)(((PyHeapTypeObject *)type)->unique_id - 1);
    if (place < (size_t)state->refcounts.size) {
        state->refcounts.values[place]--;
        return;
    }
#endif
    Py_DECREF(type);
}

/* Whether threads that let go of the interpreter may not get it back. */
static inline bool compat_is_finalizing(void) {
#if PY_VERSION_HEX >= 0x030d0000
    return Py_IsFinalizing() != 0;
#else
    return _Py_IsFinalizing() != 0;
#endif
}

/* The code object that called us (a new reference, NULL without a Python frame)
 * and the instruction's offset in bytes. Makes no frame object. */
static inline PyCodeObject *compat_caller(int *offset) {
    struct _PyInterpreterFrame *frame = compat_frame();
    if (frame == NULL) return NULL;
#if PY_VERSION_HEX >= 0x030c0000
        /* While a frame that C called is torn down, this is the interpreter's own entry
         * frame: it runs no code of the program's, and from 3.13 on none at all. */
#if SPANPROF_READS_INSTRUCTIONS
    if (frame->owner == FRAME_OWNED_BY_CSTACK) return NULL;
#endif
    PyObject *code = PyUnstable_InterpreterFrame_GetCode(frame);
    if (code == NULL || !PyCode_Check(code)) {
        Py_XDECREF(code);
        return NULL;
    }
    *offset = PyUnstable_InterpreterFrame_GetLasti(frame);
    return (PyCodeObject *)code;
#else
    *offset = _PyInterpreterFrame_LASTI(frame) * (int)sizeof(_Py_CODEUNIT);
    return (PyCodeObject *)Py_NewRef((PyObject *)frame->f_code);
#endif
}

/* An address inside the code object of that frame, which is the current one, that no
 * other instruction shares; NULL without a Python frame. Valid while the code object
 * lives. */
static inline const void *compat_place_in(const struct _PyInterpreterFrame *frame) {
#if SPANPROF_READS_INSTRUCTIONS
    if (frame == NULL) return NULL;
#if PY_VERSION_HEX >= 0x030d0000
    return frame->instr_ptr;
#else
    return frame->prev_instr;
#endif
#else
    /* The running frame holds its code: no reference is counted, which threads that run
     * the same code would wait for each other to do. */
    struct _PyInterpreterFrame *running = (struct _PyInterpreterFrame *)frame;
    const PyCodeObject *code = running != NULL ? compat_frame_code(running) : NULL;
    return code != NULL
               ? (const char *)code + PyUnstable_InterpreterFrame_GetLasti(running)
               : NULL;
#endif
}

#endif
