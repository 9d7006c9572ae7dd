# SPDX-License-Identifier: GPL-2.0-or-later
"""The source of a migration: its main channel from the header to SHUT, in QEMU's order.

It plays our own small machine, or that of a template to a QEMU.

Source: QEMU migration/migration.c: migration_thread, migration_completion; migration/savevm.c:
qemu_savevm_state_setup, qemu_savevm_state_complete_precopy; hw/vfio/migration.c: vfio_save_setup,
vfio_save_iterate, vfio_save_complete_precopy, vfio_save_state
"""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from mockdev.errors import DeviceError, VfmigError
from mockdev.journal import Saved, Sent
from mockdev.runtime import template
from mockdev.runtime.config import EndpointConfig
from mockdev.runtime.machine import EMPTY_PARTS_MAX, RAM, Machine, Section, own_machine
from mockdev.runtime.pump import SendPump
from mockdev.runtime.ram import RamBlock, own_ram
from mockdev.runtime.replies import PING, Replies
from mockdev.runtime.session import Result, Session
from mockdev.runtime.slot import Slot, make_slots
from mockdev.runtime.transports import (
    Buffer,
    Connection,
    MemoryNet,
    PeerGoneError,
    connect,
    set_buffers,
    socket_buffer_bytes,
)
from mockdev.vfio.uapi import State
from mockdev.wire import writer
from mockdev.wire.channel import MAIN, SECTIONS, Course, Event
from mockdev.wire.dialect import dialect_of_machine, flushes_per_section
from mockdev.wire.mainstream import is_vfio
from mockdev.wire.structs import Command, RamFlag, Tag, VfioTag

Pages = Mapping[RamBlock, Sequence[int]]  # offsets by block


class Source:
    """One source. memory: the way to a target in the same process, for transport "memory".

    VfmigError: the configuration cannot be run, or its template cannot be played.
    """

    def __init__(self, config: EndpointConfig, memory: MemoryNet | None = None) -> None:
        config.check()
        migration = config.migration
        self._recorded: template.Template | None = None
        self._machine = own_machine(migration)
        if config.template:
            self._recorded = template.load(Path(config.template), migration.ram_bytes_max)
            self._machine = self._recorded.machine
            _check_template(config, self._machine)
        self.session = Session(config)
        self._config = config
        self._migration = migration
        self._memory = memory
        self._multifd = migration.transfer == "multifd"
        self._course = Course(MAIN, "main", local=True)
        self._slots: list[Slot] = []
        self._replies: Replies | None = None
        self._ended = False  # the end of the stream was sent: the target may run
        self._described: list[dict[str, object]] = []
        # The ids of RAM and of each device, by idstr.
        self._ids = {s.idstr: s.id for s in self._machine.sections if s.tag == Tag.SECTION_START}
        self._uuid = migration.uuid_bytes if self._machine.uuid is None else self._machine.uuid
        per_section = self._machine.flush_per_section
        self._flush_per_section = (
            flushes_per_section(self._machine.type) if per_section is None else per_section
        )
        known = dialect_of_machine(self._machine.type)
        self._ack_each = known is not None and known.repeated_switchover_ack
        self._empty_parts: dict[str, int] = {}  # in a row, per device
        self._initial_sent: set[str] = set()

    def prepare(self) -> None:
        """Make devices and RAM, filled."""
        if self._slots:
            return
        self._slots = make_slots(self.session, filled=True)
        if self._recorded is None:
            self._ram = own_ram(self._migration.ram_bytes, self._migration.seed, filled=True)
            return
        self._ram = self._recorded.ram
        for slot in self._slots:
            slot.appear(self._machine.configs[slot.idstr])

    def run(self, address: str = "") -> Result:
        """Migrate to `address` (default: the configuration's); never raises for what goes wrong in it."""
        self._address = address or self._config.address
        cause = self.session.run(self._body)
        runs = cause is not None and self._resume()
        for slot in self._slots:
            slot.journal_image()
        return self.session.finish(cause, runs=runs)

    # -- the whole -----------------------------------------------------------------------------------

    def _body(self) -> None:
        session = self.session
        migration = self._migration
        self.prepare()
        session.activity.touch()
        session.phase = "connect"
        self._main = self._connect("main")
        channels = [self._connect(str(number)) for number in range(migration.channels)]
        self._replies = Replies(session, self._main)
        self._pump = SendPump(session, self._slots, self._ram, channels, self._uuid, self._replies.verdict)
        try:
            self._migrate(self._replies)
        except PeerGoneError:
            self._replies.verdict()  # what the target says is the better reason
            raise

    def _migrate(self, replies: Replies) -> None:
        session = self.session
        phases = self._machine.phases
        session.phase = "set-up"
        self._pump.start()
        self._open(replies)
        for section in phases.setup:
            self._setup(section)
        session.phase = "precopy"
        self._iterate()
        for section in phases.parts:
            self._section(section, (section.payload or b"",))
        self._wait_acks(replies)
        session.phase = "switchover"
        self._stop()
        if self._machine.switchover_start:
            session.mark("switchover-start")
            self._send((writer.command(Command.SWITCHOVER_START),), event=Event.SWITCHOVER)
        self._pump.start_saving()
        for section in phases.ends:
            self._end(section)
        self._pump.join_devices()
        for section in phases.devices:
            self._full(section)
        session.commit()  # from here on only the target knows what becomes of the VM: a cancel would lose it
        self._ended = True
        session.mark("end-of-stream")
        self._send((self._end_of_stream(),), event=Event.EOF)
        self._course.take(Event.DESCRIPTION)
        session.phase = "wait for the target"
        replies.wait_shut()
        self._pump.finish()
        for slot in self._slots:
            with suppress(DeviceError):  # the VM runs at the target, whatever becomes of a device here
                slot.set_state(State.STOP)
            if slot.device.state is State.ERROR:
                slot.reset()

    def _resume(self) -> bool:
        """After a failure, let the devices run again, unless the target may be running them."""
        session = self.session
        if self._ended and self._replies is not None and not self._replies.refused:
            return False
        session.settle()
        try:
            for slot in self._slots:
                self._run_again(slot)
        except VfmigError:
            return False
        return True

    def _run_again(self, slot: Slot) -> None:
        """A device whose save session had failed says so when it leaves PRE_COPY: once, then it goes on. One
        in ERROR can only be reset; the VM runs all the same, as with QEMU."""
        try:
            slot.set_state(State.RUNNING)
        except DeviceError:
            if slot.device.state is State.ERROR:
                slot.reset()
            else:
                slot.set_state(State.RUNNING)

    # -- connections ---------------------------------------------------------------------------------

    def _connect(self, channel: str) -> Connection:
        migration = self._migration
        size = socket_buffer_bytes(migration.channels, migration.socket_buffer_bytes)
        if self._memory is not None:
            sock = self._memory.connect()
            set_buffers(sock, size)
        else:
            sock = connect(migration.transport, self._address, size, migration.idle_timeout_s)
        connection = self.session.adopt(sock, accepted=False)
        self.session.connected(connection, channel)
        return connection

    def _send(
        self, head: Sequence[Buffer], payload: Sequence[Buffer] = (), event: Event | None = None
    ) -> None:
        if event is not None:
            self._course.take(event)
        self._main.send(head, payload)

    # -- sections ------------------------------------------------------------------------------------

    def _section(self, section: Section, parts: Sequence[Buffer]) -> None:
        """A section whose payload is short."""
        tag = Tag(section.tag)
        head = writer.section_head(tag, section.id, section.idstr, section.instance_id, section.version_id)
        self._send((head, *parts, writer.section_footer(section.id)), event=SECTIONS[tag])

    def _head(self, tag: Tag, idstr: str) -> bytes:
        """The head of a PART or END."""
        return writer.section_head(tag, self._ids[idstr])

    def _open(self, replies: Replies) -> None:
        machine = self._machine
        self._course.take(Event.HEADER)
        self._send((writer.stream_header(),))
        uuid = self._uuid if machine.uuid_validated else None
        named = writer.configuration(machine.type, capabilities=machine.capabilities, uuid=uuid)
        self._send((named,), event=Event.CONFIGURATION)
        self._send((writer.command(Command.OPEN_RETURN_PATH),), event=Event.COMMAND)
        self.session.group.start("return path", replies.run)
        self.session.mark("ping", PING)
        self._send((writer.ping(PING),), event=Event.COMMAND)

    def _setup(self, section: Section) -> None:
        """A START, or a FULL that comes early."""
        if section.idstr == RAM:
            addresses = self._recorded.addresses if self._recorded is not None else ()
            blocks = writer.ram_blocks(self._ram.sizes, addresses)
            self._section(section, (blocks, *self._flush(), writer.ram_mark(RamFlag.EOS)))
        elif is_vfio(section.idstr):
            if self._migration.precopy_bytes:
                self._slot(section).set_state(State.PRE_COPY)
            tags = (VfioTag.DEV_SETUP_STATE, VfioTag.END_OF_STATE)
            self._section(section, tuple(map(writer.vfio_tag, tags)))
        else:
            self._section(section, (section.payload or b"",))

    def _slot(self, section: Section) -> Slot:
        return next(slot for slot in self._slots if slot.idstr == section.idstr)

    def _flush(self) -> tuple[bytes, ...]:
        """A SYNC on every channel, and the mark for it on the main channel; nothing without channels."""
        if not self._migration.channels:
            return ()
        self._pump.sync()
        return () if self._flush_per_section else (writer.ram_mark(RamFlag.MULTIFD_FLUSH),)

    # -- RAM -----------------------------------------------------------------------------------------

    def _ram_section(self, tag: Tag, pages: Pages) -> None:
        self._send((self._head(tag, RAM),), event=SECTIONS[tag])
        for block, offsets in pages.items():
            if not self._migration.channels:
                self._ram_on_main(block, offsets, with_data=True)
                continue
            if self._migration.zero_pages == "legacy":
                zero = [o for o in offsets if block.is_zero(o)]
                self._ram_on_main(block, zero, with_data=False)
                named = set(zero)
                offsets = [o for o in offsets if o not in named]
            packets = block.packets(offsets, find_zero=self._migration.zero_pages == "multifd")
            self._pump.send_ram(list(packets))
        end = (writer.ram_mark(RamFlag.EOS), writer.section_footer(self._ids[RAM]))
        self._send((*self._flush(), *end))

    def _ram_on_main(self, block: RamBlock, offsets: Sequence[int], *, with_data: bool) -> None:
        """Pages as records; without data only zero pages, which the caller has chosen."""
        name: str | None = block.name
        zeros: list[bytes] = []
        for offset in offsets:
            if not with_data or block.is_zero(offset):
                zeros.append(writer.ram_page(RamFlag.ZERO, offset, name))
            else:
                head = writer.ram_page(RamFlag.PAGE, offset, name)
                self._send((b"".join(zeros), head), (block.page(offset),))
                zeros.clear()
            name = None
        if zeros:
            self._send((b"".join(zeros),))

    # -- before the stop -----------------------------------------------------------------------------

    def _iterate(self) -> None:
        blocks = self._ram.blocks.values()
        self._ram_section(Tag.SECTION_PART, {block: block.pages() for block in blocks})
        going = [slot for slot in self._slots if slot.in_precopy]
        while going:
            going = [slot for slot in going if self._precopy_part(slot)]
            if going:
                self._ram_section(Tag.SECTION_PART, {})
        if self._migration.precopy_bytes:
            self.session.mark("precopy", sum(slot.bytes_passed for slot in self._slots))

    def _precopy_part(self, slot: Slot) -> bool:
        """One PART with at most one block; whether the device has more before the stop."""
        try:
            views = slot.read(self._migration.buffer_bytes)
        except DeviceError as error:
            if error.errno != errno.ENOMSG:
                raise
            views = []
        self._send((self._head(Tag.SECTION_PART, slot.idstr),), event=Event.PART)
        if views:
            self._send_block(slot, views)
        info = slot.precopy_info()
        last = VfioTag.END_OF_STATE
        if self._migration.switchover_ack and not info.initial_bytes and slot.idstr not in self._initial_sent:
            self._initial_sent.add(slot.idstr)
            last = VfioTag.DEV_INIT_DATA_SENT
        self._send((writer.vfio_tag(last), writer.section_footer(self._ids[slot.idstr])))
        # A device that says it has more and gives nothing would keep us here for ever.
        empty = self._empty_parts[slot.idstr] = 0 if views else self._empty_parts.get(slot.idstr, 0) + 1
        return bool(info.initial_bytes or info.dirty_bytes) and empty < EMPTY_PARTS_MAX

    def _send_block(self, slot: Slot, views: Sequence[memoryview]) -> None:
        """A block of device state on the main channel."""
        size = sum(map(len, views))
        journal, clock = self.session.journal, self.session.clock
        journal.write(Saved(t=clock.now_ns(), device=slot.idstr, idx=-1, size=size))
        self._send((writer.vfio_data(size),), views)
        journal.write(Sent(t=clock.now_ns(), device=slot.idstr, idx=-1, size=size, channel="main"))

    def _wait_acks(self, replies: Replies) -> None:
        """With switchover-ack: until the target has said that it is ready for the rest."""
        if self._migration.switchover_ack and self._initial_sent:
            replies.wait_acks(len(self._initial_sent) if self._ack_each else 1)

    def _stop(self) -> None:
        """Stop the VM: all devices quiet towards each other first, then each of them stopped."""
        self.session.mark("stop")
        precopy = bool(self._migration.precopy_bytes)
        for slot in self._slots:
            slot.set_state(State.PRE_COPY_P2P if precopy else State.RUNNING_P2P)
        for slot in self._slots:
            slot.set_state(State.STOP_COPY if precopy else State.STOP)

    # -- after the stop ------------------------------------------------------------------------------

    def _end(self, section: Section) -> None:
        if section.idstr == RAM:
            self._ram_section(Tag.SECTION_END, {b: self._dirty_pages(b) for b in self._ram.blocks.values()})
        elif is_vfio(section.idstr):
            slot = self._slot(section)
            self._send((self._head(Tag.SECTION_END, section.idstr),), event=Event.END)
            if not self._multifd:
                self._save_on_main(slot)
            self._send((writer.vfio_tag(VfioTag.END_OF_STATE), writer.section_footer(section.id)))
        else:
            self._section(section, (section.payload or b"",))

    def _dirty_pages(self, block: RamBlock) -> Sequence[int]:
        pages = block.dirty_pages()
        if self._recorded is None:
            return pages
        # A zero page that is named again makes a QEMU touch it, and all its RAM with it, huge page by page.
        return [offset for offset in pages if not block.is_zero(offset)]

    def _save_on_main(self, slot: Slot) -> None:
        slot.set_state(State.STOP_COPY)
        while views := slot.read(self._migration.buffer_bytes):
            self._send_block(slot, views)

    def _full(self, section: Section) -> None:
        payload = section.payload or b""
        if is_vfio(section.idstr):
            if self._multifd:
                ready = self._machine.config_load_ready
                payload = writer.vfio_tag(VfioTag.DEV_CONFIG_LOAD_READY if ready else VfioTag.END_OF_STATE)
            else:
                payload = self._slot(section).config_payload()
        self._section(section, (payload,))
        self._describe(section, len(payload))

    # -- the end -------------------------------------------------------------------------------------

    def _describe(self, section: Section, size: int) -> None:
        """How a FULL section stands in the VM description that we make."""
        if section.idstr == "globalstate":
            self._described.append(writer.globalstate_description())
        else:
            self._described.append(writer.opaque_description(section.idstr, section.instance_id, size))

    def _end_of_stream(self) -> bytes:
        """The end mark and the description: ours, or the recorded one with the devices as they were sent."""
        if not self._machine.description:
            return writer.end_of_stream(self._described)
        description = json.loads(self._machine.description)
        ours = {entry["name"]: entry for entry in self._described if is_vfio(str(entry["name"]))}
        description["devices"] = [ours.get(entry["name"], entry) for entry in description["devices"]]
        return writer.described_end(description)


def _check_template(config: EndpointConfig, machine: Machine) -> None:
    """VfmigError when the devices of this migration are not those of the template's machine."""
    migration = config.migration
    if set(machine.devices) != set(migration.devices):
        theirs, ours = ", ".join(machine.devices), ", ".join(migration.devices)
        raise VfmigError(f"{config.template} has the devices ({theirs}), this migration ({ours})")
    if machine.devices and migration.transfer == "multifd" and not machine.switchover_start:
        raise VfmigError(
            f"{config.template}: a {machine.type} sends no SWITCHOVER_START, so device state cannot go over "
            "multifd"
        )
