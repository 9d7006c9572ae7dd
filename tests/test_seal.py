# SPDX-License-Identifier: GPL-2.0-or-later
"""A capture that was written here and closed is sealed, and never holds when a byte of it has changed."""

from __future__ import annotations

import gzip
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import xxhash
import zstandard

from mockdev.runtime.pcap_writer import PcapngWriter
from mockdev.wire.seal import SEAL_BYTES, find_seal
from tests.canaries.script import START_NS, good
from tests.test_invariants_flips import BUFFER_LABELS, HEADERS
from verifier.check import check_path
from verifier.verdict import Report, Standing

ALTERED = "was altered or damaged after it was written"


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    """The good migration, bare."""
    path = tmp_path / "c.pcapng"
    good(journals=False).write_capture(path)
    return path


def altered(report: Report) -> bool:
    """Whether the report says that the file is not what was written."""
    return any(unknown.id == "input" and ALTERED in unknown.why for unknown in report.unknown)


def flip(path: Path, offset: int, bit: int = 0) -> None:
    """Change one bit of a file."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << bit
    path.write_bytes(data)


def place(path: Path, label: str) -> int:
    """Where the bytes of a piece of the good migration lie in its capture."""
    data = good(journals=False).find(label).data
    raw = path.read_bytes()
    assert raw.count(data) == 1, label
    return raw.index(data)


def test_a_closed_capture_ends_with_the_digest_of_what_is_before(sealed: Path) -> None:
    raw = sealed.read_bytes()
    found = find_seal(raw[-100:], len(raw))
    assert found is not None
    assert found.at == len(raw) - SEAL_BYTES
    assert found.digest == xxhash.xxh3_128_digest(raw[: found.at])
    report = check_path(sealed)
    assert report.standing is Standing.HOLDS, report.unknown
    assert report.inputs[0].digest == f"xxh3-128:{xxhash.xxh3_128_hexdigest(raw)}"


# One packet of each kind; how far a header goes matters here only in that all of it is tried.
@pytest.mark.parametrize("label", ["init0", "ram0", "vf0.0", "vf0.3"])
def test_no_bit_of_a_header_can_change_unseen(label: str, sealed: Path) -> None:
    start = place(sealed, label)
    for offset in range(HEADERS[label]):
        bit = (7 * offset + 3) % 8
        flip(sealed, start + offset, bit)
        report = check_path(sealed)
        assert report.standing is not Standing.HOLDS, (label, offset)
        assert altered(report), (label, offset)
        flip(sealed, start + offset, bit)
    assert check_path(sealed).standing is Standing.HOLDS


def test_what_no_invariant_can_see_in_a_bare_capture_is_seen_by_the_seal(sealed: Path) -> None:
    """Content of buffers and pages, padding, times, the statistics: as `unknown`, for nothing is violated."""
    raw = sealed.read_bytes()
    places = [place(sealed, label) + len(good().find(label).data) - 1 for label in BUFFER_LABELS[4:6]]
    places += [place(sealed, "ram0") + 5000, raw.index(b"script")]
    for offset in places:
        flip(sealed, offset)
        report = check_path(sealed)
        assert report.standing is Standing.UNKNOWN, (offset, report.violations)
        assert altered(report)
        flip(sealed, offset)


def test_a_violation_in_an_altered_capture_stays_one(sealed: Path) -> None:
    flip(sealed, place(sealed, "vf1.0") + 200)  # padding of the idstr
    report = check_path(sealed)
    assert report.standing is Standing.VIOLATED
    assert altered(report)


def test_tshark_passes_over_a_seal(sealed: Path) -> None:
    command = ["tshark", "-n", "-r", str(sealed), "-T", "fields", "-e", "frame.number"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    before = sealed.with_suffix(".unsealed")
    before.write_bytes(sealed.read_bytes()[:-SEAL_BYTES])
    command[3] = str(before)
    unsealed = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == unsealed.stdout != ""
    assert done.stderr == unsealed.stderr


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
def test_a_seal_is_looked_at_in_packed_captures_too(pack: Callable[[bytes], bytes], sealed: Path) -> None:
    packed = sealed.with_suffix(".packed")
    packed.write_bytes(pack(sealed.read_bytes()))
    report = check_path(packed)
    assert report.standing is Standing.HOLDS, report.unknown
    assert report.inputs[0].digest == f"xxh3-128:{xxhash.xxh3_128_hexdigest(packed.read_bytes())}"
    flip(sealed, place(sealed, "vf1.0") + 300)
    packed.write_bytes(pack(sealed.read_bytes()))
    assert altered(check_path(packed))


def test_without_a_seal_nothing_is_said(sealed: Path, tmp_path: Path) -> None:
    raw = sealed.read_bytes()
    sealed.write_bytes(raw[:-SEAL_BYTES])
    flip(sealed, place(sealed, "vf1.0") + 300)  # content, which no invariant sees
    assert check_path(sealed).standing is Standing.HOLDS
    # A writer that was killed had not sealed.
    writer = PcapngWriter(tmp_path / "killed", ["source"])
    writer.connection(("127.0.0.1", 1), ("127.0.0.1", 2), START_NS)
    raw = (tmp_path / "killed").read_bytes()
    assert find_seal(raw, len(raw)) is None
    writer.close()
