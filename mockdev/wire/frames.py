# SPDX-License-Identifier: GPL-2.0-or-later
"""What the syntaxes of this package yield: what they wait for, and what they have read.

A syntax is a generator over one direction of one connection. It yields

- `Want`: give me this many contiguous bytes (send them in);
- `Payload`: this many bytes follow that I do not look at (receive, digest or skip them, then `next`);
- anything else: a frame or item just read (take it, then `next`).

Bytes are consumed only by `Want` (unless it only peeks) and `Payload`, so a syntax runs the same under a
socket, a capture or a simulator, and nobody copies a payload on its behalf.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import NamedTuple

from mockdev.wire.structs import (
    MultifdDeviceState,
    MultifdInit,
    MultifdRam,
    StreamHeader,
    VfioDeviceState,
)


class Want(NamedTuple):
    """`size` contiguous bytes are needed to go on.

    what: the thing being read, for an error message. may_end: the stream may end here cleanly; answer
    with b"" then. peek: look without consuming; give all that is there, at least `size` bytes, fewer only
    when the stream has ended.
    """

    size: int
    what: str
    may_end: bool = False
    peek: bool = False


class Payload(NamedTuple):
    """`size` bytes follow that belong to the frame just yielded."""

    size: int


# --- multifd ---------------------------------------------------------------------------------------


class InitFrame(NamedTuple):
    """The 64 bytes that name a multifd channel. offset, size: bytes in its direction of the connection."""

    offset: int
    size: int
    head: MultifdInit


class RamFrame(NamedTuple):
    """A RAM or SYNC packet with its page data.

    normal, zero: page offsets inside the block; unused: the rest of the table as it came (should be 0).
    payload_size: bytes of page data that follow the head, as QEMU's receiver would read them.
    """

    offset: int
    size: int
    head: MultifdRam
    normal: tuple[int, ...]
    zero: tuple[int, ...]
    unused: tuple[int, ...]
    payload_size: int


class DeviceStateFrame(NamedTuple):
    """A device-state packet. vfio: None when it is too short to hold the VFIO header.

    payload_size: bytes after the VFIO header (or after the packet's head when there is none).
    """

    offset: int
    size: int
    head: MultifdDeviceState
    vfio: VfioDeviceState | None
    payload_size: int


MultifdFrame = InitFrame | RamFrame | DeviceStateFrame


# --- main channel ----------------------------------------------------------------------------------


class HeaderItem(NamedTuple):
    """Magic and version."""

    offset: int
    size: int
    header: StreamHeader


class ConfigurationItem(NamedTuple):
    """The configuration section. subsections: (name, version, value) in the order they came."""

    offset: int
    size: int
    machine: str
    subsections: tuple[tuple[str, int, object], ...]


class SectionItem(NamedTuple):
    """The head of a section. tag: Tag.SECTION_*; idstr/instance as bound by START for PART and END.

    idstr "" with bound False: a PART or END whose id no START had bound.
    """

    offset: int
    size: int
    tag: int
    section_id: int
    idstr: str
    instance_id: int
    version_id: int
    bound: bool


class FooterItem(NamedTuple):
    """End of a section. section_id: as the footer says, None when the stream has no footers.

    payload_offset, payload_size: where the section's payload lay.
    """

    offset: int
    size: int
    tag: int
    expected_id: int
    section_id: int | None
    idstr: str
    payload_offset: int
    payload_size: int


class OpaqueItem(NamedTuple):
    """A payload that is whose length the stream does not say: a FULL section's, or an unknown iterable's."""

    offset: int
    size: int
    idstr: str
    instance_id: int


class CommandItem(NamedTuple):
    """A command, its data whole."""

    offset: int
    size: int
    command: int
    data: bytes


class RamBlocksItem(NamedTuple):
    """MEM_SIZE: the list of RAM blocks. blocks: (idstr, used_length, gpa or None)."""

    offset: int
    size: int
    total: int
    blocks: tuple[tuple[str, int, int | None], ...]


class RamRecordItem(NamedTuple):
    """ZERO, PAGE, XBZRLE, EOS or MULTIFD_FLUSH. page: offset in `block`; size covers payload and head."""

    offset: int
    size: int
    flags: int
    block: str
    page: int
    fill: int


class VfioItem(NamedTuple):
    """A VFIO tag on the main channel. data_size: of DEV_DATA_STATE, the bytes that follow, else 0."""

    offset: int
    size: int
    tag: int
    idstr: str
    instance_id: int
    data_size: int


class EofItem(NamedTuple):
    """The EOF byte at top level."""

    offset: int
    size: int


class DescriptionItem(NamedTuple):
    """VMDESCRIPTION with its JSON, unparsed."""

    offset: int
    size: int
    json: bytes


class TrailingItem(NamedTuple):
    """Bytes after the end of the stream."""

    offset: int
    size: int


class ReturnPathItem(NamedTuple):
    """One message from target to source."""

    offset: int
    size: int
    type: int
    data: bytes


MainItem = (
    HeaderItem
    | ConfigurationItem
    | SectionItem
    | FooterItem
    | OpaqueItem
    | CommandItem
    | RamBlocksItem
    | RamRecordItem
    | VfioItem
    | EofItem
    | DescriptionItem
    | TrailingItem
)

Frame = MultifdFrame | MainItem | ReturnPathItem
Syntax = Generator[Want | Payload | Frame, bytes | memoryview | None, None]
