"""The session around a program that ``spanprof run`` runs.

It ends with the process, however that ends: at exit, after the program's own exit
handlers and threads, or in ``os._exit``. Only signals are faster. Children that the
program forks write their profiles as well; the table is the first process's.
"""

import atexit

# Needed at the end, if at all. By then the program's own directory comes first on
# sys.path, and may hold modules of these names.
import logging  # noqa: F401
import os
import threading
import unicodedata  # noqa: F401
from collections.abc import Callable
from typing import NoReturn

from . import session
from .atomicfile import write_file
from .config import ProfileConfig
from .output import Stream, flush_standard_streams
from .profiles import Profile
from .reporters.files import FileBackend
from .reporters.pprof import PProfReporter

_SPARE = 5.0
"""Seconds on top of a session's time-out to wait for another thread's end."""


def begin(
    config: ProfileConfig,
    *,
    directory: str | None,
    table: Callable[[Profile], str] | None,
    output: str | None,
) -> None:
    """Start a session that ends with the process.

    Profiles go to ``directory``; the table of the whole run goes to the file
    ``output``, or to standard output. Trouble of any kind is told on standard error.
    """
    reporter = None
    if directory is not None:
        backend = FileBackend(directory)
        directory = backend.directory
        reporter = PProfReporter(backend)
    end = _End(config, reporter, directory, table, output)
    # Exit handlers run in reverse order: these before the program's are these after.
    atexit.register(end)
    os.register_at_fork(after_in_child=end.forked)
    try:
        end.session = session.start(config, reporters=[reporter] if reporter else [])
    except Exception as error:
        end.say(f"running without a session: {error}")
    _wrap_exit(end)


class _End:
    """What is to be done at the end of the process, once."""

    def __init__(
        self,
        config: ProfileConfig,
        reporter: PProfReporter | None,
        directory: str | None,
        table: Callable[[Profile], str] | None,
        output: str | None,
    ) -> None:
        self.session: session.Session | None = None
        self._timeout = config.stop_timeout
        self._reporter = reporter
        self._directory = directory
        self._table = table
        # The program may change its directory.
        self._output = os.path.abspath(output) if output is not None else None
        self._stdout = Stream(1)
        self._stderr = Stream(2)
        self._is_child = False
        self._lock = threading.RLock()
        self._begun = False

    def forked(self) -> None:
        self._is_child = True
        self._lock = threading.RLock()
        self._begun = False

    def say(self, message: str) -> None:
        self._stderr.write(f"spanprof: {message}\n")

    def __call__(self, *, flush: bool = True) -> None:
        """Do it; wait if another thread does."""
        lock = self._lock
        if not lock.acquire(timeout=min(self._timeout + _SPARE, threading.TIMEOUT_MAX)):
            return
        try:
            if not self._begun:
                self._begun = True
                self._finish(flush)
        except KeyboardInterrupt:
            self.say("interrupted")
        except Exception as error:
            self.say(f"{type(error).__name__}: {error}")
        finally:
            lock.release()

    def _finish(self, flush: bool) -> None:
        if self.session is None:
            return
        self.session.stop()
        if self._is_child:
            return
        if self._table is not None:
            text = self._table(self.session.result) + "\n"
            if flush:
                flush_standard_streams()
            if self._output is None:
                self._stdout.write(text)
            else:
                self._write_output(self._output, text)
        if self._reporter is not None:
            self._tell_of_files(self._reporter)

    def _write_output(self, path: str, text: str) -> None:
        try:
            write_file(path, text.encode())
        except OSError as error:
            self.say(f"no table written to {path}: {error.strerror}")

    def _tell_of_files(self, reporter: PProfReporter) -> None:
        if reporter.lost:
            self.say(
                f"{reporter.lost} profiles could not be written to {self._directory}: "
                f"{reporter.last_error}"
            )
        if reporter.written or not reporter.lost:
            self.say(f"wrote {reporter.written} profiles to {self._directory}")


def _wrap_exit(end: _End) -> None:
    """Have ``os._exit`` end the session first.

    It is how forked children end, multiprocessing's too. Nothing of the program's is
    flushed, as it would not be without us.
    """
    leave = os._exit

    def _exit(status: int) -> NoReturn:
        try:
            end(flush=False)
        finally:
            leave(status)

    _exit.__doc__ = leave.__doc__
    # Where it can be found: it may be pickled, as a task for another process.
    _exit.__module__, _exit.__qualname__ = os.__name__, "_exit"
    os._exit = _exit
