"""Real threads, in short: tests/stress/ does the same at length and under TSan."""

import threading
import time

from .binding import NONE, Core


def run_all(*threads: threading.Thread) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_rule_5_2_real_threads_add_up(real_core: Core) -> None:
    real_core.start()
    each, count = 2000, 4
    keys = [real_core.key(f"t{n}") for n in range(4)]
    used: list[int] = []

    def body() -> None:
        lib = real_core.lib
        spans = [lib.spt_span_new() for _ in keys]
        state = lib.spt_thread_mine()
        began = lib.spt_thread_cpu()
        for _ in range(each):
            for span, key in zip(spans, keys, strict=True):
                lib.sp_span_begin(state, span, key)
            for span in reversed(spans):
                lib.sp_span_exit(state, span)
        used.append(lib.spt_thread_cpu() - began)
        for span in spans:
            lib.spt_span_free(span)

    run_all(*(threading.Thread(target=body) for _ in range(count)))
    profile = real_core.snapshot()
    nodes = profile.by_name()
    assert set(nodes) == {"t0", "t0/t1", "t0/t1/t2", "t0/t1/t2/t3"}
    assert all(node["calls"] == each * count for node in nodes.values())
    totals = profile.totals()
    assert totals["cpu_user"] + totals["cpu_system"] <= sum(used)


def test_a_thread_that_ends_leaves_its_values_and_its_spans(real_core: Core) -> None:
    real_core.start()
    span = real_core.span()
    before = real_core.stat("abandoned")

    def body() -> None:
        state = real_core.lib.spt_thread_mine()
        key = real_core.key("left")
        real_core.lib.sp_span_begin(state, span.pointer, key)
        real_core.lib.spt_burn(1_000_000)

    run_all(threading.Thread(target=body))
    # Python's join returns a moment before the thread's destructors run.
    until = time.monotonic() + 10
    while real_core.stat("abandoned") == before and time.monotonic() < until:
        time.sleep(0.001)
    assert real_core.stat("abandoned") == before + 1
    assert span.state == NONE
    node = real_core.snapshot().by_name()["left"]
    assert node["cpu_user"] + node["cpu_system"] >= 990_000
    assert real_core.snapshot().by_name()["left"] == node


def test_rule_3_8_a_real_thread_exits_anothers_span(real_core: Core) -> None:
    real_core.start()
    span = real_core.span()
    lib = real_core.lib
    state = lib.spt_thread_mine()
    lib.sp_span_begin(state, span.pointer, real_core.key("a"))
    results: list[bool] = []
    run_all(
        threading.Thread(
            target=lambda: results.append(
                lib.sp_span_exit(lib.spt_thread_mine(), span.pointer)
            )
        )
    )
    assert results == [False]
    assert lib.spt_thread_mine() == state
    assert span.state == NONE
    assert real_core.released() == [span]
