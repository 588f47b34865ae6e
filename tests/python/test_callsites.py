"""Callsites: where spans are opened, whatever the code is; labels; and leaks."""

# ruff: noqa: SIM117 (how blocks are nested is what is tested)

import builtins
import code
import gc
import linecache
import sys
import tracemalloc
import types
import weakref
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

import spanprof
from spanprof import Callsite, Profile, span

from .helpers import IS_FREE_THREADED, calls, in_threads, run_python, series

HERE = __file__


def sites(profile: Profile) -> set[Callsite]:
    return {sample.stack[0] for sample in profile.samples}


def only_site(profile: Profile) -> Callsite:
    (site,) = sites(profile)
    return site


def line() -> int:
    """The caller's line."""
    return sys._getframe(1).f_lineno


# --- where --------------------------------------------------------------------------


def test_rule_7_1_with_names_module_file_and_line() -> None:
    with spanprof.start() as session:
        with span("a"):
            expected = line() - 1
    assert only_site(session.result) == ("a", __name__, HERE, expected)


def test_rule_7_1_with_over_several_lines() -> None:
    with spanprof.start() as session:
        first = line()
        with (
            span("a"),
            span("b"),
        ):
            pass
    for site in sites(session.result):
        assert first < site.line <= first + 4
        assert site.file == HERE


def test_rule_7_1_two_on_one_line_are_two() -> None:
    with spanprof.start() as session:
        # fmt: off
        with span("a"), span("a"): pass  # noqa: E701
        with span("a"): pass  # noqa: E701
        # fmt: on
    assert calls(session.result) == {("a",): 2, ("a", "a"): 1}
    assert len(session.result.samples) == 3


def test_rule_7_1_decorator_is_where_the_function_is() -> None:
    @span("f")
    def function() -> int:
        return line()

    with spanprof.start() as session:
        inside = function()
    site = only_site(session.result)
    assert site[:3] == ("f", __name__, HERE)
    assert inside - 3 <= site.line < inside


def test_rule_7_1_other_ways_to_enter() -> None:
    async def asynchronous() -> None:
        async with span("async with"):
            pass
        async with AsyncExitStack() as stack:
            stack.enter_context(span("in AsyncExitStack"))

    async def waits() -> None:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(span("awaited in AsyncExitStack"))

    with spanprof.start() as session:
        first = line()
        span("direct").__enter__().__exit__(None, None, None)
        span("opened").open().close()
        with ExitStack() as stack:
            stack.enter_context(span("in ExitStack"))
        with contextmanager(by_generator)():
            pass
        (lambda: span("in lambda").__enter__().__exit__(None, None, None))()
        [span("in comprehension").__enter__().__exit__(None, None, None) for _ in "x"]
        last = line()
        for coroutine in (asynchronous(), waits()):
            with pytest.raises(StopIteration):
                coroutine.send(None)
    found = {site.name: site for site in sites(session.result)}
    assert len(found) == 9
    for site in found.values():
        assert site.target == __name__
        assert site.file == HERE
    for name in ("direct", "opened", "in ExitStack", "in lambda", "in comprehension"):
        assert first < found[name].line < last
    assert found["async with"].line == asynchronous.__code__.co_firstlineno + 1
    assert found["in AsyncExitStack"].line == asynchronous.__code__.co_firstlineno + 4
    assert found["awaited in AsyncExitStack"].line == waits.__code__.co_firstlineno + 2


def by_generator() -> Iterator[None]:
    with span("in a generator"):
        yield


def test_rule_7_1_called_from_c() -> None:
    """The innermost Python frame is what counts."""
    with spanprof.start() as session:
        first = line()
        for s in list(map(lambda s: s.__enter__(), [span("m")])):  # noqa: C417
            s.__exit__(None, None, None)
        things = [span("n") for _ in range(3)]
        assert (
            list(map(types.MethodType(type(things[0]).__enter__, things[0]), [])) == []
        )
        for s in map(spanprof.Span.__enter__, things):
            assert s.is_recording
        for s in reversed(things):
            s.__exit__(None, None, None)
        sorted([span("k")], key=lambda s: s.__enter__().__exit__(None, None, None) or 0)
        last = line()
    found = sites(session.result)
    assert {site.name for site in found} == {"m", "n", "k"}
    for site in found:
        assert first < site.line < last


SOURCE = """
import spanprof
with spanprof.span("top"):
    pass
def function():
    with spanprof.span("inner"):
        return 1
function()
"""


@pytest.mark.parametrize(
    "file",
    [
        "<string>",
        "<frozen importlib._bootstrap>",
        "",
        "/no/such/file.py",
        "ü\ud800\0.py",
    ],
    ids=ascii,
)
def test_rule_7_1_code_from_nowhere(file: str) -> None:
    names: list[dict[str, Any]] = [
        {"__name__": "somewhere"},
        {},
        {"__name__": None},
        {"__name__": 5},
        {"__name__": "lone \ud800"},
    ]
    for names_here in names:
        compiled = compile(SOURCE, "x", "exec")
        constants = tuple(
            each.replace(co_filename=file) if isinstance(each, types.CodeType) else each
            for each in compiled.co_consts
        )
        compiled = compiled.replace(co_filename=file, co_consts=constants)
        with spanprof.start() as session:
            exec(compiled, names_here)
        target = names_here.get("__name__")
        expected = target if isinstance(target, str) else ""
        for site in sites(session.result):
            assert site.file == file
            assert site.target == expected
            assert site.line in (3, 6)
        session.result.to_pprof("calls")
        str(session.result)


def test_rule_7_1_eval() -> None:
    with spanprof.start() as session:
        eval("[s.__enter__(), s.__exit__(None, None, None)]", {"s": span("e")})
    assert only_site(session.result).file == "<string>"
    assert only_site(session.result).line == 1


def test_rule_7_1_interactive_console() -> None:
    console = code.InteractiveConsole({"span": span, "__name__": "console"}, "<here>")
    with spanprof.start() as session:
        for text in ("with span('a'):", "    pass", "", "s = span('b').open()"):
            console.push(text)
    assert sites(session.result) == {
        ("a", "console", "<here>", 1),
        ("b", "console", "<here>", 1),
    }


def test_rule_7_1_repl(tmp_path: Path) -> None:
    session = """
import spanprof
session = spanprof.start(track_all=True)
with spanprof.span("one"):
    x = 1

with spanprof.span("two"):
    x = 2

session.stop()
print(sorted((s.stack[0].name, s.stack[0].target, s.stack[0].line > 0)
             for s in session.result.samples))
"""
    done = run_python("", cwd=tmp_path, options=("-i", "-q"), stdin=session)
    assert "[('one', '__main__', True), ('two', '__main__', True)]" in done.stdout


def test_rule_7_1_frozen_module(tmp_path: Path) -> None:
    """A module without a file, found by an importer of its own."""
    code = """
import importlib.abc, importlib.util, sys
import spanprof

class Frozen(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    def find_spec(self, name, path, target=None):
        if name == "icy":
            return importlib.util.spec_from_loader(name, self, origin="frozen")
    def get_source(self, name):
        return "import spanprof\\nwith spanprof.span('cold'): pass\\n"
    def get_code(self, name):
        return compile(self.get_source(name), f"<frozen {name}>", "exec")

sys.meta_path.insert(0, Frozen())
with spanprof.start() as session:
    import icy
print(*session.result.samples[0].stack[0], sep="|")
"""
    done = run_python(code, cwd=tmp_path)
    assert done.stdout == "cold|icy|<frozen icy>|2\n"


def test_rule_7_1_module_run_from_pyc(tmp_path: Path) -> None:
    import py_compile

    source = tmp_path / "mod.py"
    source.write_text("import spanprof\nwith spanprof.span('p'):\n    pass\n")
    py_compile.compile(str(source), cfile=str(tmp_path / "other.pyc"))
    source.unlink()
    done = run_python(
        "import spanprof, sys\n"
        "with spanprof.start() as session:\n"
        "    import other\n"
        "print(*session.result.samples[0].stack[0], sep='|')",
        cwd=tmp_path,
    )
    assert done.stdout == f"p|other|{source}|2\n"


# --- names and callsites that come and go ---------------------------------------------


def test_rule_7_1_names_never_mix_when_code_dies() -> None:
    """The next code object gets the address of the last, often its name's too."""
    count = 3000
    with spanprof.start() as session:
        for number in range(count):
            exec(
                f"with span('name {number:04}'): pass", {"span": span, "__name__": "m"}
            )
    expected = {(f"name {number:04}",): 1 for number in range(count)}
    assert calls(session.result) == expected


def test_rule_7_1_functions_that_die() -> None:
    def make(name: str, lines: int) -> Callable[[], None]:
        names: dict[str, Any] = {"span": span, "__name__": "made"}
        body = "\n" * lines + f"def f():\n with span({name!r}):\n  pass\n"
        exec(body, names)
        function: Callable[[], None] = names["f"]
        return function

    with spanprof.start() as session:
        for number in range(500):
            function = make(f"n{number % 50}", number % 7)
            function()
            function()
            del function
            if number % 100 == 0:
                gc.collect()
    by_name: dict[str, int] = {}
    for sample in session.result.samples:
        (site,) = sample.stack
        by_name[site.name] = by_name.get(site.name, 0) + sample.values["calls"]
    assert by_name == {f"n{number}": 20 for number in range(50)}
    lines = {(s.stack[0].name, s.stack[0].line) for s in session.result.samples}
    assert lines == {(f"n{n % 50}", n % 7 + 2) for n in range(500)}


def test_rule_7_1_names_that_are_computed() -> None:
    rounds = 5
    with spanprof.start() as session:
        for _ in range(rounds):
            for number in range(300):
                with span(f"n{number}"):
                    pass
            for number in range(300):
                name = "".join(["m", str(number)])
                with span(name):
                    pass
    expected = {(f"n{number}",): rounds for number in range(300)}
    expected |= {(f"m{number}",): rounds for number in range(300)}
    assert calls(session.result) == expected
    assert len(sites(session.result)) == 600


def test_rule_7_1_equal_names_are_one_callsite() -> None:
    def names() -> Iterator[str]:
        for _ in range(50):
            yield "".join(["sa", "me"])
            yield "same"
            yield sys.intern("sa" + "me"[:2])

    with spanprof.start() as session:
        for name in names():
            with span(name):
                pass
    assert len(session.result) == 1
    assert calls(session.result) == {("same",): 150}


def test_rule_7_1_thousands_of_callsites() -> None:
    count = 4000
    source = "".join(f"with span('c{n}'): pass\n" for n in range(count))
    compiled = compile(source, "<many>", "exec")
    with spanprof.start() as session:
        for _ in range(3):
            exec(compiled, {"span": span, "__name__": "many"})
    found = {
        sample.stack[0]: sample.values["calls"] for sample in session.result.samples
    }
    assert found == {(f"c{n}", "many", "<many>", n + 1): 3 for n in range(count)}


def test_rule_7_1_same_code_under_two_module_names() -> None:
    """Globals differ, the code object is one."""
    compiled = compile("with span('s'): pass", "<shared>", "exec")
    with spanprof.start() as session:
        exec(compiled, {"span": span, "__name__": "first"})
    assert only_site(session.result).target == "first"


def test_rule_7_1_callsites_stay_after_their_code_is_gone() -> None:
    with spanprof.start() as session:
        exec("with span('gone'): pass", {"span": span, "__name__": "was"})
        gc.collect()
        linecache.clearcache()
        assert only_site(session.snapshot()) == ("gone", "was", "<string>", 1)
    assert only_site(session.result).name == "gone"


def test_rule_7_1_threads_share_callsites() -> None:
    def work(number: int) -> None:
        for n in range(200):
            exec(f"with span('t{n}'): pass", {"span": span, "__name__": "t"})

    with spanprof.start() as session:
        in_threads(4, work)
    assert calls(session.result) == {(f"t{n}",): 4 for n in range(200)}


def test_rule_7_1_tracing_and_profiling_hooks() -> None:
    """Instrumented code has other instructions; callsites stay what they are."""

    def work() -> None:
        with span("traced"):
            pass

    with spanprof.start() as session:
        work()
        sys.settrace(lambda frame, event, argument: sys.gettrace())
        try:
            work()
        finally:
            sys.settrace(None)
        sys.setprofile(lambda frame, event, argument: None)
        try:
            work()
        finally:
            sys.setprofile(None)
        for _ in range(100):  # the specializing interpreter
            work()
    assert calls(session.result) == {("traced",): 103}
    assert len(session.result) == 1


# --- labels ---------------------------------------------------------------------------


def labelled(profile: Profile) -> dict[tuple[tuple[str, str], ...], int]:
    found: dict[tuple[tuple[str, str], ...], int] = {}
    for sample in profile.samples:
        key = tuple(sorted(sample.labels.items()))
        found[key] = found.get(key, 0) + sample.values["calls"]
    return found


def test_rule_7_1_only_recorded_labels_make_nodes() -> None:
    with spanprof.start(record_labels=["user", "absent"]) as session:
        for number in range(6):
            with span("s", user=f"u{number % 2}", request=number):
                pass
        with span("s", request=1):
            pass
        with span("s"):
            pass
    assert labelled(session.result) == {
        (("user", "u0"),): 3,
        (("user", "u1"),): 3,
        (): 2,
    }


def test_rule_7_1_labels_are_inherited_and_overridden() -> None:
    with spanprof.start(record_labels=["a", "b"]) as session:
        with span("x", a=1), span("y", b=2), span("z", a=3):
            pass
    found = {s.stack[0].name: dict(s.labels) for s in session.result.samples}
    assert found == {
        "x": {"a": "1"},
        "y": {"a": "1", "b": "2"},
        "z": {"a": "3", "b": "2"},
    }


def test_rule_7_1_label_values_of_any_kind() -> None:
    class Raises:
        def __str__(self) -> str:
            raise ValueError("no")

    class WrongType:
        def __str__(self) -> str:
            return 5  # type: ignore[return-value]

    class Text(str):
        __slots__ = ()

        def __str__(self) -> str:
            return "as it says"

    values = [
        (1, "1"),
        (None, "None"),
        (2.5, "2.5"),
        (b"x", "b'x'"),
        ((), "()"),
        ("", ""),
        ("ü\0\ud800", "ü\0\ud800"),
        ("x" * 10_000, "x" * 10_000),
        (Raises(), "<Raises>"),
        (WrongType(), "<WrongType>"),
        (Text("own"), "as it says"),
        (int, "<class 'int'>"),
    ]
    with spanprof.start(record_labels=["v"]) as session:
        for value, _ in values:
            with span("s", v=value):
                pass
            span("d", v=value)(len)("")
            span("o", v=value).open().close()
    expected = {(("v", text),): 3 for _, text in values}
    assert labelled(session.result) == expected
    session.result.to_pprof("calls")


def test_rule_7_1_a_label_that_opens_spans_itself() -> None:
    class Busy:
        def __str__(self) -> str:
            with span("inside"):
                return "busy"

    class Stops:
        def __str__(self) -> str:
            spanprof.stop()
            return "stopped"

    with spanprof.start(record_labels=["v"], track_all=True) as session:
        with span("s", v=Busy()):
            pass
        assert {s.stack[0].name for s in session.snapshot().samples} == {"s", "inside"}
        with span("t", v=Stops()):
            pass
    assert not spanprof.is_running()


def test_rule_7_1_dict_order_does_not_matter() -> None:
    with spanprof.start(record_labels=["a", "b"]) as session:
        for labels in ({"a": 1, "b": 2}, {"b": 2, "a": 1}):
            with span("s", **labels):
                pass
    assert labelled(session.result) == {(("a", "1"), ("b", "2")): 2}
    assert len(session.result) == 1


def test_rule_7_1_too_many_label_values_fold() -> None:
    before = spanprof.stats().labels_folded
    with spanprof.start(record_labels=["v", "w"], max_label_values=3) as session:
        for number in range(10):
            with span("s", v=number, w="same"):
                pass
    found = labelled(session.result)
    assert found.pop((("v", "(other)"), ("w", "same"))) == 7
    assert found == {(("v", str(n)), ("w", "same")): 1 for n in range(3)}
    assert spanprof.stats().labels_folded - before == 7
    # A new session counts afresh.
    with spanprof.start(record_labels=["v"], max_label_values=3) as session:
        for number in (8, 9):
            with span("s", v=number):
                pass
    assert labelled(session.result) == {(("v", "8"),): 1, (("v", "9"),): 1}


def test_rule_7_1_too_many_nodes_fold() -> None:
    before = spanprof.stats().nodes_folded
    with spanprof.start(max_nodes=5) as session:
        with span("root"):
            for number in range(10):
                with span(f"n{number}"), span("below"):
                    pass
    found = calls(session.result)
    assert sum(found.values()) == 21, "nothing is lost"
    assert found["root", "(other)"] > 0
    real = [path for path in found if "(other)" not in path]
    assert len(real) == 5
    assert spanprof.stats().nodes_folded > before
    assert len(found) <= 5 + 6, "one (other) for each parent"


# --- memory ---------------------------------------------------------------------------


def test_rule_3_2_spans_are_freed() -> None:
    class Value:
        pass

    def use() -> list[weakref.ref[Value]]:
        values = [Value() for _ in range(6)]
        with span("a", v=values[0]) as a:
            with a, a.span("c", v=values[1]):
                pass
        b = span("b", v=values[2]).open()
        with b:
            pass
        b.close()
        with ExitStack() as stack:
            stack.enter_context(span("s", v=values[3]))
        span("f", v=values[4])(len)("")
        span("never", v=values[5])
        return [weakref.ref(value) for value in values]

    for with_session in (True, False):
        if with_session:
            spanprof.start(track_all=True, record_labels=["v"])
        references = use()
        gc.collect()
        assert [reference() for reference in references] == [None] * 6
        spanprof.stop()


def test_rule_3_2_reference_counts_come_back() -> None:
    name = "a name of its own"
    kind = spanprof.Span
    with spanprof.start(track_all=True):
        s = span(name)
        counts = sys.getrefcount(s), sys.getrefcount(name)
        for _ in range(100):
            with s, s:
                pass
            s.__enter__().__exit__(None, None, None)
        assert (sys.getrefcount(s), sys.getrefcount(name)) == counts
        before = sys.getrefcount(kind)
        many = [span("x") for _ in range(500)]
        del many
        # Spare objects keep a reference each.
        assert sys.getrefcount(kind) - before <= 100


def test_rule_3_2_cycles_are_collected_and_reused() -> None:
    """Also when the collector begins with the span itself."""
    for _ in range(3):
        spans = []
        for _ in range(100):
            ring: list[Any] = []
            s = span("x", ring=ring)
            ring.append(s)
            spans.append(s)
        child = spans[0].open().span("child", spans=spans)
        spans.append(child)
        del s, ring, child
        gc.collect()  # moves the lists behind the spans
        del spans
        gc.collect()
        fresh = [span("y", a=1) for _ in range(100)]
        gc.collect()
        assert all(dict(each.labels) == {"a": 1} for each in fresh)
        assert all(gc.is_tracked(each) for each in fresh)
        plain = [span("z") for _ in range(100)]
        if not IS_FREE_THREADED:
            assert not any(gc.is_tracked(each) for each in plain)
        del fresh, plain
        gc.collect()


def test_rule_3_2_a_cycle_through_an_entered_span_waits() -> None:
    with spanprof.start():
        ring: list[Any] = []
        s = span("x", ring=ring)
        ring.append(s)
        s.__enter__()
        del s, ring
        gc.collect()
        current = spanprof.current_span()
        assert current is not None
        assert current.labels["ring"] == [current]
        current.__exit__(None, None, None)


def test_rule_3_2_a_long_line_of_ancestors_dies(tmp_path: Path) -> None:
    """Deeper than the C stack."""
    code = """
import threading
import spanprof

def work():
    s = spanprof.span("a").open()
    for _ in range(500_000):
        s = s.span("b").open()
    del s
    s = spanprof.span("a", label=1).open()
    for _ in range(200_000):
        s = s.span("b", label=s).open()

work()
thread = threading.Thread(target=work)
thread.start()
thread.join()
print("done")
"""
    assert run_python(code, cwd=tmp_path).stdout == "done\n"


def growth(work: Callable[[], object]) -> int:
    """Bytes more than before, of Python's memory."""
    work()
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        work()
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return after - before


@pytest.mark.parametrize("with_session", [True, False])
def test_rule_3_2_100_000_spans_leave_nothing(with_session: bool) -> None:
    @span("decorated", n=1)
    def decorated() -> None: ...

    def work() -> None:
        for _ in range(12_500):
            with span("a") as a, a:
                with span("b", n=1):
                    pass
                with a.span("c"):
                    pass
            job = span("job").open()
            with job:
                pass
            decorated()
            span("unused")
            with span("e"):
                pass

    if with_session:
        spanprof.start(track_wall=True, track_cpu=True, record_labels=["n"])
    assert growth(work) < 20_000
    spanprof.stop()


def resident(tmp_path: Path, code: str) -> int:
    """KiB that the second half of a program added."""
    done = run_python(
        "import resource, spanprof\nfrom spanprof import span\n"
        "def rss():\n"
        "    with open('/proc/self/statm') as file:\n"
        "        return int(file.read().split()[1]) * resource.getpagesize() // 1024\n"
        + code
        + "\nwork()\nbefore = rss()\nfor _ in range(4): work()\nprint(rss() - before)",
        cwd=tmp_path,
    )
    return int(done.stdout)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
@pytest.mark.parametrize(
    "body",
    [
        "    for _ in range(30000):\n        with span('a'), span('b', n=1): pass",
        "    for n in range(5000):\n        exec(f\"with span('x{n}'): pass\")",
        "    for n in range(20000):\n        with span(f'x{n % 1000}'): pass",
        "    for n in range(20000):\n        with span('x', n=n): pass",
        "    import threading\n    for n in range(200):\n"
        "        t = threading.Thread(target=lambda: span('t').open().close())\n"
        "        t.start(); t.join()",
        "    for n in range(50):\n        spanprof.stop()\n"
        "        spanprof.start(track_all=True, record_labels=['n'])\n"
        "        with span('a', n=n): pass",
        "    for n in range(3000):\n        with span('a'):\n"
        "            spanprof.snapshot().samples",
    ],
    ids=["spans", "exec", "names", "labels", "threads", "sessions", "snapshots"],
)
def test_rule_3_2_memory_stays_where_it_was(tmp_path: Path, body: str) -> None:
    code = (
        "spanprof.start(track_all=True, record_labels=['n'], max_label_values=100)\n"
        f"def work():\n{body}\n"
    )
    # Without a GIL, CPython keeps names of code for good, and frees memory later.
    assert resident(tmp_path, code) < (20_000 if IS_FREE_THREADED else 3000)


def test_rule_3_2_builtins_are_left_alone() -> None:
    assert not [name for name in vars(builtins) if "span" in name.lower()]
    assert series  # the helpers' module is no callsite
