"""A span of native code, by SPANPROF_SPAN, against one from Python, and what two calls
of clock_gettime take there. Needs a C compiler."""

from __future__ import annotations

import importlib.util
import statistics
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import harness

import spanprof

SPANS, ROUNDS = 200_000, 15

SOURCE = r"""
#include <Python.h>
#include <spanprof.h>
#include <time.h>
SPANPROF_DEFINE;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}
#define MANY(body)                                                             \
    long n = PyLong_AsLong(count);                                             \
    double before = now();                                                     \
    for (long i = 0; i < n; i++) {                                             \
        body;                                                                  \
        __asm__ volatile("" ::: "memory");                                     \
    }                                                                          \
    return PyFloat_FromDouble((now() - before) / (double)n)
static PyObject *spans(PyObject *self, PyObject *count) {
    (void)self;
    MANY(SPANPROF_SPAN("one"));
}
static PyObject *clocks(PyObject *self, PyObject *count) {
    (void)self;
    volatile double used = 0;
    MANY(used += now(); used -= now());
}
static PyObject *use(PyObject *self, PyObject *ignored) {
    (void)self, (void)ignored;
    if (spanprof_import() < 0) return NULL;
    Py_RETURN_NONE;
}
static PyMethodDef functions[] = {{"spans", spans, METH_O, NULL},
                                  {"clocks", clocks, METH_O, NULL},
                                  {"use", use, METH_NOARGS, NULL},
                                  {NULL, NULL, 0, NULL}};
static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "native_benchmark", .m_methods = functions};
PyMODINIT_FUNC PyInit_native_benchmark(void) { return PyModuleDef_Init(&definition); }
"""


def build(folder: Path) -> Any:
    source = folder / "native_benchmark.c"
    source.write_text(SOURCE)
    target = folder / f"native_benchmark{sysconfig.get_config_var('EXT_SUFFIX')}"
    command = ["cc", "-O2", "-shared", "-fPIC", f"-I{spanprof.get_include()}"]
    command += [f"-I{sysconfig.get_path('include')}", str(source), "-o", str(target)]
    subprocess.run(command, check=True)
    spec = importlib.util.spec_from_file_location("native_benchmark", target)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.use()
    return module


def median(function: Any) -> float:
    return statistics.median(function(SPANS) for _ in range(ROUNDS))


def main() -> None:
    harness.heading("native spans: ns each, medians")
    with tempfile.TemporaryDirectory() as folder:
        native = build(Path(folder))
    clocks = median(native.clocks)
    print(f"two calls of clock_gettime  {clocks:6.1f}")
    print(f"without a session           {median(native.spans):6.2f}  (target 2)")
    for name, tracked in {
        "wall": {"track_wall": True},
        "wall and CPU": {"track_wall": True, "track_cpu": True},
        "everything": {"track_all": True},
    }.items():
        with spanprof.start(**tracked), spanprof.span("around"):
            took = median(native.spans)
        print(f"{name:<27} {took:6.1f}  {took / clocks:4.2f} of the two  (target 40)")


if __name__ == "__main__":
    main()
