"""The pytest plugin, in runs of pytest of its own: sessions are one to a process."""

import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

import spanprof
from spanprof import pytest_plugin

pytest_plugins = "pytester"

Run = Callable[..., pytest.RunResult]

HEAD = """
    import gc, threading, unittest
    import pytest
    import spanprof as sp

    limit = pytest.mark.spanprof
    kept = []
"""


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run test files that begin with HEAD, with our entry point and without others."""
    project = tomllib.loads(
        (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    )["project"]
    installed = pytester.mkdir("installed")
    info = installed / "spanprof-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: spanprof\nVersion: 0")
    entries = "".join(
        f"{k} = {v}\n" for k, v in project["entry-points"]["pytest11"].items()
    )
    (info / "entry_points.txt").write_text(f"[pytest11]\n{entries}")
    package = Path(spanprof.__file__).parent.parent
    monkeypatch.setenv("PYTHONPATH", f"{package}:{installed}")
    changed = ("COLUMNS", "PYTEST_ADDOPTS", "PYTEST_DISABLE_PLUGIN_AUTOLOAD")
    for variable in (*changed, "CI", "BUILD_NUMBER"):  # for those, it says more
        monkeypatch.delenv(variable, raising=False)

    def run(source: str, *options: str) -> pytest.RunResult:
        pytester.makepyfile(HEAD + source)
        return pytester.runpytest_subprocess(
            *("-p", "no:hypothesispytest", "-p", "no:asyncio"),
            *("-p", "no:cacheprovider"),
            *("--strict-markers", "-W", "error", *options),
            timeout=60,
        )

    return run


# --- limits ---------------------------------------------------------------------------


def test_every_limit_is_of_its_own_value(run: Run) -> None:
    result = run("""
    def limits(**fields):
        most = dict(max_allocated="1 MB", max_retained="1 MB", max_peak="1 MB")
        return limit(**{**most, "max_cpu": "30 s", **fields})

    @limits()
    def test_under_all():
        kept.append(bytes(900_000))

    @limits()
    def test_allocated_over():
        for _ in range(3):
            bytes(400_000)

    @limits(max_allocated="1.3 MB")
    def test_allocated_under():
        for _ in range(3):
            bytes(400_000)

    @limits(max_allocated="9 MB")
    def test_peak_over():
        held = [bytes(400_000), bytes(400_000), bytes(400_000)]

    @limits(max_allocated="9 MB", max_peak="1.3 MB")
    def test_peak_under():
        held = [bytes(400_000), bytes(400_000), bytes(400_000)]

    @limits(max_allocated="9 MB", max_peak="1.3 MB")
    def test_peak_under_though_spans_had_theirs_at_other_times():
        for name in "abc":
            with sp.span(name):
                bytes(1_000_000)

    @limits(max_allocated="9 MB", max_peak="9 MB")
    def test_retained_over():
        held = bytes(400_000)
        kept.extend([bytes(400_000), bytes(400_000), bytes(400_000)])

    @limits(max_allocated="9 MB", max_peak="9 MB", max_retained="1.3 MB")
    def test_retained_under():
        held = bytes(400_000)
        kept.extend([bytes(400_000), bytes(400_000), bytes(400_000)])

    def burn():
        import time
        end = time.thread_time() + 0.03
        while time.thread_time() < end:
            pass

    @limits(max_cpu="20 ms")
    def test_cpu_over():
        burn()

    @limits(max_cpu="20 ms")
    def test_cpu_under():
        import time
        time.sleep(0.03)
    """)
    result.assert_outcomes(passed=6, failed=4)
    text = result.stdout.str()
    for line in (
        "test_allocated_over allocated 1.20 MB, limit 1 MB (200 kB over)",
        "test_peak_over peaked at 1.20 MB, limit 1 MB (200 kB over)",
        "test_retained_over retained 1.20 MB, limit 1 MB (200 kB over)",
    ):
        assert line in text.splitlines()
    result.stdout.re_match_lines(
        [r"test_cpu_over took \S+ m?s of CPU time, limit 20 ms \(.* over\)"]
    )
    for word, times in (("allocated", 1), ("peaked at", 1), ("retained", 1)):
        assert (
            sum(f" {word} " in line and " over)" in line for line in text.splitlines())
            == times
        )


def test_a_limit_is_exact_and_may_be_reached(run: Run) -> None:
    result = run("""
    import sys
    SIZE = sys.getsizeof(bytes(100_000))
    held = None

    def work():
        global held
        held = bytes(100_000)

    work()

    @pytest.fixture(params=[1, 2])
    def what_fixtures_allocate_does_not_count(request):
        kept.append(bytes(100_000))
        yield
        kept.append(bytes(100_000))

    @pytest.mark.parametrize("letter", "ab")
    @limit(max_allocated=SIZE, max_retained=SIZE, max_peak=SIZE)
    def test_reached(letter, what_fixtures_allocate_does_not_count):
        work()

    @limit(max_allocated=SIZE - 1, max_retained=SIZE - 1, max_peak=SIZE - 1)
    def test_exceeded():
        work()

    class TestMethods:
        @limit(max_allocated=SIZE, max_retained=SIZE, max_peak=SIZE)
        def test_reached(self):
            work()

        @limit(max_allocated=SIZE - 1)
        def test_exceeded(self):
            work()

    @limit(max_allocated=0, max_retained=0, max_peak=0)
    def test_nothing():
        pass
    """)
    result.assert_outcomes(passed=6, failed=2)
    result.stdout.fnmatch_lines(
        [
            "test_exceeded allocated 100 kB, limit 100,0?? B (1 B over)",
            "test_exceeded retained 100 kB, limit 100,0?? B (1 B over)",
            "test_exceeded peaked at 100 kB, limit 100,0?? B (1 B over)",
            "",
            "*from*UTC",
        ]
    )


def test_a_failure_shows_the_spans_by_what_was_exceeded(run: Run) -> None:
    result = run("""
    @limit(max_retained="1 MiB", max_allocated="100 MB")
    def test_spans():
        with sp.span("churns"):
            for _ in range(10):
                bytes(1_000_000)
        with sp.span("keeps"):
            kept.append(bytes(3 << 20))

    @limit(max_allocated=1_000_000)
    def test_many():
        for number in range(100):
            with sp.span(f"span {number}"):
                bytes(100_000)
    """)
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        [
            "test_spans retained 3.00 MiB, limit 1 MiB (2.00 MiB over)",
            "span *heap total*where*",
            "test_spans * test_a_failure_shows_the_spans_by_what_was_exceeded:*",
            "  keeps *3.00 MiB*",
            "(1 more) *",
            "all spans*",
        ]
    )
    result.stdout.fnmatch_lines(["test_many allocated *", "(91 more*"])


def test_what_is_kept_is_looked_at_after_a_collection(run: Run) -> None:
    result = run("""
    @limit(max_retained="100 kB")
    def test_garbage():
        gc.disable()
        cycle = [bytes(1_000_000)]
        cycle.append(cycle)

    class Finalized:
        def __init__(self):
            self.cycle = self

        def __del__(self):
            kept.append(bytes(1_000_000))

    @limit(max_retained="100 kB")
    def test_what_the_collection_runs_does_not_count():
        gc.disable()
        Finalized()

    class TestAsync(unittest.IsolatedAsyncioTestCase):
        @limit(max_retained="100 kB")
        async def test_what_the_collection_runs_does_not_count(self):
            gc.disable()
            Finalized()

    @pytest.fixture
    def cache():
        cache = []
        yield cache
        cache.clear()

    @limit(max_retained="100 kB")
    def test_what_the_teardown_frees_counts(cache):
        cache.append(bytes(1_000_000))
    """)
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(
        ["test_what_the_teardown_frees_counts retained 1.00 MB*"]
    )


def test_spans_of_threads_count_and_what_is_outside_of_them_does_not(run: Run) -> None:
    result = run("""
    def spanned():
        with sp.span("thread"):
            kept.append(bytes(1_000_000))

    def bare():
        kept.append(bytes(1_000_000))

    @pytest.mark.parametrize("work", [spanned, bare])
    @limit(max_retained="500 kB", max_peak="500 kB", max_allocated="500 kB")
    def test_thread(work):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    """)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        [
            "test_thread[[]spanned[]] allocated 1.0*",
            "test_thread[[]spanned[]] retained 1.0*",
            "test_thread[[]spanned[]] peaked at 1.0*",
        ]
    )


def test_a_test_that_does_not_pass_keeps_its_own_outcome(run: Run) -> None:
    result = run("""
    small = limit(max_retained=1)

    @small
    def test_fails():
        kept.append(bytes(1_000))
        assert len(kept) == 0

    @small
    def test_skips():
        kept.append(bytes(1_000))
        pytest.skip("for a reason")

    @small
    @pytest.mark.xfail(reason="known", strict=True)
    def test_is_known_to_leak():
        kept.append(bytes(1_000))

    @small
    @pytest.mark.skip
    def test_is_skipped():
        pass

    @limit(max_retained="1 MB")
    def test_afterwards():
        sp.current_span().span("x")
    """)
    result.assert_outcomes(passed=1, failed=1, skipped=2, xfailed=1)
    result.stdout.no_fnmatch_line("*test_fails retained*")
    result.stdout.fnmatch_lines(["E*assert 1 == 0"])


# --- kinds of tests -------------------------------------------------------------------


def test_child_processes_are_left_alone(run: Run) -> None:
    result = run("""
    import os

    @limit(max_allocated="1 MB")
    def test_fork():
        assert sp.is_running()
        child = os.fork()
        if child == 0:
            os._exit(sp.is_running())
        assert os.waitpid(child, 0)[1] == 0
    """)
    result.assert_outcomes(passed=1)


def test_methods_of_test_cases_are_limited_without_set_up(run: Run) -> None:
    result = run("""
    class TestSync(unittest.TestCase):
        def setUp(self):
            kept.append(bytes(1_000_000))

        tearDown = setUp

        @limit(max_allocated="500 kB")
        def test_under(self):
            bytes(100_000)

        @limit(max_allocated="500 kB")
        def test_over(self):
            bytes(600_000)

        @limit(max_allocated="500 kB")
        def test_fails(self):
            bytes(600_000)
            self.assertEqual(1, 2)

        @limit(max_allocated="500 kB")
        @unittest.expectedFailure
        def test_known(self):
            bytes(600_000)

    class TestAsync(unittest.IsolatedAsyncioTestCase):
        async def asyncSetUp(self):
            kept.append(bytes(1_000_000))

        asyncTearDown = asyncSetUp

        @limit(max_allocated="500 kB")
        async def test_under(self):
            bytes(100_000)

        @limit(max_allocated="500 kB")
        async def test_over(self):
            bytes(600_000)

        async def test_without(self):
            assert not sp.is_running()
            assert "test_over" not in vars(self)
    """)
    result.assert_outcomes(passed=3, failed=3, xfailed=1)
    text = result.stdout.str()
    assert text.count("\ntest_over allocated 60") == 2
    assert "test_fails allocated" not in text
    assert "AssertionError: 1 != 2" in text


def test_other_plugins_see_the_test_itself(run: Run, pytester: pytest.Pytester) -> None:
    pytester.makeconftest("""
    import pytest

    def check(item):
        assert not hasattr(item.obj, "__wrapped__")
        assert item.name not in vars(item.instance)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(item):
        check(item)
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(item):
        check(item)
        return (yield)
    """)
    result = run("""
    class TestPlain:
        @limit(max_allocated="500 kB")
        def test(self):
            pass

    class TestAsync(unittest.IsolatedAsyncioTestCase):
        @limit(max_allocated="500 kB")
        async def test(self):
            pass
    """)
    result.assert_outcomes(passed=2)


def test_async_functions_are_limited_whatever_runs_them(
    run: Run, pytester: pytest.Pytester
) -> None:
    # As anyio's plugin does it, and as pytest-asyncio's.
    pytester.makeconftest("""
    import asyncio
    import functools
    import inspect
    import pytest

    asyncio.run(asyncio.sleep(0))

    @pytest.hookimpl(tryfirst=True)
    def pytest_pyfunc_call(pyfuncitem):
        if inspect.iscoroutinefunction(pyfuncitem.obj):
            asyncio.run(pyfuncitem.obj(**pyfuncitem.funcargs))
            return True

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_call(item):
        function = item.obj
        if "replaced" in item.name:
            @functools.wraps(function)
            def run(**arguments):
                asyncio.run(function(**arguments))
            item.obj = run
    """)
    result = run("""
    import asyncio

    async def child(size):
        with sp.span("child"):
            await asyncio.sleep(0)
            bytes(size)

    @limit(max_allocated="1 MB")
    async def test_under():
        await asyncio.gather(child(100_000), child(100_000))

    @limit(max_allocated="1 MB")
    async def test_over():
        await asyncio.gather(child(700_000), child(700_000))

    @limit(max_allocated="1 MB")
    async def test_over_while_it_waits():
        asyncio.get_running_loop().call_soon(bytes, 1_500_000)
        await asyncio.sleep(0.001)

    @limit(max_allocated="1 MB")
    async def test_over_replaced():
        await asyncio.gather(child(700_000), child(700_000))

    @limit(max_allocated="1 MB")
    async def test_fails():
        bytes(1_500_000)
        await asyncio.sleep(0)
        assert 1 == 2

    async def test_without():
        assert not sp.is_running()
        assert sp.current_span() is None
    """)
    result.assert_outcomes(passed=2, failed=4)
    result.stdout.fnmatch_lines(
        [
            "test_over allocated 1.4? MB, limit 1 MB*",
            "test_over_while_it_waits allocated 1.5? MB, limit 1 MB*",
            "test_over_replaced allocated 1.?? MB, limit 1 MB*",
            "E*assert 1 == 2",
        ]
    )


def test_the_nearest_marker_sets_a_limit(run: Run) -> None:
    result = run("""
    pytestmark = limit(max_allocated="1 MB")

    def test_module():
        bytes(2_000_000)

    @limit(max_allocated="3 MB")
    def test_function():
        bytes(2_000_000)

    @limit(max_retained="1 MB")
    def test_both():
        kept.append(bytes(2_000_000))

    @limit(max_allocated="3 MB")
    class TestClass:
        def test_class(self):
            bytes(2_000_000)

        @limit(max_allocated=None)
        def test_none(self):
            assert not sp.is_running()
    """)
    result.assert_outcomes(passed=3, failed=2)
    result.stdout.fnmatch_lines(
        ["test_module allocated *", "test_both allocated *", "test_both retained *"]
    )


# --- mistakes -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "most"),
    [
        (0, 0),
        (1234, 1234),
        ("7 B", 7),
        ("1kB", 1000),
        ("1 KB", 1000),
        (" 4.35 kB ", 4350),
        ("10 MB", 10_000_000),
        ("2GB", 2_000_000_000),
        ("1 KiB", 1024),
        ("1.5 MiB", 1_572_864),
        ("1 GiB", 1 << 30),
        ("0.0005 kB", 0),
    ],
)
def test_sizes(text: object, most: int) -> None:
    assert pytest_plugin._parse("max_peak", text).most == most


@pytest.mark.parametrize(
    ("text", "most"),
    [
        (2, 2_000_000_000),
        (0.25, 250_000_000),
        ("15 ns", 15),
        ("15us", 15_000),
        ("15 \N{MICRO SIGN}s", 15_000),
        ("15 \N{GREEK SMALL LETTER MU}s", 15_000),
        ("200 ms", 200_000_000),
        ("0.2 s", 200_000_000),
        ("2 min", 120_000_000_000),
    ],
)
def test_times(text: object, most: int) -> None:
    assert pytest_plugin._parse("max_cpu", text).most == most


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[
            ("max_peak", bad)
            for bad in ("", "10", "MB", "10 megs", "10 mb", "-1 MB", "1,5 MB", "1 ms")
        ],
        *[
            ("max_retained", bad)
            for bad in (
                -1,
                1.5,
                True,
                b"1 MB",
                "\N{ARABIC-INDIC DIGIT ONE} MB",
                "1 MB 2",
            )
        ],
        *[("max_cpu", bad) for bad in ("1", "1 MB", "1 S", -0.1, False, [1])],
        *[("max_cpu", float(bad)) for bad in ("nan", "inf", "1e300")],
    ],
)
def test_no_quantities(name: str, value: object) -> None:
    with pytest.raises(pytest.fail.Exception) as caught:
        pytest_plugin._parse(name, value)
    form = (
        "a number of seconds or text with one of the units ns, us, µs, μs, ms, s or "
        'min, such as "200 ms"'
        if name == "max_cpu"
        else "an int of bytes or text with one of the units B, kB, KB, MB, GB, KiB, "
        'MiB or GiB, such as "10 MB"'
    )
    assert str(caught.value) == (
        f"@pytest.mark.spanprof: {name} must be {form}, not {value!r}"
    )


def test_a_bad_marker_fails_before_the_fixtures(run: Run) -> None:
    result = run("""
    @pytest.fixture(autouse=True)
    def fixture():
        pytest.exit("a fixture ran")

    @limit
    def test_bare():
        pass

    @limit("10 MB")
    def test_positional():
        pass

    @limit("10 MB", max_peak="10 MB")
    def test_both():
        pass

    @limit(max_calls=3)
    def test_unknown():
        pass

    @limit(max_peak="10 megs")
    def test_unit():
        pass

    @limit("10 MB")
    @pytest.mark.skip
    def test_skipped():
        pass
    """)
    result.assert_outcomes(errors=5, skipped=1)
    every = "max_allocated, max_retained, max_peak or max_cpu"
    result.stdout.fnmatch_lines(
        [
            "*ERROR at setup of test_bare*",
            f"@pytest.mark.spanprof takes keywords: {every}",
            f"@pytest.mark.spanprof takes keywords, not '10 MB': {every}",
            f"@pytest.mark.spanprof takes {every}, and not max_calls",
            "@pytest.mark.spanprof: max_peak must be *, not '10 megs'",
        ]
    )
    result.stdout.no_fnmatch_line("*Traceback*")


def test_another_session_is_told_of(run: Run) -> None:
    result = run("""
    small = limit(max_retained="1 MB")

    @pytest.fixture
    def session():
        with sp.start() as session:
            yield session

    @small
    def test_fixture_started_one(session):
        pytest.exit("it ran")

    @small
    def test_starts_one():
        sp.start()

    @small
    def test_tracks_more():
        with sp.profile(track_wall=True):
            pass

    @small
    def test_tracks_the_same():
        with sp.profile(track_heap=True) as p:
            with sp.span("inner"):
                kept.append(bytes(1_000))
        assert p.result.totals["inuse_space"] >= 1_000

    @small
    def test_stops_ours():
        sp.stop()

    @small
    def test_has_a_session_of_another_kind():
        raise RuntimeError("the session is over")

    @small
    def test_afterwards():
        pass
    """)
    result.assert_outcomes(passed=2, failed=5)
    note = "E*@pytest.mark.spanprof runs this in a session of its own, which tracks "
    result.stdout.fnmatch_lines(
        [
            "test_fixture_started_one: @pytest.mark.spanprof needs a session of its *",
            "E*RuntimeError: a session is already running",
            note + "calls, alloc, heap.",
            "E*RuntimeError: the running session does not track wall",
            note + "calls, alloc, heap.",
            "test_stops_ours stopped the session that @pytest.mark.spanprof measures*",
            "E*RuntimeError: the session is over",
        ]
    )
    assert result.stdout.str().count("runs this in a session of its own") == 2


# --- the fixture ----------------------------------------------------------------------


def test_the_fixture_measures_blocks(run: Run) -> None:
    result = run("""
    import time

    def test_values(spanprof):
        with spanprof.measure() as m:
            for _ in range(3):
                bytes(400_000)
            held = [bytes(100_000), bytes(100_000)]
            del held[0]
        assert 1_400_000 < m.allocated < 1_410_000
        assert 5 <= m.allocations < 20
        assert 100_000 < m.retained < 110_000
        assert 400_000 < m.peak < 410_000
        assert m.profile.totals["alloc_space"] == m.allocated
        assert [s.stack[0].name for s in m.profile.samples] == ["measure"]
        assert "retained 9" in repr(m)

        gc.disable()
        began = time.thread_time()
        with spanprof.measure("second") as n:
            while time.thread_time() < began + 0.02:
                pass
            cycle = []
            cycle.append([bytes(1_000_000), cycle])
            del cycle
        gc.enable()
        assert 0.015 < n.cpu < 10
        assert n.retained < 100_000 < 1_000_000 < n.peak
        assert [s.stack[0].name for s in n.profile.samples] == ["second"]
        assert 1_400_000 < m.allocated < 1_410_000

    def test_spans_are_at_hand(spanprof):
        with spanprof.measure() as m, spanprof.span("inner"):
            kept.append(bytes(100_000))
        assert m.profile.top(1, by="alloc_space")[0].callsite.name == "inner"

    def test_errors_pass_and_end_the_session(spanprof):
        with pytest.raises(KeyError, match="x"), spanprof.measure() as m:
            bytes(100_000)
            raise KeyError("x")
        assert m.allocated > 100_000
        assert not sp.is_running()

    def test_mistakes(spanprof):
        m = spanprof.measure()
        with pytest.raises(RuntimeError, match="the block has not ended yet"):
            m.peak
        with m:
            assert "not ended" in repr(m)
            with pytest.raises(RuntimeError, match="the block has not ended yet"):
                m.cpu
            with pytest.raises(RuntimeError, match=r"measure\\(\\) needs a session of"):
                spanprof.measure().__enter__()
        with pytest.raises(RuntimeError, match="can be entered only once"):
            m.__enter__()
        with pytest.raises(RuntimeError, match="the block stopped the session"):
            with spanprof.measure():
                sp.stop()
        with pytest.raises(RuntimeError, match="already running") as caught:
            with spanprof.measure():
                sp.start()
        assert "measure() runs this in a session" in caught.value.__notes__[0]
        assert not sp.is_running()

    @limit(max_peak="1 MB")
    def test_not_with_the_marker(spanprof):
        with pytest.raises(RuntimeError, match="test's spanprof marker"):
            with spanprof.measure():
                pass
    """)
    result.assert_outcomes(passed=5)


# --- presence -------------------------------------------------------------------------


IDLE = """
    import sys

    def test_nothing_happens():
        assert "spanprof.pytest_plugin" in sys.modules
        assert not sp.is_running()
        with sp.span("x") as span:
            assert not span.is_recording
        for late in ("table", "delivery", "cli"):
            assert f"spanprof.{late}" not in sys.modules
"""


def test_without_the_marker_nothing_happens(run: Run) -> None:
    result = run(IDLE, "-rA")
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*Captured*")


def test_the_marker_is_described(run: Run) -> None:
    result = run("", "--markers")
    result.stdout.fnmatch_lines(
        ["@pytest.mark.spanprof(max_allocated, max_retained, max_peak, max_cpu): *"]
    )


def test_the_plugin_can_be_left_out(run: Run) -> None:
    result = run(IDLE, "-p", "no:spanprof")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["'spanprof' not found in `markers` *"])


def test_a_passing_test_can_tell_what_it_used(run: Run) -> None:
    result = run(
        """
    @limit(max_allocated="1 MB", max_cpu=30)
    def test_passes():
        bytes(100_000)
    """,
        "-rP",
    )
    result.assert_outcomes(passed=1)
    result.stdout.re_match_lines(
        [
            "-+ Captured spanprof call -+",
            "test_passes allocated 100 kB, limit 1 MB",
            "test_passes took .* of CPU time, limit 30 s",
        ]
    )


def test_xdist(run: Run) -> None:
    pytest.importorskip("xdist")
    result = run(
        """
    @pytest.mark.parametrize("number", range(4))
    @limit(max_allocated="500 kB")
    def test_over(number):
        bytes(1_000_000)
    """,
        *("-n", "2"),
    )
    result.assert_outcomes(failed=4)
    result.stdout.fnmatch_lines(["test_over[[]3[]] allocated 1.00 MB, limit 500 kB*"])
