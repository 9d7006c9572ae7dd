# SPDX-License-Identifier: GPL-2.0-or-later
"""Scapy layers: the same bytes as the writer's, both ways."""

from __future__ import annotations

import pytest
from scapy.packet import Raw

from mockdev.wire import structs, writer
from mockdev.wire.structs import Command, ReturnPath, Tag
from verifier.capture import dissect

UUID = bytes(range(16))


def test_init_packet() -> None:
    assert bytes(dissect.MultifdInit(uuid=UUID, id=7)) == writer.init_packet(7, UUID)
    assert dissect.MultifdInit(writer.init_packet(9, UUID)).id == 9


def test_device_state_packet_carries_its_vfio_header_and_data() -> None:
    raw = writer.device_state_packet("0000:00:02.0/vfio", 0, 5, 3) + b"abc" + b"next packet"
    packet = dissect.multifd_layer(raw)
    assert packet.idstr.rstrip(b"\0") == b"0000:00:02.0/vfio"
    assert packet[dissect.VfioDeviceState].idx == 5
    assert packet[dissect.VfioDeviceState].load == b"abc"
    built = dissect.MultifdDeviceState(idstr=b"0000:00:02.0/vfio", next_packet_size=15)
    assert bytes(built / dissect.VfioDeviceState(idx=5) / Raw(b"abc")) == raw[:291]


def test_ram_packet_with_its_table() -> None:
    head = writer.ram_packet(3, "pc.ram", [0x1000], [0x3000])
    packet = dissect.multifd_layer(head + bytes(4096))
    assert packet.offset[:3] == [0x1000, 0x3000, 0]
    assert (packet.normal_pages, packet.zero_pages, packet.packet_num) == (1, 1, 3)
    assert bytes(packet)[:1344] == head


@pytest.mark.parametrize("layout", structs.LAYOUTS, ids=repr)
def test_every_layout_makes_a_layer_of_its_size(layout: object) -> None:
    layer = dissect.layer_of(layout, "Layer")  # type: ignore[arg-type]
    assert len(bytes(layer())) == layout.size  # type: ignore[attr-defined]


def test_main_channel_packets() -> None:
    assert bytes(dissect.StreamHeader()) == writer.stream_header()
    assert bytes(dissect.Command(cmd=2, data=b"\0\0\0\1")) == writer.ping(1)
    assert dissect.Command(writer.command(Command.SWITCHOVER_START)).cmd == 11
    start = writer.section_head(Tag.SECTION_START, 38, "ram", 0, 4)
    assert bytes(dissect.SectionHead(tag=1, section_id=38, idstr=b"ram", version_id=4)) == start
    assert dissect.SectionHead(start).idstr == b"ram"
    assert bytes(dissect.SectionHead(tag=2, section_id=38)) == writer.section_head(Tag.SECTION_PART, 38)
    assert bytes(dissect.SectionFooter(section_id=38)) == writer.section_footer(38)
    assert bytes(dissect.VfioData(data=b"xyz")) == writer.vfio_data(3) + b"xyz"
    message = dissect.ReturnPathMessage(type=ReturnPath.SHUT, data=bytes(4))
    assert bytes(message) == writer.shut(0)
