# SPDX-License-Identifier: GPL-2.0-or-later
"""RS: guest memory, and the marks that keep the channels and the main channel in step."""

from __future__ import annotations

from collections.abc import Iterator

from mockdev.wire.frames import (
    DeviceStateFrame,
    InitFrame,
    RamBlocksItem,
    RamFrame,
    RamRecordItem,
    SectionItem,
)
from mockdev.wire.structs import PAGE_BYTES, MultifdFlag, RamFlag, Tag
from verifier.capture.flows import Lane
from verifier.history.facts import Facts
from verifier.history.observation import Broken, Seen
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
_DATA_RECORDS = RamFlag.PAGE | RamFlag.XBZRLE
_EPOCHS_MAX = 65_536


class BlockList(Invariant[SectionItem | RamBlocksItem | RamRecordItem | Broken]):
    """Sound: names and lengths are the stream's own; layouts that are not read here (mapped-ram, page sizes
    of postcopy-ram) leave it unknown.

    Misses: a list that is consistent and not the target's RAM: RS-2.
    """

    passport = Passport(
        "RS-1",
        "The first record of the RAM START section, and no other, is the list of RAM blocks; their names "
        "differ and their lengths add up to the total that it states.",
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
            if self.facts.postcopy_advised:
                self.unknown = "postcopy-ram: the list may hold page sizes, which are not read"
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
    """Sound: the kinds are those of 11.1 less the retired ones, which a target refuses, and marks carry no
    address in any release.

    Misses: a record of a known kind that should not be there: RS-6, RS-13.
    """

    passport = Passport(
        "RS-4",
        "Every RAM record is of exactly one known kind, and EOS and MULTIFD_FLUSH carry no address.",
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
    """Sound: block and length come from the stream's own list, CONTINUE from the record before; a target
    checks the same.

    Misses: a place that exists and is not the page's: EQ-7.
    """

    passport = Passport(
        "RS-5",
        "A page record names its block, itself or by CONTINUE, the page lies inside that block, and the "
        "fill byte of a ZERO record is 0.",
        Severity.ABORTS,
        qemu("migration/ram.c", "ram_block_from_stream, host_from_ram_block_offset, ram_load_precopy"),
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
    """Sound: with multifd a precopy source sends page data over channels only; zero pages on the main channel
    are allowed, and a migration in which postcopy began is not judged.

    Misses: a migration whose multifd connections are all missing from the capture.
    """

    passport = Passport(
        "RS-6",
        "In a precopy migration with multifd channels no page data travels on the main channel.",
        Severity.SLOWS,
        qemu("migration/ram.c", "ram_save_target_page"),
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
        elif event.flags & _DATA_RECORDS:
            self.page = self.page or seen
        return iter(())

    def at_end(self) -> Iterator[Finding]:
        if self.multifd and self.page is not None and not self.facts.postcopy:
            yield Finding("a page on the main channel beside multifd", (self.page,))


class SyncFirst(Invariant[RamFrame | DeviceStateFrame]):
    """Sound: a target that gets pages before RAM is set up writes to memory it does not have; a channel is
    judged from its init packet on.

    Misses: a channel that never sends anything: RS-8 counts its SYNCs.
    """

    passport = Passport(
        "RS-7",
        "The first packet of every multifd channel is a SYNC.",
        Severity.ABORTS,
        qemu("migration/ram.c", "ram_save_setup"),
        CHANNEL,
    )
    kinds = (RamFrame, DeviceStateFrame)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.begun = False

    def on(self, seen: Seen, event: RamFrame | DeviceStateFrame) -> Iterator[Finding]:
        if not self.begun and not event.head.flags & _SYNC:
            what = "device state comes" if isinstance(event, DeviceStateFrame) else "pages come"
            yield Finding(f"{what} before the first SYNC", (seen,))
        self.begun = True


class SyncCount(Invariant[InitFrame | RamFrame]):
    """Sound: both counts are of streams read whole, of a source that got to the end of its stream, where all
    of them are written; the one SYNC more of machine types up to 9.2 is allowed.

    Misses: a SYNC too many that goes with a FLUSH too many, and their order in time, which a capture does not
    show.
    """

    passport = Passport(
        "RS-8",
        "Every channel has as many SYNC packets as the main channel has MULTIFD_FLUSH marks (machine types "
        "up to 9.2: or one more); where it has no such mark, as many as it has EOS marks.",
        Severity.STALLS,
        qemu("migration/multifd-nocomp.c, migration/ram.c", "multifd_ram_flush_and_sync, ram_load_precopy"),
        MIGRATION,
        (Need.MAIN, Need.RAM),
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
    """Sound: a source hands out numbers to a round's packets before it begins the next, whatever the channel;
    only adjacent rounds are compared, of a completed migration.

    Misses: an order within a round, which is free, and more than 65,536 rounds (then unknown).
    """

    passport = Passport(
        "RS-10",
        "A packet up to a channel's k-th SYNC has a lower number than any packet after the k-th SYNC of any "
        "channel.",
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
    """Sound: the last SYNC is the last of all in a completed migration whose channels were read whole.

    Misses: a page that is sent too late and before the last SYNC: EQ-7.
    """

    passport = Passport(
        "RS-12",
        "No RAM packet follows the last SYNC of its channel.",
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


RAM = (
    BlockList,
    RecordFlags,
    RecordPlace,
    NoPagesOnMain,
    SyncFirst,
    SyncCount,
    EpochOrder,
    SyncLast,
)
