# SPDX-License-Identifier: GPL-2.0-or-later
"""Buffers by index, and the cap: order restored, and every index that may not come is named."""

from __future__ import annotations

import re
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mockdev.errors import LocalProtocolError, RemoteProtocolError
from mockdev.multifd.assembly import AHEAD_MAX, Assembly, Buffer
from mockdev.multifd.budget import Budget

DEVICE = "0000:00:02.0/vfio"


def buffer(idx: int, *, config: bool = False, size: int = 10) -> Buffer[bytes]:
    return Buffer(idx, size, config, b"")


@given(st.integers(0, 30).flatmap(lambda last: st.permutations(range(last + 1))))
def test_any_order_comes_out_in_order(order: list[int]) -> None:
    assembly: Assembly[bytes] = Assembly(DEVICE)
    taken = []
    for idx in order:
        assembly.insert(buffer(idx, config=idx == max(order)))
        while assembly.ready:
            taken.append(assembly.take())
    assert [b.idx for b in taken] == sorted(order)
    assert [b.config for b in taken] == [False] * (len(order) - 1) + [True]
    assert assembly.complete
    assert assembly.missing() == ""


@given(st.integers(1, 20).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n), min_size=1))))
def test_everything_missing_is_named(case: tuple[int, set[int]]) -> None:
    last, absent = case
    assembly: Assembly[bytes] = Assembly(DEVICE)
    for idx in range(last + 1):
        if idx not in absent:
            assembly.insert(buffer(idx, config=idx == last))
        while assembly.ready:
            assembly.take()
    said = assembly.missing()
    assert not assembly.complete
    assert DEVICE in said
    highest = max((idx for idx in range(last + 1) if idx not in absent), default=-1)
    gaps = sorted(idx for idx in absent if idx < highest)
    named = said.removeprefix(DEVICE).partition(" never came")[0]
    assert [int(number) for number in re.findall(r"\d+", named)] == gaps[:8]
    assert ("and more" in named) == (len(gaps) > 8)
    assert ("the config buffer" in said) == (last in absent)


@pytest.mark.parametrize(("gaps", "more"), [(1, False), (8, False), (9, True)])
def test_no_more_than_eight_are_named(gaps: int, more: bool) -> None:
    assembly: Assembly[bytes] = Assembly(DEVICE)
    assembly.insert(buffer(gaps))
    assert ("and more" in assembly.missing()) == more


@pytest.mark.parametrize(
    ("before", "bad", "field", "words"),
    [
        ([buffer(0)], buffer(0), "idx", "buffer 0 came a second time"),
        ([buffer(5)], buffer(5), "idx", "buffer 5 came a second time"),
        ([], buffer(0xFFFFFFFF), "idx", "index 4294967295 is none"),
        ([], buffer(0xFFFFFFFE), "idx", "buffer 4294967294 is 4294967294 ahead"),
        ([], buffer(0xFFFFFFFE, config=True), "idx", "buffer 4294967294 is 4294967294 ahead"),
        ([], buffer(AHEAD_MAX + 1), "idx", f"buffer {AHEAD_MAX + 1} is"),
        ([buffer(3, config=True)], buffer(2, config=True), "flags", "second config buffer"),
        ([buffer(3, config=True)], buffer(4), "idx", "data buffer 4 lies behind the config buffer 3"),
        ([buffer(7)], buffer(3, config=True), "flags", "config buffer 3 comes before data buffer 7"),
    ],
)
def test_refused(before: list[Buffer[bytes]], bad: Buffer[bytes], field: str, words: str) -> None:
    assembly: Assembly[bytes] = Assembly(DEVICE)
    for good in before:
        assembly.insert(good)
    with pytest.raises(RemoteProtocolError) as caught:
        assembly.insert(bad)
    assert words in str(caught.value)
    assert DEVICE in str(caught.value)
    assert caught.value.field == field
    assert assembly.kept == len(before)


@pytest.mark.parametrize(
    ("before", "idx", "field"),
    [
        (buffer(3, config=True), 2, "flags"),  # a second one
        (buffer(7), 3, "flags"),  # not the last
    ],
)
def test_a_config_buffer_in_the_wrong_place_is_refused_by_its_heads(
    before: Buffer[bytes], idx: int, field: str
) -> None:
    assembly: Assembly[bytes] = Assembly(DEVICE)
    assembly.insert(before)
    with pytest.raises(RemoteProtocolError) as caught:
        assembly.announce(idx, 10, config=True)
    assert caught.value.field == field
    assert assembly.announce(idx, 10, config=False) is None  # as data it may come


def test_a_buffer_that_was_loaded_cannot_come_again() -> None:
    assembly: Assembly[bytes] = Assembly(DEVICE)
    assembly.insert(buffer(0))
    assembly.take()
    with pytest.raises(RemoteProtocolError, match="buffer 0 came a second time"):
        assembly.insert(buffer(0))


def test_how_far_ahead_a_buffer_is_counts_from_the_next() -> None:
    assembly: Assembly[bytes] = Assembly(DEVICE, ahead_max=4)
    for idx in range(3):
        assembly.insert(buffer(idx))
        assembly.take()
    assert assembly.reorder_max == 0
    with pytest.raises(RemoteProtocolError, match="buffer 8 is 5 ahead"):
        assembly.insert(buffer(8))
    assembly.insert(buffer(7))
    assert assembly.reorder_max == 4


def test_the_furthest_index_allowed_costs_no_table() -> None:
    tracemalloc.start()
    try:
        assembly: Assembly[bytes] = Assembly(DEVICE)
        assembly.insert(buffer(AHEAD_MAX))
        assert tracemalloc.get_traced_memory()[1] < 1 << 16
    finally:
        tracemalloc.stop()
    assert assembly.reorder_max == AHEAD_MAX
    assert "and more" in assembly.missing()


@given(st.integers(1, 1000), st.lists(st.integers(0, 200), max_size=30))
def test_the_cap_is_exact(cap: int, sizes: list[int]) -> None:
    budget = Budget(DEVICE, cap)
    queued: list[int] = []
    most = 0
    for idx, size in enumerate(sizes):
        if sum(queued) + size <= cap:
            assert budget.add(idx, size) == sum(queued) + size
            queued.append(size)
            most = max(most, sum(queued))
            continue
        with pytest.raises(RemoteProtocolError) as caught:
            budget.add(idx, size)
        for part in (f"buffer {idx} of {DEVICE}", str(sum(queued) + size), f"cap of {cap}"):
            assert part in str(caught.value)
        assert caught.value.field == "queued bytes"
        assert budget.queued == sum(queued)
        if queued:
            budget.remove(queued.pop(0))
    assert budget.queued == sum(queued)
    assert budget.queued_max == most <= cap


def test_no_cap_and_no_negative_queue() -> None:
    budget = Budget(DEVICE, None)
    assert budget.add(0, 1 << 40) == 1 << 40
    assert budget.remove(1 << 40) == 0
    with pytest.raises(LocalProtocolError):
        budget.remove(1)


@given(st.integers(0, 8).flatmap(lambda last: st.permutations(range(last + 1))))
def test_it_is_whole_once_the_last_to_come_is_here(order: list[int]) -> None:
    assembly: Assembly[bytes] = Assembly(DEVICE)
    for number, idx in enumerate(order):
        assembly.insert(buffer(idx, config=idx == max(order)))
        assert assembly.whole == (number == len(order) - 1)
    while assembly.ready:
        assembly.take()
        assert assembly.whole
