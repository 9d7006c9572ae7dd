# SPDX-License-Identifier: GPL-2.0-or-later
"""Peers that break the protocol, against a real endpoint over TCP: a named error, soon, in little memory."""

from __future__ import annotations

import re
import resource
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from mockdev.device.device import Device
from mockdev.device.image import Pattern
from mockdev.device.timing import OPAQUE, Firmware
from mockdev.journal import End, Failure
from mockdev.wire import writer
from mockdev.wire.structs import MULTIFD_DEVICE_STATE, Command, MultifdDeviceState, Tag, VfioTag
from tests.endpoints import HandSource, SourceAlone, TargetAlone, lines

STATE = 1 << 16
MEMORY_KIB_MAX = 64 << 10  # how much more than before a bad peer may make this process take
# Heads of one device's packets: a VFIO header lies 276 bytes into each.
FIRST = 64 + 1344


def device_packet(name: str, size: int, rest: bytes, instance: int = 0) -> bytes:
    head = MultifdDeviceState(
        idstr=name.encode().ljust(256, b"\0"), instance_id=instance, next_packet_size=size
    )
    return MULTIFD_DEVICE_STATE.pack(head) + rest


def vfio(idx: int, flags: int = 0, version: int = 0) -> bytes:
    return struct.pack(">III", version, idx, flags)


VF = "0000:00:02.0/vfio"
MIB = 1 << 20


def in_channel(data: bytes) -> Callable[[HandSource], None]:
    """A source that is fine until it sends this on channel 0."""

    def act(source: HandSource) -> None:
        source.open()
        source.switch()
        source.channels[0].sendall(data)

    return act


def on_main(data: bytes) -> Callable[[HandSource], None]:
    def act(source: HandSource) -> None:
        source.open()
        source.main.sendall(data)

    return act


def index_twice(source: HandSource) -> None:
    source.open()
    source.switch()
    source.buffer(0, 3, b"x")
    source.buffer(0, 3, b"x")


def config_first(source: HandSource) -> None:
    source.open()
    source.switch()
    source.buffer(0, 5, b"x")
    source.buffer(0, 0, b"config", config=True)


def config_not_one(source: HandSource) -> None:
    source.open()
    source.switch()
    source.buffer(0, 0, b"not a config", config=True)


def double_channel(source: HandSource) -> None:
    source.channels[0].sendall(writer.init_packet(1, bytes(16)))
    source.channels[1].sendall(writer.init_packet(1, bytes(16)))


def closes_a_channel(source: HandSource) -> None:
    source.open()
    source.channels[0].sendall(device_packet(VF, 12 + MIB, vfio(0) + bytes(1000)))
    source.channels[0].shutdown(socket.SHUT_WR)


def closes_main(source: HandSource) -> None:
    source.open()
    source.main.shutdown(socket.SHUT_WR)


def flush_without_sync(source: HandSource) -> None:
    source.channels[1].sendall(writer.init_packet(1, bytes(16)))
    source.channels[1].shutdown(socket.SHUT_WR)
    source.channels[0].sendall(writer.init_packet(0, bytes(16)) + writer.sync_packet(0))
    source.main.sendall(
        writer.stream_header()
        + writer.configuration(source.config.machine)
        + writer.section_head(Tag.SECTION_START, 1, "ram", 0, 4)
        + struct.pack(">QQ", 4, 0x200)
    )


def ends_too_early(source: HandSource) -> None:
    source.open()
    source.switch()
    source.buffer(0, 0, b"x")
    source.buffer(1, 2, b"", config=True)
    source.finish()
    for channel in source.channels:
        channel.shutdown(socket.SHUT_WR)


def never_switches(source: HandSource) -> None:
    source.open()
    source.finish()


def device_without_sync(source: HandSource) -> None:
    source.channels[0].sendall(writer.init_packet(0, bytes(16)) + device_packet(VF, 13, vfio(0) + b"x"))
    source.channels[1].sendall(writer.init_packet(1, bytes(16)))


C0 = "channel 0"
CASES: dict[str, tuple[Callable[[HandSource], None], str, int | None, str, str]] = {
    # name: what it does, channel, offset, field, words
    "garbage in a channel": (in_channel(b"garbage!" * 4), C0, FIRST, "magic", "0x67617262"),
    "packet version": (in_channel(struct.pack(">III", 0x11223344, 2, 0)), C0, FIRST + 4, "version", "2"),
    "size of 4 GiB": (
        in_channel(device_packet(VF, 0xFFFFFFFF, vfio(0))),
        C0, FIRST + 272, "next_packet_size", "4294967295",
    ),
    "size over 1 MiB": (
        in_channel(device_packet(VF, MIB + 13, vfio(0))), C0, FIRST + 272, "next_packet_size", "1048589",
    ),
    "no VFIO header": (
        in_channel(device_packet(VF, 11, bytes(11))), C0, FIRST + 272, "next_packet_size", "11 bytes",
    ),
    "unknown device": (
        in_channel(device_packet("0000:00:1f.0/vfio", 13, vfio(0) + b"x")),
        C0, FIRST + 12, "idstr", "1f.0",
    ),
    "name without end": (in_channel(device_packet("x" * 256, 13, vfio(0))), C0, FIRST + 12, "idstr", ""),
    "instance": (
        in_channel(device_packet(VF, 13, vfio(0) + b"x", 7)), C0, FIRST + 268, "instance_id", "7",
    ),
    "VFIO version": (in_channel(device_packet(VF, 13, vfio(0, 0, 9))), C0, FIRST + 276, "version", "9"),
    "VFIO flags": (in_channel(device_packet(VF, 13, vfio(0, 6))), C0, FIRST + 284, "flags", "0x6"),
    "index 2^32-1": (
        in_channel(device_packet(VF, 13, vfio(0xFFFFFFFF))), C0, FIRST + 280, "idx", "4294967295",
    ),
    "index 2^32-2": (
        in_channel(device_packet(VF, 13, vfio(0xFFFFFFFE))), C0, FIRST + 280, "idx", "4294967294",
    ),
    "index twice": (index_twice, C0, FIRST + 289 + 280, "idx", "buffer 3 came a second time"),
    "config before data": (config_first, C0, FIRST + 289 + 284, "flags", "config buffer 0"),
    "a config that is none": (config_not_one, "", None, "VFIO tag", "config buffer of " + VF),
    "channel number twice": (double_channel, "", None, "id", "channel number 1 came a second time"),
    "channel number too high": (
        lambda s: s.channels[0].sendall(writer.init_packet(9, bytes(16))), "", 24, "id", "channel number 9",
    ),
    "another VM": (
        lambda s: s.channels[0].sendall(writer.init_packet(0, b"u" * 16)), "", 8, "uuid", "another VM",
    ),
    "first packet is no SYNC": (device_without_sync, "channel 0", 64, "order", "device-state packet"),
    "neither magic": (lambda s: s.channels[0].sendall(b"GET / HTTP/1.1\r\n\r\n"), "", 0, "magic", "neither"),
    "closes before a word": (lambda s: s.channels[0].close(), "", 0, "magic", "closed after 0 bytes"),
    "closes inside a buffer": (closes_a_channel, C0, FIRST + 288 + 1000, "buffer 0 of " + VF, "1000 of"),
    "closes main": (closes_main, "main", None, "EOF", "before the end of the stream"),
    "ends without all": (ends_too_early, "", None, "idx", "buffer 1 never came"),
    "never switches": (never_switches, "main", None, "SWITCHOVER_START", "no device was loaded"),
    "flush without sync": (flush_without_sync, "main", None, "MULTIFD_FLUSH", "channel 1 ended"),
    "garbage on main": (on_main(b"\xff" * 8), "main", None, "tag", "0xff"),
    "unknown command": (on_main(writer.command(Command.POSTCOPY_RUN)), "main", None, "command", "command 5"),
    "unknown section": (
        on_main(writer.section_head(Tag.SECTION_START, 9, "slirp", 0, 4) + bytes(9) + writer.section_footer(9)
                + writer.command(Command.PING, bytes(4))),
        "main", None, "idstr", "slirp",
    ),
    "part of nothing": (on_main(writer.section_head(Tag.SECTION_PART, 77)), "main", None, "section_id", "77"),
    "config on main": (
        on_main(writer.section_head(Tag.SECTION_PART, 2) + writer.vfio_tag(VfioTag.DEV_CONFIG_STATE)),
        "main", None, "VFIO tag", "DEV_CONFIG_STATE",
    ),
    "block of 4 GiB": (
        on_main(writer.section_head(Tag.SECTION_PART, 2) + writer.vfio_data(1 << 32)),
        "main", None, "data_size", "4294967296",
    ),
    "switches twice": (
        on_main(2 * writer.command(Command.SWITCHOVER_START)), "main", None, "order", "SWITCHOVER_START",
    ),
    "RAM of another size": (
        on_main(writer.section_head(Tag.SECTION_PART, 1) + writer.ram_blocks([("pc.ram", 8192)])),
        "main", None, "mem_size", "8192",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_bad_source(tmp_path: Path, name: str) -> None:
    act, channel, offset, field, words = CASES[name]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    alone = TargetAlone(tmp_path, vfs=2, channels=2, state_bytes=STATE, ram_bytes=0)
    source = HandSource(alone)
    with suppress(ConnectionError):  # it may hang up on us in the middle
        act(source)
    result = alone.end()
    assert (result.outcome, result.runs) == ("failed", False)
    assert words in result.error
    (failure,) = [line for line in lines(tmp_path, "target") if isinstance(line, Failure)]
    assert failure.field == field
    if channel:
        assert failure.channel == channel
    if offset is not None:
        assert failure.offset == offset
    (end,) = [line for line in lines(tmp_path, "target") if isinstance(line, End)]
    assert end.outcome == "failed"
    assert writer.shut(0) not in source.replies()
    source.close()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEMORY_KIB_MAX


def test_failure_is_said_on_the_return_path(tmp_path: Path) -> None:
    alone = TargetAlone(tmp_path, vfs=1, channels=2, state_bytes=STATE, ram_bytes=0)
    source = HandSource(alone)
    in_channel(device_packet(VF, 13, vfio(0, 6)))(source)
    alone.end()
    assert source.replies().endswith(writer.shut(1))
    source.close()


@pytest.mark.parametrize("silent_from", ["nothing", "one connection", "names", "open", "switch", "middle"])
def test_silence_has_a_deadline(tmp_path: Path, silent_from: str) -> None:
    alone = TargetAlone(tmp_path, vfs=1, channels=2, state_bytes=STATE, ram_bytes=0, idle_timeout_s=0.4)
    socks: list[socket.socket] = []
    if silent_from == "one connection":
        socks.append(alone.connect())
    elif silent_from != "nothing":
        source = HandSource(alone)
        socks += [source.main, *source.channels]
        if silent_from == "names":
            source.channels[0].sendall(writer.init_packet(0, bytes(16)))
        else:
            source.open()
        if silent_from in ("switch", "middle"):
            source.switch()
            source.buffer(0, 1, b"x")
        if silent_from == "middle":
            source.finish()
    result = alone.end()
    assert result.outcome == "failed"
    assert "0.4 s" in result.error
    if silent_from == "middle":
        assert "buffer 0 and the config buffer never came" in result.error
    for sock in socks:
        sock.close()


def test_buffers_ahead_are_kept_up_to_the_limit_and_then_named(tmp_path: Path) -> None:
    alone = TargetAlone(
        tmp_path, vfs=1, channels=2, state_bytes=16 * MIB, ram_bytes=0, pool_bytes_max=4 * MIB
    )
    source = HandSource(alone)
    source.open()
    source.switch()
    with suppress(ConnectionError):
        for idx in range(1, 9):
            source.buffer(idx % 2, idx, bytes(MIB))
    result = alone.end()
    source.close()
    assert result.outcome == "failed"
    assert re.search("buffers? 0", result.error)
    assert "more are not kept" in result.error


def test_channels_that_come_first_and_in_any_order(tmp_path: Path) -> None:
    """A whole migration by hand, main channel last, buffers across channels, the last index first."""
    alone = TargetAlone(tmp_path, vfs=1, channels=3, state_bytes=3000, ram_bytes=0, profile="opaque")
    reference = SavedState(alone)
    source = HandSource(alone, channels_first=True)
    for number, channel in zip((2, 0, 1), source.channels, strict=True):
        channel.sendall(writer.init_packet(number, bytes(16)) + writer.sync_packet(number))
    source.open(named=True)
    source.switch()
    source.buffer(0, 3, reference.config, config=True)
    source.buffer(1, 2, reference.state[2000:])
    source.buffer(2, 0, reference.state[:1000])
    source.buffer(2, 1, reference.state[1000:2000])
    source.finish()
    expected = writer.pong(b"\0\0\0\1") + writer.shut(0)
    said = b""
    while len(said) < len(expected):
        said += source.main.recv(len(expected) - len(said))
    assert said == expected
    source.close()
    result = alone.end()
    assert result.outcome == "completed", result
    assert result.runs


class SavedState:
    """What a like device would have sent."""

    def __init__(self, alone: TargetAlone) -> None:
        config = alone.config
        memory = bytearray(config.state_bytes)
        Pattern(config.seed, config.devices[0]).fill(memoryview(memory))
        self.state = bytes(memory)
        device = Device(config.devices[0], memory, Firmware(OPAQUE))
        self.config = (
            writer.vfio_tag(VfioTag.DEV_CONFIG_STATE)
            + device.save_config()
            + writer.vfio_tag(VfioTag.END_OF_STATE)
        )


# --- targets -----------------------------------------------------------------------------------------


def accept_all(listener: socket.socket, count: int) -> list[socket.socket]:
    return [listener.accept()[0] for _ in range(count)]


def drain(socks: list[socket.socket]) -> None:
    for sock in socks:
        sock.settimeout(0.2)
    for sock in socks:
        with suppress(OSError):
            while sock.recv(1 << 16):
                pass


def reply(*messages: bytes, hold: bool = False) -> Callable[[socket.socket], None]:
    """A target that accepts, says this on the main channel, and reads (hold) or closes."""

    def act(listener: socket.socket) -> None:
        socks = accept_all(listener, 3)
        with suppress(ConnectionError):
            for message in messages:
                socks[0].sendall(message)
        if hold:
            drain(socks)
        for sock in socks:
            sock.close()

    return act


TARGETS: dict[str, tuple[Callable[[socket.socket], None], str]] = {
    "says that it failed": (reply(writer.shut(1), hold=True), "SHUT 1"),
    "closes at once": (reply(), ""),
    "wrong type": (reply(writer.return_path_message(6, bytes(4)), hold=True), "message of type 6"),  # type: ignore[arg-type]
    "unknown type": (reply(struct.pack(">HH", 99, 0), hold=True), "type 99"),
    "wrong PONG": (reply(writer.pong(b"\0\0\0\x09"), hold=True), "PONG 9"),
    "SHUT of two bytes": (reply(struct.pack(">HHH", 1, 2, 0), hold=True), "SHUT with 2 bytes"),
    "says nothing": (reply(hold=True), ""),
}


@pytest.mark.parametrize("name", TARGETS)
def test_bad_target(tmp_path: Path, name: str) -> None:
    act, words = TARGETS[name]
    alone = SourceAlone(
        tmp_path, act, vfs=1, channels=2, state_bytes=STATE, ram_bytes=1 << 20, idle_timeout_s=0.6
    )
    result = alone.run()
    assert result.outcome == "failed"
    assert words in result.error
    assert [line.outcome for line in lines(tmp_path, "source") if isinstance(line, End)] == ["failed"]


def test_nobody_listens(tmp_path: Path) -> None:
    def nobody(listener: socket.socket) -> None:
        listener.close()

    alone = SourceAlone(tmp_path, nobody, vfs=1, channels=1, state_bytes=STATE)
    alone._listener.close()
    result = alone.source.run()
    assert result.outcome == "failed"
    assert "cannot connect to 127.0.0.1:" in result.error
    assert result.runs
