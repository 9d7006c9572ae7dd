# SPDX-License-Identifier: GPL-2.0-or-later
"""The sniffer: all that was sent while it ran, once, and a sentence where it may not."""

from __future__ import annotations

import os
import random
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import xxhash

from mockdev.wire.seal import find_seal
from tests.capture_files import CLIENT, SERVER, take_all, tcp
from verifier.capture.pcapng import open_capture
from verifier.capture.sniff import Sniffer, SniffError
from verifier.capture.socket_filter import PORTS_MAX, assemble

PAYLOAD = random.Random(3).randbytes(5_000_000)
MAY_CAPTURE = os.geteuid() == 0


def execute(code: bytes, frame: bytes, protocol: int, packet_type: int) -> int:
    """A classic BPF machine, as the kernel's documentation describes it: the bytes kept of a frame."""
    steps: list[tuple[int, int, int, int]] = list(struct.iter_unpack("=HBBI", code))
    a = x = at = 0
    while True:
        op, true, false, k = steps[at]
        at += 1
        if op == 0x20:
            a = {0xFFFFF000: protocol, 0xFFFFF004: packet_type}[k]
        elif op in (0x28, 0x48):
            place = k + (x if op == 0x48 else 0)
            if place + 2 > len(frame):
                return 0
            a = int.from_bytes(frame[place : place + 2], "big")
        elif op == 0x30:
            a = frame[k]
        elif op == 0xB1:
            x = (frame[k] & 15) * 4
        elif op in (0x15, 0x45):
            at += true if (a == k if op == 0x15 else a & k) else false
        else:
            assert op == 0x06
            return k


@pytest.mark.parametrize("link", [1, 101])
def test_the_filter_keeps_what_it_should(link: int) -> None:
    link_bytes = 14 if link == 1 else 0
    ports = [*range(10_000, 10_000 + PORTS_MAX - 1), 9000]
    code = assemble(ports, 0, link_bytes, incoming_only=True)
    ends6 = (("fd00::1", 9000), ("fd00::2", 3))
    other = (("10.0.0.1", 1), ("10.0.0.2", 2))
    udp = bytearray(tcp(CLIENT, SERVER, 1, link=link))
    udp[link_bytes + 9] = 17
    cases = [
        (tcp(CLIENT, SERVER, 1, link=link), 0x0800, 0, True),
        (tcp(SERVER, CLIENT, 1, link=link), 0x0800, 0, True),
        (tcp(CLIENT, ("10.0.0.2", 10_000), 1, link=link, ip_options=b"\1" * 8), 0x0800, 0, True),
        (tcp(CLIENT, SERVER, 1, link=link), 0x0800, 4, False),
        (tcp(*other, 1, link=link), 0x0800, 0, False),
        (tcp(*other, 1, link=link, fragment=9), 0x0800, 0, True),
        (bytes(udp), 0x0800, 0, False),
        (tcp(*ends6, 1, link=link), 0x86DD, 0, True),
        (tcp(ends6[1], ends6[0], 1, link=link), 0x86DD, 0, True),
        (tcp(("fd00::1", 1), ("fd00::2", 2), 1, link=link), 0x86DD, 0, False),
        (bytes(60), 0x0806, 0, False),
    ]
    for frame, protocol, packet_type, kept in cases:
        assert bool(execute(code, frame, protocol, packet_type)) == kept
    everything = assemble([], 96, link_bytes, incoming_only=False)
    assert execute(everything, bytes(60), 0x0806, 4) == 96


def send_over_loopback(host: str, server: socket.socket) -> None:
    """PAYLOAD to the server and 3 bytes back, received to the last byte."""
    with socket.create_connection((host, server.getsockname()[1])) as client:
        accepted = server.accept()[0]
        with accepted:
            thread = threading.Thread(target=client.sendall, args=(PAYLOAD,))
            thread.start()
            got = bytearray()
            while len(got) < len(PAYLOAD):
                got += accepted.recv(1 << 20)
            thread.join()
            assert got == PAYLOAD
            accepted.sendall(b"end")
            assert client.recv(3, socket.MSG_WAITALL) == b"end"


def listener(host: str) -> socket.socket:
    server = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    server.bind((host, 0))
    server.listen()
    return server


def refusal(path: Path) -> None:
    with pytest.raises(SniffError, match=r"needs the privilege CAP_NET_RAW: .* setcap cap_net_raw"):
        Sniffer("lo", path).start()


@pytest.mark.parametrize("snap_bytes", [0, 128])
def test_loopback_is_captured_whole_and_once(tmp_path: Path, snap_bytes: int) -> None:
    path = tmp_path / "a.pcapng"
    if not MAY_CAPTURE:
        refusal(path)
        return
    with listener("127.0.0.1") as server, listener("127.0.0.1") as other:
        ports = [server.getsockname()[1]]
        with Sniffer("lo", path, ports=ports, snap_bytes=snap_bytes, expected_bytes=1 << 20) as sniffer:
            send_over_loopback("127.0.0.1", other)
            send_over_loopback("127.0.0.1", server)
    report = sniffer.report
    assert (report.dropped, report.complaint) == (0, "")
    accounting, (client, back) = take_all(path)
    assert accounting.missing_bytes == 0
    assert accounting.packets == report.packets
    assert len(client.stream) == len(PAYLOAD)
    assert (client.ends, client.flow.initiator, back.flow.initiator) == (["fin"], True, False)
    if snap_bytes:
        assert {hole[2] for hole in client.holes} == {"snapped"}
        assert report.bytes < 100_000 + report.packets * snap_bytes
    else:
        assert client.bytes == PAYLOAD
        assert back.bytes == b"end"
    with open_capture(path) as capture:
        list(capture.packets())
        assert (capture.truncated, capture.drops) == ("", 0)
        assert (capture.interfaces[0].name, capture.interfaces[0].received) == ("lo", report.packets)
    assert sniffer.stop() == report
    raw = path.read_bytes()
    seal = find_seal(raw, len(raw))
    assert seal is not None
    assert seal.digest == xxhash.xxh3_128_digest(raw[: seal.at])


def test_a_full_disk_is_said_and_the_file_stays_readable(tmp_path: Path) -> None:
    """The size limit of files stands in for the disk; the sniffing process inherits it."""
    path = tmp_path / "a.pcapng"
    if not MAY_CAPTURE:
        refusal(path)
        return
    code = f"""
import resource, signal, socket
from pathlib import Path
from tests.test_capture_sniff import listener, send_over_loopback
from verifier.capture.sniff import Sniffer
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
with listener("127.0.0.1") as server:
    with Sniffer("lo", {str(path)!r}, ports=[server.getsockname()[1]]) as sniffer:
        send_over_loopback("127.0.0.1", server)
print(sniffer.report.packets, sniffer.report.dropped, sniffer.report.complaint)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    packets, dropped, complaint = done.stdout.split(" ", 2)
    assert "the capture stops after" in complaint
    assert "File too large" in complaint
    accounting, taken = take_all(path)
    assert accounting.packets == int(packets)
    sent = taken[0].stream
    assert len(sent) > 0
    assert all(byte is None or byte == PAYLOAD[at] for at, byte in enumerate(sent))
    with open_capture(path) as capture:
        list(capture.packets())
        assert (capture.truncated, capture.drops) == ("", int(dropped))


def test_without_the_privilege_the_remedy_is_named(tmp_path: Path) -> None:
    if not MAY_CAPTURE:
        refusal(tmp_path / "a")
        return
    code = """
import ctypes, sys
from verifier.capture.sniff import Sniffer, SniffError
CAP_NET_RAW, PR_CAPBSET_DROP = 13, 24
assert ctypes.CDLL(None, use_errno=True).prctl(PR_CAPBSET_DROP, CAP_NET_RAW, 0, 0, 0) == 0
try:
    Sniffer("lo", sys.argv[1]).start()
except SniffError as error:
    print(error)
"""
    arguments = [sys.executable, "-c", code, str(tmp_path / "a")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert "needs the privilege CAP_NET_RAW" in done.stdout
    assert "setcap cap_net_raw+ep /" in done.stdout
    assert not (tmp_path / "a").exists()


def test_other_refusals_are_sentences(tmp_path: Path) -> None:
    if MAY_CAPTURE:
        with pytest.raises(SniffError, match="no interface nothing0 to capture on"):
            Sniffer("nothing0", tmp_path / "a").start()
        with pytest.raises(SniffError, match="cannot be written: No such file"):
            Sniffer("lo", tmp_path / "no" / "a").start()
    with pytest.raises(SniffError, match=f"{PORTS_MAX} ports at most, not 51"):
        Sniffer("lo", tmp_path / "a", ports=range(51))


def test_ipv6_is_captured(tmp_path: Path) -> None:
    path = tmp_path / "a.pcapng"
    if not MAY_CAPTURE:
        refusal(path)
        return
    with listener("::1") as server, Sniffer("lo", path, ports=[server.getsockname()[1]]):
        send_over_loopback("::1", server)
    _, (client, _) = take_all(path)
    assert client.bytes == PAYLOAD
