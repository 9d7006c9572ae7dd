# SPDX-License-Identifier: GPL-2.0-or-later
"""A device's whole state as the capture holds it, digested in order without keeping it.

What the main channel carried comes first, then the multifd buffers by index. Buffers that overtook
others wait as ranges of the mapped file (16 bytes for each captured segment), never as bytes.
"""

from __future__ import annotations

from array import array

import xxhash

from verifier.history.records import Records

RANGES_MAX = 6 << 20  # waiting, over all devices: 96 MiB; beyond, digests are given up
_MARK_BYTES = 8
_CONFIG_BYTES_MAX = 1 << 20
_OVERHEAD = 16  # what a waiting buffer takes besides its ranges, in their unit of 8 bytes


class Room:
    """How many ranges wait, over all images of a history."""

    def __init__(self, ranges_max: int = RANGES_MAX) -> None:
        self.left = 2 * ranges_max


class Image:
    """One device's state. Ranges are flat: start, stop, start, stop.

    records: those it consists of. partial: some payload is not in the capture, or not all of it. digested:
    whether a digest will be asked for; without one, no payload is looked at.
    """

    def __init__(self, view: memoryview, room: Room, *, digested: bool = True) -> None:
        self.problem = ""
        self.config_digest: str | None = None
        self.buffers = 0
        self.payload_bytes = 0
        self.index_last: int | None = None
        self.reorder_max = 0
        self.config_seen = False
        self.partial = False
        self.records = Records(view)
        self._view = view
        self._room = room
        self._hash = xxhash.xxh3_128() if digested else None
        self._waiting: dict[int, tuple[array[int], int]] = {}
        self._next = 0
        self._config_idx = -1
        self._released = False

    def block(self, ranges: array[int], size: int, whole: bool) -> None:
        """A block of the main channel."""
        self.buffers += 1
        self.payload_bytes += size
        if not whole:
            self._miss()
        elif self._next:
            self.spoil("the main channel carried state after multifd did")
        self._take(ranges, size, -1)

    def buffer(self, idx: int, config: bool, ranges: array[int], size: int, whole: bool) -> None:
        """A multifd buffer, complete."""
        if self.index_last is None or idx > self.index_last:
            self.index_last = idx
        if config:
            self.config_seen = True
            self._config_idx = idx
            if whole:
                self.config_digest = self._config(ranges, size)
            return
        self.buffers += 1
        self.payload_bytes += size
        if not whole:
            self._miss()
        if idx < self._next or idx in self._waiting:
            self.spoil(f"two buffers have index {idx}")
            return
        if self._released and idx == self._next:
            self._next += 1
            self._take(ranges, size, idx)
            self._drain()
        elif not self.problem:
            self._room.left -= len(ranges) + _OVERHEAD
            self._waiting[idx] = ranges, size
            if self._room.left < 0:
                self.spoil("too much of it came out of order")
        waiting = len(self._waiting) if self._next not in self._waiting else 0
        self.reorder_max = max(self.reorder_max, waiting)

    def release(self) -> None:
        """The main channel carries no more state of this device before what multifd carries."""
        self._released = True
        self._drain()

    def digest(self) -> str | None:
        """ "xxh3-128:<hex>" of all of it, or None; `problem` then says why. Ends the image."""
        self.release()
        if self._waiting:
            self.spoil(f"buffer {self._next} is not in the capture")
        if not self.problem and self._config_idx >= 0 and self._next != self._config_idx:
            self.spoil(f"the config buffer has index {self._config_idx} after {self._next} buffers")
        if not self.buffers and not self.config_seen:
            self.spoil("nothing of it is in the capture")
        if self._hash is None or self.problem:
            return None
        return f"xxh3-128:{self._hash.hexdigest()}"

    def spoil(self, problem: str) -> None:
        """There will be no digest; the first reason counts."""
        if self.problem:
            return
        self.problem = problem
        for ranges, _ in self._waiting.values():
            self._room.left += len(ranges) + _OVERHEAD
        self._waiting.clear()

    def _miss(self) -> None:
        self.partial = True
        self.spoil("part of its payload is not in the capture")

    def _drain(self) -> None:
        while self._next in self._waiting:
            idx = self._next
            ranges, size = self._waiting.pop(idx)
            self._room.left += len(ranges) + _OVERHEAD
            self._next += 1
            self._take(ranges, size, idx)

    def _take(self, ranges: array[int], size: int, idx: int) -> None:
        """The next bytes of the state. idx: the buffer that brought them, -1 for the main channel."""
        if self.problem:
            return
        self.records.take(ranges, size, idx)
        if self._hash is None:
            return
        update, view = self._hash.update, self._view
        flat = iter(ranges)
        for start, stop in zip(flat, flat, strict=True):
            update(view[start:stop])

    def _config(self, ranges: array[int], size: int) -> str | None:
        """The digest of the config state itself, without the marks around it."""
        if not 2 * _MARK_BYTES <= size <= _CONFIG_BYTES_MAX:
            return None
        flat = iter(ranges)
        data = b"".join(self._view[start:stop] for start, stop in zip(flat, flat, strict=True))
        return f"xxh3-128:{xxhash.xxh3_128_hexdigest(data[_MARK_BYTES:-_MARK_BYTES])}"
