"""The C API from cffi, C++ and Cython, and how builds find it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import spanprof
import spanprof.ffi
from spanprof import span

from ..helpers import calls
from .build import HERE, build, load


def test_cffi_without_a_compiler() -> None:
    cffi = pytest.importorskip("cffi")
    ffi = cffi.FFI()
    ffi.cdef(spanprof.ffi.cdef())
    lib = spanprof.ffi.load(ffi)
    name, key, value = (ffi.new("char[]", text) for text in (b"by cffi", b"a", b"b"))
    callsite = ffi.new("spanprof_callsite *", {"name": name})
    labels = ffi.new("spanprof_label[]", [{"key": key, "value": value}])
    assert lib.spanprof_begin(callsite) == ffi.NULL
    with spanprof.start(record_labels=["a"]) as session, span("main") as main:
        assert lib.spanprof_is_running()
        outer = lib.spanprof_begin(callsite)
        parent = ffi.new("spanprof_parent *", lib.spanprof_current())
        assert parent.id != main.id
        lib.spanprof_end(outer)
        options = ffi.new(
            "spanprof_options *",
            {"parent": parent, "labels": labels, "label_count": 1},
        )
        lib.spanprof_end(lib.spanprof_begin_with(callsite, options))
    assert calls(session.result) == {
        ("main",): 1,
        ("main", "by cffi"): 1,
        ("main", "by cffi", "by cffi"): 1,
    }
    assert {"a": "b"} in [sample.labels for sample in session.result.samples]


def test_cffi_with_a_compiler(tmp_path: Path) -> None:
    cffi = pytest.importorskip("cffi")
    ffi = cffi.FFI()
    ffi.cdef(spanprof.ffi.cdef())
    ffi.cdef("int start(const spanprof_api *api); void work(int count);")
    # What the header has as inline functions, the extension calls by itself.
    ffi.set_source(
        "native_extension",
        """
        #include <spanprof.h>
        SPANPROF_DEFINE;
        static const spanprof_api *spanprof_get_api(void) { return spanprof_imported; }
        static int start(const spanprof_api *api) { return spanprof_use(api); }
        static void work(int count) {
            while (count-- > 0) { SPANPROF_SPAN("api mode"); }
        }
        """,
    )
    source = tmp_path / "native_extension.c"
    ffi.emit_c_code(str(source))
    api = load(
        build(tmp_path, "-Wno-pedantic", "-Wno-unused-parameter", source=str(source))
    )
    address = spanprof.ffi.address()
    assert api.lib.start(api.ffi.cast("const spanprof_api *", address)) == 0
    with spanprof.start() as session:
        api.lib.work(5)
        named = api.ffi.new("char[]", b"inline")
        callsite = api.ffi.new("spanprof_callsite *", {"name": named})
        api.lib.spanprof_end(api.lib.spanprof_begin(callsite))
    assert calls(session.result) == {("api mode",): 5, ("inline",): 1}


def compiled(tmp_path: Path, source: Path, *flags: str) -> ModuleType:
    return load(build(tmp_path, *flags, source=str(source)))


def test_cplusplus(tmp_path: Path) -> None:
    if shutil.which("c++") is None:
        pytest.skip("there is no C++ compiler")
    native = compiled(
        tmp_path, HERE / "extension.cpp", "-lstdc++", "-std=c++11", "-Wno-pedantic"
    )
    before = spanprof.stats()["misnested"]
    with spanprof.start(record_labels=["kind"]) as session:
        native.run()
    assert calls(session.result) == {
        ("thrown through",): 1,
        ("thrown through", "moved"): 1,
        ("thrown through", "moved", "under"): 1,
        ("handler",): 1,
        ("handler", "labelled"): 1,
    }
    assert spanprof.stats()["misnested"] == before


def test_cplusplus_disabled(tmp_path: Path) -> None:
    if shutil.which("c++") is None:
        pytest.skip("there is no C++ compiler")
    flags = ["-lstdc++", "-std=c++11", "-Wno-pedantic", "-DSPANPROF_DISABLE"]
    native = compiled(tmp_path, HERE / "extension.cpp", *flags)
    with spanprof.start() as session:
        native.run()
    assert session.result.totals["calls"] == 0


def test_cython(tmp_path: Path) -> None:
    pytest.importorskip("Cython")
    source = tmp_path / "native_extension.c"
    pyx = tmp_path / "native_extension.pyx"
    pyx.write_text((HERE / "extension.pyx").read_text())
    package = Path(spanprof.__file__).parents[1]
    command = [sys.executable, "-m", "cython", "-I", str(package), str(pyx)]
    subprocess.run(command, check=True, cwd=tmp_path)
    native = compiled(tmp_path, source, "-w")
    with spanprof.start() as session:
        native.run()
    assert calls(session.result) == {("cython",): 1}


def pkg_config(what: str) -> str:
    if shutil.which("pkg-config") is None:
        pytest.skip("there is no pkg-config")
    environment = os.environ | {"PKG_CONFIG_PATH": spanprof.get_pkgconfig()}
    command = ["pkg-config", what, "spanprof"]
    return subprocess.check_output(command, env=environment, text=True).strip()


def test_pkg_config() -> None:
    assert pkg_config("--modversion") == spanprof.__version__
    folder = pkg_config("--cflags").removeprefix("-I")
    assert Path(folder).samefile(spanprof.get_include())


def test_an_older_spanprof_is_refused() -> None:
    cffi = pytest.importorskip("cffi")
    ffi = cffi.FFI()
    ffi.cdef(spanprof.ffi.cdef() + "int spanprof_use(const spanprof_api *api);")
    lib = spanprof.ffi.load(ffi)
    now = lib.spanprof_get_api()
    older = ffi.new("spanprof_api *", now[0])
    older.size -= 8
    assert lib.spanprof_use(older) == -1
    assert lib.spanprof_use(now) == 0
    assert now.version == 1
    assert now.size == ffi.sizeof("spanprof_api")
