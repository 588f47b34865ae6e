"""The reporter thread: when it reports, what, and that nobody waits for ever."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from .binding import SECOND, START_RUNNING, STARTED, Core, Profile

NOTHING, HANG, FLUSH, STOP, SNAPSHOT, SPAN = range(6)
MILLISECOND = 1_000_000


class Host:
    def __init__(self, core: Core, deed: int) -> None:
        self.core = core
        self.pointer = core.lib.spt_host_new(deed, 0)

    def start(self, interval: int = 0, want_profile: bool = True) -> int:
        return int(self.core.lib.spt_host_start(self.pointer, interval, want_profile))

    def seen(self, what: str) -> int:
        return int(self.core.lib.spt_host_seen(self.pointer, what.encode()))

    def wait(self, what: str, count: int, limit: float = 10) -> None:
        until = time.monotonic() + limit
        while self.seen(what) < count:
            assert time.monotonic() < until, f"{what} stays {self.seen(what)}"
            time.sleep(0.001)

    def sum(self) -> Profile:
        return Profile(self.core, self.core.lib.spt_host_sum(self.pointer))

    def let_go(self) -> None:
        self.core.lib.spt_host_release(self.pointer)


@pytest.fixture
def new_host(core: Core) -> Iterator[Callable[[int], Host]]:
    hosts: list[Host] = []

    def make(deed: int = NOTHING) -> Host:
        hosts.append(Host(core, deed))
        return hosts[-1]

    yield make
    for host in hosts:
        host.let_go()
    core.stop()
    for host in hosts:
        if host.seen("begun"):
            host.wait("ended", 1)


def stop(core: Core, timeout: int) -> tuple[bool, Profile]:
    final = core.ffi.new("struct sp_profile **")
    done = core.lib.sp_stop(timeout, final)
    return done, Profile(core, final[0])


def test_rule_6_2_stop_reports_once_more_and_last(
    core: Core, new_host: Callable[[int], Host]
) -> None:
    host = new_host(NOTHING)
    assert host.start() == STARTED
    thread = core.thread()
    with thread.span("a"):
        core.run(thread, 10)
    done, final = stop(core, -1)
    assert done
    assert host.seen("begun") == host.seen("ended") == host.seen("lasts") == 1
    assert host.seen("after_last") == host.seen("concurrent") == 0
    assert host.sum().nodes() == final.nodes()


def test_rule_6_2_after_a_flush_nothing_is_held_back(
    core: Core, new_host: Callable[[int], Host]
) -> None:
    host = new_host(NOTHING)
    host.start()
    thread = core.thread()
    for n in range(1, 20):
        with thread.span(f"a{n % 3}"):
            core.run(thread, n)
            assert core.lib.sp_flush(-1)
            assert host.sum().nodes() == core.snapshot().nodes()
        assert host.seen("reports") == n
    stop(core, -1)
    assert host.seen("reports") == 20


def test_rule_5_3_reports_come_at_every_interval(
    core: Core, new_host: Callable[[int], Host]
) -> None:
    host = new_host(NOTHING)
    host.start(interval=5 * MILLISECOND)
    thread = core.thread()
    thread.begin("a")
    core.run(thread, 10)
    host.wait("reports", 3)
    assert host.sum().by_name()["a"]["wall_busy"] == 10


def test_an_interval_of_zero_reports_only_when_asked(
    core: Core, new_host: Callable[[int], Host]
) -> None:
    host = new_host(NOTHING)
    host.start()
    host.wait("begun", 1)
    time.sleep(0.05)
    assert host.seen("reports") == 0


def test_a_host_that_wants_no_profile_gets_none(
    core: Core, new_host: Callable[[int], Host]
) -> None:
    host = new_host(NOTHING)
    host.start(want_profile=False)
    thread = core.thread()
    with thread.span("a"):
        core.run(thread, 10)
    core.lib.sp_flush(-1)
    _, final = stop(core, -1)
    assert host.seen("without_profile") == host.seen("reports") == 2
    assert final.by_name()["a"]["wall_busy"] == 10


def test_rule_6_5_a_hanging_host_delays_a_stop_by_its_timeout_only(
    core: Core, new_host: Callable[[int], Host]
) -> None:
    host = new_host(HANG)
    host.start()
    thread = core.thread()
    with thread.span("a"):
        core.run(thread, 10)
    began = time.monotonic()
    done, final = stop(core, 50 * MILLISECOND)
    took = time.monotonic() - began
    assert not done
    assert 0.05 <= took < 5
    assert not core.running
    assert final.by_name()["a"]["wall_busy"] == 10
    # It goes on alone, and the next session does not wait for it.
    other = new_host(NOTHING)
    assert other.start() == STARTED
    with thread.span("b"):
        core.run(thread, 1)
    assert stop(core, -1)[0]
    assert set(other.sum().by_name()) == {"b"}
    assert host.seen("ended") == 0
    host.let_go()
    host.wait("ended", 1)
    assert host.seen("lasts") == 1
    assert host.sum().nodes() == final.nodes()


def test_rule_6_5_a_stop_that_may_not_wait_does_not(
    core: Core, new_host: Callable[[int], Host]
) -> None:
    host = new_host(HANG)
    host.start()
    began = time.monotonic()
    assert not stop(core, 0)[0]
    assert time.monotonic() - began < 5


def test_a_flush_gives_up_after_its_timeout(
    core: Core, new_host: Callable[[int], Host]
) -> None:
    host = new_host(HANG)
    host.start()
    began = time.monotonic()
    assert not core.lib.sp_flush(20 * MILLISECOND)
    assert 0.02 <= time.monotonic() - began < 5
    host.let_go()
    assert core.lib.sp_flush(10 * SECOND)


def test_a_flush_waits_for_a_report_that_began_after_it(
    core: Core, new_host: Callable[[int], Host]
) -> None:
    # A report is under way when the flush comes: its values are older than the call.
    host = new_host(HANG)
    host.start()
    thread = core.thread()
    assert not core.lib.sp_flush(0)
    host.wait("reports", 1)
    with thread.span("late"):
        core.run(thread, 10)
    waiting = threading.Timer(0.05, host.let_go)
    waiting.start()
    assert core.lib.sp_flush(10 * SECOND)
    waiting.join()
    assert host.sum().by_name()["late"]["wall_busy"] == 10
    assert host.seen("reports") == 2


def test_a_flush_ends_when_the_session_is_stopped(
    core: Core, new_host: Callable[[int], Host]
) -> None:
    host = new_host(HANG)
    host.start()
    results: list[bool] = []
    flusher = threading.Thread(target=lambda: results.append(core.lib.sp_flush(-1)))
    flusher.start()
    host.wait("reports", 1)
    assert not stop(core, 0)[0]
    host.let_go()
    flusher.join(10)
    assert results == [True]


@pytest.mark.parametrize("deed", [FLUSH, SNAPSHOT])
def test_a_host_may_flush_and_read(
    core: Core, new_host: Callable[[int], Host], deed: int
) -> None:
    host = new_host(deed)
    host.start()
    assert core.lib.sp_flush(10 * SECOND)
    assert host.seen("deed_result") >= 1
    assert stop(core, 10 * SECOND)[0]


def test_a_host_may_stop(core: Core, new_host: Callable[[int], Host]) -> None:
    host = new_host(STOP)
    host.start()
    thread = core.thread()
    with thread.span("a"):
        core.run(thread, 10)
    assert core.lib.sp_flush(10 * SECOND)
    host.wait("ended", 1)
    assert not core.running
    assert host.seen("lasts") == 1
    assert host.seen("after_last") == 0
    assert host.sum().by_name()["a"]["wall_busy"] == 10


def test_rule_6_7_spans_on_the_reporter_thread_are_not_recorded(
    core: Core, new_host: Callable[[int], Host]
) -> None:
    host = new_host(SPAN)
    host.start()
    assert core.lib.sp_flush(10 * SECOND)
    assert host.seen("deed_result") == 1


def test_the_reporter_thread_takes_no_signals(
    core: Core, new_host: Callable[[int], Host]
) -> None:
    host = new_host(NOTHING)
    host.start()
    host.wait("begun", 1)
    assert host.seen("unblocked_signals") == 0


def test_rule_3_8_a_second_start_leaves_the_first_alone(
    core: Core, new_host: Callable[[int], Host]
) -> None:
    first, second = new_host(NOTHING), new_host(NOTHING)
    first.start()
    assert second.start() == START_RUNNING
    assert core.lib.sp_flush(-1)
    assert (first.seen("reports"), second.seen("begun")) == (1, 0)


def test_without_a_session_there_is_nothing_to_wait_for(core: Core) -> None:
    final = core.ffi.new("struct sp_profile **")
    assert core.lib.sp_flush(-1)
    assert core.lib.sp_stop(-1, final)
    assert final[0] == core.ffi.NULL
    assert core.lib.sp_snapshot() == core.ffi.NULL


def test_a_session_without_a_host(core: Core) -> None:
    core.start()
    assert core.lib.sp_flush(-1)
    assert stop(core, -1)[0]


def test_many_sessions_one_after_another(
    core: Core, new_host: Callable[[int], Host]
) -> None:
    thread = core.thread()
    for n in range(100):
        host = new_host(NOTHING)
        assert host.start(interval=MILLISECOND) == STARTED
        with thread.span("a"):
            core.run(thread, n + 1)
        done, final = stop(core, -1)
        assert done
        assert final.by_name()["a"]["wall_busy"] == n + 1
        assert host.sum().nodes() == final.nodes()


def start_fed(
    host: Host,
    limit: int = 1000,
    spans: bool = True,
    updates: bool = True,
    interval: int = 0,
) -> None:
    host.core.feed_limit(limit)
    start = host.core.lib.spt_host_start_fed
    assert start(host.pointer, interval, spans, updates) == STARTED


@pytest.fixture
def fed(core: Core) -> Iterator[Core]:
    """Hosts may listen to single spans in it."""
    yield core
    core.feed_limit(0)


@pytest.mark.parametrize("spans", [True, False])
def test_rule_6_1_single_spans_are_told_created_then_values_then_destroyed(
    fed: Core, new_host: Callable[[int], Host], spans: bool
) -> None:
    host = new_host(NOTHING)
    start_fed(host, spans=spans)
    thread = fed.thread()
    with thread.span("a"):
        fed.run(thread, 10)
        assert fed.lib.sp_flush(-1)
        assert (host.seen("created"), host.seen("destroyed")) == (1, 0)
        assert host.seen("told_busy") == 10, "5.3: a long one at every report"
        fed.run(thread, 5)
    assert fed.lib.sp_flush(-1)
    assert (host.seen("created"), host.seen("destroyed")) == (1, 1)
    assert host.seen("told_busy") == 15
    assert (host.seen("spans"), host.seen("busy")) == ((1, 15) if spans else (0, 0))
    thread.begin("open at the end")
    fed.run(thread, 1)
    assert stop(fed, -1)[0]
    assert (host.seen("created"), host.seen("destroyed")) == (2, 2)
    assert host.seen("told_busy") == 16
    assert host.seen("disorder") == 0


def test_rule_5_8_spans_are_taken_before_there_is_no_room_for_more(
    fed: Core, new_host: Callable[[int], Host]
) -> None:
    """Nobody flushes, and no report is due."""
    host = new_host(NOTHING)
    start_fed(host, limit=64, updates=False)
    thread, dropped = fed.thread(), fed.stat("spans_dropped")
    for begun in range(20, 400, 20):
        for _ in range(20):
            thread.exit(thread.begin("a"))
        host.wait("spans", begun - 33)  # half of the ring may wait
    assert stop(fed, -1)[0]
    assert host.seen("spans") == 380
    assert host.seen("reports") == 1
    assert fed.stat("spans_dropped") == dropped


def test_rule_5_8_a_ring_is_looked_at_if_its_word_did_not_get_through(
    fed: Core, new_host: Callable[[int], Host]
) -> None:
    """A thread that finds the lock taken goes on."""
    host = new_host(NOTHING)
    start_fed(host, limit=64, updates=False)
    thread = fed.thread()
    fed.lib.sp_collector_lock()
    try:
        for _ in range(40):
            thread.exit(thread.begin("a"))
        assert host.seen("spans") == 0
    finally:
        fed.lib.sp_collector_unlock()
    host.wait("spans", 40)


@pytest.mark.parametrize("interval", [5, 50])
def test_rule_5_3_single_spans_are_told_at_every_interval(
    fed: Core, new_host: Callable[[int], Host], interval: int
) -> None:
    host = new_host(NOTHING)
    start_fed(host, interval=interval * MILLISECOND)
    thread = fed.thread()
    span = thread.begin("a")
    for expected in (10, 20, 30):
        fed.run(thread, 10)
        host.wait("told_busy", expected)
    assert (host.seen("created"), host.seen("destroyed")) == (1, 0)
    thread.exit(span)
    host.wait("spans", 1)
    assert (host.seen("told_busy"), host.seen("busy")) == (30, 30)


def test_rule_6_2_a_stop_while_a_host_hangs_delivers_what_was_told_before(
    fed: Core, new_host: Callable[[int], Host]
) -> None:
    host = new_host(HANG)
    start_fed(host)
    thread = fed.thread()
    with thread.span("a"):
        fed.run(thread, 10)
    assert not fed.lib.sp_flush(0)
    host.wait("reports", 1)
    with thread.span("b"):
        fed.run(thread, 5)
    assert not stop(fed, 0)[0]
    host.let_go()
    host.wait("ended", 1)
    assert (host.seen("spans"), host.seen("busy")) == (2, 15)
    assert host.seen("created") == host.seen("destroyed") == 2
