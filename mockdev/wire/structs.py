# SPDX-License-Identifier: GPL-2.0-or-later
"""Every fixed-size struct and every number of QEMU's migration wire format.

All integers are big-endian and unaligned. What is not of fixed size (strings with a length byte,
lists) is put together in `mainstream` and `writer` from these.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, NamedTuple

from mockdev.wire.layout import BIG, U8, U16, U32, U64, Layout, Spec

# --- multifd connections -------------------------------------------------------------------------

MULTIFD_MAGIC = 0x11223344
MULTIFD_VERSION = 1
MULTIFD_PACKET_BYTES = 512 * 1024  # page data of one RAM packet: page_count = this / page size
PAGE_BYTES = 4096
CHANNELS_MAX = 255


class MultifdFlag(IntEnum):  # an IntFlag's & and | take thirty times as long, for every packet
    """Bits of `flags` in a multifd packet. Source: QEMU migration/multifd.h."""

    SYNC = 0x01
    ZLIB = 0x02
    ZSTD = 0x04
    QPL = 0x08  # 9.1
    UADK = 0x10  # 9.1
    QATZIP = 0x20  # 9.2
    DEVICE_STATE = 0x40  # 10.0


COMPRESSION_MASK = 0x3E
MULTIFD_FLAGS_KNOWN = 0x7F


class MultifdInit(NamedTuple):
    """First bytes of every multifd connection. uuid: the VM's, in textual order; id: channel number."""

    magic: U32 = MULTIFD_MAGIC
    version: U32 = MULTIFD_VERSION
    uuid: Annotated[bytes, Spec("16s")] = bytes(16)
    id: U8 = 0
    unused1: Annotated[bytes, Spec("7s")] = bytes(7)
    unused2: Annotated[bytes, Spec("32s")] = bytes(32)


class MultifdPacketHead(NamedTuple):
    """What all multifd packets begin with; the flags say how to read on."""

    magic: U32 = MULTIFD_MAGIC
    version: U32 = MULTIFD_VERSION
    flags: U32 = 0


class MultifdRam(NamedTuple):
    """A RAM or SYNC packet, up to its table of page offsets (page_count * be64, always whole)."""

    magic: U32 = MULTIFD_MAGIC
    version: U32 = MULTIFD_VERSION
    flags: U32 = 0
    pages_alloc: U32 = 0
    normal_pages: U32 = 0
    next_packet_size: U32 = 0
    packet_num: U64 = 0
    zero_pages: U32 = 0
    unused32: U32 = 0
    unused64: Annotated[bytes, Spec("24s")] = bytes(24)
    ramblock: Annotated[bytes, Spec("256s")] = bytes(256)


class MultifdDeviceState(NamedTuple):
    """A device-state packet; next_packet_size bytes follow, handed whole to the section's handler."""

    magic: U32 = MULTIFD_MAGIC
    version: U32 = MULTIFD_VERSION
    flags: U32 = MultifdFlag.DEVICE_STATE
    idstr: Annotated[bytes, Spec("256s")] = bytes(256)
    instance_id: U32 = 0
    next_packet_size: U32 = 0


class VfioDeviceState(NamedTuple):
    """How VFIO begins what a device-state packet carries. idx counts a device's buffers from 0."""

    version: U32 = 0
    idx: U32 = 0
    flags: U32 = 0


MULTIFD_INIT = Layout(
    MultifdInit, c_name="MultiFDInit_t", order=BIG, source="QEMU migration/multifd.c: MultiFDInit_t"
)
MULTIFD_HEAD = Layout(
    MultifdPacketHead,
    c_name="MultiFDPacketHdr_t",
    order=BIG,
    source="QEMU migration/multifd.h: MultiFDPacketHdr_t",
)
MULTIFD_RAM = Layout(
    MultifdRam, c_name="MultiFDPacket_t", order=BIG, source="QEMU migration/multifd.h: MultiFDPacket_t"
)
MULTIFD_DEVICE_STATE = Layout(
    MultifdDeviceState,
    c_name="MultiFDPacketDeviceState_t",
    order=BIG,
    source="QEMU migration/multifd.h: MultiFDPacketDeviceState_t",
)
VFIO_DEVICE_STATE = Layout(
    VfioDeviceState,
    c_name="VFIODeviceStatePacket",
    order=BIG,
    source="QEMU hw/vfio/migration-multifd.c: VFIODeviceStatePacket",
)

VFIO_DEVICE_STATE_VERSION = 0
VFIO_DEVICE_STATE_CONFIG = 0x1  # VFIO_DEVICE_STATE_CONFIG_STATE
VFIO_IDX_MAX = 0xFFFFFFFE  # 0xffffffff is refused by QEMU
VFIO_BUFFER_BYTES_MAX = 1 << 20  # what one read of the migration fd asks for, at most


# --- VFIO tags, on the main channel and around a config buffer -------------------------------------


class VfioTag(IntEnum):
    """be64 marks in VFIO payloads. Source: QEMU hw/vfio/migration.c: VFIO_MIG_FLAG_*."""

    END_OF_STATE = 0xFFFFFFFFEF100001
    DEV_CONFIG_STATE = 0xFFFFFFFFEF100002
    DEV_SETUP_STATE = 0xFFFFFFFFEF100003
    DEV_DATA_STATE = 0xFFFFFFFFEF100004
    DEV_INIT_DATA_SENT = 0xFFFFFFFFEF100005
    DEV_CONFIG_LOAD_READY = 0xFFFFFFFFEF100006  # 10.1


# --- the main channel ------------------------------------------------------------------------------

STREAM_MAGIC = 0x5145564D  # "QEVM"
STREAM_VERSION = 3


class Tag(IntEnum):
    """The byte that begins each item. Source: QEMU migration/savevm.h: QEMU_VM_*."""

    EOF = 0x00
    SECTION_START = 0x01
    SECTION_PART = 0x02
    SECTION_END = 0x03
    SECTION_FULL = 0x04
    SUBSECTION = 0x05
    VMDESCRIPTION = 0x06
    CONFIGURATION = 0x07
    COMMAND = 0x08
    SECTION_FOOTER = 0x7E


class Command(IntEnum):
    """be16 after Tag.COMMAND. Source: QEMU migration/savevm.c: enum qemu_vm_cmd."""

    OPEN_RETURN_PATH = 1
    PING = 2
    POSTCOPY_ADVISE = 3
    POSTCOPY_LISTEN = 4
    POSTCOPY_RUN = 5
    POSTCOPY_RAM_DISCARD = 6
    PACKAGED = 7
    ENABLE_COLO = 8
    POSTCOPY_RESUME = 9
    RECV_BITMAP = 10
    SWITCHOVER_START = 11  # 10.0


# Lengths of command data; None: any. Source: QEMU migration/savevm.c: mig_cmd_args.
COMMAND_LENGTHS: dict[int, tuple[int, ...] | None] = {
    Command.OPEN_RETURN_PATH: (0,),
    Command.PING: (4,),
    Command.POSTCOPY_ADVISE: (0, 16),
    Command.POSTCOPY_LISTEN: (0,),
    Command.POSTCOPY_RUN: (0,),
    Command.POSTCOPY_RAM_DISCARD: None,
    Command.PACKAGED: (4,),
    Command.ENABLE_COLO: (0,),
    Command.POSTCOPY_RESUME: (0,),
    Command.RECV_BITMAP: None,
    Command.SWITCHOVER_START: (0,),
}


class RamFlag(IntEnum):
    """Bits, the low ones of a RAM record's first be64. Source: QEMU migration/ram.h: RAM_SAVE_FLAG_*."""

    FULL = 0x001
    ZERO = 0x002
    MEM_SIZE = 0x004
    PAGE = 0x008
    EOS = 0x010
    CONTINUE = 0x020
    XBZRLE = 0x040
    HOOK = 0x080
    COMPRESS_PAGE = 0x100
    MULTIFD_FLUSH = 0x200


class ReturnPath(IntEnum):
    """be16 type of a return-path message. Source: QEMU migration/migration.h: mig_rp_message_type."""

    SHUT = 1
    PONG = 2
    REQ_PAGES_ID = 3
    REQ_PAGES = 4
    RECV_BITMAP = 5
    RESUME_ACK = 6
    SWITCHOVER_ACK = 7


RETURN_PATH_PAYLOAD_MAX = 512  # QEMU's source_return_path_thread reads into a buffer of this size


class StreamHeader(NamedTuple):
    """The first eight bytes of the main channel."""

    magic: U32 = STREAM_MAGIC
    version: U32 = STREAM_VERSION


class TypeLength(NamedTuple):
    """Head of a return-path message, and of a command after its tag byte."""

    type: U16
    length: U16


class SectionRef(NamedTuple):
    """PART and END after their tag byte; also a footer, whose tag is 0x7e."""

    section_id: U32


class SectionInstance(NamedTuple):
    """What follows the idstr of START and FULL."""

    instance_id: U32
    version_id: U32


class Number64(NamedTuple):
    """One be64: a RAM record's head, a VFIO tag, a length."""

    value: U64


STREAM_HEADER = Layout(
    StreamHeader, c_name="", order=BIG, source="QEMU migration/savevm.c: qemu_savevm_state_header"
)
TYPE_LENGTH = Layout(
    TypeLength,
    c_name="",
    order=BIG,
    source="QEMU qemu_savevm_command_send (savevm.c), migrate_send_rp_message (migration.c)",
)
SECTION_REF = Layout(SectionRef, c_name="", order=BIG, source="QEMU migration/savevm.c: save_section_header")
SECTION_INSTANCE = Layout(
    SectionInstance, c_name="", order=BIG, source="QEMU migration/savevm.c: save_section_header"
)
NUMBER64 = Layout(Number64, c_name="", order=BIG, source="QEMU migration/qemu-file.c: qemu_put_be64")

# Every layout of the wire, for readers that want them all (dissector, documentation, mutators).
LAYOUTS = (
    MULTIFD_INIT,
    MULTIFD_HEAD,
    MULTIFD_RAM,
    MULTIFD_DEVICE_STATE,
    VFIO_DEVICE_STATE,
    STREAM_HEADER,
    TYPE_LENGTH,
    SECTION_REF,
    SECTION_INSTANCE,
    NUMBER64,
)
