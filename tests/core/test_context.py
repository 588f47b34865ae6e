"""Contexts: whose child the next span is."""

import pytest

from .binding import Core, Thread


def under(core: Core, thread: Thread, name: str) -> None:
    """Run a span, named so."""
    thread.exit(thread.begin(name))


def paths(core: Core) -> set[str]:
    return set(core.snapshot().by_name())


@pytest.fixture
def asked(core: Core) -> list[bool]:
    """The answers of a sampler, the next one last; True when there are none."""
    answers: list[bool] = []
    core.sample_by(lambda: answers.pop() if answers else True)
    core.start()
    return answers


def test_rule_4_3_a_copy_has_the_span_it_was_made_in_as_parent(core: Core) -> None:
    core.start()
    one, two = core.thread(), core.thread()
    with one.span("a"):
        copy = core.context(one)
    two.use_context(copy)
    under(core, two, "b")
    under(core, one, "c")
    assert paths(core) == {"a", "a/b", "c"}


def test_rule_4_3_whatever_runs_below_it_on_its_thread(core: Core) -> None:
    core.start()
    thread = core.thread()
    with thread.span("a"):
        task = core.context(thread)
        with thread.span("b"):
            thread.use_context(task)
            with thread.span("c"):
                under(core, thread, "d")
            under(core, thread, "e")
            thread.use_context(None)
            under(core, thread, "f")
    assert paths(core) == {"a", "a/b", "a/c", "a/c/d", "a/e", "a/b/f"}


def test_rule_4_4_a_context_without_a_span_knows_no_parent(core: Core) -> None:
    core.start()
    one, two = core.thread(), core.thread()
    two.use_context(core.context(one))
    with one.span("a"):
        under(core, two, "b")
    assert paths(core) == {"a", "b"}


def test_rule_4_1_where_a_context_knows_of_none_the_innermost_is(core: Core) -> None:
    core.start()
    thread = core.thread()
    empty = core.context(thread)
    with thread.span("a"):
        thread.use_context(empty)
        under(core, thread, "b")
        thread.use_context(None)
    assert paths(core) == {"a", "a/b"}


def test_rule_3_6_a_parent_of_another_session_is_none(core: Core) -> None:
    core.start()
    thread = core.thread()
    with thread.span("a"):
        copy = core.context(thread)
    core.stop()
    core.start()
    thread.use_context(copy)
    under(core, thread, "b")
    assert paths(core) == {"b"}


def test_rule_3_7_a_copy_knows_that_its_span_is_sampled_out(
    core: Core, asked: list[bool]
) -> None:
    one, two = core.thread(), core.thread()
    asked.append(False)
    out = one.begin("a")
    copy = core.context(one)
    one.exit(out)
    two.use_context(copy)
    assert two.begin("b").is_sampled_out
    two.use_context(None)
    assert two.begin("c").is_sampled_out, "its innermost span is"


def test_rule_3_7_a_context_of_roots_asks_the_sampler(
    core: Core, asked: list[bool]
) -> None:
    """It says that its spans have no parent, whatever runs below."""
    thread = core.thread()
    asked.append(False)
    thread.begin("a")
    context = core.context(thread)
    core.lib.spt_context_clear(context.pointer)
    thread.use_context(context)
    assert not core.lib.spt_span_skips(thread.pointer), "not without asking"
    asked.append(False)
    assert thread.begin("b").is_sampled_out
    core.lib.spt_context_clear(context.pointer)
    assert not thread.begin("c").is_sampled_out
    assert paths(core) == {"c"}


def test_rule_4_2_spans_of_two_tasks_that_take_turns(core: Core) -> None:
    """As where suspension cannot be seen: both tasks' spans are on the stack."""
    core.start()
    thread = core.thread()
    one, two = core.context(thread), core.context(thread)
    thread.use_context(one)
    a = thread.begin("a")
    thread.use_context(two)
    core.lib.spt_context_clear(two.pointer)
    b = thread.begin("b")
    thread.use_context(one)
    thread.exit(a)
    c = thread.begin("c")
    thread.use_context(two)
    under(core, thread, "d")
    thread.exit(b)
    thread.use_context(one)
    thread.exit(c)
    assert "a/c" not in paths(core), "a is over, and c not started in it"
    assert "b/d" in paths(core)


def test_rule_4_3_a_parent_that_was_exited_from_below_a_task(core: Core) -> None:
    """The task was started in a span that is over, and is at work itself."""
    core.start()
    thread = core.thread()
    outer = thread.begin("outer")
    task = core.context(thread)
    thread.use_context(task)
    inner = thread.begin("inner")
    thread.use_context(None)
    thread.exit(outer)
    thread.use_context(task)
    thread.exit(inner)
    under(core, thread, "later")
    assert paths(core) == {"outer", "outer/inner", "outer/later"}


def test_rule_3_8_out_of_order_beside_another_context(core: Core) -> None:
    """Between two spans of a context one of another is entered."""
    core.start()
    thread = core.thread()
    a = thread.begin("a")
    task = core.context(thread)
    thread.use_context(task)
    x = thread.begin("x")
    thread.use_context(None)
    b = thread.begin("b")
    thread.exit(a)
    thread.exit(b)
    thread.use_context(task)
    thread.exit(x)
    thread.use_context(None)
    under(core, thread, "c")
    assert paths(core) == {"a", "a/x", "a/b", "c"}


def test_rule_3_8_an_exit_in_another_context_leaves_it_alone(core: Core) -> None:
    core.start()
    thread = core.thread()
    with thread.span("outer"):
        task = core.context(thread)
        a = thread.begin("a")
        thread.use_context(task)
        thread.exit(a)
        under(core, thread, "b")
        thread.use_context(None)
    assert paths(core) == {"outer", "outer/a", "outer/b"}


def test_rule_5_1_the_feed_says_the_contexts_parent(core: Core) -> None:
    core.feed_limit(100)
    try:
        core.start()
        thread = core.thread()
        with thread.span("a") as a:
            copy = core.context(thread)
        with thread.span("a"):
            thread.use_context(copy)
            b = thread.begin("b")
            core.run(thread, 5)
            thread.exit(b)
            thread.use_context(None)
        told = {record.id: record for record in core.take_spans()}
        assert told[b.id].parent == a.id
        assert told[b.id].wall_busy == 5
    finally:
        core.feed_limit(0)
