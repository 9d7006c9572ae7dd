# SPDX-License-Identifier: GPL-2.0-or-later
"""No changed bit of a header, no dropped, doubled or swapped buffer is ever judged to hold."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import pytest

from mockdev.wire.structs import (
    MULTIFD_DEVICE_STATE,
    MULTIFD_INIT,
    MULTIFD_RAM,
    VFIO_DEVICE_STATE,
)
from tests.canaries.bench_of_one import judge
from tests.canaries.script import BUFFERS, DEVICES, MAIN, PAGE, Script, buffer, good, packet, pages
from verifier.check import check_path
from verifier.verdict import Standing

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


def test_contents_swapped_between_buffers_are_seen_beside_journals(tmp_path: Path) -> None:
    script = good()
    script.find("vf0.0").data = packet(0, 0, buffer(0, 1))
    script.find("vf0.1").data = packet(0, 1, buffer(0, 0))
    script.write_folder(tmp_path)
    report = check_path(tmp_path)
    assert {v.id for v in report.violations} == {"EQ-1"}
    assert [row.equal for row in report.devices] == [False, True]


def test_a_dropped_block_of_the_main_channel_is_seen_beside_journals(tmp_path: Path) -> None:
    script = good()
    script.drop("vf0.part")
    script.write_folder(tmp_path)
    assert {v.id for v in check_path(tmp_path).violations} == {"EQ-1"}


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
    # ... and what a device saves is its own affair.
    content = good(journals=False)
    content.find("vf0.0").data = packet(0, 0, buffer(0, 1))
    # ... the blocks of the main channel are not numbered, so one may never have been there ...
    fewer = good(journals=False)
    fewer.drop("vf0.part")
    for script in (other_page, page_more, channels, content, fewer):
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
