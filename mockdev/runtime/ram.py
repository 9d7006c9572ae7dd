# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's RAM: one block of mostly zero pages, made from the seed, sent and checked page by page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mockdev.device.image import PAGE_SIZE, Pattern
from mockdev.errors import RemoteProtocolError
from mockdev.memory import allocate
from mockdev.multifd.sender import RamPacket
from mockdev.wire.frames import RamFrame
from mockdev.wire.structs import MULTIFD_PACKET_BYTES

BLOCK = "pc.ram"
PACKET_PAGES = MULTIFD_PACKET_BYTES // PAGE_SIZE
_DATA_ONE_IN = 8  # pages with data
_DIRTY_ONE_IN = 64  # pages sent once more after the stop
_ZERO = bytes(PAGE_SIZE)


class GuestRam:
    """RAM of `size` bytes (whole pages, 0 allowed). filled: as the source has it; else zero."""

    def __init__(self, size: int, seed: int, *, filled: bool) -> None:
        self.size = size
        self._seed = seed
        self._memory = allocate(size)
        self._came = bytearray(size // PAGE_SIZE)
        if filled and size:
            pattern = Pattern(seed, BLOCK)
            for offset in self._data_pages():
                pattern.fill(self.page(offset), offset)

    @property
    def blocks(self) -> list[tuple[str, int]]:
        """(name, bytes) of each block."""
        return [(BLOCK, self.size)] if self.size else []

    def page(self, offset: int) -> memoryview:
        """One page, writable."""
        return self._memory[offset : offset + PAGE_SIZE]

    # -- sending -------------------------------------------------------------------------------------

    def all_pages(self) -> range:
        """Offsets of all pages."""
        return range(0, self.size, PAGE_SIZE)

    def dirty_pages(self) -> range:
        """Offsets of the pages that are sent again at the end, as if the guest had written to them."""
        return range(0, self.size, PAGE_SIZE * _DIRTY_ONE_IN)

    def is_zero(self, offset: int) -> bool:
        """Whether a page is zero."""
        return bytes(self.page(offset)) == _ZERO

    def packets(self, offsets: Sequence[int], *, find_zero: bool) -> Iterator[RamPacket]:
        """These pages as multifd packets; find_zero: zero pages are only named."""
        for first in range(0, len(offsets), PACKET_PAGES):
            normal: list[int] = []
            zero: list[int] = []
            for offset in offsets[first : first + PACKET_PAGES]:
                (zero if find_zero and self.is_zero(offset) else normal).append(offset)
            yield RamPacket(BLOCK, tuple(normal), tuple(zero))

    def runs(self, offsets: Sequence[int]) -> list[memoryview]:
        """Pages as views, neighbours joined."""
        views: list[memoryview] = []
        start = end = -1
        for offset in offsets:
            if offset != end:
                if end > start:
                    views.append(self._memory[start:end])
                start = offset
            end = offset + PAGE_SIZE
        if end > start:
            views.append(self._memory[start:end])
        return views

    # -- receiving -----------------------------------------------------------------------------------

    def check_blocks(self, blocks: Sequence[tuple[str, int, int | None]], offset: int) -> None:
        """RemoteProtocolError when the source's RAM is not like ours."""
        theirs = [(name, size) for name, size, _ in blocks]
        if theirs != self.blocks:
            raise RemoteProtocolError(
                f"RAM blocks {theirs}, here they are {self.blocks}",
                channel="main",
                offset=offset,
                field="mem_size",
            )

    def check_packet(self, frame: RamFrame, channel: str) -> None:
        """RemoteProtocolError when a packet does not fit our RAM."""
        head = frame.head
        pages = len(frame.normal) + len(frame.zero)
        name = head.ramblock.partition(b"\0")[0].decode("ascii", "backslashreplace")
        wrong = ""
        field = ""
        if head.flags:
            wrong, field = f"flags {head.flags:#x}: compressed or unknown", "flags"
        elif head.pages_alloc > PACKET_PAGES or head.normal_pages + head.zero_pages != pages or not pages:
            wrong, field = f"{head.normal_pages} and {head.zero_pages} pages in a packet", "normal_pages"
        elif head.next_packet_size != frame.payload_size:
            wrong = f"{head.next_packet_size} bytes for {head.normal_pages} pages"
            field = "next_packet_size"
        elif name != BLOCK:
            wrong, field = f"unknown RAM block {name!r}", "ramblock"
        else:
            for offset in (*frame.normal, *frame.zero):
                if offset % PAGE_SIZE or offset + PAGE_SIZE > self.size:
                    wrong, field = f"page offset {offset:#x} in a block of {self.size:#x} bytes", "offset"
        if wrong:
            raise RemoteProtocolError(wrong, channel=channel, offset=frame.offset, field=field)

    def check_page(self, block: str, offset: int, at: int) -> None:
        """The same for a page on the main channel."""
        if block != BLOCK or offset + PAGE_SIZE > self.size:
            raise RemoteProtocolError(
                f"page {offset:#x} of block {block!r}, here {self.blocks}",
                channel="main",
                offset=at,
                field="ram page",
            )

    def came(self, offsets: Sequence[int]) -> None:
        """These pages have been received."""
        for offset in offsets:
            self._came[offset // PAGE_SIZE] = 1

    def came_zero(self, offset: int) -> None:
        """This page is zero at the source."""
        if not self.is_zero(offset):
            self.page(offset)[:] = _ZERO
        self._came[offset // PAGE_SIZE] = 1

    def missing(self) -> str:
        """Which pages never came, as a sentence; "" when all did."""
        count = self._came.count(0)
        if not count:
            return ""
        first = self._came.index(0) * PAGE_SIZE
        return f"{count} pages of {BLOCK} never came, the first at {first:#x}"

    def verify(self) -> int | None:
        """The first wrong byte, or None."""
        if not self.size:
            return None
        pattern = Pattern(self._seed, BLOCK)
        with_data = set(self._data_pages())
        for offset in self.all_pages():
            if offset in with_data:
                difference = pattern.verify(self.page(offset), offset)
                if difference is not None:
                    return difference.offset
            elif not self.is_zero(offset):
                return offset
        return None

    def _data_pages(self) -> Iterator[int]:
        for offset in self.all_pages():
            mixed = (offset // PAGE_SIZE + self._seed) * 0x9E3779B1 & 0xFFFFFFFF
            if mixed < (1 << 32) // _DATA_ONE_IN:
                yield offset
