"""``spanprof run``, ``report`` and ``diff``, started as users do."""

import os
import py_compile
import re
import subprocess
import sys
import textwrap
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

import spanprof

ROOT = Path(spanprof.__file__).parent.parent
ENVIRONMENT = {
    **{key: value for key, value in os.environ.items() if "SPANPROF" not in key},
    "PYTHONPATH": str(ROOT),
    "PYTHONIOENCODING": "utf-8",
    "COLUMNS": "200",
}
SPANPROF = [sys.executable, "-m", "spanprof"]


@dataclass(frozen=True)
class Result:
    status: int
    out: str
    err: str


def run(*command: object, cwd: Path, stdin: str = "", **environment: str) -> Result:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**ENVIRONMENT, **environment},
        input=stdin.encode(),
        capture_output=True,
        timeout=60,
        check=False,
    )
    return Result(
        done.returncode,
        done.stdout.decode("utf-8", "surrogateescape"),
        done.stderr.decode("utf-8", "surrogateescape"),
    )


def spanprof_run(*arguments: object, cwd: Path, **environment: str) -> Result:
    return run(*SPANPROF, "run", *arguments, cwd=cwd, **environment)


def script(folder: Path, source: str, name: str = "program.py") -> Path:
    path = folder / name
    path.write_text(textwrap.dedent(source), "utf-8")
    return path


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def kinds(folder: Path) -> set[str]:
    return {name.split(".")[-3] for name in files(folder)}


# --- the program runs as without us -----------------------------------------------

WAYS_TO_END = {
    "returns": "print('done')",
    "exit": "import sys; sys.exit()",
    "exit 0": "import sys; sys.exit(0)",
    "exit 3": "import sys; sys.exit(3)",
    "exit 256": "import sys; sys.exit(256)",
    "exit -1": "import sys; sys.exit(-1)",
    "exit True": "import sys; sys.exit(True)",
    "exit text": "import sys; sys.exit('a reason')",
    "exit tuple": "raise SystemExit(1, 2)",
    "exit object": "raise SystemExit([1])",
    "exception": """
        def inner():
            raise LookupError('a reason')
        inner()
        """,
    "chained": """
        try:
            1 / 0
        except ZeroDivisionError as error:
            raise RuntimeError('chained') from error
        """,
    "context": """
        try:
            1 / 0
        except ZeroDivisionError:
            undefined
        """,
    "group": "raise ExceptionGroup('several', [ValueError(1), TypeError(2)])",
    "notes": """
        error = ValueError(1)
        error.add_note('a note')
        raise error
        """,
    "lone surrogate": "raise ValueError('\\udc80')",
    "syntax error": "print('never')\ndef",
    "syntax error at run time": "exec('def')",
    "interrupt": "raise KeyboardInterrupt",
    "interrupted by a signal": """
        import os, signal
        os.kill(os.getpid(), signal.SIGINT)
        """,
    "os._exit": """
        import os
        print('in a buffer', end='')
        os._exit(7)
        """,
    "os._exit pickled": """
        import copy, os, pickle
        print(pickle.loads(pickle.dumps(os._exit)) is os._exit)
        print(copy.deepcopy(os._exit) is os._exit)
        print(os._exit.__name__, os._exit.__qualname__, os._exit.__doc__)
        """,
    "os._exit in a thread": """
        import os, threading
        threading.Thread(target=os._exit, args=(8,)).start()
        threading.Event().wait()
        """,
    "SIGTERM": "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
    "SIGKILL": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "SIGTERM handled": """
        import os, signal, sys
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(9))
        os.kill(os.getpid(), signal.SIGTERM)
        """,
    "excepthook": """
        import sys, traceback
        def hook(kind, error, tb):
            print('hook', kind, error, error.__traceback__ is tb)
            print(traceback.extract_tb(tb))
            print(sys.last_value is error, sys.last_traceback is tb)
        sys.excepthook = hook
        1 / 0
        """,
    "failing exit handler": """
        import atexit
        atexit.register(lambda: 1 / 0)
        print('last')
        """,
    "failing thread": """
        import threading
        thread = threading.Thread(target=lambda: 1 / 0, name='t')
        thread.start()
        thread.join()
        """,
    "main module": """
        import sys
        for name, value in sorted(globals().items()):
            print(name, type(value), value if isinstance(value, str | None) else '')
        print(sys.modules['__main__'].__dict__ is globals())
        print(sys.argv, sys.path, sys.flags)
        print(getattr(sys.modules['__main__'].__loader__, 'path', None))
        """,
    "standard input": "import sys; print(sys.stdin.read().upper(), input is not None)",
    "pickle": """
        import pickle
        class Thing: pass
        print(type(pickle.loads(pickle.dumps(Thing()))).__module__)
        """,
    "signals": """
        import signal
        print([*map(signal.getsignal, sorted(signal.valid_signals()))])
        print(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        """,
    "threads": "import threading; print(threading.enumerate())",
    "closed streams": "import sys; sys.stdout.close(); sys.stderr.close()",
    "closed descriptors": "import os; os.close(1); os.close(2)",
    "full device": "import sys; sys.stdout = open('/dev/full', 'w'); print('x')",
}


# Which messages tell more than without us: our own frames, or a parser that reads
# bytes and not a file.
WAYS_TO_END_DIFFERENTLY = {
    "no excepthook": "import sys; del sys.excepthook; 1 / 0",
    "failing excepthook": """
        import sys
        def hook(*_):
            raise TypeError('from the hook')
        sys.excepthook = hook
        1 / 0
        """,
    "null byte": "print(1)\0",
}

KILLED = {"SIGTERM", "SIGKILL"}
NEVER_RUN = {"syntax error", "null byte"}


def normal(result: Result) -> Result:
    """Without what differs from one process to the next."""
    change = re.compile(r"0x[0-9a-f]+|started \d+")
    return Result(
        result.status, change.sub("?", result.out), change.sub("?", result.err)
    )


@pytest.mark.parametrize("ending", WAYS_TO_END)
def test_a_program_ends_as_without_us(ending: str, tmp_path: Path) -> None:
    program = script(tmp_path, WAYS_TO_END[ending])
    arguments = (program.name, "-x", "y z", "--", "--cpu")
    alone = run(sys.executable, *arguments, cwd=tmp_path, stdin="in")
    command = (*SPANPROF, "run", "--no-table", *arguments)
    assert normal(run(*command, cwd=tmp_path, stdin="in")) == normal(alone)


@pytest.mark.parametrize("ending", [*WAYS_TO_END, *WAYS_TO_END_DIFFERENTLY])
def test_files_and_table_are_written_whatever_the_end(
    ending: str, tmp_path: Path
) -> None:
    source = textwrap.dedent({**WAYS_TO_END, **WAYS_TO_END_DIFFERENTLY}[ending])
    source = "import spanprof\nwith spanprof.span('a'): pass\n" + source
    program = script(tmp_path, source)
    alone = run(sys.executable, program.name, cwd=tmp_path)
    command = ("--pprof", "out", "--output", "table", program.name)
    ours = spanprof_run(*command, cwd=tmp_path)
    assert ours.status == alone.status
    assert normal(ours).out == normal(alone).out
    if ending in KILLED:
        assert files(tmp_path / "out") == []
    elif ending in NEVER_RUN:
        assert "no spans" in (tmp_path / "table").read_text()
    else:
        assert kinds(tmp_path / "out") == {"calls", "wall", "cpu"}, ours.err
        assert re.search(r"^a +1 ", (tmp_path / "table").read_text(), re.MULTILINE)


@pytest.mark.parametrize(
    "options", [["-I"], ["-P"], ["-O"], ["-X", "dev"], ["-W", "error"], ["-u"]]
)
def test_options_of_the_interpreter(options: list[str], tmp_path: Path) -> None:
    program = script(
        tmp_path,
        "import sys; print(sys.path, sys.flags, sys.argv, __debug__, sys.warnoptions)",
    )
    if options == ["-I"]:
        probe = run(sys.executable, "-I", "-c", "import spanprof", cwd=tmp_path)
        if probe.status != 0:
            pytest.skip("spanprof is not installed, and -I ignores PYTHONPATH")
    alone = run(sys.executable, *options, program, cwd=tmp_path)
    command = (sys.executable, *options, "-m", "spanprof", "run", "--no-table", program)
    assert run(*command, cwd=tmp_path) == alone


def test_a_script_somewhere_else_and_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "work").mkdir()
    script(tmp_path / "real", "value = 42", "neighbour.py")
    script(
        tmp_path / "real",
        """
        import neighbour, sys
        print(neighbour.value, __file__, sys.argv, sys.path)
        """,
    )
    (tmp_path / "link.py").symlink_to("real/program.py")
    for name in ("../real/program.py", "./../link.py"):
        alone = run(sys.executable, name, cwd=tmp_path / "work")
        assert "42" in alone.out
        ours = spanprof_run("--no-table", name, cwd=tmp_path / "work")
        assert ours == alone


MAIN = """
    import sys
    print(__name__, __file__, __package__, __spec__ and __spec__.name)
    print(sys.argv, sys.path)
    if 'raise' in sys.argv:
        raise ValueError('from the program')
    """


def test_a_directory_and_a_zip_file(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    main = script(tmp_path / "folder", MAIN, "__main__.py")
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
        archive.write(main, "__main__.py")
    (tmp_path / "empty").mkdir()
    for name in ("folder", "./folder/", "archive.zip", "empty"):
        for options in ([], ["-P"]):
            alone = run(sys.executable, *options, name, "raise", cwd=tmp_path)
            command = (sys.executable, *options, *SPANPROF[1:], "run", "--no-table")
            assert run(*command, name, "raise", cwd=tmp_path) == alone
            assert alone.status == 1


def test_byte_code(tmp_path: Path) -> None:
    program = script(tmp_path, MAIN)
    py_compile.compile(str(program), cfile=str(tmp_path / "program.pyc"))
    alone = run(sys.executable, "program.pyc", cwd=tmp_path)
    assert spanprof_run("--no-table", "program.pyc", cwd=tmp_path) == alone


@pytest.mark.parametrize(
    "module",
    [
        "tool",
        "package",
        "package.tool",
        "missing",
        "package.missing",
        "broken",
        "empty",
    ],
)
def test_modules_run_as_by_python_dash_m(module: str, tmp_path: Path) -> None:
    for folder in ("package", "broken", "empty"):
        (tmp_path / folder).mkdir()
        script(tmp_path / folder, "", "__init__.py")
    script(tmp_path / "broken", "1 / 0", "__init__.py")
    script(tmp_path, MAIN, "tool.py")
    script(tmp_path / "package", MAIN, "__main__.py")
    script(tmp_path / "package", MAIN, "tool.py")
    for arguments in (["--help"], ["raise"]):
        alone = run(sys.executable, "-m", module, *arguments, cwd=tmp_path)
        ours = spanprof_run("--no-table", "-m", module, *arguments, cwd=tmp_path)
        assert ours == alone
        ours = spanprof_run("--no-table", f"-m{module}", *arguments, cwd=tmp_path)
        assert ours == alone


def test_a_missing_script_is_told_as_python_does(tmp_path: Path) -> None:
    for name in ("missing.py", "missing/missing.py"):
        alone = run(sys.executable, name, cwd=tmp_path)
        assert alone.status == 2
        assert spanprof_run("--no-table", name, cwd=tmp_path) == alone


def test_multiprocessing_finds_the_main_module(tmp_path: Path) -> None:
    program = script(
        tmp_path,
        """
        import multiprocessing
        def square(n): return n * n
        if __name__ == '__main__':
            with multiprocessing.get_context('spawn').Pool(1) as pool:
                print(pool.map(square, range(4)))
        """,
    )
    ours = spanprof_run("--no-table", program, cwd=tmp_path)
    assert ours == Result(0, "[0, 1, 4, 9]\n", "")


# --- what run prints and writes ----------------------------------------------------

SPANS = textwrap.dedent(
    """
    import atexit, spanprof, threading
    def late():
        with spanprof.span('thread'): pass
    threading.Timer(0.05, late).start()
    @atexit.register
    def at_exit():
        with spanprof.span('at exit'): pass
    for n in range(3):
        with spanprof.span('outer', user=n % 2):
            with spanprof.span('inner'):
                [bytes(1000) for _ in range(100)]
    print('output of the program')
    """
)


def spans(table: str) -> dict[str, int]:
    """Calls by indented name."""
    rows = re.findall(r"^( *[^\s(─].*?)  +(\d[\d,]*)(?: |$)", table, re.MULTILINE)
    return {name: int(calls.replace(",", "")) for name, calls in rows}


def test_run_prints_a_table_after_all_that_the_program_does(tmp_path: Path) -> None:
    result = spanprof_run(script(tmp_path, SPANS), cwd=tmp_path)
    assert result.status == 0
    assert result.err == ""
    assert result.out.startswith("output of the program\n")
    assert spans(result.out) == {
        "outer": 3,
        "  inner": 3,
        "at exit": 1,
        "thread": 1,
        "all spans": 8,
    }
    assert "wall total" in result.out
    assert "cpu %" in result.out
    assert "alloc" not in result.out


def test_run_options_choose_what_is_measured(tmp_path: Path) -> None:
    program = script(tmp_path, SPANS)
    for options, written in (
        (["--wall"], {"calls", "wall"}),
        (["--cpu"], {"calls", "cpu"}),
        (["--alloc"], {"calls", "alloc"}),
        (["--heap"], {"calls", "alloc", "heap"}),
        (["--all"], {"calls", "wall", "cpu", "alloc", "heap"}),
    ):
        folder = tmp_path / options[0]
        result = spanprof_run(*options, f"--pprof={folder}", program, cwd=tmp_path)
        assert kinds(folder) == written
        assert result.err == f"spanprof: wrote {len(written)} profiles to {folder}\n"
        report = run(*SPANPROF, "report", folder, cwd=tmp_path)
        assert spans(report.out) == spans(result.out)


def test_run_labels_and_environment(tmp_path: Path) -> None:
    program = script(tmp_path, SPANS)
    by_option = spanprof_run("--label", "user", "--label=x", program, cwd=tmp_path)
    by_variable = spanprof_run(
        program, cwd=tmp_path, SPANPROF_RECORD_LABELS="user", SPANPROF_TRACK_ALL="1"
    )
    for result in (by_option, by_variable):
        rows = spans(result.out)
        assert rows["outer  user=0"] == 2
        assert rows["outer  user=1"] == 1
    assert "alloc" in by_variable.out
    assert "alloc" not in by_option.out
    over = spanprof_run("--cpu", program, cwd=tmp_path, SPANPROF_TRACK_ALL="1")
    assert "alloc" not in over.out


def test_run_reports_at_the_interval(tmp_path: Path) -> None:
    program = script(
        tmp_path,
        """
        import os, spanprof, time
        end = time.monotonic() + 20
        while not os.path.exists('out') or len(os.listdir('out')) < 6:
            with spanprof.span('a'):
                time.sleep(0.001)
            assert time.monotonic() < end
        """,
    )
    result = spanprof_run("--interval=0.05", "--pprof=out", program, cwd=tmp_path)
    assert result.status == 0, result


def test_run_table_options(tmp_path: Path) -> None:
    program = script(tmp_path, SPANS)
    table = tmp_path / "table"
    result = spanprof_run("--output", table, "--limit=1", program, cwd=tmp_path)
    assert result.out == "output of the program\n"
    assert "(3 more" in table.read_text()
    assert table.stat().st_mode & 0o777 == 0o600
    flat = spanprof_run("--flat", "--sort=calls", program, cwd=tmp_path).out
    assert list(spans(flat))[:2] == ["inner", "outer"]
    none = spanprof_run("--no-table", program, cwd=tmp_path)
    assert none.out == "output of the program\n"
    other = spanprof_run("--wall", "--sort=cpu", program, cwd=tmp_path)
    assert "wall total" in other.out


def test_run_where_nothing_can_be_written(tmp_path: Path) -> None:
    program = script(tmp_path, SPANS + "raise SystemExit(4)")
    blocked = program / "under-a-file"
    result = spanprof_run(
        "--pprof", blocked, "--output", blocked, program, cwd=tmp_path
    )
    assert result.status == 4
    assert result.out == "output of the program\n"
    assert f"3 profiles could not be written to {blocked}" in result.err
    assert f"no table written to {blocked}" in result.err
    assert "Traceback" not in result.err


def test_run_with_standard_output_closed(tmp_path: Path) -> None:
    program = script(tmp_path, SPANS.replace("print(", "str("))
    for ending, status in (("", 0), ("raise SystemExit(5)", 5)):
        program.write_text(SPANS.replace("print(", "str(") + ending)
        command = [*SPANPROF, "run", "--pprof", f"out{status}", str(program)]
        reader, writer = os.pipe()
        os.close(reader)
        with subprocess.Popen(
            command,
            cwd=tmp_path,
            env=ENVIRONMENT,
            stdout=writer,
            stderr=subprocess.PIPE,
        ) as process:
            os.close(writer)
            error = process.communicate(timeout=60)[1].decode()
        assert (process.returncode, error.count("\n")) == (status, 1), error
        assert kinds(tmp_path / f"out{status}") == {"calls", "wall", "cpu"}
        closed = subprocess.run(
            ["sh", "-c", 'exec "$@" >&-', "sh", *command],
            cwd=tmp_path,
            env=ENVIRONMENT,
            stderr=subprocess.PIPE,
            check=False,
        )
        assert closed.returncode == status, closed.stderr


def test_run_never_writes_into_a_file_that_took_a_closed_descriptor(
    tmp_path: Path,
) -> None:
    program = script(
        tmp_path,
        """
        import os
        os.close(1)
        assert os.open('data', os.O_CREAT | os.O_RDWR) == 1
        """,
    )
    assert spanprof_run(program, cwd=tmp_path).status == 0
    assert (tmp_path / "data").read_bytes() == b""


def test_run_prints_in_an_encoding_that_lacks_characters(tmp_path: Path) -> None:
    program = script(
        tmp_path,
        """
        import spanprof
        with spanprof.span('h\\xe9llo \\ud800 \\0'): pass
        """,
    )
    result = spanprof_run(program, cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert result.err == ""
    assert r"h\xe9llo \ud800 \x00" in result.out
    assert "----" in result.out


def test_run_imports_nothing_of_the_program_for_itself(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    program = script(
        folder,
        """
        import spanprof
        with spanprof.span('caf\\xe9 \\u65e5'): pass
        """,
    )
    for name in ("logging", "unicodedata", "datetime", "table", "traceback", "gzip"):
        script(folder, "raise SystemExit('imported by mistake')", f"{name}.py")
    result = spanprof_run("--pprof", program / "blocked", program, cwd=tmp_path)
    assert result.status == 0
    assert "caf\xe9 \u65e5" in result.out
    assert "could not be written" in result.err
    assert "mistake" not in result.out + result.err


def test_forked_children_write_their_profiles(tmp_path: Path) -> None:
    program = script(
        tmp_path,
        """
        import multiprocessing, os, spanprof
        def work():
            with spanprof.span('child'): pass
        with spanprof.span('parent'): pass
        pid = os.fork()
        if pid == 0:
            work()
            os._exit(0)
        os.waitpid(pid, 0)
        process = multiprocessing.get_context('fork').Process(target=work)
        process.start()
        process.join()
        pid = os.fork()
        if pid == 0:
            work()
            raise SystemExit(0)
        os.waitpid(pid, 0)
        print('parent ends')
        """,
    )
    result = spanprof_run("--pprof=out", program, cwd=tmp_path)
    assert result.status == 0
    assert result.out.count("all spans") == 1
    assert spans(result.out) == {"parent": 1, "all spans": 1}
    assert result.err.count("wrote 3 profiles") == 1
    report = run(*SPANPROF, "report", "out", cwd=tmp_path)
    assert spans(report.out) == {"parent": 1, "child": 3, "all spans": 4}
    assert len({name.split("-")[1] for name in files(tmp_path / "out")}) == 4


def test_rule_6_5_a_program_that_stops_the_session_itself(tmp_path: Path) -> None:
    program = script(tmp_path, SPANS + "spanprof.stop()")
    assert spans(spanprof_run(program, cwd=tmp_path).out)["outer"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "a script or -m module is missing"),
        (["run", "-m"], "a script or -m module is missing"),
        (["run", "--interval", "x", "x.py"], "invalid float value: 'x'"),
        (
            ["run", "--interval=-1", "x.py"],
            "report_interval must not be negative: -1.0",
        ),
        (["run", "--limit=-1", "x.py"], "argument --limit: must not be negative"),
        (["run", "--sort=weight", "x.py"], "invalid choice: 'weight'"),
        (["run", "--nonsense", "x.py"], "unrecognized arguments: --nonsense"),
        (["report"], "required: FILE|DIR"),
        (["nonsense"], "invalid choice: 'nonsense'"),
    ],
)
def test_bad_usage(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = run(*SPANPROF, *arguments, cwd=tmp_path)
    assert result.status == 2
    assert result.out == ""
    assert message.lower() in result.err.lower()


def test_a_bad_variable_is_named(tmp_path: Path) -> None:
    result = spanprof_run("x.py", cwd=tmp_path, SPANPROF_MAX_NODES="many")
    assert result.status == 2
    assert "SPANPROF_MAX_NODES must be an int, not 'many'" in result.err


def test_version_and_help(tmp_path: Path) -> None:
    version = run(*SPANPROF, "--version", cwd=tmp_path)
    assert version == Result(0, f"spanprof {spanprof.__version__}\n", "")
    help_text = run(*SPANPROF, "run", "--help", cwd=tmp_path)
    assert help_text.status == 0
    assert "--pprof DIR" in help_text.out
    nothing = run(*SPANPROF, cwd=tmp_path)
    assert nothing.status == 2


# --- report and diff ---------------------------------------------------------------


@pytest.fixture
def profiles(tmp_path: Path) -> Path:
    folder = tmp_path / "profiles"
    result = spanprof_run(
        "--all",
        "--label=user",
        "--pprof",
        folder,
        script(tmp_path, SPANS),
        cwd=tmp_path,
    )
    (tmp_path / "table").write_text(result.out.removeprefix("output of the program\n"))
    return folder


def test_report_prints_the_table_that_run_printed(
    profiles: Path, tmp_path: Path
) -> None:
    table = (tmp_path / "table").read_text()
    by_folder = run(*SPANPROF, "report", profiles, cwd=tmp_path)
    by_file = run(*SPANPROF, "report", *profiles.iterdir(), cwd=tmp_path)
    assert by_folder == by_file
    assert by_folder.status == 0
    # The first line tells the time: the files' ends a moment before the table's.
    assert by_folder.out.splitlines()[1:] == table.splitlines()[1:]


def test_report_options(profiles: Path, tmp_path: Path) -> None:
    report = (*SPANPROF, "report", profiles)
    written = run(*report, "--output=t", "--flat", "--sort=calls", cwd=tmp_path)
    assert written == Result(0, "", "")
    assert list(spans((tmp_path / "t").read_text()))[:2] == ["inner", "outer"]
    assert "(5 more" in run(*report, "--limit=1", cwd=tmp_path).out
    calls = next(path for path in profiles.iterdir() if ".calls." in path.name)
    assert spans(run(*SPANPROF, "report", calls, cwd=tmp_path).out)["all spans"] == 8


def test_report_of_what_is_no_profile(profiles: Path, tmp_path: Path) -> None:
    whole = next(profiles.iterdir())
    damaged = tmp_path / "damaged.pb.gz"
    damaged.write_bytes(whole.read_bytes()[:-20])
    text = script(tmp_path, "no profile")
    (tmp_path / "empty").mkdir()
    for argument, message in (
        (text, f"{text}: not a "),
        (damaged, f"{damaged}: not a "),
        ("missing", "missing: No such file or directory"),
        ("empty", "empty: no profiles (*.pb.gz) in this directory"),
    ):
        for command in (["report", whole, argument], ["diff", whole, argument]):
            result = run(*SPANPROF, *command, cwd=tmp_path)
            assert result.status == 1
            assert result.out == ""
            assert result.err.startswith(f"spanprof {command[0]}: {message}")
            assert result.err.count("\n") == 1


def test_report_into_a_closed_pipe(profiles: Path, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*SPANPROF, "report", str(profiles)],
        env=ENVIRONMENT,
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


def test_diff(profiles: Path, tmp_path: Path) -> None:
    more = SPANS.replace("range(3)", "range(5)").replace("'at exit'", "'at the end'")
    program = script(tmp_path, "\n# moved\n" + more)
    spanprof_run("--all", "--label=user", "--pprof=later", program, cwd=tmp_path)
    result = run(*SPANPROF, "diff", profiles, "later", "--sort=calls", cwd=tmp_path)
    assert result.status == 0
    assert result.err == ""
    rows = {
        line.split("  ")[0] if line[0] != " " else "  " + line.split()[0]: line
        for line in result.out.splitlines()
    }
    assert re.search(r"user=1 +2 +4 +\+2 +\+100% +\+1 ", rows["outer"])
    assert " new " in rows["at the end"]
    assert " gone " in rows["at exit"]
    assert re.search(r" 8 +12 +\+4 +\+50.0% ", rows["all spans"])
    same = run(*SPANPROF, "diff", profiles, profiles, cwd=tmp_path)
    assert "changed in nothing" in same.out
