# SPDX-License-Identifier: GPL-2.0-or-later
"""All TCP connections of a capture, reassembled in one pass; every byte of them is delivered or accounted
for.

    def factory(flow: Flow) -> Sink: ...

    with open_capture(path) as capture:
        accounting = reassemble(capture, factory)

The factory is called once for each direction of each connection, at its first packet. It gives a sink, which
is told in stream order and as soon as the bytes are contiguous (so over all flows in the order of the
capture):

    sink.data(start, stop, time_ns)            capture.data[start:stop] are the next bytes
    sink.hole(size, reason, time_ns, note)     the next `size` bytes are not in the capture
    sink.end(kind, time_ns)                    nothing more comes; always called, once

time_ns: of the packet that made it contiguous. Reasons and kinds: see `stream.Sink`. A sink's `data` is
looked up once; what a sink raises ends the reassembly. Connections are told apart by capture point and
addresses; a new SYN begins a new connection. The same packet captured twice is a retransmission.

A segment whose checksum shows damage is left, as its receiver leaves it: no byte or flag of it counts, and
what the sender sends again takes its place; what it does not is a hole. Where that may be said (`checksums`
has what a checksum says): of a direction in which the checksum of a SYN or of payload was right. Is one wrong
before, the next packets are looked at, and if they do not tell, it is used, and named if another is right
later. Of segments longer than the peer's MSS nothing is said: they were on no wire, but put together after
it, or are cut up before.

Pure. No payload is copied and no object made for a packet that comes in order; memory is bounded by the
limits that `reassemble` takes, whatever the capture holds.
"""

from __future__ import annotations

import mmap
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

from verifier.capture.checksums import (
    CHECKED,
    MODULUS,
    OFFLOADED,
    RIGHT,
    SHORT,
    UNDECIDED,
    WHOLE,
    WRONG,
    WRONG_MAX,
    all_right,
    mss,
    pseudo,
    says,
    summed,
)
from verifier.capture.interface import Interface
from verifier.capture.packets import (
    ACK,
    FIN,
    RST,
    SYN,
    Layout,
    Segment,
    ends,
    layout,
    reverse,
    segment,
)
from verifier.capture.pcap import Packet
from verifier.capture.stream import (
    ENDED_CUT,
    ENDED_RST,
    MASK,
    WINDOW_BYTES_MAX,
    Direction,
    Flow,
    Sink,
    Waiting,
)

__all__ = ["UNTRACKED", "Accounting", "Factory", "Flow", "Sink", "reassemble"]

Factory = Callable[[Flow], Sink]

UNTRACKED = "TCP of a connection beyond the limit"
BAD_SUM = "wrong TCP checksum"
# How many delivered runs are kept in mind to compare what is sent again, for connections below this number:
# fewer when there are many, so that a capture full of connections takes no more than some 80 MB.
_HISTORY = ((32, 4096), (256, 512), (1 << 62, 32))
_USUAL = FIN | SYN | RST | ACK
_SHORTEST = 0x50  # a TCP header of five words
# Checksums are looked at for so many packets together; after they were not all right, one by one, that many
# times.
_TOGETHER, _DOUBTS = 128, 16
# How many packets to look ahead for a right one at most, each time and in all.
_AHEAD_MAX, _AHEAD_TOTAL_MAX = 512, 1 << 20


class Packets(Protocol):
    """What is read here of a `pcapng.Capture`."""

    data: mmap.mmap
    grows: bool

    @property
    def interfaces(self) -> Sequence[Interface]:
        """The capture points met so far."""

    def packets(self) -> Iterator[Packet]:
        """(start, stop, original, time_ns, interface, note) of every packet in order."""


@dataclass(slots=True)
class Accounting:
    """What a capture held.

    unread: packets that are not in a flow, by why. flows: one entry per direction that was seen.
    """

    packets: int = 0
    connections: int = 0
    unread: Counter[str] = field(default_factory=Counter)
    flows: list[Flow] = field(default_factory=list)

    @property
    def tcp_packets(self) -> int:
        """Packets that went into a flow."""
        return self.packets - self.unread.total()

    @property
    def delivered_bytes(self) -> int:
        """Payload given to sinks as data."""
        return sum(flow.delivered_bytes for flow in self.flows)

    @property
    def payload_bytes(self) -> int:
        """TCP payload of all packets in flows, shortened ones at full length: each byte once for each time
        it came.
        """
        return sum(
            flow.delivered_bytes + flow.snapped_bytes + flow.duplicated_bytes + flow.stray_bytes
            for flow in self.flows
        )

    @property
    def missing_bytes(self) -> int:
        """Payload that was on the wire and in no packet of the capture."""
        return sum(flow.hole_bytes - flow.snapped_bytes for flow in self.flows)


def reassemble(
    capture: Packets,
    factory: Factory,
    *,
    connections_max: int = 16_384,
    waiting_max: int = 131_072,
    waiting_per_direction_max: int = 16_384,
) -> Accounting:
    """Read the whole capture and feed the sinks.

    connections_max: packets of further connections are counted as unread. waiting_max: ranges that may wait
    for earlier ones; beyond it, or its like per direction, the bytes before the first are given up as a
    hole.
    """
    waiting = Waiting(waiting_max, waiting_per_direction_max)
    return _Reassembly(capture, factory, connections_max, waiting).run()


class _Reassembly:
    def __init__(self, capture: Packets, factory: Factory, connections_max: int, waiting: Waiting) -> None:
        self.capture = capture
        self.factory = factory
        self.connections_max = connections_max
        self.waiting = waiting
        self.accounting = Accounting()
        self.tables: list[dict[bytes, Direction]] = []
        self.shapes: list[Layout] = []
        self.layouts: dict[tuple[int, int], Layout] = {}
        self.source: Iterator[Packet] = iter(())
        self.packets: list[Packet] = []  # that were read together
        self.before = 0  # how many were read before these
        self.ahead_left = _AHEAD_TOTAL_MAX
        self.checking = False  # whether checksums of any direction mean something

    def run(self) -> Accounting:
        """The pass over the packets: in-order payload and plain acknowledgements here, all else in
        `_careful`.
        """
        data, careful = self.capture.data, self._careful
        current, count, time_ns, doubts = 0, 0, 0, 0
        table, (unpack, mask, value, hosts_at, tcp_at, base, bytes_min) = self._point(0)
        self.source = self.capture.packets()
        # A packet of a file that grows is wanted as soon as it is there.
        while packets := list(islice(self.source, 1 if self.capture.grows else _TOGETHER)):
            self.packets, self.before, together = packets, count, len(packets)
            whole = self.checking and not doubts and all_right(data, packets, hosts_at, tcp_at)
            if self.checking and not whole:
                doubts = doubts - 1 if doubts else _DOUBTS
            for start, stop, original, time_ns, interface, note in packets:
                count += 1
                if interface != current:
                    current = interface
                    table, (unpack, mask, value, hosts_at, tcp_at, base, bytes_min) = self._point(interface)
                if stop - start >= bytes_min:
                    length, word, key, seq, ack, words, flags, checksum = unpack(data, start)
                    if word & mask == value and flags & _USUAL == ACK:
                        direction = table.get(key)
                        if direction is not None and direction.expected == seq:
                            tcp = start + tcp_at
                            begin = tcp + (words >> 4) * 4
                            end = start + base + length
                            if begin <= end <= stop and words >= _SHORTEST:
                                size = end - begin
                                if not size:
                                    direction.ack = ack
                                    continue
                                if (
                                    direction.sums == CHECKED
                                    and size <= direction.segment_max
                                    and (
                                        (whole and size > SHORT and end == stop)
                                        or (summed(data, start + hosts_at, end) + (end - tcp << 8)) % MODULUS
                                        == WHOLE
                                    )
                                ) or (
                                    not checksum
                                    or direction.sums == OFFLOADED
                                    or size > direction.segment_max
                                    or not (checksum - direction.pseudo + tcp - end) % MODULUS
                                ):
                                    position = direction.offset
                                    direction.expected = (seq + size) & MASK
                                    direction.offset = offset = position + size
                                    direction.recent.append((offset, position, begin))
                                    direction.data(begin, end, time_ns)
                                    direction.ack = ack
                                    continue
                unpack, mask, value, hosts_at, tcp_at, base, bytes_min = careful(
                    count, start, stop, original, time_ns, interface, note
                )
                whole = whole and len(packets) == together
        self.accounting.packets = count
        self._close(time_ns)
        return self.accounting

    def _point(self, interface: int) -> tuple[dict[bytes, Direction], Layout]:
        """The connections of a capture point, and how its frames lie for all that is known."""
        while len(self.tables) <= interface:
            self.tables.append({})
            self.shapes.append(self._shape(12, 14))
        return self.tables[interface], self.shapes[interface]

    def _shape(self, key_bytes: int, ip_at: int) -> Layout:
        known = self.layouts.get((key_bytes, ip_at))
        if known is None:
            known = self.layouts[key_bytes, ip_at] = layout(key_bytes, ip_at)
        return known

    def _careful(
        self, number: int, start: int, stop: int, original: int, time_ns: int, interface: int, note: str
    ) -> Layout:
        """Any packet. Gives the layout to expect of the next one of this capture point."""
        point = self.capture.interfaces[interface]
        found = segment(self.capture.data, start, stop, original, point.link_type)
        if isinstance(found, str):
            self.accounting.unread[found] += 1
            return self.shapes[interface]
        key, seq, _, flags, begin, end, missing, ip_at, _ = found
        direction = self.tables[interface].get(key)
        known = direction is not None
        if direction is None:
            direction = self._open(key, interface, time_ns)
        if direction is not None and self._damaged(direction, found, number, interface):
            self.accounting.unread[BAD_SUM] += 1
            direction.refuse(seq, end - begin + missing, number)
            return self.shapes[interface]
        if direction is not None and known and flags & SYN and _is_another(direction, seq, flags):
            direction = self._open(key, interface, time_ns)
        if direction is None:
            self.accounting.unread[UNTRACKED] += 1
        else:
            if direction.flow is None:
                self._meet(direction, interface, seq, flags)
            if flags & SYN:
                direction.peer.segment_max = mss(self.capture.data, found) or MASK
            _take(direction, found, time_ns, note)
        self.shapes[interface] = self._shape(len(key), ip_at - start)
        return self.shapes[interface]

    def _damaged(self, direction: Direction, found: Segment, number: int, interface: int) -> bool:
        """Whether a segment, of packet `number`, has a wrong checksum where that means damage."""
        _, _, _, flags, start, stop, missing, _, _ = found
        size = stop - start + missing
        if direction.sums == OFFLOADED or size > direction.segment_max:
            return False
        said = says(self.capture.data, found)
        if direction.sums == UNDECIDED and (size or flags & SYN):
            if said == RIGHT:
                direction.vouch()
            elif said == WRONG:
                direction.doubt(number, self._look_ahead(direction.key, number, interface))
            self.checking |= direction.sums == CHECKED
        return said == WRONG and direction.sums == CHECKED

    def _look_ahead(self, key: bytes, number: int, interface: int) -> int:
        """What the checksums of a direction's next segments say of it, after packet `number`."""
        data, wrong = self.capture.data, 0
        for start, stop, original, _, point, _ in self._coming(number - self.before):
            if point != interface:
                continue
            found = segment(data, start, stop, original, self.capture.interfaces[point].link_type)
            if isinstance(found, str) or found[0] != key or found[4] == found[5]:
                continue
            said = says(data, found)
            if said == RIGHT:
                return CHECKED
            wrong += said == WRONG
            if wrong == WRONG_MAX:
                return OFFLOADED
        return UNDECIDED

    def _coming(self, index: int) -> Iterator[Packet]:
        """The packets from `index` of those read together, and some more, which are read with them then."""
        for at in range(index, index + min(_AHEAD_MAX, self.ahead_left)):
            if at == len(self.packets):
                # Of a file that grows, nothing is waited for.
                more = 0 if self.capture.grows else _TOGETHER
                self.packets += islice(self.source, more)
                if at == len(self.packets):
                    return
            self.ahead_left -= 1
            yield self.packets[at]

    def _open(self, key: bytes, interface: int, time_ns: int) -> Direction | None:
        """A new connection in place of an earlier one between the same ends; None when there are too many."""
        table = self.tables[interface]
        earlier = table.get(key)
        if earlier is not None:
            _end(earlier, time_ns)
            _end(earlier.peer, time_ns)
        if self.accounting.connections >= self.connections_max:
            return None
        number = self.accounting.connections
        self.accounting.connections += 1
        data = self.capture.data
        runs = next(runs for below, runs in _HISTORY if number < below)
        direction, peer = (
            Direction(name, number, data, self.waiting, deque(maxlen=runs), pseudo(name))
            for name in (key, reverse(key))
        )
        if earlier is not None:
            direction.sums, peer.sums = earlier.sums, earlier.peer.sums
        direction.peer, peer.peer = peer, direction
        table[key], table[peer.key] = direction, peer
        return direction

    def _meet(self, direction: Direction, interface: int, seq: int, flags: int) -> None:
        """The first packet of a direction: where its stream begins, who opened it, and its sink."""
        other = direction.peer.flow
        initiator = None if other is None or other.initiator is None else not other.initiator
        if flags & SYN:
            initiator = not flags & ACK
        midway = not flags & SYN and direction.base < 0
        if direction.base < 0:
            direction.base = (seq + 1) & MASK if flags & SYN else seq
        flow = Flow(interface, direction.connection, *ends(direction.key), initiator, midway)
        self.accounting.flows.append(flow)
        direction.flow = flow
        if midway:
            flow.damaged_packet = direction.refused
        direction.sink = self.factory(flow)
        direction.data = direction.sink.data

    def _close(self, time_ns: int) -> None:
        """The capture ends: so do all streams."""
        open_ones = [direction for table in self.tables for direction in table.values()]
        for direction in sorted(open_ones, key=lambda side: side.connection):
            _end(direction, time_ns)


def _is_another(direction: Direction, seq: int, flags: int) -> bool:
    """Whether a SYN begins a new connection between ends that already have one."""
    peer = direction.peer
    if any(side.flow is not None and side.flow.ended for side in (direction, peer)):
        return True
    if direction.base < 0:  # only the peer was seen so far
        return not flags & ACK
    return direction.base != (seq + 1) & MASK


def _take(direction: Direction, found: Segment, time_ns: int, note: str) -> None:
    """A segment of a known connection."""
    _, seq, ack, flags, start, stop, missing, *_ = found
    peer = direction.peer
    if flags & SYN:
        seq = (seq + 1) & MASK
    if flags & ACK:
        direction.ack = ack
        if flags & SYN and peer.base < 0:
            peer.base = ack
    size = stop - start + missing
    position = direction.position(seq)
    near = abs(position - direction.offset) <= WINDOW_BYTES_MAX
    if flags & FIN and near and direction.fin_at < 0 and position + size >= direction.offset:
        direction.fin_at = position + size
    if size:
        direction.take(seq, start, stop, missing, time_ns, note)
    elif flags & FIN:
        direction.drain(time_ns)
    elif near and not flags & RST:
        direction.sent_to = max(direction.sent_to, position)
    if flags & RST:
        direction.finish(ENDED_RST, time_ns, _acked(direction))
        peer.reset_ns = time_ns
    for side in (direction, peer):
        if side.pending:
            side.settle(_acked(side), time_ns)
    plain = not (direction.pending or peer.pending)
    direction.arm(plain)
    peer.arm(plain)


def _acked(direction: Direction) -> int:
    """The position up to which the peer acknowledged, 0 when it did not."""
    if direction.peer.ack < 0:
        return 0
    position = direction.position(direction.peer.ack)
    return position if abs(position - direction.offset) <= WINDOW_BYTES_MAX else 0


def _end(direction: Direction, time_ns: int) -> None:
    if direction.flow is None:
        return
    if direction.reset_ns >= 0:
        direction.finish(ENDED_RST, direction.reset_ns, _acked(direction))
    else:
        direction.finish(ENDED_CUT, time_ns, _acked(direction))
