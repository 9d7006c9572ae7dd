# SPDX-License-Identifier: GPL-2.0-or-later
"""The iommufd that a QEMU believes in: ids, allowed addresses, mappings.

Source: Linux drivers/iommu/iommufd/main.c, ioas.c, hw_pagetable.c, device.c
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any, TypeVar

from mockdev.attach.mappings import ADDRESS_BITS, Mappings
from mockdev.device.dirty import UserMemory
from mockdev.errors import DeviceError
from mockdev.vfio import iommufd
from mockdev.vfio.iommufd import Iommu, IovaRange
from mockdev.wire.layout import Layout

T = TypeVar("T", bound=tuple[Any, ...])

# What an x86 IOMMU leaves to its users: everything but the interrupt window.
RANGES = (IovaRange(0, 0xFEDFFFFF), IovaRange(0xFEF00000, (1 << ADDRESS_BITS) - 1))
_ALIGNMENT = 4096
_ARGUMENT_BYTES_MAX = 4096


class _NoRoomError(DeviceError):
    """The caller's array is too short; the answer says how long it must be."""

    def __init__(self, answer: bytes) -> None:
        super().__init__(errno.EMSGSIZE, "no room for the ranges")
        self.answer = answer


class IommuFd:
    """One iommufd. mappings: what it maps goes there."""

    def __init__(self, mappings: Mappings) -> None:
        self._ids = 0
        self._mappings = mappings
        self._requests: dict[int, Callable[[bytes, UserMemory], bytes]] = {
            Iommu.DESTROY: self._destroy,
            Iommu.IOAS_ALLOC: self._ioas_alloc,
            Iommu.IOAS_IOVA_RANGES: self._iova_ranges,
            Iommu.IOAS_MAP: self._map,
            Iommu.IOAS_MAP_FILE: self._map_file,
            Iommu.IOAS_UNMAP: self._unmap,
            Iommu.HWPT_ALLOC: self._hwpt_alloc,
            Iommu.GET_HW_INFO: self._hw_info,
        }

    def new_id(self) -> int:
        """An id that nothing has had."""
        self._ids += 1
        return self._ids

    def ioctl(self, request: int, address: int, user: UserMemory) -> int:
        """One ioctl whose argument lies at `address`; 0. DeviceError: ENOTTY (unknown), or the call's own."""
        handler = self._requests.get(request)
        if handler is None:
            raise DeviceError(errno.ENOTTY, f"ioctl {request:#x} on the iommufd")
        size = int.from_bytes(user.read(address, 4), "little")
        if size > _ARGUMENT_BYTES_MAX:
            raise DeviceError(errno.E2BIG, f"an argument of {size} bytes")
        try:
            user.write(address, handler(user.read(address, size), user))
        except _NoRoomError as error:
            user.write(address, error.answer)
            raise
        return 0

    # -- the calls -----------------------------------------------------------------------------------

    def _destroy(self, argument: bytes, _user: UserMemory) -> bytes:
        return argument

    def _ioas_alloc(self, argument: bytes, _user: UserMemory) -> bytes:
        asked = _unpacked(iommufd.IOAS_ALLOC, argument)
        return _over(argument, iommufd.IOAS_ALLOC.pack(asked._replace(out_ioas_id=self.new_id())))

    def _hwpt_alloc(self, argument: bytes, _user: UserMemory) -> bytes:
        asked = _unpacked(iommufd.HWPT_ALLOC, argument)
        return _over(argument, iommufd.HWPT_ALLOC.pack(asked._replace(out_hwpt_id=self.new_id())))

    def _hw_info(self, argument: bytes, _user: UserMemory) -> bytes:
        asked = _unpacked(iommufd.HW_INFO, argument)
        told = asked._replace(data_len=0, out_data_type=0, out_capabilities=0)
        return _over(argument, iommufd.HW_INFO.pack(told))

    def _iova_ranges(self, argument: bytes, user: UserMemory) -> bytes:
        asked = _unpacked(iommufd.IOAS_IOVA_RANGES, argument)
        told = asked._replace(num_iovas=len(RANGES), out_iova_alignment=_ALIGNMENT)
        answer = _over(argument, iommufd.IOAS_IOVA_RANGES.pack(told))
        if asked.num_iovas < len(RANGES):
            raise _NoRoomError(answer)
        user.write(asked.allowed_iovas, b"".join(map(iommufd.IOVA_RANGE.pack, RANGES)))
        return answer

    def _map(self, argument: bytes, _user: UserMemory) -> bytes:
        asked = _unpacked(iommufd.IOAS_MAP, argument)
        self._mappings.add(asked.iova, asked.length, asked.user_va)
        return argument

    def _map_file(self, argument: bytes, _user: UserMemory) -> bytes:
        asked = _unpacked(iommufd.IOAS_MAP_FILE, argument)
        self._mappings.add(
            asked.iova, asked.length, 0
        )  # in a file of the caller's: no DMA of ours reaches it
        return argument

    def _unmap(self, argument: bytes, _user: UserMemory) -> bytes:
        asked = _unpacked(iommufd.IOAS_UNMAP, argument)
        length = self._mappings.remove(asked.iova, asked.length)
        if not length:
            raise DeviceError(errno.ENOENT, f"nothing is mapped in {asked.iova:#x}+{asked.length:#x}")
        return _over(argument, iommufd.IOAS_UNMAP.pack(asked._replace(length=length)))


def _unpacked(layout: Layout[T], argument: bytes) -> T:
    if len(argument) < layout.size:
        raise DeviceError(errno.EINVAL, f"an argument of {len(argument)} bytes, {layout.size} are needed")
    return layout.unpack(argument)


def _over(argument: bytes, part: bytes) -> bytes:
    return part + argument[len(part) :]
