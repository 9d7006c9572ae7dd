# SPDX-License-Identifier: GPL-2.0-or-later
"""What happens to one direction of a connection on its way through the relay. Pure.

`Units` cuts a stream into its units: the packets of a multifd channel, the items of the main channel, the
messages of the return path. `Passage` carries out faults of a stream: bytes go in, and out come bytes, waits
and the end of the connection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from mockdev.errors import RemoteProtocolError
from mockdev.faultspec import FaultSpec
from mockdev.wire.frames import Frame, Payload, Syntax, Want

Buffer = bytes | bytearray | memoryview

UNIT_BYTES_MAX = 16 << 20  # of a unit that is sent twice, the copy's size at most
_OF_UNITS = ("drop", "double", "cut")


class Piece(NamedTuple):
    """Part of a unit: its bytes, the unit's number from 0, and whether they are payload.

    unit_size: in the first piece of a unit (which may have no bytes) the size of the whole, else 0. In a
    stream that is no longer understood all that comes is one unit without a size.
    """

    data: Buffer
    unit: int
    payload: bool
    first: bool
    unit_size: int


class Units:
    """A stream cut into units, as far as its syntax understands it; nothing is lost where it does not.

    on_frame: called with each frame when it has been read. What is held back is the head of one unit.
    """

    def __init__(self, syntax: Syntax, on_frame: Callable[[Frame], None] | None = None) -> None:
        self._syntax = syntax
        self._on_frame = on_frame
        self._step: Want | Payload | Frame | None = next(syntax)
        self._held = bytearray()
        self._taken = 0  # of what is held, read by the syntax
        self._left = 0  # of a payload
        self._unit = -1

    def feed(self, data: memoryview) -> Iterator[Piece]:
        """Pieces of whole heads and of payload as it comes. Take all of them before the next call."""
        while data or self._held:
            if self._step is None:
                yield from self._rest(data)
                return
            if self._left:
                piece, data = self._payload(data)
                if piece is None:
                    return
                yield piece
            elif isinstance(self._step, Want):
                data = self._collect(self._step, data)
                if not self._answer(self._step):
                    return
                yield from self._units()

    def flush(self) -> Iterator[Piece]:
        """The stream has ended: what was held back."""
        yield from self._rest(memoryview(b""))

    def _rest(self, data: memoryview) -> Iterator[Piece]:
        held, self._held = bytes(self._held), bytearray()
        self._step = None
        for part in (held, data):
            if part:
                yield Piece(part, self._unit + 1, False, False, 0)

    def _payload(self, data: memoryview) -> tuple[Piece | None, memoryview]:
        source: Buffer
        if self._held:
            size = min(self._left, len(self._held))
            source = bytes(self._held[:size])
            del self._held[:size]
        else:
            size = min(self._left, len(data))
            source, data = data[:size], data[size:]
        if not size:
            return None, data
        self._left -= size
        piece = Piece(source, self._unit, True, False, 0)
        if not self._left:
            self._advance(None)
        return piece, data

    def _collect(self, want: Want, data: memoryview) -> memoryview:
        """Hold what the syntax wants, as far as it is there; what is left of the data."""
        have = len(self._held) - self._taken
        more = len(data) if want.peek else min(len(data), max(0, want.size - have))
        self._held += data[:more]
        return data[more:]

    def _answer(self, want: Want) -> bool:
        """Give the syntax what it wants; whether it was there."""
        if len(self._held) - self._taken < want.size:
            return False
        end = len(self._held) if want.peek else self._taken + want.size
        found = bytes(self._held[self._taken : end])
        if not want.peek:
            self._taken = end
        self._advance(found)
        return True

    def _units(self) -> Iterator[Piece]:
        """Every frame that the syntax has now read is a unit, its payload included."""
        while self._step is not None and not isinstance(self._step, Want):
            if not isinstance(self._step, Payload):
                if self._on_frame is not None:
                    self._on_frame(self._step)
                self._unit += 1
                self._advance(None)
                head = bytes(self._held[: self._taken])
                del self._held[: self._taken]
                self._taken = 0
                size = self._step.size if isinstance(self._step, Payload) else 0
                yield Piece(head, self._unit, False, True, len(head) + size)
            if isinstance(self._step, Payload):
                self._left = self._step.size
                return

    def _advance(self, answer: bytes | None) -> None:
        try:
            self._step = self._syntax.send(answer)
        except (StopIteration, RemoteProtocolError):
            self._step = None
            self._taken = 0


def _kind(fault: FaultSpec) -> str:
    """What its WHEN counts; bytes when there is none."""
    return "byte" if fault.when is None else fault.when.kind


def _of_unit(fault: FaultSpec) -> bool:
    """Whether it changes a whole unit, and not the stream from some byte on."""
    return fault.what in _OF_UNITS and fault.place != "return-path"


class Struck(NamedTuple):
    """A fault that strikes here: `offset` bytes of the stream have come before it.

    The owner waits when it is a stall, ends the connection when it is a close, and otherwise only tells.
    """

    fault: FaultSpec
    offset: int


class Passage:
    """One direction of one connection, with the faults that wait for it.

    syntax: how to read the stream, for faults that count or change units. Times are those of the caller's
    clock; switched_ns in calls: when switchover was seen, None before.
    """

    def __init__(self, faults: Sequence[FaultSpec], syntax: Callable[[], Syntax]) -> None:
        self._waiting = list(faults)
        needs_units = any(_of_unit(fault) or _kind(fault) == "index" for fault in faults)
        self._units = Units(syntax()) if needs_units else None
        self._offset = 0  # of the stream that comes in
        self._at: dict[int, int] = {}  # offset of a fault whose unit or time has come, by identity
        self._silent = False
        self._left_out: tuple[int, int] = (0, 0)  # bytes of the unit that is being read
        self._unit_end = 0
        self._copy: bytearray | None = None

    @property
    def idle(self) -> bool:
        """Whether nothing is left to do, so that bytes may pass by without asking."""
        busy = self._waiting or self._silent or self._units is not None
        return not busy

    @property
    def timed(self) -> bool:
        """Whether something waits for a time."""
        return any(_kind(fault) == "time" for fault in self._waiting)

    def close_due(self, now_ns: int, switched_ns: int | None) -> Struck | None:
        """The end of the connection, when its time has come although no byte has."""
        for fault in self._waiting:
            if fault.what == "close" and self._time_come(fault, now_ns, switched_ns):
                self._waiting.remove(fault)
                return Struck(fault, self._offset)
        return None

    def feed(self, data: memoryview, now_ns: int, switched_ns: int | None) -> Iterator[Buffer | Struck]:
        """What comes of these bytes, in order. Take all of it before the next call."""
        if self._units is None:
            yield from self._bytes(data, now_ns, switched_ns)
            return
        for piece in self._units.feed(data):
            yield from self._piece(piece, now_ns, switched_ns)
        if not self._waiting and self._copy is None and self._offset >= self._left_out[1]:
            for piece in self._units.flush():
                yield from self._bytes(memoryview(piece.data), now_ns, switched_ns)
            self._units = None

    def flush(self, now_ns: int, switched_ns: int | None) -> Iterator[Buffer | Struck]:
        """The stream has ended."""
        if self._units is not None:
            for piece in self._units.flush():
                yield from self._piece(piece, now_ns, switched_ns)

    # -- units ---------------------------------------------------------------------------------------

    def _piece(self, piece: Piece, now_ns: int, switched_ns: int | None) -> Iterator[Buffer | Struck]:
        if piece.first:
            if self._copy is not None:
                yield from self._twice()
            yield from self._begin_unit(piece, now_ns, switched_ns)
        start, end = self._offset, self._offset + len(piece.data)
        low, high = max(start, self._left_out[0]), min(end, self._left_out[1])
        view = memoryview(piece.data)
        parts = (view,) if low >= high else (view[: low - start], view[low - start : high - start])
        rest = memoryview(b"") if low >= high else view[high - start :]
        if self._copy is not None and len(self._copy) < UNIT_BYTES_MAX:
            self._copy += view
        yield from self._bytes(parts[0], now_ns, switched_ns)
        self._offset += len(view) - len(parts[0]) - len(rest)
        yield from self._bytes(rest, now_ns, switched_ns)
        if self._copy is not None and self._offset >= self._unit_end:
            yield from self._twice()

    def _twice(self) -> Iterator[Buffer]:
        copy, self._copy = self._copy, None
        if copy:
            yield copy

    def _begin_unit(self, piece: Piece, now_ns: int, switched_ns: int | None) -> Iterator[Struck]:
        start = self._offset
        self._unit_end = end = start + piece.unit_size
        for fault in list(self._waiting):
            when, kind = fault.when, _kind(fault)
            value = when.value if when is not None else 0
            if kind == "index":
                here = value == piece.unit
            elif kind == "time":
                here = self._time_come(fault, now_ns, switched_ns)
            else:
                here = start <= value < end
            if here and not _of_unit(fault) and kind == "index":
                self._at[id(fault)] = start
            elif here and _of_unit(fault):
                self._waiting.remove(fault)
                yield Struck(fault, start)
                if fault.what == "double":
                    self._copy = bytearray()
                elif fault.what == "drop":
                    self._left_out = (start, end)
                else:
                    self._left_out = (value if kind == "byte" else start + piece.unit_size // 2, end)

    # -- bytes ---------------------------------------------------------------------------------------

    def _bytes(self, data: memoryview, now_ns: int, switched_ns: int | None) -> Iterator[Buffer | Struck]:
        """Bytes with the faults that strike at a byte."""
        while data:
            found = self._next_fault(self._offset + len(data), now_ns, switched_ns)
            if found is None:
                break
            fault, at = found
            before = max(0, at - self._offset)
            if before and not self._silent:
                yield data[:before]
            data = data[before:]
            self._offset += before
            self._waiting.remove(fault)
            yield Struck(fault, self._offset)
            if fault.what == "flip":
                if not self._silent:
                    yield bytes((data[0] ^ 1 << fault.value % 8,))
                data = data[1:]
                self._offset += 1
            elif fault.what == "drop" or (fault.what == "close" and fault.place == "return-path"):
                self._silent = True
        self._offset += len(data)
        if data and not self._silent:
            yield data

    def _next_fault(self, end: int, now_ns: int, switched_ns: int | None) -> tuple[FaultSpec, int] | None:
        """The first fault that strikes before `end`, and where."""
        found: tuple[FaultSpec, int] | None = None
        for fault in self._waiting:
            if _of_unit(fault):
                continue
            at = self._place(fault, now_ns, switched_ns)
            if at is not None and at < end and (found is None or at < found[1]):
                found = fault, at
        return found

    def _place(self, fault: FaultSpec, now_ns: int, switched_ns: int | None) -> int | None:
        """The offset that a fault strikes at, once that is known."""
        when = fault.when
        at: int | None
        if when is None:
            at = 0
        elif when.kind == "byte":
            at = when.value
        else:
            if (
                when.kind == "time"
                and id(fault) not in self._at
                and self._time_come(fault, now_ns, switched_ns)
            ):
                self._at[id(fault)] = self._offset
            at = self._at.get(id(fault))
        if at is not None and fault.what == "flip":
            at += fault.value // 8
        return at

    @staticmethod
    def _time_come(fault: FaultSpec, now_ns: int, switched_ns: int | None) -> bool:
        when = fault.when
        if when is None or when.kind != "time" or switched_ns is None:
            return False
        return now_ns >= switched_ns + when.value
