# SPDX-License-Identifier: GPL-2.0-or-later
"""The relay: what goes through is what came, what is recorded is what went through, and faults are seen."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mockdev.clock import wall_offset_ns
from mockdev.errors import VfmigError
from mockdev.faultspec import parse
from mockdev.lab.passage import Passage, Struck, Units
from mockdev.lab.relay import RelayConfig, RelayProcess
from mockdev.runtime.config import EndpointConfig, MigrationConfig
from mockdev.runtime.session import Result
from mockdev.runtime.source import Source
from mockdev.runtime.target import Target
from mockdev.wire import writer
from mockdev.wire.framer import multifd_channel
from mockdev.wire.mainstream import main_channel
from tests.capture_files import take_all
from verifier.check import check_path

MIB = 1 << 20
SMALL = {
    "vfs": 2,
    "channels": 3,
    "state_bytes": 3 * MIB,
    "ram_bytes": MIB,
    "profile": "unlimited",
    "capture": "none",
    "idle_timeout_s": 15.0,
}
BYTES = random.Random(3).randbytes(1_000_000)
Streams = list[tuple[bool | None, bytes]]


class Run:
    """A migration of two endpoints in this process through a relay in its own."""

    def __init__(
        self, folder: Path, faults: tuple[str, ...] = (), mode: str = "full", **changes: Any
    ) -> None:
        migration = MigrationConfig(**{**SMALL, **changes})
        offset_ns = wall_offset_ns()
        self.events: list[dict[str, Any]] = []
        self.results: dict[str, Result] = {}

        def endpoint(role: str, address: str) -> EndpointConfig:
            return EndpointConfig(
                role=role,  # type: ignore[arg-type]
                migration=migration,
                folder=str(folder),
                address=address,
                clock_offset_ns=offset_ns,
            )

        unix = migration.transport == "unix"
        target = Target(endpoint("target", str(folder / "target") if unix else ""))
        name = "capture.pcapng" if migration.capture == "none" else "relay.pcapng"
        config = RelayConfig(
            target=target.address,
            listen=str(folder / "relay") if unix else "",
            transport="unix" if unix else "tcp",
            capture=str(folder / name),
            mode="headers" if mode == "headers" else "full",
            clock_offset_ns=offset_ns,
            faults=faults,
        )
        with RelayProcess(config, self.events.append) as relay:
            source = Source(endpoint("source", relay.address))
            threads = [
                threading.Thread(target=self._end, args=(role, end))
                for role, end in (("target", target), ("source", source))
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
            assert not any(thread.is_alive() for thread in threads)
        self.relay = relay.result
        assert not Path(f"/proc/{relay.pid}").exists()

    def _end(self, role: str, end: Source | Target) -> None:
        self.results[role] = end.run()

    @property
    def outcomes(self) -> tuple[str, str]:
        return self.results["source"].outcome, self.results["target"].outcome

    def struck(self) -> list[tuple[str, str, int]]:
        return [(e["fault"], e["channel"], e["offset"]) for e in self.events if e["event"] == "fault"]


# -- migrations ----------------------------------------------------------------------------------------


def streams(path: Path) -> Streams:
    """Every direction of every connection in a capture: opened by its sender or not, and its bytes."""
    _, taken = take_all(path)
    return sorted((sink.flow.initiator, bytes(sink.bytes)) for sink in taken)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"transport": "unix"},
        {"transfer": "main", "precopy_bytes": MIB},
        {"transfer": "main", "channels": 0},
        {"mode": "headers"},
        {"mode": "headers", "transfer": "main", "channels": 0, "transport": "unix"},
    ],
    ids=str,
)
def test_a_migration_through_it_holds(tmp_path: Path, changes: dict[str, Any]) -> None:
    run = Run(tmp_path, **changes)
    assert run.outcomes == ("completed", "completed")
    report = check_path(tmp_path)
    assert report.standing == "holds", report
    assert [device.equal for device in report.devices] == [True, True]
    moved = run.results["source"].moved_bytes
    assert run.relay == {
        "event": "result",
        "connections": 1 + changes.get("channels", 3),
        "moved_bytes": moved,
        "dropped": 0,
        "complaint": "",
    }


def test_its_capture_is_what_the_target_captured(tmp_path: Path) -> None:
    run = Run(tmp_path, capture="full", capture_at="target")
    assert run.outcomes == ("completed", "completed")
    assert streams(tmp_path / "relay.pcapng") == streams(tmp_path / "capture.pcapng")


def test_it_says_what_each_connection_carries(tmp_path: Path) -> None:
    run = Run(tmp_path)
    told = [event["channel"] for event in run.events if event["event"] == "channel"]
    assert sorted(told) == ["channel 0", "channel 1", "channel 2", "main"]


ONE = {"channels": 1}
SILENT = {"idle_timeout_s": 2.0}  # for faults that both ends can only wait for


@pytest.mark.parametrize(
    ("fault", "source", "target", "changes"),
    [
        ("channel.1:close@1MiB", "SHUT 1|broke", "channel 1, offset 1048576, .* the stream ends", {}),
        ("source.channel.1:close@1MiB", "SHUT 1|broke|silence", "silence|stream ends|closed", SILENT),
        ("target.channel.1:close@1MiB", "SHUT 1|broke", "channel 1, offset 1048576, .* the stream ends", {}),
        ("main:close@150", "without a verdict|broke", "main, .*(ends|closed)", {}),
        ("main:close@+0ms", "without a verdict|broke", "main, .*(ends|closed)|channel", {}),
        ("channel.0:flip=3@#0", "SHUT 1|broke|without", "magic", {}),
        ("channel.0:flip=3@#2", "SHUT 1|broke|without", "channel 0, .* magic", {}),
        ("main:flip=1@20", "SHUT 1|broke", "machine type 'pc-i440dx-10.0', here it is 'pc-i440fx-10.0'", {}),
        ("channel.0:drop@3MiB", "SHUT 1|broke|silence|without", "silence|never", ONE | SILENT),
        ("channel.0:cut@3MiB", "SHUT 1|broke|silence|without", "magic|ends|VFIO tag|silence", ONE | SILENT),
        ("main:drop@#0", "without a verdict|broke", "neither a main channel nor a multifd channel", {}),
        ("main:cut@20", "SHUT 1|broke|without", "main, ", {}),
        ("main:double@#1", "SHUT 1|broke", "main, offset 27, tag: no item begins with the byte 0x07", {}),
    ],
)
def test_a_fault_is_seen_at_both_ends(
    tmp_path: Path, fault: str, source: str, target: str, changes: dict[str, Any]
) -> None:
    run = Run(tmp_path, faults=(fault,), **changes)
    assert [struck[0] for struck in run.struck()] == [fault]
    assert run.outcomes == ("failed", "failed"), run.results
    assert re.search(source, run.results["source"].error), run.results["source"]
    assert re.search(target, run.results["target"].error), run.results["target"]
    assert check_path(tmp_path).standing != "holds"


def test_a_return_path_that_ends_is_seen_by_the_source(tmp_path: Path) -> None:
    run = Run(tmp_path, faults=("return-path:close",))
    source, target = run.results["source"], run.results["target"]
    assert (source.outcome, source.error) == (
        "failed",
        "return-path, SHUT: the target closed the main channel without a verdict",
    )
    assert target.outcome in ("completed", "failed")  # the source may have sent all by then


def test_the_last_word_of_the_target_is_lost(tmp_path: Path) -> None:
    run = Run(tmp_path, faults=("return-path:drop",), idle_timeout_s=2.0)
    assert run.results["target"].runs
    assert run.results["source"].outcome == "failed"
    assert re.search("silence on all|without a verdict", run.results["source"].error), run.results


@pytest.mark.parametrize(
    "fault", ["channel.0:stall=300ms@#3", "main:stall=300ms@+0ms", "return-path:stall=300ms"]
)
def test_a_stall_takes_its_time_and_breaks_nothing(tmp_path: Path, fault: str) -> None:
    run = Run(tmp_path, faults=(fault,))
    assert run.outcomes == ("completed", "completed")
    assert [struck[0] for struck in run.struck()] == [fault]
    assert check_path(tmp_path).standing == "holds"


def test_a_flipped_bit_of_the_state_is_found_by_the_judge_alone(tmp_path: Path) -> None:
    run = Run(tmp_path, faults=("channel.0:flip=800000@#3",))
    assert run.outcomes == ("completed", "completed")
    assert {violation.id for violation in check_path(tmp_path).violations} >= {"EQ-1"}


# -- connections ---------------------------------------------------------------------------------------


class Pair:
    """Two sockets with a relay between them."""

    def __init__(self, **config: Any) -> None:
        self.events: list[dict[str, Any]] = []
        self.server = socket.create_server(("127.0.0.1", 0))
        self.server.settimeout(20)
        host, port = self.server.getsockname()
        self.relay = RelayProcess(RelayConfig(target=f"{host}:{port}", **config), self.events.append)
        self.near = self.connect()
        self.far = self.server.accept()[0]
        self.far.settimeout(20)

    def connect(self) -> socket.socket:
        host, _, port = self.relay.address.rpartition(":")
        sock = socket.create_connection((host, int(port)))
        sock.settimeout(20)
        return sock

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *_: object) -> None:
        for sock in (self.near, self.far, self.server):
            sock.close()
        self.relay.close()


def send_all(sock: socket.socket, data: bytes) -> threading.Thread:
    thread = threading.Thread(target=sock.sendall, args=(data,))
    thread.start()
    return thread


def test_strangers_pass_both_ways_and_each_direction_ends_alone(tmp_path: Path) -> None:
    path = tmp_path / "capture.pcapng"
    with Pair(capture=str(path)) as pair:
        sender = send_all(pair.near, BYTES)
        assert pair.far.recv(3, socket.MSG_WAITALL) == BYTES[:3]
        found = bytearray()
        while len(found) < len(BYTES) - 3:
            found += pair.far.recv(1 << 20)
        sender.join()
        assert found == BYTES[3:]
        pair.near.shutdown(socket.SHUT_WR)
        assert pair.far.recv(1) == b""
        sender = send_all(pair.far, BYTES[::-1])  # the other direction goes on
        answer = bytearray()
        while len(answer) < len(BYTES):
            answer += pair.near.recv(1 << 20)
        sender.join()
        assert answer == BYTES[::-1]
        pair.far.close()
        assert pair.near.recv(1) == b""
        assert pair.relay.close()["moved_bytes"] == 2 * len(BYTES)
    assert streams(path) == sorted([(True, BYTES), (False, BYTES[::-1])])


@pytest.mark.parametrize("end", ["near", "far"])
def test_a_reset_is_passed_on(end: str) -> None:
    with Pair() as pair:
        pair.near.sendall(b"four")
        assert pair.far.recv(4, socket.MSG_WAITALL) == b"four"
        breaks, sees = (pair.near, pair.far) if end == "near" else (pair.far, pair.near)
        breaks.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        breaks.close()
        with pytest.raises(ConnectionResetError):
            sees.recv(1)


def test_what_is_not_taken_is_not_taken_from_the_sender() -> None:
    with Pair() as pair:
        sent = send_until_full(pair.near)
        status = Path(f"/proc/{pair.relay.pid}/status").read_text()
        resident = re.search(r"RssAnon:\s+(\d+) kB", status)
        assert resident is not None
        assert int(resident[1]) < 64 << 10
        found = 0
        while found < sent:
            found += len(pair.far.recv(1 << 20))
        assert found == sent


def send_until_full(sock: socket.socket) -> int:
    """Bytes sent until no more were taken for a while."""
    sock.settimeout(0.5)
    sent = 0
    with contextlib.suppress(TimeoutError):
        while sent < 1 << 30:
            sent += sock.send(BYTES)
    return sent


def test_a_target_that_does_not_listen_is_a_reset_for_the_source() -> None:
    with Pair() as pair:
        pair.server.close()
        sock = pair.connect()
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
        sock.close()
        pair.near.close()
        pair.far.close()
        pair.relay.close()
        trouble = [event["message"] for event in pair.events if event["event"] == "trouble"]
        assert len(trouble) == 1
        assert re.fullmatch(r"cannot connect to 127\.0\.0\.1:\d+: Connection refused", trouble[0])


def test_what_cannot_begin_says_why(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = "{}:{}".format(*taken.getsockname())
        with pytest.raises(VfmigError, match=r"cannot listen at .*: Address already in use"):
            RelayProcess(RelayConfig(target=address, listen=address))
    with pytest.raises(VfmigError, match=r"capture\.pcapng cannot be written"):
        RelayProcess(RelayConfig(target="127.0.0.1:1", capture=str(tmp_path / "no" / "capture.pcapng")))
    with pytest.raises(VfmigError, match=r"no place is called 'chanel\.1'"):
        RelayProcess(RelayConfig(target="127.0.0.1:1", faults=("chanel.1:close",)))


def test_it_ends_with_its_parent() -> None:
    program = (
        "import os, signal, time\n"
        "from mockdev.lab.relay import RelayConfig, RelayProcess\n"
        "relay = RelayProcess(RelayConfig(target='127.0.0.1:1'))\n"
        "print(relay.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, timeout=60)
    assert done.returncode == -signal.SIGKILL
    pid = int(done.stdout)
    with_deadline(lambda: not running(pid))


def test_killed_it_takes_nothing_with_it_but_the_connections() -> None:
    with Pair() as pair:
        pair.near.sendall(b"four")
        assert pair.far.recv(4, socket.MSG_WAITALL) == b"four"
        os.kill(pair.relay.pid, signal.SIGKILL)
        for sock in (pair.near, pair.far):
            assert sock.recv(1) == b""
        assert pair.relay.close() == {}


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def with_deadline(done: Callable[[], bool]) -> None:
    """Wait until something is so."""
    waiting = threading.Event()
    for _ in range(2000):
        if done():
            return
        waiting.wait(0.01)
    raise AssertionError("it never came")


# -- streams, without sockets --------------------------------------------------------------------------


def channel_stream() -> list[bytes]:
    """The packets of a channel."""
    state = [
        writer.device_state_packet("vf0", 0, n, 700, config=False) + BYTES[n : n + 700] for n in range(5)
    ]
    return [writer.init_packet(1, bytes(16)), writer.sync_packet(0), *state]


def cut_at(data: bytes, cuts: list[int]) -> list[memoryview]:
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [memoryview(data)[a:b] for a, b in pairwise(places)]


CUTS = st.lists(st.integers(0, 1 << 20), max_size=12)


@given(CUTS)
def test_units_of_a_channel_are_its_packets(cuts: list[int]) -> None:
    packets = channel_stream()
    units = Units(multifd_channel())
    found: dict[int, bytes] = {}
    sizes = []
    for data in cut_at(b"".join(packets), cuts):
        for piece in units.feed(data):
            found[piece.unit] = found.get(piece.unit, b"") + piece.data
            sizes += [piece.unit_size] if piece.first else []
    assert list(found.values()) == packets
    assert sizes == list(map(len, packets))


@given(st.binary(max_size=300), CUTS, st.sampled_from([multifd_channel, main_channel]))
def test_nothing_is_lost_of_what_is_not_understood(data: bytes, cuts: list[int], syntax: Any) -> None:
    data = b"".join(channel_stream())[: len(data) * 7] + data
    units = Units(syntax())
    found = b"".join(bytes(piece.data) for part in cut_at(data, cuts) for piece in units.feed(part))
    assert found + b"".join(bytes(piece.data) for piece in units.flush()) == data


def passed(fault: str, cuts: list[int]) -> tuple[bytes, list[int]]:
    """What becomes of the channel's stream, and where the fault struck."""
    passage = Passage([parse(fault)], multifd_channel)
    out = b""
    at: list[int] = []
    steps = [step for data in cut_at(b"".join(channel_stream()), cuts) for step in passage.feed(data, 5, 0)]
    for step in [*steps, *passage.flush(5, 0)]:
        if isinstance(step, Struck):
            at.append(step.offset)
        else:
            out += step
    return out, at


@given(CUTS, st.integers(0, 6))
def test_packets_are_dropped_doubled_and_cut_whole(cuts: list[int], number: int) -> None:
    packets = channel_stream()
    start = sum(map(len, packets[:number]))
    before, packet, after = b"".join(packets[:number]), packets[number], b"".join(packets[number + 1 :])
    for when in (f"#{number}", f"{start + 10}"):
        assert passed(f"channel.1:drop@{when}", cuts) == (before + after, [start])
        assert passed(f"channel.1:double@{when}", cuts) == (before + packet * 2 + after, [start])
    assert passed(f"channel.1:cut@{start + 10}", cuts) == (before + packet[:10] + after, [start])


@given(CUTS, st.integers(0, 3000), st.integers(0, 100))
def test_bytes_are_flipped_and_ends_come_where_they_are_told_to(cuts: list[int], at: int, bit: int) -> None:
    whole = b"".join(channel_stream())
    flipped = bytearray(whole)
    flipped[at + bit // 8] ^= 1 << bit % 8
    assert passed(f"channel.1:flip={bit}@{at}", cuts) == (bytes(flipped), [at + bit // 8])
    for what in ("close", "stall=1s"):
        assert passed(f"channel.1:{what}@{at}", cuts) == (whole, [at])
    packets = channel_stream()
    assert passed("channel.1:close@#3", cuts)[1] == [sum(map(len, packets[:3]))]
    assert passed("channel.1:close@+0ms", [])[1] == [0]
    assert passed("channel.1:close@+1s", cuts) == (whole, [])
