"""Reporters: where the values of a session go."""

from .base import Reporter
from .files import FileBackend
from .pprof import Backend, PProfReporter

__all__ = ["Backend", "FileBackend", "PProfReporter", "Reporter"]
