# SPDX-License-Identifier: GPL-2.0-or-later
"""The save file: SAVE commands fill chunks ahead of the reader, two in turn; the reader gets views.

The state is one run of bytes. A session in PRE_COPY saves a first image and increments from its start;
what is left is saved in chunks after the stop. No byte is copied: what is read are views of the memory
that holds the state, between the headers of the records.

Source: Linux drivers/vfio/pci/mlx5/main.c: mlx5vf_save_read, mlx5vf_precopy_ioctl; cmd.c:
mlx5vf_save_callback
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from enum import Enum

from mockdev.device.chunks import CHUNKS_MAX, Piece, ReadyList
from mockdev.device.faults import Faults, Index, Place, Stall
from mockdev.device.files import POLL_IN, POLL_RDHUP, POLL_RDNORM, DataFile, NotYet, Passes, Struck
from mockdev.device.timing import MIB, Command, Firmware
from mockdev.errors import DeviceError
from mockdev.vfio.mlx5_stream import RECORD_HEADER, image_header, stop_copy_size_record

_BUFFER_PAGE = 4096


@dataclass(frozen=True)
class Plan:
    """How a state is cut, in bytes.

    precopy_bytes: may be saved before the stop (0: the device has no PRE_COPY); of these initial_bytes
    at once and increment_bytes each time that the sizes are asked for and all else has been read.
    chunk_bytes: what one SAVE after the stop takes at most.
    """

    precopy_bytes: int = 0
    initial_bytes: int = 4 * MIB
    increment_bytes: int = MIB
    chunk_bytes: int = 8 * MIB

    def __post_init__(self) -> None:
        if self.precopy_bytes < 0 or min(self.initial_bytes, self.increment_bytes, self.chunk_bytes) < 1:
            raise ValueError(f"{self}: sizes must be positive")


class SaveState(Enum):
    """enum mlx5_vf_migf_state: how far a save session is."""

    NONE = "nothing saved yet"
    ERROR = "dead"
    PRE_COPY_ERROR = "an image of PRE_COPY failed"
    PRE_COPY = "first image saved"
    STOP_COPY_CHUNK = "final chunks being saved"
    COMPLETE = "last chunk saved"


class SaveFile(DataFile):
    """One save session. source: the whole state. faults: may be replaced at any time.

    saved_bytes: of the state, handed to SAVE commands so far. position: stream bytes read. buffers: reads
    after the stop that gave bytes.
    """

    def __init__(
        self,
        source: memoryview,
        plan: Plan,
        firmware: Firmware,
        faults: Faults,
        passes: Passes,
        struck: Struck,
    ) -> None:
        self.state = SaveState.NONE
        self.saved_bytes = 0
        self.buffers = 0
        self.faults = faults
        self._source = source.toreadonly()
        self._plan = plan
        self._firmware = firmware
        self._passes = passes
        self._struck = struck
        self._records = firmware.profile.records
        self._stalled: Stall | None = None  # whose time has begun
        self._stall_end_ns = 0
        self._ready = ReadyList()
        self._saving: Command | None = None
        self._stashed = 0  # size of a chunk that waits for room
        self._initial_end = 0

    # -- what the device asks of it ------------------------------------------------------------------

    def open(self, now_ns: int, *, track: bool) -> None:
        """Begin: the size record is readable at once, the first SAVE is under way. track: for PRE_COPY."""
        if self._records:
            buffer_size = min(self._plan.chunk_bytes, len(self._source))
            pages = -(-buffer_size // _BUFFER_PAGE)
            self._ready.add([Piece(memoryview(stop_copy_size_record(pages * _BUFFER_PAGE)), False)])
        if track:
            self._initial_end = self._ready.end
            share = self._precopy_left()
            self._save(now_ns, min(self._plan.initial_bytes, share), is_chunk=False)
        else:
            self.state = SaveState.STOP_COPY_CHUNK
            self._save_chunk(now_ns)

    def stop(self, now_ns: int) -> None:
        """From PRE_COPY to the final chunks. DeviceError(ENODEV): the session is dead."""
        if self.state is SaveState.ERROR:
            raise DeviceError(errno.ENODEV, "the save session has failed")
        if self.state is SaveState.PRE_COPY_ERROR:
            self.saved_bytes = 0  # increments have no base any more: the whole image
        self.state = SaveState.STOP_COPY_CHUNK
        self._save_chunk(now_ns)

    def kill(self, now_ns: int) -> None:
        """End the session: a reader gets ENODEV from now on."""
        self._firmware.advance(now_ns)  # a SAVE that is over by now may have begun the next
        if self._saving is not None:
            self._firmware.cancel(now_ns, self._saving)
            self._saving = None
        self.state = SaveState.ERROR
        self._ready.clear()

    def busy(self, now_ns: int) -> NotYet | None:
        """When the running SAVE can end at the earliest; None when none runs."""
        self._firmware.advance(now_ns)
        return None if self._saving is None else NotYet(self._firmware.ready_ns(self._saving))

    def increment(self) -> int:
        """Bytes that the next incremental image would take. DeviceError(ENODEV): the session is dead."""
        if self.state is SaveState.ERROR:
            raise DeviceError(errno.ENODEV, "the save session has failed")
        if self.state is SaveState.PRE_COPY_ERROR:
            return 0
        return min(self._plan.increment_bytes, self._precopy_left())

    def sizes(self, now_ns: int, increment: int, *, exact: bool, reinit: bool) -> tuple[int, int]:
        """(initial, dirty) stream bytes still to read; starts saving the increment when all else is read.

        exact: count the increment's record header too, as for callers that asked for the second version
        of the question. reinit: the device began anew, so everything to come is initial.
        """
        remaining = self._ready.remaining
        starts = increment > 0 and (remaining == 0 or reinit)
        extra = increment + (RECORD_HEADER.size if exact and starts and self._records else 0)
        if reinit:
            self._initial_end = self._ready.end + extra
        if starts:
            self._save(now_ns, increment, is_chunk=False)
        if self._initial_end > (position := self.position):
            return self._initial_end - position, 0
        return 0, remaining + extra

    # -- what its reader asks of it ------------------------------------------------------------------

    @property
    def position(self) -> int:
        """Stream bytes read so far."""
        return self._ready.position

    @property
    def chunks_ahead(self) -> int:
        """Chunks saved and not read up, and one more while a SAVE of a chunk runs: never above two."""
        running = self._saving is not None and self.state is SaveState.STOP_COPY_CHUNK
        return self._ready.chunks + running

    def read(self, now_ns: int, size_max: int) -> list[memoryview] | NotYet:
        """Up to size_max (1 or more) bytes as views that stay valid; [] at the end of the state.

        Short when no more is ready. DeviceError: ENOMSG (all that PRE_COPY has so far is read), ENODEV
        (the session has failed or was ended), EINVAL (an image without bytes; the session fails).
        """
        self._firmware.advance(now_ns)
        if self.state is not SaveState.ERROR:
            size_max = self._passes(now_ns, self.position, size_max)
        if self.state is SaveState.ERROR:
            raise DeviceError(errno.ENODEV, "the save session has ended")
        if not self._ready:
            return self._nothing_ready(now_ns)
        left = self._before_faults(now_ns, size_max)
        if isinstance(left, NotYet):
            return left
        views: list[memoryview] = []
        while left and self._ready:
            view, ended = self._ready.take(left)
            if not view:
                self.state = SaveState.ERROR
                raise DeviceError(errno.EINVAL, "an image without bytes")
            views.append(view)
            left -= len(view)
            if ended is not None and ended.is_chunk:
                self._chunk_read(now_ns)
        self.buffers += bool(views) and self._stopped
        return views

    def poll(self, now_ns: int) -> int:
        """POLL_ bits: readable with data and at the end, not at the pause of PRE_COPY."""
        self._firmware.advance(now_ns)
        if self.state is SaveState.ERROR:
            return POLL_IN | POLL_RDNORM | POLL_RDHUP
        return POLL_IN | POLL_RDNORM if self._ready or self.state is SaveState.COMPLETE else 0

    # -- inside --------------------------------------------------------------------------------------

    def _nothing_ready(self, now_ns: int) -> list[memoryview] | NotYet:
        if self.state is SaveState.COMPLETE:
            return []
        if self.state is SaveState.PRE_COPY_ERROR:
            raise DeviceError(errno.ENOMSG, "PRE_COPY failed; the rest comes after the stop")
        if (wait := self.busy(now_ns)) is not None:
            return wait
        raise DeviceError(errno.ENOMSG, "nothing more to read before the next increment or the stop")

    def _before_faults(self, now_ns: int, size: int) -> int | NotYet:
        """How many of `size` bytes come before the next fault; 0 at a false end."""
        faults = self.faults
        if (stall := faults.read_stall) is not None and stall is not self._stalled:
            before = self._before(stall.offset, size)
            if before:
                size = before
            else:
                self._stalled = stall
                self._stall_end_ns = now_ns + stall.stall_ns
        if now_ns < self._stall_end_ns:
            return NotYet(self._stall_end_ns)
        if (fault := faults.read) is not None:
            before = self._before(fault.offset, size)
            if not before:
                self.state = SaveState.ERROR
                self._struck(now_ns)
                raise DeviceError(fault.errno, f"injected at byte {self.position} of the stream")
            size = before
        if faults.eof is not None:
            size = self._before(faults.eof, size)
            if not size:
                self._struck(now_ns)
        if (short := faults.short_reads) is not None:
            size = self._before(short.offset, size) or min(size, short.size)
        return size

    def _before(self, place: Place, size: int) -> int:
        """How many of the next `size` bytes come before a place."""
        if isinstance(place, Index):
            return 0 if self._stopped and self.buffers >= place.number else size
        return max(0, min(size, place - self.position))

    @property
    def _stopped(self) -> bool:
        return self.state in (SaveState.STOP_COPY_CHUNK, SaveState.COMPLETE)

    def _precopy_left(self) -> int:
        share = min(self._plan.precopy_bytes, len(self._source) - 1)  # some is always left for the stop
        return max(0, share - self.saved_bytes)

    def _chunk_size(self) -> int:
        return min(self._plan.chunk_bytes, len(self._source) - self.saved_bytes)

    def _save_chunk(self, now_ns: int) -> None:
        self._save(now_ns, self._chunk_size(), is_chunk=True)

    def _save(self, now_ns: int, size: int, *, is_chunk: bool) -> None:
        start = self.saved_bytes
        self.saved_bytes += size
        piece = Piece(self._source[start : start + size], is_chunk)
        self._saving = Command(
            self._firmware.profile.save_ns(size), lambda end_ns: self._saved(end_ns, start, piece)
        )
        self._firmware.start(now_ns, self._saving)

    def _saved(self, end_ns: int, start: int, piece: Piece) -> None:
        self._saving = None
        if self.state is SaveState.ERROR:
            return
        if self._save_fails(start, piece):
            self._struck(end_ns)
            return
        if self._records:
            self._ready.add([Piece(memoryview(image_header(len(piece.view))), False)])
        self._ready.add([piece])
        if not piece.is_chunk:
            if self.state is SaveState.NONE:
                self.state = SaveState.PRE_COPY
                self._initial_end = self._ready.end
            return
        next_size = self._chunk_size()
        if not next_size:
            self.state = SaveState.COMPLETE
        elif self._ready.chunks >= CHUNKS_MAX:
            self._stashed = next_size
        else:
            self._save_chunk(end_ns)

    def _save_fails(self, start: int, piece: Piece) -> bool:
        fault = self.faults.save
        if fault is None or not start <= fault.offset < start + len(piece.view):
            return False
        if fault.bad_resource and piece.is_chunk:
            return False
        self.state = SaveState.PRE_COPY_ERROR if fault.bad_resource else SaveState.ERROR
        return True

    def _chunk_read(self, now_ns: int) -> None:
        if self._stashed:
            self._stashed = 0
            self._save_chunk(now_ns)
