"""Pushing to Pyroscope: what goes over the wire, and what becomes of failures.

The server here is a real one, on loopback, that answers as it is told to. A Pyroscope
server is in e2e.
"""

import base64
import email.parser
import email.policy
import email.utils
import json
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

import spanprof
from spanprof import PProfReporter, PyroscopeBackend, span
from spanprof.reporters import pyroscope

from . import pprof_file
from .helpers import ManualClock, in_threads, messages, run_python

SECRET = "s3cret-t0ken"
START = 1_700_000_000_123_456_789
END = 1_700_000_010_000_000_001

Reply = tuple[int, dict[str, str], str]


@dataclass
class Request:
    path: str
    query: dict[str, list[str]]
    headers: Any
    body: bytes

    @property
    def parts(self) -> dict[str, EmailMessage]:
        """The form, read by somebody else's parser."""
        head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        parser = email.parser.BytesParser(policy=email.policy.HTTP)
        message = parser.parsebytes(head + self.body)
        assert isinstance(message, EmailMessage)
        assert message.is_multipart()
        assert message.defects == []
        result = {}
        for part in message.iter_parts():
            assert isinstance(part, EmailMessage)
            name = part.get_param("name", header="content-disposition")
            assert isinstance(name, str)
            assert part.get_filename()
            result[name] = part
        return result

    @property
    def profile(self) -> bytes:
        data = self.parts["profile"].get_payload(decode=True)
        assert isinstance(data, bytes)
        return data


@dataclass
class Server:
    """Answers each request with the next of ``replies``, and then with ``default``."""

    replies: list[Reply] = field(default_factory=list)
    default: Reply = (200, {}, "")
    requests: list[Request] = field(default_factory=list)
    hang: threading.Event | None = None
    url: str = ""

    @property
    def profiles(self) -> list[bytes]:
        return [request.profile for request in self.requests]

    def answer(self, status: int, message: str = "", **headers: str) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.default = (status, named, message)


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            parts = urlsplit(self.path)
            body = self.rfile.read(int(self.headers["Content-Length"]))
            query = parse_qs(parts.query, strict_parsing=True)
            state.requests.append(Request(parts.path, query, self.headers, body))
            if state.hang is not None:
                state.hang.wait(20)
                return
            default = state.default
            status, headers, text = state.replies.pop(0) if state.replies else default
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def do_GET(self) -> None:  # a redirect that was followed
            state.requests.append(Request(self.path, {}, self.headers, b""))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    state.url = f"http://127.0.0.1:{httpd.server_port}"
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
    thread.start()
    yield state
    if state.hang is not None:
        state.hang.set()
    httpd.shutdown()
    thread.join()
    httpd.server_close()


class Time:
    """The backend's clock, moved by hand; a pause moves it as well."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.pauses: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1_000_000.0 + self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


@pytest.fixture
def manual(monkeypatch: pytest.MonkeyPatch) -> Time:
    clock = Time()
    monkeypatch.setattr(pyroscope, "time", clock)
    return clock


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")


class Counted:
    """What the counters have grown by."""

    def __init__(self) -> None:
        self._before = spanprof.stats()

    def __getattr__(self, name: str) -> int:
        grown = spanprof.stats()[name] - self._before[name]
        assert isinstance(grown, int)
        return grown


@pytest.fixture
def counted() -> Counted:
    return Counted()


def save(backend: PyroscopeBackend, *names: str) -> None:
    for name in names:
        backend.save_profile("wall", START, END, name.encode())


def closed_port() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


# --- what goes over the wire ----------------------------------------------------------

TYPES = {
    "calls": {"calls": "objects"},
    "wall": dict.fromkeys(("wall", "wall_busy", "wall_idle"), "nanoseconds"),
    "cpu": dict.fromkeys(("cpu", "cpu_system", "cpu_user"), "nanoseconds"),
    "alloc": {"alloc_objects": "objects", "alloc_space": "bytes"},
    "heap": {
        "inuse_objects": "objects",
        "inuse_space": "bytes",
        "inuse_peak_space": "bytes",
    },
}


@pytest.mark.parametrize("kind", TYPES)
def test_one_push(server: Server, kind: str) -> None:
    backend = PyroscopeBackend(server.url, "shop.api")
    data = bytes(range(256)) * 3 + b"\r\n--"
    backend.save_profile(kind, START, END, data)
    (request,) = server.requests
    assert request.path == "/ingest"
    assert request.query == {
        "name": ["shop.api"],
        "from": ["1700000000"],
        "until": ["1700000011"],  # no part of the profile is outside
        "spyName": ["spanprof"],
        "sampleRate": ["100"],
    }, "with format=pprof a server would take the form for the profile"
    assert request.headers["Content-Length"] == str(len(request.body))
    assert request.headers["User-Agent"] == "spanprof"
    assert request.headers["Authorization"] is None
    assert request.headers["X-Scope-OrgID"] is None
    assert set(request.parts) == {"profile", "sample_type_config"}
    assert request.profile == data
    config = json.loads(request.parts["sample_type_config"].get_payload(decode=True))
    assert config == {
        name: {
            "units": unit,
            "aggregation": "average" if kind == "heap" else "sum",
            "cumulative": False,
            "sampled": False,
        }
        for name, unit in TYPES[kind].items()
    }
    assert (backend.sent, backend.spooled, backend.last_error) == (1, 0, None)


@pytest.mark.parametrize("path", ["/a/prefix", "/a/prefix/"])
def test_a_url_with_a_path(server: Server, path: str) -> None:
    save(PyroscopeBackend(server.url + path, "app"), "x")
    assert server.requests[0].path == "/a/prefix/ingest"


def test_tags(server: Server) -> None:
    tags = {"region": "eu west-1", "env": "a=b&c#?", "_n": "ü"}
    save(PyroscopeBackend(server.url, "app", tags), "x")
    save(PyroscopeBackend(server.url, "app", {}), "x")
    names = [request.query["name"] for request in server.requests]
    assert names == [["app{_n=ü,env=a=b&c#?,region=eu west-1}"], ["app"]]


@pytest.mark.parametrize(
    ("auth", "header"),
    [
        (SECRET, f"Bearer {SECRET}"),
        (("u", SECRET), f"Basic {base64.b64encode(b'u:s3cret-t0ken').decode()}"),
        (("ü", ":"), f"Basic {base64.b64encode('ü::'.encode()).decode()}"),
    ],
    ids=["token", "password", "UTF-8"],
)
def test_auth_and_tenant(
    server: Server, auth: str | tuple[str, str], header: str
) -> None:
    save(PyroscopeBackend(server.url, "app", auth=auth, tenant="team-1|team-2"), "x")
    assert server.requests[0].headers["Authorization"] == header
    assert server.requests[0].headers["X-Scope-OrgID"] == "team-1|team-2"


@pytest.mark.parametrize("auth", [SECRET, ("user", SECRET)], ids=["token", "password"])
def test_credentials_are_never_shown(
    server: Server,
    manual: Time,
    caplog: pytest.LogCaptureFixture,
    auth: str | tuple[str, str],
) -> None:
    shown = []
    for url in (server.url, closed_port()):
        for status in (401, 503, 302):
            server.answer(status, "no", Location="/elsewhere")
            backend = PyroscopeBackend(url, "app", auth=auth)
            save(backend, "x")
            backend.flush()
            shown += [repr(backend), str(backend), str(backend.last_error)]
    text = "\n".join([*shown, caplog.text])
    assert len(messages(caplog)) >= 6
    encoded = base64.b64encode(f"user:{SECRET}".encode()).decode()
    assert SECRET not in text
    assert encoded not in text
    assert "Authorization" not in text


def test_redirects_are_not_followed(
    server: Server, caplog: pytest.LogCaptureFixture, counted: Counted
) -> None:
    for status in (301, 302, 303, 307, 308):
        server.answer(status, Location=f"{server.url}/elsewhere")
        save(PyroscopeBackend(server.url, "app", auth=SECRET), "x")
    assert [request.path for request in server.requests] == ["/ingest"] * 5
    assert counted.profiles_refused == 5
    assert "301 redirects are not followed" in messages(caplog)[0]


GOOD: dict[str, Any] = {"url": "http://host:4040/path", "app_name": "app"}


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("url", None, TypeError),
        ("url", b"http://host", TypeError),
        ("url", "", ValueError),
        ("url", "host:4040", ValueError),
        ("url", "ftp://host", ValueError),
        ("url", "http://", ValueError),
        ("url", "http://:4040", ValueError),
        ("url", "http://host:port", ValueError),
        ("url", "http://host:99999", ValueError),
        ("url", "http://[host", ValueError),
        ("url", "http://ho st", ValueError),
        ("url", "http://host/\r\nX: y", ValueError),
        ("url", "http://host/ü", ValueError),
        ("url", f"http://user:{SECRET}@host", ValueError),
        ("url", f"http://host/?token={SECRET}", ValueError),
        ("url", "http://host/?", ValueError),
        ("url", "http://host/#x", ValueError),
        ("app_name", None, TypeError),
        ("app_name", "", ValueError),
        ("app_name", "a b", ValueError),
        ("app_name", "a{b=c}", ValueError),
        ("app_name", "ü", ValueError),
        ("app_name", "app\n", ValueError),
        ("tags", "a=b", TypeError),
        ("tags", [("a", "b")], TypeError),
        ("tags", {1: "b"}, TypeError),
        ("tags", {"a": 1}, TypeError),
        ("tags", {"": "b"}, ValueError),
        ("tags", {"1a": "b"}, ValueError),
        ("tags", {"a.b": "c"}, ValueError),
        ("tags", {"a\n": "c"}, ValueError),
        ("tags", {"__name__": "b"}, ValueError),
        ("tags", {"a": ""}, ValueError),
        ("tags", {"a": "b,c=d"}, ValueError),
        ("tags", {"a": "b}"}, ValueError),
        ("tags", {"a": "b\nc"}, ValueError),
        ("tags", {"a": " b"}, ValueError),
        ("tags", {"a": "\ud800"}, ValueError),
        ("auth", 1, TypeError),
        ("auth", b"token", TypeError),
        ("auth", (SECRET,), TypeError),
        ("auth", (SECRET, None), TypeError),
        ("auth", "", ValueError),
        ("auth", f"{SECRET}\r\nX: y", ValueError),
        ("auth", f"{SECRET} ", ValueError),
        ("auth", (f"a:{SECRET}", "b"), ValueError),
        ("auth", ("a", f"{SECRET}\ud800"), ValueError),
        ("tenant", 1, TypeError),
        ("tenant", "", ValueError),
        ("tenant", "a\r\nX: y", ValueError),
        ("timeout", "1", TypeError),
        ("timeout", None, TypeError),
        ("timeout", True, TypeError),
        ("timeout", 0, ValueError),
        ("timeout", -1, ValueError),
        ("timeout", float("inf"), ValueError),
        ("max_spooled", 1.5, TypeError),
        ("max_spooled", -1, ValueError),
        ("ssl_context", True, TypeError),
    ],
    ids=ascii,
)
def test_bad_arguments(name: str, value: object, error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        PyroscopeBackend(**GOOD | {name: value})
    text = str(caught.value)
    assert text
    assert "\n" not in text
    assert SECRET not in text
    assert {"tags": "tag"}.get(name, name) in text
    cause = caught.value.__cause__
    assert cause is None or SECRET not in repr(cause)


def test_good_arguments() -> None:
    for url in ("https://host", "HTTP://host/", "http://[::1]:4040", "http://host"):
        PyroscopeBackend(url, "a/b-c.d_1")
    assert repr(PyroscopeBackend("HTTPS://Host/", "a")).startswith(
        "PyroscopeBackend('https://Host', "
    )
    backend = PyroscopeBackend(**GOOD)
    assert repr(backend) == "PyroscopeBackend('http://host:4040/path', 'app')"


# --- failures -------------------------------------------------------------------------


def test_rule_7_4_a_failed_push_is_tried_again(
    server: Server, manual: Time, counted: Counted, caplog: pytest.LogCaptureFixture
) -> None:
    server.replies = [(500, {}, ""), (502, {}, "")]
    backend = PyroscopeBackend(server.url, "app")
    save(backend, "a")
    assert server.profiles == [b"a"] * 3
    assert manual.pauses == sorted(manual.pauses), "the pauses grow"
    assert 0 < sum(manual.pauses) < 1
    assert counted.write_retries == 2
    assert (backend.sent, backend.spooled) == (1, 0)
    assert messages(caplog) == []


def test_rule_7_4_what_cannot_be_sent_waits_and_goes_first(
    server: Server, manual: Time, counted: Counted, caplog: pytest.LogCaptureFixture
) -> None:
    server.answer(502)
    backend = PyroscopeBackend(server.url, "app")
    save(backend, "a", "b", "c")
    assert server.profiles == [b"a"] * 3, "one that is known to be down is left alone"
    assert (backend.spooled, backend.spooled_bytes) == (3, 3)
    server.requests.clear()
    server.answer(200)
    manual.now += 1
    save(backend, "d")
    assert server.profiles == [b"a", b"b", b"c", b"d"]
    assert (backend.sent, backend.spooled, backend.spooled_bytes) == (4, 0, 0)
    assert counted.profiles_dropped == counted.profiles_refused == 0
    (message,) = messages(caplog)
    assert "takes no profiles: 502" in message
    # It is up again: patience as at first.
    server.requests.clear()
    server.answer(502)
    save(backend, "e")
    assert server.profiles == [b"e"] * 3


def test_the_times_between_tries_grow(server: Server, manual: Time) -> None:
    server.answer(502)
    backend = PyroscopeBackend(server.url, "app")
    save(backend, "x")
    began, tries = manual.now, []
    server.requests.clear()
    for _ in range(400):
        manual.now += 0.5
        save(backend, "x")
        if server.requests:
            assert len(server.requests) == 1, "one try per report"
            tries.append(manual.now - began)
            server.requests.clear()
    assert tries == [1, 3, 7, 15, 31, 63, 123, 183]


def test_rule_7_4_the_spool_is_bounded(
    server: Server, manual: Time, counted: Counted, caplog: pytest.LogCaptureFixture
) -> None:
    server.answer(503)
    backend = PyroscopeBackend(server.url, "app", max_spooled=10)
    save(backend, "aaaa", "bbbb", "cc")
    assert (backend.spooled, backend.spooled_bytes) == (3, 10)
    assert counted.profiles_dropped == 0
    save(backend, "d")
    assert (backend.spooled, backend.spooled_bytes) == (3, 7)
    save(backend, "eeeeeeee")
    assert counted.profiles_dropped == 3
    assert (backend.spooled, backend.spooled_bytes) == (2, 9)
    save(backend, "f" * 11)
    assert counted.profiles_dropped == 6
    assert (backend.spooled, backend.spooled_bytes) == (0, 0)
    save(backend, "g", "h")
    dropped = [each for each in messages(caplog) if "dropped" in each]
    assert len(dropped) == 1, "a few a minute"
    assert "more than 10 bytes wait" in dropped[0]
    server.requests.clear()
    server.answer(200)
    manual.now += 1000
    save(backend, "i" * 100)
    assert server.profiles == [b"g", b"h", b"i" * 100], "one that is too large for it"
    assert counted.profiles_dropped == 6


def test_no_spool_at_all(server: Server, manual: Time, counted: Counted) -> None:
    server.answer(503)
    backend = PyroscopeBackend(server.url, "app", max_spooled=0)
    save(backend, "a")
    assert (backend.spooled, counted.profiles_dropped) == (0, 1)
    server.answer(200)
    manual.now += 1
    save(backend, "b")
    assert server.profiles[-1] == b"b"
    assert (backend.sent, counted.profiles_dropped) == (1, 1)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 415, 422])
def test_rule_7_4_what_is_refused_is_not_sent_again(
    server: Server,
    manual: Time,
    counted: Counted,
    caplog: pytest.LogCaptureFixture,
    status: int,
) -> None:
    server.answer(status, "the\nserver's\0 words " + "x" * 1000)
    backend = PyroscopeBackend(server.url, "app")
    save(backend, "a", "b")
    assert server.profiles == [b"a", b"b"]
    assert counted.profiles_refused == 2
    assert counted.write_retries == counted.profiles_dropped == 0
    assert (backend.sent, backend.spooled) == (0, 0)
    (message,) = messages(caplog)
    words = "the server's? words " + "x" * 180
    assert message.endswith(f"has refused a wall profile: {status} {words}")
    assert backend.last_error == f"{status} {words}"
    server.answer(200)
    save(backend, "c")
    assert backend.sent == 1, "it is not down"


def test_labels_that_look_like_an_outage(server: Server, counted: Counted) -> None:
    labels = "resource_exhausted: unavailable: empty ring, at least 1 live replicas"
    server.answer(422, f"pushing IngestInput-pprof failed invalid_argument: {labels}")
    save(PyroscopeBackend(server.url, "app"), "a")
    assert counted.profiles_refused == 1


@pytest.mark.parametrize(
    "text",
    [
        "pushing IngestInput-pprof failed unknown: at least 1 live replicas required, "
        "could only find 0",
        "pushing IngestInput-pprof failed unknown: empty ring",
        "pushing IngestInput-pprof failed resource_exhausted: push rate limit (0 B) "
        "exceeded while adding 70 KiB",
    ],
)
def test_a_server_that_is_starting_or_stopping_or_full(
    server: Server, manual: Time, counted: Counted, text: str
) -> None:
    """Pyroscope answers 422 then."""
    server.answer(422, f'{{"code":"unknown","message":"{text}"}}')
    backend = PyroscopeBackend(server.url, "app")
    save(backend, "a")
    assert len(server.requests) == 1
    assert (backend.spooled, counted.profiles_refused) == (1, 0)
    server.answer(200)
    manual.now += 1
    save(backend, "b")
    assert server.profiles == [b"a", b"a", b"b"]


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("20", 20),
        (" 20 ", 20),
        ("0", 1),
        ("100000", 300),
        ("9" * 5000, 300),
        ("soon", 1),
        ("-5", 1),
        ("", 1),
        (email.utils.formatdate(1_000_000 + 1000 + 50, usegmt=True), 50),
        (email.utils.formatdate(1, usegmt=True), 1),
        (email.utils.formatdate(10**10, usegmt=True), 300),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
def test_retry_after(
    server: Server, manual: Time, status: int, header: str, seconds: float
) -> None:
    server.answer(status, Retry_After=header)
    backend = PyroscopeBackend(server.url, "app")
    save(backend, "a")
    assert len(server.requests) == 1, "not at once"
    assert manual.pauses == []
    manual.now += seconds - 0.1
    save(backend, "b")
    if seconds > 1:
        backend.flush()
    assert len(server.requests) == 1
    server.answer(200)
    manual.now += 0.2
    save(backend, "c")
    assert server.profiles[1:] == [b"a", b"b", b"c"]


def test_one_profile_that_the_server_cannot_digest(
    server: Server, manual: Time, counted: Counted, caplog: pytest.LogCaptureFixture
) -> None:
    """It does not stand in the way of the others for good."""
    server.answer(500, "panic")
    backend = PyroscopeBackend(server.url, "app")
    save(backend, "bad", "good")
    for _ in range(3):
        manual.now += 100
        save(backend)
        backend.save_profile("wall", START, END, b"good")
    assert counted.profiles_dropped == 0
    manual.now += 100
    save(backend, "good")
    assert counted.profiles_dropped == 1
    assert "5 times the answer was 500 panic" in messages(caplog)[-1]
    server.answer(200)
    server.requests.clear()
    manual.now += 100
    save(backend, "good")
    assert server.profiles == [b"good"] * 6


def test_an_outage_gives_no_profile_up(
    server: Server, manual: Time, counted: Counted
) -> None:
    backend = PyroscopeBackend(server.url, "app")
    for status in (502, 503, 504, 429) * 5:
        server.answer(status)
        save(backend, "x")
        manual.now += 1000
    assert (backend.spooled, counted.profiles_dropped) == (20, 0)


def test_a_port_that_nobody_listens_on(manual: Time, counted: Counted) -> None:
    backend = PyroscopeBackend(closed_port(), "app")
    save(backend, "a")
    assert str(backend.last_error).startswith("ConnectionRefusedError: ")
    assert (backend.spooled, counted.write_retries) == (1, 2)


def test_a_host_that_does_not_exist(manual: Time) -> None:
    backend = PyroscopeBackend("http://host.invalid", "app")
    save(backend, "a")
    assert backend.last_error
    assert backend.spooled == 1


@pytest.mark.parametrize("answer", [b"", b"nonsense\r\n\r\n"])
def test_answers_that_are_none(manual: Time, answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for _ in range(3):
                connection, _ = listener.accept()
                with connection:
                    connection.recv(100_000)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        backend = PyroscopeBackend(
            f"http://127.0.0.1:{listener.getsockname()[1]}", "app", timeout=5
        )
        save(backend, "a")
        thread.join(10)
    assert not thread.is_alive(), "three tries"
    assert (backend.sent, backend.spooled) == (0, 1)


# --- servers that hang ----------------------------------------------------------------


def test_a_server_that_hangs_is_tried_once(
    server: Server, counted: Counted, caplog: pytest.LogCaptureFixture
) -> None:
    server.hang = threading.Event()
    backend = PyroscopeBackend(server.url, "app", timeout=1.1)
    began = time.monotonic()
    save(backend, "a", "b", "c")
    backend.flush()
    taken = time.monotonic() - began
    assert 1 < taken < 10
    assert (backend.spooled, counted.write_retries) == (3, 0)
    assert "no answer within 1.1 s" in messages(caplog)[0]
    assert len(server.requests) == 1, "not three times"


def test_a_server_that_still_hangs_is_tried_quickly_at_first(
    server: Server, manual: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    def no_answer(
        self: PyroscopeBackend, profile: object, timeout: float
    ) -> pyroscope._Answer:
        asked.append(timeout)
        manual.now += timeout
        return pyroscope._Answer(0, "no answer")

    monkeypatch.setattr(PyroscopeBackend, "_push", no_answer)
    backend = PyroscopeBackend(server.url, "app", timeout=15)
    for _ in range(6):
        save(backend, "a")
        manual.now += 100
    backend.flush()
    assert asked == [15, 2, 4, 8, 15, 15, 2], "one that is only slow is not given up"


def test_rule_6_5_a_stop_is_not_held_up_by_a_server_that_hangs(server: Server) -> None:
    server.hang = threading.Event()
    backend = PyroscopeBackend(server.url, "app", timeout=0.3)
    began = time.monotonic()
    with (
        spanprof.start(track_all=True, reporters=[PProfReporter(backend)]),
        span("a"),
    ):
        pass
    assert time.monotonic() - began < 10
    assert len(server.requests) == 1, "one try, for all of them"
    assert backend.spooled == 5


def test_a_slow_server_is_not_sent_everything_at_once(
    server: Server, manual: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reporter thread, and a stop, do not wait for a long spool."""
    server.answer(502)
    backend = PyroscopeBackend(server.url, "app")
    save(backend, *"abcdefghij")
    server.answer(200)
    server.requests.clear()
    push = PyroscopeBackend._push

    def slow(self: PyroscopeBackend, profile: Any, timeout: float) -> pyroscope._Answer:
        manual.now += 0.4
        return push(self, profile, timeout)

    monkeypatch.setattr(PyroscopeBackend, "_push", slow)
    manual.now += 100
    save(backend, "k")
    assert b"".join(server.profiles) == b"abc"
    backend.flush()
    assert b"".join(server.profiles) == b"abcdefghijk"


# --- sessions -------------------------------------------------------------------------


def test_every_kind_arrives(clock: ManualClock, server: Server) -> None:
    backend = PyroscopeBackend(server.url, "app")
    with (
        spanprof.start(track_all=True, reporters=[PProfReporter(backend)]) as session,
        span("a"),
    ):
        clock(10, 3)
        kept = bytearray(1000)
    files = [pprof_file.read(profile) for profile in server.profiles]
    found = {
        name: sum(sample.values[place] for sample in file.samples)
        for file in files
        for place, (name, _) in enumerate(file.sample_types)
    }
    assert found == session.result.totals
    del kept


def test_rule_7_4_the_reporter_is_told_no_failure(
    server: Server, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answer(503)
    reporter = PProfReporter(PyroscopeBackend(server.url, "app"))
    with spanprof.start(track_wall=True, reporters=[reporter]), span("a"):
        pass
    assert (reporter.written, reporter.lost, reporter.last_error) == (2, 0, None)
    assert counted.write_failures == counted.reporter_errors == 0


def test_what_is_left_at_the_end_is_told_and_goes_with_the_next_session(
    server: Server, manual: Time, caplog: pytest.LogCaptureFixture
) -> None:
    server.answer(503)
    backend = PyroscopeBackend(server.url, "app")
    reporter = PProfReporter(backend)
    with spanprof.start(reporters=[reporter]), span("a"):
        pass
    size = backend.spooled_bytes
    text = f"1 profiles ({size} bytes) wait for {backend!r}, and are lost if the "
    assert text in messages(caplog)[-1]
    server.answer(200)
    server.requests.clear()
    manual.now += 1
    with spanprof.start(reporters=[reporter]), span("b"):
        pass
    functions = [pprof_file.read(each).functions[0][0] for each in server.profiles]
    assert [name.rpartition("::")[2] for name in functions] == ["a", "b"]
    assert backend.spooled == 0


def test_a_flush_does_not_wait_for_the_next_try(server: Server, manual: Time) -> None:
    server.answer(502)
    backend = PyroscopeBackend(server.url, "app")
    backend.flush()
    assert server.requests == []
    save(backend, "a")
    for _ in range(4):
        manual.now += 100
        save(backend, "a")
    server.requests.clear()
    backend.flush()
    assert server.requests == [], "it has just been tried"
    manual.now += 2
    save(backend, "b")
    assert server.requests == [], "nor is it due yet"
    server.answer(200)
    backend.flush()
    assert server.profiles == [b"a"] * 5 + [b"b"]


def test_the_hooks_of_a_backend() -> None:
    seen: list[str] = []

    class Hooked:
        def init(self) -> None:
            seen.append("init")

        def save_profile(self, kind: str, start: int, end: int, data: bytes) -> None:
            seen.append(kind)

        def flush(self) -> None:
            seen.append("flush")

    reporter = PProfReporter(Hooked())
    with spanprof.start(reporters=[reporter], report_interval=0.01):
        with span("a"):
            pass
        deadline = time.monotonic() + 10
        while "calls" not in seen and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        assert seen == ["init", "calls"], "not at every report"
        spanprof.flush()
        assert seen == ["init", "calls", "flush"]
        with span("a"):
            pass
    assert seen == ["init", "calls", "flush", "calls", "flush"]


def test_from_several_threads(server: Server) -> None:
    backend = PyroscopeBackend(server.url, "app")
    in_threads(4, lambda number: [save(backend, f"{number}{n}") for n in range(10)])
    expected = sorted(f"{m}{n}".encode() for m in range(4) for n in range(10))
    assert sorted(server.profiles) == expected
    assert backend.sent == 40


def test_certificates_are_checked(manual: Time) -> None:
    """Nothing is sent to whoever answers on an https port without a certificate."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        got: list[bytes] = []

        def serve() -> None:
            for _ in range(3):
                connection, _ = listener.accept()
                with connection:
                    got.append(connection.recv(100_000))
                    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        backend = PyroscopeBackend(url, "app", auth=SECRET, timeout=5)
        save(backend, "a")
        thread.join(10)
    assert len(got) == 3
    assert SECRET.encode() not in b"".join(got)
    assert "SSL" in str(backend.last_error)
    assert (backend.sent, backend.spooled) == (0, 1)


def test_https(tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl to make a certificate with")
    key, certificate = tmp_path / "key", tmp_path / "certificate"
    command = f"{openssl} req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost"
    command += f" -addext subjectAltName=DNS:localhost -keyout {key} -out {certificate}"
    subprocess.run(command.split(), check=True, capture_output=True)
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs.load_cert_chain(certificate, key)
    got: list[bytes] = []

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with theirs.wrap_socket(connection, server_side=True) as secured:
            while not b"".join(got).endswith(b"--\r\n"):
                got.append(secured.recv(100_000))
                assert got[-1], "the request is not whole"
            secured.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        backend = PyroscopeBackend(
            f"https://localhost:{listener.getsockname()[1]}",
            "app",
            auth=SECRET,
            timeout=10,
            ssl_context=ssl.create_default_context(cafile=certificate),
        )
        save(backend, "a")
        thread.join(10)
    assert backend.sent == 1, backend.last_error
    assert f"Authorization: Bearer {SECRET}".encode() in b"".join(got)


def test_a_proxy(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", server.url)
    backend = PyroscopeBackend("http://pyroscope.invalid:4040/prefix", "app")
    save(backend, "a")
    assert backend.sent == 1, backend.last_error
    assert server.requests[0].path == "/prefix/ingest"
    assert server.requests[0].headers["Host"] == "pyroscope.invalid:4040"


# --- fork -----------------------------------------------------------------------------

FORK = """
import os, spanprof, sys
from spanprof import PProfReporter, PyroscopeBackend, span
from spanprof.reporters import pyroscope

pyroscope._PAUSES = ()
pyroscope._FIRST_BACKOFF = 0.0
backend = PyroscopeBackend(sys.argv[1], "app")
session = spanprof.start(reporters=[PProfReporter(backend)], report_interval=0)
with span("before"): pass
session.flush()
assert backend.spooled == 1
read, write = os.pipe()
pid = os.fork()
if pid == 0:
    backend._name = "child"
    with span("in the child"): pass
    assert session.stop(30)
    assert backend.spooled == 0, backend.last_error
    assert backend.sent == 1
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
assert backend.spooled == 1
with span("in the parent"): pass
assert session.stop(30)
assert (backend.spooled, backend.sent) == (0, 2), backend.last_error
"""


def test_rule_6_6_a_child_does_not_send_what_its_parent_keeps(
    server: Server, tmp_path: Path
) -> None:
    # One refusal at the first report, one at the flush that belongs to it.
    server.replies = [(503, {}, "")] * 2
    run_python(FORK, server.url, cwd=tmp_path)
    sent = [
        (
            request.query["name"][0],
            pprof_file.read(request.profile).functions[0][0].rpartition("::")[2],
        )
        for request in server.requests
    ]
    assert sent == [
        ("app", "before"),
        ("app", "before"),
        ("child", "in the child"),
        ("app", "before"),
        ("app", "in the parent"),
    ]


def test_rule_6_6_a_fork_during_a_push(server: Server, tmp_path: Path) -> None:
    """The lock is held by a thread that the child does not have."""
    server.hang = threading.Event()
    code = """
import os, sys, threading, time, warnings
from spanprof import PyroscopeBackend

warnings.simplefilter("ignore")
backend = PyroscopeBackend(sys.argv[1], "app", timeout=1)
thread = threading.Thread(target=backend.save_profile, args=("wall", 1, 2, b"x"))
thread.start()
while not backend._lock.locked(): pass
time.sleep(0.1)
pid = os.fork()
if pid == 0:
    backend._push = lambda *_: type(backend)._push.__globals__["_Answer"](200)
    backend.save_profile("wall", 1, 2, b"y")
    os._exit(0 if (backend.sent, backend.spooled) == (1, 0) else 1)
thread.join()
deadline = time.monotonic() + 10
while time.monotonic() < deadline:
    done, status = os.waitpid(pid, os.WNOHANG)
    if done:
        sys.exit(status)
    time.sleep(0.01)
os.kill(pid, 9)
sys.exit(3)
"""
    run_python(code, server.url, cwd=tmp_path)


def test_importing_it_is_quick(tmp_path: Path) -> None:
    code = """
import spanprof, sys
spanprof.PyroscopeBackend
print(sorted({"urllib.request", "http.client", "ssl", "json"} & set(sys.modules)))
"""
    assert run_python(code, cwd=tmp_path).stdout == "[]\n"
