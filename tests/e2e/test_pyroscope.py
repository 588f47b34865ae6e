"""A Pyroscope server takes what we push, and tells the same totals.

Takes the first of: ``SPANPROF_PYROSCOPE`` (the path of a server's binary),
``pyroscope`` on PATH. Without either the tests are skipped, and say so. The server runs
on loopback, with ports and a folder of its own.
"""

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import spanprof
from spanprof import PProfReporter, PyroscopeBackend, span

APP = "shop/api-1.x"


def free_ports() -> tuple[int, int, int]:
    with (
        socket.create_server(("127.0.0.1", 0)) as a,
        socket.create_server(("127.0.0.1", 0)) as b,
        socket.create_server(("127.0.0.1", 0)) as c,
    ):
        first, second, third = (each.getsockname()[1] for each in (a, b, c))
        return first, second, third


class Pyroscope:
    def __init__(self, binary: str, folder: Path) -> None:
        self._binary = binary
        self._folder = folder
        self._ports = free_ports()
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"http://127.0.0.1:{self._ports[0]}"

    def start(self) -> None:
        http, grpc, memberlist = self._ports
        here = "127.0.0.1"
        stores = ("ring", "distributor.ring", "compactor.ring", "query-scheduler.ring")
        stores += ("overrides-exporter.ring", "store-gateway.sharding-ring")
        rings = ("distributor.ring", "compactor.ring", "query-scheduler.ring")
        rings += ("store-gateway.sharding-ring", "overrides-exporter.ring")
        options = {
            "target": "all",
            "config.show_banner": "false",
            "usage-stats.enabled": "false",
            "self-profiling.disable-push": "true",
            "server.http-listen-address": here,
            "server.http-listen-port": http,
            "server.grpc-listen-address": here,
            "server.grpc-listen-port": grpc,
            "memberlist.bind-addr": here,
            "memberlist.advertise-addr": here,
            "memberlist.bind-port": memberlist,
            "query-frontend.instance-addr": here,
            "ingester.lifecycler.addr": here,
            "ingester.min-ready-duration": "0s",
            "ingester.final-sleep": "0s",
            "storage.backend": "filesystem",
            "storage.filesystem.dir": self._folder / "blocks",
            "pyroscopedb.data-path": self._folder / "db",
            "compactor.data-dir": self._folder / "compactor",
            "blocks-storage.bucket-store.sync-dir": self._folder / "sync",
            **{f"{name}.store": "inmemory" for name in stores},
            **{f"{name}.instance-addr": here for name in rings},
        }
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    self._binary,
                    *(f"-{name}={value}" for name, value in options.items()),
                ],
                cwd=self._folder,
                stdout=log,
                stderr=log,
            )

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            assert self._process is not None
            assert self._process.poll() is None, (self._folder / "log").read_text()
            try:
                with urllib.request.urlopen(f"{self.url}/ready", timeout=5) as answer:
                    if answer.status == 200:
                        return
            except OSError:
                pass
            time.sleep(0.05)
        pytest.fail((self._folder / "log").read_text()[-5000:])

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(60)
            self._process = None

    def call(self, method: str, **arguments: object) -> Any:
        now = int(time.time() * 1000)
        body = {"start": now - 3_600_000, "end": now + 60_000, **arguments}
        request = urllib.request.Request(
            f"{self.url}/querier.v1.QuerierService/{method}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read())

    def totals(self, labels: str) -> dict[str, int]:
        """What it knows, by our names of the series."""
        found = {}
        for each in self.call("ProfileTypes").get("profileTypes", ()):
            graph = self.call(
                "SelectMergeStacktraces",
                profileTypeID=each["ID"],
                labelSelector=labels,
                maxNodes=16384,
            ).get("flamegraph", {})
            if int(graph.get("total", 0)):
                found[each["sampleType"]] = int(graph["total"])
        return found

    def label_values(self, name: str) -> set[str]:
        return set(self.call("LabelValues", name=name).get("names", ()))


@pytest.fixture
def pyroscope(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pyroscope]:
    binary = os.environ.get("SPANPROF_PYROSCOPE") or shutil.which("pyroscope")
    if not binary:
        pytest.skip("no Pyroscope: SPANPROF_PYROSCOPE is not set, none is on PATH")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Pyroscope(binary, tmp_path)
    server.start()
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.stop()


def work(kept: list[object]) -> None:
    for number in range(3):
        with span("outer", user=f"u{number % 2}"):
            sum(range(20_000))
            with span("inner"):
                kept.append(bytearray(1000))
                sum(range(10_000))


def nonzero(totals: dict[str, int]) -> dict[str, int]:
    return {name: value for name, value in totals.items() if value}


def test_totals_come_back(pyroscope: Pyroscope) -> None:
    backend = PyroscopeBackend(pyroscope.url, APP, {"env": "e2e test", "n": "ü=1"})
    kept: list[object] = []
    with spanprof.start(
        track_all=True,
        record_labels=["user"],
        report_interval=0,
        reporters=[PProfReporter(backend)],
    ) as session:
        work(kept)
    assert (backend.spooled, backend.last_error) == (0, None)
    assert backend.sent == 5
    expected = nonzero(session.result.totals)
    assert {"calls", "wall", "cpu", "alloc_space", "inuse_space"} <= set(expected)
    selector = f'{{service_name="{APP}",env="e2e test",n="ü=1"}}'
    assert pyroscope.totals(selector) == expected
    assert pyroscope.label_values("user") == {"u0", "u1"}
    assert pyroscope.label_values("pyroscope_spy") == {"spanprof"}


def test_nothing_is_lost_over_a_restart(
    pyroscope: Pyroscope, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reports go on while it is away and while it starts.

    There is none at the moment at which it is told to stop: it says that it has taken
    such a profile, and loses it now and then.
    """
    monkeypatch.setattr("spanprof.reporters.pyroscope._LONGEST_BACKOFF", 0.0)
    backend = PyroscopeBackend(pyroscope.url, APP)
    before = spanprof.stats()
    most = 0
    with spanprof.start(
        track_wall=True,
        track_cpu=True,
        track_allocations=True,
        report_interval=0,
        reporters=[PProfReporter(backend)],
    ) as session:

        def go_on(seconds: float) -> None:
            nonlocal most
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                work([])
                assert session.flush(30)
                most = max(most, backend.spooled)

        go_on(0.3)
        assert backend.sent > 0
        pyroscope.stop()
        go_on(0.3)
        pyroscope.start()
        go_on(0.5)
        pyroscope.wait_until_ready()
        go_on(0.5)
    assert most > 4, "there was an outage"
    backend.flush()
    assert backend.spooled == 0, backend.last_error
    after = spanprof.stats()
    for name in ("profiles_dropped", "profiles_refused", "write_failures"):
        assert after[name] == before[name], backend.last_error
    selector = f'{{service_name="{APP}"}}'
    assert pyroscope.totals(selector) == nonzero(session.result.totals)


def test_garbage_is_refused(pyroscope: Pyroscope) -> None:
    backend = PyroscopeBackend(pyroscope.url, APP)
    before = spanprof.stats().profiles_refused
    now = time.time_ns()
    backend.save_profile("wall", now - 10**9, now, b"no profile")
    assert spanprof.stats().profiles_refused == before + 1
    assert str(backend.last_error).startswith("422 ")
