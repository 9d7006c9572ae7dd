# SPDX-License-Identifier: GPL-2.0-or-later
"""The target's reading of the main channel: what each item makes it do.

Source: QEMU migration/savevm.c: qemu_loadvm_state_main, loadvm_process_command; migration/ram.c:
ram_load_precopy; hw/vfio/migration.c: vfio_load_state
"""

from __future__ import annotations

from collections.abc import Sequence

from mockdev.errors import RemoteProtocolError
from mockdev.journal import Loaded, Received
from mockdev.runtime.gate import SyncGate
from mockdev.runtime.intake import Intake
from mockdev.runtime.ram import GuestRam
from mockdev.runtime.reader import Reader, frames
from mockdev.runtime.session import Session
from mockdev.runtime.slot import Slot
from mockdev.wire import writer
from mockdev.wire.channel import MAIN
from mockdev.wire.frames import (
    CommandItem,
    ConfigurationItem,
    DescriptionItem,
    EofItem,
    FooterItem,
    MainItem,
    OpaqueItem,
    Payload,
    RamBlocksItem,
    RamRecordItem,
    ReturnPathItem,
    SectionItem,
    VfioItem,
)
from mockdev.wire.mainstream import is_vfio, main_channel
from mockdev.wire.structs import VFIO_BUFFER_BYTES_MAX, Command, RamFlag, Tag, VfioTag

_CONFIG_BYTES_MAX = 1 << 20
_GLOBALSTATE_BYTES = 104


class MainInput:
    """Reads one main channel to its end. RemoteProtocolError: whatever it says that may not be said."""

    def __init__(
        self,
        session: Session,
        reader: Reader,
        slots: Sequence[Slot],
        ram: GuestRam,
        gate: SyncGate,
        intake: Intake,
    ) -> None:
        self._session = session
        self._reader = reader
        self._slots = {slot.idstr: slot for slot in slots}
        self._ram = ram
        self._gate = gate
        self._intake = intake
        self._multifd = session.migration.transfer == "multifd"
        self._course = session.remote_course(MAIN, reader.connection)
        self._tag = 0
        self._return_path = False
        self._switched = False
        self._ended = False
        self._scratch = memoryview(bytearray(VFIO_BUFFER_BYTES_MAX))

    def run(self) -> None:
        """Take item after item until the VM description; returns when all devices are loaded."""
        item: object = None
        for step in frames(self._reader, main_channel()):
            if isinstance(step, Payload):
                self._payload(item, step.size)
                continue
            assert not isinstance(step, ReturnPathItem)
            item = step
            self._course.take_frame(step)
            self._take(step)  # type: ignore[arg-type]
            if isinstance(step, DescriptionItem):
                return
        raise self._fail("the source closed the main channel before the end of the stream", "EOF")

    # -- items ---------------------------------------------------------------------------------------

    def _take(self, item: MainItem) -> None:
        if isinstance(item, RamRecordItem):
            self._ram_record(item)
        elif isinstance(item, SectionItem):
            self._section(item)
        elif isinstance(item, FooterItem):
            self._footer(item)
        elif isinstance(item, VfioItem):
            self._vfio(item)
        elif isinstance(item, CommandItem):
            self._command(item)
        elif isinstance(item, RamBlocksItem):
            self._ram.check_blocks(item.blocks, item.offset)
        elif isinstance(item, ConfigurationItem):
            self._configuration(item)
        elif isinstance(item, EofItem):
            self._session.mark("end-of-stream")
            self._wait_devices()

    def _configuration(self, item: ConfigurationItem) -> None:
        expected = self._session.migration.machine
        if item.machine != expected:
            raise self._fail(f"machine type {item.machine!r}, here it is {expected!r}", "name", item.offset)
        for name, _, value in item.subsections:
            if name == "configuration/uuid" and value != self._session.migration.uuid_bytes:
                raise self._fail("the uuid of another VM", "uuid", item.offset)

    def _command(self, item: CommandItem) -> None:
        if item.command == Command.OPEN_RETURN_PATH:
            self._return_path = True
        elif item.command == Command.PING:
            if not self._return_path or len(item.data) != 4:
                raise self._fail(f"PING of {len(item.data)} bytes, or no return path", "PING", item.offset)
            self._session.mark("ping", int.from_bytes(item.data, "big"))
            self._session.mark("pong", int.from_bytes(item.data, "big"))
            self._reader.connection.send((writer.pong(item.data),))
        elif item.command == Command.SWITCHOVER_START:
            self._switched = True
            self._session.mark("switchover-start")
            if self._multifd:
                self._intake.start()
        else:
            raise self._fail(
                f"command {item.command} has no place in a precopy migration", "command", item.offset
            )

    def _section(self, item: SectionItem) -> None:
        self._tag = item.tag
        if not item.bound:
            raise self._fail(f"section {item.section_id} was never started", "section_id", item.offset)
        if item.idstr in self._slots:
            known = item.instance_id == 0 and item.version_id == 1
        elif item.idstr == "ram":
            known = item.instance_id == 0 and item.version_id == 4
        else:
            known = item.idstr == "globalstate" and item.tag == Tag.SECTION_FULL
        if not known:
            raise self._fail(
                f"no section {item.idstr!r}, instance {item.instance_id}, version {item.version_id} here",
                "idstr",
                item.offset,
            )

    def _footer(self, item: FooterItem) -> None:
        if item.section_id != item.expected_id:
            raise self._fail(
                f"the footer of section {item.expected_id} ({item.idstr}) says {item.section_id}",
                "footer",
                item.offset,
            )

    def _ram_record(self, item: RamRecordItem) -> None:
        if item.flags == RamFlag.MULTIFD_FLUSH:
            if not self._session.migration.channels:
                raise self._fail("MULTIFD_FLUSH without channels", "MULTIFD_FLUSH", item.offset)
            self._gate.flush(item.offset)
        elif item.flags & (RamFlag.ZERO | RamFlag.PAGE | RamFlag.XBZRLE):
            self._ram.check_page(item.block, item.page, item.offset)
            if item.flags & RamFlag.ZERO:
                if item.fill:
                    raise self._fail(f"a zero page filled with {item.fill}", "fill byte", item.offset)
                self._ram.came_zero(item.page)
            elif item.flags & RamFlag.XBZRLE or self._session.migration.channels:
                raise self._fail(f"a RAM record with flags {item.flags:#x}", "ram flags", item.offset)

    def _vfio(self, item: VfioItem) -> None:
        """A VFIO mark: those that have a place here and now."""
        tag = item.tag
        allowed: tuple[int, ...] = (VfioTag.END_OF_STATE,)
        if self._tag == Tag.SECTION_START:
            allowed += (VfioTag.DEV_SETUP_STATE,)
        elif self._tag == Tag.SECTION_PART or (self._tag == Tag.SECTION_END and not self._multifd):
            allowed += (VfioTag.DEV_DATA_STATE,)
        elif self._tag == Tag.SECTION_FULL and not self._multifd:
            allowed += (VfioTag.DEV_CONFIG_STATE,)
        if tag not in allowed:
            where = Tag(self._tag).name
            raise self._fail(f"{VfioTag(tag).name} of {item.idstr} in {where}", "VFIO tag", item.offset)
        if item.data_size > VFIO_BUFFER_BYTES_MAX:
            raise self._fail(
                f"a block of {item.data_size} bytes, at most {VFIO_BUFFER_BYTES_MAX}",
                "data_size",
                item.offset + 8,
            )

    # -- payloads ------------------------------------------------------------------------------------

    def _payload(self, item: object, size: int) -> None:
        if isinstance(item, VfioItem):
            self._load(self._slots[item.idstr], size)
        elif isinstance(item, RamRecordItem):
            self._reader.payload(self._ram.page(item.page), "RAM page")
            self._ram.came((item.page,))
        elif isinstance(item, OpaqueItem):
            self._opaque(item, size)
        else:
            self._reader.skip(size, "payload")

    def _load(self, slot: Slot, size: int) -> None:
        """A block of device state: straight into the device."""
        view = self._scratch[:size]
        self._reader.payload(view, f"state of {slot.idstr}")
        session = self._session
        journal, clock = session.journal, session.clock
        journal.write(
            Received(
                t=clock.now_ns(), device=slot.idstr, idx=-1, size=size, channel="main", queued_bytes=size
            )
        )
        slot.load(view)
        session.activity.touch()
        journal.write(Loaded(t=clock.now_ns(), device=slot.idstr, idx=-1, size=size, queued_bytes=0))

    def _opaque(self, item: OpaqueItem, size: int) -> None:
        """A payload of unknown length: a device's config, or globalstate."""
        limit = _CONFIG_BYTES_MAX if is_vfio(item.idstr) else _GLOBALSTATE_BYTES
        if size > limit:
            raise self._fail(f"{size} bytes of {item.idstr}, at most {limit}", "payload", item.offset)
        data = bytearray(size)
        self._reader.payload(memoryview(data), f"payload of {item.idstr}")
        if item.idstr in self._slots:
            slot = self._slots[item.idstr]
            slot.load_config(bytes(data))
            slot.journal_image()

    # -- the end -------------------------------------------------------------------------------------

    def _wait_devices(self) -> None:
        if self._multifd:
            self._intake.wait_loaded()
            return
        for slot in self._slots.values():
            if not slot.configured:
                raise self._fail(f"the stream ends without the config of {slot.idstr}", "DEV_CONFIG_STATE")

    def _fail(self, message: str, field: str, offset: int | None = None) -> RemoteProtocolError:
        at = self._reader.offset if offset is None else offset
        return RemoteProtocolError(message, channel="main", offset=at, field=field)
