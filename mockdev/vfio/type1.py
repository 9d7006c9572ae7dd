# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's older VFIO interface, groups in a container with a type 1 IOMMU: numbers and structs.

Names are the kernel's without the VFIO_ prefix; all lies in memory as on a little-endian 64-bit host.

Source: Linux include/uapi/linux/vfio.h
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from mockdev.wire.layout import LITTLE, U32, U64, Layout

_HEADER = "Linux include/uapi/linux/vfio.h: "
API_VERSION = 0
GROUP_FLAGS_VIABLE = 1
GROUP_FLAGS_CONTAINER_SET = 2
IOMMU_INFO_PGSIZES = 1


class ContainerIoctl(IntEnum):
    """Requests on /dev/vfio/vfio, _IO(';', 100 + k). Devices have other ones of the same numbers."""

    GET_API_VERSION = 0x3B64
    CHECK_EXTENSION = 0x3B65
    SET_IOMMU = 0x3B66
    IOMMU_GET_INFO = 0x3B70
    IOMMU_MAP_DMA = 0x3B71
    IOMMU_UNMAP_DMA = 0x3B72


class GroupIoctl(IntEnum):
    """Requests on /dev/vfio/N."""

    GROUP_GET_STATUS = 0x3B67
    GROUP_SET_CONTAINER = 0x3B68
    GROUP_UNSET_CONTAINER = 0x3B69
    GROUP_GET_DEVICE_FD = 0x3B6A


class Extension(IntEnum):
    """What a container may be asked for."""

    TYPE1_IOMMU = 1
    TYPE1V2_IOMMU = 3


class GroupStatus(NamedTuple):
    """struct vfio_group_status."""

    argsz: U32
    flags: U32


class Type1Info(NamedTuple):
    """struct vfio_iommu_type1_info. iova_pgsizes: a bit per supported size."""

    argsz: U32
    flags: U32
    iova_pgsizes: U64
    cap_offset: U32
    pad: U32


class DmaMap(NamedTuple):
    """struct vfio_iommu_type1_dma_map."""

    argsz: U32
    flags: U32
    vaddr: U64
    iova: U64
    size: U64


class DmaUnmap(NamedTuple):
    """struct vfio_iommu_type1_dma_unmap without its data. size: in how much, out how much was unmapped."""

    argsz: U32
    flags: U32
    iova: U64
    size: U64


GROUP_STATUS = Layout(
    GroupStatus, c_name="vfio_group_status", order=LITTLE, source=_HEADER + "vfio_group_status"
)
TYPE1_INFO = Layout(
    Type1Info, c_name="vfio_iommu_type1_info", order=LITTLE, source=_HEADER + "vfio_iommu_type1_info"
)
TYPE1_INFO_SIZE_MIN = TYPE1_INFO.place(
    "cap_offset"
).offset  # older callers, and kernels, know no capabilities
DMA_MAP = Layout(
    DmaMap, c_name="vfio_iommu_type1_dma_map", order=LITTLE, source=_HEADER + "vfio_iommu_type1_dma_map"
)
DMA_UNMAP = Layout(
    DmaUnmap, c_name="vfio_iommu_type1_dma_unmap", order=LITTLE, source=_HEADER + "vfio_iommu_type1_dma_unmap"
)

LAYOUTS = (GROUP_STATUS, DMA_MAP, DMA_UNMAP)  # not TYPE1_INFO: kernels differ in its end
