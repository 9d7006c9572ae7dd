# SPDX-License-Identifier: GPL-2.0-or-later
"""The log of DMA writes: what starts it, what it reports, and what it refuses."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mockdev.device.dirty import DirtyLog, Range, set_bits
from mockdev.errors import DeviceError

PAGE = 4096


class Bitmap:
    """User memory of one bitmap at an address."""

    def __init__(self, address: int, data: bytes) -> None:
        self.address = address
        self.data = bytearray(data)

    def read(self, address: int, size: int) -> bytes:
        at = address - self.address
        assert 0 <= at <= at + size <= len(self.data)
        return bytes(self.data[at : at + size])

    def write(self, address: int, data: bytes) -> None:
        self.data[address - self.address : address - self.address + len(data)] = data


def started(*ranges: Range) -> tuple[DirtyLog, list[Range]]:
    writes: list[Range] = []

    def source(_now_ns: int) -> list[Range]:
        taken = writes[:]
        writes.clear()
        return taken

    log = DirtyLog(source)
    log.start(0, PAGE, ranges or [Range(0, 1 << 32)])
    return log, writes


def start_refused(page_size: int, *ranges: Range) -> int:
    log = DirtyLog()
    with pytest.raises(DeviceError) as caught:
        log.start(0, page_size, ranges)
    assert not log.active
    return caught.value.errno


def test_what_start_refuses() -> None:
    assert start_refused(PAGE) == errno.EINVAL
    assert start_refused(PAGE, *(Range(i * PAGE, PAGE) for i in range(257))) == errno.E2BIG
    assert start_refused(PAGE, Range(1, PAGE)) == errno.EINVAL
    assert start_refused(PAGE, Range(0, PAGE + 1)) == errno.EINVAL
    assert start_refused(PAGE, Range(0, 0)) == errno.EINVAL
    assert start_refused(0, Range(0, PAGE)) == errno.EINVAL
    assert start_refused(PAGE, Range(2**64 - PAGE, PAGE)) == errno.EOVERFLOW
    assert start_refused(PAGE, Range(PAGE, 2 * PAGE), Range(0, 2 * PAGE)) == errno.EINVAL


def test_start_twice_is_refused_and_stop_is_always_right() -> None:
    log, _ = started()
    with pytest.raises(DeviceError) as caught:
        log.start(0, PAGE, [Range(0, PAGE)])
    assert caught.value.errno == errno.EINVAL
    log.stop()
    log.stop()
    assert log.start(0, 1024, [Range(0, PAGE)]) == PAGE


def test_what_report_refuses() -> None:
    log, _ = started()
    for iova, length, page, number in (
        (0, PAGE, 2048, errno.EINVAL),
        (0, PAGE, 5000, errno.EINVAL),
        (2**64 - PAGE, PAGE, PAGE, errno.EOVERFLOW),
    ):
        with pytest.raises(DeviceError) as caught:
            log.report(0, iova, length, page)
        assert caught.value.errno == number
    log.stop()
    with pytest.raises(DeviceError) as caught:
        log.report(0, 0, PAGE, PAGE)
    assert caught.value.errno == errno.EINVAL


def test_only_what_was_asked_for_is_reported_and_forgotten() -> None:
    log, writes = started(Range(0, 16 * PAGE), Range(1 << 30, PAGE))
    writes += [Range(5 * PAGE + 7, 1), Range(9 * PAGE, 2 * PAGE), Range(20 * PAGE, PAGE)]
    assert log.report(0, 4 * PAGE, 6 * PAGE, PAGE) == [(1, 2), (5, 6)]
    assert log.report(0, 4 * PAGE, 6 * PAGE, PAGE) == []
    assert log.report(0, 0, 1 << 31, PAGE) == [(10, 11)]  # page 20 is not watched


def test_writes_before_the_start_do_not_count() -> None:
    log = DirtyLog(lambda _now_ns: iter([Range(0, PAGE)]))
    log.start(0, PAGE, [Range(0, PAGE)])
    log.source = lambda _now_ns: ()
    assert log.report(0, 0, PAGE, PAGE) == []


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(1, 40)), max_size=12), st.binary(min_size=64))
def test_the_bitmap_is_that_of_a_set_of_pages(spans: list[tuple[int, int]], before: bytes) -> None:
    log, writes = started()
    writes += [Range(first * PAGE, count * PAGE) for first, count in spans]
    user = Bitmap(1 << 40, before)
    set_bits(user, 1 << 40, log.report(0, 0, 512 * PAGE, PAGE))
    old, new = int.from_bytes(before, "little"), int.from_bytes(user.data, "little")
    pages = {page for first, count in spans for page in range(first, first + count)}
    assert new == old | sum(1 << page for page in pages)


def test_a_large_write_is_set_in_pieces() -> None:
    log, writes = started(Range(0, 1 << 40))
    count = (1 << 16) * 8 + 77
    writes.append(Range(3 * PAGE, count * PAGE))
    user = Bitmap(0, bytes(1 << 17))
    set_bits(user, 0, log.report(0, 0, 1 << 40, PAGE))
    assert int.from_bytes(user.data, "little") == ((1 << count) - 1) << 3
