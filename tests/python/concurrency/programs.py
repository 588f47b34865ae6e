"""Random programs as plain data.

A program is what its tasks do, and in which order they take turns. What a task does is
a list of statements, each a tuple with its kind first:

    ("time", n)                  let n ns pass
    ("span", name, body)         with span(name): body
    ("async_span", name, body)   async with span(name): body
    ("step",)                    wait for the next turn
    ("raise",)                   raise Boom
    ("open", slot, name)         opened[slot] = span(name).open()
    ("with_open", slot, body)    with opened[slot]: body; a new one if it is entered
    ("close_open", slot)         opened[slot].close()
    ("catch", body)              try: body; except Boom: pass
    ("finally", body, cleanup)   try: body; finally: cleanup
    ("call", body)               call a function with that body, or await a coroutine
    ("copy", body)               copy_context().run(a function with that body)
    ("set",)                     set a context variable
    ("keep_context", slot)       contexts[slot] = copy_context()
    ("run_context", slot, body)  contexts[slot].run(a function with that body)
    ("for", generator, body, n)  for _ in generator(): body, and a break after n times
    ("async_for", ...)           the same
    ("yield",)                   in a generator
    ("from", generator)          yield from generator()
    ("manager", before, names, body)         with a context manager that is a generator
    ("async_manager", before, names, body)   with these spans around its yield
    ("spawn", body)              start a task
    ("thread", inherits, body)   start a thread; ``inherits``: in a copy of the context
    ("to_thread", body)          wait for a function on another thread
    ("make", slot, kind, body)   slots[slot] = a generator, coroutine, async generator
    ("next", slot)               what moves it on: next(), send(None), await anext()
    ("throw", slot)              throw(Boom)
    ("close", slot)              close(), aclose()
    ("drop", slot)               the last reference to it goes
"""

from functools import cache
from typing import Any, NamedTuple

from hypothesis import strategies as st

Statement = tuple[Any, ...]
Body = list[Statement]
Turn = tuple[str, int]

NAMES = ["a", "b", "c"]
SLOTS = 2

LEFT_OUT: set[str] = set()
"""Statements that no program has: what they show is known, and a test of its own.
with_open: test_suspension.py, test_rule_3_2_an_opened_span_is_suspended_like_others."""

names = st.sampled_from(NAMES)
slots = st.integers(0, SLOTS - 1)
times = st.integers(1, 999)
limits = st.integers(1, 3)
some_names = st.lists(names, max_size=2)


class Kind(NamedTuple):
    """Where a statement stands: what it may do there."""

    is_async: bool = False
    can_step: bool = False
    can_yield: bool = False
    is_driven: bool = False
    """By hand: an async generator that waits cannot be closed with it."""

    @property
    def function(self) -> "Kind":
        """A plain function that is called there."""
        return Kind()

    @property
    def callee(self) -> "Kind":
        """What is called or awaited there, and may wait if the caller may."""
        return self._replace(can_yield=False)

    @property
    def async_generator(self) -> "Kind":
        return self._replace(
            can_yield=True, can_step=self.can_step and not self.is_driven
        )


TASK = Kind(is_async=True, can_step=True)
THREAD = Kind(can_step=True)
GENERATOR = Kind(can_yield=True)
COROUTINE = Kind(is_async=True, can_step=True, is_driven=True)
ASYNC_GENERATOR = Kind(is_async=True, can_step=True, can_yield=True)

MADE = {
    "generator": GENERATOR,
    "coroutine": COROUTINE,
    "async generator": ASYNC_GENERATOR,
}


# --- which statements there are, and how often ----------------------------------------


def weights(kind: Kind, depth: int) -> dict[str, int]:
    """What may stand there. The first is what programs shrink to."""
    found = {"time": 6, "next": 8, "throw": 2, "close": 1, "drop": 1}
    found |= {"keep_context": 1, "set": 1, "raise": 1, "open": 1, "close_open": 1}
    if kind.can_step:
        found |= {"step": 8}
    if kind.can_yield:
        found |= {"yield": 10}
    if depth == 0:
        return found
    found |= {"span": 14, "call": 3, "catch": 3, "finally": 2, "manager": 2, "for": 3}
    found |= {"with_open": 3, "copy": 1, "run_context": 2, "make": 6, "thread": 1}
    if kind.can_yield and not kind.is_async:
        found |= {"from": 4}
    if kind.is_async:
        found |= {"async_span": 3, "call": 5, "async_for": 3, "async_manager": 2}
    if kind.is_async and kind.can_step and not kind.is_driven:
        found |= {"spawn": 3, "to_thread": 1}
    return {what: n for what, n in found.items() if what not in LEFT_OUT}


def arguments(what: str, kind: Kind, depth: int) -> list[st.SearchStrategy[Any]]:
    here = bodies(kind, depth)
    function = bodies(kind.function, depth)
    generator = bodies(GENERATOR, depth)
    async_generator = bodies(kind.async_generator, depth)
    before = bodies(kind.async_generator._replace(can_yield=False), min(depth, 1))
    return {
        "time": [times],
        "span": [names, here],
        "async_span": [names, here],
        "open": [slots, names],
        "with_open": [slots, here],
        "close_open": [slots],
        "catch": [here],
        "finally": [here, bodies(kind.function, min(depth, 1))],
        "call": [bodies(kind.callee, depth)],
        "copy": [function],
        "keep_context": [slots],
        "run_context": [slots, function],
        "for": [generator, here, limits],
        "async_for": [async_generator, here, limits],
        "from": [generator],
        "manager": [bodies(kind.function, min(depth, 1)), some_names, here],
        "async_manager": [before, some_names, here],
        "spawn": [bodies(TASK, depth)],
        "thread": [st.booleans(), bodies(THREAD, depth)],
        "to_thread": [bodies(THREAD, depth)],
        "next": [slots],
        "throw": [slots],
        "close": [slots],
        "drop": [slots],
    }.get(what, [])


@st.composite
def statements(draw: st.DrawFn, kind: Kind, depth: int) -> Statement:
    often = [what for what, n in weights(kind, depth).items() for _ in range(n)]
    what = draw(st.sampled_from(often))
    depth = max(depth - 1, 0)
    if what == "make":
        made = draw(st.sampled_from(list(MADE)))
        return what, draw(slots), made, draw(bodies(MADE[made], depth))
    return what, *(draw(each) for each in arguments(what, kind, depth))


@cache
def bodies(kind: Kind, depth: int) -> st.SearchStrategy[Body]:
    return st.deferred(lambda: st.lists(statements(kind, depth), max_size=6))


class Program(NamedTuple):
    app: bool
    """Whether a span "app" is around it all."""
    tasks: list[Body]
    turns: list[Turn]
    """In which order: ("step" | "throw" | "cancel", which of those that wait),
    ("time", n), ("session", 0): stop or start one, ("look", 0): compare."""
    single: bool = False
    """Whether a reporter gets each single span, which must be as the model says."""


DEPTH = 4


@st.composite
def turns(draw: st.DrawFn) -> Turn:
    often = ["step"] * 20 + ["time"] * 8 + ["throw"] * 3
    often += ["cancel", "cancel", "look", "session"]
    what = draw(st.sampled_from(often))
    return what, draw(times if what == "time" else st.integers(0, 5))


programs = st.builds(
    Program,
    st.booleans(),
    st.lists(bodies(TASK, DEPTH), min_size=1, max_size=3),
    st.lists(turns(), max_size=40),
    st.booleans(),
)
