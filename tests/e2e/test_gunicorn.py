"""A real server with workers that it forks, restarts and ends, under traffic.

Every worker's spans must arrive exactly once: a line of JSON each.
"""

import http.client
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import spanprof

pytest.importorskip("gunicorn")

APPLICATION = """
import os
import spanprof
from spanprof import span

class Lines(spanprof.Reporter):
    # One write a line, so that lines of several processes do not mix.
    def spans(self, batch):
        with open("spans.txt", "ab", buffering=0) as file:
            for each in batch:
                number = each.labels.get("number", "")
                file.write(f"{os.getpid()} {each.id} {each.name} {number}\\n".encode())

spanprof.start(track_all=True, report_interval=INTERVAL, record_labels=["number"],
               max_label_values=100_000, reporters=[Lines()])

with span("preload"):
    pass

def application(environ, start_response):
    with span("request", number=environ["QUERY_STRING"]):
        with span("work"):
            body = f"{os.getpid()}".encode()
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]
"""

# Of releases that have such a socket, which would lie in the user's home.
SETTINGS = "control_socket_disable = True\n"

WORKERS = 2


class Server:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.socket = directory / "socket"
        package = Path(spanprof.__file__).parent.parent
        self.log = (directory / "log").open("w")
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "gunicorn", "--preload", "--workers"),
                *(str(WORKERS), "--bind", f"unix:{self.socket}", "application"),
            ],
            cwd=directory,
            env=os.environ | {"PYTHONPATH": f"{package}:{directory}"},
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )
        wait_until(lambda: len(self.workers()) == WORKERS)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def workers(self) -> set[int]:
        """That are ready."""
        text = (self.directory / "log").read_text()
        lines = [line for line in text.splitlines() if "Booting worker" in line]
        return {int(line.rsplit(" ", 1)[1]) for line in lines}

    def end(self) -> None:
        self.signal(signal.SIGTERM)
        assert self.process.wait(60) == 0, (self.directory / "log").read_text()

    def spans(self) -> Counter[tuple[int, str, str]]:
        """By process, name and label. Ids are unique in a process."""
        lines = (self.directory / "spans.txt").read_text().splitlines()
        assert len({tuple(line.split(" ")[:2]) for line in lines}) == len(lines)
        fields = (line.split(" ") for line in lines)
        return Counter((int(pid), name, number) for pid, _, name, number in fields)


def wait_until(condition: object) -> None:
    assert callable(condition)
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.01)


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=60)
        self.path = str(path)

    def connect(self) -> None:
        import socket

        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(60)
        self.sock.connect(self.path)


class Traffic:
    """Requests from several threads until it is stopped, each with a number."""

    def __init__(self, server: Server, threads: int = 3) -> None:
        self.path = server.socket
        self.answered: list[tuple[int, str]] = []  # process and number
        self.over = threading.Event()
        self.threads = [
            threading.Thread(target=self.run, args=(n,)) for n in range(threads)
        ]
        for thread in self.threads:
            thread.start()

    def run(self, thread: int) -> None:
        number = 0
        while not self.over.is_set():
            number += 1
            name = f"{thread}-{number}"
            connection = UnixConnection(self.path)
            try:
                connection.request("GET", f"/?{name}")
                answer = connection.getresponse()
                body = answer.read()
                assert answer.status == 200
                self.answered.append((int(body), name))
            except (OSError, http.client.HTTPException):
                pass  # a worker that ends may close what it has not begun to answer
            finally:
                connection.close()

    def wait_for(self, more: int) -> None:
        target = len(self.answered) + more
        wait_until(lambda: len(self.answered) >= target)

    def stop(self) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join(60)
            assert not thread.is_alive()


@pytest.fixture(params=["10", "0.01"])
def server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Server]:
    code = APPLICATION.replace("INTERVAL", request.param)
    (tmp_path / "application.py").write_text(code)
    (tmp_path / "gunicorn.conf.py").write_text(SETTINGS)
    server = Server(tmp_path)
    yield server
    if server.process.poll() is None:
        server.process.terminate()
        server.process.wait(60)
    server.log.close()


def check(server: Server, traffic: Traffic) -> None:
    spans = server.spans()
    found = {key for key in spans if key[1] == "request"}
    answered = {(pid, "request", number) for pid, number in traffic.answered}
    assert len(answered) == len(traffic.answered)
    assert answered <= found, "what was answered is told"
    assert {spans[key] for key in found} == {1}
    for pid in {pid for pid, name, _ in found}:
        requests = sum(1 for key in found if key[0] == pid)
        assert spans[pid, "work", ""] == requests
    assert [key for key in spans if key[1] == "preload"] == [
        (server.process.pid, "preload", "")
    ], "what the parent did is the parent's"


def test_rule_6_6_sigterm_ends_all_with_everything_told(server: Server) -> None:
    traffic = Traffic(server)
    traffic.wait_for(300)
    traffic.stop()
    server.end()
    check(server, traffic)
    assert {pid for pid, _ in traffic.answered} == server.workers()


def test_rule_6_6_sigterm_under_traffic(server: Server) -> None:
    traffic = Traffic(server)
    traffic.wait_for(200)
    server.end()
    traffic.stop()
    check(server, traffic)


def test_rule_6_6_workers_restart_under_traffic(server: Server) -> None:
    traffic = Traffic(server)
    for number in range(2, 4):
        traffic.wait_for(100)
        server.signal(signal.SIGHUP)
        wait_until(lambda n=number: len(server.workers()) == n * WORKERS)
    traffic.wait_for(100)
    traffic.stop()
    server.end()
    check(server, traffic)
    assert len({pid for pid, _ in traffic.answered}) > WORKERS
