# SPDX-License-Identifier: GPL-2.0-or-later
"""A segment whose checksum shows damage is left as its receiver leaves it; one that says nothing is used."""

from __future__ import annotations

import random
import struct
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from mockdev.wire.seal import SEAL_BYTES
from tests.canaries.script import good
from tests.capture_files import (
    ACK,
    CLIENT,
    FIN,
    PSH,
    RST,
    SERVER,
    SYN,
    Frame,
    Taken,
    clock,
    pcap,
    pcapng,
    take_all,
    tcp,
    word_sum,
)
from verifier.bench.resegment import resegment
from verifier.capture.checksums import MODULUS, WRONG_MAX, all_right, summed
from verifier.capture.growing import open_growing
from verifier.capture.pcapng import open_capture
from verifier.capture.reassembly import BAD_SUM, Accounting, Flow, reassemble
from verifier.check import check_path
from verifier.verdict import Report, Standing

STREAM = random.Random(2).randbytes(400_000)
TCP_AT = 14 + 20  # in a frame over IPv4
# Of a TCP header: with other ports it is another connection's, with another length mostly none at all.
NOT_TOLD = (0, 1, 2, 3, 12)
Make = Callable[..., bytes]


def out(seq: int, payload: bytes = b"", flags: int = ACK, checksum: str = "whole", **more: object) -> bytes:
    return tcp(CLIENT, SERVER, seq, payload, flags=flags, checksum=checksum, **more)  # type: ignore[arg-type]


def back(seq: int, payload: bytes = b"", flags: int = ACK, checksum: str = "whole", **more: object) -> bytes:
    return tcp(SERVER, CLIENT, seq, payload, flags=flags, checksum=checksum, **more)  # type: ignore[arg-type]


def opening(checksum: str = "whole", make: Make = out, answer: Make = back) -> list[bytes]:
    return [
        make(99, flags=SYN, checksum=checksum),
        answer(499, flags=SYN | ACK, ack=100, checksum=checksum),
        make(100, ack=500, checksum=checksum),
    ]


def stream(
    count: int, size: int = 100, checksum: str = "whole", make: Make = out, base: int = 100
) -> list[bytes]:
    """The stream in segments, from its start."""
    return [make(base + size * n, STREAM[size * n : size * (n + 1)], checksum=checksum) for n in range(count)]


def flipped(frame: bytes, offset: int, bit: int = 0) -> bytes:
    changed = bytearray(frame)
    changed[offset] ^= 1 << bit
    return bytes(changed)


def spoilt(frame: bytes, tcp_at: int = TCP_AT, by: int = 0x1234) -> bytes:
    """With a checksum that means nothing."""
    (field,) = struct.unpack_from(">H", frame, tcp_at + 16)
    value = (field + by) % 0xFFFF or 1
    return frame[: tcp_at + 16] + struct.pack(">H", value) + frame[tcp_at + 18 :]


def run(tmp_path: Path, frames: Sequence[bytes], **limits: int) -> tuple[Accounting, list[Taken]]:
    return take_all(tmp_path / "capture", pcapng(list(clock(frames))), **limits)


@pytest.mark.parametrize(
    "size", [0, 1, 2, 3, 19, 20, 21, 191, 192, 767, 1_460, 1_535, 1_537, 8_959, 65_495, 300_001]
)
def test_a_sum_is_that_of_the_words(size: int) -> None:
    for data in (STREAM[3 : 3 + size], bytes(size), b"\xff" * size):
        assert summed(b"x" + data + b"y", 1, 1 + size) * 256 % MODULUS == word_sum(data) % MODULUS


def test_no_bit_of_a_segment_can_change_and_be_used(tmp_path: Path) -> None:
    """Header or payload, at the stream's start, inside and at its end, where bytes of it then are missing."""
    chance = random.Random(3)
    whole = stream(6)
    end = [out(700, flags=FIN | ACK), back(500, ack=701)]
    for victim in (0, 3, 5):
        for offset in range(TCP_AT, len(whole[victim])):
            frames = [*opening(), *whole, *end]
            frames[3 + victim] = flipped(frames[3 + victim], offset, chance.randrange(8))
            accounting, taken = run(tmp_path, frames)
            client = taken[0]
            assert client.stream[: 100 * victim] == list(STREAM[: 100 * victim])
            assert client.stream[100 * victim : 100 * (victim + 1)] == [None] * 100
            assert client.stream[100 * (victim + 1) :] == list(STREAM[100 * (victim + 1) : 600])
            if offset - TCP_AT not in NOT_TOLD:
                assert client.holes[0][2] == "damaged" or 4 <= offset - TCP_AT < 8  # its number is another
                assert client.flow.damaged_packet == 4 + victim
                assert accounting.unread == {BAD_SUM: 1}


@pytest.mark.parametrize("later", [0, 1, 5])
@pytest.mark.parametrize("victim", [0, 4, 9])
def test_what_is_sent_again_makes_up_for_damage(tmp_path: Path, victim: int, later: int) -> None:
    whole = stream(10)
    frames = [*opening(), *whole, out(1_100, flags=FIN | ACK)]
    damaged = 3 + victim
    frames.insert(min(damaged + 1 + later, len(frames)), frames[damaged])
    frames[damaged] = flipped(frames[damaged], TCP_AT + 50)
    accounting, (client, _) = run(tmp_path, frames)
    assert client.bytes == STREAM[:1000]
    assert client.flow.damaged_packet == client.flow.conflicts == client.flow.duplicated_bytes == 0
    assert accounting.unread == {BAD_SUM: 1}


def test_a_damaged_repetition_is_no_conflict(tmp_path: Path) -> None:
    whole = stream(5)
    _, (client, _) = run(tmp_path, [*opening(), *whole, flipped(whole[2], TCP_AT + 60), out(600, b"end")])
    assert client.bytes == STREAM[:500] + b"end"
    assert client.flow.damaged_packet == client.flow.conflicts == 0


def test_the_last_segment_of_a_stream_without_an_end(tmp_path: Path) -> None:
    frames = [*opening(), *stream(4), flipped(out(500, b"last"), TCP_AT + 21)]
    _, (client, _) = run(tmp_path, frames)
    assert client.holes == [(400, 4, "damaged", "")]
    _, (client, _) = run(tmp_path, [*frames, out(500, b"last", flags=PSH | ACK)])
    assert client.bytes == STREAM[:400] + b"last"


@pytest.mark.parametrize("position", range(0, 300, 7))
def test_damage_is_found_among_many_segments(tmp_path: Path, position: int) -> None:
    """Where checksums are looked at together, and whatever comes between."""
    frames = [*opening(), *stream(300, 400)]
    frames[3 + position] = flipped(frames[3 + position], TCP_AT + 20 + position, position % 8)
    for n in range(40, 280, 60):
        frames.insert(n, back(500, ack=100, checksum="partial"))
    _, (client, _) = run(tmp_path, frames)
    assert client.holes == [(400 * position, 400, "damaged", "")]
    assert all(byte is None or byte == STREAM[at] for at, byte in enumerate(client.stream))


def test_a_length_that_is_damaged_makes_no_shorter_segment(tmp_path: Path) -> None:
    """It is in the IP header, and part of the sum."""
    frames = [*opening(), *stream(300, 400)]
    for index in (3, 200, 302):
        changed = bytearray(frames[index])
        changed[14 + 3] -= 2
        _, (client, _) = run(tmp_path, [*frames[:index], bytes(changed), *frames[index + 1 :]])
        assert client.flow.damaged_packet == index + 1 or index == 302  # which nothing follows
        assert client.stream[400 * (index - 3) : 400 * (index - 2)] in ([None] * 400, [None] * 398)


def test_short_ones_are_looked_at_one_by_one(tmp_path: Path) -> None:
    frames = [*opening(), *stream(150, 400), out(60_100, b"short"), *stream(150, 400, base=60_105)]
    frames[153] = flipped(frames[153], TCP_AT + 21)
    assert run(tmp_path, frames)[1][0].holes == [(60_000, 5, "damaged", "")]


def test_what_was_read_ahead_is_not_right_because_the_others_are(tmp_path: Path) -> None:
    syn, _, plain = opening()
    frames = [syn, back(499, flags=SYN | ACK, ack=100, checksum="partial"), plain, *stream(400, 400)]
    frames.insert(250, spoilt(back(500, b"short")))
    for victim in range(252, 300):
        changed = [*frames]
        changed[victim] = flipped(frames[victim], TCP_AT + 100)
        assert run(tmp_path, changed)[1][0].holes == [(400 * (victim - 4), 400, "damaged", "")]


def test_checksums_together_are_right_when_each_is(tmp_path: Path) -> None:
    path = tmp_path / "capture"
    for victim in (None, 0, 17, 39):
        frames = [*stream(40, 300), back(500, b"x", checksum="")]
        if victim is not None:
            frames[victim] = flipped(frames[victim], TCP_AT + 50)
        path.write_bytes(pcapng(list(clock(frames))))
        with open_capture(path) as capture:
            assert all_right(capture.data, list(capture.packets()), 14 + 12, TCP_AT) is (victim is None)


@pytest.mark.parametrize("count", [1, 3, 300])
def test_a_direction_without_a_right_checksum_is_used_as_it_is(tmp_path: Path, count: int) -> None:
    """Offload that leaves garbage; the answers are right, and damage of one of them is seen."""
    chance = random.Random(4)
    garbage = [spoilt(frame, by=chance.randrange(1, 0xFFFF)) for frame in stream(count)]
    garbage[0] = flipped(garbage[0], TCP_AT + 40)
    syn, answer, plain = opening()
    frames = [spoilt(syn), answer, spoilt(plain), *garbage]
    frames += [back(500, b"yes"), flipped(back(503, b"damaged"), TCP_AT + 22), back(510, b"no")]
    accounting, (client, server) = run(tmp_path, frames)
    assert client.bytes == flipped(STREAM[: 100 * count], 20)
    assert client.flow.damaged_packet == 0
    assert server.holes == [(3, 7, "damaged", "")]
    assert accounting.unread == {BAD_SUM: 1}


@pytest.mark.parametrize("checksum", ["partial", "bare", ""])
def test_what_offload_leaves_says_nothing(tmp_path: Path, checksum: str) -> None:
    frames = [*opening(checksum), *stream(5, checksum=checksum)]
    frames[6] = flipped(frames[6], TCP_AT + 77)
    for extra in ([], [out(600, b"whole")]):  # among such that say something, too
        accounting, (client, _) = run(tmp_path, [*frames, *extra])
        assert client.bytes == flipped(STREAM[:500], 300 + 57) + b"whole" * len(extra)
        assert not accounting.unread


def test_large_segments_have_checksums_too(tmp_path: Path) -> None:
    frames = [*opening(), *stream(5, 65_400)]
    assert run(tmp_path, frames)[1][0].bytes == STREAM[: 5 * 65_400]
    frames[5] = flipped(frames[5], 40_000)
    assert run(tmp_path, frames)[1][0].holes == [(2 * 65_400, 65_400, "damaged", "")]


def test_ipv6_with_and_without_headers_in_between(tmp_path: Path) -> None:
    ends = (("fd00::1", 1), ("fd00::2", 2))

    def make(seq: int, payload: bytes = b"", flags: int = ACK, **more: object) -> bytes:
        return tcp(ends[0], ends[1], seq, payload, flags=flags, **more)  # type: ignore[arg-type]

    def answer(seq: int, payload: bytes = b"", flags: int = ACK, **more: object) -> bytes:
        return tcp(ends[1], ends[0], seq, payload, flags=flags, **more)  # type: ignore[arg-type]

    extension = b"\x06\x00\x01\x04\0\0\0\0"
    last = make(1101, STREAM[1001:1200], ip_options=extension, checksum="whole")
    frames = [
        *opening(make=make, answer=answer),
        *stream(10, make=make),
        make(1100, STREAM[1000:1001], checksum="whole"),
        last,
    ]
    assert run(tmp_path, frames)[1][0].bytes == STREAM[:1200]
    for index, offset in ((5, 14 + 40 + 33), (5, 14 + 40 + 5), (14, 14 + 48 + 20), (13, 14 + 40 + 20)):
        changed = [*frames]
        changed[index] = flipped(frames[index], offset)
        client = run(tmp_path, changed)[1][0]
        assert client.flow.damaged_packet == index + 1
        assert all(byte is None or byte == STREAM[at] for at, byte in enumerate(client.stream))
    for checksum in ("partial", "bare"):
        frames = [*opening(checksum, make, answer), *stream(10, make=make, checksum=checksum)]
        assert run(tmp_path, [*frames[:6], flipped(frames[6], 90), *frames[7:]])[1][0].holes == []


def test_options_tags_and_padding_are_taken_into_account(tmp_path: Path) -> None:
    frames = [
        *opening(),
        out(100, b"ab", ip_options=b"\1\1\1\1", tcp_options=bytes([1] * 12)),
        out(102, b"c") + bytes(5),
        out(103, b"de", tags=[5, 6]),
        *(out(105 + 200 * n, STREAM[200 * n : 200 * (n + 1)]) + b"tail" for n in range(300)),
    ]
    assert run(tmp_path, frames)[1][0].bytes == b"abcde" + STREAM[:60_000]
    for index, offset in ((3, TCP_AT + 4 + 33), (4, TCP_AT + 20), (5, TCP_AT + 8 + 21), (200, TCP_AT + 70)):
        changed = [*frames]
        changed[index] = flipped(frames[index], offset)
        assert [hole[2] for hole in run(tmp_path, changed)[1][0].holes] == ["damaged"]


def test_acknowledgements_and_shortened_packets(tmp_path: Path) -> None:
    """A wrong checksum of a plain acknowledgement is nothing to anybody; one that was cut cannot be told."""
    frames = [*opening(), *stream(3), flipped(back(500, ack=400), TCP_AT + 14), *stream(9)[3:]]
    assert run(tmp_path, frames)[1][0].bytes == STREAM[:900]
    whole = [Frame(data) for data in [*opening(), *stream(4)]]
    whole[4] = Frame(flipped(whole[4].data, TCP_AT + 22)[:80], original=len(whole[4].data))
    accounting, (client, _) = take_all(tmp_path / "cut", pcapng(whole))
    assert client.holes == [(126, 74, "snapped", "")]
    assert client.stream[102] == STREAM[102] ^ 1
    assert not accounting.unread


def test_a_wrong_checksum_before_any_right_one(tmp_path: Path) -> None:
    """What comes after it tells which of both it is; what cannot be told is used, and named later."""
    first, *rest = stream(4)
    unsaid = opening("partial")
    _, (client, _) = run(tmp_path, [*unsaid, flipped(first, 70), *rest])
    assert client.holes == [(0, 100, "damaged", "")]
    assert client.flow.damaged_packet == 4
    others = [back(500 + n, b"x") for n in range(1000)]
    _, (client, _) = run(tmp_path, [*unsaid, flipped(first, 70), *others, *rest])
    assert client.bytes == flipped(STREAM[:400], 70 - TCP_AT - 20)
    assert client.flow.damaged_packet == 4
    _, (client, _) = run(tmp_path, [*unsaid, flipped(first, 70), *others])
    assert client.flow.damaged_packet == 0
    for wrong in (WRONG_MAX, WRONG_MAX + 1):  # it and those that are looked at
        frames = stream(20)
        frames[:wrong] = [flipped(frame, 70) for frame in frames[:wrong]]
        _, (client, _) = run(tmp_path, [*unsaid, *frames])
        assert bool(client.holes) is (wrong == WRONG_MAX)


def test_the_same_ends_again_have_the_same_card(tmp_path: Path) -> None:
    again = opening(
        "partial", lambda seq, **more: out(seq + 5000, **more), lambda seq, **more: back(seq, **more)
    )
    frames = [*opening(), *stream(3), *again, flipped(out(5100, b"one"), 56)]
    _, (_, _, client, _) = run(tmp_path, frames)
    assert client.holes == [(0, 3, "damaged", "")]


@pytest.mark.parametrize("wrong", [1, WRONG_MAX])
def test_a_growing_capture_is_not_waited_for(wrong: int, tmp_path: Path) -> None:
    path = tmp_path / "grows"
    frames = [*opening("partial"), *stream(20)]
    for index in (*range(3, 3 + wrong), 13):
        frames[index] = flipped(frames[index], 70)
    path.write_bytes(pcapng(list(clock(frames))))
    taken: list[Taken] = []

    def turn(waiting: bool) -> None:
        if waiting:
            raise EOFError

    capture = open_growing(path, turn)
    assert capture is not None
    view = memoryview(capture.data)

    def factory(flow: Flow) -> Taken:
        taken.append(Taken(flow, view))
        return taken[-1]

    with suppress(EOFError):
        reassemble(capture, factory)
    client = taken[0]
    assert client.stream[:100] == list(flipped(STREAM[:100], 70 - TCP_AT - 20))
    given = (1000, 4) if wrong == 1 else (2000, 0)
    assert (len(client.stream), client.flow.damaged_packet) == given
    view.release()
    capture.close()


def test_longer_than_the_peer_takes_is_no_segment_of_a_wire(tmp_path: Path) -> None:
    """A card put it together, or will cut it, and nobody sums that."""
    mss = struct.pack(">BBBBH", 1, 1, 2, 4, 100) + b"\0\0"
    syn, answer, plain = opening()
    answer = back(499, flags=SYN | ACK, ack=100, tcp_options=mss)
    large = spoilt(out(100, STREAM[:500]))
    _, (client, _) = run(tmp_path, [syn, answer, plain, large, out(600, STREAM[500:600])])
    assert client.bytes == STREAM[:600]
    _, (client, _) = run(tmp_path, [syn, answer, plain, out(600, STREAM[500:600]), large])
    assert client.bytes == STREAM[:600]
    small = spoilt(out(600, STREAM[500:600]))
    _, (client, _) = run(tmp_path, [syn, answer, plain, large, small])
    assert client.holes == [(500, 100, "damaged", "")]


def test_damage_never_opens_ends_or_resets_a_connection(tmp_path: Path) -> None:
    frames = [*opening(), *stream(3), flipped(out(400), TCP_AT + 13, 0), *stream(9)[3:]]
    for bit in (0, 1, 2):  # FIN, SYN, RST
        frames[6] = flipped(out(400), TCP_AT + 13, bit)
        _, (client, _) = run(tmp_path, frames)
        assert (client.bytes, client.ends) == (STREAM[:900], ["cut"])
    syn, answer, plain = opening()
    _, taken = run(tmp_path, [flipped(syn, TCP_AT + 7), syn, answer, plain, *stream(3)])
    assert [sink.bytes for sink in taken] == [STREAM[:300], b""]
    _, (_server, client) = run(tmp_path, [flipped(syn, TCP_AT + 7), answer, plain, *stream(3)])
    assert (client.bytes, client.flow.joined_midway) == (STREAM[:300], False)
    _, (client,) = run(tmp_path, [flipped(syn, TCP_AT + 7), *stream(3)])
    assert (client.flow.joined_midway, client.flow.damaged_packet) == (True, 1)
    _, (client, _) = run(tmp_path, [*opening(), *stream(2), spoilt(out(300, flags=RST)), out(300, b"more")])
    assert client.bytes == STREAM[:200] + b"more"


def test_more_damage_than_is_kept_in_mind(tmp_path: Path) -> None:
    frames = [*opening(), *stream(400)]
    for n in range(10, 390, 2):
        frames[n] = flipped(frames[n], TCP_AT + 33)
    _, (client, _) = run(tmp_path, frames)
    assert len(client.holes) == 190
    assert client.flow.damaged_packet == 11
    assert all(byte is None or byte == STREAM[at] for at, byte in enumerate(client.stream))
    healed = [bad for frame in stream(200) for bad in (flipped(frame, TCP_AT + 33), frame)]
    last = flipped(out(20_100, b"last"), TCP_AT + 22)
    _, (client, _) = run(tmp_path, [*opening(), *healed, last, out(20_104, b"more")])
    assert client.holes == [(20_000, 4, "damaged", "")]


@pytest.mark.parametrize("seed", range(40))
def test_a_bad_line_with_a_good_sender(tmp_path: Path, seed: int) -> None:
    """Segments are lost, damaged, late, and sent again until each came once as it was: all is there."""
    chance = random.Random(seed)
    count, size = chance.randrange(5, 300), chance.choice((1, 7, 100, 333))
    left = [*enumerate(stream(count, size))]
    wire: list[bytes] = []
    while left:
        again = []
        for number, frame in left:
            kind = chance.random()
            if kind < 0.1:
                again.append((number, frame))
                wire.append(flipped(frame, chance.randrange(TCP_AT + 4, len(frame)), chance.randrange(8)))
            elif kind < 0.15:
                again.append((number, frame))
            else:
                wire.append(frame)
        left = again
    content = [*opening(), *wire, out(100 + count * size, flags=FIN | ACK)]
    write = chance.choice((pcapng, pcap))
    _, (client, _) = take_all(tmp_path / "capture", write(list(clock(content))))
    assert client.bytes == STREAM[: count * size]
    assert client.flow.damaged_packet == client.flow.conflicts == 0
    assert client.ends == ["fin"]


# --- whole migrations ------------------------------------------------------------------------------


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """The good migration as tcpdump records it where checksums are whole: IPv4, with no seal."""
    path = tmp_path / "c.pcapng"
    good(journals=False).write_capture(path)
    raw = bytearray(path.read_bytes()[:-SEAL_BYTES])
    for start, stop in spans(raw):
        segment = bytes(raw[start + 20 : stop])
        head = raw[start + 12 : start + 20] + struct.pack(">HH", 6, len(segment))
        raw[start + 36 : start + 38] = struct.pack(">H", word_sum(bytes(head) + segment) ^ 0xFFFF)
    path.write_bytes(raw)
    return path


def spans(raw: bytes | bytearray) -> list[tuple[int, int]]:
    """Where the packets of a little-endian pcapng file lie: raw IP."""
    found, at = [], 0
    while at < len(raw):
        kind, length = struct.unpack_from("<II", raw, at)
        if kind == 6:
            (captured,) = struct.unpack_from("<I", raw, at + 20)
            found.append((at + 28, at + 28 + captured))
        at += length
    return found


def damaged(report: Report) -> list[str]:
    """What the report says of damage."""
    return [unknown.why for unknown in report.unknown if "wrong TCP checksum" in unknown.why]


def test_a_foreign_capture_without_damage_holds(foreign: Path) -> None:
    report = check_path(foreign)
    assert report.standing is Standing.HOLDS, report.unknown
    # Sums that say nothing are those of most captures on one machine.
    raw = bytearray(foreign.read_bytes())
    for start, _ in spans(raw):
        raw[start + 36] ^= 0x5A
    foreign.write_bytes(raw)
    assert check_path(foreign).standing is Standing.HOLDS


def test_damage_in_a_foreign_capture_is_never_held_nor_held_against_anybody(foreign: Path) -> None:
    """In headers and payloads, wherever a segment carries something; and a repetition makes up for it."""
    raw = foreign.read_bytes()
    carrying = [(n, span) for n, span in enumerate(spans(raw), 1) if span[1] - span[0] > 40]
    chance = random.Random(5)
    for _ in range(150):
        number, (start, stop) = chance.choice(carrying)
        offset = chance.randrange(start + 20, stop)
        changed = bytearray(raw)
        changed[offset] ^= 1 << chance.randrange(8)
        foreign.write_bytes(changed)
        report = check_path(foreign)
        assert report.standing is Standing.UNKNOWN, (number, offset - start, report.violations)
        told = offset - start - 20 not in NOT_TOLD
        if told:
            assert any(f"packet {number} has" in why for why in damaged(report)), report.unknown
        block, end = start - 28, stop + (-(stop - start) & 3) + 4
        foreign.write_bytes(changed[:end] + raw[block:end] + changed[end:])
        report = check_path(foreign)
        assert not report.violations
        assert not damaged(report)
        if told:
            assert report.standing is Standing.HOLDS, report.unknown


def test_damage_of_what_carries_nothing_is_held_against_nobody(foreign: Path) -> None:
    raw = foreign.read_bytes()
    bare = [span for span in spans(raw) if span[1] - span[0] == 40]
    chance = random.Random(6)
    for start, stop in bare:
        for _ in range(4):
            changed = bytearray(raw)
            changed[chance.randrange(start + 20, stop)] ^= 1 << chance.randrange(8)
            foreign.write_bytes(changed)
            assert not check_path(foreign).violations


def test_what_the_benchmark_writes_has_checksums_as_tshark_wants_them(tmp_path: Path) -> None:
    original = tmp_path / "original"
    good(journals=False).write_capture(original)
    statuses: dict[bool, set[str]] = {}
    for offloaded in (False, True):
        path = tmp_path / f"{offloaded}.pcapng"
        resegment(original, path, 333, offloaded=offloaded)
        assert check_path(path).standing is Standing.HOLDS
        command = ["tshark", "-n", "-r", str(path), "-o", "tcp.check_checksum:TRUE", "-T", "fields"]
        done = subprocess.run(
            [*command, "-e", "tcp.checksum.status"], capture_output=True, text=True, check=True
        )
        statuses[offloaded] = set(done.stdout.split())
    assert statuses[False] == {"1"}  # good
    assert "1" not in statuses[True]  # and here bad or partial, as its release can tell
