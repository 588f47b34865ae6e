/* Python strings as the core takes them: UTF-8 with lone surrogates encoded. */
#ifndef SPANPROF_PYTHON_TEXT_H
#define SPANPROF_PYTHON_TEXT_H

#include "compat.h"

#include "../core/callsite.h"

/* A view of `string`, which must stay alive. *owner is NULL or a new reference
 * to release after use. Never fails: without memory the text is empty and no
 * exception is left behind. */
struct sp_text text_view(PyObject *string, PyObject **owner);

/* New reference, NULL with an exception. */
PyObject *text_object(const struct sp_string *string);

/* A tuple of these names. The same. */
PyObject *text_tuple(const char *const *names, size_t count);

/* The labels of that number, a tuple of pairs of name and value. The same. */
PyObject *text_labels(uint32_t id);

#endif
