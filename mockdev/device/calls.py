# SPDX-License-Identifier: GPL-2.0-or-later
"""A device at the level of ioctl number and bytes: what an unmodified VFIO user asks.

Arguments and answers are the structs of vfio.uapi as bytes; what a struct points to is reached through
UserMemory. Interrupts and IOMMU attachment need file descriptors and are the rim's.

Source: Linux drivers/vfio/vfio_main.c, drivers/vfio/pci/vfio_pci_core.c: vfio_pci_core_ioctl
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import NamedTuple

from mockdev.device.device import Device
from mockdev.device.dirty import Range, UserMemory, check_range_count, set_bits
from mockdev.device.features import check
from mockdev.device.files import DataFile, NotYet
from mockdev.device.saving import SaveFile
from mockdev.errors import DeviceError
from mockdev.vfio import uapi
from mockdev.vfio.pci import CONFIG_SIZE
from mockdev.vfio.uapi import Feature, Ioctl, Irq, Region, State


class Reply(NamedTuple):
    """The argument as written back; `file`: a new data file, for which the rim puts its fd over the -1
    in data_fd."""

    data: bytes
    file: DataFile | None = None


class NoMemory:
    """A caller whose pointers lead nowhere."""

    def read(self, address: int, size: int) -> bytes:
        """Always EFAULT."""
        raise DeviceError(errno.EFAULT, f"{size} bytes at {address:#x}")

    def write(self, address: int, data: bytes) -> None:
        """Always EFAULT."""
        raise DeviceError(errno.EFAULT, f"{len(data)} bytes at {address:#x}")


_NO_MEMORY = NoMemory()
_PAYLOAD = uapi.DEVICE_FEATURE.size
_NO_FD = -1


def device_ioctl(
    device: Device, now_ns: int, request: int, argument: bytes, user: UserMemory = _NO_MEMORY
) -> Reply | NotYet:
    """One ioctl on the device's fd. The answer is as long as the argument.

    DeviceError: ENOTTY (not a request of this device, or one for the rim), EFAULT (argument cut), EINVAL,
    and those of the call. After a failed SET of the state the kernel has also put -1 over data_fd.
    """
    if request == Ioctl.DEVICE_FEATURE:
        return _feature(device, now_ns, argument, user)
    if request == Ioctl.DEVICE_RESET:
        wait = device.reset(now_ns)
        return Reply(argument) if wait is None else wait
    info = _INFO.get(request)
    if info is None:
        raise DeviceError(errno.ENOTTY, f"ioctl {request:#x}")
    return Reply(info(device, argument))


def data_ioctl(device: Device, file: DataFile, now_ns: int, request: int, argument: bytes) -> Reply | NotYet:
    """One ioctl on a data file. DeviceError: ENOTTY (any but PRECOPY_INFO on a save file), EINVAL, ENODEV."""
    if request != Ioctl.MIG_GET_PRECOPY_INFO or not isinstance(file, SaveFile):
        raise DeviceError(errno.ENOTTY, f"ioctl {request:#x} on a data file")
    _need(argument, 4)
    if int.from_bytes(argument[:4], "little") < uapi.PRECOPY_INFO.size:
        raise DeviceError(errno.EINVAL, "argsz is too small for vfio_precopy_info")
    _need(argument, uapi.PRECOPY_INFO.size)
    answer = device.precopy_info(now_ns, file)
    if isinstance(answer, NotYet):
        return answer
    asked = uapi.PRECOPY_INFO.unpack(argument)
    # Without the second version the flags come back as they were given, whatever they were.
    flags = uapi.PRECOPY_INFO_REINIT * answer.reinit if device.precopy_v2 else asked.flags
    told = asked._replace(flags=flags, initial_bytes=answer.initial_bytes, dirty_bytes=answer.dirty_bytes)
    return Reply(_over(argument, 0, uapi.PRECOPY_INFO.pack(told)))


def _need(argument: bytes, size: int) -> None:
    if len(argument) < size:
        raise DeviceError(errno.EFAULT, f"an argument of {len(argument)} bytes, {size} are read")


def _over(argument: bytes, offset: int, part: bytes) -> bytes:
    return argument[:offset] + part + argument[offset + len(part) :]


# -- DEVICE_FEATURE ----------------------------------------------------------------------------------


def _feature(device: Device, now_ns: int, argument: bytes, user: UserMemory) -> Reply | NotYet:
    asked = check(argument, device.flags)
    if asked.op == uapi.FEATURE_PROBE:
        return Reply(argument)
    match asked.feature:
        case Feature.MIGRATION:
            told = uapi.FEATURE_MIGRATION.pack(uapi.FeatureMigration(device.flags))
            return Reply(_over(argument, _PAYLOAD, told))
        case Feature.MIG_DEVICE_STATE if asked.op == uapi.FEATURE_SET:
            return _set_state(device, now_ns, argument)
        case Feature.MIG_DEVICE_STATE:
            state = device.get_state(now_ns)
            return state if isinstance(state, NotYet) else Reply(_state_written(argument, state))
        case Feature.MIG_DATA_SIZE:
            size = device.data_size(now_ns)
            if isinstance(size, NotYet):
                return size
            told = uapi.FEATURE_MIG_DATA_SIZE.pack(uapi.FeatureMigDataSize(size))
            return Reply(_over(argument, _PAYLOAD, told))
        case Feature.MIG_PRECOPY_INFOV2:
            device.precopy_v2 = True
        case Feature.DMA_LOGGING_START:
            return Reply(_logging_start(device, now_ns, argument, user))
        case Feature.DMA_LOGGING_REPORT:
            _logging_report(device, now_ns, argument, user)
        case Feature.DMA_LOGGING_STOP:
            device.dirty.stop()
    return Reply(argument)


def _state_written(argument: bytes, state: int) -> bytes:
    told = uapi.FEATURE_MIG_STATE.pack(uapi.FeatureMigState(state, _NO_FD))
    return _over(argument, _PAYLOAD, told)


def _set_state(device: Device, now_ns: int, argument: bytes) -> Reply | NotYet:
    wanted = uapi.FEATURE_MIG_STATE.unpack(argument, _PAYLOAD).device_state
    if wanted >= len(State):
        raise DeviceError(errno.EINVAL, f"{wanted} is no state")
    file = device.set_state(now_ns, State(wanted))
    return file if isinstance(file, NotYet) else Reply(_state_written(argument, wanted), file)


def _logging_start(device: Device, now_ns: int, argument: bytes, user: UserMemory) -> bytes:
    control = uapi.FEATURE_DMA_LOGGING_CONTROL.unpack(argument, _PAYLOAD)
    check_range_count(control.num_ranges)
    layout = uapi.FEATURE_DMA_LOGGING_RANGE
    raw = user.read(control.ranges, control.num_ranges * layout.size)
    ranges = [Range(*layout.unpack(raw, at)) for at in range(0, len(raw), layout.size)]
    page_size = device.dirty.start(now_ns, control.page_size, ranges)
    told = uapi.FEATURE_DMA_LOGGING_CONTROL.pack(control._replace(page_size=page_size))
    return _over(argument, _PAYLOAD, told)


def _logging_report(device: Device, now_ns: int, argument: bytes, user: UserMemory) -> None:
    report = uapi.FEATURE_DMA_LOGGING_REPORT.unpack(argument, _PAYLOAD)
    pages = device.dirty.report(now_ns, report.iova, report.length, report.page_size)
    set_bits(user, report.bitmap, pages)


# -- what the device is ------------------------------------------------------------------------------


def _checked(argument: bytes, size_min: int) -> None:
    _need(argument, 4)
    if int.from_bytes(argument[:4], "little") < size_min:
        raise DeviceError(errno.EINVAL, f"argsz below {size_min}")
    _need(argument, size_min)


def _device_info(_device: Device, argument: bytes) -> bytes:
    _checked(argument, uapi.DEVICE_INFO_SIZE_MIN)
    flags = uapi.DEVICE_FLAGS_RESET | uapi.DEVICE_FLAGS_PCI
    argsz = int.from_bytes(argument[:4], "little")
    told = uapi.DeviceInfo(argsz, flags, uapi.REGION_COUNT, uapi.IRQ_COUNT, 0, 0)
    return _over(argument, 0, uapi.DEVICE_INFO.pack(told)[: len(argument)])


def _region_info(device: Device, argument: bytes) -> bytes:
    _checked(argument, uapi.REGION_INFO.size)
    asked = uapi.REGION_INFO.unpack(argument)
    if asked.index > Region.CONFIG:
        raise DeviceError(errno.EINVAL, f"no region {asked.index}")
    sizes = {Region.BAR0: device.pci.identity.bar0_bytes, Region.CONFIG: CONFIG_SIZE}
    size = sizes.get(Region(asked.index), 0)
    flags = uapi.REGION_INFO_FLAG_READ | uapi.REGION_INFO_FLAG_WRITE if size else 0
    offset = asked.index << uapi.REGION_OFFSET_SHIFT
    told = asked._replace(flags=flags, cap_offset=0, size=size, offset=offset)
    return _over(argument, 0, uapi.REGION_INFO.pack(told))


def _irq_info(device: Device, argument: bytes) -> bytes:
    _checked(argument, uapi.IRQ_INFO.size)
    asked = uapi.IRQ_INFO.unpack(argument)
    if asked.index >= uapi.IRQ_COUNT:
        raise DeviceError(errno.EINVAL, f"no interrupt {asked.index}")
    count = {Irq.MSIX: device.pci.identity.vectors, Irq.ERR: 1, Irq.REQ: 1}.get(Irq(asked.index), 0)
    flags = uapi.IRQ_INFO_EVENTFD | uapi.IRQ_INFO_NORESIZE
    return _over(argument, 0, uapi.IRQ_INFO.pack(asked._replace(flags=flags, count=count)))


_INFO: dict[int, Callable[[Device, bytes], bytes]] = {
    Ioctl.DEVICE_GET_INFO: _device_info,
    Ioctl.DEVICE_GET_REGION_INFO: _region_info,
    Ioctl.DEVICE_GET_IRQ_INFO: _irq_info,
}
