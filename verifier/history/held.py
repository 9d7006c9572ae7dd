# SPDX-License-Identifier: GPL-2.0-or-later
"""Ranges of a mapped capture that wait to be read as one stream of bytes."""

from __future__ import annotations

import mmap
from array import array
from collections import deque


class Held:
    """Bytes of a flow, in order, as ranges of `data`. size: how many there are."""

    __slots__ = ("_data", "_ranges", "size")

    def __init__(self, data: mmap.mmap | bytes) -> None:
        self.size = 0
        self._data = data
        self._ranges: deque[tuple[int, int]] = deque()

    def add(self, start: int, stop: int) -> None:
        """data[start:stop] comes next."""
        self._ranges.append((start, stop))
        self.size += stop - start

    def clear(self) -> None:
        """Forget all of it."""
        self._ranges.clear()
        self.size = 0

    def take(self, size: int) -> bytes:
        """Consume the next `size` bytes, which are there."""
        ranges = self._ranges
        start, stop = ranges[0]
        self.size -= size
        if stop - start > size:
            ranges[0] = (start + size, stop)
            return self._data[start : start + size]
        parts = []
        while size:
            start, stop = ranges.popleft()
            part = min(size, stop - start)
            parts.append(self._data[start : start + part])
            size -= part
            if start + part < stop:
                ranges.appendleft((start + part, stop))
        return b"".join(parts)

    def peek(self, size: int) -> bytes:
        """Up to `size` of the next bytes, which stay."""
        parts = []
        for start, stop in self._ranges:
            part = min(size, stop - start)
            parts.append(self._data[start : start + part])
            size -= part
            if not size:
                break
        return b"".join(parts)

    def move(self, size: int, kept: array[int]) -> int:
        """Move up to `size` bytes to a flat list of ranges; how many are then still missing."""
        ranges = self._ranges
        while size and ranges:
            start, stop = ranges.popleft()
            part = min(size, stop - start)
            kept.append(start)
            kept.append(start + part)
            size -= part
            self.size -= part
            if start + part < stop:
                ranges.appendleft((start + part, stop))
        return size
