# SPDX-License-Identifier: GPL-2.0-or-later
"""One device's buffers put back into the order of their index, the config buffer last.

Source: QEMU hw/vfio/migration-multifd.c: vfio_load_state_buffer_insert, vfio_load_bufs_thread. QEMU's
table grows to the highest index it was ever given; here an index too far ahead is refused instead.
"""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

from mockdev.errors import RemoteProtocolError
from mockdev.wire.structs import VFIO_IDX_MAX

AHEAD_MAX = 1 << 16  # buffers between the next to load and the furthest that is kept

B = TypeVar("B")


class Buffer(NamedTuple, Generic[B]):
    """One device-state payload. size: bytes after the VFIO header; data: what holds them."""

    idx: int
    size: int
    config: bool
    data: B


class Assembly(Generic[B]):
    """The buffers of one device that have come and not been taken.

    next_idx: the index to be taken next. reorder_max: how far ahead of it a buffer was when it came.
    A buffer may be announced, by its heads, before it is inserted: once all before it are, it is known
    where its bytes begin in the device's stream.
    """

    def __init__(self, device: str, ahead_max: int = AHEAD_MAX) -> None:
        self.device = device
        self.next_idx = 0
        self.config_idx: int | None = None
        self.reorder_max = 0
        self._ahead_max = ahead_max
        self._kept: dict[int, Buffer[B]] = {}
        self._highest = -1
        self._placed_idx = 0  # the first index that is not announced
        self._placed_bytes = 0  # stream bytes before it
        self._announced: dict[int, int] = {}  # size by index, for those announced behind a gap

    def check(self, idx: int, *, config: bool) -> None:
        """RemoteProtocolError when a buffer with this index may not come (any more)."""
        if idx > VFIO_IDX_MAX:
            raise self._fail(f"buffer index {idx} is none")
        if idx < self.next_idx or idx in self._kept:
            raise self._fail(f"buffer {idx} came a second time")
        if config and self.config_idx is not None:
            raise self._fail(
                f"buffer {idx} is a second config buffer; the first was {self.config_idx}", "flags"
            )
        if config and self._highest > idx:
            raise self._fail(f"config buffer {idx} comes before data buffer {self._highest}", "flags")
        if self.config_idx is not None and idx > self.config_idx:
            raise self._fail(f"data buffer {idx} lies behind the config buffer {self.config_idx}")
        if idx - self.next_idx > self._ahead_max:
            raise self._fail(
                f"buffer {idx} is {idx - self.next_idx} ahead of the next to load ({self.next_idx}); "
                f"at most {self._ahead_max} are kept"
            )

    def announce(self, idx: int, size: int, *, config: bool) -> int | None:
        """The heads of a buffer are here; where its bytes begin in the stream, None behind a gap.

        RemoteProtocolError as `check` says, and when it was announced before.
        """
        self.check(idx, config=config)
        if idx < self._placed_idx or idx in self._announced:
            raise self._fail(f"buffer {idx} came a second time")
        if idx != self._placed_idx:
            self._announced[idx] = size
            return None
        start = self._placed_bytes
        self._announced[idx] = size
        while self._placed_idx in self._announced:
            self._placed_bytes += self._announced.pop(self._placed_idx)
            self._placed_idx += 1
        return start

    def insert(self, buffer: Buffer[B]) -> None:
        """Keep a buffer. RemoteProtocolError as `check` says."""
        self.check(buffer.idx, config=buffer.config)
        if buffer.config:
            self.config_idx = buffer.idx
        self._highest = max(self._highest, buffer.idx)
        self.reorder_max = max(self.reorder_max, buffer.idx - self.next_idx)
        self._kept[buffer.idx] = buffer

    @property
    def ready(self) -> bool:
        """Whether the buffer that is next in order is here."""
        return self.next_idx in self._kept

    @property
    def kept(self) -> int:
        """How many buffers wait."""
        return len(self._kept)

    @property
    def whole(self) -> bool:
        """Whether every buffer up to the config buffer is here or has been taken."""
        return self.config_idx is not None and self.next_idx + len(self._kept) > self.config_idx

    @property
    def complete(self) -> bool:
        """Whether every buffer up to the config buffer has been taken."""
        return self.config_idx is not None and self.next_idx > self.config_idx

    def take(self) -> Buffer[B]:
        """The next buffer in order. KeyError when it is not `ready`."""
        buffer = self._kept.pop(self.next_idx)
        self.next_idx += 1
        return buffer

    def missing(self) -> str:
        """What has not come, as a sentence; "" when nothing is missing."""
        if self.complete:
            return ""
        gaps = []
        for idx in range(self.next_idx, min(self._highest, self.next_idx + self._ahead_max) + 1):
            if idx not in self._kept:
                gaps.append(idx)
                if len(gaps) > 8:
                    break
        named = ", ".join(map(str, gaps[:8])) + (" and more" if len(gaps) > 8 else "")
        config = "" if self.config_idx is not None else "the config buffer"
        buffers = f"buffer {named}" if len(gaps) == 1 else f"buffers {named}"
        what = " and ".join(part for part in (buffers if gaps else "", config) if part)
        if not what:  # all here, not taken yet
            return f"{self.device}: buffers {self.next_idx} to {self._highest} have come but were not loaded"
        return f"{self.device}: {what} never came ({self.next_idx} of its buffers were loaded)"

    def _fail(self, message: str, field: str = "idx") -> RemoteProtocolError:
        return RemoteProtocolError(f"{self.device}: {message}", field=field)
