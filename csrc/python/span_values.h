/* What reporters are told of a span: SpanMetadata, SpanWallTime and so on. Immutable,
 * compared by value, without anything that a garbage collector must see. */
#ifndef SPANPROF_PYTHON_SPAN_VALUES_H
#define SPANPROF_PYTHON_SPAN_VALUES_H

#include "state.h"

/* A pair of numbers of one of the types in state->pair_types. New reference; NULL with
 * an exception. */
PyObject *span_pair_new(ModuleState *state, enum span_pair kind, uint64_t first,
                        uint64_t second);

/* Of a callsite and a label set of the core's. `scope` is a tuple of ids. The same. */
PyObject *span_metadata_new(ModuleState *state, PyObject *scope, uint32_t callsite,
                            uint32_t labels);

#endif
