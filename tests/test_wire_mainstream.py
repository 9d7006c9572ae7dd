# SPDX-License-Identifier: GPL-2.0-or-later
"""The syntax of the main channel and of the return path."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mockdev.errors import RemoteProtocolError
from mockdev.wire import writer
from mockdev.wire.frames import (
    CommandItem,
    ConfigurationItem,
    DescriptionItem,
    FooterItem,
    Frame,
    OpaqueItem,
    RamBlocksItem,
    RamRecordItem,
    ReturnPathItem,
    SectionItem,
    TrailingItem,
    VfioItem,
)
from mockdev.wire.mainstream import is_vfio, main_channel
from mockdev.wire.returnpath import return_path
from mockdev.wire.structs import Command, RamFlag, ReturnPath, Tag, VfioTag
from tests.drive import Cut, frames_of

VFIO = "0000:00:02.0/vfio"
BEGIN = writer.stream_header() + writer.configuration("pc-i440fx-10.0")
RAM_START = (
    writer.section_head(Tag.SECTION_START, 2, "ram", 0, 4)
    + writer.ram_blocks([("pc.ram", 0x4000), ("pc.bios", 0x1000)])
    + writer.ram_mark(RamFlag.MULTIFD_FLUSH)
    + writer.ram_mark(RamFlag.EOS)
    + writer.section_footer(2)
)


def full(section_id: int, idstr: str, payload: bytes) -> bytes:
    return (
        writer.section_head(Tag.SECTION_FULL, section_id, idstr, 0, 1)
        + payload
        + writer.section_footer(section_id)
    )


def whole(fulls: Iterable[tuple[str, bytes]] = (("globalstate", writer.globalstate("running")),)) -> bytes:
    out = BEGIN + writer.command(Command.OPEN_RETURN_PATH) + writer.ping(1) + RAM_START
    out += writer.section_head(Tag.SECTION_START, 38, VFIO, 0, 1)
    out += writer.vfio_tag(VfioTag.DEV_SETUP_STATE) + writer.vfio_tag(VfioTag.END_OF_STATE)
    out += writer.section_footer(38)
    out += writer.section_head(Tag.SECTION_PART, 38) + writer.vfio_data(10) + bytes(10)
    out += writer.vfio_tag(VfioTag.END_OF_STATE) + writer.section_footer(38)
    out += writer.command(Command.SWITCHOVER_START)
    out += writer.section_head(Tag.SECTION_END, 2)
    out += writer.ram_page(RamFlag.PAGE, 0x1000, "pc.ram") + bytes(4096)
    out += writer.ram_page(RamFlag.ZERO, 0x2000, None)
    out += writer.ram_mark(RamFlag.EOS) + writer.section_footer(2)
    described = []
    for number, (idstr, payload) in enumerate(fulls, 50):
        out += full(number, idstr, payload)
        described.append(writer.opaque_description(idstr, 0, len(payload)))
    return out + writer.end_of_stream(described)


def of_type(frames: list[Frame], kind: type[Frame]) -> list[Frame]:
    return [f for f in frames if isinstance(f, kind)]


def test_a_whole_stream() -> None:
    frames = frames_of(main_channel(), whole())
    assert [f.machine for f in frames if isinstance(f, ConfigurationItem)] == ["pc-i440fx-10.0"]
    assert [f.command for f in frames if isinstance(f, CommandItem)] == [1, 2, 11]
    assert [(f.tag, f.idstr) for f in frames if isinstance(f, SectionItem)] == [
        (1, "ram"),
        (1, VFIO),
        (2, VFIO),
        (3, "ram"),
        (4, "globalstate"),
    ]
    (blocks,) = of_type(frames, RamBlocksItem)
    assert isinstance(blocks, RamBlocksItem)
    assert blocks.blocks == (("pc.ram", 0x4000, None), ("pc.bios", 0x1000, None))
    records = [(f.flags, f.block, f.page) for f in frames if isinstance(f, RamRecordItem)]
    assert records == [
        (0x200, "", 0),
        (0x10, "", 0),
        (0x08, "pc.ram", 0x1000),
        (0x22, "pc.ram", 0x2000),
        (0x10, "", 0),
    ]
    tags = [(f.tag & 0xF, f.data_size) for f in frames if isinstance(f, VfioItem)]
    assert tags == [(3, 0), (1, 0), (4, 10), (1, 0)]
    (opaque,) = of_type(frames, OpaqueItem)
    assert opaque.size == len(writer.globalstate("running")) == 104
    (description,) = of_type(frames, DescriptionItem)
    assert isinstance(description, DescriptionItem)
    assert json.loads(description.json)["page_size"] == 4096
    assert all(f.section_id == f.expected_id for f in frames if isinstance(f, FooterItem))


@given(st.lists(st.binary(max_size=60), min_size=1, max_size=4), st.booleans())
def test_full_sections_of_any_content_are_delimited(payloads: list[bytes], traps: bool) -> None:
    # A footer's bytes inside a payload must not end it unless an item could begin after them.
    trap = writer.section_footer(50) + b"\x99" if traps else b""
    fulls = [(f"device{i}", trap + p) for i, p in enumerate(payloads)]
    frames = frames_of(main_channel(), whole(fulls))
    assert [f.size for f in frames if isinstance(f, OpaqueItem)] == [len(p) for _, p in fulls]


@given(st.integers(0, len(whole()) - 1))
def test_every_cut_is_seen(keep: int) -> None:
    stream = whole()
    try:
        frames = frames_of(main_channel(), stream[:keep])
    except Cut:
        return
    # Only between two items may a stream end without being cut; it then lacks its description.
    assert not of_type(frames, DescriptionItem)
    ends = {0} | {f.offset + f.size for f in frames}
    assert keep in ends


def test_config_state_on_the_main_channel() -> None:
    config = b"\x00\x00\x00\x02" + bytes(range(256))
    payload = writer.vfio_tag(VfioTag.DEV_CONFIG_STATE) + config + writer.vfio_tag(VfioTag.END_OF_STATE)
    frames = frames_of(
        main_channel(), whole([(VFIO, payload), ("globalstate", writer.globalstate("paused"))])
    )
    assert [f.size for f in frames if isinstance(f, OpaqueItem)] == [len(config), 104]
    assert [f.tag for f in frames if isinstance(f, VfioItem)][-2:] == [
        VfioTag.DEV_CONFIG_STATE,
        VfioTag.END_OF_STATE,
    ]


def test_a_stream_without_footers_is_read_as_far_as_it_can_be_told() -> None:
    stream = BEGIN + RAM_START[:-5]
    stream += writer.section_head(Tag.SECTION_FULL, 9, "timer", 0, 2) + bytes(24)
    stream += writer.section_head(Tag.SECTION_FULL, 10, "cpu_common", 0, 1) + bytes(8)
    stream += writer.end_of_stream([])
    frames = frames_of(main_channel(), stream)
    assert [f.size for f in frames if isinstance(f, OpaqueItem)] == [24, 8]
    assert {f.section_id for f in frames if isinstance(f, FooterItem)} == {None}


def test_trailing_bytes_are_reported() -> None:
    frames = frames_of(main_channel(), whole() + b"more")
    assert isinstance(frames[-1], TrailingItem)
    assert frames[-1].size == 4


@pytest.mark.parametrize(
    ("stream", "field", "words"),
    [
        (b"QEVX" + whole()[4:], "magic", "begins with"),
        (whole()[:4] + b"\0\0\0\2" + whole()[8:], "version", "version 2"),
        (BEGIN + b"\x99", "tag", "0x99"),
        (
            BEGIN + writer.section_head(Tag.SECTION_START, 2, "ram", 0, 4) + writer.number64(0x400),
            "ram flags",
            "0x400",
        ),
        (
            BEGIN
            + writer.section_head(Tag.SECTION_START, 2, "ram", 0, 4)
            + writer.number64(0x1000 | 4)
            + writer.cstr8("pc.ram")
            + writer.number64(0x2000),
            "mem_size",
            "do not add up",
        ),
        (BEGIN + RAM_START[:-5] + b"\x7f" + RAM_START[-4:], "", ""),
        (
            BEGIN + writer.section_head(Tag.SECTION_START, 3, VFIO, 0, 1) + writer.number64(5),
            "VFIO tag",
            "0x5",
        ),
        (
            writer.stream_header() + b"\x07" + struct.pack(">I", 1 << 30),
            "configuration name_len",
            "1073741824",
        ),
    ],
)
def test_broken_streams_name_offset_and_field(stream: bytes, field: str, words: str) -> None:
    if not field:  # a wrong footer byte in the first section reads as a stream without footers
        with pytest.raises(RemoteProtocolError, match="no item begins"):
            frames_of(main_channel(), stream)
        return
    with pytest.raises(RemoteProtocolError, match=words) as caught:
        frames_of(main_channel(), stream)
    assert caught.value.field == field
    assert 0 <= caught.value.offset <= len(stream)


def test_which_sections_are_vfio() -> None:
    assert is_vfio("vfio")
    assert is_vfio(VFIO)
    assert not is_vfio("notvfio")


def test_return_path_messages() -> None:
    data = writer.pong(b"\0\0\0\1") + writer.return_path_message(ReturnPath.SWITCHOVER_ACK) + writer.shut(0)
    frames = [f for f in frames_of(return_path(), data) if isinstance(f, ReturnPathItem)]
    assert [(f.type, f.data) for f in frames] == [(2, b"\0\0\0\1"), (7, b""), (1, bytes(4))]


@pytest.mark.parametrize("data", [b"\0\0\0\0", b"\0\x09\0\0", b"\0\1\x40\0"])
def test_return_path_refuses_what_the_source_refuses(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        frames_of(return_path(), data)
