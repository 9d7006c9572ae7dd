# SPDX-License-Identifier: GPL-2.0-or-later
"""A VFIO user that is no QEMU: what QEMU does with one lent device, each step alone, timed and answered for.

Run under a supervisor as `python -m verifier.bench.vfio_user IOMMUFD DEVICE STEP...`; it prints one JSON
object. Steps: bind, info, config (4096 bytes), unknown (an ioctl nobody has), call (cost of one), save
SIZE (reads of SIZE), keep SIZE FILE (the same into a file), load SIZE FILE (writes of SIZE), sleep, exit N.
"""

from __future__ import annotations

import array
import ctypes
import fcntl
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from mockdev.vfio import iommufd, uapi
from mockdev.vfio.iommufd import Iommu
from mockdev.vfio.uapi import Feature, Ioctl, State

_libc = ctypes.CDLL(None, use_errno=True)
_libc.read.restype = ctypes.c_ssize_t
_libc.read.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)

_CALLS = 2000
_NOBODYS_IOCTL = 0x3BFF


class User:
    """The two descriptors, and what was found out."""

    def __init__(self, iommu: int, device: int, words: Iterator[str]) -> None:
        self.iommu = iommu
        self.device = device
        self.words = words
        self.buffer = bytearray(1 << 20)
        self.told: dict[str, Any] = {}

    # -- steps ---------------------------------------------------------------------------------------

    def bind(self) -> None:
        """As QEMU's iommufd back end begins."""
        self._ioctl(
            self.device,
            Ioctl.DEVICE_BIND_IOMMUFD,
            iommufd.DEVICE_BIND.pack(iommufd.DeviceBind(16, 0, self.iommu, 0)),
        )
        told = self._ioctl(self.iommu, Iommu.IOAS_ALLOC, iommufd.IOAS_ALLOC.pack(iommufd.IoasAlloc(12, 0, 0)))
        ioas = iommufd.IOAS_ALLOC.unpack(told).out_ioas_id
        self._ioctl(
            self.device,
            Ioctl.DEVICE_ATTACH_IOMMUFD_PT,
            iommufd.DEVICE_ATTACH.pack(iommufd.DeviceAttach(12, 0, ioas)),
        )
        self.told["ranges"] = self._ranges(ioas)
        self.ram = ctypes.create_string_buffer(1 << 20)
        mapped = iommufd.IoasMap(40, 7, ioas, 0, ctypes.addressof(self.ram), len(self.ram), 0x100000)
        self._ioctl(self.iommu, Iommu.IOAS_MAP, iommufd.IOAS_MAP.pack(mapped))

    def info(self) -> None:
        """What the device says of itself."""
        told = self._ioctl(
            self.device, Ioctl.DEVICE_GET_INFO, uapi.DEVICE_INFO.pack(uapi.DeviceInfo(24, 0, 0, 0, 0, 0))
        )
        self.told["info"] = uapi.DEVICE_INFO.unpack(told)._asdict()
        told = self._feature(Feature.MIGRATION | uapi.FEATURE_GET, bytes(8))
        self.told["flags"] = int.from_bytes(told, "little")

    def config(self) -> None:
        """The config space, whole."""
        self.told["config"] = os.pread(
            self.device, 4096, uapi.Region.CONFIG << uapi.REGION_OFFSET_SHIFT
        ).hex()

    def unknown(self) -> None:
        """Ioctls that nobody knows, on both descriptors."""
        self.told["unknown"] = [
            self._errno(partial(self._ioctl, fd, _NOBODYS_IOCTL, bytes([8, 0, 0, 0] * 2)))
            for fd in (self.device, self.iommu)
        ]

    def call(self) -> None:
        """What one answered call costs, and one that nobody answers, in ns: medians."""
        at = uapi.Region.CONFIG << uapi.REGION_OFFSET_SHIFT
        with open(os.devnull) as null:
            plain = self._median(lambda: os.pread(null.fileno(), 4, 0))
        self.told["call_ns"] = self._median(lambda: os.pread(self.device, 4, at))
        self.told["plain_call_ns"] = plain

    def save(self) -> None:
        """Stop the device and read all of its state."""
        size = int(next(self.words))
        fd = self._state(State.STOP_COPY)
        saved, start = 0, time.monotonic_ns()
        while count := self._read(fd, size):
            saved += count
        self.told["save_ns"] = time.monotonic_ns() - start
        self.told["saved"] = saved
        self._state(State.STOP)
        os.close(fd)

    def keep(self) -> None:
        """As save, into a file."""
        size = int(next(self.words))
        fd = self._state(State.STOP_COPY)
        with open(next(self.words), "wb") as file:
            while count := self._read(fd, size):
                file.write(self.buffer[:count])
        self._state(State.STOP)
        os.close(fd)

    def load(self) -> None:
        """Have the device take the state that lies in a file."""
        size = int(next(self.words))
        with open(next(self.words), "rb") as file:
            data = memoryview(file.read())
        fd = self._state(State.RESUMING)
        start = time.monotonic_ns()
        for at in range(0, len(data), size):
            os.write(fd, data[at : at + size])
        self.told["load_ns"] = time.monotonic_ns() - start
        self.told["loaded"] = len(data)
        self._state(State.RUNNING)
        os.close(fd)

    def sleep(self) -> None:
        """Say so, and wait for a signal to end it; what is in the RAM that the device may write then."""
        print(json.dumps({"pid": os.getpid()}), flush=True)
        signal.sigwait({signal.SIGTERM})
        self.told["ram"] = self.ram.raw[:16].hex()

    def exit(self) -> None:
        """End with this status."""
        print(json.dumps(self.told), flush=True)
        sys.exit(int(next(self.words)))

    # -- inside --------------------------------------------------------------------------------------

    def _ioctl(self, fd: int, request: int, argument: bytes) -> bytes:
        area = bytearray(argument)
        fcntl.ioctl(fd, request, area)
        return bytes(area)

    def _feature(self, flags: int, payload: bytes) -> bytes:
        head = uapi.DEVICE_FEATURE.pack(uapi.DeviceFeature(uapi.DEVICE_FEATURE.size + len(payload), flags))
        return self._ioctl(self.device, Ioctl.DEVICE_FEATURE, head + payload)[len(head) :]

    def _state(self, state: State) -> int:
        told = self._feature(
            Feature.MIG_DEVICE_STATE | uapi.FEATURE_SET,
            uapi.FEATURE_MIG_STATE.pack(uapi.FeatureMigState(state, -1)),
        )
        return uapi.FEATURE_MIG_STATE.unpack(told).data_fd

    def _ranges(self, ioas: int) -> list[tuple[int, int]]:
        layout = iommufd.IOAS_IOVA_RANGES
        area = bytearray(layout.pack(iommufd.IoasIovaRanges(layout.size, ioas, 0, 0, 0, 0)))
        number = self._errno(lambda: fcntl.ioctl(self.iommu, Iommu.IOAS_IOVA_RANGES, area))
        self.told["no_room"] = number
        room = array.array("Q", bytes(16 * layout.unpack(area).num_iovas))
        address, _ = room.buffer_info()
        asked = layout.unpack(area)._replace(allowed_iovas=address)
        self._ioctl(self.iommu, Iommu.IOAS_IOVA_RANGES, layout.pack(asked))
        return list(zip(room[::2], room[1::2], strict=True))

    def _errno(self, call: Callable[[], object]) -> int:
        try:
            call()
        except OSError as error:
            return error.errno or 0
        return 0

    def _read(self, fd: int, size: int) -> int:
        """One read(2), into the same memory every time."""
        area = (ctypes.c_char * size).from_buffer(self.buffer)
        count = int(_libc.read(fd, area, size))
        if count < 0:
            raise OSError(ctypes.get_errno(), "read")
        return count

    def _median(self, call: Callable[[], object]) -> float:
        taken = []
        for _ in range(_CALLS):
            start = time.monotonic_ns()
            call()
            taken.append(time.monotonic_ns() - start)
        return statistics.median(taken)


def main() -> None:
    """Do the steps, print what came of them."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    words = iter(sys.argv[3:])
    user = User(int(sys.argv[1]), int(sys.argv[2]), words)
    steps = {
        "bind": user.bind,
        "info": user.info,
        "config": user.config,
        "unknown": user.unknown,
        "call": user.call,
        "save": user.save,
        "load": user.load,
        "keep": user.keep,
        "sleep": user.sleep,
        "exit": user.exit,
    }
    for word in words:
        steps[word]()
    print(json.dumps(user.told), flush=True)


if __name__ == "__main__":
    main()
