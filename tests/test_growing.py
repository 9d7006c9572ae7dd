# SPDX-License-Identifier: GPL-2.0-or-later
"""Captures, journals and logs that are in the middle of being written."""

from __future__ import annotations

import random
import struct
from contextlib import closing, suppress
from pathlib import Path

import pytest

from tests.canaries.lent import lend
from tests.canaries.script import good
from verifier.capture.growing import open_growing
from verifier.capture.pcapng import open_capture
from verifier.check import evidence_of
from verifier.history.growing import GrowingFile, GrowingLines
from verifier.history.journals import read_journal
from verifier.history.merge import Lines
from verifier.history.qmp import read_events
from verifier.history.traces import read_traces
from verifier.online import files_of


class Written(Exception):
    """All is."""


class Growth:
    """A file that grows by a little at each look, and the follower's end when it is whole.

    ahead: zeros lie behind what is written, as in a file that was made ahead, once its head was there.
    """

    def __init__(self, path: Path, data: bytes, seed: int, *, ahead: bool = False) -> None:
        self._path = path
        self._data = data
        self._random = random.Random(seed)
        self._written = 28 if ahead else 0
        path.write_bytes(data[:28] + bytes(len(data) - 28) if ahead else b"")

    def look(self, waiting: bool) -> None:
        """Write a little more."""
        if not waiting:
            return
        if self._written == len(self._data):
            raise Written
        size = self._random.choice((1, 2, 3, 5, 30, 500, 5000))
        with self._path.open("r+b") as file:
            file.seek(self._written)
            file.write(self._data[self._written :][:size])
        self._written = min(len(self._data), self._written + size)

    def packets(self) -> list[tuple[object, ...]]:
        """All packets that a follower sees, as bytes and times."""
        seen: list[tuple[object, ...]] = []
        capture = None
        while capture is None:
            self.look(waiting=True)
            capture = open_growing(self._path, self.look)
        with capture, suppress(Written):
            for start, stop, original, time_ns, interface, note in capture.packets():
                seen.append((capture.data[start:stop], original, time_ns, interface, note))
        return seen


def as_pcap(capture: Path) -> bytes:
    """The same packets in a classic file of the other byte order."""
    out = struct.pack(">IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 0, 101)
    with open_capture(capture) as opened:
        for start, stop, original, time_ns, *_ in opened.packets():
            out += struct.pack(">IIII", *divmod(time_ns, 10**9), stop - start, original)
            out += opened.data[start:stop]
    return out


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", ["pcapng", "made ahead", "pcap"])
def test_a_growing_capture_gives_the_packets_of_the_whole_one(kind: str, seed: int, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    good().write_capture(whole)
    data = as_pcap(whole) if kind == "pcap" else whole.read_bytes()
    whole.write_bytes(data)
    with open_capture(whole) as capture:
        expected = [
            (capture.data[start:stop], original, time_ns, interface, note)
            for start, stop, original, time_ns, interface, note in capture.packets()
        ]
    assert len(expected) > 50
    growth = Growth(tmp_path / "growing", data, seed, ahead=kind == "made ahead")
    assert growth.packets() == expected


def test_a_line_is_read_when_all_its_bytes_are_there(tmp_path: Path) -> None:
    """A journal is written into zeros, and what is written last may be visible first."""
    path = tmp_path / "source.jsonl"
    begin = b'{"event":"begin","t":1,"role":"source","schema":"vfmig.journal/1"}\n'
    mark = b'{"event":"mark","t":2,"name":"stop"}\n'
    torn = mark[:10] + bytes(5) + mark[15:]
    path.write_bytes(begin + torn + bytes(100))
    journal = GrowingFile(path)
    with closing(GrowingLines([journal])) as lines:
        lines.poll()
        assert [said.size for said in lines.rest()] == [len(begin)]
        path.write_bytes(begin + mark + bytes(100))
        lines.poll()
        assert [(said.offset, said.size) for said in lines.rest()] == [(len(begin), len(mark))]
        path.write_bytes(begin + mark)  # closed: the zeros are cut off
        assert not lines.poll()
        path.write_bytes(begin + mark + b"nonsense\n")
        lines.poll()
        assert "not a journal line" in journal.problem


def test_lines_of_several_files_come_by_time_each_file_in_its_own_order(tmp_path: Path) -> None:
    script = good()
    lend(script)
    script.write_folder(tmp_path)
    files = files_of(tmp_path)
    found = evidence_of(tmp_path)
    readers = [read_journal(path) for path in found.journals]
    readers += [read_traces(path, role) for role, path in found.logs.items()]
    readers += [read_events(path, role) for role, path in found.events.items()]
    with closing(GrowingLines(files)) as lines:
        lines.poll()
        assert list(lines.rest()) == list(Lines(readers).rest())
