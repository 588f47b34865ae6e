#include "span_values.h"

#include "text.h"

/* --- pairs of numbers ---------------------------------------------------------------
 */

typedef struct {
    PyObject_HEAD
    unsigned long long value[2];
} PairObject;

#define PAIR_MEMBER(name, index, doc) \
    { name, T_ULONGLONG, offsetof(PairObject, value[index]), READONLY, doc }

static PyMemberDef cpu_members[] = {
    PAIR_MEMBER("elapsed_user_nanos", 0, "CPU time in user mode, ns."),
    PAIR_MEMBER("elapsed_system_nanos", 1, "CPU time in the kernel, ns."),
    {NULL, 0, 0, 0, NULL},
};
static PyMemberDef wall_members[] = {
    PAIR_MEMBER("elapsed_busy_nanos", 0, "Wall time while it ran, ns."),
    PAIR_MEMBER("elapsed_idle_nanos", 1,
                "Wall time while it was open and did not run, ns."),
    {NULL, 0, 0, 0, NULL},
};
static PyMemberDef allocations_members[] = {
    PAIR_MEMBER("allocation_count", 0, "Blocks of memory allocated."),
    PAIR_MEMBER("allocated_bytes", 1, "Their size in bytes."),
    {NULL, 0, 0, 0, NULL},
};
static PyMemberDef heap_members[] = {
    PAIR_MEMBER("in_use_bytes", 0, "Bytes that it allocated and nobody has freed."),
    PAIR_MEMBER("in_use_count", 1, "How many blocks they are."),
    {NULL, 0, 0, 0, NULL},
};

static PyMemberDef *const pair_members[SPAN_PAIRS] = {
    [SPAN_CPU_TIME] = cpu_members,
    [SPAN_WALL_TIME] = wall_members,
    [SPAN_ALLOCATIONS] = allocations_members,
    [SPAN_HEAP] = heap_members,
};

/* The type's own members: types are final. */
static PyMemberDef *members_of(PyTypeObject *type) {
    return type->tp_members;
}

PyObject *span_pair_new(ModuleState *state, enum span_pair kind, uint64_t first,
                        uint64_t second) {
    PairObject *self = PyObject_New(PairObject, state->pair_types[kind]);
    if (self == NULL) return NULL;
    self->value[0] = first;
    self->value[1] = second;
    return (PyObject *)self;
}

/* Of a number that is not negative; -1 with an exception. */
static int number_of(PyObject *object, const char *name, unsigned long long *value) {
    if (!PyLong_Check(object)) {
        PyErr_Format(PyExc_TypeError, "%s must be int, not %.200s", name,
                     Py_TYPE(object)->tp_name);
        return -1;
    }
    *value = PyLong_AsUnsignedLongLong(object);
    if (!PyErr_Occurred()) return 0;
    PyErr_Format(PyExc_ValueError, "%s must be in 0..2**64-1, not %R", name, object);
    return -1;
}

static PyObject *pair_make(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    const PyMemberDef *members = members_of(type);
    char *names[] = {(char *)members[0].name, (char *)members[1].name, NULL};
    PyObject *given[2];
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO", names, &given[0], &given[1]))
        return NULL;
    unsigned long long value[2];
    for (int i = 0; i < 2; i++)
        if (number_of(given[i], members[i].name, &value[i]) < 0) return NULL;
    PairObject *self = PyObject_New(PairObject, type);
    if (self == NULL) return NULL;
    self->value[0] = value[0];
    self->value[1] = value[1];
    return (PyObject *)self;
}

static void pair_dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_Free(self);
    Py_DECREF(type);
}

static PyObject *pair_repr(PyObject *object) {
    PairObject *self = (PairObject *)object;
    PyTypeObject *type = Py_TYPE(object);
    const PyMemberDef *members = members_of(type);
    PyObject *name = PyType_GetName(type);
    if (name == NULL) return NULL;
    PyObject *text =
        PyUnicode_FromFormat("%U(%s=%llu, %s=%llu)", name, members[0].name,
                             self->value[0], members[1].name, self->value[1]);
    Py_DECREF(name);
    return text;
}

static PyObject *pair_compare(PyObject *a, PyObject *b, int operation) {
    if (Py_TYPE(a) != Py_TYPE(b) || (operation != Py_EQ && operation != Py_NE))
        Py_RETURN_NOTIMPLEMENTED;
    const PairObject *x = (PairObject *)a, *y = (PairObject *)b;
    bool same = x->value[0] == y->value[0] && x->value[1] == y->value[1];
    return PyBool_FromLong(same == (operation == Py_EQ));
}

static Py_hash_t pair_hash(PyObject *object) {
    const PairObject *self = (PairObject *)object;
    Py_hash_t hash = (Py_hash_t)sp_mix(self->value[0] + sp_mix(self->value[1]));
    return hash != -1 ? hash : -2;
}

/* For copy and pickle. */
static PyObject *pair_reduce(PyObject *object, PyObject *Py_UNUSED(ignored)) {
    PairObject *self = (PairObject *)object;
    return Py_BuildValue("O(KK)", Py_TYPE(object), self->value[0], self->value[1]);
}

static PyMethodDef pair_methods[] = {
    {"__reduce__", pair_reduce, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject *make_pair_type(PyObject *module, const char *name,
                                    PyMemberDef *members, const char *doc) {
    PyType_Slot slots[] = {
        {Py_tp_doc, (void *)doc},
        {Py_tp_new, pair_make},
        {Py_tp_dealloc, pair_dealloc},
        {Py_tp_repr, pair_repr},
        {Py_tp_richcompare, pair_compare},
        {Py_tp_hash, pair_hash},
        {Py_tp_members, members},
        {Py_tp_methods, pair_methods},
        {0, NULL},
    };
    PyType_Spec spec = {name, sizeof(PairObject), 0,
                        Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, slots};
    return (PyTypeObject *)PyType_FromModuleAndSpec(module, &spec, NULL);
}

/* --- metadata -----------------------------------------------------------------------
 */

enum part { CALLSITE, TARGET, SPAN_NAME, FILE_NAME, LINE, PARTS };

typedef struct {
    PyObject_HEAD
    PyObject *scope;  /* a tuple of int */
    PyObject *site;   /* a tuple of PARTS, one for all spans of a callsite */
    PyObject *labels; /* a read-only mapping from str to str, the same */
} MetadataObject;

static PyObject *metadata_of(PyTypeObject *type, PyObject *scope, PyObject *site,
                             PyObject *labels) {
    MetadataObject *self = PyObject_New(MetadataObject, type);
    if (self == NULL) return NULL;
    self->scope = Py_NewRef(scope);
    self->site = Py_NewRef(site);
    self->labels = Py_NewRef(labels);
    return (PyObject *)self;
}

static PyObject *make_site(uint32_t id) {
    const struct sp_callsite *callsite = sp_callsite_get(id);
    PyObject *target = text_object(callsite->target);
    PyObject *name = text_object(callsite->name);
    PyObject *file = text_object(callsite->file);
    PyObject *site = NULL;
    if (target != NULL && name != NULL && file != NULL)
        site = Py_BuildValue("(IOOOI)", id, target, name, file, callsite->line);
    Py_XDECREF(target);
    Py_XDECREF(name);
    Py_XDECREF(file);
    return site;
}

static PyObject *make_labels(uint32_t id) {
    PyObject *pairs = text_labels(id), *dict = PyDict_New(), *proxy = NULL;
    if (pairs != NULL && dict != NULL && PyDict_MergeFromSeq2(dict, pairs, 1) == 0)
        proxy = PyDictProxy_New(dict);
    Py_XDECREF(pairs);
    Py_XDECREF(dict);
    return proxy;
}

/* What `make` makes of a number, kept in `cache`: both kinds have limits. */
static PyObject *look_up(PyObject *cache, uint32_t id, PyObject *(*make)(uint32_t id)) {
    PyObject *key = PyLong_FromUnsignedLong(id);
    if (key == NULL) return NULL;
    PyObject *found = Py_XNewRef(PyDict_GetItemWithError(cache, key));
    if (found == NULL && !PyErr_Occurred()) {
        found = make(id);
        if (found != NULL && PyDict_SetItem(cache, key, found) < 0) Py_CLEAR(found);
    }
    Py_DECREF(key);
    return found;
}

PyObject *span_metadata_new(ModuleState *state, PyObject *scope, uint32_t callsite,
                            uint32_t labels) {
    PyObject *site = look_up(state->sites, callsite, make_site);
    PyObject *values =
        site != NULL ? look_up(state->label_sets, labels, make_labels) : NULL;
    PyObject *self =
        values != NULL ? metadata_of(state->metadata_type, scope, site, values) : NULL;
    Py_XDECREF(site);
    Py_XDECREF(values);
    return self;
}

static bool are_all(PyObject *tuple, PyTypeObject *type) {
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(tuple); i++)
        if (!PyObject_TypeCheck(PyTuple_GET_ITEM(tuple, i), type)) return false;
    return true;
}

/* A copy that nobody can change; NULL with an exception. */
static PyObject *frozen_labels(PyObject *labels) {
    PyObject *dict = PyDict_New(), *proxy = NULL;
    if (dict == NULL) return NULL;
    bool good = labels == NULL || PyDict_Update(dict, labels) == 0;
    PyObject *key, *value;
    for (Py_ssize_t at = 0; good && PyDict_Next(dict, &at, &key, &value);) {
        good = PyUnicode_Check(key) && PyUnicode_Check(value);
        if (!good) PyErr_SetString(PyExc_TypeError, "labels must map str to str");
    }
    if (good) proxy = PyDictProxy_New(dict);
    Py_DECREF(dict);
    return proxy;
}

/* For those who test their reporters. */
static PyObject *metadata_make(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"scope", "callsite", "target", "span_name",
                            "file",  "line",     "labels", NULL};
    PyObject *scope, *callsite, *target, *name, *file, *line, *labels = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO!UUUO!|O:SpanMetadata", names,
                                     &scope, &PyLong_Type, &callsite, &target, &name,
                                     &file, &PyLong_Type, &line, &labels))
        return NULL;
    scope = PySequence_Tuple(scope);
    if (scope == NULL) return NULL;
    PyObject *values = NULL, *site = NULL, *self = NULL;
    if (!are_all(scope, &PyLong_Type))
        PyErr_SetString(PyExc_TypeError, "scope must hold ids of spans");
    else
        values = frozen_labels(labels);
    if (values != NULL) site = PyTuple_Pack(PARTS, callsite, target, name, file, line);
    if (site != NULL) self = metadata_of(type, scope, site, values);
    Py_XDECREF(site);
    Py_XDECREF(values);
    Py_DECREF(scope);
    return self;
}

static void metadata_dealloc(PyObject *object) {
    MetadataObject *self = (MetadataObject *)object;
    PyTypeObject *type = Py_TYPE(object);
    Py_DECREF(self->scope);
    Py_DECREF(self->site);
    Py_DECREF(self->labels);
    PyObject_Free(self);
    Py_DECREF(type);
}

static PyObject *part_of(PyObject *object, void *part) {
    return Py_NewRef(
        PyTuple_GET_ITEM(((MetadataObject *)object)->site, (Py_ssize_t)(intptr_t)part));
}

#define PART(name, part, doc) \
    { name, part_of, NULL, doc, (void *)(intptr_t)(part) }
static PyGetSetDef metadata_parts[] = {
    PART("callsite", CALLSITE,
         "A number for its place in the source, the same as long as the process "
         "lives."),
    PART("target", TARGET, "The __name__ of the module that opened it."),
    PART("span_name", SPAN_NAME, "The span's name."),
    PART("file", FILE_NAME, "The file in which it was opened."),
    PART("line", LINE, "The line on which it was opened."),
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef metadata_members[] = {
    {"scope", T_OBJECT_EX, offsetof(MetadataObject, scope), READONLY,
     "Ids of the span and of its ancestors: itself first, the root last."},
    {"labels", T_OBJECT_EX, offsetof(MetadataObject, labels), READONLY,
     "Its recorded labels, a mapping that cannot be changed."},
    {NULL, 0, 0, 0, NULL},
};

static PyObject *metadata_repr(PyObject *object) {
    MetadataObject *self = (MetadataObject *)object;
    PyObject *labels = PyDict_New();
    if (labels == NULL || PyDict_Update(labels, self->labels) < 0) {
        Py_XDECREF(labels);
        return NULL;
    }
    PyObject *text = PyUnicode_FromFormat(
        "SpanMetadata(scope=%R, callsite=%R, target=%R, span_name=%R, file=%R, "
        "line=%R, labels=%R)",
        self->scope, PyTuple_GET_ITEM(self->site, CALLSITE),
        PyTuple_GET_ITEM(self->site, TARGET), PyTuple_GET_ITEM(self->site, SPAN_NAME),
        PyTuple_GET_ITEM(self->site, FILE_NAME), PyTuple_GET_ITEM(self->site, LINE),
        labels);
    Py_DECREF(labels);
    return text;
}

static PyObject *metadata_compare(PyObject *a, PyObject *b, int operation) {
    if (Py_TYPE(a) != Py_TYPE(b) || (operation != Py_EQ && operation != Py_NE))
        Py_RETURN_NOTIMPLEMENTED;
    const MetadataObject *x = (MetadataObject *)a, *y = (MetadataObject *)b;
    int same = PyObject_RichCompareBool(x->scope, y->scope, Py_EQ);
    if (same > 0) same = PyObject_RichCompareBool(x->site, y->site, Py_EQ);
    if (same > 0) same = PyObject_RichCompareBool(x->labels, y->labels, Py_EQ);
    return same < 0 ? NULL : PyBool_FromLong(same == (operation == Py_EQ));
}

static Py_hash_t metadata_hash(PyObject *object) {
    MetadataObject *self = (MetadataObject *)object;
    Py_hash_t scope = PyObject_Hash(self->scope), site = PyObject_Hash(self->site);
    if (scope == -1 || site == -1) return -1;
    Py_hash_t hash = (Py_hash_t)sp_mix((uint64_t)scope + sp_mix((uint64_t)site));
    return hash != -1 ? hash : -2;
}

static PyObject *metadata_reduce(PyObject *object, PyObject *Py_UNUSED(ignored)) {
    MetadataObject *self = (MetadataObject *)object;
    PyObject *labels = PyDict_New();
    if (labels == NULL || PyDict_Update(labels, self->labels) < 0) {
        Py_XDECREF(labels);
        return NULL;
    }
    PyObject *const *part = &PyTuple_GET_ITEM(self->site, 0);
    return Py_BuildValue("O(OOOOOON)", Py_TYPE(object), self->scope, part[CALLSITE],
                         part[TARGET], part[SPAN_NAME], part[FILE_NAME], part[LINE],
                         labels);
}

static PyMethodDef metadata_methods[] = {
    {"__reduce__", metadata_reduce, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot metadata_slots[] = {
    {Py_tp_doc, (void *)"What a span is: told once, when it is created."},
    {Py_tp_new, metadata_make},
    {Py_tp_dealloc, metadata_dealloc},
    {Py_tp_repr, metadata_repr},
    {Py_tp_richcompare, metadata_compare},
    {Py_tp_hash, metadata_hash},
    {Py_tp_members, metadata_members},
    {Py_tp_getset, metadata_parts},
    {Py_tp_methods, metadata_methods},
    {0, NULL},
};

static PyType_Spec metadata_spec = {"spanprof.SpanMetadata", sizeof(MetadataObject), 0,
                                    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
                                    metadata_slots};

/* --- the module ---------------------------------------------------------------------
 */

int span_values_init(PyObject *module) {
    static const char *const names[SPAN_PAIRS] = {
        [SPAN_CPU_TIME] = "spanprof.SpanCpuTime",
        [SPAN_WALL_TIME] = "spanprof.SpanWallTime",
        [SPAN_ALLOCATIONS] = "spanprof.SpanAllocations",
        [SPAN_HEAP] = "spanprof.SpanHeap",
    };
    static const char *const docs[SPAN_PAIRS] = {
        [SPAN_CPU_TIME] = "CPU time of a span itself, since it was last told.",
        [SPAN_WALL_TIME] = "Wall time of a span itself, since it was last told.",
        [SPAN_ALLOCATIONS] = "What a span itself allocated, since it was last told.",
        [SPAN_HEAP] = "What a span itself allocated and nobody has freed yet.",
    };
    ModuleState *state = state_of_module(module);
    state->sites = PyDict_New();
    state->label_sets = PyDict_New();
    state->metadata_type =
        (PyTypeObject *)PyType_FromModuleAndSpec(module, &metadata_spec, NULL);
    if (state->sites == NULL || state->label_sets == NULL ||
        state->metadata_type == NULL ||
        PyModule_AddType(module, state->metadata_type) < 0)
        return -1;
    for (int i = 0; i < SPAN_PAIRS; i++) {
        state->pair_types[i] =
            make_pair_type(module, names[i], pair_members[i], docs[i]);
        if (state->pair_types[i] == NULL ||
            PyModule_AddType(module, state->pair_types[i]) < 0)
            return -1;
    }
    return 0;
}
