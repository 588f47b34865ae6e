"""The layouts that core_cdef.h repeats are the core's own."""

import pytest

from .binding import METRICS, Core


@pytest.mark.parametrize(
    "name",
    [
        "sp_string",
        "sp_callsite",
        "sp_label",
        "sp_labels",
        "sp_text",
        "sp_series",
        "sp_node",
        "sp_ages",
        "sp_profile",
        "sp_feed_record",
        "sp_thread_context",
        "ArrowSchema",
        "ArrowArray",
    ],
)
def test_struct_sizes_agree(real_core: Core, name: str) -> None:
    expected = real_core.lib.spt_layout(name.encode())
    assert real_core.ffi.sizeof(f"struct {name}") == expected


@pytest.mark.parametrize(
    ("struct", "field"),
    [("sp_node", "value"), ("sp_profile", "nodes"), ("sp_feed_batch", "records")],
)
def test_field_offsets_agree(real_core: Core, struct: str, field: str) -> None:
    expected = real_core.lib.spt_layout(f"{struct}.{field}".encode())
    assert real_core.ffi.offsetof(f"struct {struct}", field) == expected


def test_metrics_agree(real_core: Core) -> None:
    count = real_core.lib.spt_layout(b"metrics")
    names = [
        real_core.ffi.string(real_core.lib.spt_metric_name(n)).decode()
        for n in range(count)
    ]
    assert tuple(names) == METRICS


def test_a_cell_takes_at_most_200_bytes(real_core: Core) -> None:
    assert real_core.lib.spt_layout(b"cell") <= 200
