/* spanprof.Span: converts between Python and core/span, and keeps what Python
 * may do to an object (enter it twice, drop it, exit it elsewhere) away from it. */
#include "span_object.h"

#include "callsite_of.h"
#include "current_context.h"
#include "ready.h"
#include "sampling.h"
#include "suspension.h"

#include "../core/stats.h"

#include <stddef.h>

#define STATE_OF(self) state_of_type(Py_TYPE(self))

static PyObject *span_vectorcall(PyObject *callable, PyObject *const *args,
                                 size_t nargsf, PyObject *kwnames);

/* --- making and dropping ------------------------------------------------------ */

static SPANPROF_SLOW SpanObject *span_allocate_new(ModuleState *state) {
    /* The profiler's own memory is nobody's allocation. */
    struct sp_thread *paused = sp_thread_pause();
    SpanObject *self = PyObject_GC_New(SpanObject, state->span_type);
    sp_thread_resume(paused);
    if (self == NULL) return NULL;
    self->vectorcall = span_vectorcall;
    self->extra = NULL;
    memset(&self->span, 0, sizeof self->span);
    self->span.owner = self;
    return self;
}

static inline SpanObject *span_allocate(ModuleState *state) {
#if SPANPROF_FREE_LIST > 0
    if (SP_LIKELY(state->free_span_count > 0)) {
        SpanObject *self = state->free_spans[--state->free_span_count];
        compat_revive((PyObject *)self);
        return self;
    }
#endif
    return span_allocate_new(state);
}

static inline void span_fill(SpanObject *self, PyObject *name, PyObject *labels,
                             SpanObject *parent) {
    self->name = Py_NewRef(name);
    self->labels = Py_XNewRef(labels);
    self->parent = (SpanObject *)Py_XNewRef((PyObject *)parent);
    self->unrecorded = 0;
    self->life = LIFE_NEW;
    self->close_pending = self->used = self->held = false;
    self->span.id = 0;
    self->span.generation = 0;
}

SpanObject *span_new(ModuleState *state, PyObject *name, PyObject *labels,
                     SpanObject *parent) {
    SpanObject *self = span_allocate(state);
    if (self == NULL) return NULL;
    span_fill(self, name, labels, parent);
    /* Most spans hold a string and nothing else: no cycle can go through them. */
    if (labels != NULL || parent != NULL) PyObject_GC_Track(self);
    return self;
}

static int span_traverse(PyObject *object, visitproc visit, void *arg) {
    SpanObject *self = (SpanObject *)object;
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->labels);
    Py_VISIT((PyObject *)self->parent);
    return 0;
}

static int span_clear(PyObject *object) {
    SpanObject *self = (SpanObject *)object;
    /* It refers to nothing from here on. What goes to the free list must not be
     * tracked, and span_dealloc takes that from these two fields. */
    if (PyObject_GC_IsTracked(object)) PyObject_GC_UnTrack(object);
    Py_CLEAR(self->labels);
    Py_CLEAR(self->parent);
    return 0;
}

/* What is suspended holds no reference. All that was entered goes with the object. */
static SP_COLD void abandon_runs(SpanObject *self) {
    if (sp_span_is_suspended(&self->span)) suspension_abandon(&self->span);
    while (self->extra != NULL) {
        struct run *run = self->extra;
        self->extra = run->next;
        if (sp_span_is_suspended(&run->span)) suspension_abandon(&run->span);
        assert(!run->span.totalled);
        PyMem_RawFree(run);
    }
}

static void span_free(SpanObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    if (SP_UNLIKELY(sp_span_is_suspended(&self->span) || self->extra != NULL))
        abandon_runs(self);
    if (SP_UNLIKELY(self->span.opened && sp_span_state(&self->span) == SP_SPAN_OPEN))
        sp_span_close(sp_thread_for_charges(), &self->span);
    assert(!self->span.totalled); /* else it would be in the core's list */
    Py_DECREF(self->name);
#if SPANPROF_FREE_LIST > 0
    ModuleState *state = state_of_type(type);
    if (SP_LIKELY(state->free_span_count < state->free_span_limit)) {
        state->free_spans[state->free_span_count++] =
            self; /* keeps the type's reference */
        return;
    }
#endif
    PyObject_GC_Del(self);
    compat_decref_type(type);
}

static void span_dealloc(PyObject *object);

static SPANPROF_SLOW void span_dealloc_slow(PyObject *object) {
    SpanObject *self = (SpanObject *)object;
    if (self->labels != NULL || self->parent != NULL) {
        if (PyObject_GC_IsTracked(object)) PyObject_GC_UnTrack(object);
        /* Ancestors may be more than the C stack holds. */
        Py_TRASHCAN_BEGIN(object, span_dealloc)
        span_clear(object);
        span_free(self);
        Py_TRASHCAN_END
    } else {
        span_free(self);
    }
}

static void span_dealloc(PyObject *object) {
#if SPANPROF_FREE_LIST > 0
    SpanObject *self = (SpanObject *)object;
    ModuleState *state = state_first;
    if (SP_LIKELY(self->labels == NULL && self->parent == NULL && !self->span.opened &&
                  !sp_span_is_suspended(&self->span) && self->extra == NULL &&
                  Py_TYPE(self) == state_first_type &&
                  state->free_span_count < state->free_span_limit)) {
        PyObject *name = self->name;
        /* It keeps its type's reference. */
        state->free_spans[state->free_span_count++] = self;
        Py_DECREF(name);
        return;
    }
#endif
    span_dealloc_slow(object);
}

void span_object_clear_free_list(ModuleState *state) {
    state->free_span_limit = 0; /* spans may outlive the module */
    while (state->free_span_count > 0) {
        SpanObject *self = state->free_spans[--state->free_span_count];
        PyTypeObject *type = Py_TYPE(self);
        PyObject_GC_Del(self);
        Py_DECREF(type);
    }
}

static SP_COLD PyObject *span_create_slow(ModuleState *state, SpanObject *parent,
                                          PyObject *const *args, Py_ssize_t nargs,
                                          PyObject *kwnames) {
    if (nargs != 1) {
        PyErr_Format(PyExc_TypeError,
                     "span() takes one positional argument, the name (%zd given)",
                     nargs);
        return NULL;
    }
    if (!PyUnicode_Check(args[0])) {
        PyErr_Format(PyExc_TypeError, "span name must be str, not %.200s",
                     Py_TYPE(args[0])->tp_name);
        return NULL;
    }
    if (PyUnicode_GET_LENGTH(args[0]) == 0) {
        PyErr_SetString(PyExc_ValueError, "span name must not be empty");
        return NULL;
    }
    struct sp_thread *paused = sp_thread_pause();
    PyObject *labels = NULL, *name = NULL, *self = NULL;
    /* A subclass of str might change what its text is. */
    name = PyUnicode_CheckExact(args[0]) ? Py_NewRef(args[0])
                                         : PyUnicode_FromObject(args[0]);
    if (name == NULL) goto done;
    if (kwnames != NULL && PyTuple_GET_SIZE(kwnames) > 0) {
        labels = PyDict_New();
        if (labels == NULL) goto done;
        for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(kwnames); i++)
            if (PyDict_SetItem(labels, PyTuple_GET_ITEM(kwnames, i), args[nargs + i]) <
                0)
                goto done;
    }
    self = (PyObject *)span_new(state, name, labels, parent);
done:
    Py_XDECREF(name);
    Py_XDECREF(labels);
    sp_thread_resume(paused);
    return self;
}

static SPANPROF_SLOW PyObject *span_type_vectorcall_slow(PyObject *type,
                                                         PyObject *const *args,
                                                         size_t nargsf,
                                                         PyObject *kwnames) {
    return span_create_slow(state_of_type((PyTypeObject *)type), NULL, args,
                            PyVectorcall_NARGS(nargsf), kwnames);
}

/* The usual call makes no other call: there are no registers to save. */
static PyObject *span_type_vectorcall(PyObject *type, PyObject *const *args,
                                      size_t nargsf, PyObject *kwnames) {
#if SPANPROF_FREE_LIST > 0
    ModuleState *state = state_first;
    if (SP_LIKELY((PyTypeObject *)type == state_first_type && kwnames == NULL &&
                  PyVectorcall_NARGS(nargsf) == 1 && PyUnicode_CheckExact(args[0]) &&
                  PyUnicode_GET_LENGTH(args[0]) > 0 && state->free_span_count > 0)) {
        SpanObject *self = state->free_spans[--state->free_span_count];
        compat_revive((PyObject *)self);
        span_fill(self, args[0], NULL, NULL);
        return (PyObject *)self;
    }
#endif
    return span_type_vectorcall_slow(type, args, nargsf, kwnames);
}

/* Reached by Span.__new__(Span, ...): the same rules. */
static PyObject *span_tp_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    PyObject *name;
    if (!PyArg_ParseTuple(args, "O:span", &name)) return NULL;
    PyObject *self = span_create_slow(state_of_type(type), NULL, &name, 1, NULL);
    if (self != NULL && kwargs != NULL && PyDict_GET_SIZE(kwargs) > 0) {
        ((SpanObject *)self)->labels = PyDict_Copy(kwargs);
        if (((SpanObject *)self)->labels == NULL) {
            Py_DECREF(self);
            return NULL;
        }
        PyObject_GC_Track(self);
    }
    return self;
}

/* --- entering ----------------------------------------------------------------- */

static inline int plan_of(SpanObject *self, struct sampling_plan *plan) {
    uint32_t callsite = sp_key_callsite(self->span.key);
    return sampling_plan(plan, STATE_OF(self), self->name, self->labels, self->parent,
                         self->life == LIFE_CALL ? &callsite : NULL);
}

static int entered_again(SpanObject *self, const struct sampling_plan *plan) {
    struct sp_thread *paused = sp_thread_pause();
    struct run *run = PyMem_RawCalloc(1, sizeof *run);
    sp_thread_resume(paused);
    if (run == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    run->span.owner = self;
    run->span.home = plan->home;
    run->next = self->extra;
    self->extra = run;
    span_begin(self, &run->span, plan);
    return 0;
}

/* An opened span is entered once more while it is entered: that is a span beside it,
 * at the same place. It is sampled out if that one is, or if its own parent is. */
static void plan_beside(const SpanObject *self, struct sampling_plan *plan) {
    plan->key = self->span.key;
    plan->sampled_out = sp_span_is_sampled_out(&self->span) ||
                        (self->parent == NULL && plan->thread->top != NULL &&
                         sp_span_is_unheard(plan->thread));
}

static SP_COLD int enter_locked(SpanObject *self, struct sampling_plan *plan) {
    if (self->life == LIFE_CLOSED || self->close_pending) {
        PyErr_Format(PyExc_RuntimeError, "span %R is closed", self->name);
        return -1;
    }
    self->used = true;
    /* What was opened without a session, or in another, stays unrecorded. */
    bool stale =
        self->life == LIFE_OPENED && self->span.generation != sp_session_running();
    if (plan->thread == NULL || stale) {
        self->unrecorded++;
        return 0;
    }
    if (self->held) {
        if (self->life == LIFE_OPENED) plan_beside(self, plan);
        return entered_again(self, plan);
    }
    self->held = true;
    self->span.home = plan->home;
    if (self->life == LIFE_OPENED) {
        Py_INCREF(self);
        sp_span_enter(plan->thread, &self->span);
    } else {
        span_begin(self, &self->span, plan);
    }
    return 0;
}

/* That of a call was set when it was made. Where it was not asked for the callsite of
 * the caller's instruction, the caller may not be watched yet. */
static inline const void *home_of(SpanObject *self, const struct sampling_plan *plan) {
    if (self->life == LIFE_CALL && !self->used && self->span.home != NULL)
        return self->span.home;
    if (self->life != LIFE_NEW || plan->sampled_out)
        suspension_watch_caller(STATE_OF(self));
    return suspension_home_of_caller(STATE_OF(self));
}

static inline int enter_guarded(SpanObject *self) {
    int failed;
    struct sampling_plan plan;
    plan.home = NULL;
    plan.sampled_out = false;
    /* May run Python, which may do anything: enter this very object, stop the session.
     * Hence before anything is looked at, and no Python from here to the push. */
    if (self->life != LIFE_OPENED)
        failed = plan_of(self, &plan);
    else
        failed = (plan.thread = sampling_thread(STATE_OF(self)), 0);
    if (!failed && plan.thread != NULL) plan.home = home_of(self, &plan);
    if (!failed) failed = enter_locked(self, &plan);
    return failed;
}

static SPANPROF_SLOW PyObject *span_enter_slow(PyObject *object) {
    SpanObject *self = (SpanObject *)object;
    int failed;
    /* Its one reference is that of the `with` which calls us. */
    if (compat_is_private(object, 1)) {
        failed = enter_guarded(self);
    } else {
        SPANPROF_LOCK(self);
        failed = enter_guarded(self);
        SPANPROF_UNLOCK();
    }
    return failed ? NULL : Py_NewRef(object);
}

#if SPANPROF_QUICK_PATHS
/* These are apart, so that the usual way through span_enter does not pay for their
 * registers. */
static __attribute__((noinline)) PyObject *
span_enter_unheard(SpanObject *self, struct sp_thread *thread,
                   struct _PyInterpreterFrame *frame) {
    if (SP_UNLIKELY(!suspension_is_watched(STATE_OF(self), frame) ||
                    !sp_span_skips(thread)))
        return span_enter_slow((PyObject *)self);
    self->used = self->held = true;
    self->span.home = suspension_home(frame);
    Py_SET_REFCNT(self, Py_REFCNT(self) + 2); /* held, returned */
    sp_span_begin_unheard(thread, &self->span);
    return (PyObject *)self;
}

/* Of a span that has or may inherit labels: they may be none that are recorded, or
 * those of a block, which are known. */
static __attribute__((noinline)) PyObject *
span_enter_labelled(SpanObject *self, struct sp_thread *thread,
                    const struct _PyInterpreterFrame *frame, uint32_t generation) {
    uint32_t labels = SP_LABELS_NONE;
    bool known = self->labels != NULL
                     ? !labels_are_recorded()
                     : inherited_recorded_quick(STATE_OF(self), generation, &labels);
    struct sp_site *site = known ? site_in(frame, thread, self->name) : NULL;
    if (SP_UNLIKELY(site == NULL)) return span_enter_slow((PyObject *)self);
    self->used = self->held = true;
    self->span.home = suspension_home(frame);
    Py_SET_REFCNT(self, Py_REFCNT(self) + 2); /* held, returned */
    if (labels == SP_LABELS_NONE)
        sp_span_begin_at(thread, &self->span, site);
    else
        sp_span_begin(thread, &self->span, sp_key_make(site->callsite, labels));
    return (PyObject *)self;
}
#endif

static PyObject *span_enter(PyObject *object, PyObject *Py_UNUSED(ignored)) {
#if SPANPROF_QUICK_PATHS
    SpanObject *self = (SpanObject *)object;
    uint32_t generation =
        atomic_load_explicit(&sp_session_generation, memory_order_relaxed);
    struct sp_thread *thread = sp_thread_self;
    if (SP_LIKELY(self->life == LIFE_NEW && !self->held && !self->close_pending)) {
        if (generation == 0) {
            self->used = true;
            self->unrecorded++;
            return Py_NewRef(object);
        }
        if (SP_LIKELY(thread != NULL && self->parent == NULL &&
                      atomic_load_explicit(&thread->generation, memory_order_relaxed) ==
                          generation)) {
            const PyThreadState *tstate = compat_thread_state();
            struct _PyInterpreterFrame *frame = compat_frame_of(tstate);
            if (SP_UNLIKELY(!current_context_is_known(thread, tstate)))
                return span_enter_slow(object);
            if (SP_UNLIKELY(sp_span_is_unheard(thread)))
                return span_enter_unheard(self, thread, frame);
            if (SP_UNLIKELY(self->labels != NULL || inherited_may_be()))
                return span_enter_labelled(self, thread, frame, generation);
            struct sp_site *site = site_in(frame, thread, self->name);
            if (SP_LIKELY(site != NULL)) {
                self->used = self->held = true;
                self->span.home = suspension_home(frame);
                Py_SET_REFCNT(object, Py_REFCNT(object) + 2); /* held, returned */
                sp_span_begin_at(thread, &self->span, site);
                return object;
            }
        }
    }
#endif
    return span_enter_slow(object);
}

/* --- leaving ------------------------------------------------------------------- */

/* A recorded entry has ended: give back what it held. May free the object. */
static void release_run(SpanObject *self, struct sp_span *span) {
    if (span == &self->span) {
        self->held = false;
    } else {
        struct run **link = &self->extra;
        while (*link != NULL && &(*link)->span != span) link = &(*link)->next;
        struct run *run = *link;
        if (run != NULL) {
            *link = run->next;
            assert(!run->span.totalled);
            PyMem_RawFree(run);
        }
    }
    if (self->close_pending && !self->held && self->extra == NULL &&
        self->unrecorded == 0) {
        if (self->span.opened) sp_span_close(sp_thread_for_charges(), &self->span);
        self->close_pending = false;
        self->life = LIFE_CLOSED;
    }
    Py_DECREF(self);
}

/* For the core: under the lock nobody else finds the run, and exits it as well. An
 * object of another interpreter, in which the thread is as well, is to be left alone
 * here. */
static bool on_release(struct sp_thread *thread, struct sp_span *span,
                       void (*take_off)(struct sp_thread *, struct sp_span *)) {
    const ModuleState *state = current_context_state();
    SpanObject *self = span->owner;
    if (state == NULL || !Py_IS_TYPE((PyObject *)self, state->span_type)) return false;
    Py_INCREF((PyObject *)self);
    SPANPROF_LOCK(self);
    take_off(thread, span);
    release_run(self, span);
    SPANPROF_UNLOCK();
    Py_DECREF(self);
    return true;
}

static bool is_live(const struct sp_span *span, uint32_t running) {
    return span->generation == running && sp_span_state(span) == SP_SPAN_ENTERED;
}

/* An entered run; rather one that nobody runs any more (its session or thread is
 * over) than one that another thread is in. */
static struct sp_span *some_held_run(SpanObject *self) {
    uint32_t running = sp_session_running();
    struct sp_span *found = self->held ? &self->span : NULL;
    if (found != NULL && !is_live(found, running)) return found;
    for (struct run *run = self->extra; run != NULL; run = run->next)
        if (!is_live(&run->span, running)) return &run->span;
    return self->extra != NULL ? &self->extra->span : found;
}

static SP_COLD void leave_slow(SpanObject *self) {
    /* A signal's exception may come out of the very instruction that resumes a
     * generator, before that is told. */
    if (self->span.suspended && self->span.kept_under == compat_frame())
        suspension_resume(STATE_OF(self), self->span.kept_under);
    /* Sees to what other threads asked for, and drops the stack of a session that is
     * over: what is on it may have been exited elsewhere since, and be gone. */
    struct sp_thread *thread = sampling_thread(STATE_OF(self));
    struct sp_span *span = thread != NULL ? sp_span_find(thread, self) : NULL;
    if (span == NULL) {
        if (self->unrecorded > 0) {
            self->unrecorded--;
            if (self->close_pending && !self->held && self->extra == NULL &&
                self->unrecorded == 0) {
                self->close_pending = false;
                self->life = LIFE_CLOSED;
            }
            return;
        }
        /* Entered on another thread, or in a session that is over. */
        span = some_held_run(self);
        if (span == NULL) {
            sp_count(&sp_stats.misnested); /* an exit without an enter */
            return;
        }
    }
    if (sp_span_exit(thread, span)) release_run(self, span);
}

/* Whether the thread's stack is of the running session, and nobody wants anything
 * of it. */
static inline bool is_settled(const struct sp_thread *thread) {
    uint32_t running =
        atomic_load_explicit(&sp_session_generation, memory_order_relaxed);
    return running != 0 &&
           atomic_load_explicit(&thread->generation, memory_order_relaxed) == running;
}

static inline void leave_guarded(SpanObject *self) {
    struct sp_thread *thread = sp_thread_self;
    if (SP_LIKELY(thread != NULL && thread->top == &self->span && is_settled(thread) &&
                  !self->close_pending)) {
        current_context_sync(STATE_OF(self), thread);
        sp_span_exit(thread, &self->span);
        self->held = false;
        Py_DECREF(self); /* never the last: the caller holds one */
    } else if (self->unrecorded > 0 && !self->close_pending &&
               (thread == NULL || thread->top == NULL)) {
        self->unrecorded--;
    } else {
        leave_slow(self);
    }
}

static SPANPROF_SLOW void span_leave_slow(SpanObject *self) {
    const struct sp_thread *thread = sp_thread_self;
    /* One reference is the caller's, and one is our stack's if it is on there. (Had
     * another thread exited it, and given that one back, then that would show in how it
     * counts.) */
    bool is_innermost = thread != NULL && thread->top == &self->span;
    if (compat_is_private((PyObject *)self, is_innermost ? 2 : 1)) {
        leave_guarded(self);
        return;
    }
    SPANPROF_LOCK(self);
    leave_guarded(self);
    SPANPROF_UNLOCK();
}

void span_leave(SpanObject *self) {
#if SPANPROF_QUICK_PATHS
    struct sp_thread *thread = sp_thread_self;
    if (SP_LIKELY(thread != NULL && thread->top == &self->span && is_settled(thread) &&
                  !self->close_pending &&
                  current_context_is_known(thread, compat_thread_state()))) {
        if (sp_span_is_sampled_out(&self->span)) {
            if (SP_LIKELY(sp_span_exit_unheard(thread, &self->span))) {
                self->held = false;
                Py_DECREF(self);
                return;
            }
        } else if (SP_LIKELY(sp_span_exit_quick(thread, &self->span))) {
            self->held = false;
            Py_DECREF(self); /* never the last: the caller holds one */
            return;
        }
    } else if (thread == NULL || thread->top == NULL) {
        if (SP_LIKELY(self->unrecorded > 0 && !self->close_pending)) {
            self->unrecorded--;
            return;
        }
    }
#endif
    span_leave_slow(self);
}

static PyObject *span_exit(PyObject *object, PyObject *const *args, Py_ssize_t nargs) {
    (void)args;
    if (nargs != 3) {
        PyErr_Format(PyExc_TypeError, "__exit__() takes 3 arguments (%zd given)",
                     nargs);
        return NULL;
    }
    span_leave((SpanObject *)object);
    Py_RETURN_NONE;
}

/* --- open, close, child --------------------------------------------------------- */

/* Sets an exception if the span cannot be opened as it is. */
static bool refuse_open(SpanObject *self) {
    const char *problem = NULL;
    if (self->life == LIFE_CLOSED || self->close_pending)
        problem = "span %R is closed";
    else if (self->life == LIFE_OPENED)
        problem = "span %R is already open";
    else if (self->held || self->extra != NULL || self->unrecorded > 0)
        problem = "span %R is already entered";
    if (problem != NULL) PyErr_Format(PyExc_RuntimeError, problem, self->name);
    return problem != NULL;
}

static int open_locked(SpanObject *self) {
    if (refuse_open(self)) return -1;
    struct sampling_plan plan;
    /* As in span_enter_slow: this may run Python, which may open it as well. */
    if (plan_of(self, &plan) < 0 || refuse_open(self)) return -1;
    self->life = LIFE_OPENED;
    self->used = true;
    self->span.generation = 0;
    if (plan.thread == NULL) return 0;
    if (plan.sampled_out)
        sp_span_open_sampled_out(plan.thread, &self->span);
    else
        sp_span_open(plan.thread, &self->span, plan.key,
                     self->parent != NULL ? &plan.above : NULL);
    return 0;
}

PyDoc_STRVAR(
    open_doc,
    "open($self, /)\n--\n\n"
    "Create the span without entering it, and return it.\n\n"
    "From here on it is open: the time while it is not entered counts as idle. Each\n"
    "`with` then enters and exits this same span, on any thread, until close().\n"
    "RuntimeError if it is open, entered or closed already.");

static PyObject *span_open(PyObject *object, PyObject *Py_UNUSED(ignored)) {
    int failed;
    SPANPROF_LOCK(object);
    failed = open_locked((SpanObject *)object);
    SPANPROF_UNLOCK();
    return failed ? NULL : Py_NewRef(object);
}

PyDoc_STRVAR(close_doc,
             "close($self, /)\n--\n\n"
             "Destroy the span. While it is entered, this takes effect at the exit.\n"
             "Closing twice does nothing; entering a closed span is a RuntimeError.");

static PyObject *span_close(PyObject *object, PyObject *Py_UNUSED(ignored)) {
    SpanObject *self = (SpanObject *)object;
    SPANPROF_LOCK(self);
    if (self->held || self->extra != NULL || self->unrecorded > 0) {
        self->close_pending = true;
    } else if (self->life != LIFE_CLOSED) {
        if (self->span.opened && sp_span_state(&self->span) == SP_SPAN_OPEN)
            sp_span_close(sp_thread_for_charges(), &self->span);
        self->life = LIFE_CLOSED;
    }
    SPANPROF_UNLOCK();
    Py_RETURN_NONE;
}

PyDoc_STRVAR(
    child_doc,
    "span($self, name, /, **labels)\n--\n\n"
    "A new span that has this one as its parent, on whatever thread it is entered.\n\n"
    "This span must have been opened or entered; it may have ended since.");

static PyObject *span_child(PyObject *object, PyObject *const *args, Py_ssize_t nargs,
                            PyObject *kwnames) {
    SpanObject *self = (SpanObject *)object;
    bool used;
    SPANPROF_LOCK(object);
    used = self->used;
    SPANPROF_UNLOCK();
    if (!used) {
        PyErr_Format(PyExc_RuntimeError,
                     "span %R is not open: it cannot have children yet", self->name);
        return NULL;
    }
    return span_create_slow(STATE_OF(self), self, args, nargs, kwnames);
}

/* --- asynchronous form ------------------------------------------------------------ */

static PyObject *span_aenter(PyObject *object, PyObject *Py_UNUSED(ignored)) {
    PyObject *self = span_enter(object, NULL);
    if (self == NULL) return NULL;
    PyObject *ready = ready_new(STATE_OF(object), self);
    if (ready == NULL) span_leave((SpanObject *)object);
    Py_DECREF(self);
    return ready;
}

static PyObject *span_aexit(PyObject *object, PyObject *const *args, Py_ssize_t nargs) {
    PyObject *none = span_exit(object, args, nargs);
    if (none == NULL) return NULL;
    PyObject *ready = ready_new(STATE_OF(object), none);
    Py_DECREF(none);
    return ready;
}

/* --- attributes ------------------------------------------------------------------- */

const struct sp_span *span_run_of(SpanObject *self) {
    struct sp_thread *thread = self->extra != NULL ? sp_thread_current() : NULL;
    const struct sp_span *span = thread != NULL ? sp_span_find(thread, self) : NULL;
    return span != NULL ? span : &self->span;
}

void span_copy_as_parent(SpanObject *self, struct sp_span *copy) {
    SPANPROF_LOCK(self);
    copy->as_parent = span_run_of(self)->as_parent;
    SPANPROF_UNLOCK();
}

static PyObject *span_get_id(PyObject *object, void *closure) {
    (void)closure;
    struct sp_span span;
    span_copy_as_parent((SpanObject *)object, &span);
    return PyLong_FromUnsignedLongLong(sp_span_is_sampled_out(&span) ? 0 : span.id);
}

static PyObject *span_get_name(PyObject *object, void *closure) {
    (void)closure;
    return Py_NewRef(((SpanObject *)object)->name);
}

static PyObject *span_get_labels(PyObject *object, void *closure) {
    (void)closure;
    PyObject *labels = ((SpanObject *)object)->labels;
    PyObject *shown = labels != NULL ? Py_NewRef(labels) : PyDict_New();
    if (shown == NULL) return NULL;
    PyObject *proxy = PyDictProxy_New(shown);
    Py_DECREF(shown);
    return proxy;
}

static PyObject *span_get_is_recording(PyObject *object, void *closure) {
    (void)closure;
    uint32_t running = sp_session_running();
    bool is_recording;
    SPANPROF_LOCK(object);
    const struct sp_span *span = span_run_of((SpanObject *)object);
    is_recording = running != 0 && span->generation == running &&
                   sp_span_state(span) != SP_SPAN_NONE && !sp_span_is_sampled_out(span);
    SPANPROF_UNLOCK();
    return PyBool_FromLong(is_recording);
}

static PyObject *span_repr(PyObject *object) {
    SpanObject *self = (SpanObject *)object;
    const char *state;
    SPANPROF_LOCK(object);
    state = self->close_pending || self->life == LIFE_CLOSED            ? "closed"
            : self->held || self->extra != NULL || self->unrecorded > 0 ? "entered"
            : self->life == LIFE_OPENED                                 ? "open"
                                                                        : "new";
    SPANPROF_UNLOCK();
    if (self->labels == NULL)
        return PyUnicode_FromFormat("<spanprof.Span %R %s>", self->name, state);
    return PyUnicode_FromFormat("<spanprof.Span %R %R %s>", self->name, self->labels,
                                state);
}

/* --- calling it ---------------------------------------------------------------------
 */

/* Without arguments it is __enter__, with three __exit__ (see the descriptor
 * below), with a function it decorates. */
static PyObject *span_vectorcall(PyObject *callable, PyObject *const *args,
                                 size_t nargsf, PyObject *kwnames) {
    Py_ssize_t nargs = PyVectorcall_NARGS(nargsf);
    if (SP_LIKELY(kwnames == NULL)) {
        if (nargs == 0) return span_enter(callable, NULL);
        if (nargs == 3) {
            span_leave((SpanObject *)callable);
            Py_RETURN_NONE;
        }
        if (nargs == 1 &&
            (PyCallable_Check(args[0]) || span_function_is_method(args[0])))
            return span_function_new(STATE_OF(callable), (SpanObject *)callable,
                                     args[0]);
    }
    PyErr_SetString(PyExc_TypeError,
                    "a span is called with the one function that it decorates");
    return NULL;
}

#if SPANPROF_SELF_DESCRIPTORS
/* Stands in the type under __enter__ and __exit__: looked up on an instance it
 * is that instance, on the type it is itself and takes the instance first. */
static PyObject *self_descr_get(PyObject *descriptor, PyObject *object,
                                PyObject *type) {
    (void)type;
    return Py_NewRef(object != NULL ? object : descriptor);
}

static PyObject *self_descr_call(PyObject *descriptor, PyObject *args,
                                 PyObject *kwargs) {
    Py_ssize_t nargs = PyTuple_GET_SIZE(args);
    PyObject *self = nargs > 0 ? PyTuple_GET_ITEM(args, 0) : NULL;
    ModuleState *state = state_of_type(Py_TYPE(descriptor));
    if (self == NULL || !Py_IS_TYPE(self, state->span_type) ||
        (kwargs != NULL && PyDict_GET_SIZE(kwargs) > 0) || (nargs != 1 && nargs != 4)) {
        PyErr_SetString(
            PyExc_TypeError,
            "Span.__enter__ takes a span, Span.__exit__ a span and the three "
            "parts of an exception");
        return NULL;
    }
    if (nargs == 1) return span_enter(self, NULL);
    span_leave((SpanObject *)self);
    Py_RETURN_NONE;
}

static PyType_Slot self_descr_slots[] = {
    {Py_tp_descr_get, self_descr_get},
    {Py_tp_call, self_descr_call},
    {0, NULL},
};

static PyType_Spec self_descr_spec = {
    "spanprof._core._SelfDescriptor", sizeof(PyObject), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    self_descr_slots};

static int install_self_descriptors(PyObject *module, PyTypeObject *span_type) {
    PyTypeObject *type =
        (PyTypeObject *)PyType_FromModuleAndSpec(module, &self_descr_spec, NULL);
    if (type == NULL) return -1;
    PyObject *descriptor = PyObject_New(PyObject, type);
    Py_DECREF(type); /* the descriptor holds it */
    if (descriptor == NULL) return -1;
    int failed =
        PyDict_SetItemString(span_type->tp_dict, "__enter__", descriptor) < 0 ||
        PyDict_SetItemString(span_type->tp_dict, "__exit__", descriptor) < 0;
    Py_DECREF(descriptor);
    PyType_Modified(span_type);
    return failed ? -1 : 0;
}
#endif

/* --- the type ------------------------------------------------------------------------
 */

PyDoc_STRVAR(
    span_doc,
    "span(name, /, **labels)\n--\n\n"
    "A span: one named stretch of the program, measured while a session runs.\n\n"
    "    with spanprof.span(\"load\", user=\"a\"):\n"
    "        ...\n\n"
    "    @spanprof.span(\"work\")\n"
    "    def work(): ...\n\n"
    "Each `with` creates, enters, exits and destroys a span of its own; also when the\n"
    "same object is entered again before it was left. Exceptions pass through. "
    "Without\n"
    "a session it does nothing and costs next to nothing. Labels become part of the\n"
    "profile if the session records their names (record_labels).\n\n"
    "TypeError if name is not a str, ValueError if it is empty.");

static PyMethodDef span_methods[] = {
    {"open", span_open, METH_NOARGS, open_doc},
    {"close", span_close, METH_NOARGS, close_doc},
    {"span", (PyCFunction)(void (*)(void))span_child, METH_FASTCALL | METH_KEYWORDS,
     child_doc},
#if !SPANPROF_SELF_DESCRIPTORS
    {"__enter__", span_enter, METH_NOARGS, NULL},
    {"__exit__", (PyCFunction)(void (*)(void))span_exit, METH_FASTCALL, NULL},
#endif
    {"__aenter__", span_aenter, METH_NOARGS, NULL},
    {"__aexit__", (PyCFunction)(void (*)(void))span_aexit, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef span_getset[] = {
    {"id", span_get_id, NULL,
     "Number of the (last) span, unique in the process; 0 if it was not recorded.",
     NULL},
    {"name", span_get_name, NULL, "The name as given.", NULL},
    {"labels", span_get_labels, NULL, "The labels as given, read-only.", NULL},
    {"is_recording", span_get_is_recording, NULL,
     "True while the span is open or entered and a session records it.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef span_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(SpanObject, vectorcall), READONLY,
     NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot span_slots[] = {
    {Py_tp_doc, (void *)span_doc},
    {Py_tp_new, span_tp_new},
    {Py_tp_dealloc, span_dealloc},
    {Py_tp_traverse, span_traverse},
    {Py_tp_clear, span_clear},
    {Py_tp_call, PyVectorcall_Call},
    {Py_tp_repr, span_repr},
    {Py_tp_methods, span_methods},
    {Py_tp_getset, span_getset},
    {Py_tp_members, span_members},
    {0, NULL},
};

static PyType_Spec span_spec = {"spanprof.Span", sizeof(SpanObject), 0,
                                Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC |
                                    Py_TPFLAGS_HAVE_VECTORCALL |
                                    Py_TPFLAGS_IMMUTABLETYPE,
                                span_slots};

PyDoc_STRVAR(
    current_span_doc,
    "current_span()\n--\n\n"
    "The innermost span that is entered on this thread, None without one or without\n"
    "a session. One that is sampled out as well: its is_recording is False.");

static PyObject *current_span(PyObject *module, PyObject *Py_UNUSED(ignored)) {
    struct sp_thread *thread = sp_thread_current();
    struct sp_span *span = thread != NULL ? thread->top : NULL;
    /* The thread may run another interpreter inside a span of this one. */
    PyTypeObject *type = state_of_module(module)->span_type;
    while (span != NULL &&
           (span->is_native || !Py_IS_TYPE((PyObject *)span->owner, type)))
        span = span->below;
    if (span == NULL) Py_RETURN_NONE;
    return Py_NewRef((PyObject *)span->owner);
}

static PyMethodDef span_functions[] = {
    {"current_span", current_span, METH_NOARGS, current_span_doc},
    {NULL, NULL, 0, NULL},
};

int span_object_init(PyObject *module) {
    ModuleState *state = state_of_module(module);
    state->free_span_limit = SPANPROF_FREE_LIST;
    state->code_refs = PyDict_New();
    if (state->code_refs == NULL) return -1;
    state->span_type =
        (PyTypeObject *)PyType_FromModuleAndSpec(module, &span_spec, NULL);
    if (state->span_type == NULL) return -1;
    compat_share_widely((PyObject *)state->span_type);
    /* The slot Py_tp_vectorcall came with 3.14. */
    state->span_type->tp_vectorcall = span_type_vectorcall;
#if SPANPROF_SELF_DESCRIPTORS
    if (install_self_descriptors(module, state->span_type) < 0) return -1;
#endif
    sp_span_release = on_release;
    if (PyModule_AddFunctions(module, span_functions) < 0) return -1;
    return PyModule_AddObjectRef(module, "Span", (PyObject *)state->span_type);
}
