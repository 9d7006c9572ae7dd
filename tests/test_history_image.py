# SPDX-License-Identifier: GPL-2.0-or-later
"""A device's digest is that of its bytes in order, however they came; or there is none, with a reason."""

from __future__ import annotations

from array import array

import xxhash
from hypothesis import given
from hypothesis import strategies as st

from verifier.history.image import Image, Room

DATA = bytes(range(256)) * 8
SIZE = 16


def ranges(idx: int) -> array[int]:
    """Buffer idx of DATA, in two pieces."""
    start = idx * SIZE
    return array("Q", (start, start + 5, start + 5, start + SIZE))


def digest(data: bytes) -> str:
    """As reports write it."""
    return f"xxh3-128:{xxhash.xxh3_128_hexdigest(data)}"


def image(room: Room | None = None) -> Image:
    """An image of DATA."""
    return Image(memoryview(DATA), room or Room())


@given(st.permutations(range(8)), st.integers(0, 8))
def test_any_order_gives_the_same_digest(order: list[int], release_after: int) -> None:
    one = image()
    for count, idx in enumerate(order):
        if count == release_after:
            one.release()
        one.buffer(idx, False, ranges(idx), SIZE, True)
    assert one.digest() == digest(DATA[: 8 * SIZE])
    assert (one.buffers, one.payload_bytes, one.index_last) == (8, 8 * SIZE, 7)


def test_what_the_main_channel_carried_comes_first_even_when_captured_later() -> None:
    one = image()
    one.buffer(0, False, ranges(0), SIZE, True)
    one.block(ranges(5), SIZE, True)
    one.release()
    assert one.digest() == digest(DATA[5 * SIZE : 6 * SIZE] + DATA[:SIZE])


def test_reasons_for_no_digest() -> None:
    gap = image()
    gap.buffer(1, False, ranges(1), SIZE, True)
    assert gap.digest() is None
    assert "buffer 0" in gap.problem
    twice = image()
    twice.buffer(0, False, ranges(0), SIZE, True)
    twice.buffer(0, False, ranges(0), SIZE, True)
    assert twice.digest() is None
    config_gap = image()
    config_gap.buffer(0, False, ranges(0), SIZE, True)
    config_gap.buffer(2, True, ranges(2), SIZE, True)
    assert config_gap.digest() is None
    assert image().digest() is None


def test_the_config_state_is_aside_and_digested_without_its_marks() -> None:
    one = image()
    one.buffer(0, False, ranges(0), SIZE, True)
    one.buffer(1, True, array("Q", (0, 32)), 32, True)
    assert one.digest() == digest(DATA[:SIZE])
    assert one.config_digest == digest(DATA[8:24])
    assert one.config_seen


def test_reordering_is_counted() -> None:
    one = image()
    one.release()
    for idx in (1, 2, 3, 0):
        one.buffer(idx, False, ranges(idx), SIZE, True)
    assert one.reorder_max == 3


def test_memory_for_waiting_buffers_is_bounded_and_shared() -> None:
    room = Room(ranges_max=3)
    one, other = image(room), image(room)
    for idx in range(1, 3):
        one.buffer(idx, False, ranges(idx), SIZE, True)
    assert "out of order" in one.problem
    assert room.left > 0  # what it held was given back
    other.release()
    other.buffer(0, False, ranges(0), SIZE, True)
    assert other.digest() is not None
