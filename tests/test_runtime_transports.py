# SPDX-License-Identifier: GPL-2.0-or-later
"""Connections and what reads them: partial sends, ends inside something, deadlines, addresses."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from mockdev.clock import Clock
from mockdev.errors import RemoteProtocolError, VfmigError
from mockdev.runtime.pool import LARGE_BYTES, BufferPool
from mockdev.runtime.reader import Reader, frames
from mockdev.runtime.transports import (
    Activity,
    Connection,
    MemoryNet,
    PeerGoneError,
    connect,
    listen,
    socket_buffer_bytes,
)
from mockdev.wire import writer
from mockdev.wire.framer import multifd_channel
from mockdev.wire.frames import Payload, Want

LARGE = bytes(1 << 22)  # more than any socket buffer here


def pair(timeout_s: float = 20.0) -> tuple[Connection, Connection]:
    ours, theirs = socket.socketpair()
    clock = Clock()
    return (
        Connection(ours, Activity(clock, timeout_s), clock),
        Connection(theirs, Activity(clock, timeout_s), clock),
    )


@pytest.fixture
def ends() -> Iterator[tuple[Connection, Connection]]:
    left, right = pair()
    yield left, right
    left.close()
    right.close()


def test_large_sends_in_pieces(ends: tuple[Connection, Connection]) -> None:
    left, right = ends
    parts = [bytes([n]) * (300_000 + n) for n in range(5)]
    sender = threading.Thread(target=left.send, args=(parts[:2], parts[2:]))
    sender.start()
    got = bytearray(sum(map(len, parts)))
    assert right.recv_into(memoryview(got), "all", whole=True) == len(got)
    sender.join()
    assert bytes(got) == b"".join(parts)
    assert left.sent_bytes == right.received_bytes == len(got)


def test_reading_ahead_takes_nothing_of_a_payload_from_the_reader(
    ends: tuple[Connection, Connection],
) -> None:
    left, right = ends
    left.send((writer.init_packet(0, bytes(16)), writer.sync_packet(0)))
    left.send((writer.device_state_packet("a/vfio", 0, 0, 1000),), (bytes(range(250)) * 4,))
    left.finish()
    reader = Reader(right, 288)
    seen = []
    payload = bytearray(1000)
    for step in frames(reader, multifd_channel()):
        seen.append(type(step).__name__)
        if isinstance(step, Payload):
            reader.payload(memoryview(payload), "payload")
    assert seen == ["InitFrame", "RamFrame", "DeviceStateFrame", "Payload"]
    assert bytes(payload) == bytes(range(250)) * 4
    assert reader.offset == 64 + 1344 + 288 + 1000


def test_the_end_inside_something_says_where(ends: tuple[Connection, Connection]) -> None:
    left, right = ends
    left.send((b"12345",))
    left.finish()
    reader = Reader(right, 64)
    assert reader.want(Want(3, "a start")) == b"123"
    assert reader.want(Want(5, "a look", peek=True)) == b"45"
    with pytest.raises(RemoteProtocolError) as caught:
        reader.want(Want(3, "the rest"))
    assert (caught.value.offset, caught.value.field) == (5, "the rest")
    assert "2 of 3 bytes" in caught.value.message
    with pytest.raises(RemoteProtocolError, match="2 of 9 bytes"):
        reader.payload(memoryview(bytearray(9)), "nine")
    assert reader.want(Want(1, "no more", may_end=True)) == b""


def test_peeking_grows_the_buffer(ends: tuple[Connection, Connection]) -> None:
    left, right = ends
    data = bytes(range(256)) * 40
    left.send((data,))
    left.finish()
    reader = Reader(right, 288)
    reader.want(Want(100, "first"))
    assert bytes(reader.peek(10_000, "most"))[:10_000] == data[100:10_100]
    reader.skip(140, "some")
    assert reader.want(Want(10_000, "rest")) == data[240:]


@pytest.mark.parametrize("waits", ["to receive", "to send"])
def test_silence_ends_a_blocked_call(waits: str) -> None:
    left, right = pair(0.3)
    byte = memoryview(bytearray(1))
    blocked = (
        partial(left.recv_into, byte, "a byte") if waits == "to receive" else partial(left.send, (LARGE,))
    )
    with pytest.raises(RemoteProtocolError, match=r"for 0\.3 s"):
        blocked()
    left.close()
    right.close()


def test_a_closed_peer_is_told_apart(ends: tuple[Connection, Connection]) -> None:
    left, right = ends
    right.shutdown()
    with pytest.raises(PeerGoneError):
        left.send((LARGE,))


def test_shutdown_wakes_a_blocked_call(ends: tuple[Connection, Connection]) -> None:
    left, _ = ends
    got: list[int] = []
    reader = threading.Thread(target=lambda: got.append(left.recv_into(memoryview(bytearray(1)), "a byte")))
    reader.start()
    left.shutdown()
    reader.join()
    assert got == [0]


def test_port_in_use() -> None:
    first = listen("tcp", "", 0)
    with pytest.raises(VfmigError, match=f"cannot listen at {first.address}: Address already in use"):
        listen("tcp", first.address, 0)
    first.close()


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1:", ":80", "127.0.0.1:99999", "h:1x"])
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(VfmigError, match="host:port"):
        connect("tcp", address, 0, 1)


def test_unix_sockets(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    listener = listen("unix", path, 4096)
    sock = connect("unix", path, 4096, 1)
    other = listener.accept()
    assert other is not None
    sock.close()
    other.close()
    listener.close()
    assert not Path(path).exists()
    with pytest.raises(VfmigError, match="cannot connect"):
        connect("unix", path, 0, 1)
    with pytest.raises(VfmigError, match="107 bytes"):
        listen("unix", "/tmp/" + "x" * 200, 0)


def test_memory_listener() -> None:
    net = MemoryNet()
    assert net.accept() is None
    ours = net.connect()
    theirs = net.accept()
    assert theirs is not None
    ours.sendall(b"x")
    assert theirs.recv(1) == b"x"
    waiting = net.connect()
    net.close()
    assert waiting.recv(1) == b""
    for sock in (ours, theirs, waiting):
        sock.close()
    with pytest.raises(VfmigError):
        net.connect()


def test_socket_buffers_by_channels() -> None:
    assert [socket_buffer_bytes(n, None) for n in (0, 1, 2, 25)] == [0, 0, 131072, 131072]
    assert socket_buffer_bytes(4, 0) == 0


def test_the_pool_is_bounded_and_gives_the_last_one_first() -> None:
    pool = BufferPool(3 * LARGE_BYTES)
    first, second = pool.take(LARGE_BYTES), pool.take(LARGE_BYTES)
    assert first is not None
    assert second is not None
    assert pool.take(LARGE_BYTES) is None
    pool.give_back(first, LARGE_BYTES)
    pool.give_back(second, LARGE_BYTES)
    assert pool.take(LARGE_BYTES) is second
    small = pool.take(10)
    assert small is not None
    assert len(small) == 10
    pool.give_back(small, 10)
    pool.give_back(second, LARGE_BYTES)
    assert pool.used == 0
    empties = 0
    while pool.take(0) is not None:
        empties += 1
    assert empties <= 3 * LARGE_BYTES // 512
