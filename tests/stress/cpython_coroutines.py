"""CPython's own tests of coroutines and generators, with a span in every one of them.

    python cpython_coroutines.py [--compare | --without] [MODULE...]

Each coroutine, generator and async generator function of the test modules gets a span
around its body when it is imported; the tests must do as they do with the same blocks
and no session (--without), which some fail for reasons of their own. --compare runs
both, and has status 1 if they differ.
"""

from __future__ import annotations

import ast
import importlib.abc
import importlib.machinery
import importlib.util
import subprocess
import sys
import unittest
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import spanprof

MODULES = (
    "test.test_asyncgen",
    "test.test_coroutines",
    "test.test_generators",
    "test.test_generator_stop",
    "test.test_yield_from",
    "test.test_contextlib",
    "test.test_contextlib_async",
    "test.test_context",
    "test.test_asyncio.test_tasks",
    "test.test_asyncio.test_taskgroups",
    "test.test_asyncio.test_timeouts",
    "test.test_asyncio.test_locks",
    "test.test_asyncio.test_queues",
    "test.test_asyncio.test_futures",
    "test.test_asyncio.test_streams",
    "test.test_asyncio.test_base_events",
    "test.test_asyncio.test_eager_task_factory",
    "test.test_asyncio.test_runners",
    "test.test_asyncio.test_threads",
    "test.test_asyncio.test_subprocess",
    "test.test_asyncio.test_context",
    "asyncio.tasks",
    "asyncio.taskgroups",
    "asyncio.timeouts",
    "asyncio.locks",
    "asyncio.queues",
    "asyncio.streams",
    "asyncio.base_events",
    "asyncio.runners",
    "asyncio.threads",
)
"""The last ones are not run, but have spans as well."""


class IsSuspended(ast.NodeVisitor):
    """Whether a function is a coroutine or generator function by itself."""

    def __init__(self, function: ast.AST) -> None:
        self.found = isinstance(function, ast.AsyncFunctionDef)
        self.generic_visit(function)

    def visit_Yield(self, node: ast.AST) -> None:
        self.found = True

    visit_YieldFrom = visit_Yield

    def visit_FunctionDef(self, node: ast.AST) -> None: ...

    visit_AsyncFunctionDef = visit_Lambda = visit_ClassDef = visit_FunctionDef


class AddSpans(ast.NodeTransformer):
    def visit_FunctionDef(self, node: Any) -> Any:
        self.generic_visit(node)
        if not IsSuspended(node).found:
            return node
        start = 0
        while start < len(node.body) and (
            isinstance(node.body[start], ast.Global | ast.Nonlocal)
            or (start == 0 and ast.get_docstring(node, clean=False) is not None)
        ):
            start += 1
        call = ast.parse(f"__import__('spanprof').span({node.name!r})", mode="eval")
        item = ast.withitem(context_expr=call.body)
        rest = node.body[start:] or [ast.Pass()]
        node.body[start:] = [ast.With(items=[item], body=rest)]
        return ast.fix_missing_locations(node)

    visit_AsyncFunctionDef = visit_FunctionDef


class Loader(importlib.machinery.SourceFileLoader):
    def source_to_code(self, data: Any, path: Any, **options: Any) -> Any:
        tree = AddSpans().visit(ast.parse(data))
        return compile(tree, path, "exec", dont_inherit=True)

    def get_code(self, fullname: str) -> Any:  # never from a cache
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


class Finder(importlib.abc.MetaPathFinder):
    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> Any:
        if name not in self.names:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(
            spec.loader, importlib.machinery.SourceFileLoader
        ):
            spec.loader = Loader(name, spec.loader.path)
        return spec


def run(names: Sequence[str]) -> list[str]:
    """The tests that failed, by name."""
    failed = []
    for name in names:
        suite = unittest.defaultTestLoader.loadTestsFromName(name)
        with open("/dev/null", "w") as nowhere:
            result = unittest.TextTestRunner(nowhere, verbosity=0).run(suite)
        for test, _ in result.failures + result.errors:
            failed.append(str(test))
        counted = {counter: spanprof.stats()[counter] for counter in COUNTERS}
        print(f"{name}: {result.testsRun} tests, {len(failed)} failed so far", counted)
        if "-v" in sys.argv:
            for test, text in result.failures + result.errors:
                print(test, text)
    return failed


def failures(*arguments: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, __file__, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
    )
    print(done.stdout)
    lines = done.stdout.splitlines()
    return {line for line in lines if line.startswith("failed: ")}


def compare(names: Sequence[str]) -> None:
    with_spans, without = failures(*names), failures("--without", *names)
    for line in sorted(with_spans - without):
        print("only with spans recorded,", line)
    print(f"{len(with_spans & without)} tests fail both ways")
    sys.exit(1 if with_spans - without else 0)


def main() -> None:
    arguments = [each for each in sys.argv[1:] if not each.startswith("-")]
    names = arguments or [name for name in MODULES if name.startswith("test.")]
    if "--compare" in sys.argv:
        compare(arguments)
    for name in MODULES:
        for loaded in [each for each in sys.modules if each == name]:
            del sys.modules[loaded]
    sys.meta_path.insert(0, Finder((*MODULES, *names)))
    if "--without" in sys.argv:
        failed = run(names)
    else:
        with spanprof.start(track_all=True), spanprof.span("cpython"):
            failed = run(names)
    for test in failed:
        print("failed:", test)


COUNTERS = ("misnested", "abandoned", "suspensions_unseen", "out_of_memory")

if __name__ == "__main__":
    main()
