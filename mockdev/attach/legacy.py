# SPDX-License-Identifier: GPL-2.0-or-later
"""The older route: /dev/vfio/vfio, a group per device, and a folder that looks like the devices' in sysfs.

QEMU finds such a device by `-device vfio-pci,sysfsdev={sysfs0}`, opens files under /dev/vfio that need not
exist, and is given descriptors of the reserved range.

Source: Linux drivers/vfio/container.c, group.c, vfio_iommu_type1.c
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from mockdev.attach.mappings import Mappings
from mockdev.device.dirty import UserMemory
from mockdev.errors import DeviceError
from mockdev.vfio import type1
from mockdev.vfio.type1 import ContainerIoctl, Extension, GroupIoctl

_FOLDER = "/dev/vfio/"
_FIRST_GROUP = 90_000  # no number that a kernel is likely to have given
_PAGE_SIZES = 0xFFFF_FFFF_FFFF_F000
_NAME_BYTES_MAX = 256
PATH_BYTES_MAX = 64


class Fds(NamedTuple):
    """Descriptors: the container's, the groups' in order of devices, the devices' own."""

    container: int
    groups: tuple[int, ...]
    devices: tuple[int, ...]


class Legacy:
    """Container and groups. opened: called with a device's number when its group has given it out."""

    def __init__(self, fds: Fds, mappings: Mappings, opened: Callable[[int], None]) -> None:
        self._fds = fds
        self._mappings = mappings
        self._opened = opened
        self._attached: set[int] = set()  # groups in the container
        self._paths = {f"{_FOLDER}vfio": fds.container}
        self._paths |= {f"{_FOLDER}{_FIRST_GROUP + n}": fd for n, fd in enumerate(fds.groups)}

    def path(self, data: bytes) -> int | None:
        """The descriptor for a file that is opened; None: it is none of ours. data: from the path's start."""
        return self._paths.get(data.partition(b"\0")[0].decode("ascii", "replace"))

    def holds(self, fd: int) -> bool:
        """Whether this is the container or a group."""
        return fd == self._fds.container or fd in self._fds.groups

    def ioctl(self, fd: int, request: int, argument: int, user: UserMemory) -> int:
        """One ioctl. DeviceError: ENOTTY (unknown), or the call's own."""
        if fd == self._fds.container:
            return self._container(request, argument, user)
        return self._group(self._fds.groups.index(fd), request, argument, user)

    def _container(self, request: int, argument: int, user: UserMemory) -> int:
        if request == ContainerIoctl.GET_API_VERSION:
            return type1.API_VERSION
        if request == ContainerIoctl.CHECK_EXTENSION:
            return int(argument in (Extension.TYPE1_IOMMU, Extension.TYPE1V2_IOMMU))
        if request == ContainerIoctl.SET_IOMMU:
            if argument not in (Extension.TYPE1_IOMMU, Extension.TYPE1V2_IOMMU):
                raise DeviceError(errno.ENODEV, f"no IOMMU of type {argument}")
            return 0
        if request == ContainerIoctl.IOMMU_GET_INFO:
            size = min(int.from_bytes(user.read(argument, 4), "little"), type1.TYPE1_INFO.size)
            if size < type1.TYPE1_INFO_SIZE_MIN:
                raise DeviceError(errno.EINVAL, f"an argument of {size} bytes")
            told = type1.Type1Info(size, type1.IOMMU_INFO_PGSIZES, _PAGE_SIZES, 0, 0)
            user.write(argument, type1.TYPE1_INFO.pack(told)[:size])
            return 0
        if request == ContainerIoctl.IOMMU_MAP_DMA:
            asked = type1.DMA_MAP.unpack(user.read(argument, type1.DMA_MAP.size))
            self._mappings.add(asked.iova, asked.size, asked.vaddr)
            return 0
        if request == ContainerIoctl.IOMMU_UNMAP_DMA:
            undone = type1.DMA_UNMAP.unpack(user.read(argument, type1.DMA_UNMAP.size))
            size = self._mappings.remove(undone.iova, undone.size)
            user.write(argument, type1.DMA_UNMAP.pack(undone._replace(size=size)))
            return 0
        raise DeviceError(errno.ENOTTY, f"ioctl {request:#x} on the container")

    def _group(self, number: int, request: int, argument: int, user: UserMemory) -> int:
        if request == GroupIoctl.GROUP_GET_STATUS:
            asked = type1.GROUP_STATUS.unpack(user.read(argument, type1.GROUP_STATUS.size))
            flags = type1.GROUP_FLAGS_VIABLE
            flags |= type1.GROUP_FLAGS_CONTAINER_SET if number in self._attached else 0
            user.write(argument, type1.GROUP_STATUS.pack(asked._replace(flags=flags)))
            return 0
        if request == GroupIoctl.GROUP_SET_CONTAINER:
            self._attached.add(number)
            return 0
        if request == GroupIoctl.GROUP_UNSET_CONTAINER:
            self._attached.discard(number)
            return 0
        if request == GroupIoctl.GROUP_GET_DEVICE_FD:
            name = _text(user, argument)
            if name != folder_name(number):
                raise DeviceError(errno.ENODEV, f"no device {name!r} in this group")
            self._opened(number)
            return self._fds.devices[number]
        raise DeviceError(errno.ENOTTY, f"ioctl {request:#x} on a group")


def folder_name(number: int) -> str:
    """The name of a device's folder, which the group is asked for it by."""
    return f"vf{number}"


def make_sysfs(folder: Path, count: int) -> list[Path]:
    """Make the folders of `count` devices, each naming its group; their paths."""
    paths = []
    for number in range(count):
        path = folder / folder_name(number)
        path.mkdir()
        # Only read, never followed.
        (path / "iommu_group").symlink_to(f"/sys/kernel/iommu_groups/{_FIRST_GROUP + number}")
        paths.append(path)
    return paths


def _text(user: UserMemory, address: int) -> str:
    """A string of the caller's, up to the end of its page."""
    size = min(_NAME_BYTES_MAX, 4096 - address % 4096)
    return user.read(address, size).partition(b"\0")[0].decode("ascii", "replace")
