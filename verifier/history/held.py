# SPDX-License-Identifier: GPL-2.0-or-later
"""Ranges of a mapped capture that wait to be read as one stream of bytes."""

from __future__ import annotations

import mmap
from array import array
from collections import deque


class Held:
    """Bytes of a flow, in order, as ranges of `data`. size: how many there are."""

    __slots__ = ("_data", "_later", "_start", "_stop", "size")

    def __init__(self, data: mmap.mmap | bytes) -> None:
        self.size = 0
        self._data = data
        self._start = self._stop = 0  # the first range, empty only when all is
        self._later: deque[tuple[int, int]] = deque()

    def add(self, start: int, stop: int) -> None:
        """data[start:stop] comes next."""
        if self.size:
            self._later.append((start, stop))
        else:
            self._start, self._stop = start, stop
        self.size += stop - start

    def clear(self) -> None:
        """Forget all of it."""
        self._later.clear()
        self._start = self._stop = self.size = 0

    def take(self, size: int) -> bytes:
        """Consume the next `size` bytes, which are there."""
        start = self._start
        end = start + size
        if end < self._stop or (end == self._stop and not self._later):
            self._start = end
            self.size -= size
            return self._data[start:end]
        kept: array[int] = array("Q")
        self.move(size, kept)
        flat = iter(kept)
        return b"".join([self._data[start:stop] for start, stop in zip(flat, flat, strict=True)])

    def peek(self, size: int) -> bytes:
        """Up to `size` of the next bytes, which stay."""
        first = self._data[self._start : min(self._stop, self._start + size)]
        if len(first) == size or not self._later:
            return first
        parts = [first]
        size -= len(first)
        for start, stop in self._later:
            part = min(size, stop - start)
            parts.append(self._data[start : start + part])
            size -= part
            if not size:
                break
        return b"".join(parts)

    def move(self, size: int, kept: array[int]) -> int:
        """Move up to `size` bytes to a flat list of ranges; how many are then still missing."""
        while size and self.size:
            start = self._start
            end = min(start + size, self._stop)
            kept.append(start)
            kept.append(end)
            size -= end - start
            self.size -= end - start
            if end == self._stop and self._later:
                self._start, self._stop = self._later.popleft()
            else:
                self._start = end
        return size
