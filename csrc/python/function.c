/* What @spanprof.span("work") makes of a function: a callable that runs it inside
 * a span of its own, and otherwise passes for the function. */
#include "call_span.h"
#include "callsite_of.h"
#include "sampling.h"
#include "span_object.h"

#include <stddef.h>

typedef struct {
    PyObject_HEAD
    vectorcallfunc vectorcall;
    PyObject *wrapped;
    PyObject *name;
    PyObject *labels;   /* dict or NULL */
    SpanObject *parent; /* or NULL */
    uint32_t callsite;
    PyObject *dict;
    PyObject *weakrefs;
} FunctionObject;

/* Enter the call's span. 0: no session runs any more; -1 with an exception. */
static __attribute__((noinline)) int begin_planned(FunctionObject *self,
                                                   SpanObject *span) {
    struct sampling_plan plan;
    struct sp_thread *thread = sampling_thread(state_of_type(Py_TYPE(self)));
    if (thread != NULL && self->parent == NULL && sp_span_is_unheard(thread) &&
        sp_span_skips(thread)) {
        Py_INCREF(span);
        sp_span_begin_unheard(thread, &span->span);
        return 1;
    }
    if (sampling_plan(&plan, state_of_type(Py_TYPE(self)), self->name, self->labels,
                      self->parent, &self->callsite) < 0)
        return -1;
    if (plan.thread == NULL) return 0;
    span_begin(span, &span->span, &plan);
    return 1;
}

static PyObject *function_vectorcall(PyObject *callable, PyObject *const *args,
                                     size_t nargsf, PyObject *kwnames) {
    FunctionObject *self = (FunctionObject *)callable;
    if (sp_thread_current() == NULL)
        return PyObject_Vectorcall(self->wrapped, args, nargsf, kwnames);

    SpanObject *span =
        span_new(state_of_type(Py_TYPE(self)), self->name, self->labels, self->parent);
    if (span == NULL) return NULL;
    span->span.home = NULL; /* the call itself cannot be suspended */
    struct sp_thread *thread = sampling_thread(state_of_type(Py_TYPE(self)));
    if (SP_LIKELY(thread != NULL && self->parent == NULL &&
                  sampling_is_needless(thread, self->labels))) {
        Py_INCREF(span);
        sp_span_begin(thread, &span->span, sp_key_make(self->callsite, SP_LABELS_NONE));
    } else {
        int begun = begin_planned(self, span);
        if (SP_UNLIKELY(begun <= 0)) {
            Py_DECREF(span);
            if (begun < 0) return NULL;
            /* The sampler, or a label's str(), has stopped the session. */
            return PyObject_Vectorcall(self->wrapped, args, nargsf, kwnames);
        }
    }
    span->used = span->held = true;
    PyObject *result = PyObject_Vectorcall(self->wrapped, args, nargsf, kwnames);
    span_leave(span);
    Py_DECREF(span);
    return result;
}

static PyObject *function_descr_get(PyObject *self, PyObject *object, PyObject *type) {
    (void)type;
    if (object == NULL || object == Py_None) return Py_NewRef(self);
    return PyMethod_New(self, object);
}

static int function_traverse(PyObject *object, visitproc visit, void *arg) {
    FunctionObject *self = (FunctionObject *)object;
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->wrapped);
    Py_VISIT(self->labels);
    Py_VISIT((PyObject *)self->parent);
    Py_VISIT(self->dict);
    return 0;
}

static int function_clear(PyObject *object) {
    FunctionObject *self = (FunctionObject *)object;
    Py_CLEAR(self->labels);
    Py_CLEAR(self->parent);
    Py_CLEAR(self->dict);
    return 0;
}

static void function_dealloc(PyObject *object) {
    FunctionObject *self = (FunctionObject *)object;
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(object);
    if (self->weakrefs != NULL) PyObject_ClearWeakRefs(object);
    function_clear(object);
    Py_XDECREF(self->wrapped);
    Py_XDECREF(self->name);
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

static PyObject *function_repr(PyObject *object) {
    FunctionObject *self = (FunctionObject *)object;
    return PyUnicode_FromFormat("<span %R on %R>", self->name, self->wrapped);
}

/* As for functions: by its qualified name. */
static PyObject *function_reduce(PyObject *self, PyObject *Py_UNUSED(ignored)) {
    return PyObject_GetAttrString(self, "__qualname__");
}

static PyMethodDef function_methods[] = {
    {"__reduce__", function_reduce, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef function_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(FunctionObject, vectorcall), READONLY,
     NULL},
    {"__dictoffset__", T_PYSSIZET, offsetof(FunctionObject, dict), READONLY, NULL},
    {"__weaklistoffset__", T_PYSSIZET, offsetof(FunctionObject, weakrefs), READONLY,
     NULL},
    {NULL, 0, 0, 0, NULL},
};

/* Up to 3.13 update_wrapper() copies them. From 3.14 on it does not, as they are
 * computed when they are asked for, and only functions do that by themselves. */
static PyObject *function_get_annotations(PyObject *object, void *closure) {
    (void)closure;
    FunctionObject *self = (FunctionObject *)object;
    PyObject *own =
        self->dict != NULL ? PyDict_GetItemString(self->dict, "__annotations__") : NULL;
    if (own != NULL) return Py_NewRef(own);
    return PyObject_GetAttrString(self->wrapped, "__annotations__");
}

static int function_set_annotations(PyObject *object, PyObject *value, void *closure) {
    (void)closure;
    PyObject *dict = PyObject_GenericGetDict(object, NULL);
    if (dict == NULL) return -1;
    int failed = value != NULL ? PyDict_SetItemString(dict, "__annotations__", value)
                               : PyDict_DelItemString(dict, "__annotations__");
    Py_DECREF(dict);
    return failed;
}

static PyGetSetDef function_getset[] = {
    {"__dict__", PyObject_GenericGetDict, PyObject_GenericSetDict, NULL, NULL},
    {"__annotations__", function_get_annotations, function_set_annotations, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot function_slots[] = {
    {Py_tp_dealloc, function_dealloc}, {Py_tp_traverse, function_traverse},
    {Py_tp_clear, function_clear},     {Py_tp_call, PyVectorcall_Call},
    {Py_tp_repr, function_repr},       {Py_tp_descr_get, function_descr_get},
    {Py_tp_methods, function_methods}, {Py_tp_members, function_members},
    {Py_tp_getset, function_getset},   {0, NULL},
};

static PyType_Spec function_spec = {
    "spanprof.SpanFunction", sizeof(FunctionObject), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL |
        Py_TPFLAGS_METHOD_DESCRIPTOR | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    function_slots};

/* functools.update_wrapper(wrapper, wrapped) */
static int pass_for(PyObject *wrapper, PyObject *wrapped) {
    PyObject *functools = PyImport_ImportModule("functools");
    if (functools == NULL) return -1;
    PyObject *result =
        PyObject_CallMethod(functools, "update_wrapper", "OO", wrapper, wrapped);
    Py_DECREF(functools);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

/* Whether that attribute of the object suspends; leaves no exception. */
static bool suspends(PyObject *function);
static bool attribute_suspends(PyObject *object, const char *name) {
    PyObject *attribute = PyObject_GetAttrString(object, name);
    if (attribute == NULL) PyErr_Clear();
    bool result = attribute != NULL && suspends(attribute);
    Py_XDECREF(attribute);
    return result;
}

static bool code_suspends(PyObject *function) {
    PyCodeObject *code = (PyCodeObject *)PyFunction_GET_CODE(function);
    return (code->co_flags & (CO_COROUTINE | CO_GENERATOR | CO_ASYNC_GENERATOR |
                              CO_ITERABLE_COROUTINE)) != 0;
}

/* Whether calling it runs nothing of its body yet. Sees through bound methods, partial
 * objects and objects with a method __call__; leaves no exception. */
static bool suspends(PyObject *function) {
    if (PyMethod_Check(function)) return suspends(PyMethod_GET_FUNCTION(function));
    if (strcmp(Py_TYPE(function)->tp_name, "functools.partial") == 0)
        return attribute_suspends(function, "func");
    if (PyFunction_Check(function)) return code_suspends(function);
    PyObject *call = PyObject_GetAttrString((PyObject *)Py_TYPE(function), "__call__");
    if (call == NULL) PyErr_Clear();
    bool result = call != NULL && PyFunction_Check(call) && code_suspends(call);
    Py_XDECREF(call);
    return result;
}

/* inspect.markcoroutinefunction(function), or what asyncio had before: 1 if it is. Most
 * have nothing of the name, and inspect need not be imported for them. */
static int is_marked(PyObject *function) {
    static const char *const names[] = {"_is_coroutine_mark", "_is_coroutine_marker",
                                        "_is_coroutine"};
    bool perhaps = false;
    for (int i = 0; i < 3 && !perhaps; i++)
        perhaps = PyObject_HasAttrString(function, names[i]);
    if (!perhaps) return 0;
    PyObject *steps = PyImport_ImportModule("spanprof.steps");
    PyObject *answer =
        steps != NULL ? PyObject_CallMethod(steps, "is_marked", "O", function) : NULL;
    int marked = answer != NULL ? PyObject_IsTrue(answer) : -1;
    Py_XDECREF(steps);
    Py_XDECREF(answer);
    return marked;
}

/* A staticmethod or classmethod of the function that it holds, decorated. */
static PyObject *decorate_inside(ModuleState *state, SpanObject *span,
                                 PyObject *method) {
    PyObject *inside = PyObject_GetAttrString(method, "__func__");
    PyObject *decorated =
        inside != NULL ? span_function_new(state, span, inside) : NULL;
    PyObject *result = decorated != NULL
                           ? PyObject_CallOneArg((PyObject *)Py_TYPE(method), decorated)
                           : NULL;
    Py_XDECREF(inside);
    Py_XDECREF(decorated);
    return result;
}

bool span_function_is_method(PyObject *object) {
    return PyObject_TypeCheck(object, &PyStaticMethod_Type) ||
           PyObject_TypeCheck(object, &PyClassMethod_Type);
}

PyObject *span_function_new(ModuleState *state, SpanObject *span, PyObject *function) {
    if (PyType_Check(function)) {
        PyErr_SetString(PyExc_TypeError,
                        "a span cannot decorate a class; decorate its methods");
        return NULL;
    }
    if (span_function_is_method(function))
        return decorate_inside(state, span, function);
    int steps = suspends(function) ? 1 : is_marked(function);
    if (steps < 0) return NULL;
    if (steps) return call_span_decorate(state, span, function);
    FunctionObject *self = PyObject_GC_New(FunctionObject, state->function_type);
    if (self == NULL) return NULL;
    self->vectorcall = function_vectorcall;
    self->wrapped = Py_NewRef(function);
    self->name = Py_NewRef(span->name);
    self->labels = Py_XNewRef(span->labels);
    self->parent = (SpanObject *)Py_XNewRef((PyObject *)span->parent);
    self->callsite = callsite_of_function(function, span->name);
    self->dict = NULL;
    self->weakrefs = NULL;
    PyObject_GC_Track(self);
    compat_share_widely((PyObject *)self);
    if (pass_for((PyObject *)self, function) < 0) {
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

int span_function_init(PyObject *module) {
    ModuleState *state = state_of_module(module);
    state->function_type =
        (PyTypeObject *)PyType_FromModuleAndSpec(module, &function_spec, NULL);
    if (state->function_type == NULL) return -1;
    return PyModule_AddObjectRef(module, "SpanFunction",
                                 (PyObject *)state->function_type);
}
