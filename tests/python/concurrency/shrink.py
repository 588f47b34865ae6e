"""Programs made smaller for as long as they fail in the same way.

Hypothesis sees a program as the choices that made it, of which a big one has too many;
here it is a tree, of which parts can go.
"""

from collections.abc import Callable, Iterator
from typing import Any

from .programs import Body, Program, Statement

Fails = Callable[[Program], str | None]
"""How it fails, or None."""


def shrunk(program: Program, fails: Fails, tries: int = 3000) -> Program:
    """The smallest that is found by taking one part away at a time."""
    how = fails(program)
    if how is None:
        return program
    again = True
    while again:
        again = False
        for smaller in _smaller_programs(program):
            tries -= 1
            if tries < 0:
                return program
            if fails(smaller) == how:
                program, again = smaller, True
                break
    return program


def _smaller_programs(program: Program) -> Iterator[Program]:
    for tasks in _without_parts(program.tasks):
        if tasks:
            yield program._replace(tasks=tasks)
    for turns in _without_parts(program.turns):
        yield program._replace(turns=turns)
    for number, body in enumerate(program.tasks):
        for smaller in _smaller_bodies(body):
            tasks = [*program.tasks]
            tasks[number] = smaller
            yield program._replace(tasks=tasks)
    if program.app:
        yield program._replace(app=False)
    if program.single:
        yield program._replace(single=False)
    for number, (what, which) in enumerate(program.turns):
        for turn in _simpler_turns(what, which):
            turns = [*program.turns]
            turns[number] = turn
            yield program._replace(turns=turns)


def _simpler_turns(what: str, which: int) -> Iterator[tuple[str, int]]:
    least = 1 if what == "time" else 0
    if which > least:
        yield what, least
    if what not in ("step", "time"):
        yield "step", which
        yield "step", 0


def _without_parts(items: list[Any]) -> Iterator[list[Any]]:
    size = len(items)
    while size > 0:
        for start in range(0, len(items), size):
            yield items[:start] + items[start + size :]
        size //= 2


def _smaller_bodies(body: Body) -> Iterator[Body]:
    yield from _without_parts(body)
    for number, statement in enumerate(body):
        before, after = body[:number], body[number + 1 :]
        for inner in _bodies_of(statement):
            yield [*before, *inner, *after]
        for smaller in _smaller_statements(statement):
            yield [*before, smaller, *after]


def _bodies_of(statement: Statement) -> Iterator[Body]:
    for part in statement:
        if isinstance(part, list) and not all(isinstance(x, str) for x in part):
            yield part


def _smaller_statements(statement: Statement) -> Iterator[Statement]:
    for number, part in enumerate(statement):
        if isinstance(part, list):
            parts = (
                _without_parts(part)
                if all(isinstance(x, str) for x in part)
                else _smaller_bodies(part)
            )
        elif isinstance(part, int) and not isinstance(part, bool) and part > 1:
            parts = iter([1])
        else:
            continue
        for smaller in parts:
            yield (*statement[:number], smaller, *statement[number + 1 :])
