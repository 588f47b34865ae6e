"""The command line: ``spanprof run``, ``spanprof report``, ``spanprof diff``."""

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from functools import reduce
from operator import add

from . import __version__
from .atomicfile import write_file
from .calltree import SERIES
from .config import ProfileConfig
from .difference import render_difference
from .output import Stream
from .profiles import Profile
from .reporters.files import SUFFIX
from .table import ROWS, render

_RUN_USAGE = """\
spanprof run [options] script.py [arguments]
       spanprof run [options] -m module [arguments]"""

_RUN_HELP = """\
Run a program with a session around it, and print a table of its spans at the end.
The program runs as without spanprof: its arguments, output and exit status are its
own. The SPANPROF_* variables give the defaults of the options."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    program: list[str] = []
    if arguments[:1] == ["run"]:
        arguments, program = _split(arguments, parser.run_options)
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 2
    if options.command == "run":
        return _run(options, program, parser.run_options)
    try:
        command: Callable[[argparse.Namespace], str] = options.function
        _print(command(options), options.output)
    except OSError as error:
        return _fail(options, f"{error.filename}: {error.strerror}")
    except ValueError as error:
        return _fail(options, str(error))
    return 0


def _fail(options: argparse.Namespace, message: str) -> int:
    Stream(2).write(f"spanprof {options.command}: {message}\n")
    return 1


# --- arguments --------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    run_options: argparse.ArgumentParser


def _parser() -> _Parser:
    parser = _Parser(
        prog="spanprof", description="A span profiler for Python.", allow_abbrev=False
    )
    parser.add_argument(
        "--version", action="version", version=f"spanprof {__version__}"
    )
    commands = parser.add_subparsers(
        dest="command", metavar="command", parser_class=argparse.ArgumentParser
    )

    run = commands.add_parser(
        "run",
        help="run a program and show its spans",
        usage=_RUN_USAGE,
        description=_RUN_HELP,
        allow_abbrev=False,
    )
    parser.run_options = run
    track = run.add_argument_group("what to measure (default: --wall --cpu)")
    for name, field, what in (
        ("--wall", "track_wall", "wall time"),
        ("--cpu", "track_cpu", "CPU time"),
        ("--alloc", "track_allocations", "number and size of allocations"),
        ("--heap", "track_heap", "memory in use, and allocations"),
        ("--all", "track_all", "all of these"),
    ):
        track.add_argument(name, dest=field, action="store_true", help=what)
    run.add_argument(
        "--label",
        action="append",
        metavar="NAME",
        help="record the label NAME: each value has rows of its own; repeatable",
    )
    run.add_argument(
        "--interval", type=float, metavar="S", help="seconds between two reports"
    )
    run.add_argument(
        "--pprof", metavar="DIR", help="write pprof files into a directory"
    )
    run.add_argument("--no-table", action="store_true", help="print no table")
    _add_table_options(run)

    report = commands.add_parser(
        "report",
        help="show the spans in pprof files",
        description=f"Show the spans in pprof files, all of them added up. Of a "
        f"directory, all *{SUFFIX} are taken.",
        allow_abbrev=False,
    )
    report.add_argument("files", nargs="+", metavar="FILE|DIR")
    _add_table_options(report)
    report.set_defaults(function=_report)

    diff = commands.add_parser(
        "diff",
        help="show what changed between two profiles",
        description="Show what changed from A to B, each a pprof file or a directory "
        "of them.",
        allow_abbrev=False,
    )
    diff.add_argument("before", metavar="A")
    diff.add_argument("after", metavar="B")
    _add_table_options(diff, flat=False)
    diff.set_defaults(function=_diff)
    return parser


def _add_table_options(parser: argparse.ArgumentParser, *, flat: bool = True) -> None:
    group = parser.add_argument_group("the table")
    group.add_argument(
        "--sort",
        choices=tuple(SERIES),
        metavar="SERIES",
        help="order by one of: " + ", ".join(SERIES),
    )
    group.add_argument(
        "--limit",
        type=_row_limit,
        default=ROWS,
        metavar="N",
        help=f"most rows (default: {ROWS}; 0: all)",
    )
    if flat:
        group.add_argument(
            "--flat",
            action="store_true",
            help="one row for each place that opens spans, instead of the tree",
        )
    group.add_argument("--output", metavar="FILE", help="write the table to a file")


def _row_limit(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError("must not be negative")
    return number


_row_limit.__name__ = "number"  # argparse: "invalid number value"


def _split(
    arguments: list[str], parser: argparse.ArgumentParser
) -> tuple[list[str], list[str]]:
    """Our arguments, and those of the program from its name or -m on.

    argparse cannot do this: it takes options of the program for ours.
    """
    number = 1
    while number < len(arguments):
        argument = arguments[number]
        if argument == "--":
            return arguments[:number], arguments[number + 1 :]
        if argument.startswith("-m"):
            return arguments[:number], arguments[number:]
        if not argument.startswith("-") or argument == "-":
            return arguments[:number], arguments[number:]
        action = parser._option_string_actions.get(argument)
        number += 2 if action is not None and action.nargs is None else 1
    return arguments, []


# --- spanprof run -----------------------------------------------------------------


def _run(
    options: argparse.Namespace, program: list[str], parser: argparse.ArgumentParser
) -> int:
    from . import launch, supervise

    try:
        config = _configure(options)
    except ValueError as error:
        parser.error(str(error))
    run: Callable[[str, Sequence[str]], None] = launch.run_script
    if program and program[0].startswith("-m"):
        run = launch.run_module
        program = [program[0][2:], *program[1:]] if program[0] != "-m" else program[1:]
    if not program:
        parser.error("which program? A script or -m module is missing")
    supervise.begin(
        config,
        directory=options.pprof,
        table=None if options.no_table else _table(options),
        output=options.output,
    )
    run(program[0], program[1:])
    return 0


def _configure(options: argparse.Namespace) -> ProfileConfig:
    config = ProfileConfig.from_env()
    names = [field.name for field in dataclasses.fields(config)]
    tracks = [name for name in names if name.startswith("track_")]
    chosen = {name: getattr(options, name) for name in tracks}
    if not any(chosen.values()):
        chosen = {}
        if config.tracked == ("calls",):
            chosen = {"track_wall": True, "track_cpu": True}
    changes: dict[str, object] = dict(chosen)
    if options.label:
        changes["record_labels"] = options.label
    if options.interval is not None:
        changes["report_interval"] = options.interval
    return dataclasses.replace(config, **changes)  # type: ignore[arg-type]


def _table(options: argparse.Namespace) -> Callable[[Profile], str]:
    def table(profile: Profile) -> str:
        sort = options.sort
        if sort is not None and SERIES[sort].kind not in profile.kinds:
            sort = None  # the program has run: any table is better than none
        width = None if options.output is None else sys.maxsize
        return render(
            profile.tree,
            sort=sort,
            limit=options.limit,
            flat=options.flat,
            width=width,
        )

    return table


# --- spanprof report, spanprof diff -------------------------------------------------


def _report(options: argparse.Namespace) -> str:
    return _table(options)(_read(options.files))


def _diff(options: argparse.Namespace) -> str:
    return render_difference(
        _read([options.before]).tree,
        _read([options.after]).tree,
        sort=options.sort,
        limit=options.limit,
        width=None if options.output is None else sys.maxsize,
    )


def _read(paths: Sequence[str]) -> Profile:
    """All profiles in files and directories, added up."""
    return reduce(add, (Profile.read(file) for path in paths for file in _files(path)))


def _files(path: str) -> list[str]:
    if not os.path.isdir(path):
        return [path]
    names = sorted(name for name in os.listdir(path) if name.endswith(SUFFIX))
    if not names:
        raise ValueError(f"{path}: no profiles (*{SUFFIX}) in this directory")
    return [os.path.join(path, name) for name in names]


def _print(text: str, output: str | None) -> None:
    if output is None:
        Stream(1).write(text + "\n")
    else:
        write_file(output, (text + "\n").encode())
