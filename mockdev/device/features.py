# SPDX-License-Identifier: GPL-2.0-or-later
"""The checks that DEVICE_FEATURE makes before anything is done, in the kernel's order.

Source: Linux drivers/vfio/vfio_main.c: vfio_ioctl_device_feature; include/linux/vfio.h:
vfio_check_feature
"""

from __future__ import annotations

import errno
from typing import NamedTuple

from mockdev.errors import DeviceError
from mockdev.vfio.uapi import (
    DEVICE_FEATURE,
    FEATURE_DMA_LOGGING_CONTROL,
    FEATURE_DMA_LOGGING_REPORT,
    FEATURE_GET,
    FEATURE_MASK,
    FEATURE_MIG_DATA_SIZE,
    FEATURE_MIG_STATE,
    FEATURE_MIGRATION,
    FEATURE_PROBE,
    FEATURE_SET,
    Feature,
    MigrationFlags,
)


class Rule(NamedTuple):
    """What may be done with a feature, and the bytes of its payload."""

    ops: int
    payload_bytes: int


# Features that are not here are not this device's: ENOTTY.
RULES = {
    Feature.MIGRATION: Rule(FEATURE_GET, FEATURE_MIGRATION.size),
    Feature.MIG_DEVICE_STATE: Rule(FEATURE_GET | FEATURE_SET, FEATURE_MIG_STATE.size),
    Feature.DMA_LOGGING_START: Rule(FEATURE_SET, FEATURE_DMA_LOGGING_CONTROL.size),
    Feature.DMA_LOGGING_STOP: Rule(FEATURE_SET, 0),
    Feature.DMA_LOGGING_REPORT: Rule(FEATURE_GET, FEATURE_DMA_LOGGING_REPORT.size),
    Feature.MIG_DATA_SIZE: Rule(FEATURE_GET, FEATURE_MIG_DATA_SIZE.size),
    Feature.MIG_PRECOPY_INFOV2: Rule(FEATURE_SET, 0),
}


class Asked(NamedTuple):
    """A call that passed the checks. op: FEATURE_GET, FEATURE_SET, or FEATURE_PROBE: nothing to do."""

    feature: Feature
    op: int


def check(argument: bytes, flags: MigrationFlags) -> Asked:
    """Check a whole argument of a device that reports these migration flags.

    DeviceError: EFAULT (fewer bytes there than the call reads), EINVAL, ENOTTY (not a feature of this
    device).
    """
    if len(argument) < DEVICE_FEATURE.size:
        raise DeviceError(errno.EFAULT, f"an argument of {len(argument)} bytes")
    argsz, asked = DEVICE_FEATURE.unpack(argument)
    op = asked & (FEATURE_GET | FEATURE_SET)
    probe = asked & FEATURE_PROBE
    if argsz < DEVICE_FEATURE.size:
        raise DeviceError(errno.EINVAL, f"argsz {argsz}")
    if asked & ~(FEATURE_MASK | FEATURE_GET | FEATURE_SET | FEATURE_PROBE):
        raise DeviceError(errno.EINVAL, f"unknown bits in {asked:#x}")
    if op == FEATURE_GET | FEATURE_SET and not probe:
        raise DeviceError(errno.EINVAL, "GET and SET at once")
    feature, rule = _known(asked & FEATURE_MASK, flags)
    if op & ~rule.ops:
        raise DeviceError(errno.EINVAL, f"{feature.name} cannot be done with {op:#x}")
    if probe:
        return Asked(feature, FEATURE_PROBE)
    if not op:
        raise DeviceError(errno.EINVAL, "neither GET nor SET")
    if argsz - DEVICE_FEATURE.size < rule.payload_bytes:
        raise DeviceError(errno.EINVAL, f"{feature.name} needs a payload of {rule.payload_bytes} bytes")
    if len(argument) - DEVICE_FEATURE.size < rule.payload_bytes:
        raise DeviceError(errno.EFAULT, f"{feature.name}: the payload is cut")
    return Asked(feature, op)


def _known(index: int, flags: MigrationFlags) -> tuple[Feature, Rule]:
    if index not in RULES or not flags:
        raise DeviceError(errno.ENOTTY, f"feature {index}")
    feature = Feature(index)
    if feature is Feature.MIG_PRECOPY_INFOV2 and not flags & MigrationFlags.PRE_COPY:
        raise DeviceError(errno.EINVAL, "no PRE_COPY, so no sizes of it")
    return feature, RULES[feature]
