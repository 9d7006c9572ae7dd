# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory for what has been received and not loaded: few buffers, used over and over, never without bound."""

from __future__ import annotations

from mockdev.memory import allocate
from mockdev.wire.structs import VFIO_BUFFER_BYTES_MAX

LARGE_BYTES = VFIO_BUFFER_BYTES_MAX
SMALL_BYTES_MAX = 256 << 10
OVERHEAD_BYTES = 512  # what keeping even an empty buffer costs


class BufferPool:
    """Buffers of up to 1 MiB. The one given back last is given out first: it is still in the caches.

    limit: bytes in use at once, at most. used: bytes in use, with what keeping a buffer costs besides. ready:
    so many buffers have their pages already. Its owner locks it.
    """

    def __init__(self, limit: int, ready: int = 0) -> None:
        self.limit = limit
        self.used = 0
        self._free = [allocate(LARGE_BYTES) for _ in range(min(ready, limit // LARGE_BYTES))]

    def take(self, size: int) -> memoryview | None:
        """A buffer of at least `size` bytes (at most 1 MiB); None when too much is given out."""
        cost = size + OVERHEAD_BYTES
        if self.used + cost > self.limit:
            return None
        self.used += cost
        if size <= SMALL_BYTES_MAX:
            return memoryview(bytearray(size))
        return self._free.pop() if self._free else memoryview(bytearray(LARGE_BYTES))

    def give_back(self, buffer: memoryview, size: int) -> None:
        """A buffer that `take(size)` gave is free again."""
        self.used -= size + OVERHEAD_BYTES
        if size > SMALL_BYTES_MAX:
            self._free.append(buffer)
