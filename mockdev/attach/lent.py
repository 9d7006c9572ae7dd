# SPDX-License-Identifier: GPL-2.0-or-later
"""One mock device as a QEMU sees it: system calls on its descriptors, answered from device/calls.py.

A call's answer is a generator: it yields the time (ns) until which the call has to wait, and returns what
the call returns. Nothing about VFIO is decided here; this is about descriptors, the caller's memory
and the journal.

Source: Linux drivers/vfio/device_cdev.c, drivers/vfio/pci/vfio_pci_core.c: vfio_pci_rw
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import NamedTuple, TypeVar

import xxhash

from mockdev.attach.mappings import Mappings
from mockdev.attach.memory import ProcessMemory
from mockdev.clock import Clock
from mockdev.device.calls import data_ioctl, device_ioctl
from mockdev.device.device import Device
from mockdev.device.dirty import Range
from mockdev.device.files import DataFile, NotYet
from mockdev.device.image import Pattern
from mockdev.device.resuming import ResumeFile
from mockdev.device.saving import SaveFile
from mockdev.errors import DeviceError
from mockdev.journal import Image, Journal, Mark, Read, Reset, Unanswered, Verified, Wrote
from mockdev.journal import State as StateLine
from mockdev.vfio import iommufd, uapi
from mockdev.vfio.fsm import next_step
from mockdev.vfio.pci import COMMAND
from mockdev.vfio.uapi import Feature, Ioctl, Region, State

T = TypeVar("T")
Answer = Generator[int, None, int]
PutFd = Callable[[int], None]

READ_BYTES_MAX = 16 << 20  # more is given piece by piece, as a read may
_ARGUMENT_BYTES_MAX = 4096
_PREPARING_NS = 2_000_000
_TRAP_NS_MAX = 50_000  # what it costs a call to reach us, and an answer to reach the caller
_OFFSET_MASK = (1 << uapi.REGION_OFFSET_SHIFT) - 1
_DATA_FD = uapi.DEVICE_FEATURE.size + uapi.FEATURE_MIG_STATE.place("data_fd").offset
_NEED_STATE = (State.STOP_COPY, State.RESUMING, State.PRE_COPY, State.PRE_COPY_P2P)
_SET_STATE = uapi.FEATURE_SET | Feature.MIG_DEVICE_STATE


class _Open(NamedTuple):
    """A data file that has a descriptor."""

    file: DataFile
    digest: xxhash.xxh3_128


class LentDevice:
    """See the head of this file.

    dev_id: what the iommufd calls it. data_fds: the descriptors that its data files get, in turn. Calls on
    one device and on those that share its firmware come from one thread at a time.
    """

    def __init__(
        self,
        device: Device,
        dev_id: int,
        mappings: Mappings,
        journal: Journal,
        clock: Clock,
        data_fds: tuple[int, int],
    ) -> None:
        self.device = device
        self.name = device.name
        self.opened = False  # QEMU has bound it
        self.unanswered = 0  # ioctls that nobody knows
        self.prepared: Callable[[], bool] = lambda: True  # whether its state is there to be saved
        self.read_bytes = 0  # of the last save file
        self.written_bytes = 0  # of the last resume file
        self._dev_id = dev_id
        self._mappings = mappings
        self._journal = journal
        self._clock = clock
        self._data_fds = data_fds
        self._turn = 0
        self._open: dict[int, _Open] = {}
        self._bar0 = bytearray(device.pci.identity.bar0_bytes)
        self._loading: _Open | None = None
        self._overhead_ns = 0  # of interception, not yet allowed for
        self._answered_ns = 0  # when the last write returned
        self._dma_writes: list[Range] = []  # since the log was last asked
        self._resets = False  # a reset is under way and has no line yet
        self._failed_from: State | None = None  # what it was in before a failed arc left it in ERROR
        device.on_arc = self._arc
        device.on_fault = lambda now_ns: journal.write(Mark(t=now_ns, name="fault"))
        device.dirty.source = self._dma_written

    # -- the device's own descriptor -----------------------------------------------------------------

    def ioctl(self, request: int, address: int, memory: ProcessMemory, put_fd: PutFd) -> Answer:
        """An ioctl on the device. put_fd: make this number a descriptor of the caller's."""
        if request == Ioctl.DEVICE_RESET:
            self._resets = True
            yield from self._timed(lambda now_ns: device_ioctl(self.device, now_ns, request, b""))
            self._reset_line(self._clock.now_ns())
            return 0
        size = int.from_bytes(memory.read(address, 4), "little")
        if size > _ARGUMENT_BYTES_MAX:
            raise DeviceError(errno.EINVAL, f"an argument of {size} bytes")
        argument = memory.read(address, size)
        if request in (Ioctl.DEVICE_BIND_IOMMUFD, Ioctl.DEVICE_ATTACH_IOMMUFD_PT):
            memory.write(address, self._attached(request, argument))
            return 0
        if request in (Ioctl.DEVICE_DETACH_IOMMUFD_PT, Ioctl.DEVICE_SET_IRQS):
            return 0  # the mock raises no interrupts
        if _wanted_state(request, argument) in _NEED_STATE:
            while not self.prepared():
                yield self._clock.now_ns() + _PREPARING_NS
        try:
            reply = yield from self._timed(
                lambda now_ns: device_ioctl(self.device, now_ns, request, argument, memory)
            )
        except DeviceError as error:
            self._failed(request, argument, error.errno)
            raise
        data = reply.data
        if reply.file is not None:
            fd = self._data_fds[self._turn]
            self._turn = 1 - self._turn
            put_fd(fd)
            self._opened(fd, reply.file)
            data = data[:_DATA_FD] + fd.to_bytes(4, "little") + data[_DATA_FD + 4 :]
        memory.write(address, data)
        return 0

    def pread(self, address: int, size: int, offset: int, memory: ProcessMemory) -> int:
        """Read from a region; bytes read."""
        region, at = offset >> uapi.REGION_OFFSET_SHIFT, offset & _OFFSET_MASK
        if region == Region.CONFIG:
            data = self.device.pci.read_config(at, size)
        elif region == Region.BAR0 and at + size <= len(self._bar0):
            data = bytes(self._bar0[at : at + size])
        else:
            raise DeviceError(errno.EINVAL, f"{size} bytes at {at:#x} of region {region}")
        memory.write(address, data)
        return len(data)

    def pwrite(self, address: int, size: int, offset: int, memory: ProcessMemory) -> Answer:
        """Write to a region; bytes written.

        The command register is written once while a state is loaded: QEMU then has the PCI config of the
        source, and this is where a card's time for that is spent, under QEMU's big lock as there.
        """
        region, at = offset >> uapi.REGION_OFFSET_SHIFT, offset & _OFFSET_MASK
        if size > len(self._bar0):
            raise DeviceError(errno.EINVAL, f"{size} bytes at {at:#x} of region {region}")
        if region == Region.CONFIG:
            if at == COMMAND and self.device.state is State.RESUMING:
                yield from self._timed(self.device.config_written)
            self.device.pci.write_config(at, memory.read(address, size))
        elif region == Region.BAR0 and at + size <= len(self._bar0):
            self._bar0[at : at + size] = memory.read(address, size)
        else:
            raise DeviceError(errno.EINVAL, f"{size} bytes at {at:#x} of region {region}")
        return size

    def bound(self) -> None:
        """QEMU has it: by an iommufd, or from its group."""
        self.opened = True

    def closed(self) -> None:
        """The last user closed the device: QEMU unplugged it, or is gone."""
        self.opened = False
        self._open.clear()
        self.device.close(self._clock.now_ns())

    # -- its data files ------------------------------------------------------------------------------

    def holds(self, fd: int) -> bool:
        """Whether this descriptor is one of its open data files."""
        return fd in self._open

    def read(self, fd: int, address: int, size: int, memory: ProcessMemory) -> Answer:
        """Read from a save file."""
        file, digest = self._open[fd]
        views = yield from self._timed(lambda now_ns: file.read(now_ns, min(size, READ_BYTES_MAX)))
        memory.write_from(views, address)
        for view in views:
            digest.update(view)
        count = sum(map(len, views))
        now_ns = self._clock.now_ns()
        self._journal.write(Read(t=now_ns, device=self.name, offset=self.read_bytes, size=count))
        self.read_bytes += count
        if not views:
            self._image(now_ns, self.read_bytes, digest)
        return count

    def write(self, fd: int, address: int, size: int, memory: ProcessMemory) -> Answer:
        """Write to a resume file, to the last byte."""
        file, digest = self._open[fd]
        # Time that interception costs is not charged to the device: a LOAD begins when its last byte would
        # have been here without us. Between two calls an answer and a call were on their way; more than that
        # the caller took itself.
        spent_to_ns = self._clock.now_ns()
        self._overhead_ns += min(spent_to_ns - self._answered_ns, _TRAP_NS_MAX)
        size = min(size, READ_BYTES_MAX)
        view = self._landing(file, size)
        memory.read_into(view, address)
        digest.update(view)
        while True:
            now_ns = self._clock.now_ns()
            self._overhead_ns += max(0, now_ns - spent_to_ns)
            spent_to_ns = now_ns
            now_ns -= self._overhead_ns
            written = file.write(now_ns, view)
            view = view[written.consumed :]
            if written.ready_ns > now_ns:
                self._overhead_ns = 0
                yield written.ready_ns
                spent_to_ns = written.ready_ns  # woken later than that is our time again
            elif not view:
                break
        self._answered_ns = self._clock.now_ns()
        self._overhead_ns += self._answered_ns - spent_to_ns
        self._journal.write(
            Wrote(t=self._answered_ns, device=self.name, offset=self.written_bytes, size=size)
        )
        self.written_bytes += size
        return size

    def file_ioctl(self, fd: int, request: int, address: int, memory: ProcessMemory) -> Answer:
        """An ioctl on a data file."""
        file = self._open[fd].file
        argument = b""
        if request == Ioctl.MIG_GET_PRECOPY_INFO:
            argument = memory.read(address, uapi.PRECOPY_INFO.size)
        reply = yield from self._timed(
            lambda now_ns: data_ioctl(self.device, file, now_ns, request, argument)
        )
        memory.write(address, reply.data)
        return 0

    def file_closed(self, fd: int) -> None:
        """QEMU closed a data file."""
        self.device.release(self._clock.now_ns(), self._open.pop(fd).file)

    def dma(self, iova: int, data: bytes, memory: ProcessMemory) -> None:
        """The device writes `data` to the guest's RAM. DeviceError(EFAULT): not mapped there."""
        at = 0
        for address, size in list(self._mappings.translate(iova, len(data))):
            memory.write(address, data[at : at + size])
            at += size
        self._dma_writes.append(Range(iova, len(data)))

    def _dma_written(self, _now_ns: int) -> list[Range]:
        written, self._dma_writes = self._dma_writes, []
        return written

    # -- what it came to -----------------------------------------------------------------------------

    def verify(self, seed: int, size: int) -> bool:
        """Compare the image with what it must be, and journal it."""
        image = self.device.image
        difference = Pattern(seed, self.name).verify(image)
        wrong_at = None if difference is None else difference.offset
        if wrong_at is None and len(image) != size:
            wrong_at = min(len(image), size)
        self._journal.write(
            Verified(t=self._clock.now_ns(), device=self.name, equal=wrong_at is None, wrong_at=wrong_at)
        )
        return wrong_at is None

    # -- inside --------------------------------------------------------------------------------------

    def _timed(self, attempt: Callable[[int], T | NotYet]) -> Generator[int, None, T]:
        while isinstance(result := attempt(self._clock.now_ns()), NotYet):
            yield result.ready_ns
        return result

    def _attached(self, request: int, argument: bytes) -> bytes:
        layout = iommufd.DEVICE_BIND if request == Ioctl.DEVICE_BIND_IOMMUFD else iommufd.DEVICE_ATTACH
        if len(argument) < layout.size:
            raise DeviceError(errno.EINVAL, f"an argument of {len(argument)} bytes")
        if request == Ioctl.DEVICE_ATTACH_IOMMUFD_PT:
            return argument
        self.bound()
        asked = iommufd.DEVICE_BIND.unpack(argument)
        told = iommufd.DEVICE_BIND.pack(asked._replace(out_devid=self._dev_id))
        return told + argument[len(told) :]

    def _opened(self, fd: int, file: DataFile) -> None:
        self._open[fd] = opened = _Open(file, xxhash.xxh3_128())
        if isinstance(file, SaveFile):
            self.read_bytes = 0
        else:
            self.written_bytes = 0
            self._loading = opened

    def _landing(self, file: DataFile, size: int) -> memoryview:
        """Where to put what is written next: where the device will keep it if that is certain already."""
        span = file.span if isinstance(file, ResumeFile) else None
        if isinstance(file, ResumeFile) and span is not None:
            inside = file.written_bytes - span.start
            if inside + size <= span.size:
                at = span.image_at + inside
                return self.device.memory[at : at + size]
        return memoryview(bytearray(size))

    def _reset_line(self, now_ns: int) -> None:
        if self._resets:
            self._resets = False
            self._journal.write(Reset(t=now_ns, device=self.name))

    def _arc(self, now_ns: int, old: State, new: State) -> None:
        if new is State.ERROR:
            self._failed_from = old  # its line says why, and is written when the call fails
            return
        self._reset_line(now_ns)
        self._journal.write(StateLine(t=now_ns, device=self.name, old=old.name, new=new.name))
        if old is State.RESUMING and self._loading is not None:
            self._image(now_ns, self.written_bytes, self._loading.digest)
            self._loading = None

    def _failed(self, request: int, argument: bytes, number: int) -> None:
        """Journal a failure that tells something: a refused arc, or a call that nobody knows."""
        now_ns = self._clock.now_ns()
        if number == errno.ENOTTY and request != Ioctl.DEVICE_FEATURE:
            self.unanswered += 1
            self._journal.write(Unanswered(t=now_ns, on=self.name, request=request))
        elif (wanted := _wanted_state(request, argument)) is not None:
            old, new = self.device.state, wanted
            if self._failed_from is not None:
                old, new = self._failed_from, State.ERROR
                self._failed_from = None
            with suppress(DeviceError):
                new = next_step(old, new, self.device.flags)
            line = StateLine(t=now_ns, device=self.name, old=old.name, new=new.name, errno=number)
            self._journal.write(line)

    def _image(self, now_ns: int, size: int, digest: xxhash.xxh3_128) -> None:
        said = "xxh3-128:" + digest.hexdigest()
        self._journal.write(Image(t=now_ns, device=self.name, size=size, digest=said))


def _wanted_state(request: int, argument: bytes) -> State | None:
    """The state that a call asks for; None when it asks for none."""
    if (
        request != Ioctl.DEVICE_FEATURE
        or len(argument) < uapi.DEVICE_FEATURE.size + uapi.FEATURE_MIG_STATE.size
    ):
        return None
    if uapi.DEVICE_FEATURE.unpack(argument).flags != _SET_STATE:
        return None
    wanted = uapi.FEATURE_MIG_STATE.unpack(argument, uapi.DEVICE_FEATURE.size).device_state
    return State(wanted) if wanted < len(State) else None
