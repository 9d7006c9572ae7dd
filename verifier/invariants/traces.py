# SPDX-License-Identifier: GPL-2.0-or-later
"""TR: what a QEMU's own trace says it did, held against itself and against the capture.

A trace may be switched on in the middle of a migration: an invariant begins to judge where the log shows
that it was on before (a thread's start, a status).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from mockdev.wire.frames import DeviceStateFrame, RamFrame
from verifier.history.facts import Facts
from verifier.history.observation import LoadTrace, PacketTrace, Said, Seen, ThreadTrace
from verifier.invariants.passport import (
    CHANNEL_NUMBER,
    SIDE_TRACED,
    Finding,
    Invariant,
    Need,
    Passport,
    Severity,
    qemu,
)

_INCOMING = "vfio_load_state_device_buffer_incoming"
_LOAD_START = "vfio_load_state_device_buffer_load_start"
_LOAD_END = "vfio_load_state_device_buffer_load_end"
_THREAD_START = "vfio_load_bufs_thread_start"
_CONFIG_START = "vfio_load_device_config_state_start"
_CLEANUP = "vfio_load_cleanup"
_LOADS = "hw/vfio/migration-multifd.c"
_PACKET = struct.Struct("<QII")  # packet_num, flags, next_packet_size


class TracedLoadOrder(Invariant[LoadTrace]):
    """Sound: the trace has a line at the start and at the end of each load of the one load thread; judged
    only from the thread's own start on.

    Misses: a load that has no line because tracing was switched off, and other QEMUs than those whose events
    are known.
    """

    passport = Passport(
        "TR-1",
        "A QEMU loads a device's multifd buffers one after the other in index order without gap, the config "
        "state last (by its trace).",
        Severity.CORRUPTS,
        qemu(_LOADS, "vfio_load_bufs_thread"),
        SIDE_TRACED,
    )
    kinds = (LoadTrace,)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.exercised = False
        self._begin(False)

    def _begin(self, known: bool) -> None:
        self.known = known  # the log has the load thread's start
        self.next = 0
        self.loading: Said | None = None
        self.config: Said | None = None

    def on(self, seen: Said, event: LoadTrace) -> Iterator[Finding]:
        if event.event == _THREAD_START:
            self._begin(True)
        elif event.event == _CLEANUP:
            self._begin(False)
        elif event.event == _CONFIG_START:
            self.config = seen
            if self.loading is not None:
                yield Finding("the config state is loaded before a buffer is", (self.loading, seen))
        elif event.idx is None or not self.known:
            return
        elif event.event == _LOAD_START:
            yield from self._start(seen, event.idx)
        elif event.event == _LOAD_END:
            yield from self._end(seen, event.idx)

    def _start(self, seen: Said, idx: int) -> Iterator[Finding]:
        self.exercised = True
        if self.config is not None:
            yield Finding(f"buffer {idx} is loaded after the config state", (self.config, seen))
        if self.loading is not None:
            yield Finding(f"buffer {idx} is loaded before the one before is", (self.loading, seen))
        if idx != self.next:
            yield Finding(f"buffer {idx} is loaded where {self.next} was next", (seen,))
        self.loading = seen
        self.next = idx + 1

    def _end(self, seen: Said, idx: int) -> Iterator[Finding]:
        if self.loading is None or idx != self.next - 1:
            yield Finding(f"the loading of buffer {idx} ends, which had not begun", (seen,))
        self.loading = None


class TracedArrival(Invariant[LoadTrace]):
    """Sound: judged only in a log that shows it was on before any state came; what waits is bounded, over
    which it is unknown.

    Misses: a buffer whose content is another's: EQ-1.
    """

    passport = Passport(
        "TR-2",
        "Each buffer comes in once, and a QEMU loads it after that (by its trace).",
        Severity.CORRUPTS,
        qemu(_LOADS, "vfio_load_state_buffer, vfio_load_state_buffer_get"),
        SIDE_TRACED,
    )
    kinds = (LoadTrace,)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.exercised = False
        self.overflowed = False
        self.arrived: dict[int, Said] = {}  # and not loaded
        self.next = 0

    def on(self, seen: Said, event: LoadTrace) -> Iterator[Finding]:
        if event.event == _CLEANUP:
            self.facts.waiting_room += len(self.arrived)
            self.arrived.clear()
            self.next = 0
        elif event.idx is None or self.overflowed or seen.role not in self.facts.logged_from_start:
            return
        elif event.event == _INCOMING:
            yield from self._incoming(seen, event.idx)
        elif event.event == _LOAD_START:
            self.exercised = True
            self.next = event.idx + 1
            if self.arrived.pop(event.idx, None) is None:
                yield Finding(f"buffer {event.idx} is loaded and has not come in", (seen,))
            else:
                self.facts.waiting_room += 1

    def _incoming(self, seen: Said, idx: int) -> Iterator[Finding]:
        self.exercised = True
        before = self.arrived.get(idx)
        if before is not None or idx < self.next:
            yield Finding(f"buffer {idx} comes in twice", (seen,) if before is None else (before, seen))
            return
        self.arrived[idx] = seen
        self.facts.waiting_room -= 1
        if self.facts.waiting_room < 0:
            self.overflowed = True
            self.unknown = "too many buffers waited to be followed"
            self.facts.waiting_room += len(self.arrived)
            self.arrived.clear()


class _Side:
    """Packets of one channel, in the capture and in one log, compared as they come; what is ahead waits."""

    def __init__(self) -> None:
        self.started: Said | None = None
        self.packets: int | None = None  # its thread says it had
        self.traced = 0
        self.captured = 0
        self.problem = ""
        self.last: Said | None = None
        self.waiting = bytearray()

    def put(self, packet: bytes, captured: bool, facts: Facts) -> bytes | None:
        """One packet; when its counterpart is another one, that."""
        if self.problem:
            return None
        ahead = self.captured - self.traced
        if captured:
            self.captured += 1
        else:
            self.traced += 1
        if ahead == 0 or (ahead > 0) == captured:
            self.waiting += packet
            facts.waiting_room -= 1
            if facts.waiting_room < 0:
                self.give_up("too many packets waited to be compared", facts)
            return None
        other = bytes(self.waiting[: _PACKET.size])
        del self.waiting[: _PACKET.size]
        facts.waiting_room += 1
        return None if other == packet else other

    def give_up(self, why: str, facts: Facts) -> None:
        """Compare no more."""
        facts.waiting_room += len(self.waiting) // _PACKET.size
        self.waiting.clear()
        self.problem = self.problem or why


class TracedPackets(Invariant[PacketTrace | ThreadTrace | RamFrame]):
    """Sound: a channel is compared from its thread's start line on, packet by packet, in the order of one
    connection; whichever is ahead waits, within bounds.

    Misses: device-state packets, which have no such event, and page contents.
    """

    passport = Passport(
        "TR-3",
        "The RAM and SYNC packets that a QEMU's multifd threads say they sent and received are those of the "
        "capture: number, flags and size of each, in the channel's order.",
        Severity.CORRUPTS,
        qemu("migration/multifd.c", "multifd_send_fill_packet, multifd_recv_unfill_packet"),
        CHANNEL_NUMBER,
        (Need.CHANNELS,),
    )
    kinds = (PacketTrace, ThreadTrace, RamFrame)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.exercised = False
        self.captured: Seen | None = None
        self.frames = 0  # captured, whether or not there was a log by then
        self.sides = {"source": _Side(), "target": _Side()}

    def on(self, seen: Said | Seen, event: PacketTrace | ThreadTrace | RamFrame) -> Iterator[Finding]:
        if isinstance(seen, Seen):
            if isinstance(event, RamFrame):
                self.frames += 1
            if isinstance(event, RamFrame) and self.facts.logs:
                self.captured = seen.place()
                head = event.head
                packet = _PACKET.pack(head.packet_num, head.flags, head.next_packet_size)
                for role in self.sides:  # in this order, which that of a set is not
                    if role in self.facts.logs:
                        yield from self._compare(role, packet, captured=True)
            return
        side = self.sides[seen.role]
        if isinstance(event, ThreadTrace):
            self._thread(side, seen, event)
        elif isinstance(event, PacketTrace):
            side.last = seen
            if side.started is None:
                side.give_up("the trace began after the channel did", self.facts)
            packet = _PACKET.pack(event.packet_num, event.flags, event.next_packet_size)
            yield from self._compare(seen.role, packet, captured=False)

    def _thread(self, side: _Side, seen: Said, event: ThreadTrace) -> None:
        if event.packets is not None:
            side.packets = event.packets
        elif side.started is not None:
            side.give_up("the log is of more than one migration", self.facts)
        else:
            side.started = seen

    def _compare(self, role: str, packet: bytes, *, captured: bool) -> Iterator[Finding]:
        side = self.sides[role]
        if side.captured < self.frames - captured:
            side.give_up("the log began after the channel did", self.facts)
        other = side.put(packet, captured, self.facts)
        if other is None:
            return
        told, seen = (other, packet) if captured else (packet, other)
        witnesses = tuple(w for w in (side.last, self.captured) if w is not None)
        yield Finding(f"the {role} traces {_words(told)}, the capture has {_words(seen)}", witnesses)
        side.give_up("the packets differ", self.facts)

    def at_end(self) -> Iterator[Finding]:
        for role, side in self.sides.items():
            if side.started is None or self.captured is None:
                continue
            self.exercised = True
            if side.problem:
                self.unknown = self.unknown or f"at the {role}: {side.problem}"
            elif side.packets is None and side.traced != side.captured:
                self.unknown = self.unknown or f"the {role}'s log has no end of this channel's thread"
            elif self.complete and side.traced != side.captured:
                witnesses = tuple(w for w in (side.started, side.last, self.captured) if w is not None)
                yield Finding(
                    f"the {role} traces {side.traced} packets, the capture has {side.captured}", witnesses
                )


class TracedCount(Invariant[ThreadTrace | RamFrame | DeviceStateFrame]):
    """Sound: the count is the thread's own at its end; a log of more than one migration leaves it unknown.

    Misses: packets that are counted and wrong: TR-3.
    """

    passport = Passport(
        "TR-4",
        "A multifd thread counts as many packets as its channel has in the capture: at the source those of "
        "RAM and SYNC, at the target those of device state too.",
        Severity.CORRUPTS,
        qemu("migration/multifd.c", "multifd_send_thread, multifd_recv_thread"),
        CHANNEL_NUMBER,
        (Need.CHANNELS,),
    )
    kinds = (ThreadTrace, RamFrame, DeviceStateFrame)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.exercised = False
        self.ram = 0
        self.device_state = 0
        self.ends: dict[str, Said] = {}

    def on(self, seen: Said | Seen, event: ThreadTrace | RamFrame | DeviceStateFrame) -> Iterator[Finding]:
        if type(event) is RamFrame:
            self.ram += 1
        elif type(event) is DeviceStateFrame:
            self.device_state += 1
        elif isinstance(seen, Said) and event.packets is not None:
            if seen.role in self.ends:
                self.unknown = f"the {seen.role}'s log is of more than one migration"
            self.ends[seen.role] = seen
        return iter(())

    def at_end(self) -> Iterator[Finding]:
        self.exercised = bool(self.ends) and bool(self.facts.lanes)
        if not self.complete or self.unknown:
            return
        for role, seen in self.ends.items():
            captured = self.ram + (self.device_state if role == "target" else 0)
            counted = seen.line.packets  # type: ignore[union-attr]
            if counted != captured:
                yield Finding(
                    f"the {role}'s thread counted {counted} packets, the capture has {captured}", (seen,)
                )


def _words(packet: bytes) -> str:
    number, flags, size = _PACKET.unpack(packet)
    return f"packet {number} with flags {flags:#x} and size {size}"


TRACES = (TracedLoadOrder, TracedArrival, TracedPackets, TracedCount)
