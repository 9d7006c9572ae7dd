# SPDX-License-Identifier: GPL-2.0-or-later
"""mlx5's records are followed however they are cut, and nothing is said where nothing can be known."""

from __future__ import annotations

from array import array
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mockdev.vfio.mlx5_stream import RECORD_HEADER, RecordHeader, image_header, stop_copy_size_record
from tests.canaries.script import DEVICES, records
from verifier.capture.flows import Directory
from verifier.capture.packets import Address
from verifier.capture.stream import Flow
from verifier.history.facts import Facts
from verifier.history.image import Image, Room
from verifier.history.observation import BufferDone, Hole, Seen
from verifier.history.records import Records
from verifier.invariants.passport import Finding
from verifier.invariants.records import WholeRecords

OPENING = stop_copy_size_record(4096)
DEVICE = DEVICES[0]
_FLOW = Flow(0, 0, Address("10.0.0.1", 40000), Address("10.0.0.2", 4444), True, False)


def record(size: int, flags: int = 0, tag: int = 0, data: bytes | None = None) -> bytes:
    """A record, with that many bytes of data unless told otherwise."""
    return RECORD_HEADER.pack(RecordHeader(size, flags, tag)) + (bytes(size) if data is None else data)


def read(data: bytes, cuts: tuple[int, ...] = (), segment: int = 1 << 20) -> Records:
    """Its records, brought in buffers that end at the cuts, captured in segments of so many bytes."""
    found = Records(memoryview(data))
    for idx, (start, stop) in enumerate(pairwise((0, *sorted(cuts), len(data)))):
        edges = [*range(start, stop, segment), stop]
        flat = [edge for pair in pairwise(edges) for edge in pair]
        found.take(array("Q", flat), stop - start, idx)
    return found


def said(found: Records) -> tuple[bool, str, str]:
    """All that is independent of the cuts."""
    return found.recognised, found.problem, found.problem or found.unfinished


STREAMS = st.lists(st.integers(1, 90), min_size=1, max_size=6).map(
    lambda sizes: OPENING + b"".join(image_header(size) + bytes(range(size)) for size in sizes)
)


@given(STREAMS, st.lists(st.integers(0, 700), max_size=6), st.integers(1, 50))
def test_whole_records_are_found_whole_however_they_are_cut(
    stream: bytes, cuts: list[int], size: int
) -> None:
    found = read(stream, tuple(min(cut, len(stream)) for cut in cuts), size)
    assert said(found) == (True, "", "")


@given(STREAMS, st.data(), st.lists(st.integers(0, 700), max_size=6), st.integers(1, 50))
def test_every_cut_says_the_same_of_a_bad_stream(
    stream: bytes, data: st.DataObject, cuts: list[int], size: int
) -> None:
    at = data.draw(st.integers(len(OPENING), len(stream) - 1))
    bad = stream[:at] + data.draw(st.binary(max_size=20)) + stream[data.draw(st.integers(at, len(stream))) :]
    found = read(bad, tuple(min(cut, len(bad)) for cut in cuts), size)
    assert said(found) == said(read(bad))


@given(STREAMS, st.data())
def test_a_stream_cut_short_is_unfinished_but_at_a_boundary(stream: bytes, data: st.DataObject) -> None:
    end = data.draw(st.integers(16, len(stream) - 1))
    boundaries = set()
    at = len(OPENING)
    while at < len(stream):
        at += RECORD_HEADER.size + int.from_bytes(stream[at : at + 8], "little")
        boundaries.add(at)
    found = read(stream[:end])
    assert (found.recognised, found.problem) == (True, "")
    assert bool(found.unfinished) == (end not in boundaries)


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        (record(0), "size 0, flags 0x0, tag 0x0"),
        (record(5, flags=1), "size 5, flags 0x1, tag 0x0"),
        (record(5, flags=2), "size 5, flags 0x2"),
        (record(1 << 32, data=b""), "size 4294967296"),
        (record(5, tag=2), "tag 0x2"),
        (OPENING, "size 8, flags 0x1, tag 0x1"),
    ],
)
def test_what_the_driver_never_writes(bad: bytes, what: str) -> None:
    found = read(OPENING + record(9) + bad + record(3), cuts=(30, 49, 60))
    assert f"at byte {24 + 25} there is no record" in found.problem
    assert what in found.problem
    assert found.problem_idx == 3  # where the last byte of the header is


@pytest.mark.parametrize("good", [record(2**32 - 1, data=b""), record(7, flags=1, tag=9), record(0, 1, 9)])
def test_what_a_driver_may_write(good: bytes) -> None:
    assert read(OPENING + record(9) + good).problem == ""


@pytest.mark.parametrize(
    "opaque",
    [
        bytes(100),
        record(9) + record(5),
        b"x",
        OPENING[:15],
        record(16, flags=1, tag=1),
        record(8, flags=3, tag=1),
    ],
)
def test_what_opens_otherwise_is_not_judged(opaque: bytes) -> None:
    found = read(opaque, cuts=(1,))
    assert (found.recognised, found.problem) == (False, "")


def test_a_record_of_gigabytes_costs_nothing() -> None:
    view = memoryview(OPENING + image_header(2**32 - 1))
    found = Records(view)
    found.take(array("Q", (0, len(view))), len(view), 0)
    for idx in range(1, 2**12):
        found.take(array("Q"), 1 << 20, idx)  # the ranges are not looked at
    assert found.unfinished == f"it ends {2**20 - 1} bytes before its last record does"


# --- the invariant on it ---------------------------------------------------------------------------


class Case:
    """One device's state as buffers, judged."""

    def __init__(self, data: bytes, *, completed: bool = True) -> None:
        self.facts = Facts(0)
        self.data = data
        self.image = self.facts.image(DEVICE, lambda: Image(memoryview(data), Room()))
        self.image.release()
        self.judge = type("Judge", (WholeRecords,), {"complete": completed})(self.facts)
        self.lane = Directory().meet(_FLOW)
        self.findings: list[Finding] = []

    def buffer(self, idx: int, start: int, stop: int, *, config: bool = False, whole: bool = True) -> None:
        """A buffer, as the decoder tells of it."""
        self.image.buffer(idx, config, array("Q", (start, stop)), stop - start, whole)
        done = BufferDone(1000 * idx, 1, idx, config, stop - start, b"", b"", whole)
        self.findings += self.judge.on(Seen(self.lane, 0, done, DEVICE), done)

    def end(self) -> tuple[list[str], str, bool]:
        """Findings, why it is unknown, and whether there was something to judge."""
        self.findings += self.judge.at_end()
        return [f.message for f in self.findings], self.judge.unknown, self.judge.exercised


def test_a_whole_state_holds() -> None:
    case = Case(records())
    for idx, start in enumerate(range(0, 168, 24)):
        case.buffer(idx, start, start + 24)
    case.buffer(7, 0, 0, config=True)
    assert case.end() == ([], "", True)


@pytest.mark.parametrize("lost", [True, False])
def test_bytes_that_were_lost_make_it_unknown_and_those_left_out_on_purpose_ask_nothing(lost: bool) -> None:
    case = Case(records())
    if lost:
        case.facts.holes[case.lane] = Hole(48, 52, "lost", True)
    case.buffer(0, 0, 48)
    case.buffer(1, 48, 100, whole=False)
    case.buffer(2, 100, 150)
    case.buffer(3, 0, 0, config=True)
    found, why, exercised = case.end()
    assert (found, exercised) == ([], lost)
    assert ("part of its payload is not in the capture" in why) == lost


def test_without_any_payload_there_is_nothing_to_judge() -> None:
    case = Case(records())
    for idx in range(3):
        case.buffer(idx, 0, 24, whole=False)
    assert case.end() == ([], "", False)


def test_a_state_whose_end_is_not_known_is_not_called_cut() -> None:
    no_config = Case(records())
    no_config.buffer(0, 0, 100)
    assert no_config.end()[0] == []
    assert "config" in no_config.judge.unknown
    broken_off = Case(records(), completed=False)
    broken_off.buffer(0, 0, 100)
    broken_off.buffer(1, 0, 0, config=True)
    assert broken_off.end() == ([], "", True)
    completed = Case(records())
    completed.buffer(0, 0, 100)
    completed.buffer(1, 0, 0, config=True)
    assert "ends 14 bytes before" in completed.end()[0][0]


def test_the_witness_is_the_buffer_that_the_header_is_in_even_when_a_later_one_showed_it() -> None:
    case = Case(OPENING + record(9) + record(0) + record(50))
    case.buffer(1, 40, 70)
    case.buffer(2, 70, 90)
    assert case.findings == []
    case.buffer(0, 0, 40)
    (finding,) = case.findings
    assert "buffer 1" in finding.message
    assert [seen.event.offset for seen in finding.witnesses if isinstance(seen, Seen)] == [1000]
    assert case.end()[0] == [finding.message]
