# SPDX-License-Identifier: GPL-2.0-or-later
"""A simulated source: mockdev/runtime/source.py and pump.py with tasks for threads.

What it decides is the production SendPlan's and the transition tables'; what is here is only the order in
which its threads ask them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from uuid import UUID

from mockdev.device.files import NotYet
from mockdev.device.image import PAGE_SIZE
from mockdev.errors import DeviceError, RemoteProtocolError, VfmigError
from mockdev.journal import Saved, Sent
from mockdev.multifd.sender import RamPacket, ReadDevice, SendPlan, SendRam
from mockdev.runtime.config import MigrationConfig
from mockdev.runtime.machine import EMPTY_PARTS_MAX, RAM, Section, own_machine
from mockdev.runtime.ram import GuestRam
from mockdev.runtime.replies import PING
from mockdev.vfio.uapi import State
from mockdev.wire import writer
from mockdev.wire.channel import MAIN, MULTIFD, SECTIONS, Course, Event
from mockdev.wire.dialect import dialect_of_machine
from mockdev.wire.frames import ReturnPathItem
from mockdev.wire.mainstream import is_vfio
from mockdev.wire.structs import Command, RamFlag, ReturnPath, Tag, VfioTag
from verifier.simulation.link import GoneError, Link
from verifier.simulation.side import Side
from verifier.simulation.slot import Result, Slot
from verifier.simulation.watch import Watch
from verifier.simulation.world import Signal, Steps, World


class Source(Side):
    """See the head of this file. main, back, channels: its links; back is the return path."""

    role = "source"
    plan_type = SendPlan

    def __init__(
        self,
        world: World,
        watch: Watch,
        config: MigrationConfig,
        slots: Sequence[Slot],
        ram: GuestRam,
        *,
        yields: bool,
    ) -> None:
        super().__init__(world, watch, config, slots, yields=yields)
        self.ram = ram
        self.machine = own_machine(config)
        self.ids = {s.idstr: s.id for s in self.machine.sections if s.tag == Tag.SECTION_START}
        self.multifd = config.transfer == "multifd"
        self.course = Course(MAIN, "main", local=True)
        names = [slot.name for slot in slots] if self.multifd else []
        self.plan = self.plan_type(
            names, config.channels, in_flight_max=config.in_flight_max or max(1, config.channels)
        )
        self.work = Signal(world)  # for channels without any
        self.progress = Signal(world)  # for everyone else
        self.finished = False
        self.paused: dict[int, int] = {}
        self.replied = Signal(world)
        self.shut: int | None = None
        self.refused = False
        self.acks = 0
        self.ended = False
        self.initial_sent: set[str] = set()
        self.empty_parts: dict[str, int] = {}  # in a row, per device
        self.described: list[dict[str, object]] = []
        known = dialect_of_machine(self.machine.type)
        self.ack_each = known is not None and known.repeated_switchover_ack

    def connect(self, main: Link, back: Link, channels: Sequence[Link]) -> None:
        """Its ends of the connections."""
        self.main, self.back, self.channels = main, back, channels
        self.links = [main, *channels]

    # -- the whole -----------------------------------------------------------------------------------

    def body(self) -> Steps:
        for number in range(self.config.channels):
            self.group.spawn(f"channel {number}", self.channel(number))
        phases = self.machine.phases
        yield from self.open()
        for section in phases.setup:
            yield from self.setup(section)
        yield from self.iterate()
        while self.must_wait_for_acks():
            yield self.replied
        yield from self.stop()
        yield from self.switch_over()
        for section in phases.ends:
            yield from self.end(section)
        while not self.plan.devices_sent:
            yield self.progress
        for section in phases.devices:
            yield from self.full(section)
        yield from self.end_stream()
        yield from self.await_verdict()
        self.finished = True
        self.work.give()
        for slot in self.slots:
            with suppress(DeviceError):  # the VM runs at the target, whatever becomes of a device here
                yield from slot.set_state(State.STOP)
            if slot.device.state is State.ERROR:
                yield from slot.reset()

    def aftermath(self, cause: BaseException | None) -> Steps:
        self.runs = False
        if cause is None or not self.may_resume():
            return
        try:
            for slot in self.slots:
                yield from self.run_again(slot)
        except VfmigError:
            return
        self.runs = True

    def run_again(self, slot: Slot) -> Steps:
        """A device whose save session had failed says so when it leaves PRE_COPY: once, then it goes on. One
        in ERROR can only be reset; the VM runs all the same, as with QEMU."""
        try:
            yield from slot.set_state(State.RUNNING)
        except DeviceError:
            if slot.device.state is State.ERROR:
                yield from slot.reset()
            else:
                yield from slot.set_state(State.RUNNING)

    def may_resume(self) -> bool:
        """After a failure: whether the target is known not to run the VM."""
        return not self.ended or self.refused

    def await_verdict(self) -> Steps:
        """The stream has ended: until the target has said how it went."""
        while self.shut is None:
            yield self.replied

    # -- main channel --------------------------------------------------------------------------------

    def send(self, *pieces: bytes | memoryview, event: Event | None = None) -> Steps:
        """Write to the main channel."""
        if event is not None:
            self.course.take(event)
        yield from self.turn()
        yield from self.write(self.main, *pieces)

    def write(self, link: Link, *pieces: bytes | memoryview) -> Steps:
        """Write to a link. If it is gone, what the target says of it is the better reason: that first."""
        try:
            yield from link.send(*pieces)
        except GoneError:
            while self.shut is None and not self.refused:
                yield self.replied
            raise

    def open(self) -> Steps:
        self.course.take(Event.HEADER)
        yield from self.send(writer.stream_header())
        yield from self.send(writer.configuration(self.machine.type), event=Event.CONFIGURATION)
        yield from self.send(writer.command(Command.OPEN_RETURN_PATH), event=Event.COMMAND)
        self.group.spawn("return path", self.listen())
        self.mark("ping", PING)
        yield from self.send(writer.ping(PING), event=Event.COMMAND)

    def section(self, section: Section, *payload: bytes) -> Steps:
        """A section whose payload is short."""
        tag = Tag(section.tag)
        head = writer.section_head(tag, section.id, section.idstr, section.instance_id, section.version_id)
        yield from self.send(head, *payload, writer.section_footer(section.id), event=SECTIONS[tag])

    def slot(self, section: Section) -> Slot:
        """The device of a section."""
        return next(slot for slot in self.slots if slot.name == section.idstr)

    def setup(self, section: Section) -> Steps:
        """A START."""
        if section.idstr == RAM:
            blocks = writer.ram_blocks(self.ram.sizes)
            marks = yield from self.flush()
            yield from self.section(section, blocks, *marks, writer.ram_mark(RamFlag.EOS))
            return
        if self.config.precopy_bytes:
            yield from self.slot(section).set_state(State.PRE_COPY)
        tags = (VfioTag.DEV_SETUP_STATE, VfioTag.END_OF_STATE)
        yield from self.section(section, *map(writer.vfio_tag, tags))

    def flush(self) -> Result[tuple[bytes, ...]]:
        """A SYNC on every channel, and the mark for it on the main channel."""
        yield from self.sync()
        return (writer.ram_mark(RamFlag.MULTIFD_FLUSH),)

    def sync(self) -> Steps:
        """Send a SYNC on every channel and wait until all are written."""
        self.plan.request_sync()
        self.work.give()
        while not self.plan.synced:
            yield self.progress

    # -- RAM -----------------------------------------------------------------------------------------

    def ram_section(self, tag: Tag, offsets: Sequence[int]) -> Steps:
        """RAM pages over the channels, then a sync."""
        yield from self.send(writer.section_head(tag, self.ids[RAM]), event=SECTIONS[tag])
        block = next(iter(self.ram.blocks.values()))
        if self.config.zero_pages == "legacy":
            zero = [offset for offset in offsets if block.is_zero(offset)]
            if zero:
                names = [block.name, *[None] * (len(zero) - 1)]
                pages = zip(zero, names, strict=True)
                yield from self.send(b"".join(writer.ram_page(RamFlag.ZERO, o, name) for o, name in pages))
            offsets = [offset for offset in offsets if offset not in zero]
        for packet in block.packets(offsets, find_zero=self.config.zero_pages == "multifd"):
            yield from self.queue_ram(packet)
        marks = yield from self.flush()
        yield from self.send(*marks, writer.ram_mark(RamFlag.EOS), writer.section_footer(self.ids[RAM]))

    def queue_ram(self, packet: RamPacket) -> Steps:
        while not self.plan.queue_ram(packet):
            yield self.progress
        self.work.give()

    def dirty_pages(self) -> list[int]:
        """Offsets of the pages that devices say they have written since they were asked last."""
        block = next(iter(self.ram.blocks.values()))
        size = block.size
        dirty: set[int] = set()
        for slot in self.slots:
            for first, after in slot.device.dirty.report(self.world.now_ns, 0, size, PAGE_SIZE):
                dirty.update(range(first * PAGE_SIZE, after * PAGE_SIZE, PAGE_SIZE))
        return sorted(dirty)

    # -- before the stop -----------------------------------------------------------------------------

    def iterate(self) -> Steps:
        block = next(iter(self.ram.blocks.values()))
        yield from self.ram_section(Tag.SECTION_PART, block.pages())
        going = [slot for slot in self.slots if slot.in_precopy]
        while going:
            left = []
            for slot in going:
                more = yield from self.precopy_part(slot)
                if more:
                    left.append(slot)
            going = left
            if going:
                yield from self.ram_section(Tag.SECTION_PART, self.dirty_pages())
        if self.config.precopy_bytes:
            self.mark("precopy", sum(slot.bytes_passed for slot in self.slots))

    def precopy_part(self, slot: Slot) -> Result[bool]:
        """One PART with at most one block; whether the device has more before the stop."""
        views = yield from slot.read(self.config.buffer_bytes)
        yield from self.send(writer.section_head(Tag.SECTION_PART, self.ids[slot.name]), event=Event.PART)
        if views:
            yield from self.send_block(slot, views)
        initial, dirty = yield from slot.precopy_left()
        last = VfioTag.END_OF_STATE
        if self.config.switchover_ack and not initial and slot.name not in self.initial_sent:
            self.initial_sent.add(slot.name)
            last = VfioTag.DEV_INIT_DATA_SENT
        yield from self.send(writer.vfio_tag(last), writer.section_footer(self.ids[slot.name]))
        empty = self.empty_parts[slot.name] = 0 if views else self.empty_parts.get(slot.name, 0) + 1
        return bool(initial or dirty) and empty < EMPTY_PARTS_MAX

    def send_block(self, slot: Slot, views: Sequence[memoryview]) -> Steps:
        """A block of device state on the main channel."""
        size = sum(map(len, views))
        self.say(Saved(t=self.world.now_ns, device=slot.name, idx=-1, size=size))
        yield from self.send(writer.vfio_data(size), *views)
        self.say(Sent(t=self.world.now_ns, device=slot.name, idx=-1, size=size, channel="main"))

    def must_wait_for_acks(self) -> bool:
        """With switchover-ack: until the target has said that it is ready for the rest."""
        if not self.config.switchover_ack or not self.initial_sent:
            return False
        return self.acks < (len(self.initial_sent) if self.ack_each else 1)

    def stop(self) -> Steps:
        """Stop the VM: all devices quiet towards each other first, then each of them stopped."""
        self.mark("stop")
        precopy = bool(self.config.precopy_bytes)
        for slot in self.slots:
            yield from slot.set_state(State.PRE_COPY_P2P if precopy else State.RUNNING_P2P)
        for slot in self.slots:
            yield from slot.set_state(State.STOP_COPY if precopy else State.STOP)

    # -- after the stop ------------------------------------------------------------------------------

    def switch_over(self) -> Steps:
        """The command, then the devices may be saved."""
        self.mark("switchover-start")
        yield from self.send(writer.command(Command.SWITCHOVER_START), event=Event.SWITCHOVER)
        if self.multifd:
            for device in range(len(self.slots)):
                self.group.spawn(f"save {self.slots[device].name}", self.save(device))

    def end(self, section: Section) -> Steps:
        if section.idstr == RAM:
            yield from self.ram_section(Tag.SECTION_END, self.dirty_pages())
            return
        slot = self.slot(section)
        yield from self.send(writer.section_head(Tag.SECTION_END, section.id), event=Event.END)
        if not self.multifd:
            yield from slot.set_state(State.STOP_COPY)
            while views := (yield from slot.read(self.config.buffer_bytes)):
                yield from self.send_block(slot, views)
        yield from self.send(writer.vfio_tag(VfioTag.END_OF_STATE), writer.section_footer(section.id))

    def full(self, section: Section) -> Steps:
        payload = section.payload or b""
        if is_vfio(section.idstr):
            if self.multifd:
                payload = writer.vfio_tag(VfioTag.END_OF_STATE)
            else:
                slot = self.slot(section)
                payload = slot.config_payload()
                slot.journal_image()
        yield from self.section(section, payload)
        if section.idstr == "globalstate":
            self.described.append(writer.globalstate_description())
        else:
            self.described.append(writer.opaque_description(section.idstr, section.instance_id, len(payload)))

    def end_stream(self) -> Steps:
        """The point of no return: from here on only the target knows what becomes of the VM."""
        self.committed = True
        for link in (self.main, self.back, *self.channels):
            link.hold_together()
        self.ended = True
        self.mark("end-of-stream")
        self.course.take(Event.EOF)
        self.course.take(Event.DESCRIPTION)
        yield from self.send(writer.end_of_stream(self.described))

    # -- channel and save threads --------------------------------------------------------------------

    def save(self, device: int) -> Steps:
        slot = self.slots[device]
        yield from slot.set_state(State.STOP_COPY)
        while True:
            self.plan.readable(device)
            self.work.give()
            while device not in self.paused:
                if self.plan.has_ended(device):
                    return
                yield self.progress
            yield self.paused.pop(device)

    def channel(self, number: int) -> Steps:
        link, plan = self.channels[number], self.plan
        course = Course(MULTIFD, link.where, local=True)
        course.take(Event.INIT)
        yield from self.write(link, self.init_packet(number))
        while True:
            work = plan.take(number)
            if work is None:
                if self.finished:
                    return
                yield self.work
                continue
            if isinstance(work, ReadDevice):
                sent = yield from self.send_buffer(number, link, course, work.device)
                if not sent:
                    continue
            elif isinstance(work, SendRam):
                self.progress.give()
                course.take(Event.RAM)
                yield from self.write(link, *self.ram_packet(work))
            else:
                course.take(Event.SYNC)
                yield from self.write(link, writer.sync_packet(work.packet_num))
            plan.written(number)
            self.progress.give()
            if plan.has_work:
                self.work.give()

    def init_packet(self, number: int) -> bytes:
        """What a channel begins with."""
        return writer.init_packet(number, UUID(self.config.uuid).bytes)

    def ram_packet(self, work: SendRam) -> list[bytes | memoryview]:
        """A RAM packet, head and pages."""
        packet = work.packet
        head = writer.ram_packet(work.packet_num, packet.block, packet.normal, packet.zero)
        return [head, *self.ram.send_packet(packet)]

    def read_buffer(self, slot: Slot) -> list[memoryview] | NotYet:
        """A device's next buffer as views; [] at the end of its state."""
        return slot.try_read(self.config.buffer_bytes)

    def buffer_head(self, slot: Slot, idx: int, size: int, *, config: bool) -> bytes:
        """The heads of a buffer."""
        return writer.device_state_packet(slot.name, 0, idx, size, config=config)

    def send_buffer(self, number: int, link: Link, course: Course, device: int) -> Result[bool]:
        """Take a device's turn; whether something was sent."""
        slot, plan = self.slots[device], self.plan
        views = self.read_buffer(slot)
        if isinstance(views, NotYet):
            self.paused[device] = views.ready_ns
            plan.pause(number)
            self.progress.give()
            return False
        config = not views
        payload: Sequence[bytes | memoryview] = views or (slot.config_payload(),)
        if config:
            slot.journal_image()
        size = sum(map(len, payload))
        idx = yield from self.claim(number, device, size, config=config)
        course.take(Event.DEVICE_STATE)
        yield from self.turn()
        head = self.buffer_head(slot, idx, size, config=config)
        yield from self.write(link, head, *payload)
        self.say(
            Sent(
                t=self.world.now_ns,
                device=slot.name,
                idx=idx,
                size=size,
                channel=str(number),
                config=config,
            )
        )
        return True

    def claim(self, number: int, device: int, size: int, *, config: bool) -> Result[int]:
        """The turn gave a buffer: its index; the device's next turn is free."""
        idx = self.plan.next_idx(device)
        self.say(
            Saved(t=self.world.now_ns, device=self.slots[device].name, idx=idx, size=size, config=config)
        )
        self.plan.claim(number, last=config)
        if config:
            self.progress.give()
        else:
            self.work.give()
        yield from ()
        return idx

    # -- return path ---------------------------------------------------------------------------------

    def listen(self) -> Steps:
        """Read what the target says, until SHUT."""
        while self.shut is None:
            try:
                item = self.back.look()
            except GoneError:
                self.refuse()
                raise
            if item is None:
                if self.back.ended:
                    self.refuse()
                    raise RemoteProtocolError(
                        "the target closed the main channel without a verdict", channel="return-path"
                    )
                yield self.back.arrival
                continue
            if isinstance(item, ReturnPathItem):
                self.reply(item)
        self.weigh(self.shut)

    def weigh(self, verdict: int) -> None:
        """What the target has said last. RemoteProtocolError: that it failed."""
        if verdict:
            self.refuse()
            raise RemoteProtocolError(
                f"the target says that it failed (SHUT {verdict})", channel="return-path", field="SHUT"
            )

    def refuse(self) -> None:
        """The target has said, or shown by closing, that it does not run the VM."""
        self.refused = True
        self.replied.give()

    def reply(self, item: ReturnPathItem) -> None:
        value = int.from_bytes(item.data, "big")
        if item.type == ReturnPath.SHUT:
            self.mark("shut", value)
            self.shut = value
        elif item.type == ReturnPath.PONG:
            self.mark("pong", value)
        elif item.type == ReturnPath.SWITCHOVER_ACK:
            self.mark("switchover-ack")
            self.acks += 1
        self.replied.give()
