# SPDX-License-Identifier: GPL-2.0-or-later
"""What the endpoints' tap writes is read back byte for byte, by us and by tshark."""

from __future__ import annotations

import random
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mockdev.errors import VfmigError
from mockdev.runtime.pcap_writer import SEGMENT_BYTES_MAX, Elided, PcapngWriter
from tests.capture_files import EPOCH_NS, take_all
from tests.examples import examples
from verifier.capture.pcapng import open_capture

LOCAL, PEER = ("127.0.0.1", 4000), ("127.0.0.2", 5000)
BYTES = random.Random(2).randbytes(300_000)
DIGEST = "xxh3-128:0123456789abcdef0123456789abcdef"


def tshark(path: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["tshark", "-n", "-r", str(path), *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout


def followed(path: Path, stream: int) -> tuple[bytes, bytes]:
    """What tshark's "follow TCP stream" gives: the bytes from the first node, and those to it."""
    lines = tshark(path, "-q", "-z", f"follow,tcp,raw,{stream}").splitlines()
    sides = [bytearray(), bytearray()]
    for line in lines:
        if re.fullmatch(r"\t?[0-9a-f]+", line):
            sides[line.startswith("\t")] += bytes.fromhex(line)
    return bytes(sides[0]), bytes(sides[1])


@pytest.mark.parametrize("hosts", [("127.0.0.1", "127.0.0.2"), ("::1", "fd00::2"), ("::1", "10.0.0.1")])
def test_tshark_follows_the_same_bytes(tmp_path: Path, hosts: tuple[str, str]) -> None:
    path = tmp_path / "a.pcapng"
    writer = PcapngWriter(path, ["source"])
    taps = [
        writer.connection((hosts[0], 4000 + n), (hosts[1], 5000), EPOCH_NS, accepted=n == 1) for n in range(2)
    ]
    for tap in taps:
        tap.sent([BYTES[:10], memoryview(BYTES)[10:200_001], bytearray(b"x")], EPOCH_NS + 10)
        tap.received([b"reply"], EPOCH_NS + 20)
        tap.sent([BYTES[200_001:]], EPOCH_NS + 30)
        tap.close(EPOCH_NS + 40)
        tap.close(EPOCH_NS + 41)
    writer.close()
    sent = BYTES[:200_001] + b"x" + BYTES[200_001:]
    assert followed(path, 0) == (sent, b"reply")
    assert followed(path, 1) == (b"reply", sent)
    assert (
        tshark(
            path,
            "-Y",
            "tcp.analysis.flags || ip.checksum.status == 0 || _ws.malformed",
            "-o",
            "ip.check_checksum:TRUE",
        )
        == ""
    )
    accounting, taken = take_all(path)
    assert [sink.bytes for sink in taken] == [sent, b"reply", b"reply", sent]
    assert [sink.ends for sink in taken] == [["fin"]] * 4
    assert [sink.flow.initiator for sink in taken] == [True, False] * 2
    assert not any(sink.flow.joined_midway for sink in taken)
    assert accounting.unread.total() == 0


@settings(max_examples=examples(60))
@given(
    calls=st.lists(
        st.tuples(
            st.integers(0, 1),
            st.booleans(),
            st.lists(st.integers(0, 140_000), max_size=4),
            st.integers(0, 5 * SEGMENT_BYTES_MAX),
        ),
        max_size=8,
    ),
)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, calls: list[tuple[int, bool, list[int], int]]
) -> None:
    """Any calls in any order: the same streams come out, and what was left away as holes."""
    path = tmp_path_factory.getbasetemp() / "written"
    writer = PcapngWriter(path, ["a", "b"])
    taps = [writer.connection(LOCAL, PEER, EPOCH_NS, interface=n) for n in range(2)]
    wanted: list[list[int | None]] = [[], [], [], []]
    notes: list[list[str]] = [[], [], [], []]
    for number, outwards, sizes, elided in calls:
        buffers = [BYTES[-size:] if size else b"" for size in sizes]
        (taps[number].sent if outwards else taps[number].received)(
            buffers, EPOCH_NS, Elided(elided, DIGEST) if elided else None
        )
        side = 2 * number + (not outwards)
        for buffer in buffers:
            wanted[side] += buffer
        if elided:
            notes[side].append(f"vfmig payload {elided} {DIGEST}")
            wanted[side] += [None] * elided
    writer.close()
    accounting, taken = take_all(path)
    assert [sink.stream for sink in taken] == wanted
    assert [[hole[3] for hole in sink.holes if hole[3]] for sink in taken] == notes
    assert {hole[2] for sink in taken for hole in sink.holes} <= {"snapped"}
    assert accounting.missing_bytes == writer.dropped == 0
    with open_capture(path) as capture:
        count = sum(1 for _ in capture.packets())
        assert capture.truncated == ""
        assert [point.name for point in capture.interfaces] == ["a", "b"]
        assert sum(point.received or 0 for point in capture.interfaces) == count
        assert capture.drops == 0


def test_in_headers_mode_the_file_is_small_and_tshark_knows_the_length(tmp_path: Path) -> None:
    path = tmp_path / "a.pcapng"
    writer = PcapngWriter(path, ["source"])
    tap = writer.connection(LOCAL, PEER, EPOCH_NS)
    tap.sent([b"header"], EPOCH_NS, Elided(200_000, DIGEST))
    writer.close()
    assert path.stat().st_size < 2000
    lengths = tshark(path, "-T", "fields", "-e", "tcp.len", "-Y", "tcp.len > 0").split()
    assert [int(length) for length in lengths] == [
        6,
        SEGMENT_BYTES_MAX,
        SEGMENT_BYTES_MAX,
        SEGMENT_BYTES_MAX,
        3515,
    ]
    assert DIGEST in tshark(path, "-T", "fields", "-e", "frame.comment")


def test_connections_without_addresses_get_some_of_their_own(tmp_path: Path) -> None:
    writer = PcapngWriter(tmp_path / "a", ["source"])
    for number in range(3):
        writer.connection("/run/socket", None, EPOCH_NS).sent([bytes([number]) * 4], EPOCH_NS)
    writer.close()
    accounting, taken = take_all(tmp_path / "a")
    assert [sink.bytes for sink in taken if sink.stream] == [bytes([number]) * 4 for number in range(3)]
    assert accounting.connections == 3
    assert len({sink.flow.source for sink in taken}) == 3 + 1  # three callers, and the target they called


def test_a_reset_is_told_from_an_end(tmp_path: Path) -> None:
    writer = PcapngWriter(tmp_path / "a", ["source"])
    tap = writer.connection(LOCAL, PEER, EPOCH_NS)
    tap.sent([b"abc"], EPOCH_NS)
    tap.close(EPOCH_NS, reset=True)
    writer.connection(PEER, LOCAL, EPOCH_NS)
    writer.close()
    _, taken = take_all(tmp_path / "a")
    assert [sink.ends for sink in taken] == [["rst"], ["rst"], ["cut"], ["cut"]]


def test_one_side_may_end_before_the_other(tmp_path: Path) -> None:
    writer = PcapngWriter(tmp_path / "a", ["source"])
    tap = writer.connection(LOCAL, PEER, EPOCH_NS)
    tap.sent([b"abc"], EPOCH_NS)
    tap.finish(EPOCH_NS + 1, local=True)
    tap.received([b"de"], EPOCH_NS + 2)
    tap.finish(EPOCH_NS + 3, local=False)
    broken = writer.connection(PEER, LOCAL, EPOCH_NS)
    broken.close(EPOCH_NS + 4, reset=True)
    broken.finish(EPOCH_NS + 5, local=True)  # too late to count
    writer.close()
    _, taken = take_all(tmp_path / "a")
    assert [(sink.bytes, sink.ends) for sink in taken] == [
        (b"abc", ["fin"]),
        (b"de", ["fin"]),
        (b"", ["rst"]),
        (b"", ["rst"]),
    ]


def test_many_threads_write_one_file(tmp_path: Path) -> None:
    writer = PcapngWriter(tmp_path / "a", ["source"])

    def work(number: int) -> None:
        tap = writer.connection((f"127.0.0.{number + 1}", 1), PEER, EPOCH_NS)
        for step in range(50):
            tap.sent([bytes([number, step]), memoryview(BYTES)[: 1000 * number]], EPOCH_NS)
        tap.close(EPOCH_NS)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.close()
    _, taken = take_all(tmp_path / "a")
    for sink in taken:
        number = int(sink.flow.source.host.rpartition(".")[2]) - 1
        if sink.flow.initiator:
            assert sink.bytes == b"".join(
                bytes([number, step]) + BYTES[: 1000 * number] for step in range(50)
            )


def test_a_full_disk_stops_the_capture_and_not_the_endpoint(tmp_path: Path) -> None:
    """The size limit of files stands in for the disk; run apart, since the limit is one of the process."""
    code = f"""
import resource, signal
from mockdev.runtime.pcap_writer import PcapngWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
writer = PcapngWriter({str(tmp_path / "a")!r}, ["source"])
tap = writer.connection({LOCAL!r}, {PEER!r}, {EPOCH_NS})
for _ in range(10):
    tap.sent([b"h" * 48, bytes(100_000)], {EPOCH_NS})
tap.close({EPOCH_NS})
writer.close()
print(writer.dropped, writer.complaint)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd()
    )
    assert done.stderr == ""
    dropped, _, complaint = done.stdout.partition(" ")
    assert re.search(r"stops after 20\d{4} bytes: File too large", complaint)
    accounting, taken = take_all(tmp_path / "a")
    assert taken[0].bytes == (b"h" * 48 + bytes(100_000)) * 2
    with open_capture(tmp_path / "a") as capture:
        kept = sum(1 for _ in capture.packets())
        assert capture.truncated == ""
        assert capture.drops == int(dropped) == 8 * 2 + 3
        assert capture.interfaces[0].received == kept + capture.drops
    assert accounting.packets == kept == 3 + 2 * 2
    assert tshark(tmp_path / "a", "-Y", "tcp.len > 0").count("\n") == 4


def test_a_file_never_finished_is_readable(tmp_path: Path) -> None:
    writer = PcapngWriter(tmp_path / "a", ["source"])
    writer.connection(LOCAL, PEER, EPOCH_NS).sent([b"abc"], EPOCH_NS)
    _, taken = take_all(tmp_path / "a")
    assert taken[0].bytes == b"abc"
    with open_capture(tmp_path / "a") as capture:
        list(capture.packets())
        assert capture.drops is None  # nothing has been said yet
    writer.close()


def test_a_path_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(VfmigError, match="cannot be written: No such file or directory"):
        PcapngWriter(tmp_path / "no" / "a", ["source"])


def test_after_close_nothing_is_written_and_nothing_raised(tmp_path: Path) -> None:
    writer = PcapngWriter(tmp_path / "a", ["source"])
    tap = writer.connection(LOCAL, PEER, EPOCH_NS)
    writer.close()
    size = (tmp_path / "a").stat().st_size
    tap.sent([b"abc"], EPOCH_NS)
    tap.close(EPOCH_NS)
    writer.close()
    assert (tmp_path / "a").stat().st_size == size
    assert writer.dropped == 4
