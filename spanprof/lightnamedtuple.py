"""``typing.NamedTuple`` without ``typing``, which takes longer to import than the rest
of spanprof. For modules with ``from __future__ import annotations``."""

from collections import namedtuple


class _Meta(type):
    def __new__(
        cls, name: str, bases: tuple[type, ...], namespace: dict[str, object]
    ) -> type:
        if not bases:
            return super().__new__(cls, name, bases, namespace)
        base = namedtuple(name, namespace["__annotations__"])  # type: ignore
        return type(name, (base,), {"__slots__": (), **namespace})


class NamedTuple(metaclass=_Meta):
    """Subclass it with annotated fields."""
