# SPDX-License-Identifier: GPL-2.0-or-later
"""What a device's state is made of: bytes that follow from (seed, device, offset) alone.

A pseudo-random tile of a prime number of bytes is repeated, and each 4 KiB page begins with a stamp of
16 bytes: 8 that name seed and device, 8 with the page's offset. So a page that is swapped, missing,
doubled or another device's is seen, any range can be made on its own, and filling is a copy.
"""

from __future__ import annotations

import sys
from array import array
from hashlib import shake_128
from typing import NamedTuple

PAGE_SIZE = 4096
STAMP_SIZE = 16
TILE_SIZE = 1_048_583  # the first prime above 1 MiB, so no page of the tile comes back soon
_PIECE_SIZE = 1 << 20  # verified at once: stays in cache
_WORD = 8


class Difference(NamedTuple):
    """The first wrong byte of an image, and up to 16 bytes from there as they should be and as they are."""

    offset: int
    expected: bytes
    found: bytes


class Pattern:
    """The state of one device for one seed.

    Making one costs a few milliseconds (the tile); it holds about 1 MiB.
    """

    def __init__(self, seed: int, device: str) -> None:
        key = f"vfmig state 1\n{seed}\n{device}".encode()
        made = shake_128(key).digest(TILE_SIZE + _WORD)
        self._tile = memoryview(made)[:TILE_SIZE]
        self._name = made[TILE_SIZE:]

    def fill(self, memory: memoryview, offset: int = 0) -> None:
        """Write the bytes from `offset` on into all of `memory` (writable, contiguous, of bytes)."""
        at = 0
        while at < len(memory):
            start = (offset + at) % TILE_SIZE
            size = min(len(memory) - at, TILE_SIZE - start)
            memory[at : at + size] = self._tile[start : start + size]
            at += size
        self._stamp(memory, offset)

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` on."""
        made = bytearray(size)
        self.fill(memoryview(made), offset)
        return bytes(made)

    def verify(self, image: memoryview, offset: int = 0) -> Difference | None:
        """Compare an image, whose first byte is byte `offset` of the state, piece by piece."""
        scratch = bytearray(min(_PIECE_SIZE, len(image)))
        for at in range(0, len(image), _PIECE_SIZE):
            piece = image[at : at + _PIECE_SIZE]
            if len(piece) < len(scratch):
                scratch = bytearray(len(piece))
            self.fill(memoryview(scratch), offset + at)
            if scratch != piece:
                wrong = next(i for i, (a, b) in enumerate(zip(scratch, piece, strict=True)) if a != b)
                found = bytes(image[at + wrong : at + wrong + STAMP_SIZE])
                return Difference(offset + at + wrong, self.read(offset + at + wrong, len(found)), found)
        return None

    def _stamp(self, memory: memoryview, offset: int) -> None:
        """Put the stamps over the tile; those of whole pages at once, to cost less than the copy."""
        if offset % PAGE_SIZE:
            self._stamp_part(memory, offset, offset - offset % PAGE_SIZE)
        first = -offset % PAGE_SIZE
        pages = max(0, len(memory) - first) // PAGE_SIZE
        if pages:
            words = memory[first : first + pages * PAGE_SIZE].cast("Q")
            start = offset + first
            names = array("Q", self._name * pages)
            offsets = array("Q", range(start, start + pages * PAGE_SIZE, PAGE_SIZE))
            if sys.byteorder == "big":
                offsets.byteswap()
            words[:: PAGE_SIZE // _WORD] = memoryview(names)
            words[1 :: PAGE_SIZE // _WORD] = memoryview(offsets)
        rest = first + pages * PAGE_SIZE
        if rest < len(memory):
            self._stamp_part(memory, offset, offset + rest)

    def _stamp_part(self, memory: memoryview, offset: int, page: int) -> None:
        """The stamp of one page, as much of it as lies in the range."""
        stamp = self._name + page.to_bytes(_WORD, "little")
        start, end = max(page, offset), min(page + STAMP_SIZE, offset + len(memory))
        if start < end:
            memory[start - offset : end - offset] = stamp[start - page : end - page]
