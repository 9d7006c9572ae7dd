# SPDX-License-Identifier: GPL-2.0-or-later
"""Sources that put the main channel, the rounds of SYNC, or the guest's pages together wrongly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mockdev.device.image import PAGE_SIZE
from mockdev.multifd.sender import RamPacket, SendPlan, SendSync, Work
from mockdev.runtime.machine import RAM, Section
from mockdev.runtime.ram import BLOCK, PACKET_PAGES
from mockdev.runtime.replies import PING
from mockdev.wire import writer
from mockdev.wire.channel import Event
from mockdev.wire.structs import Command, RamFlag, Tag, VfioTag
from verifier.simulation.migration import Parts
from verifier.simulation.slot import Result, Slot
from verifier.simulation.source import Source
from verifier.simulation.world import Steps
from verifier.simulation.zoo.bug import Bug, source_with

_MULTIFD = {"transfer": "multifd"}
_PRECOPY = {"precopy_bytes": 100, "state_bytes": 600}


class _LosingPlan(SendPlan):
    """From the second round on, the first channel is left out."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.rounds = 0

    def request_sync(self) -> None:
        super().request_sync()
        self.rounds += 1
        if self.rounds > 1:
            self._sync_wanted.discard(0)
            self._sync_written = 1


class _RepeatingPlan(SendPlan):
    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.repeated = False

    def take(self, channel: int) -> Work | None:
        work = super().take(channel)
        if isinstance(work, SendSync) and channel == 0 and not self.repeated:
            self.repeated = True
            self._sync_wanted.add(0)
            self._sync_written -= 1
        return work


class _HastyPlan(SendPlan):
    """A SYNC does not wait for the pages before it."""

    def take(self, channel: int) -> Work | None:
        waiting, self._ram = self._ram, type(self._ram)()
        work = super().take(channel) if channel in self._sync_wanted else None
        self._ram = waiting
        return work or super().take(channel)


class _PagesAfterSync(Source):
    """The last round's SYNC goes before its pages."""

    def ram_section(self, tag: Tag, offsets: Sequence[int]) -> Steps:
        if tag != Tag.SECTION_END:
            yield from super().ram_section(tag, offsets)
            return
        yield from super().ram_section(tag, ())
        for packet in self.ram.blocks[BLOCK].packets(offsets, find_zero=False):
            yield from self.queue_ram(packet)


class _PageLeftOut(Source):
    def ram_section(self, tag: Tag, offsets: Sequence[int]) -> Steps:
        last = self.ram.blocks[BLOCK].size - PAGE_SIZE
        yield from super().ram_section(tag, [offset for offset in offsets if offset != last])


class _PageTwice(Source):
    def queue_ram(self, packet: RamPacket) -> Steps:
        if len(packet.normal) + len(packet.zero) < PACKET_PAGES:
            packet = packet._replace(normal=(*packet.normal, *packet.normal[:1]))
        yield from super().queue_ram(packet)


class _ZeroMisjudged(Source):
    def queue_ram(self, packet: RamPacket) -> Steps:
        if packet.normal:
            *normal, last = packet.normal
            packet = packet._replace(normal=tuple(normal), zero=(*packet.zero, last))
        yield from super().queue_ram(packet)


class _PageOnMain(Source):
    def ram_section(self, tag: Tag, offsets: Sequence[int]) -> Steps:
        if tag != Tag.SECTION_PART or not offsets:
            yield from super().ram_section(tag, offsets)
            return
        first, *rest = offsets
        yield from self.send(writer.section_head(tag, self.ids[RAM]), event=Event.PART)
        page = writer.ram_page(RamFlag.PAGE, first, BLOCK)
        yield from self.send(page, self.ram.blocks[BLOCK].page(first), writer.ram_mark(RamFlag.EOS))
        yield from self.send(writer.section_footer(self.ids[RAM]))
        yield from super().ram_section(tag, rest)


class _PingFirst(Source):
    def open(self) -> Steps:
        self.course.take(Event.HEADER)
        yield from self.send(writer.stream_header())
        yield from self.send(writer.configuration(self.machine.type), event=Event.CONFIGURATION)
        self.mark("ping", PING)
        yield from self.send(writer.ping(PING), event=Event.COMMAND)
        yield from self.send(writer.command(Command.OPEN_RETURN_PATH), event=Event.COMMAND)
        self.group.spawn("return path", self.listen())


class _FooterOfNext(Source):
    def end(self, section: Section) -> Steps:
        if section.idstr == RAM or not self.multifd:
            yield from super().end(section)
            return
        yield from self.send(writer.section_head(Tag.SECTION_END, section.id), event=Event.END)
        yield from self.send(writer.vfio_tag(VfioTag.END_OF_STATE), writer.section_footer(section.id + 1))


class _SectionVersion(Source):
    def setup(self, section: Section) -> Steps:
        if section.idstr == RAM:
            yield from super().setup(section)
            return
        yield from super().setup(Section(section.tag, section.id, section.idstr, 0, section.version_id + 1))


class _StateTwice(Source):
    def full(self, section: Section) -> Steps:
        yield from super().full(section)
        if section.idstr == "globalstate":
            yield from super().full(section)


class _ConfigOnMainToo(Source):
    def full(self, section: Section) -> Steps:
        if section.idstr == "globalstate" or not self.multifd:
            yield from super().full(section)
            return
        payload = self.slot(section).config_payload()
        yield from self.section(section, payload)
        self.described.append(writer.opaque_description(section.idstr, 0, len(payload)))


class _DescriptionOrder(Source):
    def end_stream(self) -> Steps:
        self.described.reverse()
        yield from super().end_stream()


class _DescriptionLength(Source):
    def end_stream(self) -> Steps:
        self.described[0] = writer.opaque_description(str(self.described[0]["name"]), 0, 1 << 20)
        yield from super().end_stream()


class _Trailing(Source):
    def end_stream(self) -> Steps:
        yield from super().end_stream()
        yield from self.send(bytes(8))


class _SaveEarly(Source):
    """The devices are saved as soon as they have stopped."""

    def switch_over(self) -> Steps:
        for device in range(len(self.slots)):
            self.group.spawn(f"save {self.slots[device].name}", self.save(device))
        while not self.plan.devices_sent:
            yield self.progress
        self.mark("switchover-start")
        yield from self.send(writer.command(Command.SWITCHOVER_START), event=Event.SWITCHOVER)


class _NoSwitchover(Source):
    def switch_over(self) -> Steps:
        self.mark("switchover-start")
        for device in range(len(self.slots)):
            self.group.spawn(f"save {self.slots[device].name}", self.save(device))
        yield from ()


class _SwitchoverTwice(Source):
    def switch_over(self) -> Steps:
        yield from self.send(writer.command(Command.SWITCHOVER_START))
        yield from super().switch_over()


class _SwitchoverLate(Source):
    """The command comes when RAM has ended."""

    def switch_over(self) -> Steps:
        yield from ()

    def end(self, section: Section) -> Steps:
        yield from super().end(section)
        if section.idstr == RAM:
            course, self.course = self.course, type(self.course)(self.course.table, "main", local=True)
            self.course.phase = course.table[course.phase][Event.END]
            self.mark("switchover-start")
            yield from self.send(writer.command(Command.SWITCHOVER_START))
            for device in range(len(self.slots)):
                self.group.spawn(f"save {self.slots[device].name}", self.save(device))


class _InitialSentAgain(Source):
    def precopy_part(self, slot: Slot) -> Result[bool]:
        more = yield from super().precopy_part(slot)
        self.initial_sent.discard(slot.name)
        return more


class _SectionsExchanged(Source):
    def precopy_part(self, slot: Slot) -> Result[bool]:
        right = dict(self.ids)
        first, second = (slot.name for slot in self.slots)
        self.ids[first], self.ids[second] = right[second], right[first]
        more = yield from super().precopy_part(slot)
        self.ids.update(right)
        return more


STREAM = (
    Bug(
        "sync-lost",
        "From the second round on one channel gets no SYNC.",
        "QEMU multifd device state v2 to v3: a race with the final SYNC",
        source_with(_LosingPlan),
        ("RS-8",),
        fixed={"channels": 3},
    ),
    Bug(
        "sync-twice",
        "One channel gets a SYNC twice in the same round.",
        "QEMU up to 9.2: one SYNC more than marks, which a flush counts as its own",
        source_with(_RepeatingPlan),
        ("RS-8",),
    ),
    Bug(
        "sync-before-pages",
        "A SYNC does not wait for the pages that are queued before it.",
        "QEMU migration/multifd.c: multifd_send_sync_main flushes the queued pages first",
        source_with(_HastyPlan),
        ("RS-10",),
        fixed={"channels": 3, "ram_bytes": 20480},
    ),
    Bug(
        "pages-after-last-sync",
        "The last pages go out behind the last SYNC.",
        "QEMU migration/ram.c: ram_save_complete flushes, then syncs",
        Parts(source=_PagesAfterSync),
        ("RS-12",),
        kinds=("guest",),
    ),
    Bug(
        "page-left-out",
        "The last page of the RAM is never sent.",
        "QEMU 2020: pages above 3 GiB were lost, behind the hole below 4 GiB",
        Parts(source=_PageLeftOut),
        ("RS-13",),
    ),
    Bug(
        "page-twice",
        "A page is sent twice in one round.",
        "QEMU migration/ram.c: the dirty bit is cleared when the page is queued",
        Parts(source=_PageTwice),
        ("MP-8",),
    ),
    Bug(
        "zero-misjudged",
        "A page with data is taken for zero.",
        "QEMU migration/multifd-zero-page.c: buffer_is_zero looks at all of a page",
        Parts(source=_ZeroMisjudged),
        ("EQ-2",),
        "target's journal",
    ),
    Bug(
        "page-on-main",
        "A page goes over the main channel though there are others.",
        "QEMU migration/ram.c: ram_save_target_page queues to multifd",
        Parts(source=_PageOnMain),
        ("RS-6",),
    ),
    Bug(
        "ping-before-return-path",
        "The source pings before it has opened the return path.",
        "QEMU migration/savevm.c: a PING without return path is an error",
        Parts(source=_PingFirst),
        ("FR-13",),
    ),
    Bug(
        "footer-of-next",
        "A section ends with the footer of another.",
        "QEMU migration/savevm.c: check_section_footer came in 2.3 for streams that had lost their step",
        Parts(source=_FooterOfNext),
        ("FR-8",),
        fixed=_MULTIFD,
    ),
    Bug(
        "section-version",
        "Sections of VFIO devices have a later version than there is.",
        "QEMU migration/savevm.c: qemu_loadvm_section_start_full refuses it",
        Parts(source=_SectionVersion),
        ("FR-16",),
    ),
    Bug(
        "device-state-twice",
        "A device's section is written twice.",
        "QEMU migration/savevm.c: early devices are to be left out of the later loop",
        Parts(source=_StateTwice),
        ("FR-10",),
    ),
    Bug(
        "config-on-both-ways",
        "The config state goes over the main channel as well as over multifd.",
        "QEMU 10.1, x-migration-load-config-after-iter: where the config is loaded was changed",
        Parts(source=_ConfigOnMainToo),
        ("DS-11",),
        fixed=_MULTIFD,
    ),
    Bug(
        "description-order",
        "The VM description lists the devices in another order than the stream has them.",
        "QEMU migration/savevm.c: vmdesc grows with each section",
        Parts(source=_DescriptionOrder),
        ("FR-11",),
    ),
    Bug(
        "description-length",
        "The VM description gives a section another length than it has.",
        "QEMU migration/savevm.c: vmstate_save_old_style measures what was written",
        Parts(source=_DescriptionLength),
        ("FR-11",),
    ),
    Bug(
        "bytes-after-end",
        "Something is written behind the VM description.",
        "QEMU migration/savevm.c: qemu_savevm_state_complete_precopy_non_iterable writes it last",
        Parts(source=_Trailing),
        ("EN-1",),
    ),
    Bug(
        "saved-before-switchover",
        "Devices are saved over multifd before SWITCHOVER_START is sent.",
        "QEMU 10.0 migration/savevm.c: SWITCHOVER_START was made so that the target knows what comes",
        Parts(source=_SaveEarly),
        ("DS-9",),
        "source's journal",
        kinds=("costs",),
        fixed=_MULTIFD,
    ),
    Bug(
        "no-switchover-start",
        "SWITCHOVER_START is not sent.",
        "QEMU up to 9.2: there was no such command, and send-switchover-start can turn it off",
        Parts(source=_NoSwitchover),
        ("SM-1",),
        fixed=_MULTIFD,
    ),
    Bug(
        "switchover-start-twice",
        "SWITCHOVER_START is sent twice.",
        "QEMU hw/vfio/migration-multifd.c: vfio_multifd_switchover_start asserts that it is the first",
        Parts(source=_SwitchoverTwice),
        ("SM-1",),
    ),
    Bug(
        "switchover-start-late",
        "SWITCHOVER_START is sent after the end of RAM.",
        "QEMU migration/migration.c: migration_switchover_start comes before the iterables end",
        Parts(source=_SwitchoverLate),
        ("SM-2",),
        fixed=_MULTIFD,
    ),
    Bug(
        "initial-data-sent-twice",
        "A device says more than once that its first data has been sent.",
        "QEMU migration/savevm.c: qemu_loadvm_approve_switchover counted devices down, below zero",
        Parts(source=_InitialSentAgain),
        ("SM-6",),
        fixed={**_PRECOPY, "switchover_ack": True, "dialect": "10.0"},
    ),
    Bug(
        "sections-exchanged",
        "What two devices save before the stop stands in each other's section.",
        "QEMU migration/savevm.c: a section id is that of one SaveStateEntry",
        Parts(source=_SectionsExchanged),
        ("EQ-1",),
        "source's journal",
        fixed={**_PRECOPY, "vfs": 2},
    ),
)
