# SPDX-License-Identifier: GPL-2.0-or-later
"""The syntax of the main channel, source to target, from its magic to its last byte.

FULL sections (and iterables that we have no grammar for) do not say how long they are. Their end is
found as the first footer with the section's own id that is followed by something an item may begin
with; the description at the end of the stream is then an independent check of every length.

Source: QEMU migration/savevm.c: qemu_loadvm_state, qemu_loadvm_state_main; migration/ram.c:
ram_load_precopy; hw/vfio/migration.c: vfio_load_state.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Generator
from typing import Any, NamedTuple

from mockdev.errors import RemoteProtocolError
from mockdev.wire.frames import (
    CommandItem,
    ConfigurationItem,
    DescriptionItem,
    EofItem,
    FooterItem,
    Frame,
    HeaderItem,
    OpaqueItem,
    Payload,
    RamBlocksItem,
    RamRecordItem,
    SectionItem,
    Syntax,
    TrailingItem,
    VfioItem,
    Want,
)
from mockdev.wire.structs import (
    NUMBER64,
    PAGE_BYTES,
    SECTION_INSTANCE,
    SECTION_REF,
    STREAM_HEADER,
    STREAM_MAGIC,
    STREAM_VERSION,
    TYPE_LENGTH,
    RamFlag,
    Tag,
    VfioTag,
)

OPAQUE_BYTES_MAX = 256 << 20  # longest payload of unknown length that is searched for its footer
MACHINE_NAME_MAX = 1024
DESCRIPTION_BYTES_MAX = 64 << 20
RAM_BLOCKS_MAX = 4096

_TAG_OR_END = Want(1, "item tag", may_end=True)
_PEEK_TAG = Want(1, "item tag", peek=True)
_RAM_HEAD = Want(8, "RAM record")
_SECTION_ID = Want(SECTION_REF.size, "section id")
_FOOTER = Want(1 + SECTION_REF.size, "section footer")
_VFIO_TAG = Want(NUMBER64.size, "VFIO tag")
_BE32 = struct.Struct(">I")
_PAGE_RECORDS = RamFlag.ZERO | RamFlag.PAGE | RamFlag.XBZRLE
_NOT_CONTINUE = ~RamFlag.CONTINUE
_RAM_ENDS: dict[int, bool] = {RamFlag.EOS: True, RamFlag.MULTIFD_FLUSH: False}
# By names of their own: to look up a member of an enumeration takes longer than to compare it.
_EOF, _COMMAND, _END = Tag.EOF, Tag.COMMAND, Tag.SECTION_FOOTER
_FIRST, _FULL = Tag.SECTION_START, Tag.SECTION_FULL
_SECTION_WITH_NAME = (_FIRST, _FULL)
_VFIO_TAGS = frozenset(VfioTag)
_DATA, _CONFIG = VfioTag.DEV_DATA_STATE, VfioTag.DEV_CONFIG_STATE
_MORE_FOLLOWS = (VfioTag.DEV_SETUP_STATE, _DATA)
_END_OF_STATE = VfioTag.END_OF_STATE.to_bytes(8, "big")

# What may follow a section: EOF with or without its description, a section, a command.
_NEXT = re.compile(
    rb"\x00(?:\x06[\x00-\xff]{4}[{]|$)"
    rb"|[\x01\x04][\x00-\xff]{4}[\x01-\xff][ -~]"
    rb"|[\x02\x03][\x00-\xff]{4}"
    rb"|\x08\x00[\x00-\x0f][\x00-\xff]{2}"
)
_NEXT_BYTES = 8  # enough for any alternative of _NEXT to decide
# Without footers only a head that can be nothing else counts as the end of a payload.
_NEXT_WITHOUT_FOOTER = re.compile(
    rb"\x00\x06[\x00-\xff]{4}[{]\""
    rb"|\x04\x00\x00[\x00-\xff]{2}[\x03-\x3f][ -~]{3,63}\x00\x00\x00[\x00-\x0f]\x00\x00"
)

Steps = Generator[Want | Payload | Frame, bytes | memoryview | None, Any]


class Bound(NamedTuple):
    """What a section id stands for, as its START or FULL said."""

    idstr: str
    instance_id: int
    version_id: int


def is_vfio(idstr: str) -> bool:
    """Whether a section belongs to a VFIO device ("0000:00:02.0/vfio", or "vfio" without a path)."""
    return idstr == "vfio" or idstr.endswith("/vfio")


def main_channel(page_size: int = PAGE_BYTES, opaque_bytes_max: int = OPAQUE_BYTES_MAX) -> Syntax:
    """Read the main channel from source to target, header first.

    opaque_bytes_max: how far the end of a payload of unknown length is searched for.
    """
    return _MainChannel(page_size, opaque_bytes_max).run()


class _MainChannel:
    def __init__(self, page_size: int, opaque_bytes_max: int) -> None:
        self.page_size = page_size
        self.opaque_bytes_max = opaque_bytes_max
        self.at = 0
        self.sections: dict[int, Bound] = {}
        self.block = ""
        self.capabilities: tuple[str, ...] = ()
        self.footers: bool | None = None  # unknown until the first section ends

    # --- reading -----------------------------------------------------------------------------------

    def take(self, size: int, what: str) -> Steps:
        raw = yield Want(size, what)
        self.at += size
        return raw

    def number(self, what: str) -> Steps:
        raw = yield Want(8, what)
        assert raw is not None
        self.at += 8
        return int.from_bytes(raw, "big")

    def string(self, what: str) -> Steps:
        """A string with a length byte. Bytes outside ASCII are shown escaped."""
        length = (yield from self.take(1, what))[0]
        if not length:
            return ""
        raw = yield from self.take(length, what)
        return bytes(raw).decode("ascii", "backslashreplace")

    def fail(self, message: str, field: str, offset: int | None = None) -> RemoteProtocolError:
        at = self.at if offset is None else offset
        return RemoteProtocolError(message, channel="main", offset=at, field=field)

    # --- grammar -----------------------------------------------------------------------------------

    def run(self) -> Syntax:
        start = yield Want(STREAM_HEADER.size, "stream header", may_end=True)
        if not start:
            return
        header = STREAM_HEADER.unpack(bytes(start))
        if header.magic != STREAM_MAGIC:
            raise self.fail(f"begins with {header.magic:#010x} instead of {STREAM_MAGIC:#x}", "magic")
        if header.version != STREAM_VERSION:
            raise self.fail(f"version {header.version} instead of {STREAM_VERSION}", "version", 4)
        self.at = STREAM_HEADER.size
        yield HeaderItem(0, STREAM_HEADER.size, header)
        peeked = yield _PEEK_TAG
        if peeked and peeked[0] == Tag.CONFIGURATION:
            yield from self.configuration()
        while True:
            raw = yield _TAG_OR_END
            if not raw:
                return
            offset = self.at
            self.at += 1
            tag = raw[0]
            if tag == _EOF:
                yield EofItem(offset, 1)
                break
            if tag == _COMMAND:
                yield from self.command(offset)
            elif _FIRST <= tag <= _FULL:
                yield from self.section(offset, tag)
            else:
                raise self.fail(f"no item begins with the byte {tag:#04x}", "tag", offset)
        yield from self.description()
        yield from self.trailing()

    def configuration(self) -> Steps:
        offset = self.at
        raw = yield from self.take(5, "configuration length")
        (length,) = _BE32.unpack_from(raw, 1)
        if length > MACHINE_NAME_MAX:
            raise self.fail(f"machine type name of {length} bytes", "configuration name_len", offset + 1)
        machine = b""
        if length:
            machine = yield from self.take(length, "machine type name")
        subsections: list[tuple[str, int, object]] = []
        while True:
            peeked = yield _PEEK_TAG
            if not peeked or peeked[0] != Tag.SUBSECTION:
                break
            subsections.append((yield from self.configuration_subsection()))
        name = bytes(machine).decode("ascii", "backslashreplace")
        yield ConfigurationItem(offset, self.at - offset, name, tuple(subsections))

    def configuration_subsection(self) -> Steps:
        start = self.at
        yield from self.take(1, "subsection tag")
        name = yield from self.string("subsection name")
        (version,) = _BE32.unpack((yield from self.take(4, "subsection version")))
        value: object
        if name == "configuration/capabilities":
            (count,) = _BE32.unpack((yield from self.take(4, "capability count")))
            if count > 255:
                raise self.fail(f"{count} capabilities", "caps_count", start)
            names = []
            for _ in range(count):
                names.append((yield from self.string("capability")))
            value = self.capabilities = tuple(names)
        elif name == "configuration/uuid":
            value = bytes((yield from self.take(16, "uuid")))
        elif name == "configuration/target-page-bits":
            (value,) = _BE32.unpack((yield from self.take(4, "page bits")))
        else:
            raise self.fail(f"unknown configuration subsection {name!r}", "configuration", start)
        return name, version, value

    def command(self, offset: int) -> Steps:
        head = TYPE_LENGTH.unpack((yield from self.take(TYPE_LENGTH.size, "command")))
        data = b""
        if head.length:
            data = yield from self.take(head.length, "command data")
        yield CommandItem(offset, self.at - offset, head.type, bytes(data))

    def section(self, offset: int, tag: int) -> Steps:
        raw = yield _SECTION_ID
        assert raw is not None
        self.at += SECTION_REF.size
        section_id = SECTION_REF.unpack(raw).section_id
        known: Bound | None
        if tag in _SECTION_WITH_NAME:
            idstr = yield from self.string("section idstr")
            instance = SECTION_INSTANCE.unpack(
                (yield from self.take(SECTION_INSTANCE.size, "section instance"))
            )
            known = self.sections[section_id] = Bound(idstr, instance.instance_id, instance.version_id)
        else:
            known = self.sections.get(section_id)
        bound = known or Bound("", 0, 0)
        yield SectionItem(offset, self.at - offset, tag, section_id, *bound, known is not None)
        start = self.at
        if bound.idstr == "ram" and tag != _FULL:
            yield from self.ram()
        elif is_vfio(bound.idstr):
            yield from self.vfio(section_id, bound)
        else:
            yield from self.opaque(section_id, bound, b"")
        yield from self.footer(section_id, tag, bound.idstr, start)

    def footer(self, section_id: int, tag: int, idstr: str, start: int) -> Steps:
        size = self.at - start
        if self.footers is None:
            peeked = yield _PEEK_TAG
            self.footers = not peeked or peeked[0] == _END
        if not self.footers:
            yield FooterItem(self.at, 0, tag, section_id, None, idstr, start, size)
            return
        offset = self.at
        raw = yield _FOOTER
        assert raw is not None
        self.at += len(raw)
        if raw[0] != _END:
            raise self.fail(f"a section ends with {raw[0]:#04x} instead of {_END:#x}", "footer", offset)
        said = SECTION_REF.unpack(raw, 1).section_id
        yield FooterItem(offset, len(raw), tag, section_id, said, idstr, start, size)

    # --- payloads ----------------------------------------------------------------------------------

    def ram(self) -> Steps:
        mask = self.page_size - 1
        while True:
            raw = yield _RAM_HEAD
            offset = self.at
            self.at += 8
            assert raw is not None
            value = int.from_bytes(raw, "big")
            flags = value & mask
            address = value & ~mask
            kind = flags & _NOT_CONTINUE
            if kind & _PAGE_RECORDS:
                yield from self.ram_page(offset, kind, flags, address)
            elif flags in _RAM_ENDS:
                yield RamRecordItem(offset, 8, flags, "", address, 0)
                if _RAM_ENDS[flags]:
                    return
            elif flags == RamFlag.MEM_SIZE:
                yield from self.ram_blocks(offset, address)
            else:
                raise self.fail(f"RAM record with unknown flags {flags:#x}", "ram flags", offset)

    def ram_page(self, offset: int, kind: int, flags: int, address: int) -> Steps:
        if not flags & RamFlag.CONTINUE:
            self.block = yield from self.string("RAM block name")
        fill = 0
        size = 0
        if kind == RamFlag.PAGE:
            size = self.page_size
        elif kind == RamFlag.ZERO:
            fill = (yield from self.take(1, "fill byte"))[0]
        elif kind == RamFlag.XBZRLE:
            head = yield from self.take(3, "XBZRLE head")
            size = int.from_bytes(head[1:], "big")
            if head[0] != 1 or size > self.page_size:
                raise self.fail(f"XBZRLE record of {size} bytes, encoding {head[0]}", "xbzrle", offset)
        else:
            raise self.fail(f"RAM record with unknown flags {flags:#x}", "ram flags", offset)
        yield RamRecordItem(offset, self.at - offset + size, flags, self.block, address, fill)
        if size:
            self.at += size
            yield Payload(size)

    def ram_blocks(self, offset: int, total: int) -> Steps:
        with_gpa = "x-ignore-shared" in self.capabilities
        blocks: list[tuple[str, int, int | None]] = []
        left = total
        while left > 0:
            name = yield from self.string("RAM block name")
            length = yield from self.number("RAM block length")
            gpa = (yield from self.number("RAM block address")) if with_gpa else None
            blocks.append((name, length, gpa))
            if length > left or len(blocks) > RAM_BLOCKS_MAX:
                raise self.fail(
                    f"the lengths of {len(blocks)} RAM blocks do not add up to {total}", "mem_size", offset
                )
            left -= length
        yield RamBlocksItem(offset, self.at - offset, total, tuple(blocks))

    def vfio(self, section_id: int, bound: Bound) -> Steps:
        while True:
            offset = self.at
            raw = yield _VFIO_TAG
            assert raw is not None
            self.at += len(raw)
            tag = int.from_bytes(raw, "big")
            size = 0
            if tag == _DATA:
                size = yield from self.number("VFIO data size")
            elif tag not in _VFIO_TAGS:
                raise self.fail(f"unknown VFIO tag {tag:#x}", "VFIO tag", offset)
            head = self.at - offset
            yield VfioItem(offset, head + size, tag, bound.idstr, bound.instance_id, size)
            if size:
                self.at += size
                yield Payload(size)
            if tag == _CONFIG:
                yield from self.opaque(section_id, bound, _END_OF_STATE)
            elif tag not in _MORE_FOLLOWS:
                return

    def opaque(self, section_id: int, bound: Bound, before_footer: bytes) -> Steps:
        """A payload whose length the stream does not say; `before_footer` ends it but is not part of it."""
        start = self.at
        seen = b""
        find = 0
        size: int | None = None
        while size is None:
            more: bytes | memoryview | None = yield Want(len(seen) + 1, f"section {bound.idstr!r}", peek=True)
            ended = more is None or len(more) <= len(seen)
            seen = bytes(more or b"")
            size, find = self._payload_end(seen, find, section_id, before_footer, ended)
            if size is None and ended:
                yield Want(len(seen) + 1, f"section {bound.idstr!r}")  # says where the stream was cut
            if size is None and len(seen) > self.opaque_bytes_max:
                raise self.fail(
                    f"no footer of section {bound.idstr!r} within {self.opaque_bytes_max} bytes",
                    "footer",
                    start,
                )
        yield OpaqueItem(start, size, bound.idstr, bound.instance_id)
        if size:
            self.at += size
            yield Payload(size)

    def _payload_end(
        self, seen: bytes, find: int, section_id: int, before: bytes, ended: bool
    ) -> tuple[int | None, int]:
        """Size of the payload at the head of `seen` if it can be told yet, and where to search on."""
        if self.footers is False:
            match = _NEXT_WITHOUT_FOOTER.search(seen, find)
            if match:
                return match.start() - len(before), match.start()
            return None, max(0, len(seen) - 80)
        mark = before + bytes((Tag.SECTION_FOOTER,)) + _BE32.pack(section_id)
        while True:
            found = seen.find(mark, find)
            if found < 0:
                return None, max(find, len(seen) - len(mark) + 1)
            after = found + len(mark)
            if len(seen) - after < _NEXT_BYTES and not ended:
                return None, found
            if after == len(seen) or _NEXT.match(seen, after):
                return found, found
            find = found + 1

    # --- end ---------------------------------------------------------------------------------------

    def description(self) -> Steps:
        raw = yield Want(1, "VM description tag", may_end=True)
        if not raw:
            return
        offset = self.at
        self.at += 1
        if raw[0] != Tag.VMDESCRIPTION:
            raise self.fail(
                f"after the end mark comes {raw[0]:#04x} instead of a VM description", "tag", offset
            )
        (length,) = _BE32.unpack((yield from self.take(4, "VM description length")))
        if length > DESCRIPTION_BYTES_MAX:
            raise self.fail(f"VM description of {length} bytes", "vmdesc_len", offset + 1)
        json = b""
        if length:
            json = yield from self.take(length, "VM description")
        yield DescriptionItem(offset, self.at - offset, bytes(json))

    def trailing(self) -> Steps:
        while True:
            raw = yield Want(1, "end of stream", may_end=True, peek=True)
            if not raw:
                return
            size = len(raw)
            yield TrailingItem(self.at, size)
            self.at += size
            yield Payload(size)
