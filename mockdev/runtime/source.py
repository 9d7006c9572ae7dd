# SPDX-License-Identifier: GPL-2.0-or-later
"""The source of a migration: its main channel from the header to SHUT, in QEMU's order.

Source: QEMU migration/migration.c: migration_thread, migration_completion; migration/savevm.c:
qemu_savevm_state_setup, qemu_savevm_state_complete_precopy; hw/vfio/migration.c: vfio_save_setup,
vfio_save_iterate, vfio_save_complete_precopy, vfio_save_state
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

from mockdev.errors import DeviceError, VfmigError
from mockdev.journal import Saved, Sent
from mockdev.runtime.config import EndpointConfig
from mockdev.runtime.pump import SendPump
from mockdev.runtime.ram import BLOCK, GuestRam
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
from mockdev.wire.channel import MAIN, Course, Event
from mockdev.wire.structs import Command, RamFlag, Tag, VfioTag

_RAM_VERSION = 4
_VFIO_VERSION = 1
_EVENTS = {
    Tag.SECTION_START: Event.START,
    Tag.SECTION_PART: Event.PART,
    Tag.SECTION_END: Event.END,
    Tag.SECTION_FULL: Event.FULL,
}


_RAM_ID = 1  # section ids: RAM, the devices, globalstate


class Source:
    """One source. memory: the way to a target in the same process, for transport "memory"."""

    def __init__(self, config: EndpointConfig, memory: MemoryNet | None = None) -> None:
        self.session = Session(config)
        self._config = config
        self._migration = config.migration
        self._memory = memory
        self._multifd = config.migration.transfer == "multifd"
        self._course = Course(MAIN, "main", local=True)
        self._slots: list[Slot] = []
        self._replies: Replies | None = None
        self._ended = False  # the end of the stream was sent: the target may run
        self._described: list[dict[str, object]] = []

    def prepare(self) -> None:
        """Make devices and RAM, filled."""
        if not self._slots:
            self._slots = make_slots(self.session, filled=True)
            self._ram = GuestRam(self._migration.ram_bytes, self._migration.seed, filled=True)

    def run(self, address: str = "") -> Result:
        """Migrate to `address` (default: the configuration's); never raises for what goes wrong in it."""
        self._address = address or self._config.address
        cause = self.session.run(self._body)
        runs = cause is not None and self._resume()
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
        self._pump = SendPump(session, self._slots, self._ram, channels, self._replies.verdict)
        try:
            self._migrate(self._replies)
        except PeerGoneError:
            self._replies.verdict()  # what the target says is the better reason
            raise

    def _migrate(self, replies: Replies) -> None:
        session = self.session
        session.phase = "set-up"
        self._pump.start()
        self._open(replies)
        self._start_sections()
        session.phase = "precopy"
        self._iterate()
        session.phase = "switchover"
        self._stop()
        session.mark("switchover-start")
        self._send((writer.command(Command.SWITCHOVER_START),), event=Event.SWITCHOVER)
        self._pump.start_saving()
        self._end_sections()
        self._pump.join_devices()
        self._full_sections()
        self._ended = True
        session.mark("end-of-stream")
        self._send((writer.end_of_stream(self._described),), event=Event.EOF)
        self._course.take(Event.DESCRIPTION)
        session.phase = "wait for the target"
        replies.wait_shut()
        session.commit()
        self._pump.finish()
        for slot in self._slots:
            slot.set_state(State.STOP)

    def _resume(self) -> bool:
        """After a failure, let the devices run again, unless the target may be running them."""
        session = self.session
        if self._ended and self._replies is not None and not self._replies.refused:
            return False
        session.stopped.clear()
        try:
            for slot in self._slots:
                slot.set_state(State.RUNNING)
        except VfmigError:
            return False
        return True

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

    def _section(self, tag: Tag, section_id: int, parts: Sequence[Buffer]) -> None:
        """A section whose payload is short."""
        self._send(
            (self._head(tag, section_id), *parts, writer.section_footer(section_id)), event=_EVENTS[tag]
        )

    def _head(self, tag: Tag, section_id: int) -> bytes:
        if section_id == _RAM_ID:
            return writer.section_head(tag, section_id, "ram", 0, _RAM_VERSION)
        name = self._slots[section_id - _RAM_ID - 1].idstr
        return writer.section_head(tag, section_id, name, 0, _VFIO_VERSION)

    def _device_id(self, device: int) -> int:
        return _RAM_ID + 1 + device

    def _open(self, replies: Replies) -> None:
        self._course.take(Event.HEADER)
        self._send((writer.stream_header(),))
        self._send((writer.configuration(self._migration.machine),), event=Event.CONFIGURATION)
        self._send((writer.command(Command.OPEN_RETURN_PATH),), event=Event.COMMAND)
        self.session.group.start("return path", replies.run)
        self.session.mark("ping", PING)
        self._send((writer.ping(PING),), event=Event.COMMAND)

    def _start_sections(self) -> None:
        parts = [writer.ram_blocks(self._ram.blocks)]
        self._section(Tag.SECTION_START, _RAM_ID, (*parts, *self._flush(), writer.ram_mark(RamFlag.EOS)))
        for device, slot in enumerate(self._slots):
            if self._migration.precopy_bytes:
                slot.set_state(State.PRE_COPY)
            tags = (VfioTag.DEV_SETUP_STATE, VfioTag.END_OF_STATE)
            self._section(Tag.SECTION_START, self._device_id(device), tuple(map(writer.vfio_tag, tags)))

    def _flush(self) -> tuple[bytes, ...]:
        """A SYNC on every channel, and the mark for it on the main channel; nothing without channels."""
        if not self._migration.channels:
            return ()
        self._pump.sync()
        return (writer.ram_mark(RamFlag.MULTIFD_FLUSH),)

    # -- RAM -----------------------------------------------------------------------------------------

    def _ram_section(self, tag: Tag, offsets: Sequence[int]) -> None:
        ram = self._ram
        self._send((self._head(tag, _RAM_ID),), event=_EVENTS[tag])
        if not self._migration.channels:
            self._ram_on_main(offsets, with_data=True)
        else:
            if self._migration.zero_pages == "legacy":
                self._ram_on_main([o for o in offsets if ram.is_zero(o)], with_data=False)
                offsets = [o for o in offsets if not ram.is_zero(o)]
            packets = ram.packets(offsets, find_zero=self._migration.zero_pages == "multifd")
            self._pump.send_ram(list(packets))
        end = (writer.ram_mark(RamFlag.EOS), writer.section_footer(_RAM_ID))
        self._send((*self._flush(), *end))

    def _ram_on_main(self, offsets: Sequence[int], *, with_data: bool) -> None:
        """Pages as records; without data only zero pages, which the caller has chosen."""
        name: str | None = BLOCK
        zeros: list[bytes] = []
        for offset in offsets:
            if not with_data or self._ram.is_zero(offset):
                zeros.append(writer.ram_page(RamFlag.ZERO, offset, name))
            else:
                head = writer.ram_page(RamFlag.PAGE, offset, name)
                self._send((b"".join(zeros), head), (self._ram.page(offset),))
                zeros.clear()
            name = None
        if zeros:
            self._send((b"".join(zeros),))

    # -- before the stop -----------------------------------------------------------------------------

    def _iterate(self) -> None:
        self._ram_section(Tag.SECTION_PART, self._ram.all_pages())
        going = [d for d, slot in enumerate(self._slots) if slot.in_precopy]
        while going:
            going = [device for device in going if self._precopy_part(device)]
            if going:
                self._ram_section(Tag.SECTION_PART, ())
        if self._migration.precopy_bytes:
            self.session.mark("precopy", sum(slot.bytes_passed for slot in self._slots))

    def _precopy_part(self, device: int) -> bool:
        """One PART with at most one block; whether the device has more before the stop."""
        slot = self._slots[device]
        try:
            views = slot.read(self._migration.buffer_bytes)
        except DeviceError as error:
            if error.errno != errno.ENOMSG:
                raise
            views = []
        self._send((self._head(Tag.SECTION_PART, self._device_id(device)),), event=Event.PART)
        if views:
            self._send_block(slot, views)
        end = writer.section_footer(self._device_id(device))
        self._send((writer.vfio_tag(VfioTag.END_OF_STATE), end))
        info = slot.precopy_info()
        return bool(info.initial_bytes or info.dirty_bytes)

    def _send_block(self, slot: Slot, views: Sequence[memoryview]) -> None:
        """A block of device state on the main channel."""
        size = sum(map(len, views))
        journal, clock = self.session.journal, self.session.clock
        journal.write(Saved(t=clock.now_ns(), device=slot.idstr, idx=-1, size=size))
        self._send((writer.vfio_data(size),), views)
        journal.write(Sent(t=clock.now_ns(), device=slot.idstr, idx=-1, size=size, channel="main"))

    def _stop(self) -> None:
        """Stop the VM: all devices quiet towards each other first, then each of them stopped."""
        self.session.mark("stop")
        precopy = bool(self._migration.precopy_bytes)
        for slot in self._slots:
            slot.set_state(State.PRE_COPY_P2P if precopy else State.RUNNING_P2P)
        for slot in self._slots:
            slot.set_state(State.STOP_COPY if precopy else State.STOP)

    # -- after the stop ------------------------------------------------------------------------------

    def _end_sections(self) -> None:
        self._ram_section(Tag.SECTION_END, self._ram.dirty_pages())
        for device, slot in enumerate(self._slots):
            section_id = self._device_id(device)
            self._send((self._head(Tag.SECTION_END, section_id),), event=Event.END)
            if not self._multifd:
                self._save_on_main(slot)
            self._send((writer.vfio_tag(VfioTag.END_OF_STATE), writer.section_footer(section_id)))

    def _save_on_main(self, slot: Slot) -> None:
        slot.set_state(State.STOP_COPY)
        while views := slot.read(self._migration.buffer_bytes):
            self._send_block(slot, views)

    def _full_sections(self) -> None:
        for device, slot in enumerate(self._slots):
            payload = writer.vfio_tag(VfioTag.END_OF_STATE)
            if not self._multifd:
                payload = slot.config_payload()
                slot.journal_image()
            self._section(Tag.SECTION_FULL, self._device_id(device), (payload,))
            self._described.append(writer.opaque_description(slot.idstr, 0, len(payload)))
        section_id = self._device_id(len(self._slots))
        head = writer.section_head(Tag.SECTION_FULL, section_id, "globalstate", 0, 1)
        state = writer.globalstate("running")
        self._send((head, state, writer.section_footer(section_id)), event=Event.FULL)
        self._described.append(writer.globalstate_description())
