# SPDX-License-Identifier: GPL-2.0-or-later
"""Journals are read with their places, merged by time, and told from what is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from mockdev.journal import Begin, JournalError, Mark
from tests.canaries.script import good
from verifier.history.journals import is_journal, read_journal
from verifier.history.merge import Lines
from verifier.history.observation import Said


def said(role: str, *times: int) -> list[Said]:
    """Lines of one journal at these times."""
    return [Said(role, Mark(t=t, name=str(t)), f"{role}.jsonl", 0, 1) for t in times]


def test_lines_carry_their_place_in_the_file(tmp_path: Path) -> None:
    good().write_folder(tmp_path)
    path = tmp_path / "source.jsonl"
    raw = path.read_bytes()
    lines = list(read_journal(path))
    assert isinstance(lines[0].line, Begin)
    assert {line.role for line in lines} == {"source"}
    assert sum(line.size for line in lines) == len(raw)
    last = lines[-1]
    assert raw[last.offset : last.offset + last.size].startswith(b'{"event":"end"')


def test_a_cut_last_line_is_left_out(tmp_path: Path) -> None:
    good().write_folder(tmp_path)
    path = tmp_path / "source.jsonl"
    whole = list(read_journal(path))
    path.write_bytes(path.read_bytes()[:-5])
    assert [line.line for line in read_journal(path)] == [line.line for line in whole[:-1]]


def test_zero_bytes_that_a_killed_process_left_are_no_lines(tmp_path: Path) -> None:
    good().write_folder(tmp_path)
    path = tmp_path / "source.jsonl"
    whole = list(read_journal(path))
    path.write_bytes(path.read_bytes() + bytes(200_000))
    assert list(read_journal(path)) == whole


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"event":"mark","t":1,"name":"x"}\n', "not a journal of schema"),
        (b"{nonsense\n", "not a journal line"),
        (b'{"event":"begin","t":1,"role":"cook"}\n', "neither source nor target"),
        (b'{"event":"begin","t":1,"role":"source","schema":"other/9"}\n', "not a journal of schema"),
    ],
)
def test_what_is_no_journal_is_refused_with_a_sentence(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    with pytest.raises(JournalError, match=message):
        list(read_journal(path))


def test_kinds_are_told_by_their_first_bytes() -> None:
    assert is_journal(b'{"event":')
    assert not is_journal(b"\x0a\x0d\x0d\x0a")


def test_journals_are_merged_by_time_each_in_its_own_order() -> None:
    lines = Lines([said("source", 1, 5, 4, 9), said("target", 2, 6)])
    assert lines.next_ns == 1
    assert [x.time_ns for x in lines.until(5)] == [1, 2, 5, 4]
    assert [x.time_ns for x in lines.until(5)] == []
    assert [x.time_ns for x in lines.rest()] == [6, 9]
    assert lines.next_ns > 1 << 62
