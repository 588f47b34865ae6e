"""Running a program as ``python`` itself would.

The program gets a fresh ``__main__``, its own ``sys.argv`` and ``sys.path``, and
leaves in its own way: by returning, by SystemExit or another exception, by
KeyboardInterrupt. Tracebacks are those that it has without us.
"""

import importlib.machinery
import io
import os
import pkgutil
import runpy
import sys
from collections.abc import Callable, Sequence
from types import FrameType, ModuleType, TracebackType

# What ``python -m`` itself calls: so messages and tracebacks are the same.
_run_as_main = runpy._run_module_as_main  # type: ignore[attr-defined]


def run_script(path: str, arguments: Sequence[str]) -> None:
    """Do what ``python path arguments`` does.

    ``path`` is a file of source or byte code, or a directory or ZIP file with a
    ``__main__.py``. SystemExit(2) if it cannot be read.
    """
    absolute = os.path.join(_directory(), path)  # python keeps "./" and "../" too
    namespace = _fresh_main()
    sys.argv = [path, *arguments]
    if pkgutil.get_importer(absolute) is not None:
        _set_path(absolute, always=True)
        _guard(_run_as_main, "__main__", False)
        return
    try:
        with io.open_code(absolute) as file:
            compiled = pkgutil.read_code(file)
            file.seek(0)
            source = file.read() if compiled is None else b""
    except OSError as error:
        message = (
            f"can't open file {absolute!r}: [Errno {error.errno}] {error.strerror}"
        )
        print(f"{sys.executable}: {message}", file=sys.stderr)
        raise SystemExit(2) from None
    _set_path(os.path.dirname(os.path.realpath(absolute)))
    loader: type = importlib.machinery.SourceFileLoader
    if compiled is not None:
        loader = importlib.machinery.SourcelessFileLoader
    namespace.update(__file__=absolute, __loader__=loader("__main__", absolute))
    if sys.version_info < (3, 15):
        namespace["__cached__"] = None
    if sys.version_info < (3, 14):
        namespace["__annotations__"] = {}
    if compiled is None:
        compiled = _guard(compile, source, absolute, "exec", 0, True)
    _guard(exec, compiled, namespace)


def run_module(name: str, arguments: Sequence[str]) -> None:
    """Do what ``python -m name arguments`` does."""
    _fresh_main()
    sys.argv = ["-m", *arguments]
    _set_path(_directory())
    _guard(_run_as_main, name)


def _directory() -> str:
    try:
        return os.getcwd()
    except OSError:  # it is gone
        return ""


def _fresh_main() -> dict[str, object]:
    module = ModuleType("__main__")
    module.__dict__["__builtins__"] = sys.modules["builtins"]
    sys.modules["__main__"] = module
    return module.__dict__


def _set_path(first: str, *, always: bool = False) -> None:
    """Put ``first`` where python has put the directory that we were started from.

    With ``-P`` and the like it has put none, and wants none of a script's either.
    """
    if not sys.flags.safe_path:
        sys.path[0] = first
    elif always:
        sys.path.insert(0, first)


def _guard(function: Callable[..., object], *arguments: object) -> object:
    """Call what runs the program; hide all frames down to here if it raises."""
    frame = sys._getframe()
    try:
        return function(*arguments)
    except SystemExit:
        raise  # not shown by the hook
    except BaseException:
        _hide_above(frame)
        raise


def _hide_above(frame: FrameType) -> None:
    """Have the exception that is on its way out shown from below ``frame`` on.

    Each frame that it still leaves is added to its traceback. So they are taken off
    only when it is shown, and then by the hook that the program has set.
    """
    hook = getattr(sys, "excepthook", None)
    if hook is None:
        return

    def excepthook(
        kind: type[BaseException],
        error: BaseException,
        traceback: TracebackType | None,
    ) -> None:
        below = traceback
        while below is not None and below.tb_frame is not frame:
            below = below.tb_next
        if below is not None:
            traceback = below.tb_next
            error.__traceback__ = sys.last_traceback = traceback
        hook(kind, error, traceback)

    sys.excepthook = excepthook
