/* A callback in Python costs some 50 ns: all that lies between two of them is here. */
#include "span_updates.h"

#include "span_values.h"
#include "text.h"

#include "../core/fork.h"

/* The methods of a reporter, in the order of `deliver`'s argument. */
enum method { CREATED, DESTROYED, CPU, WALL, ALLOCATIONS, HEAP, METHODS };
static const char *const names[METHODS] = {"span_created",     "span_destroyed",
                                           "span_cpu",         "span_wall",
                                           "span_allocations", "span_heap"};

typedef struct {
    PyObject_HEAD
    const struct sp_span_updates *updates; /* NULL once they are gone */
    _Atomic int calling;                   /* enum method; METHODS: none */
} UpdatesObject;

PyObject *span_updates_new(ModuleState *state, const struct sp_span_updates *updates) {
    UpdatesObject *self = PyObject_New(UpdatesObject, state->updates_type);
    if (self == NULL) return NULL;
    self->updates = updates;
    atomic_init(&self->calling, METHODS);
    return (PyObject *)self;
}

void span_updates_end(PyObject *object) {
    ((UpdatesObject *)object)->updates = NULL;
}

static void updates_dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_Free(self);
    Py_DECREF(type);
}

/* To one reporter. */
struct delivery {
    UpdatesObject *self;
    ModuleState *state;
    PyObject *const *method; /* METHODS of them; None: not wanted */
    PyObject *on_error;
    PyObject *id; /* of the update */
};

/* A reporter that fails is called again all the same: it is for others to say so. */
static void tell_of_error(const struct delivery *to, enum method method) {
    PyObject *error = compat_take_exception();
    PyObject *result = PyObject_CallFunction(to->on_error, "sO", names[method], error);
    if (result == NULL) PyErr_WriteUnraisable(to->on_error);
    Py_XDECREF(result);
    Py_XDECREF(error);
}

static bool wants(const struct delivery *to, enum method method) {
    return !Py_IsNone(to->method[method]);
}

/* Takes over `value`, which is NULL with an exception, or for a method without one. */
static void call(const struct delivery *to, enum method method, PyObject *value) {
    PyObject *arguments[] = {NULL, to->id, value};
    size_t count = method == DESTROYED ? 1 : 2;
    if (count == 1 || value != NULL) {
        atomic_store_explicit(&to->self->calling, (int)method, memory_order_relaxed);
        PyObject *result =
            PyObject_Vectorcall(to->method[method], arguments + 1,
                                count | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
        atomic_store_explicit(&to->self->calling, METHODS, memory_order_relaxed);
        Py_XDECREF(value);
        if (result != NULL) {
            Py_DECREF(result);
            return;
        }
    }
    tell_of_error(to, method);
}

static PyObject *scope_of(const struct delivery *to,
                          const struct sp_span_update *update) {
    const uint64_t *ids = to->self->updates->scopes + update->scope_start;
    PyObject *scope = PyTuple_New(update->scope_count);
    if (scope == NULL) return NULL;
    for (uint32_t n = 0; n < update->scope_count; n++) {
        PyObject *id = n == 0 ? Py_NewRef(to->id) : PyLong_FromUnsignedLongLong(ids[n]);
        if (id == NULL) {
            Py_DECREF(scope);
            return NULL;
        }
        PyTuple_SET_ITEM(scope, n, id);
    }
    return scope;
}

static PyObject *metadata_of(const struct delivery *to,
                             const struct sp_span_update *update) {
    PyObject *scope = scope_of(to, update);
    if (scope == NULL) return NULL;
    PyObject *metadata =
        span_metadata_new(to->state, scope, update->callsite, update->labels);
    Py_DECREF(scope);
    return metadata;
}

static void deliver_values(const struct delivery *to,
                           const struct sp_span_update *update) {
    if (wants(to, CPU))
        call(to, CPU,
             span_pair_new(to->state, SPAN_CPU_TIME, update->cpu_user,
                           update->cpu_system));
    if (wants(to, WALL))
        call(to, WALL,
             span_pair_new(to->state, SPAN_WALL_TIME, update->wall_busy,
                           update->wall_idle));
    if (wants(to, ALLOCATIONS))
        call(to, ALLOCATIONS,
             span_pair_new(to->state, SPAN_ALLOCATIONS, update->alloc_objects,
                           update->alloc_space));
}

static void deliver_update(const struct delivery *to,
                           const struct sp_span_update *update) {
    if (update->what & SP_TOLD_CREATED && wants(to, CREATED))
        call(to, CREATED, metadata_of(to, update));
    if (update->what & SP_TOLD_VALUES) deliver_values(to, update);
    if (update->what & SP_TOLD_HEAP && wants(to, HEAP))
        call(to, HEAP,
             span_pair_new(to->state, SPAN_HEAP, update->inuse_space,
                           update->inuse_objects));
    if (update->what & SP_TOLD_DESTROYED && wants(to, DESTROYED))
        call(to, DESTROYED, NULL);
}

static PyObject *updates_deliver(PyObject *object, PyObject *args) {
    UpdatesObject *self = (UpdatesObject *)object;
    PyObject *methods, *on_error;
    if (!PyArg_ParseTuple(args, "O!O:deliver", &PyTuple_Type, &methods, &on_error))
        return NULL;
    if (self->updates == NULL || PyTuple_GET_SIZE(methods) != METHODS) {
        PyErr_SetString(PyExc_RuntimeError, "there is nothing to deliver");
        return NULL;
    }
    struct delivery to = {self, PyType_GetModuleState(Py_TYPE(object)),
                          &PyTuple_GET_ITEM(methods, 0), on_error, NULL};
    /* In a child that a reporter has forked there is nobody to tell. */
    uint64_t forks = sp_load(&sp_forks);
    for (uint32_t n = 0; n < self->updates->count && sp_load(&sp_forks) == forks; n++) {
        const struct sp_span_update *update = &self->updates->items[n];
        to.id = PyLong_FromUnsignedLongLong(update->id);
        if (to.id == NULL) return NULL;
        deliver_update(&to, update);
        Py_DECREF(to.id);
    }
    Py_RETURN_NONE;
}

static PyObject *updates_calling(PyObject *object, void *closure) {
    (void)closure;
    int calling =
        atomic_load_explicit(&((UpdatesObject *)object)->calling, memory_order_relaxed);
    if (calling == METHODS) Py_RETURN_NONE;
    return PyUnicode_FromString(names[calling]);
}

static PyMethodDef updates_methods[] = {
    {"deliver", updates_deliver, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef updates_attributes[] = {
    {"calling", updates_calling, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot updates_slots[] = {
    {Py_tp_dealloc, updates_dealloc},
    {Py_tp_methods, updates_methods},
    {Py_tp_getset, updates_attributes},
    {0, NULL},
};

static PyType_Spec updates_spec = {
    "spanprof._core.SpanUpdates", sizeof(UpdatesObject), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    updates_slots};

int span_updates_init(PyObject *module) {
    ModuleState *state = state_of_module(module);
    state->updates_type =
        (PyTypeObject *)PyType_FromModuleAndSpec(module, &updates_spec, NULL);
    if (state->updates_type == NULL) return -1;
    PyObject *tuple = text_tuple(names, METHODS);
    int failed =
        tuple == NULL || PyModule_AddObjectRef(module, "SPAN_METHODS", tuple) < 0;
    Py_XDECREF(tuple);
    return failed ? -1 : 0;
}
