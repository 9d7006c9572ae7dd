# SPDX-License-Identifier: GPL-2.0-or-later
"""The syntax of a multifd connection, read back from what the writer wrote, and from broken bytes."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mockdev.errors import LocalProtocolError, RemoteProtocolError
from mockdev.wire import writer
from mockdev.wire.framer import multifd_channel
from mockdev.wire.frames import DeviceStateFrame, InitFrame, RamFrame
from tests.drive import Cut, frames_of

UUID = bytes(range(16))
INIT = writer.init_packet(3, UUID)


def test_init_packet_bytes() -> None:
    assert INIT.hex() == "1122334400000001" + UUID.hex() + "03" + "00" * 39
    (frame,) = frames_of(multifd_channel(), INIT)
    assert isinstance(frame, InitFrame)
    assert (frame.head.uuid, frame.head.id) == (UUID, 3)


def test_sync_packet_is_1344_bytes_without_payload() -> None:
    packet = writer.sync_packet(7)
    assert len(packet) == 1344
    frame = frames_of(multifd_channel(), INIT + packet)[1]
    assert isinstance(frame, RamFrame)
    assert (frame.head.flags, frame.head.packet_num, frame.payload_size, frame.size) == (1, 7, 0, 1344)


def test_device_state_packet_bytes() -> None:
    packet = writer.device_state_packet("0000:00:05.0/vfio", 0, 3, 4116 + 16, config=True)
    assert packet[:12].hex() == "112233440000000100000040"
    assert packet[12:268] == b"0000:00:05.0/vfio".ljust(256, b"\0")
    assert packet[268:].hex() == "00000000" + "00001030" + "00000000" + "00000003" + "00000001"


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("device"), st.integers(0, 5000), st.integers(0, 2**32 - 1), st.booleans()),
            st.tuples(st.just("ram"), st.integers(0, 100), st.integers(0, 28), st.booleans()),
            st.tuples(st.just("sync"), st.just(0), st.just(0), st.just(False)),
        ),
        max_size=8,
    )
)
def test_frames_tile_the_stream(kinds: list[tuple[str, int, int, bool]]) -> None:
    data = INIT
    for number, (kind, a, b, flag) in enumerate(kinds):
        if kind == "device":
            data += writer.device_state_packet("dev/vfio", 1, b, a, config=flag) + bytes(a)
        elif kind == "ram" and a + b:
            normal = [4096 * i for i in range(a)]
            zero = [4096 * (200 + i) for i in range(b)]
            data += writer.ram_packet(number, "pc.ram", normal, zero) + bytes(4096 * a)
        else:
            data += writer.sync_packet(number)
    frames = frames_of(multifd_channel(), data)
    assert len(frames) == 1 + len(kinds)
    end = 0
    for frame in frames:
        assert frame.offset == end
        end += frame.size
    assert end == len(data)


def test_ram_packet_fields() -> None:
    head = writer.ram_packet(9, "pc.ram", [0x2000, 0x1000], [0x5000])
    frame = frames_of(multifd_channel(), INIT + head + bytes(8192))[1]
    assert isinstance(frame, RamFrame)
    assert frame.normal == (0x2000, 0x1000)
    assert frame.zero == (0x5000,)
    assert set(frame.unused) == {0}
    assert len(frame.unused) == 125
    assert (frame.head.pages_alloc, frame.head.next_packet_size, frame.payload_size) == (128, 8192, 8192)


def test_a_packet_too_short_for_vfio_is_still_delimited() -> None:
    short = bytearray(writer.device_state_packet("dev/vfio", 0, 0, 0))[:276]
    short[272:276] = struct.pack(">I", 5)
    frame = frames_of(multifd_channel(), INIT + bytes(short) + b"12345" + writer.sync_packet(0))[1]
    assert isinstance(frame, DeviceStateFrame)
    assert frame.vfio is None
    assert frame.payload_size == 5


def test_compressed_pages_take_what_the_head_announces() -> None:
    head = bytearray(writer.ram_packet(0, "pc.ram", [0], []))
    head[8:12] = struct.pack(">I", 0x4)
    head[20:24] = struct.pack(">I", 33)
    frame = frames_of(multifd_channel(), INIT + bytes(head) + bytes(33))[1]
    assert isinstance(frame, RamFrame)
    assert frame.payload_size == 33


@pytest.mark.parametrize(("at", "field"), [(0, "magic"), (4, "version"), (64, "magic"), (71, "version")])
def test_what_cannot_be_delimited_names_channel_offset_and_field(at: int, field: str) -> None:
    data = bytearray(INIT + writer.sync_packet(0))
    data[at] ^= 0x40
    with pytest.raises(RemoteProtocolError) as caught:
        frames_of(multifd_channel("channel 3"), bytes(data))
    assert caught.value.channel == "channel 3"
    assert caught.value.field == field
    assert caught.value.offset == at - at % 4
    assert field in str(caught.value)


@pytest.mark.parametrize("keep", [1, 63, 70, 300, 1407])
def test_an_end_inside_a_packet_is_a_cut(keep: int) -> None:
    with pytest.raises(Cut):
        frames_of(multifd_channel(), (INIT + writer.sync_packet(0))[:keep])


def test_an_empty_connection_has_no_frames() -> None:
    assert frames_of(multifd_channel(), b"") == []


def test_the_writer_refuses_what_no_packet_can_hold() -> None:
    with pytest.raises(LocalProtocolError):
        writer.ram_packet(0, "pc.ram", [], [])
    with pytest.raises(LocalProtocolError):
        writer.ram_packet(0, "pc.ram", [0] * 129, [])
    with pytest.raises(LocalProtocolError):
        writer.device_state_packet("x" * 256, 0, 0, 1)
