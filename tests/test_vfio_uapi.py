# SPDX-License-Identifier: GPL-2.0-or-later
"""Numbers, sizes and places of the kernel's structs, against a table of literals."""

from __future__ import annotations

import pytest

from mockdev.vfio import uapi

PLACES = {
    "vfio_device_feature": {"argsz": 0, "flags": 4, "": 8},
    "vfio_device_feature_migration": {"flags": 0, "": 8},
    "vfio_device_feature_mig_state": {"device_state": 0, "data_fd": 4, "": 8},
    "vfio_device_feature_mig_data_size": {"stop_copy_length": 0, "": 8},
    "vfio_device_feature_dma_logging_control": {
        "page_size": 0,
        "num_ranges": 8,
        "reserved": 12,
        "ranges": 16,
        "": 24,
    },
    "vfio_irq_set": {"argsz": 0, "flags": 4, "index": 8, "start": 12, "count": 16, "": 20},
    "vfio_device_feature_dma_logging_range": {"iova": 0, "length": 8, "": 16},
    "vfio_device_feature_dma_logging_report": {
        "iova": 0,
        "length": 8,
        "page_size": 16,
        "bitmap": 24,
        "": 32,
    },
    "vfio_precopy_info": {"argsz": 0, "flags": 4, "initial_bytes": 8, "dirty_bytes": 16, "": 24},
    "vfio_device_info": {
        "argsz": 0,
        "flags": 4,
        "num_regions": 8,
        "num_irqs": 12,
        "cap_offset": 16,
        "pad": 20,
        "": 24,
    },
    "vfio_region_info": {
        "argsz": 0,
        "flags": 4,
        "index": 8,
        "cap_offset": 12,
        "size": 16,
        "offset": 24,
        "": 32,
    },
    "vfio_irq_info": {"argsz": 0, "flags": 4, "index": 8, "count": 12, "": 16},
}


def test_every_struct_has_its_places() -> None:
    found = {
        layout.c_name: {**{p.name: p.offset for p in layout.fields}, "": layout.size}
        for layout in uapi.LAYOUTS
    }
    assert found == PLACES


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("DEVICE_GET_INFO", 7),
        ("DEVICE_GET_REGION_INFO", 8),
        ("DEVICE_GET_IRQ_INFO", 9),
        ("DEVICE_SET_IRQS", 10),
        ("DEVICE_RESET", 11),
        ("DEVICE_FEATURE", 17),
        ("DEVICE_BIND_IOMMUFD", 18),
        ("MIG_GET_PRECOPY_INFO", 21),
    ],
)
def test_request_numbers(name: str, number: int) -> None:
    assert uapi.Ioctl[name] == ord(";") << 8 | 100 + number


def test_values_of_states_and_flags() -> None:
    assert [state.name for state in sorted(uapi.State)] == [
        "ERROR",
        "STOP",
        "RUNNING",
        "STOP_COPY",
        "RESUMING",
        "RUNNING_P2P",
        "PRE_COPY",
        "PRE_COPY_P2P",
    ]
    assert (uapi.FEATURE_GET, uapi.FEATURE_SET, uapi.FEATURE_PROBE) == (1 << 16, 1 << 17, 1 << 18)
    assert uapi.REGION_COUNT == 9
    assert uapi.IRQ_COUNT == 5
