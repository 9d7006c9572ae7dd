# SPDX-License-Identifier: GPL-2.0-or-later
"""MP, RS: which pages of guest memory were sent: none twice in a round, and all at least once."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

from mockdev.wire.frames import RamFrame, RamRecordItem
from mockdev.wire.structs import PAGE_BYTES, MultifdFlag, RamFlag
from verifier.capture.flows import Lane
from verifier.history.facts import Facts
from verifier.history.observation import Seen, text
from verifier.invariants.passport import (
    MIGRATION,
    Finding,
    Invariant,
    Need,
    Passport,
    Severity,
    qemu,
)

_SYNC = MultifdFlag.SYNC
_PAGE_RECORDS = RamFlag.ZERO | RamFlag.PAGE | RamFlag.XBZRLE
_BLOCKS_MAX = 4096
_MAPPED_PAGES_MAX = 24 << 20  # of all blocks together: 96 GiB of guest memory, 96 MiB here


class PageOnce(Invariant[RamFrame]):
    """Sound: rounds are counted by each channel's own SYNC packets, between which a source looks at each page
    once; more guest memory than 96 GiB leaves it unknown.

    Misses: pages that came twice on the main channel, and a page that was sent again in the next round for no
    reason.
    """

    passport = Passport(
        "MP-8",
        "Between one round of SYNC packets and the next no page is sent twice over multifd.",
        Severity.SLOWS,
        qemu("migration/ram.c", "ram_find_and_save_block"),
        MIGRATION,
        (Need.CHANNELS,),
    )
    kinds = (RamFrame,)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.epochs: dict[Lane, int] = {}
        self.maps: dict[bytes, array[int]] = {}  # per page, the last round in which it came
        self.room = _MAPPED_PAGES_MAX

    def on(self, seen: Seen, event: RamFrame) -> Iterator[Finding]:
        epoch = self.epochs.setdefault(seen.lane, 1)
        if event.head.flags & _SYNC:
            self.epochs[seen.lane] = epoch + 1
            return
        offsets = event.normal + event.zero
        pages = self._map(event.head.ramblock, max(offsets, default=0) // PAGE_BYTES)
        if pages is None:
            return
        for offset in offsets:
            page = offset // PAGE_BYTES
            if pages[page] == epoch:
                yield Finding(f"page {offset:#x} of {text(event.head.ramblock)!r} comes twice", (seen,))
                return
            pages[page] = epoch

    def _map(self, block: bytes, last: int) -> array[int] | None:
        """The block's map, grown to hold page `last`. The list of blocks may be captured later than this."""
        pages = self.maps.get(block)
        if pages is None:
            if len(self.maps) >= _BLOCKS_MAX:
                return None
            pages = self.maps[block] = array("I")
        more = last + 1 - len(pages)
        if more > 0:
            if more > self.room:
                self.unknown = "more guest memory than is kept track of"
                return None
            self.room -= more
            pages.frombytes(bytes(4 * more))
        return pages


class EveryPage(Invariant[RamFrame | RamRecordItem]):
    """Sound: every page of every block in the stream's list must be named at least once over all channels, by
    a source that got to the end of its stream, whatever became of the migration then; a device that may take
    pages out (virtio-mem, virtio-balloon), x-ignore-shared and postcopy are left out.

    Misses: a page that was sent in an old version and never again: EQ-7 compares the guest's RAM.
    """

    passport = Passport(
        "RS-13",
        "In precopy every page of every RAM block is sent at least once, but for blocks left out by "
        "x-ignore-shared and pages taken out by virtio-mem or by free-page hints of virtio-balloon.",
        Severity.CORRUPTS,
        qemu(
            "migration/ram.c",
            "ram_init_bitmaps, migration_bitmap_clear_discarded_pages, qemu_guest_free_page_hint",
        ),
        MIGRATION,
        (Need.MAIN, Need.RAM),
    )
    kinds = (RamFrame, RamRecordItem)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.maps: dict[str, bytearray] = {}
        self.room = _MAPPED_PAGES_MAX
        self.last: Seen | None = None

    def on(self, seen: Seen, event: RamFrame | RamRecordItem) -> Iterator[Finding]:
        self.last = seen
        if isinstance(event, RamRecordItem):
            if event.flags & _PAGE_RECORDS:
                self._mark(event.block, (event.page,))
        elif not event.head.flags & _SYNC:
            self._mark(text(event.head.ramblock), event.normal + event.zero)
        return iter(())

    def _mark(self, block: str, offsets: tuple[int, ...]) -> None:
        pages = self.maps.get(block)
        if pages is None:
            if len(self.maps) >= _BLOCKS_MAX:
                return
            pages = self.maps[block] = bytearray()
        more = max(offsets, default=0) // PAGE_BYTES + 1 - len(pages)
        if more > 0:
            if more > self.room:
                self.unknown = "more guest memory than is kept track of"
                return
            self.room -= more
            pages.extend(bytes(more))
        for offset in offsets:
            pages[offset // PAGE_BYTES] = 1

    def at_end(self) -> Iterator[Finding]:
        facts = self.facts
        if self.unknown or not self.complete or facts.postcopy or self.last is None:
            return
        for block, length in facts.blocks.items():
            pages = self.maps.get(block)
            if pages is None and facts.ignore_shared:
                continue
            page = -1 if pages is None else pages.find(0)
            sent = 0 if pages is None else len(pages) if page < 0 else page
            if sent < length // PAGE_BYTES:
                if facts.sparse:
                    self.unknown = f"page {sent} of {block!r} is never sent, which {facts.sparse!r} allows"
                    return
                yield Finding(f"page {sent * PAGE_BYTES:#x} of {block!r} is never sent", (self.last,))
                return


PAGES = (PageOnce, EveryPage)
