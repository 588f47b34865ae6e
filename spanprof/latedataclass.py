"""Dataclasses that are made when they are first used.

``import dataclasses`` takes longer than all of spanprof, and most programs that
import spanprof never make a ``ProfileConfig``. A ``__getattr__`` of the package would
put the import off as well, but CPython does not specialise attribute look-ups on a
module that has one: ``spanprof.span`` would cost a third more.

The class lacks only what ``@dataclass`` adds. Its metaclass has that added, to the
same class, on the first call or the first look at the fields.
"""

from __future__ import annotations

import _thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_lock = _thread.RLock()
_pending: dict[type, dict[str, Any]] = {}


class _Late(type):
    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        _finish(cls)
        return super().__call__(*args, **kwargs)

    def __getattr__(cls, name: str) -> Any:
        # Asked only for what the class does not have yet.
        if name == "__signature__":
            from inspect import signature

            _finish(cls)
            _self, *others = signature(cls.__init__).parameters.values()  # type: ignore[misc]
            return signature(cls.__init__).replace(parameters=others)  # type: ignore[misc]
        if name == "__dataclass_fields__" and _finish(cls):
            return getattr(cls, name)
        raise AttributeError(f"type object {cls.__name__!r} has no attribute {name!r}")


def _finish(cls: type) -> bool:
    """Make dataclasses of the class and its bases; whether there was one to make."""
    found = False
    if _pending:
        with _lock:
            for base in reversed(cls.__mro__):
                options = _pending.get(base)
                if options is not None:
                    from dataclasses import dataclass

                    found = True
                    del _pending[base]
                    dataclass(**options)(base)
    return found


def late_dataclass(**options: Any) -> Any:
    """As ``dataclasses.dataclass(**options)``, put off. Not with ``slots``."""

    def decorate(cls: type) -> type:
        own = ("__dict__", "__weakref__")
        namespace = {name: each for name, each in vars(cls).items() if name not in own}
        late = _Late(cls.__name__, cls.__bases__, namespace)
        _pending[late] = options
        return late

    return decorate
