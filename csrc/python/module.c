/* spanprof._core */
#include "c_api.h"
#include "call_span.h"
#include "current_context.h"
#include "greenlets.h"
#include "numpy_handler.h"
#include "state.h"
#include "suspension.h"

PyTypeObject *state_first_type;
ModuleState *state_first;

/* Whose these are. Interpreters may import us at the same time, each with a GIL of its
 * own; nobody but this one's threads is ever misled by the two above. */
static _Atomic(ModuleState *) first;

static void claim_first(ModuleState *state) {
    ModuleState *nobody = NULL;
    if (!atomic_compare_exchange_strong(&first, &nobody, state)) return;
    state_first = state;
    state_first_type = state->span_type;
}

static void give_up_first(ModuleState *state) {
    if (atomic_load(&first) != state) return;
    state_first_type = NULL;
    state_first = NULL;
    atomic_store(&first, NULL);
}

static int module_exec(PyObject *module) {
    if (ready_init(module) < 0) return -1;
    if (span_object_init(module) < 0) return -1;
    if (span_function_init(module) < 0) return -1;
    if (profile_object_init(module) < 0) return -1;
    if (span_batch_init(module) < 0) return -1;
    if (span_values_init(module) < 0) return -1;
    if (span_updates_init(module) < 0) return -1;
    if (inherited_init(module) < 0) return -1;
    if (current_context_init(module) < 0) return -1;
    if (suspension_init(module) < 0) return -1;
    if (call_span_init(module) < 0) return -1;
    if (greenlets_init(module) < 0) return -1;
    claim_first(state_of_module(module));
    if (session_init(module) < 0) return -1;
    if (c_api_init(module) < 0) return -1;
    return numpy_handler_init(module);
}

static int module_traverse(PyObject *module, visitproc visit, void *arg) {
    ModuleState *state = state_of_module(module);
    Py_VISIT(state->span_type);
    Py_VISIT(state->function_type);
    Py_VISIT(state->call_spans_type);
    Py_VISIT(state->steps_type);
    Py_VISIT(state->ready_type);
    Py_VISIT(state->profile_type);
    Py_VISIT(state->batch_type);
    Py_VISIT(state->updates_type);
    for (int i = 0; i < SPAN_PAIRS; i++) Py_VISIT(state->pair_types[i]);
    Py_VISIT(state->metadata_type);
    Py_VISIT(state->sites);
    Py_VISIT(state->label_sets);
    Py_VISIT(state->make_span);
    Py_VISIT(state->sampler);
    Py_VISIT(state->inherited_type);
    Py_VISIT(state->inherited_var);
    Py_VISIT(state->code_refs);
    Py_VISIT(state->context_type);
    Py_VISIT(state->context_var);
    Py_VISIT(state->monitoring);
    Py_VISIT(state->watched_code);
    Py_VISIT(state->contextlib);
    Py_VISIT(state->steps);
    Py_VISIT(state->greenlet);
    Py_VISIT(state->greenlet_tracer);
    return 0;
}

static int module_clear(PyObject *module) {
    ModuleState *state = state_of_module(module);
    span_object_clear_free_list(state);
    give_up_first(state);
    Py_CLEAR(state->span_type);
    Py_CLEAR(state->function_type);
    Py_CLEAR(state->call_spans_type);
    Py_CLEAR(state->steps_type);
    Py_CLEAR(state->ready_type);
    Py_CLEAR(state->profile_type);
    Py_CLEAR(state->batch_type);
    Py_CLEAR(state->updates_type);
    for (int i = 0; i < SPAN_PAIRS; i++) Py_CLEAR(state->pair_types[i]);
    Py_CLEAR(state->metadata_type);
    Py_CLEAR(state->sites);
    Py_CLEAR(state->label_sets);
    Py_CLEAR(state->make_span);
    Py_CLEAR(state->sampler);
    Py_CLEAR(state->inherited_type);
    Py_CLEAR(state->inherited_var);
    Py_CLEAR(state->code_refs);
    current_context_forget(state);
    Py_CLEAR(state->context_type);
    Py_CLEAR(state->context_var);
    Py_CLEAR(state->monitoring);
    Py_CLEAR(state->watched_code);
    Py_CLEAR(state->contextlib);
    Py_CLEAR(state->steps);
    for (int i = 0; i < 5; i++) Py_CLEAR(state->names[i]);
    Py_CLEAR(state->greenlet);
    Py_CLEAR(state->greenlet_tracer);
    return 0;
}

static void module_free(void *module) {
    module_clear(module);
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
#if PY_VERSION_HEX >= 0x030c0000
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
#if PY_VERSION_HEX >= 0x030d0000
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef module_definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "spanprof._core",
    .m_doc = "spanprof's C extension: see _core.pyi.",
    .m_size = sizeof(ModuleState),
    .m_slots = module_slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
    .m_free = module_free,
};

PyMODINIT_FUNC PyInit__core(void) {
    return PyModuleDef_Init(&module_definition);
}
