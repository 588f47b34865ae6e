/* https://arrow.apache.org/docs/format/CDataInterface/PyCapsuleInterface.html: a
 * capsule owns what nobody has moved out of it. */
#include "span_arrow.h"

#include "../core/arrow.h"

#include <stdlib.h>

#define SCHEMA "arrow_schema"
#define ARRAY "arrow_array"

static void drop_schema(PyObject *capsule) {
    struct ArrowSchema *schema = PyCapsule_GetPointer(capsule, SCHEMA);
    if (schema->release != NULL) schema->release(schema);
    free(schema);
}

static void drop_array(PyObject *capsule) {
    struct ArrowArray *array = PyCapsule_GetPointer(capsule, ARRAY);
    if (array->release != NULL) array->release(array);
    free(array);
}

PyObject *span_arrow_schema(void) {
    struct ArrowSchema *schema = malloc(sizeof *schema);
    if (schema == NULL || !sp_arrow_schema(schema)) {
        free(schema);
        return PyErr_NoMemory();
    }
    PyObject *capsule = PyCapsule_New(schema, SCHEMA, drop_schema);
    if (capsule == NULL) {
        schema->release(schema);
        free(schema);
    }
    return capsule;
}

static PyObject *array_capsule(const struct sp_feed_batch *batch) {
    struct ArrowArray *array = malloc(sizeof *array);
    if (array == NULL || !sp_arrow_array(batch, array)) {
        free(array);
        return PyErr_NoMemory();
    }
    PyObject *capsule = PyCapsule_New(array, ARRAY, drop_array);
    if (capsule == NULL) {
        array->release(array);
        free(array);
    }
    return capsule;
}

PyObject *span_arrow_array(const struct sp_feed_batch *batch) {
    PyObject *schema = span_arrow_schema();
    PyObject *array = schema != NULL ? array_capsule(batch) : NULL;
    PyObject *pair = array != NULL ? PyTuple_Pack(2, schema, array) : NULL;
    Py_XDECREF(schema);
    Py_XDECREF(array);
    return pair;
}

int span_arrow_may_request(PyObject *schema) {
    if (schema == Py_None || PyCapsule_IsValid(schema, SCHEMA)) return 1;
    PyErr_SetString(PyExc_TypeError,
                    "requested_schema must be a capsule \"arrow_schema\", or None");
    return 0;
}
