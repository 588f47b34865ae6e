/* Spans of the calls of a decorated coroutine or generator function: spanprof/steps.py
 * makes a function of the same kind, whose body is `with spans(generator): ...` around
 * the steps of the wrapped one. */
#ifndef SPANPROF_PYTHON_CALL_SPAN_H
#define SPANPROF_PYTHON_CALL_SPAN_H

#include "span_object.h"

/* steps.decorate(function, a maker of the spans of its calls). New reference; NULL with
 * an exception. */
PyObject *call_span_decorate(ModuleState *state, SpanObject *span, PyObject *function);

int call_span_init(PyObject *module);

#endif
