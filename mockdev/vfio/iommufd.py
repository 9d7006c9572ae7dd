# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's iommufd interface as far as QEMU's vfio-pci uses it: numbers and structs.

Also the ioctls that tie a VFIO device to it. Names are the kernel's without the IOMMU_ prefix; all lies
in memory as on a little-endian 64-bit host.

Source: Linux include/uapi/linux/iommufd.h; include/uapi/linux/vfio.h
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from mockdev.wire.layout import LITTLE, S32, U32, U64, Layout

_HEADER = "Linux include/uapi/linux/iommufd.h: "
_VFIO_HEADER = "Linux include/uapi/linux/vfio.h: "


class Iommu(IntEnum):
    """Request numbers, _IO(';', 0x80 + k)."""

    DESTROY = 0x3B80
    IOAS_ALLOC = 0x3B81
    IOAS_IOVA_RANGES = 0x3B84
    IOAS_MAP = 0x3B85
    IOAS_UNMAP = 0x3B86
    HWPT_ALLOC = 0x3B89
    GET_HW_INFO = 0x3B8A
    IOAS_MAP_FILE = 0x3B8F


class Destroy(NamedTuple):
    """struct iommu_destroy."""

    size: U32
    id: U32


class IoasAlloc(NamedTuple):
    """struct iommu_ioas_alloc."""

    size: U32
    flags: U32
    out_ioas_id: U32


class IovaRange(NamedTuple):
    """struct iommu_iova_range: addresses, the last one included."""

    start: U64
    last: U64


class IoasIovaRanges(NamedTuple):
    """struct iommu_ioas_iova_ranges. num_iovas: in room, out how many there are."""

    size: U32
    ioas_id: U32
    num_iovas: U32
    reserved: U32
    allowed_iovas: U64
    out_iova_alignment: U64


class IoasMap(NamedTuple):
    """struct iommu_ioas_map: `length` bytes of the caller's memory from `user_va` appear at `iova`."""

    size: U32
    flags: U32
    ioas_id: U32
    reserved: U32
    user_va: U64
    length: U64
    iova: U64


class IoasMapFile(NamedTuple):
    """struct iommu_ioas_map_file: as IoasMap, of a file."""

    size: U32
    flags: U32
    ioas_id: U32
    fd: S32
    start: U64
    length: U64
    iova: U64


class IoasUnmap(NamedTuple):
    """struct iommu_ioas_unmap. length: in how much, out how much was unmapped."""

    size: U32
    ioas_id: U32
    iova: U64
    length: U64


class HwptAlloc(NamedTuple):
    """struct iommu_hwpt_alloc."""

    size: U32
    flags: U32
    dev_id: U32
    pt_id: U32
    out_hwpt_id: U32
    reserved: U32
    data_type: U32
    data_len: U32
    data_uptr: U64
    fault_id: U32
    reserved2: U32


class HwInfo(NamedTuple):
    """struct iommu_hw_info. out_capabilities: 0: no dirty tracking, the device's own is to be used."""

    size: U32
    flags: U32
    dev_id: U32
    data_len: U32
    data_uptr: U64
    out_data_type: U32
    reserved: U32
    out_capabilities: U64


class DeviceBind(NamedTuple):
    """struct vfio_device_bind_iommufd."""

    argsz: U32
    flags: U32
    iommufd: S32
    out_devid: U32


class DeviceAttach(NamedTuple):
    """struct vfio_device_attach_iommufd_pt."""

    argsz: U32
    flags: U32
    pt_id: U32


DESTROY = Layout(Destroy, c_name="iommu_destroy", order=LITTLE, source=_HEADER + "iommu_destroy")
IOAS_ALLOC = Layout(IoasAlloc, c_name="iommu_ioas_alloc", order=LITTLE, source=_HEADER + "iommu_ioas_alloc")
IOVA_RANGE = Layout(IovaRange, c_name="iommu_iova_range", order=LITTLE, source=_HEADER + "iommu_iova_range")
IOAS_IOVA_RANGES = Layout(
    IoasIovaRanges,
    c_name="iommu_ioas_iova_ranges",
    order=LITTLE,
    source=_HEADER + "iommu_ioas_iova_ranges",
)
IOAS_MAP = Layout(IoasMap, c_name="iommu_ioas_map", order=LITTLE, source=_HEADER + "iommu_ioas_map")
IOAS_MAP_FILE = Layout(
    IoasMapFile, c_name="iommu_ioas_map_file", order=LITTLE, source=_HEADER + "iommu_ioas_map_file"
)
IOAS_UNMAP = Layout(IoasUnmap, c_name="iommu_ioas_unmap", order=LITTLE, source=_HEADER + "iommu_ioas_unmap")
HWPT_ALLOC = Layout(HwptAlloc, c_name="iommu_hwpt_alloc", order=LITTLE, source=_HEADER + "iommu_hwpt_alloc")
HW_INFO = Layout(HwInfo, c_name="iommu_hw_info", order=LITTLE, source=_HEADER + "iommu_hw_info")
DEVICE_BIND = Layout(
    DeviceBind,
    c_name="vfio_device_bind_iommufd",
    order=LITTLE,
    source=_VFIO_HEADER + "vfio_device_bind_iommufd",
)
DEVICE_ATTACH = Layout(
    DeviceAttach,
    c_name="vfio_device_attach_iommufd_pt",
    order=LITTLE,
    source=_VFIO_HEADER + "vfio_device_attach_iommufd_pt",
)

LAYOUTS = (
    DESTROY,
    IOAS_ALLOC,
    IOVA_RANGE,
    IOAS_IOVA_RANGES,
    IOAS_MAP,
    IOAS_MAP_FILE,
    IOAS_UNMAP,
    HWPT_ALLOC,
    HW_INFO,
    DEVICE_BIND,
    DEVICE_ATTACH,
)
