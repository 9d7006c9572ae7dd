# SPDX-License-Identifier: GPL-2.0-or-later
"""RS: guest memory, and the marks that keep the channels and the main channel in step."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

from mockdev.wire.frames import InitFrame, RamBlocksItem, RamFrame, RamRecordItem, SectionItem
from mockdev.wire.structs import PAGE_BYTES, MultifdFlag, RamFlag, Tag
from verifier.capture.flows import Lane
from verifier.history.facts import Facts
from verifier.history.observation import Broken, Seen, text
from verifier.invariants.framing import refusal
from verifier.invariants.passport import (
    CHANNEL,
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
_EPOCHS_MAX = 65_536
_MAPPED_PAGES_MAX = 24 << 20  # of all blocks together: 96 GiB of guest memory, 96 MiB here


class BlockList(Invariant[SectionItem | RamBlocksItem | RamRecordItem | Broken]):
    passport = Passport(
        "RS-1",
        "The list of RAM blocks is the first record of the RAM START section, with unique names whose "
        "lengths add up, and stands nowhere else.",
        Severity.ABORTS,
        qemu("migration/ram.c", "parse_ramblocks"),
        MIGRATION,
        (Need.MAIN,),
    )
    kinds = (SectionItem, RamBlocksItem, RamRecordItem, Broken)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.expected = False
        self.start: Seen | None = None

    def on(
        self, seen: Seen, event: SectionItem | RamBlocksItem | RamRecordItem | Broken
    ) -> Iterator[Finding]:
        if isinstance(event, Broken):
            if self.facts.mapped_ram:
                self.unknown = "mapped-ram: that layout of RAM is not read"
                return
            yield from refusal(seen, event, "mem_size")
        elif isinstance(event, SectionItem):
            if event.idstr == "ram":
                self.expected = event.tag == Tag.SECTION_START
                self.start = seen
        elif isinstance(event, RamRecordItem):
            if self.expected and self.start is not None:
                yield Finding("the RAM START section does not begin with the block list", (self.start, seen))
            self.expected = False
        else:
            names = [name for name, _, _ in event.blocks]
            if not self.expected:
                yield Finding("a block list where none belongs", (seen,))
            elif len(set(names)) < len(names):
                yield Finding("a RAM block is listed twice", (seen,))
            elif sum(length for _, length, _ in event.blocks) != event.total:
                yield Finding("the block lengths do not add up to the total", (seen,))
            self.expected = False


class RecordFlags(Invariant[RamRecordItem | Broken]):
    passport = Passport(
        "RS-4",
        "Every RAM record has one known kind, and marks carry no address.",
        Severity.ABORTS,
        qemu("migration/ram.c", "ram_load_precopy"),
        MIGRATION,
    )
    kinds = (RamRecordItem, Broken)

    def on(self, seen: Seen, event: RamRecordItem | Broken) -> Iterator[Finding]:
        if isinstance(event, Broken):
            if not self.facts.mapped_ram:  # whose layout of RAM is not read here
                yield from refusal(seen, event, "ram flags", "xbzrle")
        elif not event.flags & _PAGE_RECORDS and event.page:
            yield Finding(f"a mark with address {event.page:#x}", (seen,))


class RecordPlace(Invariant[RamRecordItem]):
    passport = Passport(
        "RS-5",
        "A page record names its block, itself or by CONTINUE, lies inside it, and fills with zero only.",
        Severity.ABORTS,
        qemu("migration/ram.c", "ram_block_from_stream"),
        MIGRATION,
    )
    kinds = (RamRecordItem,)

    def on(self, seen: Seen, event: RamRecordItem) -> Iterator[Finding]:
        if not event.flags & _PAGE_RECORDS:
            return
        length = self.facts.blocks.get(event.block)
        if length is None:
            yield Finding(f"a page of no known block ({event.block!r})", (seen,))
        elif event.page > length - PAGE_BYTES:
            yield Finding(f"page {event.page:#x} of {event.block!r}, which has {length:#x} bytes", (seen,))
        elif event.fill:
            yield Finding(f"a page filled with {event.fill:#04x}", (seen,))


class NoPagesOnMain(Invariant[InitFrame | RamRecordItem]):
    passport = Passport(
        "RS-6",
        "With multifd, no page data travels on the main channel.",
        Severity.SLOWS,
        qemu("migration/ram.c", "ram_save_target_page_multifd"),
        MIGRATION,
        (Need.MAIN,),
    )
    kinds = (InitFrame, RamRecordItem)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.page: Seen | None = None
        self.multifd = False

    def on(self, seen: Seen, event: InitFrame | RamRecordItem) -> Iterator[Finding]:
        if isinstance(event, InitFrame):
            self.multifd = True
        elif event.flags & (RamFlag.PAGE | RamFlag.XBZRLE):
            self.page = self.page or seen
        return iter(())

    def at_end(self) -> Iterator[Finding]:
        if self.multifd and self.page is not None and not self.facts.postcopy:
            yield Finding("a page on the main channel beside multifd", (self.page,))


class SyncFirst(Invariant[RamFrame]):
    passport = Passport(
        "RS-7",
        "The first packet of every channel that carries RAM is a SYNC.",
        Severity.ABORTS,
        qemu("migration/ram.c", "ram_save_setup"),
        CHANNEL,
    )
    kinds = (RamFrame,)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.begun = False

    def on(self, seen: Seen, event: RamFrame) -> Iterator[Finding]:
        if not self.begun and not event.head.flags & _SYNC:
            yield Finding("pages come before the first SYNC", (seen,))
        self.begun = True


class SyncCount(Invariant[InitFrame | RamFrame]):
    passport = Passport(
        "RS-8",
        "Every channel has as many SYNC packets as the main channel has MULTIFD_FLUSH marks (sources up "
        "to 9.2: or one more); without such marks, as many as RAM sections.",
        Severity.STALLS,
        qemu("migration/multifd-nocomp.c", "multifd_ram_flush_and_sync"),
        MIGRATION,
        (Need.MAIN, Need.CHANNELS),
    )
    kinds = (InitFrame, RamFrame)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.counts: dict[Lane, int] = {}
        self.witnesses: dict[Lane, Seen] = {}

    def on(self, seen: Seen, event: InitFrame | RamFrame) -> Iterator[Finding]:
        known = self.counts.setdefault(seen.lane, 0)
        if isinstance(event, InitFrame) or event.head.flags & _SYNC:
            self.witnesses[seen.lane] = seen
        if isinstance(event, RamFrame) and event.head.flags & _SYNC:
            self.counts[seen.lane] = known + 1
        return iter(())

    def at_end(self) -> Iterator[Finding]:
        facts = self.facts
        if not self.complete:
            return
        wanted = facts.flushes or facts.ends_of_section
        surplus = bool(facts.flushes and facts.dialect is not None and facts.dialect.sync_surplus)
        for lane, count in self.counts.items():
            if not wanted <= count <= wanted + surplus:
                marks = "flush marks" if facts.flushes else "RAM sections"
                yield Finding(
                    f"{count} SYNC packets on {lane.name}, {wanted} {marks}", (self.witnesses[lane],)
                )


class EpochOrder(Invariant[RamFrame]):
    passport = Passport(
        "RS-10",
        "Every packet number before the k-th SYNC of any channel is below every number after the k-th "
        "SYNC of any other.",
        Severity.CORRUPTS,
        qemu("migration/multifd.c", "multifd_send_sync_main"),
        MIGRATION,
        (Need.CHANNELS,),
    )
    kinds = (RamFrame,)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.epochs: dict[Lane, int] = {}
        self.lowest: dict[int, tuple[int, Seen]] = {}
        self.highest: dict[int, tuple[int, Seen]] = {}

    def on(self, seen: Seen, event: RamFrame) -> Iterator[Finding]:
        epoch = self.epochs.get(seen.lane, 0)
        number = event.head.packet_num
        low, high = self.lowest.get(epoch), self.highest.get(epoch)
        if epoch >= _EPOCHS_MAX:
            self.unknown = f"more than {_EPOCHS_MAX} rounds"
            return iter(())
        if low is None or number < low[0]:
            self.lowest[epoch] = number, seen.place()
        if high is None or number > high[0]:
            self.highest[epoch] = number, seen.place()
        if event.head.flags & _SYNC:
            self.epochs[seen.lane] = epoch + 1
        return iter(())

    def at_end(self) -> Iterator[Finding]:
        if not self.complete:
            return
        for epoch, (number, seen) in self.highest.items():
            following = self.lowest.get(epoch + 1)
            if following is not None and following[0] < number:
                yield Finding(
                    f"packet {number} of round {epoch}, packet {following[0]} of round {epoch + 1}",
                    (seen, following[1]),
                )
                return


class SyncLast(Invariant[RamFrame]):
    passport = Passport(
        "RS-12",
        "No RAM data follows a channel's last SYNC.",
        Severity.CORRUPTS,
        qemu("migration/ram.c", "ram_save_complete"),
        CHANNEL,
        (Need.CHANNELS,),
    )
    kinds = (RamFrame,)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.last: Seen | None = None

    def on(self, seen: Seen, event: RamFrame) -> Iterator[Finding]:
        self.last = None if event.head.flags & _SYNC else seen
        return iter(())

    def at_end(self) -> Iterator[Finding]:
        if self.complete and self.last is not None:
            yield Finding("RAM data after the last SYNC", (self.last,))


class PageOnce(Invariant[RamFrame]):
    passport = Passport(
        "MP-8",
        "No page is sent twice between two SYNCs.",
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
    passport = Passport(
        "RS-13",
        "Every page of every RAM block is sent at least once (with x-ignore-shared: of every block of which "
        "any page is).",
        Severity.CORRUPTS,
        qemu("migration/ram.c", "ram_init_bitmaps"),
        MIGRATION,
        (Need.MAIN, Need.CHANNELS),
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
                yield Finding(f"page {sent * PAGE_BYTES:#x} of {block!r} is never sent", (self.last,))
                return


RAM = (
    BlockList,
    RecordFlags,
    RecordPlace,
    NoPagesOnMain,
    SyncFirst,
    SyncCount,
    EpochOrder,
    SyncLast,
    PageOnce,
    EveryPage,
)
