# SPDX-License-Identifier: GPL-2.0-or-later
"""The target's reading of the main channel: what each item makes it do.

Source: QEMU migration/savevm.c: qemu_loadvm_state_main, loadvm_process_command; migration/ram.c:
ram_load_precopy; hw/vfio/migration.c: vfio_load_state
"""

from __future__ import annotations

from collections.abc import Sequence

from mockdev.errors import RemoteProtocolError
from mockdev.journal import Loaded, Received
from mockdev.runtime.expected import Expected
from mockdev.runtime.gate import SyncGate
from mockdev.runtime.intake import Intake
from mockdev.runtime.reader import Reader, frames
from mockdev.runtime.session import Session
from mockdev.runtime.slot import Slot
from mockdev.runtime.template import Recorder
from mockdev.wire import writer
from mockdev.wire.channel import MAIN
from mockdev.wire.dialect import dialect_of_machine
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
from mockdev.wire.structs import VFIO_BUFFER_BYTES_MAX, Command, RamFlag, ReturnPath, Tag, VfioTag

_CONFIG_BYTES_MAX = 1 << 20


class MainInput:
    """Reads one main channel to its end. RemoteProtocolError: whatever it says that may not be said.

    recorder: keeps what came, if anyone does. return_path: whether the source wants to hear from us.
    """

    def __init__(
        self,
        session: Session,
        reader: Reader,
        slots: Sequence[Slot],
        expected: Expected,
        gate: SyncGate,
        intake: Intake,
        recorder: Recorder | None,
    ) -> None:
        self._session = session
        self._reader = reader
        self._slots = {slot.idstr: slot for slot in slots}
        self._expected = expected
        self._recorder = recorder
        self._gate = gate
        self._intake = intake
        self._multifd = session.migration.transfer == "multifd"
        self._course = session.remote_course(MAIN, reader.connection)
        self.return_path = False
        self._section_item: SectionItem | None = None
        self._kept: bytes | None = None  # the payload of this section
        self._begun: set[str] = set()  # devices with a START
        self._ready: set[str] = set()  # devices whose first PRE_COPY state is here
        self._flushed = False  # MULTIFD_FLUSH was read
        self._flush_per_section = False
        self._ack_each = False
        self._scratch = memoryview(bytearray(VFIO_BUFFER_BYTES_MAX))

    def run(self) -> None:
        """Take item after item until the VM description; returns when all devices are loaded."""
        item: object = None
        opaque_bytes_max = max(_CONFIG_BYTES_MAX, self._expected.opaque_bytes_max)
        for step in frames(self._reader, main_channel(opaque_bytes_max=opaque_bytes_max)):
            if isinstance(step, Payload):
                self._payload(item, step.size)
                continue
            assert not isinstance(step, ReturnPathItem)
            item = step
            self._course.take_frame(step)
            self._take(step)  # type: ignore[arg-type]
            if isinstance(step, DescriptionItem):
                if self._recorder is not None:
                    self._recorder.description = step.json
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
            self._expected.ram_blocks(item)
        elif isinstance(item, OpaqueItem):
            self._kept = None if is_vfio(item.idstr) else b""  # of an empty one no payload comes
        elif isinstance(item, ConfigurationItem):
            self._configuration(item)
        elif isinstance(item, EofItem):
            self._session.mark("end-of-stream")
            self._wait_devices()

    def _configuration(self, item: ConfigurationItem) -> None:
        self._expected.configuration(item)
        known = dialect_of_machine(item.machine)
        self._ack_each = known is not None and known.repeated_switchover_ack

    def _command(self, item: CommandItem) -> None:
        if item.command == Command.OPEN_RETURN_PATH:
            self.return_path = True
            if not self._ack_each and not self._session.migration.precopy_bytes:
                self._acknowledge()
        elif item.command == Command.PING:
            if not self.return_path or len(item.data) != 4:
                raise self._fail(f"PING of {len(item.data)} bytes, or no return path", "PING", item.offset)
            self._session.mark("ping", int.from_bytes(item.data, "big"))
            self._session.mark("pong", int.from_bytes(item.data, "big"))
            self._reader.connection.send((writer.pong(item.data),))
        elif item.command == Command.SWITCHOVER_START:
            self._session.mark("switchover-start")
            if self._recorder is not None:
                self._recorder.switchover_start = True
            if self._multifd:
                self._intake.start()
        else:
            raise self._fail(
                f"command {item.command} has no place in a precopy migration", "command", item.offset
            )

    def _acknowledge(self) -> None:
        """Tell the source, if it is to wait for that, that the VM may be stopped."""
        if self._session.migration.switchover_ack and self.return_path:
            self._session.mark("switchover-ack")
            self._reader.connection.send((writer.return_path_message(ReturnPath.SWITCHOVER_ACK),))

    def _section(self, item: SectionItem) -> None:
        self._section_item = item
        self._kept = None
        self._expected.section(item)
        if item.tag == Tag.SECTION_START:
            self._begun.add(item.idstr)

    def _footer(self, item: FooterItem) -> None:
        if item.section_id != item.expected_id:
            raise self._fail(
                f"the footer of section {item.expected_id} ({item.idstr}) says {item.section_id}",
                "footer",
                item.offset,
            )
        if self._recorder is not None and self._section_item is not None:
            self._recorder.section(self._section_item, self._kept)

    def _ram_record(self, item: RamRecordItem) -> None:
        if item.flags == RamFlag.MULTIFD_FLUSH:
            if not self._session.migration.channels:
                raise self._fail("MULTIFD_FLUSH without channels", "MULTIFD_FLUSH", item.offset)
            self._flushed = True
            self._gate.flush(item.offset)
        elif item.flags == RamFlag.EOS:
            self._ram_end(item)
        elif item.flags & (RamFlag.ZERO | RamFlag.PAGE | RamFlag.XBZRLE):
            block = self._expected.ram.block_of_page(item)
            if item.flags & RamFlag.ZERO:
                if item.fill:
                    raise self._fail(f"a zero page filled with {item.fill}", "fill byte", item.offset)
                block.take_zero(item.page)
            elif item.flags & RamFlag.XBZRLE or self._session.migration.channels:
                raise self._fail(f"a RAM record with flags {item.flags:#x}", "ram flags", item.offset)

    def _ram_end(self, item: RamRecordItem) -> None:
        """The end of a section of RAM, which machine types of old sources make a sync point of."""
        if self._section_item is not None and self._section_item.tag == Tag.SECTION_START:
            # Where MULTIFD_FLUSH is used, the START has one.
            channels = self._session.migration.channels
            self._flush_per_section = bool(channels) and not self._flushed and not self._expected.strict
            if self._recorder is not None and channels:
                self._recorder.flush_per_section = self._flush_per_section
        if self._flush_per_section:
            self._gate.flush(item.offset)

    def _vfio(self, item: VfioItem) -> None:
        """A VFIO mark: those that have a place here and now."""
        section = self._section_item
        assert section is not None
        tag = item.tag
        if tag not in self._allowed(section.tag):
            where = Tag(section.tag).name
            raise self._fail(f"{VfioTag(tag).name} of {item.idstr} in {where}", "VFIO tag", item.offset)
        if tag == VfioTag.DEV_INIT_DATA_SENT:
            if item.idstr in self._ready and not self._ack_each:
                raise self._fail(f"a second DEV_INIT_DATA_SENT of {item.idstr}", "VFIO tag", item.offset)
            self._ready.add(item.idstr)
            if self._ack_each or len(self._ready) == len(self._slots):
                self._acknowledge()
        elif tag == VfioTag.DEV_CONFIG_LOAD_READY and self._recorder is not None:
            self._recorder.config_load_ready = True
        if item.data_size > VFIO_BUFFER_BYTES_MAX:
            raise self._fail(
                f"a block of {item.data_size} bytes, at most {VFIO_BUFFER_BYTES_MAX}",
                "data_size",
                item.offset + 8,
            )

    def _allowed(self, section: int) -> tuple[VfioTag, ...]:
        """The VFIO marks that may stand in a section of this kind."""
        marks = [VfioTag.END_OF_STATE]
        if section == Tag.SECTION_START:
            marks.append(VfioTag.DEV_SETUP_STATE)
        elif section == Tag.SECTION_PART or (section == Tag.SECTION_END and not self._multifd):
            marks.append(VfioTag.DEV_DATA_STATE)
            if section == Tag.SECTION_PART and self._session.migration.switchover_ack:
                marks.append(VfioTag.DEV_INIT_DATA_SENT)
        elif section == Tag.SECTION_FULL and not self._multifd:
            marks.append(VfioTag.DEV_CONFIG_STATE)
        elif section == Tag.SECTION_FULL and not self._expected.strict:
            marks.append(VfioTag.DEV_CONFIG_LOAD_READY)
        return tuple(marks)

    # -- payloads ------------------------------------------------------------------------------------

    def _payload(self, item: object, size: int) -> None:
        if isinstance(item, VfioItem):
            self._load(self._slots[item.idstr], size)
        elif isinstance(item, RamRecordItem):
            block = self._expected.ram.block_of_page(item)
            self._reader.payload(block.page(item.page), "RAM page")
            block.take((item.page,))
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
        """A payload of unknown length: a device's config, or that of a section that is not ours to know."""
        limit = _CONFIG_BYTES_MAX if is_vfio(item.idstr) else self._expected.opaque_bytes_max
        if size > limit:
            raise self._fail(f"{size} bytes of {item.idstr}, at most {limit}", "payload", item.offset)
        if self._recorder is None and item.idstr not in self._slots:
            self._reader.skip(size, f"payload of {item.idstr}")
            return
        data = bytearray(size)
        self._reader.payload(memoryview(data), f"payload of {item.idstr}")
        if item.idstr in self._slots:
            slot = self._slots[item.idstr]
            slot.load_config(bytes(data))
        else:
            self._kept = bytes(data)

    # -- the end -------------------------------------------------------------------------------------

    def _wait_devices(self) -> None:
        absent = [name for name in self._slots if name not in self._begun]
        if absent:
            raise self._fail(f"the stream ends without a section of {', '.join(absent)}", "idstr")
        if self._multifd:
            if self._slots:
                self._intake.wait_loaded()
            return
        for slot in self._slots.values():
            if not slot.configured:
                raise self._fail(f"the stream ends without the config of {slot.idstr}", "DEV_CONFIG_STATE")

    def _fail(self, message: str, field: str, offset: int | None = None) -> RemoteProtocolError:
        at = self._reader.offset if offset is None else offset
        return RemoteProtocolError(message, channel="main", offset=at, field=field)
