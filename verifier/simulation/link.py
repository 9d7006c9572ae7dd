# SPDX-License-Identifier: GPL-2.0-or-later
"""One direction of a virtual connection: bytes take their time, come in pieces, stall, or stop.

What is written is seen at once by the tap; the reader gets each frame that the tap's decoder finds in
it when that frame's bytes have arrived. So there is one parsing, by the production syntax, and both the
reader and the judge have its result.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import get_args

from mockdev.errors import RemoteProtocolError, VfmigError
from mockdev.wire.frames import (
    DeviceStateFrame,
    Frame,
    OpaqueItem,
    RamFrame,
    RamRecordItem,
    TrailingItem,
    VfioItem,
)
from mockdev.wire.structs import PAGE_BYTES, RamFlag
from verifier.capture.flows import Lane, Role
from verifier.history.observation import Broken, Seen
from verifier.simulation.chance import Chance
from verifier.simulation.watch import Watch
from verifier.simulation.world import Signal, Steps, World

_FRAMES = frozenset(get_args(Frame))
_PAGE_FLAGS = int(RamFlag.PAGE | RamFlag.XBZRLE)


class GoneError(VfmigError):
    """The other end, or the link itself, is gone."""


@dataclass(frozen=True)
class LinkModel:
    """How a direction of a connection behaves.

    delay_ns: on the way, at least; jitter_ns: and up to so much more. byte_ns: one byte takes so long.
    window: bytes that may wait for the reader before the writer has to. parts: a write arrives in so many
    pieces, at most. stall_at, stall_ns: from this byte on, everything waits once so long. close_at: after
    this many bytes both directions of the connection are gone; -1: never. close_unnoticed: the writer of the
    byte after them does not learn it, whoever writes next does.
    """

    delay_ns: int = 0
    jitter_ns: int = 0
    byte_ns: float = 0.0
    window: int = 1 << 30
    parts: int = 1
    stall_at: int = 0
    stall_ns: int = 0
    close_at: int = -1
    close_unnoticed: bool = False

    @property
    def instant(self) -> bool:
        """Whether what is written is there at once, whole."""
        return not (self.delay_ns or self.jitter_ns or self.byte_ns or self.stall_ns) and self.parts == 1


class Link:
    """One direction. lane: as the tap sees it; back: the other direction.

    sent, arrived, taken (by the reader): bytes so far. arrival: given when there is more to read, or will
    never be. room: given when the writer may go on.
    """

    def __init__(self, world: World, watch: Watch, where: str, lane: Lane, model: LinkModel) -> None:
        self.world = world
        self.where = where
        self.lane = lane
        self.sent = 0
        self.arrived = 0
        self.taken = 0
        self.arrival = Signal(world)
        self.room = Signal(world)
        self.back: Link | None = None
        self.finished = False  # the writer closed it
        self.gone = False  # nobody can write or read any more
        self._watch = watch
        self._model = model
        self._chance = watch.chance
        self._stream = bytearray()
        self._frames: deque[tuple[int, Frame | Broken]] = deque()  # with the bytes that must be here for it
        self._last_ns = 0  # when the last piece arrives
        self._stalled = not model.stall_ns
        self._close_at = model.close_at
        watch.listen(lane, self._heard)

    # -- writing -------------------------------------------------------------------------------------

    def send(self, *pieces: bytes | memoryview) -> Steps:
        """Write all pieces; waits while the window is full. GoneError when nobody reads any more."""
        while self.sent - self.taken >= self._model.window and not self.gone:
            yield self.room
        self.put(*pieces)

    def put(self, *pieces: bytes | memoryview) -> None:
        """`send` for what never waits."""
        if self.gone or self.finished:
            raise GoneError(f"{self.where}: the connection is gone")
        model = self._model
        if self._close_at >= 0 and self.sent + sum(map(len, pieces)) > self._close_at:
            self._break_off(pieces, self._close_at - self.sent)
            if model.close_unnoticed:
                return
            raise GoneError(f"{self.where}: the connection broke after {self._close_at} bytes")
        before = self.sent
        for piece in pieces:
            self._stream += piece
        self.sent = len(self._stream)
        self._watch.wrote(self.lane, pieces)
        if model.instant:
            self.arrived = self.sent
            self.arrival.give()
        else:
            self._deliver(before)

    def close(self) -> None:
        """No more will be written; what was written still arrives."""
        if self.finished or self.gone:
            return
        self.finished = True
        self._watch.closed(self.lane, "fin")
        if self.arrived == self.sent:
            self.arrival.give()

    def hold_together(self) -> None:
        """It breaks no more by itself: no two ends can agree over a link that may lose their last word."""
        self._close_at = -1

    def kill(self) -> None:
        """Both directions end at once."""
        for link in (self, self.back):
            if link is not None and not link.gone:
                if not link.finished:
                    self._watch.closed(link.lane, "rst")
                link.gone = True
                link.arrival.give()
                link.room.give()

    def leave(self) -> None:
        """The reader reads no more; what it has written back still arrives."""
        if not self.gone:
            if not self.finished:
                self._watch.closed(self.lane, "rst")
            self.gone = True
            self.room.give()

    def _break_off(self, pieces: tuple[bytes | memoryview, ...], left: int) -> None:
        """The first `left` bytes still pass, then the connection is gone."""
        data = b"".join(pieces)[: max(0, left)]
        if data:
            self._stream += data
            self.sent = self.arrived = len(self._stream)
            self._watch.wrote(self.lane, (data,))
        self.kill()

    def _deliver(self, before: int) -> None:
        """Have what was written since `before` arrive, in pieces, in its time."""
        model, chance = self._model, self._chance
        size = self.sent - before
        start_ns = max(self.world.now_ns, self._last_ns)
        if not self._stalled and self.sent > model.stall_at:
            self._stalled = True
            start_ns += model.stall_ns
        ends = {self.sent}
        for _ in range(chance.below(model.parts) if model.parts > 1 else 0):
            ends.add(before + 1 + chance.below(size))
        for end in sorted(ends):
            late = chance.below(model.jitter_ns + 1) if model.jitter_ns else 0
            time_ns = int(start_ns + (end - before) * model.byte_ns + late)
            self._last_ns = max(self._last_ns, time_ns)
            self.world.at(self._last_ns + model.delay_ns, lambda end=end: self._arrive(end))  # type: ignore[misc]

    def _arrive(self, end: int) -> None:
        if self.gone:
            return
        self.arrived = end
        self.arrival.give()

    # -- reading -------------------------------------------------------------------------------------

    def look(self) -> Frame | None:
        """The next frame whose heads are here, or None: wait for `arrival`, unless `ended`.

        RemoteProtocolError: what came cannot be read. GoneError: the connection broke.
        """
        frames = self._frames
        if frames and frames[0][0] <= self.arrived:
            frame = frames.popleft()[1]
            if isinstance(frame, Broken):
                raise frame.error
            self._take(frame.offset + frame.size)
            return frame
        if self.gone:
            raise GoneError(f"{self.where}: the connection is gone")
        if self.lane.role is Role.NONE and self.arrived:
            raise RemoteProtocolError(self.lane.why, channel=self.where, offset=0, field="magic")
        self._take(self.arrived)  # a part of a frame, which the reader keeps
        return None

    def _take(self, end: int) -> None:
        if end > self.taken:
            self.taken = end
            self.room.give()

    @property
    def ended(self) -> bool:
        """Whether all that was written has been read."""
        return self.finished and self.arrived == self.sent and not self._frames

    def payload(self, end: int, size: int) -> memoryview:
        """The `size` bytes before `end`, which have arrived."""
        return memoryview(bytes(self._stream[end - size : end]))

    def _heard(self, seen: Seen) -> None:
        """The decoder has found something in what was written."""
        event = seen.event
        kind = type(event)
        if kind in _FRAMES:
            self._frames.append((event.offset + event.size - payload_size(event), event))  # type: ignore[arg-type]
        elif kind is Broken:
            self._frames.append((self.sent, event))  # type: ignore[arg-type]


def payload_size(frame: Frame) -> int:
    """Bytes of a frame that are its payload: the last ones of it."""
    if type(frame) is DeviceStateFrame or type(frame) is RamFrame:
        return frame.payload_size
    if type(frame) is VfioItem:
        return frame.data_size
    if type(frame) is RamRecordItem:
        return PAGE_BYTES if frame.flags & _PAGE_FLAGS else 0
    return frame.size if type(frame) is OpaqueItem or type(frame) is TrailingItem else 0


def draw_link(chance: Chance, kinds: frozenset[str]) -> LinkModel:
    """One direction's behaviour, with these kinds of trouble on: slow, late, window, parts, stall."""
    return LinkModel(
        delay_ns=chance.between(1_000, 1_000_000) if "late" in kinds else 0,
        jitter_ns=chance.between(1_000, 3_000_000) if "late" in kinds and chance.one_in(2) else 0,
        byte_ns=chance.between(1, 400) if "slow" in kinds else 0.0,
        window=chance.between(1, 4096) if "window" in kinds else 1 << 30,
        parts=chance.between(2, 4) if "parts" in kinds else 1,
        stall_at=chance.below(12_000),
        stall_ns=chance.between(1, 400) * 1_000_000 if "stall" in kinds and chance.one_in(3) else 0,
    )
