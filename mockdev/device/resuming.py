# SPDX-License-Identifier: GPL-2.0-or-later
"""The resume file: records written to it are copied to the device's memory and loaded one by one.

As in the kernel nothing notices a stream that is cut; ask `inside_record` and `loaded_bytes`.

Source: Linux drivers/vfio/pci/mlx5/main.c: mlx5vf_resume_write
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import NamedTuple

from mockdev.device.faults import Faults, Index, Place, Stall
from mockdev.device.files import POLL_OUT, POLL_WRNORM, DataFile, NotYet, Passes, Struck, Written
from mockdev.device.timing import Command, Firmware
from mockdev.errors import DeviceError
from mockdev.vfio.mlx5_stream import LoadState, ResumeMachine


class Span(NamedTuple):
    """Stream bytes that are state: `size` from stream offset `start` go to the image from `image_at`."""

    start: int
    image_at: int
    size: int


class ResumeFile(DataFile):
    """One resume session. image: the memory that the state goes to; more than it holds is ENOMEM.

    written_bytes: stream bytes taken. received_bytes: of the state, copied to the image.
    loaded_bytes: of these, what LOAD commands have ended for. loads: how many ended.
    span: the record being read, None between two; without records all of the image. aside_bytes: not of the
    state, kept for `passed`. faults: may be replaced at any time.
    """

    def __init__(
        self, image: memoryview, firmware: Firmware, faults: Faults, passes: Passes, struck: Struck
    ) -> None:
        self.faults = faults
        self.written_bytes = 0
        self.received_bytes = 0
        self.loaded_bytes = 0
        self.loads = 0
        self.aside_bytes = 0
        self.machine = ResumeMachine()
        self._records = firmware.profile.records
        self.span: Span | None = None if self._records else Span(0, 0, len(image))
        self._image = image
        self._aside: list[tuple[int, bytes]] = []  # headers, and where in the image they came
        self._told_bytes = 0  # of the image, by `passed`
        self._firmware = firmware
        self._passes = passes
        self._struck = struck
        self._loading: Command | None = None
        self._waiting: Command | None = None  # a LOAD that does not begin before...
        self._wait_end_ns = 0
        self._stalled: Stall | None = None  # whose time has begun
        self._failure: DeviceError | None = None
        self._dead = False

    @property
    def inside_record(self) -> bool:
        """Whether the stream, if it ended here, is cut inside a record."""
        return self.machine.inside_record

    def write(self, now_ns: int, data: memoryview) -> Written:
        """Take bytes until a LOAD starts; consumed is short then, and the rest is for ready_ns or later.

        A blocking write is over when all is consumed and ready_ns has come and one more call, with
        nothing or the rest, has raised no error. DeviceError (the session is dead, whatever was consumed):
        ENOMEM (a record or the state too large), EOPNOTSUPP (unknown mandatory record), EINVAL (an
        empty image first), ENODEV (dead before), or what the LOAD failed with.
        """
        if (wait := self.busy(now_ns)) is not None:
            return Written(0, wait.ready_ns)
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        if data and not self._dead:
            data = data[: self._passes(now_ns, self.written_bytes, len(data))]
        if self._dead:
            raise DeviceError(errno.ENODEV, "the resume session has ended")
        try:
            taken = self._records_in(now_ns, data) if self._records else self._bytes_in(now_ns, data)
        except DeviceError:
            self._dead = True
            raise
        self.written_bytes += taken
        ready = self.busy(now_ns)
        if ready is None and self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        return Written(taken, now_ns if ready is None else ready.ready_ns)

    def busy(self, now_ns: int) -> NotYet | None:
        """When the running LOAD can end at the earliest; None when none runs."""
        if self._waiting is not None:
            if now_ns < self._wait_end_ns:
                return NotYet(self._wait_end_ns)
            self._loading, self._waiting = self._waiting, None
            self._firmware.start(self._wait_end_ns, self._loading)
        if self._loading is None:
            return None
        self._firmware.advance(now_ns)
        return None if self._loading is None else NotYet(self._firmware.ready_ns(self._loading))

    def passed(self) -> Iterator[memoryview | bytes]:
        """The stream bytes taken since the last time, in order; of the state, what the image has now."""
        for image_at, data in self._aside:
            yield self._image[self._told_bytes : image_at]
            yield data
            self._told_bytes = image_at
        yield self._image[self._told_bytes : self.received_bytes]
        self._told_bytes = self.received_bytes
        self._aside.clear()
        self.aside_bytes = 0

    def poll(self, now_ns: int) -> int:
        """POLL_ bits: a resume file has no hook for poll, so it is always ready."""
        self._firmware.advance(now_ns)
        return POLL_OUT | POLL_WRNORM

    def kill(self, now_ns: int) -> None:
        """End the session; later writes get ENODEV."""
        if self._loading is not None:
            self._firmware.cancel(now_ns, self._loading)
            self._loading = None
        self._waiting = None
        self._dead = True

    def _records_in(self, now_ns: int, data: memoryview) -> int:
        machine = self.machine
        at = 0
        while at < len(data) or machine.work:
            step = machine.step(data[at:])
            start, at = at, at + step.consumed
            if step.image is not None:
                self._receive(step.image)
            elif step.consumed:
                self._aside.append((self.received_bytes, bytes(data[start:at])))
                self.aside_bytes += step.consumed
            elif step.load is not None:
                self.span = None
                self._load(now_ns, step.load)
                if self._loading is not None or self._waiting is not None or self._failure is not None:
                    break
            elif machine.state is LoadState.READ_IMAGE:
                self._check_room(machine.record_size)
                self.span = Span(self.written_bytes + at, self.received_bytes, machine.record_size)
        return at

    def _bytes_in(self, now_ns: int, data: memoryview) -> int:
        if data:
            self._check_room(len(data))
            self._receive(data)
            self._load(now_ns, len(data))
        return len(data)

    def _check_room(self, size: int) -> None:
        if self.received_bytes + size > len(self._image):
            raise DeviceError(
                errno.ENOMEM, f"{size} bytes after {self.received_bytes} in a device of {len(self._image)}"
            )

    def _receive(self, piece: memoryview) -> None:
        end = self.received_bytes + len(piece)
        self._image[self.received_bytes : end] = piece
        self.received_bytes = end

    def _load(self, now_ns: int, size: int) -> None:
        cost_ns = self._firmware.profile.load_ns(size)
        command = Command(cost_ns, lambda end_ns: self._loaded(end_ns, size))
        stall = self.faults.load_stall
        if stall is not None and stall is not self._stalled and self._is_at(stall.offset, size):
            self._stalled = stall
            self._waiting = command
            self._wait_end_ns = now_ns + stall.stall_ns
            return
        self._loading = command
        self._firmware.start(now_ns, command)

    def _loaded(self, end_ns: int, size: int) -> None:
        self._loading = None
        fault = self.faults.load
        if fault is not None and self._is_at(fault.offset, size):
            self._dead = True
            where = (
                f"at byte {fault.offset}" if isinstance(fault.offset, int) else f"from {self.loaded_bytes}"
            )
            self._failure = DeviceError(fault.errno, f"injected {where} of the state")
            self._struck(end_ns)
            return
        self.loads += 1
        self.loaded_bytes += size

    def _is_at(self, place: Place, size: int) -> bool:
        """Whether the LOAD of the next `size` bytes of the state is at a place."""
        if isinstance(place, Index):
            return place.number == self.loads
        return self.loaded_bytes <= place < self.loaded_bytes + size
