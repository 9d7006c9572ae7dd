# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading QMP's events: those of a run, and what a user's own tool wrote down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from verifier.check import check_path, evidence_of
from verifier.history.endings import Endings
from verifier.history.observation import QMP_LOG, QmpEvent
from verifier.history.qmp import LINE_BYTES_MAX, read_events


def event(name: str, seconds: int = 1, **data: object) -> str:
    """A line as QEMU sends it."""
    time = {"seconds": seconds, "microseconds": 250_000}
    return json.dumps({"timestamp": time, "event": name} | ({"data": data} if data else {})) + "\n"


def read(tmp_path: Path, *lines: str, role: str = "source") -> list[QmpEvent]:
    path = tmp_path / "source.qmp.jsonl"
    path.write_text("".join(lines))
    said = list(read_events(path, role))
    assert all(one.where == QMP_LOG for one in said)
    return [one.line for one in said if isinstance(one.line, QmpEvent)]


def test_events_are_read_with_their_own_time(tmp_path: Path) -> None:
    found = read(tmp_path, event("MIGRATION", 7, status="device"), event("STOP", 8))
    assert found == [
        QmpEvent(7_250_000_000, "MIGRATION", "device"),
        QmpEvent(8_250_000_000, "STOP", ""),
    ]


@pytest.mark.parametrize(
    "other",
    [
        '{"QMP": {"version": {}}}\n',
        '{"return": {}, "id": "7"}\n',
        '{"execute": "query-migrate"}\n',
        "not JSON at all\n",
        "\n",
        '{"event": "STOP"}\n',
        '{"event": "STOP", "timestamp": {"seconds": -1, "microseconds": -1}}\n',
        '{"event": "STOP", "timestamp": {"seconds": 99999999999999999999, "microseconds": 0}}\n',
        '{"event": 7, "timestamp": {"seconds": 1, "microseconds": 0}}\n',
        "[" * 100_000 + "\n",
        '{"event": "X' + "x" * LINE_BYTES_MAX + '"}\n',
        '{"event": "RESUME", "timestamp": {"seconds": 1, "microseconds": 0}}',
    ],
)
def test_what_is_no_whole_event_is_passed_over(other: str, tmp_path: Path) -> None:
    lines = (event("STOP"), other) if not other.endswith("\n") else (other, event("STOP"))
    assert [one.event for one in read(tmp_path, *lines)] == ["STOP"]


@pytest.mark.parametrize("data", [{"status": 7}, {"status": None}, {}])
def test_a_status_that_is_none_is_empty(data: dict[str, Any], tmp_path: Path) -> None:
    (found,) = read(tmp_path, event("MIGRATION", **data))
    assert found.value == ""


@pytest.mark.parametrize(
    ("lines", "role"),
    [
        ([event("MIGRATION", status="active"), event("MIGRATION_PASS")], "source"),
        ([event("MIGRATION", status="device")], "source"),
        ([event("MIGRATION", status="active"), event("RESUME")], "target"),
    ],
)
def test_a_log_alone_tells_whose_it_is(lines: list[str], role: str, tmp_path: Path) -> None:
    path = tmp_path / "qmp.log"
    path.write_text('{"QMP": {}}\n' + "".join(lines))
    assert evidence_of(path).events == {"": path}
    assert {said.role for said in read_events(path)} == {role}


def test_a_folder_of_events_alone_is_evidence(tmp_path: Path) -> None:
    for role in ("source", "target"):
        (tmp_path / f"{role}.qmp.jsonl").write_text(event("MIGRATION", status="completed"))
    assert evidence_of(tmp_path).events.keys() == {"source", "target"}
    assert {"OC-1", "OC-2", "OC-3"} <= check_path(tmp_path).exercised.invariants.keys()


@pytest.mark.parametrize(
    ("lines", "runs"),
    [
        (["STOP", "completed"], False),
        (["completed"], False),
        (["STOP", "cancelled", "RESUME"], True),
        (["STOP", "failed"], None),
        (["failed"], None),
    ],
)
def test_events_tell_whether_the_source_runs(lines: list[str], runs: bool | None, tmp_path: Path) -> None:
    path = tmp_path / "source.qmp.jsonl"
    path.write_text(
        "".join(event(name) if name.isupper() else event("MIGRATION", status=name) for name in lines)
    )
    endings = Endings()
    for said in read_events(path, "source"):
        endings.take(said, supervised=True)
    end = endings.of("source")
    assert end is not None
    assert end.runs is runs
