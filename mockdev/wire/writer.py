# SPDX-License-Identifier: GPL-2.0-or-later
"""Bytes of both kinds of channel, as a source writes them.

Functions return the head of what they write; payloads follow it on the wire as they are, so nobody
copies them. Source: QEMU migration/savevm.c, migration/multifd.c, hw/vfio/migration-multifd.c.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from functools import lru_cache

from mockdev.errors import LocalProtocolError
from mockdev.wire.structs import (
    MULTIFD_DEVICE_STATE,
    MULTIFD_INIT,
    MULTIFD_PACKET_BYTES,
    MULTIFD_RAM,
    NUMBER64,
    PAGE_BYTES,
    SECTION_INSTANCE,
    SECTION_REF,
    STREAM_HEADER,
    TYPE_LENGTH,
    VFIO_DEVICE_STATE,
    VFIO_DEVICE_STATE_CONFIG,
    Command,
    MultifdDeviceState,
    MultifdFlag,
    MultifdInit,
    MultifdRam,
    Number64,
    RamFlag,
    ReturnPath,
    SectionInstance,
    SectionRef,
    StreamHeader,
    Tag,
    TypeLength,
    VfioDeviceState,
    VfioTag,
)

# --- multifd ---------------------------------------------------------------------------------------


def init_packet(channel: int, uuid: bytes) -> bytes:
    """The 64 bytes that open multifd connection number `channel` of the VM `uuid` (16 bytes)."""
    return MULTIFD_INIT.pack(MultifdInit(uuid=uuid, id=channel))


def sync_packet(packet_num: int, page_size: int = PAGE_BYTES) -> bytes:
    """A SYNC packet, whole."""
    head = MULTIFD_RAM.pack(MultifdRam(flags=MultifdFlag.SYNC, packet_num=packet_num))
    return head + bytes(8 * (MULTIFD_PACKET_BYTES // page_size))


def ram_packet(
    packet_num: int, block: str, normal: Sequence[int], zero: Sequence[int], page_size: int = PAGE_BYTES
) -> bytes:
    """The head of a RAM packet, uncompressed; the `normal` pages follow it in order, the `zero` ones do not.

    normal, zero: byte offsets in `block`, together 1..page_count of them.
    """
    page_count = MULTIFD_PACKET_BYTES // page_size
    unused = page_count - len(normal) - len(zero)
    if not 0 <= unused < page_count:
        raise LocalProtocolError(f"a RAM packet of {len(normal) + len(zero)} pages, not 1 to {page_count}")
    head = MULTIFD_RAM.pack(
        MultifdRam(
            pages_alloc=page_count,
            normal_pages=len(normal),
            next_packet_size=len(normal) * page_size,
            packet_num=packet_num,
            zero_pages=len(zero),
            ramblock=_padded(block),
        )
    )
    return head + struct.pack(f">{page_count}Q", *normal, *zero, *(0,) * unused)


def device_state_packet(idstr: str, instance_id: int, idx: int, size: int, *, config: bool = False) -> bytes:
    """The heads of a device-state packet that carries `size` bytes of a VFIO device's buffer `idx`."""
    flags = VFIO_DEVICE_STATE_CONFIG if config else 0
    inner = VFIO_DEVICE_STATE.pack(VfioDeviceState(idx=idx, flags=flags))
    return _device_state_head(idstr, instance_id, len(inner) + size) + inner


@lru_cache(maxsize=64)  # most buffers of a device have one size
def _device_state_head(idstr: str, instance_id: int, size: int) -> bytes:
    return MULTIFD_DEVICE_STATE.pack(
        MultifdDeviceState(idstr=_padded(idstr), instance_id=instance_id, next_packet_size=size)
    )


@lru_cache(maxsize=64)
def _padded(name: str) -> bytes:
    raw = name.encode("ascii")
    if len(raw) > 255:
        raise LocalProtocolError(f"a name of {len(raw)} bytes does not fit its field of 255: {name[:40]!r}")
    return raw.ljust(256, b"\0")


# --- main channel ----------------------------------------------------------------------------------


def number64(value: int) -> bytes:
    """One be64."""
    return NUMBER64.pack(Number64(value))


def cstr8(text: str) -> bytes:
    """A string with a length byte, at most 255 bytes."""
    raw = text.encode("ascii")
    if len(raw) > 255:
        raise LocalProtocolError(f"a string of {len(raw)} bytes does not fit a length byte: {text[:40]!r}")
    return bytes((len(raw),)) + raw


def stream_header() -> bytes:
    """Magic and version."""
    return STREAM_HEADER.pack(StreamHeader())


def configuration(machine: str, *, capabilities: Sequence[str] = (), uuid: bytes | None = None) -> bytes:
    """The configuration section.

    capabilities: those that both ends must have on, x-ignore-shared for one; uuid: sent when validate-uuid
    is on.
    """
    name = machine.encode("ascii")
    out = bytes((Tag.CONFIGURATION,)) + struct.pack(">I", len(name)) + name
    if capabilities:
        names = b"".join(map(cstr8, capabilities))
        out += _subsection("configuration/capabilities") + struct.pack(">I", len(capabilities)) + names
    if uuid is not None:
        out += _subsection("configuration/uuid") + uuid
    return out


def _subsection(name: str) -> bytes:
    return bytes((Tag.SUBSECTION,)) + cstr8(name) + struct.pack(">I", 1)


def command(number: Command, data: bytes = b"") -> bytes:
    """A command with its data."""
    return bytes((Tag.COMMAND,)) + TYPE_LENGTH.pack(TypeLength(number, len(data))) + data


def ping(value: int) -> bytes:
    """PING, which the target answers with PONG and the same value."""
    return command(Command.PING, struct.pack(">I", value))


def section_head(
    tag: Tag, section_id: int, idstr: str = "", instance_id: int = 0, version_id: int = 0
) -> bytes:
    """The head of a section; START and FULL need the idstr, PART and END do not take it."""
    head = bytes((tag,)) + SECTION_REF.pack(SectionRef(section_id))
    if tag in (Tag.SECTION_START, Tag.SECTION_FULL):
        head += cstr8(idstr) + SECTION_INSTANCE.pack(SectionInstance(instance_id, version_id))
    return head


def section_footer(section_id: int) -> bytes:
    """What closes a section."""
    return bytes((Tag.SECTION_FOOTER,)) + SECTION_REF.pack(SectionRef(section_id))


def vfio_tag(tag: VfioTag) -> bytes:
    """One VFIO mark."""
    return number64(tag)


def vfio_data(size: int) -> bytes:
    """The head of a block of `size` bytes of device state on the main channel."""
    return number64(VfioTag.DEV_DATA_STATE) + number64(size)


def ram_blocks(blocks: Sequence[tuple[str, int]], addresses: Sequence[int] = ()) -> bytes:
    """MEM_SIZE with the list of RAM blocks (name, bytes).

    addresses: guest-physical, one per block, with capability x-ignore-shared; else none.
    """
    out = number64(sum(size for _, size in blocks) | RamFlag.MEM_SIZE)
    for number, (name, size) in enumerate(blocks):
        out += cstr8(name) + number64(size) + (number64(addresses[number]) if addresses else b"")
    return out


def ram_mark(flag: RamFlag) -> bytes:
    """EOS or MULTIFD_FLUSH."""
    return number64(flag)


def ram_page(flag: RamFlag, offset: int, block: str | None) -> bytes:
    """The head of a PAGE or ZERO record (ZERO's fill byte included); block None: the same as before."""
    head = number64(offset | flag | (RamFlag.CONTINUE if block is None else 0))
    if block is not None:
        head += cstr8(block)
    return head + b"\0" if flag == RamFlag.ZERO else head


def globalstate(runstate: str) -> bytes:
    """The payload of the section "globalstate", version 1. Source: QEMU migration/global_state.c."""
    raw = runstate.encode("ascii")
    return struct.pack(">I32sBB66s", len(raw) + 1, raw, 0, 0, b"")


def globalstate_description() -> dict[str, object]:
    """How `globalstate` stands in the VM description."""
    fields = (
        ("size", "uint32", 4),
        ("runstate", "buffer", 32),
        ("has_vm_was_suspended", "uint8", 1),
        ("vm_was_suspended", "uint8", 1),
        ("unused", "buffer", 66),
    )
    return {
        "name": "globalstate",
        "instance_id": 0,
        "vmsd_name": "globalstate",
        "version": 1,
        "fields": [{"name": n, "type": t, "size": s} for n, t, s in fields],
    }


def opaque_description(idstr: str, instance_id: int, size: int) -> dict[str, object]:
    """How a FULL section with an undescribed payload of `size` bytes stands in the VM description."""
    return {
        "name": idstr,
        "instance_id": instance_id,
        "size": size,
        "fields": [{"name": "data", "size": size, "type": "buffer"}],
    }


def end_of_stream(devices: Sequence[dict[str, object]], page_size: int = PAGE_BYTES) -> bytes:
    """The end mark and the VM description; devices: one entry per FULL section, in their order."""
    return described_end({"configuration": {}, "page_size": page_size, "devices": list(devices)})


def described_end(description: dict[str, object]) -> bytes:
    """The end mark and this VM description."""
    text = json.dumps(description).encode()
    return bytes((Tag.EOF, Tag.VMDESCRIPTION)) + struct.pack(">I", len(text)) + text


def return_path_message(kind: ReturnPath, data: bytes = b"") -> bytes:
    """A message from target to source."""
    return TYPE_LENGTH.pack(TypeLength(kind, len(data))) + data


def shut(value: int) -> bytes:
    """The target's last word: 0 when the VM was loaded whole."""
    return return_path_message(ReturnPath.SHUT, struct.pack(">I", value))


def pong(value: bytes) -> bytes:
    """The answer to a PING of four bytes."""
    return return_path_message(ReturnPath.PONG, value)
