# SPDX-License-Identifier: GPL-2.0-or-later
"""What the syntaxes of this package yield: what they wait for, and what they have read.

A syntax is a generator over one direction of one connection. It yields

- `Want`: give me this many contiguous bytes (send them in);
- `Payload`: this many bytes follow that I do not look at (receive, digest or skip them, then `next`);
- anything else: a frame or item just read (take it, then `next`).

Bytes are consumed only by `Want` (unless it only peeks) and `Payload`, so a syntax runs the same under a
socket, a capture or a simulator, and nobody copies a payload on its behalf. All of them are structs of
msgspec, which are made and read several times faster than named tuples: there is one for every frame.
Those that are asked for most often are final, so that their type can be compared.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import final

import msgspec

from mockdev.wire.structs import (
    MultifdDeviceState,
    MultifdInit,
    MultifdRam,
    StreamHeader,
    VfioDeviceState,
)


class Want(msgspec.Struct, frozen=True):
    """`size` contiguous bytes are needed to go on.

    what: the thing being read, for an error message. may_end: the stream may end here cleanly; answer
    with b"" then. peek: look without consuming; give all that is there, at least `size` bytes, fewer only
    when the stream has ended.
    """

    size: int
    what: str
    may_end: bool = False
    peek: bool = False


class Payload(msgspec.Struct, frozen=True):
    """`size` bytes follow that belong to the frame just yielded."""

    size: int


# --- multifd ---------------------------------------------------------------------------------------


@final
class InitFrame(msgspec.Struct, frozen=True):
    """The 64 bytes that name a multifd channel. offset, size: bytes in its direction of the connection."""

    offset: int
    size: int
    head: MultifdInit


@final
class RamFrame(msgspec.Struct, frozen=True):
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


@final
class DeviceStateFrame(msgspec.Struct, frozen=True):
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


class HeaderItem(msgspec.Struct, frozen=True):
    """Magic and version."""

    offset: int
    size: int
    header: StreamHeader


class ConfigurationItem(msgspec.Struct, frozen=True):
    """The configuration section. subsections: (name, version, value) in the order they came."""

    offset: int
    size: int
    machine: str
    subsections: tuple[tuple[str, int, object], ...]


class SectionItem(msgspec.Struct, frozen=True):
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


class FooterItem(msgspec.Struct, frozen=True):
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


class OpaqueItem(msgspec.Struct, frozen=True):
    """A payload that is whose length the stream does not say: a FULL section's, or an unknown iterable's."""

    offset: int
    size: int
    idstr: str
    instance_id: int


class CommandItem(msgspec.Struct, frozen=True):
    """A command, its data whole."""

    offset: int
    size: int
    command: int
    data: bytes


class RamBlocksItem(msgspec.Struct, frozen=True):
    """MEM_SIZE: the list of RAM blocks. blocks: (idstr, used_length, gpa or None)."""

    offset: int
    size: int
    total: int
    blocks: tuple[tuple[str, int, int | None], ...]


class RamRecordItem(msgspec.Struct, frozen=True):
    """ZERO, PAGE, XBZRLE, EOS or MULTIFD_FLUSH. page: offset in `block`; size covers payload and head."""

    offset: int
    size: int
    flags: int
    block: str
    page: int
    fill: int


@final
class VfioItem(msgspec.Struct, frozen=True):
    """A VFIO tag on the main channel. data_size: of DEV_DATA_STATE, the bytes that follow, else 0."""

    offset: int
    size: int
    tag: int
    idstr: str
    instance_id: int
    data_size: int


class EofItem(msgspec.Struct, frozen=True):
    """The EOF byte at top level."""

    offset: int
    size: int


class DescriptionItem(msgspec.Struct, frozen=True):
    """VMDESCRIPTION with its JSON, unparsed."""

    offset: int
    size: int
    json: bytes


class TrailingItem(msgspec.Struct, frozen=True):
    """Bytes after the end of the stream."""

    offset: int
    size: int


class ReturnPathItem(msgspec.Struct, frozen=True):
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
