#include "call_span.h"

#include "callsite_of.h"
#include "suspension.h"

#include <stddef.h>

/* --- the spans of a function's calls ------------------------------------------------
 */

/* Called with a coroutine, generator or async generator that has not begun: a span that
 * is to be entered by the next thing that runs. It is at home in that generator's
 * frame, as if the function had entered it itself: what the function does when it is
 * closed counts, and contextlib's functions know whom they run. With anything else it
 * is at home where it is entered. */
typedef struct {
    PyObject_HEAD
    vectorcallfunc vectorcall;
    PyObject *name;
    PyObject *labels;   /* dict or NULL */
    SpanObject *parent; /* or NULL */
    uint32_t callsite;  /* written before the first call */
} CallSpansObject;

static struct _PyInterpreterFrame *home_in(ModuleState *state, PyObject *generator) {
    struct _PyInterpreterFrame *frame = compat_frame_of_new_generator(generator);
    if (frame == NULL || sp_session_running() == 0) return NULL;
    suspension_watch(state, frame);
    return frame;
}

static PyObject *call_spans_vectorcall(PyObject *callable, PyObject *const *args,
                                       size_t nargsf, PyObject *kwnames) {
    CallSpansObject *self = (CallSpansObject *)callable;
    ModuleState *state = state_of_type(Py_TYPE(self));
    if (PyVectorcall_NARGS(nargsf) != 1 || kwnames != NULL) {
        PyErr_SetString(PyExc_TypeError, "expected what the call has returned");
        return NULL;
    }
    SpanObject *span = span_new(state, self->name, self->labels, self->parent);
    if (span == NULL) return NULL;
    /* The loop is told of the generator that the program has, and closes that. */
    if (PyAsyncGen_CheckExact(args[0])) compat_hide_from_loop(args[0]);
    span->life = LIFE_CALL;
    span->span.key = sp_key_make(self->callsite, SP_LABELS_NONE);
    span->span.home = home_in(state, args[0]);
    return (PyObject *)span;
}

static int call_spans_traverse(PyObject *object, visitproc visit, void *arg) {
    CallSpansObject *self = (CallSpansObject *)object;
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->labels);
    Py_VISIT((PyObject *)self->parent);
    return 0;
}

static int call_spans_clear(PyObject *object) {
    CallSpansObject *self = (CallSpansObject *)object;
    Py_CLEAR(self->labels);
    Py_CLEAR(self->parent);
    return 0;
}

static void call_spans_dealloc(PyObject *object) {
    CallSpansObject *self = (CallSpansObject *)object;
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(object);
    call_spans_clear(object);
    Py_DECREF(self->name);
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

static PyMemberDef call_spans_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(CallSpansObject, vectorcall),
     READONLY, NULL},
    {"name", T_OBJECT, offsetof(CallSpansObject, name), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

PyDoc_STRVAR(of_function_doc, "of_function($self, function, /)\n--\n\n"
                              "Whose calls they are; before the first one.");

static PyObject *call_spans_of_function(PyObject *object, PyObject *function) {
    CallSpansObject *self = (CallSpansObject *)object;
    self->callsite = callsite_of_function(function, self->name);
    Py_RETURN_NONE;
}

static PyMethodDef call_spans_methods[] = {
    {"of_function", call_spans_of_function, METH_O, of_function_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot call_spans_slots[] = {
    {Py_tp_dealloc, call_spans_dealloc},
    {Py_tp_traverse, call_spans_traverse},
    {Py_tp_clear, call_spans_clear},
    {Py_tp_call, PyVectorcall_Call},
    {Py_tp_members, call_spans_members},
    {Py_tp_methods, call_spans_methods},
    {0, NULL},
};

static PyType_Spec call_spans_spec = {
    "spanprof._core.CallSpans", sizeof(CallSpansObject), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL |
        Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    call_spans_slots};

PyObject *call_span_decorate(ModuleState *state, SpanObject *span, PyObject *function) {
    CallSpansObject *self = PyObject_GC_New(CallSpansObject, state->call_spans_type);
    if (self == NULL) return NULL;
    self->vectorcall = call_spans_vectorcall;
    self->name = Py_NewRef(span->name);
    self->labels = Py_XNewRef(span->labels);
    self->parent = (SpanObject *)Py_XNewRef((PyObject *)span->parent);
    self->callsite = SP_CALLSITE_OTHER;
    PyObject_GC_Track(self);
    PyObject *steps = PyImport_ImportModule("spanprof.steps");
    if (steps != NULL && state->steps == NULL)
        state->steps = Py_NewRef(PyModule_GetDict(steps));
    PyObject *decorated =
        steps != NULL ? PyObject_CallMethod(steps, "decorate", "OO", function, self)
                      : NULL;
    Py_XDECREF(steps);
    Py_DECREF(self);
    return decorated;
}

/* --- a generator's steps ------------------------------------------------------------
 *
 * What `yield from` takes for the generator, except that it has no close():
 * GeneratorExit then comes to who delegates, as any exception, and not to the generator
 * as a call of close(), which is another thing. (PEP 380) */

typedef struct {
    PyObject_HEAD
    PyObject *generator;
} StepsObject;

static void steps_dealloc(PyObject *object) {
    PyTypeObject *type = Py_TYPE(object);
    PyObject_GC_UnTrack(object);
    Py_DECREF(((StepsObject *)object)->generator);
    PyObject_GC_Del(object);
    Py_DECREF(type);
}

/* No tp_clear: the generator has one. */
static int steps_traverse(PyObject *object, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(object));
    Py_VISIT(((StepsObject *)object)->generator);
    return 0;
}

static PySendResult steps_am_send(PyObject *object, PyObject *value,
                                  PyObject **result) {
    return PyIter_Send(((StepsObject *)object)->generator, value, result);
}

static PyObject *steps_next(PyObject *object) {
    PyObject *generator = ((StepsObject *)object)->generator;
    return Py_TYPE(generator)->tp_iternext(generator);
}

static PyObject *steps_send(PyObject *object, PyObject *value) {
    return PyObject_CallMethod(((StepsObject *)object)->generator, "send", "O", value);
}

static PyObject *steps_throw(PyObject *object, PyObject *args) {
    PyObject *method =
        PyObject_GetAttrString(((StepsObject *)object)->generator, "throw");
    if (method == NULL) return NULL;
    PyObject *result = PyObject_CallObject(method, args);
    Py_DECREF(method);
    return result;
}

static PyMethodDef steps_methods[] = {
    {"send", steps_send, METH_O, NULL},
    {"throw", steps_throw, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot steps_slots[] = {
    {Py_tp_dealloc, steps_dealloc},
    {Py_tp_traverse, steps_traverse},
    {Py_tp_iter, PyObject_SelfIter},
    {Py_tp_iternext, steps_next},
    {Py_am_send, steps_am_send},
    {Py_tp_methods, steps_methods},
    {0, NULL},
};

static PyType_Spec steps_spec = {"spanprof._core.Steps", sizeof(StepsObject), 0,
                                 Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC |
                                     Py_TPFLAGS_DISALLOW_INSTANTIATION |
                                     Py_TPFLAGS_IMMUTABLETYPE,
                                 steps_slots};

static PyObject *steps_of(PyObject *module, PyObject *generator) {
    if (!PyGen_CheckExact(generator)) {
        PyErr_SetString(PyExc_TypeError, "expected a generator");
        return NULL;
    }
    struct sp_thread *paused = sp_thread_pause();
    StepsObject *self =
        PyObject_GC_New(StepsObject, state_of_module(module)->steps_type);
    sp_thread_resume(paused);
    if (self == NULL) return NULL;
    self->generator = Py_NewRef(generator);
    PyObject_GC_Track(self);
    return (PyObject *)self;
}

static PyMethodDef call_span_functions[] = {
    {"steps_of", steps_of, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

int call_span_init(PyObject *module) {
    ModuleState *state = state_of_module(module);
    state->call_spans_type =
        (PyTypeObject *)PyType_FromModuleAndSpec(module, &call_spans_spec, NULL);
    state->steps_type =
        (PyTypeObject *)PyType_FromModuleAndSpec(module, &steps_spec, NULL);
    if (state->call_spans_type == NULL || state->steps_type == NULL) return -1;
    return PyModule_AddFunctions(module, call_span_functions);
}
