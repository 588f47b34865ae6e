/* The buffer is the core's own array of records: nothing is copied, and it stays as
 * long as anybody holds a view of it. Its format is that of PEP 3118, which numpy takes
 * for a structured dtype. */
#include "span_batch.h"

#include "span_arrow.h"
#include "text.h"

#include "../core/callsite.h"

#include <string.h>

/* All fields of a record, in its order, with their codes in the struct module. */
#define FIELDS(X)         \
    X(id, "Q")            \
    X(parent, "Q")        \
    X(start, "q")         \
    X(end, "q")           \
    X(wall_busy, "Q")     \
    X(wall_idle, "Q")     \
    X(cpu_user, "Q")      \
    X(cpu_system, "Q")    \
    X(alloc_objects, "Q") \
    X(alloc_space, "Q")   \
    X(callsite, "I")      \
    X(labels, "I")        \
    X(thread, "I")        \
    X(generation, "I")

static const struct field {
    const char *code;
    size_t offset;
} fields[] = {
#define X(name, code) {code, offsetof(struct sp_feed_record, name)},
    FIELDS(X)
#undef X
};
#define FIELD_COUNT (sizeof fields / sizeof fields[0])
_Static_assert(sizeof(struct sp_feed_record) == 10 * 8 + 4 * 4, "no gaps");

#if PY_LITTLE_ENDIAN
#define BYTE_ORDER_CODE "<"
#else
#define BYTE_ORDER_CODE ">"
#endif

/* "T{<Q:id:...}" */
#define X(name, code) BYTE_ORDER_CODE code ":" #name ":"
static const char format[] = "T{" FIELDS(X) "}";
#undef X

typedef struct {
    PyObject_HEAD
    struct sp_feed_batch *batch;
    Py_ssize_t count, stride;
} BatchObject;

PyObject *span_batch_new(ModuleState *state, struct sp_feed_batch *batch) {
    BatchObject *self = PyObject_New(BatchObject, state->batch_type);
    if (self == NULL) {
        sp_feed_batch_free(batch);
        return NULL;
    }
    self->batch = batch;
    self->count = (Py_ssize_t)batch->count;
    self->stride = sizeof(struct sp_feed_record);
    return (PyObject *)self;
}

static void batch_dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    sp_feed_batch_free(((BatchObject *)self)->batch);
    PyObject_Free(self);
    Py_DECREF(type);
}

static int batch_getbuffer(PyObject *object, Py_buffer *view, int flags) {
    BatchObject *self = (BatchObject *)object;
    if (flags & PyBUF_WRITABLE) {
        PyErr_SetString(PyExc_BufferError, "spans are read-only");
        view->obj = NULL;
        return -1;
    }
    *view = (Py_buffer){
        .buf = self->batch->records,
        .obj = Py_NewRef(object),
        .len = self->count * self->stride,
        .itemsize = self->stride,
        .readonly = 1,
        .ndim = 1,
        .format = flags & PyBUF_FORMAT ? (char *)format : NULL,
        .shape = flags & PyBUF_ND ? &self->count : NULL,
        .strides = (flags & PyBUF_STRIDES) == PyBUF_STRIDES ? &self->stride : NULL,
    };
    return 0;
}

static Py_ssize_t batch_length(PyObject *self) {
    return ((BatchObject *)self)->count;
}

static PyObject *number(const struct sp_feed_record *record,
                        const struct field *field) {
    const char *place = (const char *)record + field->offset;
    switch (field->code[0]) {
    case 'q': {
        int64_t value;
        memcpy(&value, place, sizeof value);
        return PyLong_FromLongLong(value);
    }
    case 'Q': {
        uint64_t value;
        memcpy(&value, place, sizeof value);
        return PyLong_FromUnsignedLongLong(value);
    }
    default: {
        uint32_t value;
        memcpy(&value, place, sizeof value);
        return PyLong_FromUnsignedLong(value);
    }
    }
}

/* One record as a tuple of numbers. */
static PyObject *row_at(BatchObject *self, Py_ssize_t index) {
    if (index < 0 || index >= self->count) {
        PyErr_SetString(PyExc_IndexError, "no such span");
        return NULL;
    }
    PyObject *row = PyTuple_New(FIELD_COUNT);
    for (size_t i = 0; row != NULL && i < FIELD_COUNT; i++) {
        PyObject *value = number(&self->batch->records[index], &fields[i]);
        if (value == NULL)
            Py_CLEAR(row);
        else
            PyTuple_SET_ITEM(row, (Py_ssize_t)i, value);
    }
    return row;
}

/* For people: what span_type makes of a row. */
static PyObject *batch_item(PyObject *object, Py_ssize_t index) {
    ModuleState *state = PyType_GetModuleState(Py_TYPE(object));
    PyObject *row = row_at((BatchObject *)object, index);
    if (row == NULL || state->make_span == NULL) return row;
    PyObject *span = PyObject_CallOneArg(state->make_span, row);
    Py_DECREF(row);
    return span;
}

static PyObject *batch_subscript(PyObject *object, PyObject *key) {
    Py_ssize_t index = PyNumber_AsSsize_t(key, PyExc_IndexError);
    if (index == -1 && PyErr_Occurred()) return NULL;
    if (index < 0) index += batch_length(object);
    return batch_item(object, index);
}

static PyObject *batch_arrow_schema(PyObject *self, PyObject *unused) {
    (void)self;
    (void)unused;
    return span_arrow_schema();
}

static PyObject *batch_arrow_array(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"requested_schema", NULL};
    PyObject *requested = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|O:__arrow_c_array__", names,
                                     &requested) ||
        !span_arrow_may_request(requested))
        return NULL;
    return span_arrow_array(((BatchObject *)self)->batch);
}

static PyMethodDef batch_methods[] = {
    {"__arrow_c_schema__", batch_arrow_schema, METH_NOARGS, NULL},
    {"__arrow_c_array__", (PyCFunction)(void (*)(void))batch_arrow_array,
     METH_VARARGS | METH_KEYWORDS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot batch_slots[] = {
    {Py_tp_dealloc, batch_dealloc},     {Py_tp_methods, batch_methods},
    {Py_sq_length, batch_length},       {Py_sq_item, batch_item},
    {Py_mp_length, batch_length},       {Py_mp_subscript, batch_subscript},
    {Py_bf_getbuffer, batch_getbuffer}, {0, NULL},
};

static PyType_Spec batch_spec = {
    "spanprof._core.SpanBatch", sizeof(BatchObject), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    batch_slots};

static PyObject *label_set(PyObject *module, PyObject *arg) {
    (void)module;
    unsigned long id = PyLong_AsUnsignedLong(arg);
    if (id == (unsigned long)-1 && PyErr_Occurred()) return NULL;
    if (id > sp_labels_count()) {
        PyErr_SetString(PyExc_IndexError, "no such labels");
        return NULL;
    }
    return text_labels((uint32_t)id);
}

/* What makes an object of a row, for those who index a batch. */
static PyObject *set_span_maker(PyObject *module, PyObject *maker) {
    Py_XSETREF(state_of_module(module)->make_span, Py_NewRef(maker));
    Py_RETURN_NONE;
}

static PyMethodDef batch_functions[] = {
    {"set_span_maker", set_span_maker, METH_O, NULL},
    {"label_set", label_set, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

int span_batch_init(PyObject *module) {
    ModuleState *state = state_of_module(module);
    state->batch_type =
        (PyTypeObject *)PyType_FromModuleAndSpec(module, &batch_spec, NULL);
    if (state->batch_type == NULL) return -1;
    if (PyModule_AddFunctions(module, batch_functions) < 0) return -1;
    return PyModule_AddObjectRef(module, "SpanBatch", (PyObject *)state->batch_type);
}
