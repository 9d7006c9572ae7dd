# SPDX-License-Identifier: GPL-2.0-or-later
"""The generated state: the same everywhere and always, and any fault in a copy of it is found."""

from __future__ import annotations

from hashlib import sha256

from hypothesis import example, given, settings
from hypothesis import strategies as st

from mockdev.device.image import PAGE_SIZE, TILE_SIZE, Pattern
from tests.examples import examples

PATTERN = Pattern(1, "vf0")
SIZE = 3 << 20
WHOLE = PATTERN.read(0, SIZE)


def test_the_bytes_are_these_on_every_machine() -> None:
    assert sha256(WHOLE).hexdigest() == "19e636fb49b1c9d9c430ed186a9fea00f2dbb569c7d24f7675adb05f3d8dbc43"
    other = Pattern(2, "vf1").read(12345, 70001)
    assert sha256(other).hexdigest() == "7bbe46a1d508a8023bc9e1a844058b70f4936e462d05fa190a7f956ea8bc6233"


def test_seed_and_device_both_count() -> None:
    firsts = [Pattern(seed, name).read(0, PAGE_SIZE) for seed in (1, 2) for name in ("vf0", "vf1")]
    assert len(set(firsts)) == 4


@given(st.integers(0, SIZE), st.integers(0, 3 * PAGE_SIZE))
def test_any_range_can_be_made_alone(offset: int, size: int) -> None:
    assert PATTERN.read(offset, size) == (WHOLE + PATTERN.read(SIZE, 4 * PAGE_SIZE))[offset : offset + size]


def test_a_range_over_the_end_of_the_tile() -> None:
    for start in range(TILE_SIZE - 40, TILE_SIZE + 2):
        assert PATTERN.read(start, 41) == WHOLE[start : start + 41]


def test_each_page_says_where_it_belongs() -> None:
    pages = [WHOLE[at : at + PAGE_SIZE] for at in range(0, SIZE, PAGE_SIZE)]
    assert len(set(pages)) == len(pages)
    assert len({page[16:] for page in pages}) == len(pages)
    assert all(int.from_bytes(page[8:16], "little") == i * PAGE_SIZE for i, page in enumerate(pages))
    assert len({page[:8] for page in pages}) == 1


def test_a_right_image_holds_whole_or_in_part() -> None:
    assert PATTERN.verify(memoryview(WHOLE)) is None
    assert PATTERN.verify(memoryview(WHOLE)[777:], 777) is None
    assert PATTERN.verify(memoryview(b"")) is None


@settings(max_examples=examples(30))
@given(st.integers(0, SIZE - 1), st.integers(1, 255))
@example((1 << 20) - 15, 1)  # 16 bytes from here lie in two of the pieces that are compared at once
def test_the_first_wrong_byte_is_named(at: int, bits: int) -> None:
    image = bytearray(WHOLE)
    image[at] ^= bits
    image[-1] ^= 1 if at < SIZE - 1 else 0
    found = PATTERN.verify(memoryview(image))
    assert found is not None
    assert found.offset == at
    assert found.expected == WHOLE[at : at + 16]
    assert found.found == image[at : at + 16]


def test_swapped_missing_and_doubled_pages_are_seen() -> None:
    a, b = 5 * PAGE_SIZE, 9 * PAGE_SIZE
    first, second = WHOLE[a : a + PAGE_SIZE], WHOLE[b : b + PAGE_SIZE]
    between = WHOLE[a + PAGE_SIZE : b]
    for image in (
        WHOLE[:a] + second + between + first + WHOLE[b + PAGE_SIZE :],
        WHOLE[:a] + WHOLE[a + PAGE_SIZE :],
        WHOLE[: a + PAGE_SIZE] + WHOLE[a:],
    ):
        found = PATTERN.verify(memoryview(image))
        assert found is not None
        assert a <= found.offset < a + PAGE_SIZE + 16
