"""Reporters: where the values of a session go."""

from .base import Reporter
from .callback import CallbackReporter
from .files import FileBackend
from .jsonlines import JsonLinesReporter
from .log import LogReporter
from .pprof import Backend, PProfReporter
from .pyroscope import PyroscopeBackend
from .table import TableReporter

__all__ = [
    "Backend",
    "CallbackReporter",
    "FileBackend",
    "JsonLinesReporter",
    "LogReporter",
    "PProfReporter",
    "PyroscopeBackend",
    "Reporter",
    "TableReporter",
]
