# SPDX-License-Identifier: GPL-2.0-or-later
"""The words of a QEMU command line that attach mock devices.

Descriptors are written {iommufd}, {vf0}, {vf1} ...; the supervisor fills the numbers in.

Source: QEMU docs/devel/vfio-iommufd.rst; hw/vfio/pci.c: vfio_pci_properties
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

IOMMUFD = "{iommufd}"
_MARKS = ("{vf", "{sysfs")
_OBJECT_ID = "vfmig-iommufd"


def device_name(number: int) -> str:
    """The name of a device by itself: vf0, vf1 ..."""
    return f"vf{number}"


def legacy_words(number: int, properties: Mapping[str, str] | None = None) -> list[str]:
    """What attaches device `number` by its group."""
    told = {
        "id": device_name(number),
        "sysfsdev": f"{{sysfs{number}}}",
        "enable-migration": "on",
        "rombar": "0",
        **(properties or {}),
    }
    return ["-device", _joined(told)]


def iommufd_words() -> list[str]:
    """What makes the iommufd that all devices use."""
    return ["-object", f"iommufd,id={_OBJECT_ID},fd={IOMMUFD}"]


def device_words(number: int, properties: Mapping[str, str] | None = None) -> list[str]:
    """What attaches device `number`. enable-migration: else QEMU asks for an IOMMU that logs writes."""
    told = {
        "id": device_name(number),
        "fd": f"{{{device_name(number)}}}",
        "iommufd": _OBJECT_ID,
        "enable-migration": "on",
        "rombar": "0",
        **(properties or {}),
    }
    return ["-device", _joined(told)]


def with_devices(command: Sequence[str], count: int, route: str = "iommufd") -> list[str]:
    """A user's command line with those of `count` devices added that it does not place itself."""
    words = list(command)
    placed = [
        any(f"{mark}{number}}}" in word for word in command for mark in _MARKS) for number in range(count)
    ]
    if route == "iommufd" and not any(IOMMUFD in word for word in command):
        words += iommufd_words()
    for number in range(count):
        if not placed[number]:
            words += device_words(number) if route == "iommufd" else legacy_words(number)
    return words


def _joined(properties: Mapping[str, str]) -> str:
    return ",".join(["vfio-pci", *(f"{name}={value}" for name, value in properties.items())])
