# SPDX-License-Identifier: GPL-2.0-or-later
"""Capture files of every kind are walked to their last whole packet, or refused with a sentence."""

from __future__ import annotations

import gzip
import os
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.utils import PcapNgWriter, wrpcap

from tests.capture_files import (
    CLIENT,
    EPOCH_NS,
    SERVER,
    Frame,
    block,
    interface,
    option,
    packet,
    pcap,
    pcapng,
    section,
    take_all,
    tcp,
)
from verifier.capture.opening import CaptureError
from verifier.capture.pcapng import open_capture

Squeeze = Callable[[bytes], bytes]
Make = Callable[[list[Frame]], bytes]
FRAMES = [Frame(bytes([65 + index]) * (60 + index), EPOCH_NS + index * 1000) for index in range(5)]


def walk(path: Path, content: bytes) -> tuple[list[tuple[bytes, int, int, int, str]], str]:
    """(bytes, original, time, interface, note) of all packets, and where it was cut; twice the same."""
    path.write_bytes(content)
    with open_capture(path) as capture:
        rounds = [
            [
                (capture.data[a:b], size, time, point, note)
                for a, b, size, time, point, note in capture.packets()
            ]
            for _ in range(2)
        ]
        assert rounds[0] == rounds[1]
        return rounds[0], capture.truncated


def datas(frames: list[Frame]) -> list[bytes]:
    return [frame.data for frame in frames]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("nano", [False, True])
def test_pcap_is_read_in_both_byte_orders_and_resolutions(tmp_path: Path, order: str, nano: bool) -> None:
    packets, damage = walk(tmp_path / "a", pcap(FRAMES, order, nano))
    assert [found[0] for found in packets] == datas(FRAMES)
    unit = 1 if nano else 1000
    assert [found[2] for found in packets] == [frame.time_ns // unit * unit for frame in FRAMES]
    assert damage == ""


@pytest.mark.parametrize("order", ["<", ">"])
def test_pcapng_is_read_in_both_byte_orders(tmp_path: Path, order: str) -> None:
    packets, damage = walk(tmp_path / "a", pcapng(FRAMES, order))
    assert [(found[0], found[2]) for found in packets] == [(frame.data, frame.time_ns) for frame in FRAMES]
    assert damage == ""


@pytest.mark.parametrize(
    ("resolution", "ticks", "time_ns"),
    [
        (6, 1_700_000_000_000_001, 1_700_000_000_000_001_000),
        (0, 1_700_000_000, 1_700_000_000_000_000_000),
        (12, 1_700_000_000_000_000_999_999, 1_700_000_000_000_000_999),
        (0x80 | 20, (1_700_000_000 << 20) + (1 << 19), 1_700_000_000_500_000_000),
    ],
)
def test_timestamps_follow_the_resolution(tmp_path: Path, resolution: int, ticks: int, time_ns: int) -> None:
    content = section() + interface(resolution=resolution) + packet(FRAMES[0], ticks=ticks & (1 << 64) - 1)
    (found,), _ = walk(tmp_path / "a", content)
    if ticks < 1 << 64:
        assert found[2] == time_ns


def test_timestamps_follow_the_offset(tmp_path: Path) -> None:
    point = interface(extra=option("<", 14, struct.pack("<q", -100)))
    packets, _ = walk(tmp_path / "a", section() + point + packet(FRAMES[0]) + packet(FRAMES[1]))
    assert [found[2] for found in packets] == [frame.time_ns - 100 * 10**9 for frame in FRAMES[:2]]


def test_sections_and_interfaces_are_numbered_through(tmp_path: Path) -> None:
    second = [Frame(b"b" * 61, EPOCH_NS, interface=1), Frame(b"c" * 62, EPOCH_NS, interface=0)]
    content = pcapng(FRAMES[:1], "<", interfaces=2) + pcapng(second, ">", link=101, interfaces=2)
    packets, damage = walk(tmp_path / "a", content)
    assert [(found[0], found[3]) for found in packets] == [
        (FRAMES[0].data, 0),
        (b"b" * 61, 3),
        (b"c" * 62, 2),
    ]
    assert damage == ""
    with open_capture(tmp_path / "a") as capture:
        list(capture.packets())
        assert [(point.number, point.link_type) for point in capture.interfaces] == [
            (0, 1),
            (1, 1),
            (2, 101),
            (3, 101),
        ]


def test_simple_and_old_packets_and_unknown_blocks(tmp_path: Path) -> None:
    old = struct.pack("<HH4I", 0, 7, EPOCH_NS >> 32, EPOCH_NS & 0xFFFFFFFF, 61, 70) + b"o" * 61
    simple = struct.pack("<I", 62) + b"s" * 62
    content = (
        section() + interface() + block("<", 2, old) + block("<", 0xBAD, b"what") + block("<", 3, simple)
    )
    packets, damage = walk(tmp_path / "a", content + packet(FRAMES[0]))
    assert [(found[0], found[1]) for found in packets] == [
        (b"o" * 61, 70),
        (b"s" * 62, 62),
        (FRAMES[0].data, 60),
    ]
    assert damage == ""
    with open_capture(tmp_path / "a") as capture:
        list(capture.packets())
        assert capture.drops == 7


def test_drops_and_names_and_comments(tmp_path: Path) -> None:
    commented = Frame(b"x" * 61, EPOCH_NS, options=option("<", 1, b"one") + option("<", 1, b"two"))
    dropped = Frame(b"y" * 60, EPOCH_NS, options=option("<", 4, struct.pack("<Q", 3)))
    counters = option("<", 4, struct.pack("<Q", 90)) + option("<", 5, struct.pack("<Q", 5))
    counters += option("<", 7, struct.pack("<Q", 6))
    statistics = block("<", 5, struct.pack("<III", 0, 0, 0) + counters)
    point = interface(extra=option("<", 2, b"eth7"))
    content = section() + point + packet(commented) + packet(dropped) + packet(FRAMES[0])
    packets, _ = walk(tmp_path / "a", content)
    assert [found[4] for found in packets] == ["one\ntwo", "", ""]
    for extra, drops in ((b"", 3), (statistics, 11)):
        (tmp_path / "a").write_bytes(content + extra)
        with open_capture(tmp_path / "a") as capture:
            list(capture.packets())
            assert capture.drops == drops
            assert capture.interfaces[0].name == "eth7"
    (tmp_path / "a").write_bytes(pcapng(FRAMES))
    with open_capture(tmp_path / "a") as capture:
        list(capture.packets())
        assert capture.drops is None


@pytest.mark.parametrize("make", [pcap, pcapng])
def test_cut_anywhere_the_whole_packets_are_read(tmp_path: Path, make: Make) -> None:
    content = make(FRAMES)
    whole = {len(make(FRAMES[:count])): count for count in range(len(FRAMES) + 1)}
    first = min(whole)
    count = 0
    for size in range(first, len(content)):
        count = whole.get(size, count)
        packets, damage = walk(tmp_path / "a", content[:size])
        assert [found[0] for found in packets] == datas(FRAMES[:count])
        assert ("ends inside" in damage) == (size not in whole)
        if damage:
            assert str(max(start for start in whole if start < size)) in damage


@pytest.mark.parametrize("length", [0, 8, 33, 0xFFFFFFFF, 0x7FFFFFF0])
def test_a_nonsense_length_keeps_the_part_before(tmp_path: Path, length: int) -> None:
    good = pcapng(FRAMES[:2])
    bad = bytearray(packet(FRAMES[2]))
    struct.pack_into("<I", bad, 4, length)
    packets, damage = walk(tmp_path / "a", good + bytes(bad) + packet(FRAMES[3]))
    assert [found[0] for found in packets] == datas(FRAMES[:2])
    assert f"offset {len(good)}" in damage
    assert "the part before it was read" in damage


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (packet(Frame(b"x" * 60, interface=4)), "names interface 4, but only 1"),
        (block("<", 6, struct.pack("<5I", 0, 0, 0, 4000, 4000) + bytes(60)), "claims 4000 captured bytes"),
        (block("<", 6, b"abcd"), "only 16 bytes long"),
        (packet(FRAMES[0])[:-4] + b"\1\0\0\0", "at its end"),
        (packet(FRAMES[0])[:-4] + b"\1\0\0\0" + packet(FRAMES[3]), "at its end"),
        (block("<", 0x0A0D0D0A, bytes(16)), "byte-order magic"),
    ],
)
def test_a_nonsense_block_keeps_the_part_before(tmp_path: Path, bad: bytes, said: str) -> None:
    packets, damage = walk(tmp_path / "a", pcapng(FRAMES[:2]) + bad)
    assert [found[0] for found in packets][:2] == datas(FRAMES[:2])
    assert FRAMES[3].data not in [found[0] for found in packets]
    assert said in damage


def test_a_nonsense_pcap_length_keeps_the_part_before(tmp_path: Path) -> None:
    bad = struct.pack("<IIII", 1, 1, 0xFFFFFFF0, 60) + bytes(60)
    packets, damage = walk(tmp_path / "a", pcap(FRAMES[:2]) + bad)
    assert [found[0] for found in packets] == datas(FRAMES[:2])
    assert "nonsense" in damage


@given(st.data())
def test_any_changed_byte_is_read_or_said(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(pcapng(FRAMES) if data.draw(st.booleans()) else pcap(FRAMES))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "changed"
    path.write_bytes(content)
    with suppress(CaptureError), open_capture(path) as capture:
        end = 0
        for start, stop, original, _, point, _ in capture.packets():
            assert end <= start <= stop <= len(content)
            assert original >= 0
            assert point < len(capture.interfaces)
            end = stop


@pytest.mark.parametrize("squeeze", [gzip.compress, zstandard.ZstdCompressor().compress])
@pytest.mark.parametrize("make", [pcap, pcapng])
def test_compressed_files_are_unpacked(tmp_path: Path, squeeze: Squeeze, make: Make) -> None:
    packets, damage = walk(tmp_path / "a", squeeze(make(FRAMES)))
    assert [found[0] for found in packets] == datas(FRAMES)
    assert damage == ""
    half = make(FRAMES)
    packets, damage = walk(tmp_path / "a", squeeze(half[:100]) + squeeze(half[100:]))
    assert [found[0] for found in packets] == datas(FRAMES)
    assert damage == ""


@pytest.mark.parametrize("squeeze", [gzip.compress, zstandard.ZstdCompressor().compress])
def test_a_cut_compressed_file_is_read_as_far_as_it_goes(tmp_path: Path, squeeze: Squeeze) -> None:
    frames = [Frame(os.urandom(1400), EPOCH_NS) for _ in range(400)]
    content = squeeze(pcapng(frames))
    packets, damage = walk(tmp_path / "a", content[: len(content) // 2])
    assert 50 < len(packets) < 300
    assert [found[0] for found in packets] == datas(frames[: len(packets)])
    assert damage


@pytest.mark.parametrize("squeeze", [gzip.compress, zstandard.ZstdCompressor().compress])
def test_a_compressed_bomb_is_refused(tmp_path: Path, squeeze: Squeeze) -> None:
    (tmp_path / "a").write_bytes(squeeze(bytes(50 << 20)))
    with pytest.raises(CaptureError, match="unpacks to more than 20000000 bytes"):
        open_capture(tmp_path / "a", unpacked_bytes_max=20_000_000)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"x", "is not a capture"),
        (b"#!/bin/sh\necho\n", "is not a capture"),
        (pcapng(FRAMES)[:20], "ends inside its first header"),
        (pcap(FRAMES)[:20], "ends inside its first header"),
        (b"\x0a\x0d\x0d\x0a" + bytes(40), "byte-order magic"),
        (gzip.compress(b"hello, world", mtime=0), "is not a capture"),
        (gzip.compress(b"", mtime=0), "unpacks to nothing"),
        (b"\x1f\x8b" + bytes(30), "damaged"),
        (b"\x28\xb5\x2f\xfd" + bytes([255] * 30), "damaged"),
    ],
)
def test_what_is_no_capture_is_refused_with_a_sentence(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(CaptureError, match=said) as caught:
        open_capture(path)
    assert str(path) in str(caught.value)


def test_what_is_no_file_is_refused_with_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="there is no such file"):
        open_capture(tmp_path / "nothing")
    with pytest.raises(CaptureError, match="is a directory"):
        open_capture(tmp_path)
    with pytest.raises(CaptureError, match="not a regular file"):
        open_capture("/dev/null")


def test_scapy_writes_what_we_read(tmp_path: Path) -> None:
    """A third party's files: classic and new, IPv4 and IPv6, tags, and packets that are not TCP."""
    head = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
    ports = {"sport": CLIENT[1], "dport": SERVER[1]}
    inner = IP(src=CLIENT[0], dst=SERVER[0])
    inner6 = IPv6(src="fd00::1", dst="fd00::2")
    packets = []
    for network, tag in ((inner, None), (inner6, None), (IP(src="10.9.9.9", dst=SERVER[0]), 7)):
        layer = head / Dot1Q(vlan=tag) if tag else head
        packets += [layer / network / TCP(flags="S", seq=99, **ports)]
        packets += [
            layer / network / TCP(flags="PA", seq=100 + 5 * n, ack=1, **ports) / b"12345" for n in range(3)
        ]
    packets += [head / inner / UDP() / b"no", head / ARP()]
    wrpcap(str(tmp_path / "classic"), packets)
    writer = PcapNgWriter(str(tmp_path / "new"))
    writer.write(packets)
    writer.close()
    for name in ("classic", "new"):
        accounting, taken = take_all(tmp_path / name)
        assert [sink.bytes for sink in taken] == [b"12345" * 3] * 3
        assert [str(sink.flow.source) for sink in taken] == [
            "10.0.0.1:40000",
            "[fd00::1]:40000",
            "10.9.9.9:40000",
        ]
        assert accounting.unread == {"not TCP": 1, "not IP": 1}
        assert (accounting.packets, accounting.tcp_packets) == (14, 12)


@pytest.mark.parametrize("link", [0, 1, 101, 108, 113, 228, 276])
@pytest.mark.parametrize("version", [4, 6])
def test_every_link_type(tmp_path: Path, link: int, version: int) -> None:
    if (link, version) == (228, 6):
        return  # that link type is IPv4 by its name
    ends = (CLIENT, SERVER) if version == 4 else (("fd00::1", 1), ("fd00::2", 2))
    frames = [tcp(*ends, 10 + 4 * n, b"abcd", link=link) for n in range(3)]
    _, (sink,) = take_all(tmp_path / "a", pcapng([Frame(data) for data in frames], link=link))
    assert sink.bytes == b"abcd" * 3
