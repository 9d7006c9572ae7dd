# SPDX-License-Identifier: GPL-2.0-or-later
"""TCP streams come out of a capture byte for byte, and what is not in it comes out as an explicit hole."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
    option,
    pcapng,
    take_all,
    tcp,
)
from tests.examples import examples
from verifier.capture.pcapng import open_capture
from verifier.capture.reassembly import Accounting, Flow, reassemble

STREAM = random.Random(1).randbytes(100_000)


def run(tmp_path: Path, frames: Sequence[bytes], **limits: int) -> tuple[Accounting, list[Taken]]:
    return take_all(tmp_path / "capture", pcapng(list(clock(frames))), **limits)


def out(seq: int, payload: bytes = b"", flags: int = ACK, ack: int = 0, **more: object) -> bytes:
    return tcp(CLIENT, SERVER, seq, payload, flags=flags, ack=ack, **more)  # type: ignore[arg-type]


def back(seq: int, payload: bytes = b"", flags: int = ACK, ack: int = 0, **more: object) -> bytes:
    return tcp(SERVER, CLIENT, seq, payload, flags=flags, ack=ack, **more)  # type: ignore[arg-type]


def opening(client: int = 99, server: int = 499) -> list[bytes]:
    return [
        out(client, flags=SYN),
        back(server, flags=SYN | ACK, ack=client + 1),
        out(client + 1, ack=server + 1),
    ]


def test_a_whole_connection(tmp_path: Path) -> None:
    frames = [
        *opening(),
        out(100, b"hello ", ack=500),
        back(500, b"yes", ack=106),
        out(106, b"world", flags=ACK | PSH, ack=503),
        out(111, flags=FIN | ACK, ack=503),
        back(503, flags=FIN | ACK, ack=112),
        out(112, ack=504),
    ]
    accounting, (client, server) = run(tmp_path, frames)
    assert (client.bytes, client.ends, client.flow.initiator) == (b"hello world", ["fin"], True)
    assert (server.bytes, server.ends, server.flow.initiator) == (b"yes", ["fin"], False)
    assert not client.flow.joined_midway
    assert (client.flow.source, client.flow.destination) == (CLIENT, SERVER)
    assert (accounting.packets, accounting.tcp_packets, accounting.connections) == (9, 9, 1)
    assert accounting.delivered_bytes == accounting.payload_bytes == 14
    assert accounting.missing_bytes == 0


@st.composite
def segments(draw: st.DrawFn) -> tuple[int, int, list[tuple[int, int]]]:
    """(initial sequence number, stream size, segments as start and end, in order of capture)."""
    size = draw(st.integers(1, 300))
    cuts = sorted({0, size, *draw(st.lists(st.integers(0, size), max_size=12))})
    pieces = list(pairwise(cuts))
    extra = st.tuples(st.integers(0, size), st.integers(0, size)).map(lambda pair: (min(pair), max(pair)))
    pieces += draw(st.lists(extra, max_size=8))
    lost = draw(st.sets(st.integers(0, len(pieces) - 1), max_size=3))
    kept = [piece for index, piece in enumerate(pieces) if index not in lost and piece[0] < piece[1]]
    order = draw(st.one_of(st.just(kept), st.permutations(kept)))
    isn = draw(st.one_of(st.integers(0, 2**32 - 1), st.integers(2**32 - size - 2, 2**32 - 1)))
    return isn, size, order


@settings(max_examples=examples(150))
@given(case=segments(), ends=st.booleans())
def test_any_segmentation_gives_the_stream_or_holes(
    tmp_path_factory: pytest.TempPathFactory, case: tuple[int, int, list[tuple[int, int]]], ends: bool
) -> None:
    """Whatever the cutting, order, repetition and loss: what was captured comes out, all else is a hole."""
    isn, size, order = case
    frames = [out(isn, flags=SYN), *(out(isn + 1 + a, STREAM[a:b]) for a, b in order)]
    covered = [any(a <= at < b for a, b in order) for at in range(size)]
    last = max((b for _, b in order), default=0)
    if ends:
        frames.append(out(isn + 1 + size, flags=FIN | ACK))
        last = size
    accounting, (sink,) = run(tmp_path_factory.getbasetemp(), frames)
    assert sink.stream == [STREAM[at] if covered[at] else None for at in range(last)]
    assert sink.ends == ["fin" if ends else "cut"]
    assert accounting.payload_bytes == sum(b - a for a, b in order)
    assert accounting.missing_bytes == covered[:last].count(False)
    assert sink.flow.conflicts == sink.flow.stray_bytes == sink.flow.unverified_bytes == 0


@settings(max_examples=examples(100))
@given(
    case=segments(),
    acks=st.lists(st.integers(0, 300), max_size=20),
    per_direction=st.integers(1, 3),
    snap=st.integers(0, 40),
)
def test_within_any_limits_no_byte_is_wrong(
    tmp_path_factory: pytest.TempPathFactory,
    case: tuple[int, int, list[tuple[int, int]]],
    acks: list[int],
    per_direction: int,
    snap: int,
) -> None:
    """With acknowledgements, shortened packets and little room: holes may grow, bytes may not move."""
    isn, size, order = case
    frames = [Frame(out(isn, flags=SYN))]
    for index, (a, b) in enumerate(order):
        whole = out(isn + 1 + a, STREAM[a:b])
        kept = whole[: 54 + snap] if index % 3 == 0 else whole
        frames.append(Frame(kept, original=len(whole)))
        frames += [Frame(back(7, ack=isn + 1 + min(ack, size))) for ack in acks[index : index + 1]]
    path = tmp_path_factory.getbasetemp() / "capture"
    accounting, taken = take_all(path, pcapng(frames), waiting_per_direction_max=per_direction)
    sink = taken[0]
    assert all(byte is None or byte == STREAM[at] for at, byte in enumerate(sink.stream))
    assert accounting.payload_bytes == sum(b - a for a, b in order)
    assert sink.flow.conflicts == 0


def test_a_stream_longer_than_the_sequence_numbers(tmp_path: Path) -> None:
    frames = [
        out(2**32 - 6, flags=SYN),
        *(out(2**32 - 5 + 5 * n, STREAM[5 * n : 5 * n + 5]) for n in range(4)),
    ]
    _, (sink,) = run(tmp_path, frames)
    assert sink.bytes == STREAM[:20]


def test_order_over_flows_is_that_of_the_capture(tmp_path: Path) -> None:
    """A stream that waits is delivered with the time of the packet that made it contiguous."""
    frames = [*opening(), out(104, b"efgh"), back(500, b"1234"), out(100, b"abcd"), back(504, b"5678")]
    _, (client, server) = run(tmp_path, frames)
    assert client.bytes == b"abcdefgh"
    times = [time - client.times[0] for time in client.times + server.times]
    assert times == [0, 0, -1000, 1000]


def test_an_end_captured_before_the_last_data_comes_with_that_data(tmp_path: Path) -> None:
    frames = [*opening(), out(104, flags=FIN | ACK), out(100, b"ab"), out(102, b"cd"), back(500, b"more")]
    _, (client, _) = run(tmp_path, frames)
    assert (client.bytes, client.ends) == (b"abcd", ["fin"])
    assert client.ended_ns == client.times[-1]


@pytest.mark.parametrize("waiting", [False, True])
def test_the_first_of_two_conflicting_segments_wins(tmp_path: Path, waiting: bool) -> None:
    shift = 10 if waiting else 0
    frames = [
        *opening(),
        out(100 + shift, b"first one"),
        out(102 + shift, b"RSTxyz!  "),
        out(100, STREAM[:shift]),
    ]
    _, (client, _) = run(tmp_path, frames[: 5 + waiting])
    assert client.bytes == STREAM[:shift] + b"first onel  "[:9] + b"  "
    assert (client.flow.conflicts, client.flow.first_conflict) == (1, 2 + shift)
    assert client.flow.duplicated_bytes == 7


def test_a_plain_retransmission_is_no_conflict(tmp_path: Path) -> None:
    frames = [*opening(), *(out(100 + 10 * n, STREAM[10 * n : 10 * n + 10]) for n in range(200))]
    frames += [out(100 + 995, STREAM[995:1507]), out(100 + 3, STREAM[3:5]), out(2100, b"end")]
    accounting, (client, _) = run(tmp_path, frames)
    assert client.bytes == STREAM[:2000] + b"end"
    assert client.flow.duplicated_bytes == 514
    assert client.flow.unverified_bytes == client.flow.conflicts == 0
    assert accounting.payload_bytes == 2003 + 514


def test_a_retransmission_after_the_end_is_compared_too(tmp_path: Path) -> None:
    frames = [*opening(), out(100, b"abcdef"), out(106, flags=FIN | ACK), out(102, b"cd"), out(104, b"XYZ")]
    _, (client, _) = run(tmp_path, frames)
    assert client.bytes == b"abcdef"
    assert (client.flow.duplicated_bytes, client.flow.stray_bytes, client.flow.conflicts) == (4, 1, 1)


@pytest.mark.parametrize("link", [1, 113])
def test_segments_over_64_kib_have_their_length_from_the_capture(tmp_path: Path, link: int) -> None:
    frames = [Frame(out(100 + 70_000 * n, STREAM[:70_000], link=link, no_length=True)) for n in range(3)]
    frames.append(Frame(out(100, STREAM[:70_000], link=link, no_length=True)))
    _, (sink,) = take_all(tmp_path / "a", pcapng(frames, link=link))
    assert sink.bytes == STREAM[:70_000] * 3
    assert (sink.flow.duplicated_bytes, sink.flow.unverified_bytes) == (70_000, 0)


def test_ipv6_headers_in_between_and_jumbo_payloads(tmp_path: Path) -> None:
    ends = (("fd00::1", 1), ("fd00::2", 2))
    extension = b"\x06\x00\x01\x04\0\0\0\0"
    frames = [
        tcp(*ends, 100, b"abc", ip_options=extension),
        tcp(*ends, 103, STREAM[:70_000], no_length=True),
        tcp(*ends, 70_103, b"xyz"),
    ]
    _, (sink,) = run(tmp_path, frames)
    assert sink.bytes == b"abc" + STREAM[:70_000] + b"xyz"


def test_padding_options_and_tags_are_no_payload(tmp_path: Path) -> None:
    frames = [
        out(100, b"ab", ip_options=b"\1\1\1\1", tcp_options=bytes([1] * 12)),
        out(102, b"c") + bytes(20),
        out(103) + bytes(6),
        out(103, b"de", tags=[5, 6]),
        out(105, b"f"),
    ]
    _, (sink,) = run(tmp_path, frames)
    assert sink.bytes == b"abcdef"


def test_a_stream_joined_midway(tmp_path: Path) -> None:
    frames = [out(5000, b"cd", ack=77), out(4998, b"ab"), out(5002, b"ef"), back(77, b"reply", ack=5004)]
    accounting, (client, server) = run(tmp_path, frames)
    assert client.flow.joined_midway
    assert client.flow.initiator is None
    assert client.bytes == b"cdef"
    assert client.flow.stray_bytes == 2
    assert (server.flow.joined_midway, server.bytes) == (True, b"reply")
    assert accounting.payload_bytes == 11


def test_the_answer_to_a_lost_opening_tells_where_the_stream_begins(tmp_path: Path) -> None:
    frames = [back(499, flags=SYN | ACK, ack=100), out(103, b"def"), back(500, ack=106)]
    _, (server, client) = run(tmp_path, frames)
    assert (client.flow.joined_midway, client.flow.initiator, server.flow.initiator) == (False, True, False)
    assert client.holes == [(0, 3, "lost", "")]
    assert client.stream[3:] == list(b"def")


def test_what_the_peer_acknowledged_and_the_capture_lacks_is_lost(tmp_path: Path) -> None:
    frames = [*opening(), out(100, b"ab"), out(104, b"ef")]
    for n in range(100):
        frames += [out(106 + 2 * n, b"xy"), back(500, ack=108 + 2 * n)]
    late = len(frames)
    frames += [back(500, b"now"), out(102, b"cd")]
    accounting, (client, server) = run(tmp_path, frames)
    assert client.holes == [(2, 2, "lost", "")]
    assert client.stream[4:] == list(b"ef" + b"xy" * 100)
    assert max(client.times) < server.times[0] == server.times[-1]
    assert server.times[0] - client.times[0] == (late - 3) * 1000
    assert (client.flow.duplicated_bytes, client.flow.unverified_bytes) == (2, 2)
    assert accounting.missing_bytes == 2


def test_data_captured_after_its_acknowledgement_is_not_lost(tmp_path: Path) -> None:
    frames = [*opening(), out(104, b"ef"), back(500, ack=106), out(100, b"abcd"), out(106, b"gh")]
    _, (client, _) = run(tmp_path, frames)
    assert client.bytes == b"abcdefgh"


def test_bytes_acknowledged_but_never_captured_end_the_stream_with_a_hole(tmp_path: Path) -> None:
    _, (client, server) = run(tmp_path, [*opening(), out(100, b"ab"), back(510, ack=120)])
    assert client.holes == [(2, 18, "lost", "")]
    assert server.holes == [(0, 10, "cut", "")]
    _, (client, _) = run(tmp_path, [*opening(), out(100, b"ab"), back(500, ack=103)])
    assert client.bytes == b"ab"  # one byte more is that of an end that was not captured
    _, (client, _) = run(tmp_path, [*opening(), out(100, b"ab"), out(105, flags=FIN | ACK)])
    assert (client.holes, client.ends) == ([(2, 3, "cut", "")], ["fin"])


def test_nothing_is_missing_behind_a_known_end(tmp_path: Path) -> None:
    """The number of what follows an end is one more, though no byte has that place."""
    frames = [*opening(), out(100, b"ab"), out(104, b"ef"), out(106, flags=FIN | ACK), out(107, ack=501)]
    _, (client, _) = run(tmp_path, [*frames, back(500, flags=FIN | ACK, ack=107)])
    assert (client.holes, client.ends) == ([(2, 2, "lost", "")], ["fin"])


def test_too_much_waiting_gives_up_the_first_hole(tmp_path: Path) -> None:
    frames = [*opening(), *(out(100 + 4 * n, b"ab") for n in range(1, 1000))]
    for limits in ({"waiting_per_direction_max": 10}, {"waiting_max": 10}):
        _, (client, _) = run(tmp_path, frames, **limits)
        reasons = [hole[2] for hole in client.holes]
        assert reasons == ["reorder"] * 989 + ["cut"] * 10
        assert client.flow.delivered_bytes == 999 * 2


def test_shortened_packets_are_holes_with_their_note(tmp_path: Path) -> None:
    note = "vfmig payload 300 xxh3-128:00ff"
    whole = [out(100, b"head"), out(104, STREAM[:200]), out(304, STREAM[200:300]), out(404, b"tail" * 9)]
    frames = [
        Frame(whole[0]),
        Frame(whole[1][:54], original=len(whole[1]), options=option("<", 1, note.encode())),
        Frame(whole[2][:54], original=len(whole[2])),
        Frame(whole[3][:60], original=len(whole[3])),
        Frame(out(440, b"more")),
    ]
    accounting, (sink,) = take_all(tmp_path / "a", pcapng(frames))
    assert sink.holes == [
        (4, 200, "snapped", note),
        (204, 100, "snapped", ""),
        (310, 30, "snapped", ""),
    ]
    assert bytes(byte for byte in sink.stream if byte is not None) == b"head" + (b"tail" * 9)[:6] + b"more"
    assert accounting.missing_bytes == 0
    assert accounting.payload_bytes == 4 + 300 + 36 + 4


def test_the_same_ports_again_are_a_new_connection(tmp_path: Path) -> None:
    frames = [
        *opening(),
        out(100, b"one"),
        *opening(5000, 6000),
        out(5001, b"two"),
        back(6001, b"!", ack=5004),
    ]
    accounting, taken = run(tmp_path, frames)
    assert [(sink.flow.connection, sink.bytes) for sink in taken] == [
        (0, b"one"),
        (0, b""),
        (1, b"two"),
        (1, b"!"),
    ]
    assert accounting.connections == 2
    closing = [out(103, flags=FIN | ACK), back(500, flags=FIN | ACK)]
    accounting, taken = run(tmp_path, [*opening(), out(100, b"one"), *closing, *opening(), out(100, b"two")])
    assert [sink.bytes for sink in taken] == [b"one", b"", b"two", b""]


def test_a_repeated_opening_is_the_same_connection(tmp_path: Path) -> None:
    frames = [out(99, flags=SYN), *opening(), back(499, flags=SYN | ACK, ack=100), out(100, b"data")]
    accounting, (client, _) = run(tmp_path, frames)
    assert client.bytes == b"data"
    assert accounting.connections == 1


def test_a_reset_ends_both_directions_and_loses_nothing(tmp_path: Path) -> None:
    frames = [*opening(), out(102, b"cd"), out(104, flags=RST | ACK), back(500, b"late")]
    _, (client, server) = run(tmp_path, frames)
    assert (client.ends, client.holes, client.stream[2:]) == (["rst"], [(0, 2, "cut", "")], list(b"cd"))
    assert (server.ends, server.bytes) == (["rst"], b"late")


def test_what_is_far_away_is_stray(tmp_path: Path) -> None:
    frames = [*opening(), out(100, b"ab"), out(100 + 2**31, b"what"), out(102, b"cd")]
    accounting, (client, _) = run(tmp_path, frames)
    assert client.bytes == b"abcd"
    assert client.flow.stray_bytes == 4
    assert accounting.payload_bytes == 8


def test_capture_points_are_kept_apart_and_a_doubled_packet_is_a_repetition(tmp_path: Path) -> None:
    frames = [Frame(data, interface=point) for data in [*opening(), out(100, b"ab")] for point in (0, 1, 1)]
    accounting, taken = take_all(tmp_path / "a", pcapng(frames, interfaces=2))
    assert accounting.connections == 2
    assert [(sink.flow.interface, sink.bytes) for sink in taken] == [
        (0, b"ab"),
        (1, b"ab"),
        (0, b""),
        (1, b""),
    ]
    assert sum(flow.duplicated_bytes for flow in accounting.flows) == 2


def test_what_is_not_read_is_counted(tmp_path: Path) -> None:
    whole = out(100, b"abc")
    udp = bytearray(whole)
    udp[23] = 17
    short_words = bytearray(whole)
    short_words[46] = 0x40
    frames = [
        out(100, b"abc", fragment=0x2000),
        out(100, b"abc", fragment=100),
        bytes(udp),
        bytes(12) + b"\x08\x06" + bytes(40),
        whole[:50],
        whole[:10],
        bytes(short_words),
        out(100, b"abc"),
    ]
    accounting, (sink,) = run(tmp_path, frames)
    assert sink.bytes == b"abc"
    assert accounting.unread == {
        "IP fragment": 2,
        "not TCP": 1,
        "not IP": 1,
        "cut before the end of the TCP header": 2,
        "header lengths that contradict each other": 1,
    }
    accounting, taken = take_all(tmp_path / "a", pcapng([Frame(whole)], link=127))
    assert (accounting.unread, taken) == ({"link type that is not read (127)": 1}, [])


def test_the_short_way_takes_no_packet_that_the_careful_one_refuses(tmp_path: Path) -> None:
    """Each of these carries the expected sequence number of a known flow, but is not its plain next
    segment.
    """
    short_words = bytearray(out(102, b"XX"))
    short_words[46] = 0x40
    bad = [out(102, b"XX", fragment=0x2000), bytes(short_words), out(102, b"XX")[:51]]
    for frame in bad:
        accounting, (client, _) = run(tmp_path, [*opening(), out(100, b"ab"), frame, out(102, b"cd")])
        assert client.bytes == b"abcd"
        assert accounting.unread.total() == 1


def test_connections_beyond_the_limit_are_counted(tmp_path: Path) -> None:
    frames = [tcp(("10.0.0.1", 1000 + n), SERVER, 1, b"x") for n in range(5)]
    accounting, taken = run(tmp_path, frames, connections_max=3)
    assert len(taken) == accounting.connections == 3
    assert accounting.unread == {"TCP of a connection beyond the limit": 2}


class Totals:
    """A sink that only counts: a changed sequence number makes holes of up to a gigabyte."""

    def __init__(self) -> None:
        self.given = self.missing = self.ends = 0

    def data(self, start: int, stop: int, _time_ns: int) -> None:
        self.given += stop - start

    def hole(self, size: int, _reason: str, _time_ns: int, _note: str) -> None:
        self.missing += size

    def end(self, _kind: str, _time_ns: int) -> None:
        self.ends += 1


@given(st.data())
def test_changed_bytes_never_break_it(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    frames = [*opening(), *(out(100 + 20 * n, STREAM[20 * n : 20 * n + 20]) for n in range(4))]
    frames += [back(500, b"ok", ack=120), out(180, flags=FIN | ACK), out(181, flags=RST)]
    changed = [bytearray(frame) for frame in frames]
    for _ in range(data.draw(st.integers(1, 6))):
        frame = data.draw(st.sampled_from(changed))
        frame[data.draw(st.integers(0, min(60, len(frame)) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "capture"
    path.write_bytes(pcapng(list(clock(changed))))
    totals: list[Totals] = []

    def factory(_: Flow) -> Totals:
        totals.append(Totals())
        return totals[-1]

    with open_capture(path) as capture:
        accounting = reassemble(capture, factory)
    assert accounting.packets == len(frames)
    for total, flow in zip(totals, accounting.flows, strict=True):
        assert (total.given, total.missing, total.ends) == (flow.delivered_bytes, flow.hole_bytes, 1)
