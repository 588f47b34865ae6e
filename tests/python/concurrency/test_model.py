"""The model itself, against what the rules say of a few programs, by hand."""

import pytest

from .model import Context, Model, Path


@pytest.fixture
def model() -> Model:
    started = Model()
    started.start()
    return started


def times(model: Model) -> dict[Path, tuple[int, int]]:
    return {path: (values.busy, values.idle) for path, values in model.nodes.items()}


def test_rule_4_1_the_innermost_running_span_is_the_parent(model: Model) -> None:
    frame = model.begin("function")
    model.enter(frame, "a")
    model.enter(frame, "b")
    model.advance(1, 0)
    model.exit(frame)
    model.advance(20, 0)
    model.exit(frame)
    model.advance(300, 0)
    assert times(model) == {("a",): (20, 0), ("a", "b"): (1, 0)}


def test_rule_4_2_a_chain_is_suspended_and_resumed_as_one(model: Model) -> None:
    outer = model.begin_task("outer", Context(), None)
    model.enter(outer, "a")
    inner = model.begin("inner")
    model.enter(inner, "b")
    model.suspend(inner)
    model.advance(1, 0)
    assert model.current() is None
    model.resume(inner)
    model.advance(20, 0)
    model.exit(inner)
    model.end(inner)
    model.exit(outer)
    model.end(outer)
    assert times(model) == {("a",): (0, 1), ("a", "b"): (20, 1)}


def test_rule_4_2_a_chain_is_closed_from_the_inside_out(model: Model) -> None:
    outer = model.begin("outer", is_root=True)
    model.enter(outer, "a")
    inner = model.begin("inner")
    model.enter(inner, "b")
    model.suspend(inner)
    model.resume(inner, GeneratorExit())
    model.advance(1, 0)
    model.exit(inner)
    model.end(inner)
    model.resume_if_suspended(outer)
    model.advance(20, 0)
    assert times(model) == {("a",): (20, 1), ("a", "b"): (1, 0)}


def test_rule_4_2_what_is_lent_is_suspended_with_the_block(model: Model) -> None:
    block = model.begin("block", is_root=True)
    manager = model.begin("manager", is_root=True)
    model.enter(manager, "a")
    model.lend(manager)
    assert model.current() == "a"
    model.suspend(block)
    assert model.current() is None
    model.resume(block)
    model.take_back(manager)
    model.exit(manager)
    model.end(manager)
    assert model.current() is None


def test_rule_4_3_a_copy_remembers_its_span(model: Model) -> None:
    frame = model.begin("function")
    model.enter(frame, "a")
    copied = model.copy_context()
    model.exit(frame)
    model.enter(frame, "b")
    model.run_context(copied)
    model.enter(frame, "c")
    model.exit(frame)
    model.leave_context(copied)
    empty = Context()
    model.run_context(empty)
    model.enter(frame, "d")
    assert set(model.nodes) == {("a",), ("b",), ("a", "c"), ("b", "d")}


def test_rule_3_6_nothing_of_an_older_session(model: Model) -> None:
    frame = model.begin("function", is_root=True)
    model.enter(frame, "a")
    copied = model.copy_context()
    model.suspend(frame)
    model.stop()
    model.start()
    model.resume(frame)
    model.advance(1, 0)
    model.run_context(copied)
    model.enter(frame, "b")
    model.exit(frame)
    model.leave_context(copied)
    model.exit(frame)
    assert times(model) == {("b",): (0, 0)}


def test_rule_3_2_an_opened_span_is_idle_when_it_is_not_entered(model: Model) -> None:
    frame = model.begin("function")
    span = model.open("a")
    model.advance(1, 0)
    model.enter_opened(frame, span)
    model.advance(20, 0)
    model.exit(frame)
    model.advance(300, 0)
    model.close(span)
    model.advance(4000, 0)
    assert times(model) == {("a",): (20, 301)}
