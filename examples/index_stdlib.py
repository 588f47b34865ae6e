"""Index the standard library of the interpreter that runs this program.

Every module is read, tokenized, parsed, compiled and given a symbol table, by
a small pool of threads. The result is an index of what is defined where, of
which the largest parts are printed::

    python examples/index_stdlib.py
    python examples/index_stdlib.py --find namedtuple

The spans cost next to nothing until a session records them::

    spanprof run --all --label package --pprof profiles examples/index_stdlib.py
"""

from __future__ import annotations

import argparse
import ast
import io
import os
import symtable
import sys
import sysconfig
import tokenize
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import CodeType

import spanprof

TOP_LEVEL = "(top level)"
NOT_OURS = frozenset({"__pycache__", "site-packages", "dist-packages"})
TESTS = frozenset({"test", "tests", "idle_test"})

# What a file raises that is not valid Python in a valid encoding. The standard
# library has some on purpose, as test data.
BROKEN = (SyntaxError, ValueError, RecursionError, tokenize.TokenError)


@dataclass(frozen=True)
class Source:
    """A module's place in the library."""

    name: str
    package: str
    path: Path


@dataclass(frozen=True)
class Module:
    """What the index knows about one module."""

    source: Source
    lines: int
    comments: int
    bytecode: int
    closures: int
    definitions: tuple[tuple[str, int], ...]
    """Qualified name and line of every class and function."""


@dataclass(frozen=True)
class Failure:
    """A file that could not be indexed."""

    source: Source
    reason: str


@spanprof.span("walk")
def find_sources(library: Path, with_tests: bool) -> list[Source]:
    """List the library's modules, in a stable order."""
    skipped = NOT_OURS if with_tests else NOT_OURS | TESTS
    sources = []
    for folder, subfolders, files in os.walk(library):
        subfolders[:] = sorted(set(subfolders) - skipped)
        for file in sorted(files):
            if file.endswith(".py"):
                path = Path(folder, file)
                parts = path.relative_to(library).with_suffix("").parts
                package = parts[0] if len(parts) > 1 else TOP_LEVEL
                name = ".".join(parts).removesuffix(".__init__")
                sources.append(Source(name, package, path))
    return sources


@spanprof.span("read")
def read(path: Path) -> str:
    """Return a file's text, decoded as the interpreter would decode it."""
    content = path.read_bytes()
    encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
    return content.decode(encoding)


@spanprof.span("tokenize")
def count_comments(text: str) -> int:
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return sum(token.type == tokenize.COMMENT for token in tokens)


def definitions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, int]]:
    """Yield the qualified name and line of every class and function."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = prefix + child.name
            yield name, child.lineno
            yield from definitions(child, name + ".")
        else:
            yield from definitions(child, prefix)


def bytecode_size(code: CodeType) -> int:
    nested = (const for const in code.co_consts if isinstance(const, CodeType))
    return len(code.co_code) + sum(map(bytecode_size, nested))


def closures(table: symtable.SymbolTable) -> int:
    """Count the functions that use a variable of an enclosing function."""
    own = isinstance(table, symtable.Function) and bool(table.get_frees())
    return own + sum(map(closures, table.get_children()))


def index_module(parent: spanprof.Span, source: Source) -> Module | Failure:
    # A thread of the pool has no span open, so the parent is passed in.
    with parent.span("module", package=source.package):
        try:
            text = read(source.path)
            comments = count_comments(text)
            with spanprof.span("parse"):
                tree = ast.parse(text)
            with spanprof.span("compile"):
                code = compile(tree, source.path, "exec", dont_inherit=True)
            with spanprof.span("symbols"):
                table = symtable.symtable(text, str(source.path), "exec")
            with spanprof.span("collect"):
                return Module(
                    source=source,
                    lines=text.count("\n"),
                    comments=comments,
                    bytecode=bytecode_size(code),
                    closures=closures(table),
                    definitions=tuple(definitions(tree)),
                )
        except BROKEN as error:
            return Failure(source, f"{type(error).__name__}: {error}")


@spanprof.span("summary")
def print_summary(modules: list[Module], failures: list[Failure]) -> None:
    by_package: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for module in modules:
        by_package[module.source.package].update(
            files=1, lines=module.lines, definitions=len(module.definitions)
        )
    total = sum(by_package.values(), Counter())

    print(f"Python {sys.version.split()[0]}: {total['files']:,} modules, ", end="")
    print(f"{total['lines']:,} lines, {total['definitions']:,} definitions, ", end="")
    print(f"{sum(module.closures for module in modules):,} closures, ", end="")
    print(f"{sum(module.comments for module in modules):,} comments, ", end="")
    print(f"{sum(module.bytecode for module in modules):,} bytes of bytecode")

    print(f"\n{'package':<24}{'files':>8}{'lines':>10}{'definitions':>13}")
    largest = sorted(by_package.items(), key=lambda item: -item[1]["lines"])
    for package, counts in largest[:8]:
        print(f"{package:<24}{counts['files']:>8,}", end="")
        print(f"{counts['lines']:>10,}{counts['definitions']:>13,}")

    print(f"\n{'largest modules':<32}{'lines':>10}{'definitions':>13}")
    for module in sorted(modules, key=lambda module: -module.lines)[:8]:
        print(f"{module.source.name:<32}{module.lines:>10,}", end="")
        print(f"{len(module.definitions):>13,}")

    if failures:
        print(f"\n{len(failures)} files are not valid Python, such as:")
        for failure in failures[:3]:
            print(f"  {failure.source.name}: {failure.reason[:60]!r}")


def print_places(modules: Iterable[Module], name: str) -> None:
    """Print every place where ``name`` is defined."""
    found = False
    for module in modules:
        for qualified, line in module.definitions:
            if qualified == name or qualified.endswith("." + name):
                print(f"{module.source.path}:{line}: {qualified}")
                found = True
    if not found:
        print(f"{name} is not defined in the standard library")


def main() -> None:
    parser = argparse.ArgumentParser(description="Index the standard library.")
    parser.add_argument("--find", metavar="NAME", help="print where NAME is defined")
    parser.add_argument("--tests", action="store_true", help="index its tests as well")
    parser.add_argument("--threads", type=int, default=2, metavar="N")
    options = parser.parse_args()

    # Some modules hold invalid escapes and the like on purpose.
    warnings.simplefilter("ignore")
    library = Path(sysconfig.get_path("stdlib"))

    with spanprof.span("index") as index:
        sources = find_sources(library, options.tests)
        with ThreadPoolExecutor(options.threads) as pool:
            results = list(pool.map(partial(index_module, index), sources))

    modules = [result for result in results if isinstance(result, Module)]
    failures = [result for result in results if isinstance(result, Failure)]
    if options.find:
        print_places(modules, options.find)
    else:
        print_summary(modules, failures)


if __name__ == "__main__":
    main()
