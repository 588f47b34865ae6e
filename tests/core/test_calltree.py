"""Paths shared by all threads, each thread's cells, and the limit of nodes."""

from .binding import OTHER, Core


def test_paths_are_shared_by_threads_and_cells_are_not(core: Core) -> None:
    core.start()
    threads = [core.thread() for _ in range(3)]
    for thread in threads:
        with thread.span("a"), thread.span("b"):
            core.run(thread, 1)
    assert core.lib.sp_paths_count() == 3
    assert [core.lib.spt_thread_cells(t.pointer) for t in threads] == [3, 3, 3]
    assert core.snapshot().by_name()["a/b"]["calls"] == 3


def test_a_parent_path_comes_before_its_children(core: Core) -> None:
    core.start()
    thread = core.thread()
    for first in "cab":
        with thread.span(first):
            for second in "abc":
                with thread.span(second):
                    pass
    count = core.lib.sp_paths_count()
    assert count == 13
    assert all(core.lib.sp_path_parent(path) < path for path in range(1, count))


def test_labels_make_nodes_of_their_own(core: Core) -> None:
    core.start()
    thread = core.thread()
    for value in "xyx":
        with thread.span("a", user=value):
            core.run(thread, 1)
    calls = {
        stack: values["calls"] for stack, values in core.snapshot().nodes().items()
    }
    assert calls == {
        (("a", (("user", "x"),)),): 2,
        (("a", (("user", "y"),)),): 1,
    }


def test_a_path_from_another_thread_gets_its_cells(core: Core) -> None:
    core.start()
    first, second = core.thread(), core.thread()
    for depth in range(5):
        parent = first.begin(f"d{depth}")
    with second.span("unrelated"):
        pass
    child = second.begin("child", parent=parent)
    core.run(second, 3)
    second.exit(child)
    # The root, "unrelated", five ancestors and the child.
    assert core.lib.spt_thread_cells(second.pointer) == 8
    nodes = core.snapshot().by_name()
    assert nodes["d0/d1/d2/d3/d4/child"]["cpu_user"] == 3
    assert all(nodes[path]["calls"] == 1 for path in nodes)


def test_a_very_deep_stack_from_another_thread(core: Core) -> None:
    core.start()
    first, second = core.thread(), core.thread()
    spans = [first.begin("deep") for _ in range(30_000)]
    child = second.begin("child", parent=spans[-1])
    core.run(second, 3)
    second.exit(child)
    profile = core.snapshot()
    assert len(profile) == 30_001
    assert profile.pointer.nodes[30_000].value[3] == 3
    for span in reversed(spans):
        first.exit(span)


def test_beyond_max_nodes_each_parent_has_one_other(core: Core) -> None:
    core.start(max_nodes=3)
    thread = core.thread()
    before = core.stat("nodes_folded")
    with thread.span("a"), thread.span("b"):
        pass
    with thread.span("c"):
        pass
    for n in range(20):
        for above in (["a"], ["a", "b"], ["c"], []):
            spans = [thread.begin(name) for name in above]
            with thread.span(f"new {n}"):
                core.run(thread, 1)
            for span in reversed(spans):
                thread.exit(span)
    nodes = core.snapshot().by_name()
    others = {path for path in nodes if path.endswith(OTHER)}
    assert others == {f"a/{OTHER}", f"a/b/{OTHER}", f"c/{OTHER}", OTHER}
    assert set(nodes) - others == {"a", "a/b", "c"}
    assert all(nodes[path]["calls"] == 20 for path in others)
    assert all(nodes[path]["wall_busy"] == 20 for path in others)
    assert core.stat("nodes_folded") == before + 80


def test_below_other_all_is_other_and_nothing_grows(core: Core) -> None:
    core.start(max_nodes=1)
    thread = core.thread()
    with thread.span("a"):
        spans = [thread.begin(f"deep {n}") for n in range(50)]
        core.run(thread, 7)
        for span in reversed(spans):
            thread.exit(span)
            core.run(thread, 1)
    nodes = core.snapshot().by_name()
    assert set(nodes) == {"a", f"a/{OTHER}"}
    assert nodes[f"a/{OTHER}"]["calls"] == 50
    assert nodes[f"a/{OTHER}"]["wall_busy"] == 7 + 49
    assert core.lib.sp_paths_count() == 3
    assert core.lib.spt_thread_cells(thread.pointer) == 3


def test_the_limit_loses_no_time(core: Core) -> None:
    totals = []
    for limit in (100_000, 4):
        core.start(max_nodes=limit)
        thread, other = core.thread(), core.thread()
        for n in range(30):
            opened = other.open(f"o{n}")
            with thread.span(f"a{n % 5}"), thread.span(f"b{n}"):
                core.run(thread, n, system=n // 3)
                child = other.begin("c", parent=opened)
                core.run(other, 2)
                other.exit(child)
            other.close(opened)
        totals.append(core.snapshot().totals())
        core.stop()
    assert totals[0] == totals[1]


def test_max_nodes_zero_keeps_one_node(core: Core) -> None:
    core.start(max_nodes=0)
    thread = core.thread()
    for name in "abc":
        with thread.span(name):
            core.run(thread, 1)
    assert core.snapshot().by_name()[OTHER]["wall_busy"] == 3
    assert len(core.snapshot()) == 1


def test_spans_cost_no_memory_once_their_node_is_there(core: Core) -> None:
    core.start()
    thread = core.thread()
    span = core.span()
    for _ in range(10_000):
        thread.begin("a", span=span)
        thread.exit(span)
    assert core.lib.sp_paths_count() == 2
    assert core.lib.spt_thread_cells(thread.pointer) == 2
    assert core.snapshot().by_name()["a"]["calls"] == 10_000


def test_each_session_starts_with_an_empty_tree(core: Core) -> None:
    thread = core.thread()
    for name in "abc":
        core.start()
        with thread.span(name):
            core.run(thread, 1)
        final = core.stop()
        assert final is not None
        assert set(final.by_name()) == {name}


def test_many_nodes_are_all_found_again(core: Core) -> None:
    core.start()
    thread = core.thread()
    for _ in range(2):
        for n in range(300):
            with thread.span(f"a{n}"):
                for k in range(10):
                    with thread.span(f"b{k}"):
                        core.run(thread, 1)
    profile = core.snapshot()
    assert len(profile) == 3300
    assert all(node["calls"] == 2 for node in profile.nodes().values())
    assert profile.totals()["wall_busy"] == 6000
