# SPDX-License-Identifier: GPL-2.0-or-later
"""The VM description at the end of a stream: which FULL sections there were, and how long.

Source: QEMU migration/vmstate.c: vmsd_desc_field_start, vmstate_save_vmsd; migration/savevm.c: vmstate_save.
"""

from __future__ import annotations

from typing import Any

_SUBSECTION_HEAD = 1 + 1 + 4  # tag, length byte of the name, version


def described_devices(description: Any) -> list[tuple[str, int | None]]:
    """(idstr, bytes) of every device; bytes None where it does not say. ValueError: not a description."""
    if not isinstance(description, dict) or not isinstance(description.get("devices"), list):
        raise ValueError("no list of devices")
    try:
        return [_device(entry) for entry in description["devices"]]
    except (AttributeError, TypeError) as error:
        raise ValueError(f"not a VM description: {error}") from None


def described_versions(description: Any) -> list[tuple[str, int | None]]:
    """(idstr, version) of every device; version None where it does not say. ValueError as above."""
    named = [name for name, _ in described_devices(description)]
    versions = [entry.get("version") for entry in description["devices"]]
    return [(n, v if isinstance(v, int) else None) for n, v in zip(named, versions, strict=True)]


def _device(entry: Any) -> tuple[str, int | None]:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise ValueError("a device without a name")
    if "vmsd_name" not in entry and isinstance(entry.get("size"), int):
        return entry["name"], entry["size"]
    return entry["name"], _content(entry)


def _content(entry: dict[str, Any]) -> int | None:
    total = 0
    for item in entry.get("fields") or []:
        size, count = item.get("size"), item.get("array_len", 1)
        if not isinstance(size, int) or not isinstance(count, int):
            return None
        total += size * count
    for sub in entry.get("subsections") or []:
        size = _content(sub)
        name = sub.get("vmsd_name")
        if size is None or not isinstance(name, str):
            return None
        total += _SUBSECTION_HEAD + len(name) + size
    return total
