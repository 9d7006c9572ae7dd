# SPDX-License-Identifier: GPL-2.0-or-later
"""What is known of one migration so far: the ground on which invariants stand. It judges nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mockdev.journal import Begin, End, Loaded, Mark, Read, Received, Saved, Unanswered, Verified, Wrote
from mockdev.journal import Image as ImageLine
from mockdev.wire.dialect import Dialect, dialect_of_machine
from mockdev.wire.frames import (
    CommandItem,
    ConfigurationItem,
    DescriptionItem,
    DeviceStateFrame,
    EofItem,
    RamBlocksItem,
    RamFrame,
    RamRecordItem,
    ReturnPathItem,
    SectionItem,
    VfioItem,
)
from mockdev.wire.mainstream import is_vfio
from mockdev.wire.structs import Command, MultifdFlag, RamFlag, ReturnPath, Tag, VfioTag
from verifier.capture.flows import Lane, Role
from verifier.history.endings import TELLING, Endings
from verifier.history.image import Image
from verifier.history.observation import (
    JOURNAL,
    QMP_LOG,
    TRACE_LOG,
    Broken,
    BufferDone,
    FlowEnd,
    Hole,
    Observation,
    Said,
    Seen,
    StatusTrace,
    ThreadTrace,
    device_name,
)
from verifier.history.record import RunRecord

RAM_BLOCKS_MAX = 4096
DEVICES_MAX = 4096
# Devices that may take pages out of a migration: unplugged memory, and the guest's hints of free pages.
_SPARSE = ("virtio-mem", "virtio-balloon")
WAITING_MAX = 1 << 20  # numbers that came before a lower one, over all that count them


@dataclass
class DeviceJournal:
    """What one side's journal says of one device. config: of those buffers one was the config state.

    buffers: 0 where a supervisor wrote it, who sees reads and writes but no buffers.
    """

    buffers: int = 0
    payload_bytes: int = 0
    index_last: int | None = None
    config: bool = False
    queued_bytes_max: int | None = None
    image: ImageLine | None = None
    equal: bool | None = None


class Facts:
    """One migration. lanes: its flows in order of first sight; ends: how each ended, once it has.

    completed: True when the wire says that the target took everything, False when it or the target's own
    word says that it did not, None when neither can tell. Without a capture, what the ends say.
    postcopy_advised: the source may turn to postcopy; postcopy: it did.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.lanes: dict[Lane, None] = {}
        self.main: Lane | None = None
        self.ends: dict[Lane, FlowEnd] = {}
        self.holes: dict[Lane, Hole] = {}  # the first that more than shortens a payload
        self.broken: dict[Lane, Broken] = {}
        self.foreign: list[Lane] = []
        self.machine = ""
        self.dialect: Dialect | None = None
        self.configuration: ConfigurationItem | None = None
        self.blocks: dict[str, int] = {}
        self.ignore_shared = False
        self.mapped_ram = False
        self.started: set[str] = set()  # VFIO devices with a START section
        self.main_config: set[str] = set()  # VFIO devices whose config state came on the main channel
        self.switchover: Seen | None = None
        self.eof: Seen | None = None
        self.described = False
        self.postcopy = False
        self.postcopy_advised = False
        self.sparse: str = ""  # a device whose section says that pages may rightly go unsent
        self.return_path_opened = False
        self.shut: int | None = None
        self.flushes = 0
        self.syncs: dict[Lane, int] = {}
        self.ends_of_section = 0
        self.images: dict[str, Image] = {}
        self.begins: dict[str, Begin] = {}
        self._supervised: set[str] = set()
        self.outcomes: dict[str, End] = {}
        self.journals: set[str] = set()
        self.logs: set[str] = set()  # ends of which there is a trace log
        self.logged_from_start: set[str] = set()  # whose log shows that it was on before any state came
        self.record: RunRecord | None = None
        self.endings = Endings()
        self.struck = 0  # faults that an end's journal says it met
        self.lines = 0  # of journals
        self.log_lines = 0
        self.unanswered = 0
        self.waiting_room = WAITING_MAX
        self.marks: dict[tuple[str, str], int] = {}  # (role, name) -> ns, the first of each
        self.said: dict[str, dict[str, DeviceJournal]] = {"source": {}, "target": {}}
        self.state_first_ns: int | None = None
        self.state_last_ns: int | None = None
        self.state_bytes = 0  # between those two

    # --- what is asked ------------------------------------------------------------------------------

    @property
    def channels(self) -> list[Lane]:
        """The multifd channels, in order of first sight."""
        return [lane for lane in self.lanes if lane.role is Role.CHANNEL]

    @property
    def return_path(self) -> Lane | None:
        """The other direction of the main channel."""
        return self.main.peer if self.main is not None else None

    def whole(self, lane: Lane | None) -> bool:
        """Whether all that the flow carried was read, up to a boundary."""
        if lane is None or lane in self.holes or lane in self.broken:
            return False
        end = self.ends.get(lane)
        return end is not None and not end.inside

    @property
    def main_whole(self) -> bool:
        """Whether the main channel was read from its first byte to the end of its stream."""
        return self.whole(self.main) and self.eof is not None

    @property
    def channels_whole(self) -> bool:
        """Whether the wire says that nothing more can have come on any channel, and all was read."""
        return bool(self.completed) and not self._headless and all(map(self.whole, self.channels))

    @property
    def _headless(self) -> bool:
        """Whether there is a connection that may have been a channel."""
        return any(lane.headless for lane in self.lanes)

    @property
    def ram_whole(self) -> bool:
        """Whether all RAM and SYNC packets were read: those of a source that got to the end of its stream,
        where all of them are written. A channel has shown them when it has the SYNC of the last round, or was
        closed well. Of device state more may have been to come.
        """
        return self.channels_whole or (
            self.main_whole and not self._headless and all(map(self._ram_read, self.channels))
        )

    def _ram_read(self, lane: Lane) -> bool:
        if lane in self.holes or lane in self.broken:
            return False
        rounds = self.flushes or self.ends_of_section
        return self.syncs.get(lane, 0) >= rounds > 0 or (self.whole(lane) and self.ends[lane].kind == "fin")

    @property
    def reset(self) -> bool:
        """Whether either direction of the main connection was reset: not how a migration ends well."""
        lanes = [lane for lane in (self.main, self.return_path) if lane is not None]
        return any(lane in self.ends and self.ends[lane].kind == "rst" for lane in lanes)

    @property
    def completed(self) -> bool | None:
        """See the class."""
        target = self.endings.of("target")
        if target is not None and target.outcome in ("failed", "cancelled"):
            return False  # a source may have been told otherwise
        if not self.lanes:
            return self._completed_by_word
        if self.shut:
            return False
        if not self.main_whole or self.reset or self.main is None:
            return None
        if self.return_path_opened:
            return True if self.shut == 0 else None
        return True if self.ends[self.main].kind == "fin" else None

    @property
    def outcome(self) -> str | None:
        """The report's word for how it ended, or None."""
        if self.record is not None and self.record.outcome is not None:
            return self.record.outcome
        told = self.endings.outcome
        if told is not None:
            return told
        if self.journals and not self.mute:
            both = self.begins.keys() >= {"source", "target"}
            return "crashed" if both and len(self.outcomes) < 2 else None
        # A failed one may have been cancelled; a source alone may have been told what is not so.
        return "completed" if self.lanes and self.completed else None

    @property
    def mute(self) -> bool:
        """Whether a journal cannot say what became of the VM, because a supervisor wrote it."""
        return any(self.supervised(role) for role in self.journals)

    def supervised(self, role: str) -> bool:
        """Whether a supervisor of an unmodified QEMU wrote this end's journal, rather than an endpoint."""
        return role in self._supervised

    @property
    def fault_struck(self) -> bool:
        """Whether an end's journal or the run's record says that an injected fault took effect."""
        return bool(self.struck or (self.record is not None and self.record.struck))

    @property
    def disturbed(self) -> bool:
        """Whether a fault was asked for or struck, or the run was called off: an end may then do anything."""
        record = self.record
        return bool(self.struck or (record is not None and (record.faults or record.called_off)))

    @property
    def failed_as_injected(self) -> bool:
        """Whether the migration failed because it was made to, and left the VM where it was.

        A fault was asked for and is known to have struck; the source, by its own word, may run the VM, and
        the target may not. A cancelled run must have been cancelled by a fault, a crashed one killed by one.
        """
        record, source, target = self.record, self.endings.of("source"), self.endings.of("target")
        if record is None or source is None or target is None or not self.fault_struck:
            return False
        whats = {fault.rpartition("@")[0] or fault for fault in record.faults}
        whats = {what.rpartition(":")[2] for what in whats}
        asked = {"failed-clean": bool(whats), "cancelled": "cancel" in whats, "crashed": "kill" in whats}
        clean = source.own_word and source.runs is True and target.runs is False
        return clean and asked.get(self.outcome or "", False)

    @property
    def _completed_by_word(self) -> bool | None:
        """What the ends say, where there is no capture."""
        told = [end for end in map(self.endings.of, ("source", "target")) if end is not None]
        if not told or len(told) < len(self.journals) or not (self.journals or self.endings.of("target")):
            return None
        return all(end.outcome == "completed" for end in told)

    # --- what is told -------------------------------------------------------------------------------

    def take(self, seen: Observation) -> None:
        """Take note of an observation."""
        if type(seen) is Seen:
            of_flow = _OF_FLOWS.get(type(seen.event))
            if of_flow is not None:
                of_flow(self, seen, seen.event)
            return
        assert isinstance(seen, Said)
        role, line = seen.role, seen.line
        if type(line) in TELLING:
            self.endings.take(seen, supervised=self.supervised(role))
        if seen.where == JOURNAL:
            self.journals.add(role)
            self.lines += 1
            of_journal = _OF_JOURNALS.get(type(line))
            if of_journal is not None:
                of_journal(self, role, line)
        elif seen.where == TRACE_LOG:
            self.logs.add(role)
            self.log_lines += 1
            self._trace(role, line)
        elif seen.where == QMP_LOG:
            self.log_lines += 1

    def join(self, lane: Lane) -> None:
        """A flow of this migration."""
        self.lanes[lane] = None
        if lane.role is Role.MAIN:
            self.main = lane

    def image(self, device: str, make: Callable[[], Image]) -> Image:
        """The image of a device, made at first need."""
        found = self.images.get(device)
        if found is None:
            if len(self.images) >= DEVICES_MAX:
                device = "(further devices)"
                if device in self.images:
                    return self.images[device]
            found = self.images[device] = make()
            if self.switchover is not None:
                found.release()
        return found

    def _trace(self, role: str, line: object) -> None:
        begins = isinstance(line, ThreadTrace) and line.packets is None
        if begins or (isinstance(line, StatusTrace) and line.status in ("setup", "active")):
            self.logged_from_start.add(role)

    def _begin(self, role: str, line: Begin) -> None:
        self.begins[role] = line
        if "command" in line.config:  # of the QEMU that it started
            self._supervised.add(role)

    def _end(self, role: str, line: End) -> None:
        self.outcomes[role] = line

    def _mark(self, role: str, line: Mark) -> None:
        self.marks.setdefault((role, line.name), line.t)
        self.struck += line.name == "fault"

    def _unanswered(self, _role: str, _line: Unanswered) -> None:
        self.unanswered += 1

    def _of(self, role: str, device: str) -> DeviceJournal:
        """What that end says of a device."""
        devices = self.said.setdefault(role, {})
        said = devices.get(device)
        if said is None:
            said = DeviceJournal()
            if len(devices) < DEVICES_MAX:
                devices[device] = said
        return said

    def _image_line(self, role: str, line: ImageLine) -> None:
        self._of(role, line.device).image = line

    def _verified(self, role: str, line: Verified) -> None:
        self._of(role, line.device).equal = line.equal

    def _received(self, role: str, line: Received) -> None:
        said = self._of(role, line.device)
        said.queued_bytes_max = max(said.queued_bytes_max or 0, line.queued_bytes)

    def _passed(self, role: str, line: Read | Wrote) -> None:
        # A new save or resume file begins at 0 again.
        self._of(role, line.device).payload_bytes = line.offset + line.size
        self._supervised.add(role)

    def _buffer(self, role: str, line: Saved | Loaded) -> None:
        said = self._of(role, line.device)
        if line.idx >= 0:
            said.index_last = max(said.index_last or 0, line.idx)
        if line.config:
            said.config = True
        else:
            said.buffers += 1
            said.payload_bytes += line.size

    def _configuration(self, _: Seen, item: ConfigurationItem) -> None:
        self.configuration = item
        self.machine = item.machine
        self.dialect = dialect_of_machine(item.machine)
        for name, _version, value in item.subsections:
            if name == "configuration/capabilities" and isinstance(value, tuple):
                self.ignore_shared = "x-ignore-shared" in value
                self.mapped_ram = "mapped-ram" in value

    def _ram_blocks(self, _: Seen, item: RamBlocksItem) -> None:
        if len(self.blocks) + len(item.blocks) <= RAM_BLOCKS_MAX:
            self.blocks.update((name, length) for name, length, _gpa in item.blocks)

    def _ram_record(self, _: Seen, item: RamRecordItem) -> None:
        if item.flags == RamFlag.MULTIFD_FLUSH:
            self.flushes += 1
        elif item.flags == RamFlag.EOS:
            self.ends_of_section += 1

    def _ram_packet(self, seen: Seen, frame: RamFrame) -> None:
        if frame.head.flags & MultifdFlag.SYNC:
            self.syncs[seen.lane] = self.syncs.get(seen.lane, 0) + 1

    def _section(self, _: Seen, item: SectionItem) -> None:
        if not self.sparse and any(name in item.idstr for name in _SPARSE):
            self.sparse = item.idstr
        if item.tag == Tag.SECTION_START and is_vfio(item.idstr) and len(self.started) < DEVICES_MAX:
            self.started.add(device_name(item.idstr, item.instance_id))

    def _command(self, seen: Seen, item: CommandItem) -> None:
        if item.command == Command.OPEN_RETURN_PATH:
            self.return_path_opened = True
        elif item.command == Command.POSTCOPY_ADVISE:
            self.postcopy_advised = True
        elif item.command in (Command.POSTCOPY_LISTEN, Command.POSTCOPY_RUN):
            self.postcopy = True
        elif item.command == Command.SWITCHOVER_START and self.switchover is None:
            self.switchover = seen
            for image in self.images.values():
                image.release()

    def _device_state(self, seen: Seen, _: DeviceStateFrame) -> None:
        if self.state_first_ns is None:
            self.state_first_ns = seen.time_ns

    def _buffer_done(self, seen: Seen, item: BufferDone) -> None:
        # Connections are captured one beside the other: the last one read need not be the last in time.
        self.state_last_ns = max(self.state_last_ns or 0, seen.time_ns)
        self.state_bytes += item.data_size

    def _vfio(self, seen: Seen, item: VfioItem) -> None:
        if item.data_size and self.switchover is not None:
            self.state_first_ns = self.state_first_ns or seen.time_ns
            self.state_last_ns = seen.time_ns
            self.state_bytes += item.data_size
        if item.tag == VfioTag.DEV_CONFIG_STATE and len(self.main_config) < DEVICES_MAX:
            self.main_config.add(seen.device)

    def _eof(self, seen: Seen, _: EofItem) -> None:
        self.eof = self.eof or seen

    def _description(self, _seen: Seen, _item: DescriptionItem) -> None:
        self.described = True

    def _return_path(self, _: Seen, item: ReturnPathItem) -> None:
        if item.type == ReturnPath.SHUT and len(item.data) == 4:
            self.shut = (self.shut or 0) | int.from_bytes(item.data, "big")

    def _flow_end(self, seen: Seen, item: FlowEnd) -> None:
        self.ends[seen.lane] = item

    def _hole(self, seen: Seen, item: Hole) -> None:
        if not (item.inside_payload and item.reason == "snapped"):
            self.holes.setdefault(seen.lane, item)

    def _broken(self, seen: Seen, item: Broken) -> None:
        self.broken[seen.lane] = item


# Which note is taken of what, by its type.
_OF_FLOWS: dict[type, Callable[[Facts, Seen, Any], None]] = {
    ConfigurationItem: Facts._configuration,
    RamBlocksItem: Facts._ram_blocks,
    RamRecordItem: Facts._ram_record,
    SectionItem: Facts._section,
    CommandItem: Facts._command,
    VfioItem: Facts._vfio,
    EofItem: Facts._eof,
    DescriptionItem: Facts._description,
    ReturnPathItem: Facts._return_path,
    FlowEnd: Facts._flow_end,
    Hole: Facts._hole,
    Broken: Facts._broken,
    DeviceStateFrame: Facts._device_state,
    RamFrame: Facts._ram_packet,
    BufferDone: Facts._buffer_done,
}
_OF_JOURNALS: dict[type, Callable[[Facts, str, Any], None]] = {
    Begin: Facts._begin,
    End: Facts._end,
    Mark: Facts._mark,
    Unanswered: Facts._unanswered,
    ImageLine: Facts._image_line,
    Verified: Facts._verified,
    Received: Facts._received,
    Read: Facts._passed,
    Wrote: Facts._passed,
    Saved: Facts._buffer,
    Loaded: Facts._buffer,
}
