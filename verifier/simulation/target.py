# SPDX-License-Identifier: GPL-2.0-or-later
"""A simulated target: mockdev/runtime/target.py, inbound.py and intake.py with tasks for threads.

What it decides is the production LoadPlan's and the transition tables'; what is here is only the order in
which its threads ask them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mockdev.device.image import PAGE_SIZE, Pattern
from mockdev.errors import DeviceError, RemoteProtocolError
from mockdev.journal import Loaded, Received, Verified
from mockdev.multifd.assembly import Buffer
from mockdev.multifd.receiver import LoadJob, LoadPlan
from mockdev.runtime.config import MigrationConfig
from mockdev.runtime.ram import BLOCK, GuestRam, RamBlock
from mockdev.vfio.uapi import State
from mockdev.wire import writer
from mockdev.wire.channel import MAIN, MULTIFD, Course, Event
from mockdev.wire.dialect import dialect_of_machine
from mockdev.wire.frames import (
    CommandItem,
    ConfigurationItem,
    DescriptionItem,
    DeviceStateFrame,
    EofItem,
    FooterItem,
    Frame,
    InitFrame,
    OpaqueItem,
    RamBlocksItem,
    RamFrame,
    RamRecordItem,
    SectionItem,
    VfioItem,
)
from mockdev.wire.structs import (
    VFIO_DEVICE_STATE_CONFIG,
    Command,
    MultifdFlag,
    RamFlag,
    ReturnPath,
    VfioTag,
)
from verifier.simulation.link import GoneError, Link, payload_size
from verifier.simulation.side import Side
from verifier.simulation.slot import Slot
from verifier.simulation.watch import Watch
from verifier.simulation.world import Signal, Steps, World

_SYNC, _ZERO, _PAGE = int(MultifdFlag.SYNC), int(RamFlag.ZERO), int(RamFlag.PAGE)
_FLUSH = int(RamFlag.MULTIFD_FLUSH)
Job = LoadJob[memoryview]


class Target(Side):
    """See the head of this file. patterns: what each device's state must be; source_ram: what its RAM
    must be. inline: receiving threads load, else load threads.
    """

    role = "target"
    plan_type: type[LoadPlan[Any]] = LoadPlan

    def __init__(
        self,
        world: World,
        watch: Watch,
        config: MigrationConfig,
        slots: Sequence[Slot],
        ram: GuestRam,
        source_ram: GuestRam,
        patterns: Sequence[Pattern],
        *,
        inline: bool,
        yields: bool,
    ) -> None:
        super().__init__(world, watch, config, slots, yields=yields)
        self.ram = ram
        self.source_ram = source_ram
        self.patterns = patterns
        self.inline = inline
        self.multifd = config.transfer == "multifd"
        self.by_name = {slot.name: number for number, slot in enumerate(slots)}
        names = [slot.name for slot in slots] if self.multifd else []
        self.plan: LoadPlan[memoryview] = self.plan_type(names, config.queue_cap_bytes, late=config.load_late)
        self.changed = Signal(world)  # of the plan, or of the channels
        self.config_lock = False
        self.open_channels = config.channels
        self.waiting: set[int] = set()  # channels that have read a SYNC
        self.gone_channels: set[int] = set()
        self.syncs = 0  # passed
        self.named = Signal(world)
        self.numbers: set[int] = set()
        self.course = Course(MAIN, "main", local=False)
        self.tag = 0  # of the section being read
        self.ready: set[str] = set()
        self.ack_each = False
        self.done = False

    def connect(self, main: Link, back: Link, channels: Sequence[Link]) -> None:
        """Its ends of the connections."""
        self.main, self.back, self.channels = main, back, channels
        self.links = [main, *channels]

    # -- the whole -----------------------------------------------------------------------------------

    def body(self) -> Steps:
        for link in self.channels:
            self.group.spawn(link.where, self.channel(link))
        while len(self.numbers) < self.config.channels:
            yield self.named
        for slot in self.slots:
            yield from slot.set_state(State.RESUMING)
        if self.multifd and not self.inline:
            count = min(self.config.load_threads or self.config.vfs, self.config.vfs)
            for number in range(count):
                self.group.spawn(f"load {number}", self.load_loop())
        yield from self.read_main()
        yield from self.finish_load()
        while self.open_channels:
            yield self.changed

    def make_ready(self) -> Steps:
        """All devices quiet towards each other, before any of them runs."""
        for slot in self.slots:
            slot.device.check_state(State.RESUMING)
            yield from slot.set_state(State.RUNNING_P2P)

    def finish_load(self) -> Steps:
        """All has come: start the devices, and tell the source."""
        missing = "; ".join(filter(None, (block.missing() for block in self.ram.blocks.values())))
        if missing:
            raise RemoteProtocolError(missing, channel="main", field="ram")
        yield from self.make_ready()
        self.committed = True
        for slot in self.slots:
            yield from slot.set_state(State.RUNNING)
        self.runs = True
        self.mark("resume")
        self.done = True
        self.say_shut(0)

    def aftermath(self, cause: BaseException | None) -> Steps:
        if cause is not None and not self.done:
            self.say_shut(self.verdict(cause))
        if cause is None:
            self.verify()
        self.back.close()
        yield from ()

    def verdict(self, cause: BaseException) -> int:  # noqa: ARG002
        """What SHUT says of a failure."""
        return 1

    def say_shut(self, value: int) -> None:
        """Say how it went, if anyone still listens."""
        if not self.back.gone and not self.back.finished:
            self.mark("shut", value)
            self.back.put(writer.shut(value))

    def verify(self) -> None:
        """Compare everything with what it must be."""
        for slot, pattern in zip(self.slots, self.patterns, strict=True):
            slot.verify(pattern, self.config.state_bytes)
        for block in self.ram.blocks.values():
            theirs = self.source_ram.blocks[block.name].memory
            wrong_at = None
            if block.memory != theirs:
                wrong_at = next(
                    i for i, (a, b) in enumerate(zip(block.memory, theirs, strict=True)) if a != b
                )
            self.say(Verified(t=self.world.now_ns, device=BLOCK, equal=wrong_at is None, wrong_at=wrong_at))

    def _close(self, link: Link) -> None:
        """A target that ends: what the source still writes is lost; what was said to it arrives."""
        if link is self.main and not self.outcome:
            return  # SHUT is still to be said
        link.leave()

    # -- main channel --------------------------------------------------------------------------------

    def read_main(self) -> Steps:
        """Item after item until the VM description."""
        main = self.main
        while True:
            item = main.look()
            if item is None:
                if main.ended:
                    self.main_ended()
                    return
                yield main.arrival
                continue
            self.course.take_frame(item)
            size = payload_size(item)
            if size:
                yield from self.arrived(main, item.offset + item.size)
            yield from self.item(item, size)
            if type(item) is DescriptionItem:
                return
            yield from self.turn()

    def main_ended(self) -> None:
        """The main channel was closed before the end of the stream. RemoteProtocolError: always."""
        raise RemoteProtocolError(
            "the source closed the main channel before the end of the stream", channel="main", field="EOF"
        )

    def arrived(self, link: Link, end: int) -> Steps:
        """Wait until the stream's bytes before `end` are here."""
        while link.arrived < end:
            if link.gone or (link.finished and link.arrived == link.sent):
                raise GoneError(f"{link.where}: the connection ended inside a payload")
            yield link.arrival

    def item(self, item: Frame, size: int) -> Steps:
        """What an item of the main channel makes it do; its payload is here."""
        if isinstance(item, RamRecordItem):
            yield from self.ram_record(item)
        elif isinstance(item, SectionItem):
            self.tag = item.tag
        elif isinstance(item, VfioItem):
            yield from self.vfio(item, size)
        elif isinstance(item, FooterItem):
            if item.section_id != item.expected_id:
                raise RemoteProtocolError("a footer of another section", channel="main", field="footer")
        elif isinstance(item, CommandItem):
            self.command(item)
            if item.command == Command.SWITCHOVER_START and self.multifd:
                yield from self.start_loading()
        elif isinstance(item, OpaqueItem):
            if item.idstr in self.by_name:
                slot = self.slots[self.by_name[item.idstr]]
                yield from slot.load_config(bytes(self.main.payload(item.offset + item.size, size)))
                slot.journal_image()
        elif isinstance(item, ConfigurationItem):
            known = dialect_of_machine(item.machine)
            self.ack_each = known is not None and known.repeated_switchover_ack
        elif isinstance(item, RamBlocksItem):
            theirs = [(name, length) for name, length, _ in item.blocks]
            if theirs != self.ram.sizes:
                raise RemoteProtocolError("other RAM blocks than here", channel="main", field="mem_size")
        elif isinstance(item, EofItem):
            self.mark("end-of-stream")
            yield from self.wait_devices()

    def command(self, item: CommandItem) -> None:
        if item.command == Command.OPEN_RETURN_PATH:
            if not self.ack_each and not self.config.precopy_bytes:
                self.acknowledge()
        elif item.command == Command.PING:
            value = int.from_bytes(item.data, "big")
            self.mark("ping", value)
            self.mark("pong", value)
            self.back.put(writer.pong(item.data))
        elif item.command == Command.SWITCHOVER_START:
            self.mark("switchover-start")

    def acknowledge(self) -> None:
        """Tell the source, if it is to wait for that, that the VM may be stopped."""
        if self.config.switchover_ack:
            self.mark("switchover-ack")
            self.back.put(writer.return_path_message(ReturnPath.SWITCHOVER_ACK))

    def ram_record(self, item: RamRecordItem) -> Steps:
        if item.flags == _FLUSH:
            yield from self.flush()
        elif item.flags & (_ZERO | _PAGE):
            block = self.ram.block_of_page(item)
            if item.flags & _ZERO:
                block.take_zero(item.page)
            else:
                raise RemoteProtocolError("a page on the main channel", channel="main", field="ram flags")

    def vfio(self, item: VfioItem, size: int) -> Steps:
        slot = self.slots[self.by_name[item.idstr]]
        if item.tag == VfioTag.DEV_INIT_DATA_SENT:
            self.ready.add(item.idstr)
            if self.ack_each or len(self.ready) == len(self.slots):
                self.acknowledge()
        elif item.tag == VfioTag.DEV_CONFIG_STATE and self.multifd:
            raise RemoteProtocolError("DEV_CONFIG_STATE with multifd", channel="main", field="VFIO tag")
        if size:
            data = self.main.payload(item.offset + item.size, size)
            where: dict[str, Any] = {"device": slot.name, "idx": -1, "size": size}
            self.say(Received(t=self.world.now_ns, channel="main", queued_bytes=size, **where))
            yield from slot.load(data)
            self.say(Loaded(t=self.world.now_ns, queued_bytes=0, **where))

    def wait_devices(self) -> Steps:
        """The stream has ended: wait until all is loaded. RemoteProtocolError: what never came."""
        if not self.multifd:
            for slot in self.slots:
                if not slot.configured:
                    raise RemoteProtocolError(
                        f"the stream ends without the config of {slot.name}",
                        channel="main",
                        field="DEV_CONFIG_STATE",
                    )
            return
        if not self.plan.started:
            raise RemoteProtocolError(
                "the stream ends without it: no device was loaded", channel="main", field="SWITCHOVER_START"
            )
        while not self.plan.complete:
            if not self.open_channels and not self.plan.can_load:
                raise RemoteProtocolError(self.plan.missing() + "; all channels have ended", field="idx")
            yield self.changed
        self.mark("queued-bytes-max", self.plan.total_max)

    # -- sync ----------------------------------------------------------------------------------------

    def flush(self) -> Steps:
        """MULTIFD_FLUSH was read: wait for all channels, let them go on."""
        while len(self.waiting) < self.config.channels:
            if self.gone_channels:
                raise RemoteProtocolError(
                    f"MULTIFD_FLUSH, but channel {min(self.gone_channels)} ended without a SYNC for it",
                    channel="main",
                    field="MULTIFD_FLUSH",
                )
            yield self.changed
        self.waiting.clear()
        self.syncs += 1
        self.changed.give()

    # -- channels ------------------------------------------------------------------------------------

    def channel(self, link: Link) -> Steps:
        course = Course(MULTIFD, link.where, local=False)
        number = -1
        try:
            while True:
                frame = link.look()
                if frame is None:
                    if link.ended:
                        break
                    yield link.arrival
                    continue
                if type(frame) is DeviceStateFrame:
                    course.take(Event.DEVICE_STATE, frame.offset)
                    yield from self.receive(frame, link, number)
                elif type(frame) is RamFrame:
                    course.take_frame(frame)
                    if frame.head.flags & _SYNC:
                        yield from self.arrive(number)
                    else:
                        yield from self.pages(frame, link)
                elif type(frame) is InitFrame:
                    course.take(Event.INIT, frame.offset)
                    number = self.name(frame, link)
            course.take(Event.CLOSE)
        except GoneError as error:
            if not self.done:
                self.channel_gone(error)
        self.open_channels -= 1
        self.gone_channels.add(number)
        self.changed.give()

    def channel_gone(self, error: GoneError) -> None:
        """A connection broke while it was needed. GoneError: always."""
        raise error

    def name(self, frame: InitFrame, link: Link) -> int:
        """The number of a channel that has told it."""
        number = frame.head.id
        if number in self.numbers or number >= self.config.channels:
            raise RemoteProtocolError(
                f"a second channel {number}, or too many", channel=link.where, field="id"
            )
        self.numbers.add(number)
        self.named.give()
        return number

    def arrive(self, number: int) -> Steps:
        """A channel has read its SYNC; on when the main channel has read the mark for it."""
        self.waiting.add(number)
        self.changed.give()
        passed = self.syncs
        while self.syncs == passed:
            yield self.changed

    def pages(self, frame: RamFrame, link: Link) -> Steps:
        """Take a RAM packet."""
        block = self.ram.block_of(frame, link.where)
        end = frame.offset + frame.size
        yield from self.arrived(link, end)
        data = link.payload(end, frame.payload_size)
        for number, offset in enumerate(frame.normal):
            self.page(block, offset, data[number * PAGE_SIZE : (number + 1) * PAGE_SIZE])
        block.take(frame.normal)
        for offset in frame.zero:
            block.take_zero(offset)

    def page(self, block: RamBlock, offset: int, data: memoryview) -> None:
        """Take one page."""
        block.page(offset)[:] = data

    def device_of(self, frame: DeviceStateFrame) -> int | None:
        """Whose a buffer is."""
        return self.by_name.get(frame.head.idstr.partition(b"\0")[0].decode("ascii", "replace"))

    def receive(self, frame: DeviceStateFrame, link: Link, channel: int) -> Steps:
        """Take a device-state packet whose heads are here."""
        device = self.device_of(frame)
        if device is None or frame.vfio is None or not self.multifd:
            raise RemoteProtocolError("not for a device here", channel=link.where, field="idstr")
        idx, size = frame.vfio.idx, frame.payload_size
        config = frame.vfio.flags == VFIO_DEVICE_STATE_CONFIG
        self.plan.announce(device, idx, size, config=config)
        end = frame.offset + frame.size
        yield from self.arrived(link, end)
        queued = self.plan.received(device, Buffer(idx, size, config, link.payload(end, size)))
        self.changed.give()
        self.say(
            Received(
                t=self.world.now_ns,
                device=self.slots[device].name,
                idx=idx,
                size=size,
                channel=str(channel),
                queued_bytes=queued,
                config=config,
            )
        )
        if self.inline:
            yield from self.turn()
            yield from self.load_ready(device)

    # -- loading -------------------------------------------------------------------------------------

    def start_loading(self) -> Steps:
        """SWITCHOVER_START was read: loading begins."""
        self.plan.start()
        self.changed.give()
        if self.inline:
            yield from self.load_ready(None)

    def load_ready(self, device: int | None) -> Steps:
        """Load what is next, of one device or of all, as long as there is something."""
        while (job := self.plan.take(device)) is not None:
            yield from self.load(job)

    def load_loop(self) -> Steps:
        """A load thread."""
        while True:
            job = self.plan.take()
            if job is None:
                if self.plan.complete:
                    return
                yield self.changed
                continue
            yield from self.load(job)

    def load(self, job: Job) -> Steps:
        """Give a buffer to its device and journal it; nobody else loads that device meanwhile."""
        slot = self.slots[job.device]
        buffer = job.buffer
        if buffer.config:
            while self.config_lock:
                yield self.changed
            self.config_lock = True
            yield from self.turn()
            yield from slot.load_config_payload(buffer.data)
            self.config_lock = False
        elif buffer.size:
            try:
                yield from slot.load(buffer.data)
            except DeviceError as error:
                self.load_failed(error)
        queued = self.plan.written(job)
        self.say(
            Loaded(
                t=self.world.now_ns,
                device=slot.name,
                idx=buffer.idx,
                size=buffer.size,
                queued_bytes=queued,
                config=buffer.config,
            )
        )
        if buffer.config:
            slot.journal_image()
        self.plan.loaded(job)
        self.changed.give()

    def load_failed(self, error: DeviceError) -> None:
        """A device could not take its state: the migration has failed."""
        raise error
