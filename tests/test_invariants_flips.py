# SPDX-License-Identifier: GPL-2.0-or-later
"""No changed bit of a header, no dropped, doubled or swapped buffer is ever judged to hold."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import pytest

from mockdev.wire import writer
from mockdev.wire.structs import (
    MULTIFD_DEVICE_STATE,
    MULTIFD_INIT,
    MULTIFD_RAM,
    VFIO_DEVICE_STATE,
    Tag,
)
from tests.canaries.bench_of_one import judge
from tests.canaries.edits import END, section
from tests.canaries.script import (
    BUFFER,
    BUFFERS,
    DEVICES,
    MAIN,
    PAGE,
    PRECOPY,
    Script,
    buffer,
    good,
    packet,
    pages,
    precopy,
)
from verifier.check import check_path
from verifier.verdict import Report, Standing

_DEVICE_HEAD = MULTIFD_DEVICE_STATE.size + VFIO_DEVICE_STATE.size
_DATA_BLOCK = 16  # VFIO tag and size on the main channel

# A piece of each kind and how many of its bytes are header.
HEADERS = {
    "init0": MULTIFD_INIT.size,
    "sync0.1": MULTIFD_RAM.size,
    "ram0": MULTIFD_RAM.size,
    "vf0.0": _DEVICE_HEAD,
    "vf0.1": _DEVICE_HEAD,
    "vf0.3": _DEVICE_HEAD,
    "vf0.start": 52,
    "vf0.part": 5 + _DATA_BLOCK,
    "vf1.end": 18,
    "vf1.full": 44,
}
BUFFER_LABELS = [f"vf{d}.{i}" for d, count in enumerate(BUFFERS) for i in range(count + 1)]


def flipped(script: Script, label: str, offsets: Iterator[int]) -> Iterator[str]:
    """Where one changed bit went unseen. The bit moves on from byte to byte."""
    piece = script.find(label)
    original = piece.data
    for offset in offsets:
        bit = (7 * offset + 3) % 8
        piece.data = original[:offset] + bytes((original[offset] ^ 1 << bit,)) + original[offset + 1 :]
        if judge(script).standing is Standing.HOLDS:
            yield f"{label} byte {offset} bit {bit}"
    piece.data = original


@pytest.mark.parametrize("label", HEADERS)
def test_no_header_byte_can_change_unseen(label: str) -> None:
    script = good(journals=False)
    assert judge(script).standing is Standing.HOLDS
    assert list(flipped(script, label, iter(range(HEADERS[label])))) == []


@pytest.mark.parametrize("label", ["sync0.1", "ram0"])
def test_no_byte_of_an_offset_table_can_change_unseen(label: str) -> None:
    table = range(MULTIFD_RAM.size, MULTIFD_RAM.size + 8 * 128)
    # All of the first eight places, of each of the others one byte, another one each time.
    chosen = [at for at in table if at < MULTIFD_RAM.size + 64 or at % 8 == at // 8 % 8]
    assert list(flipped(good(journals=False), label, iter(chosen))) == []


@pytest.mark.parametrize("label", BUFFER_LABELS)
def test_a_dropped_buffer_is_seen(label: str) -> None:
    script = good(journals=False)
    script.drop(label)
    assert judge(script).standing is Standing.VIOLATED


@pytest.mark.parametrize("label", BUFFER_LABELS)
def test_a_doubled_buffer_is_seen(label: str) -> None:
    script = good(journals=False)
    piece = script.find(label)
    script.after(label, piece.where, piece.data)
    assert judge(script).standing is Standing.VIOLATED


def test_a_doubled_index_is_seen() -> None:
    for device, idx in ((d, i) for d, count in enumerate(BUFFERS) for i in range(count)):
        for other in range(BUFFERS[device]):
            if other != idx:
                script = good(journals=False)
                script.find(f"vf{device}.{idx}").data = packet(device, other, buffer(device, idx))
                assert judge(script).standing is Standing.VIOLATED, (device, idx, other)


def test_a_pair_swapped_on_a_channel_is_seen() -> None:
    script = good(journals=False)
    for left, right in combinations(BUFFER_LABELS, 2):
        one, other = script.find(left), script.find(right)
        if one.where == other.where and left[:3] == right[:3]:
            script.swap(left, right)
            assert judge(script).standing is Standing.VIOLATED, (left, right)
            script.swap(left, right)


def contents_swapped(script: Script, device: int) -> Script:
    """The same with the contents of that device's first two buffers exchanged."""
    for idx, other in ((0, 1), (1, 0)):
        script.find(f"vf{device}.{idx}").data = packet(device, idx, buffer(device, other))
    return script


def two_blocks(script: Script, *blocks: bytes) -> Script:
    """The same with the first device's state before the stop in other blocks."""
    script.drop("vf0.part")
    for block in reversed(blocks):
        script.after("sync1.1", MAIN, section(Tag.SECTION_PART, 3, writer.vfio_data(len(block)), block, END))
    return script


def ids(report: Report) -> set[str]:
    """What is violated."""
    return {violation.id for violation in report.violations}


def test_contents_swapped_between_buffers_are_seen_beside_journals(tmp_path: Path) -> None:
    script = contents_swapped(good(), 1)
    script.write_folder(tmp_path)
    report = check_path(tmp_path)
    assert ids(report) == {"EQ-1"}
    assert [row.equal for row in report.devices] == [True, False]


def test_swapped_contents_are_seen_in_a_bare_capture_where_the_state_is_records() -> None:
    report = judge(contents_swapped(good(journals=False), 0))
    assert ids(report) == {"DS-15"}
    (violation,) = report.violations
    assert "buffer 0" in violation.message
    assert [(w.flow.split()[0], w.size) for w in violation.witnesses] == [("channel", _DEVICE_HEAD + BUFFER)]


def test_a_dropped_block_of_the_main_channel_is_seen_beside_journals(tmp_path: Path) -> None:
    script = good()
    script.drop("vf0.part")
    script.write_folder(tmp_path)
    assert ids(check_path(tmp_path)) == {"EQ-1"}


@pytest.mark.parametrize("cut", [24, 30, 40, 44])
def test_a_dropped_block_is_seen_in_a_bare_capture_where_the_state_is_records(cut: int) -> None:
    whole = precopy()
    assert judge(two_blocks(good(journals=False), whole[:cut], whole[cut:])).standing is Standing.HOLDS
    report = judge(two_blocks(good(journals=False), whole[:cut]))
    # At a boundary of records nothing shows that one is gone; see below.
    assert ids(report) == (set() if cut == 24 else {"DS-15"})


def test_a_state_cut_short_is_seen_where_it_is_records() -> None:
    script = good(journals=False)
    script.find("vf0.2").data = packet(0, 2, buffer(0, 2)[:-1])
    report = judge(script)
    assert ids(report) == {"DS-15"}
    assert "ends 1 bytes before its last record does" in report.violations[0].message


@pytest.mark.parametrize("label", ["vf0.part", "vf0.0", "vf0.1", "vf0.2"])
def test_no_byte_of_a_records_header_can_change_unseen(label: str) -> None:
    """Sizes, flags and tags of all records but the first; without the first, nothing says what they are."""
    script = good(journals=False)
    block = label == "vf0.part"
    before = _DATA_BLOCK + 5 if block else _DEVICE_HEAD
    begin = 0 if block else PRECOPY + int(label[-1]) * BUFFER
    length = PRECOPY if block else BUFFER
    heads = [at for head in (24, 48, 114) for at in range(head, head + 16) if begin <= at < begin + length]
    assert heads
    assert list(flipped(script, label, (before + at - begin for at in heads))) == []


def test_what_no_judge_of_a_bare_capture_can_see() -> None:
    """Streams that another, equally good migration would have sent; written down so that nobody searches."""
    # A guest may dirty any page, so a later round may send any page ...
    other_page = good(journals=False)
    other_page.patch("ram2", MULTIFD_RAM.size, (3 * PAGE).to_bytes(8, "big"))
    # ... or one page more, which has become zero ...
    page_more = good(journals=False)
    page_more.patch("ram2", MULTIFD_RAM.place("zero_pages").offset, (1).to_bytes(4, "big"))
    # ... channels are chosen freely, so two buffers may have gone over each other's channel ...
    channels = good(journals=False)
    channels.swap("vf0.1", "vf0.2")
    # ... and what a device saves is its own affair, whether opaque ...
    content = contents_swapped(good(journals=False), 1)
    # ... or the firmware's data inside a record ...
    firmware = good(journals=False)
    firmware.patch("vf0.2", -1, b"\xee")
    # ... the blocks of the main channel are not numbered, so one of whole records may never have been ...
    fewer = two_blocks(good(journals=False), precopy()[:24])
    # ... nor may the first, and without that nothing says that a state is records.
    first = good(journals=False)
    first.drop("vf0.part")
    for script in (other_page, page_more, channels, content, firmware, fewer, first):
        assert judge(script).standing is Standing.HOLDS


def test_with_one_channel_the_uuid_is_only_a_claim() -> None:
    script = good(journals=False)
    script.pieces[:] = [p for p in script.pieces if p.where != "1"]
    report = judge(script)
    row = report.exercised.invariants["CH-5"]
    assert row.standing is Standing.UNKNOWN
    assert any(u.id == "CH-5" and "one channel" in u.why for u in report.unknown)


def test_the_journals_name_the_uuid_of_a_single_channel(tmp_path: Path) -> None:
    script = good()
    script.patch("init0", 8, b"\xee")
    script.patch("init1", 8, b"\xee")
    script.write_folder(tmp_path)
    assert "CH-5" in {v.id for v in check_path(tmp_path).violations}


def test_pages_and_names_of_the_script_are_what_the_tests_think() -> None:
    assert len(pages(1)) == PAGE
    assert len(DEVICES) == len(BUFFERS)
    assert good().find("ram.start").where == MAIN
