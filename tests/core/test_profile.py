"""The arithmetic of profiles."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from .binding import KINDS, METRICS, Core, Profile, Values

Nodes = dict[tuple[str, ...], Values]

names = st.sampled_from(["a", "b", "c", "d?k=1", "d?k=2"])
stacks = st.lists(names, min_size=1, max_size=4).map(tuple)
amounts = st.integers(0, 1 << 40) | st.integers(0, 3)
values = st.dictionaries(st.sampled_from(METRICS), amounts, max_size=4)
profiles = st.dictionaries(stacks, values, max_size=12)


def added(*signed: tuple[int, Profile]) -> Counter[tuple[object, str]]:
    """Values by stack and metric, without zeros: what the core's sums must be."""
    result: Counter[tuple[object, str]] = Counter()
    for sign, profile in signed:
        for stack, node in profile.stacks():
            for metric, value in node.items():
                result[stack, metric] += sign * value
    return Counter({key: value for key, value in result.items() if value})


@given(profiles, profiles)
def test_sums_hold_every_value(core: Core, a: Nodes, b: Nodes) -> None:
    x, y = core.profile(a), core.profile(b)
    assert added((1, x + y)) == added((1, x), (1, y))
    assert (x + y).nodes() == (y + x).nodes()


@given(profiles, profiles)
def test_differences_hold_every_value(core: Core, a: Nodes, b: Nodes) -> None:
    x, y = core.profile(a), core.profile(b)
    difference = x - y
    assert added((1, difference)) == added((1, x), (-1, y))
    assert (difference + y).nodes() == (x + core.profile({})).nodes()
    assert (x - x).nodes() == {}
    assert len(x - x) == 0


@given(profiles, st.integers(0, 14))
def test_a_split_loses_nothing(core: Core, nodes: Nodes, most: int) -> None:
    profile = core.profile(nodes)
    first, rest = profile.split(most)
    full = len(profile.nodes())
    assert len(first.nodes()) == min(most, full)
    assert (rest is None) == (full <= most)
    whole = first if rest is None else first + rest
    assert whole.nodes() == profile.nodes()
    for part in (first, rest or first):
        assert part.start_unix == profile.start_unix
        assert part.kinds == profile.kinds


@given(profiles)
def test_pruning_drops_only_what_is_empty(core: Core, nodes: Nodes) -> None:
    profile = core.profile(nodes)
    before = profile.nodes()
    assert core.lib.sp_profile_prune(profile.pointer)
    assert profile.nodes() == before
    stacks = [stack for stack, _ in profile.stacks()]
    for stack in stacks:
        assert any(kept[: len(stack)] == stack for kept in before)


@given(profiles)
def test_series_are_sums_of_metrics(core: Core, nodes: Nodes) -> None:
    profile = core.profile(nodes)
    totals = profile.totals()
    parts = {
        "wall": ("wall_busy", "wall_idle"),
        "cpu": ("cpu_user", "cpu_system"),
    }
    for n in range(core.lib.spt_series_count()):
        series = core.lib.spt_series(n)
        name = core.ffi.string(series.name).decode()
        expected = sum(totals[metric] for metric in parts.get(name, (name,)))
        assert core.lib.sp_profile_total(profile.pointer, series) == expected


def test_kinds_are_found_by_name(core: Core) -> None:
    found = [core.lib.sp_kind_find(kind.encode()) for kind in KINDS]
    assert found == list(range(len(KINDS)))
    assert core.lib.sp_kind_find(b"") == core.lib.sp_kind_find(b"walls") == -1


def test_a_split_takes_the_heaviest_first(core: Core) -> None:
    # Weight is a node's largest share of any metric, whatever the metric's unit.
    profile = core.profile(
        {
            ("big",): {"wall_busy": 1_000_000},
            ("small",): {"wall_busy": 10},
            ("caller",): {"calls": 3},
            ("tiny",): {"wall_busy": 1},
        }
    )
    first, rest = profile.split(2)
    assert rest is not None
    assert set(first.by_name()) == {"big", "caller"}
    assert set(rest.by_name()) == {"small", "tiny"}


def test_a_split_keeps_the_stacks_of_what_it_takes(core: Core) -> None:
    profile = core.profile(
        {("a",): {"calls": 1}, ("a", "b"): {"calls": 9}, ("c", "d"): {"calls": 2}}
    )
    first, rest = profile.split(1)
    assert rest is not None
    assert set(first.by_name()) == {"a/b"}
    assert len(first) == 2
    assert set(rest.by_name()) == {"a", "c/d"}


def test_sums_and_differences_span_the_right_times(core: Core) -> None:
    start = 1_700_000_000_000_000_000
    early = core.profile({}, start, 10)
    whole = core.profile({}, start, 30)
    later = core.profile({}, start + 100, 50)
    total = early + later
    assert (total.start_unix, total.duration) == (start, 150)
    rest = whole - early
    assert (rest.start_unix, rest.duration) == (start + 10, 20)
    other = later - early
    assert (other.start_unix, other.duration) == (start + 100, 50)


def test_kinds_are_united(core: Core) -> None:
    a, b = core.profile({}), core.profile({})
    a.pointer.kinds, b.pointer.kinds = 1, 4
    assert (a + b).kinds == (a - b).kinds == {"calls", "cpu"}


def test_large_profiles(core: Core) -> None:
    # Large enough for memory of their own pages, and beyond the first table.
    nodes: Nodes = {
        (f"large {n % 97}", f"large {n}"): {"calls": n + 1, "wall_busy": n}
        for n in range(8000)
    }
    profile = core.profile(nodes)
    double = profile + profile
    assert double.totals() == {m: 2 * v for m, v in profile.totals().items()}
    assert (double - profile).nodes() == profile.nodes()
    first, rest = profile.split(1000)
    assert rest is not None
    assert (first + rest).nodes() == profile.nodes()
