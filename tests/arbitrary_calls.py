# SPDX-License-Identifier: GPL-2.0-or-later
"""A program that makes any calls with any arguments on the descriptors it was lent: `FIRST+1 COUNT CALLS`.

Calls and values are drawn from those that a device knows, their edges and none at all; always the same ones.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import random
import struct
import sys
from contextlib import suppress

from mockdev.vfio import type1, uapi
from mockdev.vfio.iommufd import Iommu

_REQUESTS = [
    *map(int, uapi.Ioctl),
    *map(int, Iommu),
    *map(int, type1.ContainerIoctl),
    *map(int, type1.GroupIoctl),
]
_SIZES = [0, 1, 4, 5, 7, 8, 12, 16, 17, 24, 40, 64, 4096, 4097, 1 << 31, (1 << 32) - 1]
_LENGTHS = [0, 1, 4, 4096, 65536, 1 << 20, 1 << 31, (1 << 63) - 1]
_OFFSETS = [0, 1, 4, 4095, 4096, 1 << 25, (1 << 40) - 1]
_BAD = [0, 1, 4095, 1 << 47, 1 << 63, (1 << 64) - 1]
_AREA_BYTES = 1 << 20
_BEHIND_BYTES = 32 << 20  # what a long read may write to behind it: not to our own memory

_libc = ctypes.CDLL(None, use_errno=True)
_libc.pread64.argtypes = _libc.pwrite64.argtypes = (
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int64,
)
_libc.read.argtypes = _libc.write.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
_libc.ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)


def _argument(choose: random.Random) -> bytes:
    feature = choose.choice([*map(int, uapi.Feature), choose.getrandbits(16)])
    flags = feature | choose.choice([0, 1 << 16, 1 << 17, 1 << 18, 3 << 16, 7 << 16])
    body = choose.choice([bytes(64), b"\xff" * 64, choose.randbytes(64)])
    if choose.random() < 0.6:
        if choose.random() < 0.5:
            flags = uapi.FEATURE_SET | uapi.Feature.MIG_DEVICE_STATE
        body = flags.to_bytes(4, "little") + choose.randrange(10).to_bytes(4, "little") + body[8:]
    return choose.choice(_SIZES).to_bytes(4, "little") + body


def _well_formed(choose: random.Random, iommu: int) -> tuple[int, bytes]:
    """A call as QEMU makes it, with any of its values."""
    head, size = uapi.FEATURE_GET, 16
    match choose.randrange(8):
        case 0:
            return int(uapi.Ioctl.DEVICE_BIND_IOMMUFD), struct.pack("<IIiI", 16, 0, iommu, 0)
        case 1:
            feature = choose.choice([*map(int, uapi.Feature)])
            return int(uapi.Ioctl.DEVICE_FEATURE), struct.pack("<II", size, head | feature) + bytes(64)
        case 2:
            return int(uapi.Ioctl.MIG_GET_PRECOPY_INFO), struct.pack("<II", 24, 0) + bytes(16)
        case _:
            flags, state = (
                uapi.FEATURE_SET | uapi.Feature.MIG_DEVICE_STATE,
                choose.choice([*map(int, uapi.State)]),
            )
            return int(uapi.Ioctl.DEVICE_FEATURE), struct.pack("<IIIi", size, flags, state, -1)


def main() -> None:
    """Make them; print how many there were, and how far they got."""
    first, count, calls = int(sys.argv[1]) - 1, int(sys.argv[2]), int(sys.argv[3])
    choose = random.Random(1)
    area = mmap.mmap(-1, _AREA_BYTES + _BEHIND_BYTES)
    start = ctypes.addressof(ctypes.c_char.from_buffer(area))
    lent = [*range(first, first + count)]
    files: list[int] = []  # data files that devices gave
    told = {"calls": calls, "walked": 0, "opened": 0, "read": 0, "written": 0}
    for _ in range(calls):
        fd = choose.choice(lent if not files or choose.random() < 0.5 else files)
        at = choose.randrange(_AREA_BYTES - 4096)
        argument = _argument(choose)
        area[at : at + len(argument)] = argument
        address = start + at if choose.random() < 0.85 else choose.choice(_BAD)
        length = choose.choice(_LENGTHS)
        offset = choose.randrange(12) << uapi.REGION_OFFSET_SHIFT | choose.choice(_OFFSETS)
        match choose.randrange(10):
            case 0:
                told["read"] += _libc.read(fd, address, length) > 0
            case 1:
                told["written"] += _libc.write(fd, address, length) > 0
            case 2:
                _libc.pread64(fd, address, length, offset)
            case 3:
                _libc.pwrite64(fd, address, length, offset)
            case 4:
                # Those that were lent stay open nearly always, or soon there is nobody to call.
                if choose.random() < 0.01 or fd in files:
                    with suppress(OSError):
                        os.close(fd)
                    if fd in files:
                        files.remove(fd)
            case 5 | 6 | 7:
                request, argument = _well_formed(choose, first)
                area[at : at + len(argument)] = argument
                walks = request == uapi.Ioctl.DEVICE_FEATURE and len(argument) == 16
                if _libc.ioctl(fd, request, start + at) == 0 and walks:
                    told["walked"] += 1
                    opened = struct.unpack_from("<i", area, at + 12)[0]
                    if opened >= 0:
                        told["opened"] += 1
                        files.append(opened)
            case _:
                _libc.ioctl(fd, choose.choice([*_REQUESTS, uapi.Ioctl.DEVICE_FEATURE]), address)
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
