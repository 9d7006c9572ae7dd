# SPDX-License-Identifier: GPL-2.0-or-later
"""What canaries change in the good migration, in words of the wire and of the journals."""

from __future__ import annotations

import struct
from collections.abc import Callable

from mockdev.journal import Image, Loaded, Received, Saved, Sent
from mockdev.wire import writer
from mockdev.wire.structs import (
    MULTIFD_DEVICE_STATE,
    MULTIFD_RAM,
    RamFlag,
    Tag,
    VfioTag,
)
from tests.canaries.script import (
    DEVICES,
    MAIN,
    Script,
    packet,
)

Edit = Callable[[Script], None]
END = writer.vfio_tag(VfioTag.END_OF_STATE)
EOS = writer.ram_mark(RamFlag.EOS)
FLUSH = writer.ram_mark(RamFlag.MULTIFD_FLUSH)


def be32(value: int) -> bytes:
    """Four bytes."""
    return struct.pack(">I", value)


def section(tag: Tag, number: int, *payload: bytes, name: str = "", version: int = 1) -> bytes:
    """A whole section."""
    head = writer.section_head(tag, number, name, 0, version)
    return head + b"".join(payload) + writer.section_footer(number)


def ram_field(s: Script, label: str, name: str, data: bytes) -> None:
    """Overwrite a field of a RAM packet's head."""
    s.patch(label, MULTIFD_RAM.place(name).offset, data)


def device_field(s: Script, label: str, name: str, data: bytes) -> None:
    """Overwrite a field of a device-state packet's head."""
    s.patch(label, MULTIFD_DEVICE_STATE.place(name).offset, data)


def vfio_field(s: Script, label: str, number: int, value: int) -> None:
    """Overwrite the version (0), idx (1) or flags (2) of a packet's VFIO header."""
    s.patch(label, MULTIFD_DEVICE_STATE.size + 4 * number, be32(value))


def resize(s: Script, device: int, idx: int, size: int) -> None:
    """Give a buffer another size, in packet and journals alike."""
    s.find(f"vf{device}.{idx}").data = packet(device, idx, bytes(size))
    for role, kind in (("source", Saved), ("source", Sent), ("target", Received), ("target", Loaded)):
        s.edit(role, kind, where={"device": DEVICES[device], "idx": idx}, size=size)
    without_image(s)


def without_image(s: Script) -> None:
    """What the journals say of whole images does not fit the edit."""
    for role in s.lines:
        s.lines[role] = [line for line in s.lines[role] if not isinstance(line, Image)]


def without_lines(s: Script, *kinds: type) -> None:
    """Leave out all journal lines of these kinds."""
    for role in s.lines:
        s.lines[role] = [line for line in s.lines[role] if not isinstance(line, kinds)]


def silent(s: Script) -> None:
    """Leave the journals out."""
    s.lines.clear()


def renumber(s: Script) -> None:
    """Number RAM and SYNC packets anew, in the order of their pieces."""
    labels = [p.label for p in s.pieces if p.label.startswith(("ram", "sync")) and p.where != MAIN]
    for number, label in enumerate(labels):
        ram_field(s, label, "packet_num", struct.pack(">Q", number))
