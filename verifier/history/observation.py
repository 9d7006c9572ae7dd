# SPDX-License-Identifier: GPL-2.0-or-later
"""One thing seen: a frame of a flow, an event of a flow, or a line of a journal, a log or the run's record.

Frames are those of `mockdev.wire.frames`; the events here are what a decoder knows beyond them.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from mockdev.errors import RemoteProtocolError
from mockdev.journal import AnyLine
from mockdev.wire.frames import DeviceStateFrame, Frame, VfioItem
from verifier.capture.flows import Lane

JOURNAL = "journal"
TRACE_LOG = "trace log"
QMP_LOG = "QMP log"
RUN_RECORD = "run record"


class BufferDone(msgspec.Struct, frozen=True):
    """The last byte of a device-state packet came, or is known to be missing.

    idx, config: as the packet said. first, last: up to 8 bytes of either end of the data, b"" when they
    are not in the capture. whole: all of its bytes were there.
    """

    offset: int
    size: int
    idx: int
    config: bool
    data_size: int
    first: bytes
    last: bytes
    whole: bool


class StateDone(msgspec.Struct, frozen=True):
    """The payload of the section "globalstate" came whole: what the VM was doing when it was saved."""

    offset: int
    size: int
    data: bytes


class PagesDone(msgspec.Struct, frozen=True):
    """The compressed page data of a RAM packet was inflated. problem: why it could not be, or ""."""

    offset: int
    size: int
    expected: int
    got: int
    problem: str


class Broken(msgspec.Struct, frozen=True):
    """The syntax refused what came; nothing after it on this flow can be read."""

    offset: int
    size: int
    error: RemoteProtocolError


class Hole(msgspec.Struct, frozen=True):
    """Bytes that were on the wire and are not in the capture. inside_payload: reading goes on after it."""

    offset: int
    size: int
    reason: str
    inside_payload: bool


class Answered(msgspec.Struct, frozen=True):
    """Bytes came against the direction of a multifd connection."""

    offset: int
    size: int


class FlowEnd(msgspec.Struct, frozen=True):
    """A flow ended. kind: fin, rst or cut. inside: what was being read, "" on a boundary."""

    offset: int
    size: int
    kind: str
    inside: str


Event = Frame | BufferDone | StateDone | PagesDone | Broken | Hole | Answered | FlowEnd


class Place(msgspec.Struct, frozen=True):
    """Where an event was, without it: for those who keep many."""

    offset: int
    size: int


class Seen(msgspec.Struct, frozen=True):
    """An event of a flow. device: "idstr" or "idstr#instance" when it belongs to a VFIO device, else ""."""

    lane: Lane
    time_ns: int
    event: Event | Place
    device: str = ""

    def place(self) -> Seen:
        """The same without its content."""
        return Seen(self.lane, self.time_ns, Place(self.event.offset, self.event.size), self.device)


# --- lines of QEMU's trace log ----------------------------------------------------------------------
#
# event: the trace event's name. t: ns since the epoch; of a line without a time that of the line before it,
# 0 where no line had one yet. name: the device as QEMU calls it, which is not its section's idstr.


class PacketTrace(NamedTuple):
    """multifd_send_fill or multifd_recv_unfill: the header of a RAM or SYNC packet."""

    t: int
    event: str
    channel: int
    packet_num: int
    flags: int
    next_packet_size: int


class ThreadTrace(NamedTuple):
    """A multifd thread began or ended. packets: how many it says it handled, None at its start."""

    t: int
    event: str
    channel: int
    packets: int | None


class LoadTrace(NamedTuple):
    """A step of loading a device: of the buffer `idx`, or of the whole (idx None)."""

    t: int
    event: str
    name: str
    idx: int | None


class StatusTrace(NamedTuple):
    """migrate_set_state: the migration's status, by QAPI's names."""

    t: int
    event: str
    status: str


class VmTrace(NamedTuple):
    """vfio_vmstate_change: the VM was started or stopped, for this reason, and a device told."""

    t: int
    event: str
    name: str
    running: int
    reason: str
    state: str


class OtherTrace(NamedTuple):
    """Any other event. text: what it says."""

    t: int
    event: str
    text: str


Trace = PacketTrace | ThreadTrace | LoadTrace | StatusTrace | VmTrace | OtherTrace


class QmpEvent(NamedTuple):
    """An event that a QEMU sent over QMP. t: QEMU's own time stamp. value: of MIGRATION the status, else "".

    Source: QEMU qapi/migration.json, qapi/run-state.json
    """

    t: int
    event: str
    value: str


class EndRecord(NamedTuple):
    """How one end came out, as run.json says. t: later than anything.

    outcome: completed, failed, cancelled, crashed (it left no word) or killed (it did not end).
    """

    t: int
    outcome: str
    runs: bool
    error: str


class Said(msgspec.Struct, frozen=True):
    """A line by somebody. role: source or target; file, offset, size: where it stands.

    where: JOURNAL, TRACE_LOG, QMP_LOG or RUN_RECORD.
    """

    role: str
    line: AnyLine | Trace | QmpEvent | EndRecord
    file: str
    offset: int
    size: int
    where: str = JOURNAL

    @property
    def time_ns(self) -> int:
        """When, on the run's clock."""
        return self.line.t


Observation = Seen | Said


def device_name(idstr: str, instance_id: int) -> str:
    """How a device is called in reports: its section's idstr, with the instance when it is not 0."""
    return f"{idstr}#{instance_id}" if instance_id else idstr


def text(field: bytes) -> str:
    """A NUL-padded name field up to its first NUL; odd bytes are shown escaped."""
    return field.split(b"\0", 1)[0].decode("ascii", "backslashreplace")


def device_of(frame: DeviceStateFrame | VfioItem) -> str:
    """The device that a frame belongs to."""
    if type(frame) is DeviceStateFrame:
        return device_name(text(frame.head.idstr), frame.head.instance_id)
    return device_name(frame.idstr, frame.instance_id)
