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

Pure. No payload is copied and no object made for a packet that comes in order; memory is bounded by the
limits that `reassemble` takes, whatever the capture holds.
"""

from __future__ import annotations

import mmap
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

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
# How many delivered runs are kept in mind to compare what is sent again, for connections below this number:
# fewer when there are many, so that a capture full of connections takes no more than some 80 MB.
_HISTORY = ((32, 4096), (256, 512), (1 << 62, 32))
_USUAL = FIN | SYN | RST | ACK
_SHORTEST = 0x50  # a TCP header of five words


class Packets(Protocol):
    """What is read here of a `pcapng.Capture`."""

    data: mmap.mmap

    @property
    def interfaces(self) -> Sequence[Interface]:
        """The capture points met so far."""

    def packets(self) -> Iterator[tuple[int, int, int, int, int, str]]:
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

    def run(self) -> Accounting:
        """The pass over the packets: in-order payload and plain acknowledgements here, all else in
        `_careful`.
        """
        data, careful = self.capture.data, self._careful
        current, count, time_ns = 0, 0, 0
        table, shape = self._point(0)
        for start, stop, original, time_ns, interface, note in self.capture.packets():
            count += 1
            if interface != current:
                current = interface
                table, shape = self._point(interface)
            if stop - start >= shape.bytes_min:
                length, word, key, seq, ack, words, flags = shape.unpack(data, start)
                if word & shape.mask == shape.value and flags & _USUAL == ACK:
                    direction = table.get(key)
                    if direction is not None and direction.expected == seq:
                        begin = start + shape.tcp_at + (words >> 4) * 4
                        end = start + shape.base + length
                        if begin <= end <= stop and words >= _SHORTEST:
                            if begin != end:
                                size = end - begin
                                direction.expected = (seq + size) & MASK
                                position = direction.offset
                                direction.offset = position + size
                                direction.recent.append((position + size, position, begin))
                                direction.data(begin, end, time_ns)
                            direction.ack = ack
                            continue
            shape = careful(start, stop, original, time_ns, interface, note)
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
        self, start: int, stop: int, original: int, time_ns: int, interface: int, note: str
    ) -> Layout:
        """Any packet. Gives the layout to expect of the next one of this capture point."""
        point = self.capture.interfaces[interface]
        found = segment(self.capture.data, start, stop, original, point.link_type)
        if isinstance(found, str):
            self.accounting.unread[found] += 1
            return self.shapes[interface]
        key, seq, _, flags, *_, ip_at = found
        direction = self.tables[interface].get(key)
        if direction is None or (flags & SYN and _is_another(direction, seq, flags)):
            direction = self._open(key, interface, time_ns)
        if direction is None:
            self.accounting.unread[UNTRACKED] += 1
        else:
            if direction.flow is None:
                self._meet(direction, interface, seq, flags)
            _take(direction, found, time_ns, note)
        self.shapes[interface] = self._shape(len(key), ip_at - start)
        return self.shapes[interface]

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
            Direction(name, number, data, self.waiting, deque(maxlen=runs)) for name in (key, reverse(key))
        )
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
    _, seq, ack, flags, start, stop, missing, _ = found
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
