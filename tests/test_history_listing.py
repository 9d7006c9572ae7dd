# SPDX-License-Identifier: GPL-2.0-or-later
"""A listing names every frame and field, to the last byte, and says what it cannot read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mockdev.journal import JournalError
from tests.canaries.script import good
from verifier.capture.opening import CaptureError
from verifier.history.listing import Entry, list_capture, list_journals


def test_every_frame_of_a_capture_is_listed_with_its_fields(tmp_path: Path) -> None:
    script = good(journals=False)
    path = tmp_path / "c.pcapng"
    script.write_capture(path)
    entries: list[Entry] = []
    list_capture(path, entries.append)
    json.dumps(entries)
    state = [e for e in entries if e["kind"] == "DeviceStateFrame"]
    assert len(state) == 7
    assert state[0]["head.idstr"] == "0000:00:02.0/vfio"
    assert state[0]["vfio.idx"] == 0
    tiles = [e for e in entries if e["flow"] == "channel 0" and e["kind"].endswith("Frame")]
    assert sum(e["size"] for e in tiles) == sum(len(p.data) for p in script.pieces if p.where == "0")
    assert {e.get("tag_name") for e in entries} >= {"SECTION_START", "DEV_DATA_STATE", "END_OF_STATE"}


def test_what_cannot_be_read_is_listed_too(tmp_path: Path) -> None:
    script = good(journals=False)
    script.patch("sync0.1", 0, b"\0\0\0\0")
    path = tmp_path / "c.pcapng"
    script.write_capture(path)
    entries: list[Entry] = []
    list_capture(path, entries.append)
    (broken,) = [e for e in entries if e["kind"] == "Broken"]
    assert broken["field"] == "magic"
    (rest,) = [e for e in entries if e["kind"] == "Rest"]
    assert rest["undecodable_bytes"] > 0


def test_a_journal_is_listed(tmp_path: Path) -> None:
    good().write_folder(tmp_path)
    entries: list[Entry] = []
    list_journals([tmp_path / "target.jsonl"], entries.append)
    assert entries[0]["event"] == "begin"
    assert entries[-1]["outcome"] == "completed"


def test_journals_are_listed_on_one_time_line(tmp_path: Path) -> None:
    good().write_folder(tmp_path)
    entries: list[Entry] = []
    list_journals([tmp_path / "source.jsonl", tmp_path / "target.jsonl"], entries.append)
    assert {entry["flow"] for entry in entries} == {"source journal", "target journal"}
    assert [entry["t"] for entry in entries] == sorted(entry["t"] for entry in entries)


def test_errors_reach_the_caller(tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.write_bytes(b"no capture at all")
    with pytest.raises(CaptureError):
        list_capture(bad, print)
    with pytest.raises(JournalError):
        list_journals([bad], print)


def test_who_has_seen_enough_ends_it(tmp_path: Path) -> None:
    """An error of `emit` (a broken pipe, say) ends the listing at once, and the capture can be closed."""
    path = tmp_path / "c.pcapng"
    good(journals=False).write_capture(path)
    seen: list[Entry] = []

    def emit(entry: Entry) -> None:
        seen.append(entry)
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        list_capture(path, emit)
    assert len(seen) == 1
