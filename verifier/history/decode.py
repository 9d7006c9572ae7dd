# SPDX-License-Identifier: GPL-2.0-or-later
"""One direction of a connection, from runs of captured bytes to observations.

Drives a syntax of `mockdev.wire` over ranges of the mapped file. A header is copied out when it is
read; a payload is only ever a list of ranges. Bytes that are missing inside a payload do not stop it;
bytes that are missing inside a header end what can be read of the flow.
"""

from __future__ import annotations

import mmap
from array import array
from collections.abc import Callable

from mockdev.errors import RemoteProtocolError
from mockdev.wire.framer import multifd_channel
from mockdev.wire.frames import (
    DeviceStateFrame,
    Frame,
    InitFrame,
    OpaqueItem,
    Payload,
    RamFrame,
    Syntax,
    VfioItem,
    Want,
)
from mockdev.wire.mainstream import main_channel
from mockdev.wire.returnpath import return_path
from mockdev.wire.structs import (
    COMPRESSION_MASK,
    PAGE_BYTES,
    VFIO_DEVICE_STATE_CONFIG,
    VfioTag,
)
from verifier.capture.flows import HEAD_BYTES, Directory, Lane, Role
from verifier.history.held import Held
from verifier.history.image import Image
from verifier.history.inflate import PageStream
from verifier.history.observation import (
    Answered,
    Broken,
    BufferDone,
    Event,
    FlowEnd,
    Hole,
    PagesDone,
    Seen,
    StateDone,
    device_of,
)

HELD_BYTES_MAX = 65 << 20  # of a header that is still being waited for
UNDECIDED_BYTES_MAX = 1 << 16
_SMALL_PEEK = 1 << 16
_EDGE = 8  # bytes of either end of a config buffer that an observation carries

_GLOBAL_STATE = "globalstate"
_GLOBAL_STATE_BYTES_MAX = 256  # 104 in every release

Payloaded = DeviceStateFrame | RamFrame | VfioItem | OpaqueItem


class FlowDecoder:
    """A sink of the reassembly. `observe` gets all that is seen, in stream order.

    image(lane, device): where a device's state is digested. at: bytes read, or passed over, so far.
    decoded, lost, undecodable: what became of every byte; why: the reason when the rest cannot be read.
    """

    __slots__ = (
        "_data", "_device", "_directory", "_frame", "_held", "_image", "_kept", "_left", "_missing",
        "_observe", "_pages", "_pages_lost", "_payload_size", "_syntax", "_time_ns", "_view", "_want",
        "at", "decoded", "frames", "lane", "lost", "undecodable", "why",
    )  # fmt: skip

    def __init__(
        self,
        lane: Lane,
        directory: Directory,
        data: mmap.mmap | bytes,
        view: memoryview,
        observe: Callable[[Seen], None],
        image: Callable[[Lane, str], Image],
    ) -> None:
        self.lane = lane
        self.at = 0
        self.frames = 0
        self.decoded = 0
        self.lost = 0
        self.undecodable = 0
        self.why = ""
        self._directory = directory
        self._data = data
        self._view = view
        self._observe = observe
        self._image = image
        self._syntax: Syntax | None = None
        self._want = Want(HEAD_BYTES, "first bytes")
        self._held = Held(data)
        self._left = 0
        self._payload_size = 0
        self._missing = 0  # bytes of the payload that are not in the capture
        self._kept: array[int] = array("Q")
        self._frame: Payloaded | None = None
        self._device = ""  # that it belongs to
        self._pages: PageStream | None = None
        self._pages_lost = False
        self._time_ns = 0

    # --- what the reassembly says -------------------------------------------------------------------

    def data(self, start: int, stop: int, time_ns: int, /) -> None:
        """The next bytes. Inside a payload this only notes the range."""
        left = self._left - stop + start
        if left > 0:
            self._left = left
            kept = self._kept
            kept.append(start)
            kept.append(stop)
            return
        self._time_ns = time_ns
        self._held.add(start, stop)
        self._run()

    def hole(self, size: int, reason: str, time_ns: int, note: str, /) -> None:  # noqa: ARG002
        """The next `size` bytes are not in the capture."""
        self._time_ns = time_ns
        self.lost += size
        where = self._here()
        inside = 0 < size <= self._left
        self._emit(Hole(where, size, reason, inside))
        if inside:
            self._missing += size
            self._left -= size
            if not self._left:
                self._payload_done()
                self._run()
            return
        if self.lane.role is Role.UNDECIDED:
            self._directory.lost_start(self.lane)
        self._give_up(f"{size} bytes of a header are not in the capture, at offset {where}")
        self.at += size

    def end(self, kind: str, time_ns: int, /) -> None:
        """Nothing more comes."""
        self._time_ns = time_ns
        if self._syntax is None and not self.why and self._held.size:
            self._decide(final=True)
        inside = "" if self._syntax is None else self._finish()
        where = self._here()
        self._pass_over()
        self._syntax = None
        self._directory.end(self.lane)
        self._emit(FlowEnd(where, 0, kind, inside))

    # --- roles --------------------------------------------------------------------------------------

    def _decide(self, *, final: bool = False) -> bool:
        """Find out what the flow is; True when it can be decoded."""
        if self.lane.role is Role.UNDECIDED:
            if self._held.size < HEAD_BYTES and not final:
                return False
            self._directory.decide(self.lane, self._held.peek(HEAD_BYTES))
        role = self.lane.role
        if role is Role.UNDECIDED:
            if self._held.size > UNDECIDED_BYTES_MAX:
                self._give_up("the answering side of a connection whose opening side said nothing")
        elif role is Role.MAIN:
            self._begin(main_channel())
        elif role is Role.CHANNEL:
            self._begin(multifd_channel())
        elif role is Role.RETURN_PATH:
            self._begin(return_path())
        elif role is Role.REVERSE:
            self._emit(Answered(0, self._held.size))
            self._give_up("bytes against the direction of a multifd connection")
        else:
            self._give_up(self.lane.why)
        return self._syntax is not None

    # --- reading ------------------------------------------------------------------------------------

    def _run(self) -> None:
        """Use up what is held, as far as it goes."""
        if self._syntax is None:
            if self.why:
                self._pass_over()
                return
            if not self._decide():
                return
        held = self._held
        while self._syntax is not None:
            if self._left:
                if not self._fill_payload():
                    return
                self._payload_done()
                continue
            want = self._want
            size = want.size
            if want.peek:
                # Asked for one byte more each time, a search would look at megabytes again and again.
                enough = size if size < _SMALL_PEEK else size + size // 4
                if held.size < enough and held.size <= HELD_BYTES_MAX:
                    return
                if held.size > HELD_BYTES_MAX:
                    self._give_up(f"{want.what} of more than {HELD_BYTES_MAX} bytes")
                    return
                self._send(held.peek(held.size))
            elif held.size >= size:
                self.at += size
                self.decoded += size
                self._send(held.take(size))
            else:
                return

    def _finish(self) -> str:
        """The stream is over: what was being read when it ended, "" on a boundary."""
        while self._syntax is not None:
            if self._left:
                if not self._fill_payload():
                    self.decoded += self._payload_size - self._left - self._missing
                    return "payload"
                self._payload_done()
                continue
            want = self._want
            if want.peek:
                self._send(self._held.peek(self._held.size))
            elif self._held.size >= want.size:
                self.at += want.size
                self.decoded += want.size
                self._send(self._held.take(want.size))
            elif want.may_end and not self._held.size:
                self._send(b"")
            else:
                return want.what
        return ""

    def _begin(self, syntax: Syntax) -> None:
        self._syntax = syntax
        self._send(None)

    def _send(self, answer: bytes | None) -> None:
        """Give the syntax what it waits for; go on to the next such thing, telling of frames on the way."""
        syntax = self._syntax
        assert syntax is not None
        try:
            step = syntax.send(answer)
            while True:
                kind = type(step)
                if kind is Want:
                    self._want = step  # type: ignore[assignment]
                    return
                if kind is Payload:
                    self._left = self._payload_size = step.size
                    return
                self._frame_seen(step)  # type: ignore[arg-type]
                step = syntax.send(None)
        except StopIteration:
            self._syntax = None
        except RemoteProtocolError as error:
            self._refuse(error)

    def _frame_seen(self, frame: Frame) -> None:
        self.frames += 1
        self._frame = None
        device = ""
        if type(frame) is DeviceStateFrame:
            self._frame = frame
            device = self._device = device_of(frame)
        elif type(frame) is RamFrame:
            if frame.payload_size and frame.head.flags & COMPRESSION_MASK:
                self._frame = frame
        elif type(frame) is VfioItem:
            self._frame = frame if frame.data_size else None
            device = self._device = device_of(frame)
        elif type(frame) is InitFrame:
            self.lane.channel = frame.head.id
        elif type(frame) is OpaqueItem and frame.idstr == _GLOBAL_STATE:
            self._frame = frame if 0 < frame.size <= _GLOBAL_STATE_BYTES_MAX else None
        self._observe(Seen(self.lane, self._time_ns, frame, device))
        if type(frame) is DeviceStateFrame and not frame.payload_size:
            self._frame_done(frame)

    def _refuse(self, error: RemoteProtocolError) -> None:
        offset = error.offset if error.offset >= 0 else self.at
        self._emit(Broken(offset, max(self.at - offset, 1), error))
        self._give_up(f"from offset {offset}: {error.message}")

    def _give_up(self, why: str) -> None:
        """Nothing more can be read of this flow."""
        if self._left:
            self.decoded += self._payload_size - self._left - self._missing
            self.at += self._payload_size - self._left
            self._left = 0
        self._syntax = None
        self.why = self.why or why
        self._pass_over()

    def _pass_over(self) -> None:
        self.undecodable += self._held.size
        self.at += self._held.size
        self._held.clear()

    # --- payloads -----------------------------------------------------------------------------------

    def _fill_payload(self) -> bool:
        """Move held bytes to the payload; True when it is complete."""
        self._left = self._held.move(self._left, self._kept)
        return not self._left

    def _payload_done(self) -> None:
        """All of a payload came, or is known to be missing: on with the syntax."""
        self.at += self._payload_size
        self.decoded += self._payload_size - self._missing
        frame, self._frame = self._frame, None
        if frame is not None:
            self._frame_done(frame)
        self._kept = array("Q")
        self._missing = 0
        self._send(None)

    def _frame_done(self, frame: Payloaded) -> None:
        whole = not self._missing
        if type(frame) is DeviceStateFrame:
            self._buffer_done(frame, whole)
        elif type(frame) is RamFrame:
            self._inflate(frame, whole)
        elif isinstance(frame, OpaqueItem):
            if whole:
                flat = iter(self._kept)
                data = b"".join(self._data[a:b] for a, b in zip(flat, flat, strict=True))
                self._emit(StateDone(frame.offset, frame.size, data))
        elif frame.tag == VfioTag.DEV_DATA_STATE:
            self._image(self.lane, self._device).block(self._kept, frame.data_size, whole)

    def _buffer_done(self, frame: DeviceStateFrame, whole: bool) -> None:
        vfio = frame.vfio
        if vfio is None:
            return
        device, config = self._device, bool(vfio.flags & VFIO_DEVICE_STATE_CONFIG)
        self._image(self.lane, device).buffer(vfio.idx, config, self._kept, frame.payload_size, whole)
        first = last = b""
        if config and whole:
            first, last = self._edge(first=True), self._edge(first=False)
        done = BufferDone(frame.offset, frame.size, vfio.idx, config, frame.payload_size, first, last, whole)
        self._emit(done, device)

    def _edge(self, *, first: bool) -> bytes:
        """Up to _EDGE bytes of the payload's beginning or end."""
        kept = self._kept
        out = b""
        for at in range(0, len(kept), 2) if first else range(len(kept) - 2, -1, -2):
            start, stop = kept[at], kept[at + 1]
            need = _EDGE - len(out)
            if not need:
                break
            out = (
                out + self._data[start : min(stop, start + need)]
                if first
                else self._data[max(start, stop - need) : stop] + out
            )
        return bytes(out)

    def _inflate(self, frame: RamFrame, whole: bool) -> None:
        method = frame.head.flags & COMPRESSION_MASK
        if self._pages is None or self._pages.method != method:
            self._pages = PageStream(method)
        expected = len(frame.normal) * PAGE_BYTES
        self._pages_lost |= not whole  # a running stream cannot be picked up again
        if self._pages_lost or not self._pages.readable:
            self._emit(PagesDone(frame.offset, frame.size, expected, -1, ""))
            return
        flat = iter(self._kept)
        pieces = (self._view[start:stop] for start, stop in zip(flat, flat, strict=True))
        got, problem = self._pages.inflate(pieces, expected)
        self._pages_lost |= bool(problem)
        self._emit(PagesDone(frame.offset, frame.size, expected, got, problem))

    def _here(self) -> int:
        """The position of the next byte to come."""
        return self.at + self._held.size + (self._payload_size - self._left if self._left else 0)

    def _emit(self, event: Event, device: str = "") -> None:
        self._observe(Seen(self.lane, self._time_ns, event, device))
