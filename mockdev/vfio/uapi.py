# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's VFIO interface as far as a migratable PCI device needs it: numbers and structs.

Everything here lies in memory as on a little-endian 64-bit host. Names are the kernel's without the
VFIO_ prefix.

Source: Linux include/uapi/linux/vfio.h
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import NamedTuple

from mockdev.wire.layout import LITTLE, S32, U32, U64, Layout

_HEADER = "Linux include/uapi/linux/vfio.h: "


class Ioctl(IntEnum):
    """Request numbers, _IO(';', 100 + k). MIG_GET_PRECOPY_INFO is asked of the data file."""

    DEVICE_GET_INFO = 0x3B6B
    DEVICE_GET_REGION_INFO = 0x3B6C
    DEVICE_GET_IRQ_INFO = 0x3B6D
    DEVICE_SET_IRQS = 0x3B6E
    DEVICE_RESET = 0x3B6F
    DEVICE_GET_PCI_HOT_RESET_INFO = 0x3B70
    DEVICE_PCI_HOT_RESET = 0x3B71
    DEVICE_IOEVENTFD = 0x3B74
    DEVICE_FEATURE = 0x3B75
    DEVICE_BIND_IOMMUFD = 0x3B76
    DEVICE_ATTACH_IOMMUFD_PT = 0x3B77
    DEVICE_DETACH_IOMMUFD_PT = 0x3B78
    MIG_GET_PRECOPY_INFO = 0x3B79


class State(IntEnum):
    """enum vfio_device_mig_state."""

    ERROR = 0
    STOP = 1
    RUNNING = 2
    STOP_COPY = 3
    RESUMING = 4
    RUNNING_P2P = 5
    PRE_COPY = 6
    PRE_COPY_P2P = 7


class MigrationFlags(IntFlag):
    """What a device can do (DEVICE_FEATURE_MIGRATION)."""

    STOP_COPY = 1
    P2P = 2
    PRE_COPY = 4


class Feature(IntEnum):
    """Low 16 bits of the flags of DEVICE_FEATURE."""

    PCI_VF_TOKEN = 0
    MIGRATION = 1
    MIG_DEVICE_STATE = 2
    LOW_POWER_ENTRY = 3
    LOW_POWER_ENTRY_WITH_WAKEUP = 4
    LOW_POWER_EXIT = 5
    DMA_LOGGING_START = 6
    DMA_LOGGING_STOP = 7
    DMA_LOGGING_REPORT = 8
    MIG_DATA_SIZE = 9
    BUS_MASTER = 10
    DMA_BUF = 11
    MIG_PRECOPY_INFOV2 = 12


FEATURE_MASK = 0xFFFF
FEATURE_GET = 0x1_0000
FEATURE_SET = 0x2_0000
FEATURE_PROBE = 0x4_0000

PRECOPY_INFO_REINIT = 1

DEVICE_FLAGS_RESET = 1
DEVICE_FLAGS_PCI = 2
REGION_INFO_FLAG_READ = 1
REGION_INFO_FLAG_WRITE = 2
IRQ_INFO_EVENTFD = 1
IRQ_INFO_NORESIZE = 8


class Region(IntEnum):
    """VFIO_PCI_*_REGION_INDEX."""

    BAR0 = 0
    BAR1 = 1
    BAR2 = 2
    BAR3 = 3
    BAR4 = 4
    BAR5 = 5
    ROM = 6
    CONFIG = 7
    VGA = 8


class Irq(IntEnum):
    """VFIO_PCI_*_IRQ_INDEX."""

    INTX = 0
    MSI = 1
    MSIX = 2
    ERR = 3
    REQ = 4


REGION_COUNT = len(Region)
IRQ_COUNT = len(Irq)
REGION_OFFSET_SHIFT = 40  # where vfio-pci puts a region in the device's file: index << 40


class DeviceFeature(NamedTuple):
    """struct vfio_device_feature without its payload. flags: index and FEATURE_GET, SET, PROBE."""

    argsz: U32
    flags: U32


class FeatureMigration(NamedTuple):
    """struct vfio_device_feature_migration. flags: MigrationFlags."""

    flags: U64


class FeatureMigState(NamedTuple):
    """struct vfio_device_feature_mig_state. data_fd: -1 when the arc gives none."""

    device_state: U32
    data_fd: S32


class FeatureMigDataSize(NamedTuple):
    """struct vfio_device_feature_mig_data_size, bytes."""

    stop_copy_length: U64


class FeatureDmaLoggingControl(NamedTuple):
    """struct vfio_device_feature_dma_logging_control. page_size: in a hint, out what the device uses."""

    page_size: U64
    num_ranges: U32
    reserved: U32
    ranges: U64


class FeatureDmaLoggingRange(NamedTuple):
    """struct vfio_device_feature_dma_logging_range, bytes of I/O address space."""

    iova: U64
    length: U64


class FeatureDmaLoggingReport(NamedTuple):
    """struct vfio_device_feature_dma_logging_report. bitmap: address of 64-bit words, a bit per page."""

    iova: U64
    length: U64
    page_size: U64
    bitmap: U64


class PrecopyInfo(NamedTuple):
    """struct vfio_precopy_info, sizes in bytes of stream."""

    argsz: U32
    flags: U32
    initial_bytes: U64
    dirty_bytes: U64


class DeviceInfo(NamedTuple):
    """struct vfio_device_info."""

    argsz: U32
    flags: U32
    num_regions: U32
    num_irqs: U32
    cap_offset: U32
    pad: U32


class RegionInfo(NamedTuple):
    """struct vfio_region_info. offset: in the device's file."""

    argsz: U32
    flags: U32
    index: U32  # type: ignore[assignment]  # the C name; it hides tuple.index
    cap_offset: U32
    size: U64
    offset: U64


class IrqInfo(NamedTuple):
    """struct vfio_irq_info."""

    argsz: U32
    flags: U32
    index: U32  # type: ignore[assignment]  # the C name; it hides tuple.index
    count: U32  # type: ignore[assignment]  # it hides tuple.count


class IrqSet(NamedTuple):
    """struct vfio_irq_set without its data, which are eventfds, bools or nothing."""

    argsz: U32
    flags: U32
    index: U32  # type: ignore[assignment]  # the C name; it hides tuple.index
    start: U32
    count: U32  # type: ignore[assignment]  # it hides tuple.count


DEVICE_FEATURE = Layout(
    DeviceFeature, c_name="vfio_device_feature", order=LITTLE, source=_HEADER + "vfio_device_feature"
)
FEATURE_MIGRATION = Layout(
    FeatureMigration,
    c_name="vfio_device_feature_migration",
    order=LITTLE,
    source=_HEADER + "vfio_device_feature_migration",
)
FEATURE_MIG_STATE = Layout(
    FeatureMigState,
    c_name="vfio_device_feature_mig_state",
    order=LITTLE,
    source=_HEADER + "vfio_device_feature_mig_state",
)
FEATURE_MIG_DATA_SIZE = Layout(
    FeatureMigDataSize,
    c_name="vfio_device_feature_mig_data_size",
    order=LITTLE,
    source=_HEADER + "vfio_device_feature_mig_data_size",
)
FEATURE_DMA_LOGGING_CONTROL = Layout(
    FeatureDmaLoggingControl,
    c_name="vfio_device_feature_dma_logging_control",
    order=LITTLE,
    source=_HEADER + "vfio_device_feature_dma_logging_control",
)
FEATURE_DMA_LOGGING_RANGE = Layout(
    FeatureDmaLoggingRange,
    c_name="vfio_device_feature_dma_logging_range",
    order=LITTLE,
    source=_HEADER + "vfio_device_feature_dma_logging_range",
)
FEATURE_DMA_LOGGING_REPORT = Layout(
    FeatureDmaLoggingReport,
    c_name="vfio_device_feature_dma_logging_report",
    order=LITTLE,
    source=_HEADER + "vfio_device_feature_dma_logging_report",
)
PRECOPY_INFO = Layout(
    PrecopyInfo, c_name="vfio_precopy_info", order=LITTLE, source=_HEADER + "vfio_precopy_info"
)
DEVICE_INFO = Layout(DeviceInfo, c_name="vfio_device_info", order=LITTLE, source=_HEADER + "vfio_device_info")
DEVICE_INFO_SIZE_MIN = DEVICE_INFO.place("cap_offset").offset  # older callers know no capabilities
REGION_INFO = Layout(RegionInfo, c_name="vfio_region_info", order=LITTLE, source=_HEADER + "vfio_region_info")
IRQ_INFO = Layout(IrqInfo, c_name="vfio_irq_info", order=LITTLE, source=_HEADER + "vfio_irq_info")
IRQ_SET = Layout(IrqSet, c_name="vfio_irq_set", order=LITTLE, source=_HEADER + "vfio_irq_set")

LAYOUTS = (
    DEVICE_FEATURE,
    FEATURE_MIGRATION,
    FEATURE_MIG_STATE,
    FEATURE_MIG_DATA_SIZE,
    FEATURE_DMA_LOGGING_CONTROL,
    FEATURE_DMA_LOGGING_RANGE,
    FEATURE_DMA_LOGGING_REPORT,
    PRECOPY_INFO,
    DEVICE_INFO,
    REGION_INFO,
    IRQ_INFO,
    IRQ_SET,
)
