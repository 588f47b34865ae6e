"""Random programs as plain data.

A program is what its tasks do, and in which order they take turns. What a task does is a
list of statements, each a tuple with its kind first:

    ("time", n)                  let n ns pass
    ("span", name, body)         with span(name): body
    ("async_span", name, body)   async with span(name): body
    ("step",)                    wait for the next turn
    ("raise",)                   raise Boom
    ("catch", body)              try: body; except Boom: pass
    ("finally", body, cleanup)   try: body; finally: cleanup
    ("call", body)               call a function with that body, or await a coroutine
    ("copy", body)               copy_context().run(a function with that body)
    ("keep_context", slot)       contexts[slot] = copy_context()
    ("run_context", slot, body)  contexts[slot].run(a function with that body)
    ("for", generator, body, n)  for _ in generator(): body, and a break after n times
    ("async_for", ...)           the same
    ("yield",)                   in a generator
    ("from", generator)          yield from generator()
    ("manager", before, names, body)         with a generator that is a context manager,
    ("async_manager", before, names, body)   and has spans of these names around its yield
    ("spawn", body)              start a task
    ("thread", inherits, body)   start a thread; ``inherits``: in a copy of the context
    ("to_thread", body)          wait for a function on another thread
    ("make", slot, kind, body)   slots[slot] = generator(), coroutine() or async generator
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
SLOTS = 3

names = st.sampled_from(NAMES)
slots = st.integers(0, SLOTS - 1)
times = st.integers(1, 999)


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
        return self._replace(can_yield=True, can_step=self.can_step and not self.is_driven)


TASK = Kind(is_async=True, can_step=True)
THREAD = Kind(can_step=True)
GENERATOR = Kind(can_yield=True)
COROUTINE = Kind(is_async=True, can_step=True, is_driven=True)
ASYNC_GENERATOR = Kind(is_async=True, can_step=True, can_yield=True)

MADE = {"generator": GENERATOR, "coroutine": COROUTINE, "async generator": ASYNC_GENERATOR}


def leaves(kind: Kind) -> list[st.SearchStrategy[Statement]]:
    found = [
        st.tuples(st.just("time"), times),
        st.tuples(st.sampled_from(["next", "throw", "close", "drop"]), slots),
        st.tuples(st.sampled_from(["next"]), slots),
        st.tuples(st.just("keep_context"), slots),
        st.just(("raise",)),
    ]
    if kind.can_step:
        found += [st.just(("step",))] * 3
    if kind.can_yield:
        found += [st.just(("yield",))] * 3
    return found


def nested(kind: Kind, depth: int) -> list[st.SearchStrategy[Statement]]:
    here = bodies(kind, depth)
    function = bodies(kind.function, depth)
    generator = bodies(GENERATOR, depth)
    limit = st.integers(1, 3)
    found = [
        *[st.tuples(st.just("span"), names, here)] * 4,
        st.tuples(st.just("call"), bodies(kind.callee, depth)),
        st.tuples(st.just("catch"), here),
        st.tuples(st.just("finally"), here, bodies(kind.function, min(depth, 1))),
        st.tuples(st.just("copy"), function),
        st.tuples(st.just("run_context"), slots, function),
        st.tuples(st.just("for"), generator, here, limit),
        st.tuples(
            st.just("manager"), function, st.lists(names, max_size=2), here
        ),
        st.tuples(st.just("thread"), st.booleans(), bodies(THREAD, depth)),
        *[
            st.tuples(st.just("make"), slots, st.just(made), bodies(MADE[made], depth))
            for made in ("generator", "coroutine", "async generator")
        ],
    ]
    if kind.can_yield and not kind.is_async:
        found += [st.tuples(st.just("from"), generator)] * 2
    if kind.is_async:
        found += [
            st.tuples(st.just("async_span"), names, here),
            st.tuples(
                st.just("async_for"), bodies(kind.async_generator, depth), here, limit
            ),
            st.tuples(
                st.just("async_manager"),
                bodies(kind.async_generator._replace(can_yield=False), depth),
                st.lists(names, max_size=2),
                here,
            ),
        ]
    if kind.is_async and kind.can_step and not kind.is_driven:
        found += [
            *[st.tuples(st.just("spawn"), bodies(TASK, depth))] * 2,
            st.tuples(st.just("to_thread"), bodies(THREAD, depth)),
        ]
    return found


@cache
def bodies(kind: Kind, depth: int) -> st.SearchStrategy[Body]:
    choices = leaves(kind)
    if depth > 0:
        choices = choices + st_deferred(kind, depth - 1)
    return st.lists(st.one_of(choices), max_size=4)


def st_deferred(kind: Kind, depth: int) -> list[st.SearchStrategy[Statement]]:
    return nested(kind, depth)


class Program(NamedTuple):
    app: bool
    """Whether a span "app" is around it all."""
    tasks: list[Body]
    turns: list[Turn]
    """In which order: ("step" | "throw" | "cancel", which of those that wait),
    ("time", n), ("session", 0): stop or start one, ("look", 0): compare."""


DEPTH = 4

turns = st.one_of(
    *[st.tuples(st.just("step"), st.integers(0, 5))] * 8,
    *[st.tuples(st.just("time"), times)] * 3,
    st.tuples(st.just("throw"), st.integers(0, 5)),
    st.tuples(st.just("cancel"), st.integers(0, 5)),
    st.sampled_from([("look", 0), ("session", 0)]),
)

programs = st.builds(
    Program,
    st.booleans(),
    st.lists(bodies(TASK, DEPTH), min_size=1, max_size=3),
    st.lists(turns, max_size=30),
)
