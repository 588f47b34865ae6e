"""Where time goes: exactly, on a clock that the test moves."""

from .binding import Core, Span, Thread


def busy(core: Core) -> dict[str, int]:
    nodes = core.snapshot().by_name()
    return {path: node["wall_busy"] for path, node in nodes.items()}


def test_rule_5_1_values_are_self_values(core: Core) -> None:
    core.start()
    thread = core.thread()
    with thread.span("a"):
        core.run(thread, 1)
        with thread.span("b"):
            core.run(thread, 10)
            with thread.span("c"):
                core.run(thread, 100)
            core.run(thread, 20)
        core.run(thread, 2)
    assert busy(core) == {"a": 3, "a/b": 30, "a/b/c": 100}


def test_rule_5_1_a_delta_is_relative_to_the_last(core: Core) -> None:
    core.start()
    thread = core.thread()
    with thread.span("a"):
        core.run(thread, 10)
        assert core.delta().by_name()["a"]["wall_busy"] == 10
        core.run(thread, 5)
        assert core.delta().by_name()["a"]["wall_busy"] == 5
        assert core.delta().by_name() == {}
    core.run(thread, 5)
    assert core.delta().by_name() == {}
    assert busy(core) == {"a": 15}


def test_rule_5_1_deltas_follow_one_another_in_time(core: Core) -> None:
    core.start()
    began = core.snapshot().start_unix
    end = began
    for elapsed in (5, 0, 70):
        core.advance(elapsed)
        delta = core.delta()
        assert delta.start_unix == end
        assert delta.duration == elapsed
        end += elapsed
    assert core.snapshot().duration == end - began


def test_rule_5_2_only_the_running_stack_is_subtracted(core: Core) -> None:
    # A child on another thread takes nothing from its parent, nor does its idle time.
    core.start()
    first, second = core.thread(), core.thread()
    parent = first.begin("a")
    child = second.begin("b", parent=parent)
    opened = first.open("c")
    core.run(first, 10)
    second.use(4)
    second.exit(child)
    first.close(opened)
    first.exit(parent)
    nodes = core.snapshot().by_name()
    assert nodes["a"]["wall_busy"] == 10
    assert nodes["a"]["cpu_user"] == 10
    assert nodes["a/b"]["wall_busy"] == 10
    assert nodes["a/b"]["cpu_user"] == 4
    assert nodes["a/c"]["wall_idle"] == 10


def test_rule_5_2_self_busy_adds_up_to_time_with_a_span_entered(core: Core) -> None:
    core.start()
    thread = core.thread()
    entered = 0
    spans: list[Span] = []
    for step in range(200):
        core.run(thread, step)
        if spans:
            entered += step
        if step % 7 < 4:
            spans.append(thread.begin(f"s{step % 3}"))
        elif spans:
            thread.exit(spans.pop(len(spans) // 2))
    totals = core.snapshot().totals()
    assert totals["wall_busy"] == entered
    assert totals["cpu_user"] + totals["cpu_system"] == entered


def test_rule_5_2_time_outside_spans_is_nobodys(core: Core) -> None:
    core.start()
    thread = core.thread()
    core.run(thread, 1000)
    with thread.span("a"):
        core.run(thread, 1)
    core.run(thread, 1000)
    with thread.span("a"):
        core.run(thread, 1)
    totals = core.snapshot().totals()
    assert totals["wall_busy"] == 2
    assert totals["cpu_user"] == 2


def test_rule_5_2_an_explicit_parent_elsewhere_still_pauses_the_running_span(
    core: Core,
) -> None:
    core.start()
    first, second = core.thread(), core.thread()
    parent = second.begin("parent")
    with first.span("a"):
        core.run(first, 1)
        span = first.begin("b", parent=parent)
        core.run(first, 10)
        first.exit(span)
        core.run(first, 2)
    nodes = core.snapshot().by_name()
    assert nodes["a"]["cpu_user"] == 3
    assert nodes["parent/b"]["cpu_user"] == 10
    assert nodes["parent"]["wall_busy"] == 13


def test_rule_5_2_waiting_is_busy_but_no_cpu(core: Core) -> None:
    core.start()
    thread = core.thread()
    with thread.span("a"):
        core.run(thread, 10)
        core.advance(100)
    node = core.snapshot().by_name()["a"]
    assert (node["wall_busy"], node["cpu_user"]) == (110, 10)


def test_rule_5_3_a_running_span_shows_before_it_ends(core: Core) -> None:
    core.start()
    thread = core.thread()
    with thread.span("a"), thread.span("b"):
        for elapsed in (10, 20, 30):
            core.run(thread, 10)
            node = core.snapshot().by_name()["a/b"]
            assert node["wall_busy"] == elapsed
            assert node["cpu_user"] + node["cpu_system"] == elapsed


def test_rule_5_3_readings_change_nothing(core: Core) -> None:
    def program(thread: Thread, read: bool) -> dict[str, dict[str, int]]:
        for _ in range(5):
            with thread.span("a"):
                core.run(thread, 10)
                if read:
                    core.snapshot()
                with thread.span("b"):
                    core.run(thread, 5)
                    if read:
                        core.delta()
                        core.snapshot()
        nodes = core.snapshot().by_name()
        core.stop()
        return nodes

    core.start()
    quiet = program(core.thread(), read=False)
    core.start()
    assert program(core.thread(), read=True) == quiet


def test_rule_5_4_user_and_system_follow_the_kernels_accounting(core: Core) -> None:
    core.start()
    thread = core.thread()
    with thread.span("a"):
        core.run(thread, 100, system=30)
        with thread.span("b"):
            core.run(thread, 50, system=50)
        core.run(thread, 10)
    nodes = core.snapshot().by_name()
    assert (nodes["a"]["cpu_user"], nodes["a"]["cpu_system"]) == (80, 30)
    assert (nodes["a/b"]["cpu_user"], nodes["a/b"]["cpu_system"]) == (0, 50)


def test_rule_5_4_system_time_booked_late_is_shared_out_late(core: Core) -> None:
    # The kernel may book more system time at once than the interval held: what does not
    # fit waits for the next round, and the sum is always the CPU time.
    core.start()
    thread = core.thread()
    with thread.span("a"):
        core.run(thread, 10, system=25)
    with thread.span("b"):
        core.run(thread, 10)
    with thread.span("c"):
        core.run(thread, 10)
    nodes = core.snapshot().by_name()
    split = {name: (n["cpu_user"], n["cpu_system"]) for name, n in nodes.items()}
    assert split == {"a": (0, 10), "b": (0, 10), "c": (5, 5)}


def test_rule_5_4_system_time_outside_spans_is_nobodys(core: Core) -> None:
    core.start()
    thread = core.thread()
    core.run(thread, 100, system=100)
    with thread.span("a"):
        core.run(thread, 10)
    core.run(thread, 100, system=100)
    with thread.span("a"):
        core.run(thread, 10)
    node = core.snapshot().by_name()["a"]
    assert (node["cpu_user"], node["cpu_system"]) == (20, 0)


def test_rule_5_4_a_50_microsecond_burst_is_50_microseconds(core: Core) -> None:
    core.start()
    thread = core.thread()
    for _ in range(3):
        with thread.span("a"):
            core.run(thread, 50_000)
            core.advance(1_000_000)
    assert core.snapshot().by_name()["a"]["cpu_user"] == 150_000


def test_no_value_ever_falls_when_user_time_turns_out_to_be_system(core: Core) -> None:
    core.start()
    thread = core.thread()
    with thread.span("a"):
        core.run(thread, 100, system=60)
        before = core.snapshot().by_name()["a"]
    after = core.snapshot().by_name()["a"]
    assert all(after[metric] >= before[metric] for metric in after)
    assert after["cpu_user"] + after["cpu_system"] == 100


def test_rule_5_5_allocations_go_to_the_innermost_span(core: Core) -> None:
    core.start()
    thread = core.thread()
    thread.allocate(1, 1000)
    with thread.span("a"):
        thread.allocate(2, 20)
        with thread.span("b"):
            thread.allocate(3, 300)
        thread.allocate(1, 5)
    thread.allocate(1, 1000)
    nodes = core.snapshot().by_name()
    found = {
        name: (node["alloc_objects"], node["alloc_space"])
        for name, node in nodes.items()
    }
    assert found == {"a": (3, 25), "a/b": (3, 300)}


def test_metrics_that_are_off_are_not_measured(core: Core) -> None:
    core.start(wall=False, cpu=False, allocations=False)
    thread = core.thread()
    with thread.span("a"):
        core.run(thread, 10)
        thread.allocate(1, 10)
    opened = thread.open("b")
    core.advance(10)
    thread.close(opened)
    profile = core.snapshot()
    assert profile.kinds == {"calls"}
    totals = profile.totals()
    assert totals.pop("calls") == 2
    assert not any(totals.values())


def test_each_metric_alone(core: Core) -> None:
    for kind, metrics in {
        "wall": {"wall_busy", "wall_idle"},
        "cpu": {"cpu_user", "cpu_system"},
        "allocations": {"alloc_objects", "alloc_space"},
    }.items():
        tracked = {name: name == kind for name in ("wall", "cpu", "allocations")}
        core.start(**tracked)
        thread = core.thread()
        opened = thread.open("b")
        core.advance(10)
        with thread.span("a"):
            core.run(thread, 10, system=3)
            thread.allocate(1, 10)
        thread.close(opened)
        totals = core.snapshot().totals()
        assert {name for name, value in totals.items() if value} == metrics | {"calls"}
        core.stop()


def test_the_final_profile_is_the_last_snapshot(core: Core) -> None:
    core.start()
    thread = core.thread()
    thread.open("idle")
    thread.begin("a")
    core.run(thread, 10, system=2)
    snapshot = core.snapshot()
    final = core.stop()
    assert final is not None
    assert final.nodes() == snapshot.nodes()
    assert final.duration == snapshot.duration == 10
