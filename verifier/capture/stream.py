# SPDX-License-Identifier: GPL-2.0-or-later
"""One direction of one TCP connection put in order: what is next, what waits, what is missing.

Pure. Holds ranges of the mapped file, never bytes of it. Positions are absolute: bytes since the start of the
stream (or since where the capture joined it), so nothing here minds that sequence numbers wrap.
"""

from __future__ import annotations

import mmap
from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Protocol

from verifier.capture.checksums import CHECKED, OFFLOADED, UNDECIDED, WRONG_MAX
from verifier.capture.packets import Address

MASK = 0xFFFF_FFFF
WINDOW_BYTES_MAX = (
    1 << 30
)  # TCP's largest window: what lies further away belongs to another life of the stream
PATIENCE_PACKETS = 64  # how long acknowledged bytes may still come late, captured after their acknowledgement

DAMAGED_MAX = 64  # damaged segments of a direction that are kept in mind

SNAPPED, LOST, CUT, REORDER, DAMAGED = "snapped", "lost", "cut", "reorder", "damaged"
ENDED_FIN, ENDED_RST, ENDED_CUT = "fin", "rst", "cut"


class Sink(Protocol):
    """Takes one direction of a connection, in stream order."""

    def data(self, start: int, stop: int, time_ns: int, /) -> object:
        """The next bytes of the stream are capture.data[start:stop]."""

    def hole(self, size: int, reason: str, time_ns: int, note: str, /) -> object:
        """The next `size` bytes are not in the capture. reason: SNAPPED (the packet is there, shortened;
        note: its comments), LOST (the peer acknowledged them), CUT (the connection or the capture ends
        without them), REORDER (too much waited for them), DAMAGED (they came with a wrong checksum, and
        not again)."""

    def end(self, kind: str, time_ns: int, /) -> object:
        """Nothing more comes. kind: ENDED_FIN, ENDED_RST (by either side), ENDED_CUT (the capture has no
        end).
        """


@dataclass(slots=True)
class Flow:
    """One direction of one connection: who, and what became of its bytes. Counts are bytes of the stream.

    interface: index of the capture point; connection: number in order of first sight; initiator: whether
    `source` opened the connection, None when its opening was not captured. joined_midway: the stream's
    start was not captured, so position 0 is merely the first byte seen. delivered: given to the sink as
    data; holes: how many, of hole_bytes in all, snapped_bytes of them shortened packets; duplicated: sent
    again (unverified of them could not be compared with the first); conflicts: how often something else was
    sent the second time, first_conflict its position; stray: before the stream's start, behind its end, or
    too far away to belong to it. damaged_packet: the number (from 1) of a packet whose checksum is wrong and
    which may have carried bytes that are missing, 0 when there is none.
    """

    interface: int
    connection: int
    source: Address
    destination: Address
    initiator: bool | None
    joined_midway: bool
    delivered_bytes: int = 0
    holes: int = 0
    hole_bytes: int = 0
    snapped_bytes: int = 0
    duplicated_bytes: int = 0
    unverified_bytes: int = 0
    conflicts: int = 0
    first_conflict: int = -1
    stray_bytes: int = 0
    damaged_packet: int = 0
    ended: str = ""


@dataclass(slots=True)
class Waiting:
    """How many ranges wait for an earlier one, over all directions, and the most that may (total, per
    direction).
    """

    total_max: int
    direction_max: int
    total: int = 0


def _nowhere(_start: int, _stop: int, _time_ns: int) -> None:
    """Where a direction's data would go before its first sight."""


Run = tuple[int, int, int, str]
"""position, end, start in the file (-1: not captured), note."""


@dataclass(slots=True, eq=False, repr=False)
class Direction:
    """The reassembly of one direction.

    expected: the next sequence number while every packet that carries it may simply be delivered, else -1:
    so that one comparison tells the reader of packets whether it may go the short way (see `reassembly`).
    offset: bytes given to the sink, holes included. base: the sequence number of position 0. recent: what
    was delivered lately, as (end position, position, start in the file). pseudo, sums: see `checksums`;
    segment_max: the MSS that the peer named. damaged: (position, end, number of the packet) of segments that
    were not used; damaged_to: up to where they went; refused: the last one's number. wrong, doubted: how many
    had a wrong checksum while nothing was known of the direction's, and the first one's number.
    """

    key: bytes
    connection: int
    capture: mmap.mmap
    waiting: Waiting
    recent: deque[tuple[int, int, int]]
    pseudo: int
    flow: Flow | None = None
    sink: Sink | None = None
    data: Callable[[int, int, int], object] = _nowhere
    expected: int = -1
    offset: int = 0
    base: int = -1
    ack: int = -1
    fin_at: int = -1
    sent_to: int = 0
    reset_ns: int = -1
    sums: int = UNDECIDED
    segment_max: int = MASK
    damaged: list[tuple[int, int, int]] = field(default_factory=list)
    damaged_to: int = 0
    refused: int = 0
    doubted: int = 0
    wrong: int = 0
    patience: int = PATIENCE_PACKETS
    peer: Direction = field(init=False)
    pending: list[Run] = field(default_factory=list)

    def position(self, number: int) -> int:
        """The position in the stream that a sequence number means, the nearest to `offset` of all it could
        mean.
        """
        distance = (number - self.base - self.offset) & MASK
        return self.offset + distance - (1 << 32 if distance >> 31 else 0)

    def arm(self, plain: bool) -> None:
        """Opens or closes the short way for the next packets. plain: nothing waits in either direction."""
        ready = plain and self.flow is not None and not self.flow.ended and self.fin_at < 0
        self.expected = (self.base + self.offset) & MASK if ready else -1

    def take(self, seq: int, start: int, stop: int, missing: int, time_ns: int, note: str) -> None:
        """A segment's payload: data[start:stop], then `missing` bytes that the capture has not."""
        flow = self._flow
        position, size = self.position(seq), stop - start + missing
        if abs(position - self.offset) > WINDOW_BYTES_MAX:
            flow.stray_bytes += size
            return
        if position < 0:
            early = min(-position, size)
            flow.stray_bytes += early
            position, start, size = position + early, start + early, size - early
            missing = min(missing, size)
        last = self.offset if flow.ended else self.fin_at
        if last >= 0 and position + size > last:
            beyond = min(position + size - last, size)
            flow.stray_bytes += beyond
            size -= beyond
            missing = max(0, missing - beyond)
        captured = size - missing
        if captured > 0 and position == self.offset and not self.pending:
            self._deliver((position, position + captured, start, ""), time_ns)
        elif captured > 0:
            self._place((position, position + captured, start, ""))
        if missing > 0:
            self._place((position + captured, position + size, -1, note))
        if not flow.ended:
            self.sent_to = max(self.sent_to, position + size)
            self.drain(time_ns)

    def vouch(self) -> None:
        """A checksum is right: so a wrong one is damage, and one that was wrong before was too."""
        self.sums = CHECKED
        if self.flow is not None:
            self.flow.damaged_packet = self.flow.damaged_packet or self.doubted

    def doubt(self, number: int, ahead: int) -> None:
        """The checksum of packet `number` is wrong, and none was right so far; ahead: what those of the next
        segments say.
        """
        self.wrong += 1
        if ahead == CHECKED:
            self.vouch()
        else:
            self.doubted = self.doubted or number
            self.sums = OFFLOADED if self.wrong >= WRONG_MAX else ahead

    def refuse(self, seq: int, size: int, number: int) -> None:
        """A segment of `size` bytes of payload, packet `number`, has a wrong checksum: as its receiver does,
        leave it, and wait for it to be sent again.
        """
        self.refused = number
        position = self.position(seq)
        if self.base < 0 or abs(position - self.offset) > WINDOW_BYTES_MAX:
            return
        self.damaged_to = max(self.damaged_to, position + size)
        if len(self.damaged) >= DAMAGED_MAX:
            self.damaged = [held for held in self.damaged if held[1] > self.offset]
        if len(self.damaged) < DAMAGED_MAX:
            self.damaged.append((position, position + size, number))

    def drain(self, time_ns: int) -> None:
        """Gives the sink all that is contiguous, then the end of the stream when it is reached."""
        self._release(time_ns)
        while self.pending and self._crowded():
            self._skip(REORDER, time_ns)
        if self.fin_at >= 0 and self.offset >= self.fin_at:
            self.finish(ENDED_FIN, time_ns)

    def settle(self, acked: int, time_ns: int) -> None:
        """The peer acknowledged up to position `acked`: what it has and the capture lacks is lost, after a
        while.
        """
        if self.pending and acked >= self.pending[0][0]:
            self.patience -= 1
            if self.patience < 0:
                self._skip(LOST, time_ns)
                self.drain(time_ns)

    def finish(self, kind: str, time_ns: int, acked: int = 0) -> None:
        """Ends the stream; what still waits is delivered with its holes. acked: position the peer
        acknowledged.
        """
        flow = self._flow
        if flow.ended:
            return
        while self.pending:
            self._skip(LOST if acked >= self.pending[0][0] else CUT, time_ns)
        # An acknowledgement of one byte more than was seen is that of an end (FIN) which was not captured.
        beyond = acked if acked > self.offset + 1 and self.fin_at < 0 else self.offset
        known = self.fin_at if self.fin_at >= 0 else max(self.sent_to, beyond, self.damaged_to)
        if known > self.offset:
            self._hole(known - self.offset, LOST if acked >= known else CUT, time_ns, "")
        flow.ended = ENDED_FIN if self.fin_at >= 0 else kind
        flow.delivered_bytes = self.offset - flow.hole_bytes
        self.expected = -1
        if self.sink is not None:
            self.sink.end(flow.ended, time_ns)

    def _release(self, time_ns: int) -> None:
        pending, count = self.pending, 0
        for run in pending:
            if run[0] != self.offset:
                break
            self._deliver(run, time_ns)
            count += 1
        if count:
            del pending[:count]
            self.waiting.total -= count
            self.patience = PATIENCE_PACKETS

    def _skip(self, reason: str, time_ns: int) -> None:
        """Gives up the bytes before the first waiting range, and delivers what follows."""
        self._hole(self.pending[0][0] - self.offset, reason, time_ns, "")
        self.patience = PATIENCE_PACKETS
        self._release(time_ns)

    @property
    def _flow(self) -> Flow:
        assert self.flow is not None, "a direction takes segments only after its first sight"
        return self.flow

    def _crowded(self) -> bool:
        waiting = self.waiting
        return len(self.pending) > waiting.direction_max or waiting.total > waiting.total_max

    def _deliver(self, run: Run, time_ns: int) -> None:
        position, end, start, note = run
        if start < 0:
            self._flow.snapped_bytes += end - position
            self._hole(end - position, SNAPPED, time_ns, note)
            return
        self.offset = end
        self.recent.append((end, position, start))
        self.data(start, start + end - position, time_ns)

    def _hole(self, size: int, reason: str, time_ns: int, note: str) -> None:
        if self.refused and reason != SNAPPED:
            reason = self._explain(self.offset + size, reason)
        self.offset += size
        self._flow.holes += 1
        self._flow.hole_bytes += size
        if self.sink is not None:
            self.sink.hole(size, reason, time_ns, note)

    def _explain(self, end: int, reason: str) -> str:
        """Why the bytes from here to `end` are missing, where damage may be the reason. A sequence number may
        be what is damaged.
        """
        number = self.refused
        for start, stop, held in self.damaged:
            if start < end and stop > self.offset:
                number, reason = held, DAMAGED
                break
        self._flow.damaged_packet = self._flow.damaged_packet or number
        return reason

    def _place(self, run: Run) -> None:
        """Keeps of `run` what neither was delivered nor waits already: what came first wins."""
        if run[0] < self.offset:
            stop = min(run[1], self.offset)
            self._repeated_delivered(run, stop)
            if stop == run[1]:
                return
            run = _from(run, stop)
        pending = self.pending
        index = bisect_right(pending, run[0], key=lambda held: held[0])
        if index and pending[index - 1][1] > run[0]:
            index -= 1
        fresh: list[Run] = []
        last = index
        while last < len(pending) and pending[last][0] < run[1]:
            held = pending[last]
            if run[0] < held[0]:
                fresh.append(_until(run, held[0]))
                run = _from(run, held[0])
            stop = min(run[1], held[1])
            self._repeated(run, stop, held[0], held[2])
            fresh.append(held)
            last += 1
            run = _from(run, stop)
            if run[0] == run[1]:
                break
        if run[0] < run[1]:
            fresh.append(run)
        self.waiting.total += len(fresh) - (last - index)
        pending[index:last] = fresh

    def _repeated_delivered(self, run: Run, stop: int) -> None:
        """Compares run, up to `stop`, with what was delivered there."""
        recent = self.recent
        here = run[0]
        index = bisect_right(recent, here, key=itemgetter(0))
        while here < stop and index < len(recent):
            end, position, start = recent[index]
            if position > here:
                self._repeated(_from(run, here), min(position, stop), here, -1)
                here = min(position, stop)
            if here < stop:
                until = min(end, stop)
                self._repeated(_from(run, here), until, position, start)
                here = max(here, until)
            index += 1
        if here < stop:
            self._repeated(_from(run, here), stop, here, -1)

    def _repeated(self, run: Run, stop: int, position: int, start: int) -> None:
        """Counts run[0]..stop as sent again; the first copy of `position`, if captured, is at `start`."""
        flow, size = self._flow, stop - run[0]
        if size <= 0:
            return
        flow.duplicated_bytes += size
        if start < 0 or run[2] < 0:
            flow.unverified_bytes += size
            return
        first = start + run[0] - position
        if self.capture[first : first + size] != self.capture[run[2] : run[2] + size]:
            flow.conflicts += 1
            if flow.first_conflict < 0:
                flow.first_conflict = run[0]


def _from(run: Run, position: int) -> Run:
    """The part of a run from `position` on; what a packet's comment says holds for the whole run only."""
    if position == run[0]:
        return run
    return position, run[1], run[2] + position - run[0] if run[2] >= 0 else -1, ""


def _until(run: Run, position: int) -> Run:
    return run[0], position, run[2], run[3]
