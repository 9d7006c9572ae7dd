# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's RAM: blocks of pages, sent and taken page by page; our own machine's is made from the seed."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence

from mockdev.device.image import PAGE_SIZE, Pattern
from mockdev.errors import RemoteProtocolError, VfmigError
from mockdev.memory import allocate
from mockdev.multifd.sender import RamPacket
from mockdev.wire.frames import RamFrame, RamRecordItem
from mockdev.wire.structs import MULTIFD_PACKET_BYTES

BLOCK = "pc.ram"  # our own machine's one block
PACKET_PAGES = MULTIFD_PACKET_BYTES // PAGE_SIZE
_DATA_ONE_IN = 8  # pages with data
_DIRTY_ONE_IN = 64  # pages sent once more after the stop
_ZERO = bytes(PAGE_SIZE)


class RamBlock:
    """One block, `size` bytes (whole pages). memory: what it holds.

    came: a byte for each page, 1 once it was received; at a source 1 for each page that is to be sent.
    """

    def __init__(self, name: str, memory: memoryview) -> None:
        self.name = name
        self.memory = memory
        self.size = len(memory)
        self.came = bytearray(self.size // PAGE_SIZE)

    def page(self, offset: int) -> memoryview:
        """One page, writable."""
        return self.memory[offset : offset + PAGE_SIZE]

    def is_zero(self, offset: int) -> bool:
        """Whether a page is zero."""
        return bytes(self.page(offset)) == _ZERO

    # -- sending -------------------------------------------------------------------------------------

    def send_all(self) -> None:
        """Every page is to be sent."""
        self.came = bytearray(b"\1") * len(self.came)

    def pages(self) -> Sequence[int]:
        """Offsets of all pages that are to be sent."""
        return self._chosen(range(0, self.size, PAGE_SIZE))

    def dirty_pages(self) -> Sequence[int]:
        """Offsets of the pages that are sent again at the end, as if the guest had written to them."""
        return self._chosen(range(0, self.size, PAGE_SIZE * _DIRTY_ONE_IN))

    def packets(self, offsets: Sequence[int], *, find_zero: bool) -> Iterator[RamPacket]:
        """These pages as multifd packets; find_zero: zero pages are only named."""
        for first in range(0, len(offsets), PACKET_PAGES):
            normal: list[int] = []
            zero: list[int] = []
            for offset in offsets[first : first + PACKET_PAGES]:
                (zero if find_zero and self.is_zero(offset) else normal).append(offset)
            yield RamPacket(self.name, tuple(normal), tuple(zero))

    def runs(self, offsets: Sequence[int]) -> list[memoryview]:
        """Pages as views, neighbours joined."""
        views: list[memoryview] = []
        start = end = -1
        for offset in offsets:
            if offset != end:
                if end > start:
                    views.append(self.memory[start:end])
                start = offset
            end = offset + PAGE_SIZE
        if end > start:
            views.append(self.memory[start:end])
        return views

    def _chosen(self, offsets: range) -> Sequence[int]:
        if 0 not in self.came:
            return offsets
        return [offset for offset in offsets if self.came[offset // PAGE_SIZE]]

    # -- receiving -----------------------------------------------------------------------------------

    def take(self, offsets: Sequence[int]) -> None:
        """These pages have been received."""
        for offset in offsets:
            self.came[offset // PAGE_SIZE] = 1

    def take_zero(self, offset: int) -> None:
        """This page is zero at the source. Here it is zero until it has come once."""
        number = offset // PAGE_SIZE
        if self.came[number] and not self.is_zero(offset):
            self.page(offset)[:] = _ZERO
        self.came[number] = 1

    def missing(self) -> str:
        """Which pages never came, as a sentence; "" when all did."""
        count = self.came.count(0)
        if not count:
            return ""
        first = self.came.index(0) * PAGE_SIZE
        return f"{count} pages of {self.name} never came, the first at {first:#x}"


class GuestRam:
    """All blocks of a machine by name, in the order of the stream's list."""

    def __init__(self, *blocks: RamBlock) -> None:
        self.blocks = {block.name: block for block in blocks}

    def send_packet(self, packet: RamPacket) -> list[memoryview]:
        """The data of a packet's pages."""
        return self.blocks[packet.block].runs(packet.normal)

    def block_of(self, frame: RamFrame, channel: str) -> RamBlock:
        """The block of a packet that has come. RemoteProtocolError when the packet does not fit our RAM."""
        head = frame.head
        pages = len(frame.normal) + len(frame.zero)
        name = head.ramblock.partition(b"\0")[0].decode("ascii", "backslashreplace")
        block = self.blocks.get(name)
        wrong = ""
        field = ""
        if head.flags:
            wrong, field = f"flags {head.flags:#x}: compressed or unknown", "flags"
        elif head.pages_alloc > PACKET_PAGES or head.normal_pages + head.zero_pages != pages or not pages:
            wrong, field = f"{head.normal_pages} and {head.zero_pages} pages in a packet", "normal_pages"
        elif head.next_packet_size != frame.payload_size:
            wrong = f"{head.next_packet_size} bytes for {head.normal_pages} pages"
            field = "next_packet_size"
        elif block is None:
            wrong, field = f"unknown RAM block {name!r}", "ramblock"
        else:
            for offset in (*frame.normal, *frame.zero):
                if offset % PAGE_SIZE or offset + PAGE_SIZE > block.size:
                    wrong, field = f"page offset {offset:#x} in a block of {block.size:#x} bytes", "offset"
        if wrong or block is None:
            raise RemoteProtocolError(wrong, channel=channel, offset=frame.offset, field=field)
        return block

    def block_of_page(self, item: RamRecordItem) -> RamBlock:
        """The block of a page on the main channel. RemoteProtocolError when there is no such page."""
        block = self.blocks.get(item.block)
        if block is None or item.page + PAGE_SIZE > block.size:
            raise RemoteProtocolError(
                f"page {item.page:#x} of block {item.block!r}, here {self.sizes}",
                channel="main",
                offset=item.offset,
                field="ram page",
            )
        return block

    @property
    def sizes(self) -> list[tuple[str, int]]:
        """(name, bytes) of each block."""
        return [(block.name, block.size) for block in self.blocks.values()]


# --- our own machine's RAM -------------------------------------------------------------------------


def own_ram(size: int, seed: int, *, filled: bool) -> GuestRam:
    """RAM of `size` bytes (whole pages, 0 allowed). filled: as the source has it; else zero."""
    if not size:
        return GuestRam()
    block = RamBlock(BLOCK, allocate(size))
    if filled:
        block.send_all()
        pattern = Pattern(seed, BLOCK)
        for offset in _data_pages(size, seed):
            pattern.fill(block.page(offset), offset)
    return GuestRam(block)


def verify_own_ram(ram: GuestRam, seed: int) -> int | None:
    """The first byte that is not as `own_ram` fills it, or None."""
    for block in ram.blocks.values():
        pattern = Pattern(seed, BLOCK)
        with_data = set(_data_pages(block.size, seed))
        for offset in range(0, block.size, PAGE_SIZE):
            if offset in with_data:
                difference = pattern.verify(block.page(offset), offset)
                if difference is not None:
                    return difference.offset
            elif not block.is_zero(offset):
                return offset
    return None


def _data_pages(size: int, seed: int) -> Iterator[int]:
    for offset in range(0, size, PAGE_SIZE):
        mixed = (offset // PAGE_SIZE + seed) * 0x9E3779B1 & 0xFFFFFFFF
        if mixed < (1 << 32) // _DATA_ONE_IN:
            yield offset


# --- any machine's RAM -----------------------------------------------------------------------------


def untouched(size: int) -> memoryview:
    """`size` zero bytes that take memory only where something is written. VfmigError: they cannot be had."""
    try:
        area = mmap.mmap(-1, max(size, 1), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError, ValueError) as error:
        raise VfmigError(f"{size} bytes for guest RAM cannot be had: {error}") from None
    return memoryview(area)[:size]
