# SPDX-License-Identifier: GPL-2.0-or-later
"""The description of structs: sizes and places against the C definitions, packing against struct."""

from __future__ import annotations

import struct
from typing import Annotated, Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mockdev.wire import structs
from mockdev.wire.layout import BIG, LITTLE, U8, U32, U64, Layout, Spec


class Sample(NamedTuple):
    first: U8
    table: Annotated[tuple[int, ...], Spec("H", 3)]
    tail: Annotated[bytes, Spec("5s")]
    last: U64


@pytest.mark.parametrize("order", [BIG, LITTLE])
@given(
    first=st.integers(0, 255),
    table=st.tuples(*[st.integers(0, 65535)] * 3),
    tail=st.binary(min_size=5, max_size=5),
    last=st.integers(0, 2**64 - 1),
)
def test_pack_is_struct_and_unpack_its_inverse(
    order: str, first: int, table: tuple[int, ...], tail: bytes, last: int
) -> None:
    layout = Layout(Sample, c_name="sample", order=order, source="")
    record = Sample(first, table, tail, last)
    packed = layout.pack(record)
    assert packed == struct.pack(order + "B3H5sQ", first, *table, tail, last)
    assert layout.unpack(b"xx" + packed, 2) == record


def test_places() -> None:
    layout = Layout(Sample, c_name="sample", order=BIG, source="")
    assert [(p.name, p.offset, p.size) for p in layout.fields] == [
        ("first", 0, 1),
        ("table", 1, 6),
        ("tail", 7, 5),
        ("last", 12, 8),
    ]
    assert layout.field_at(6) == layout.place("table")
    assert layout.field_at(20) is None


# (layout, size, {field: offset}), read off QEMU's headers.
EXPECTED: list[tuple[Layout[Any], int, dict[str, int]]] = [
    (structs.MULTIFD_INIT, 64, {"version": 4, "uuid": 8, "id": 24, "unused1": 25, "unused2": 32}),
    (structs.MULTIFD_HEAD, 12, {"magic": 0, "version": 4, "flags": 8}),
    (
        structs.MULTIFD_RAM,
        320,
        {
            "flags": 8,
            "pages_alloc": 12,
            "normal_pages": 16,
            "next_packet_size": 20,
            "packet_num": 24,
            "zero_pages": 32,
            "unused32": 36,
            "unused64": 40,
            "ramblock": 64,
        },
    ),
    (
        structs.MULTIFD_DEVICE_STATE,
        276,
        {"flags": 8, "idstr": 12, "instance_id": 268, "next_packet_size": 272},
    ),
    (structs.VFIO_DEVICE_STATE, 12, {"version": 0, "idx": 4, "flags": 8}),
]


@pytest.mark.parametrize(("layout", "size", "places"), EXPECTED, ids=lambda v: getattr(v, "c_name", ""))
def test_wire_structs_lie_as_in_c(layout: Layout[Any], size: int, places: dict[str, int]) -> None:
    assert layout.size == size
    assert {name: layout.place(name).offset for name in places} == places


def test_every_layout_says_where_it_was_read() -> None:
    assert all("QEMU" in layout.source or ".c" in layout.source for layout in structs.LAYOUTS)


def test_too_few_bytes_and_too_large_a_value() -> None:
    class One(NamedTuple):
        value: U32

    layout = Layout(One, c_name="", order=BIG, source="")
    with pytest.raises(struct.error):
        layout.unpack(b"abc")
    with pytest.raises(struct.error):
        layout.pack(One(1 << 32))
