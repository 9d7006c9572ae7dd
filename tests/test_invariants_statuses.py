# SPDX-License-Identifier: GPL-2.0-or-later
"""What QEMUs say of status and VM: the ways that a migration may take, and those that it may not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.canaries.lent import lend, qmp
from tests.canaries.script import START_NS, Script, good
from verifier.check import check_path
from verifier.verdict import Report

SECOND_NS = 1_000_000_000
OURS = {"SM-4", "SM-9", "SM-10", "OC-4", "OC-5"}


def told(folder: Path, **roles: str) -> Report:
    """The report on QMP logs alone: words in lower case are statuses, after @ is the second."""
    for role, words in roles.items():
        lines, second = [], 0
        for word in words.split():
            name, _, at = word.partition("@")
            second = int(at) if at else second
            event, status = (name, "") if name.isupper() else ("MIGRATION", name)
            lines.append(qmp(START_NS + second * SECOND_NS, event, status) + "\n")
        (folder / f"{role}.qmp.jsonl").write_text("".join(lines))
    return check_path(folder)


def ids(report: Report) -> set[str]:
    """What is violated, of these rules."""
    return {violation.id for violation in report.violations} & OURS


@pytest.mark.parametrize(
    "words",
    [
        "setup active STOP device completed",
        "setup active STOP pre-switchover device completed SHUTDOWN",
        "setup active cancelling cancelled",
        "setup active STOP device cancelling RESUME cancelled STOP SHUTDOWN",
        "setup active STOP device cancelling completed",
        "setup active STOP device failing RESUME failed",
        "setup failed setup active STOP device completed",
        "setup active cancelling cancelled setup active STOP device completed",
        "setup active postcopy-active postcopy-paused postcopy-active completed",
        "setup active colo completed",
        "setup active completed",  # a background snapshot
        "setup setup active active STOP device device completed completed",
        "STOP setup active device completed",  # of a VM that its user had paused
        "device completed RESUME STOP",  # listened to from the middle, and its user runs it again
    ],
)
def test_a_source_may(words: str, tmp_path: Path) -> None:
    assert not ids(told(tmp_path, source=words))


@pytest.mark.parametrize(
    "words",
    [
        "setup active RESUME completed",
        "setup active completed RESUME",
        "setup active completed RESUME STOP RESUME SHUTDOWN",
        "setup failed setup active RESUME completed",
        "setup active failed",
        "setup active completed RESUME setup active cancelling cancelled",  # it went on as a source
        "setup active postcopy-active RESUME failed",
        "RESUME",
    ],
)
def test_a_target_may(words: str, tmp_path: Path) -> None:
    assert not ids(told(tmp_path, target=words))


@pytest.mark.parametrize(
    ("role", "words", "found"),
    [
        ("source", "setup device completed", {"SM-4"}),
        ("source", "setup active device active completed", {"SM-4"}),
        ("source", "setup active STOP device completed failed", {"SM-4"}),
        ("target", "setup completed", {"SM-4"}),
        ("source", "setup active device STOP completed", {"SM-9"}),
        ("source", "RESUME setup active device completed", {"SM-9"}),
        ("source", "setup active STOP RESUME device completed", {"SM-9"}),
        ("target", "setup active RESUME failed", {"OC-5"}),
        ("target", "setup active RESUME failing failed", {"OC-5"}),
    ],
)
def test_neither_may(role: str, words: str, found: set[str], tmp_path: Path) -> None:
    assert ids(told(tmp_path, **{role: words})) == found


@pytest.mark.parametrize(
    ("source", "target", "both"),
    [
        ("setup STOP@5 device completed@6", "setup completed@6 RESUME@6 SHUTDOWN@9", False),
        ("setup STOP@5 device cancelling RESUME@6 cancelled SHUTDOWN@9", "setup RESUME@6 SHUTDOWN@9", True),
        ("setup STOP@5 device cancelling RESUME@6 SHUTDOWN@9", "setup RESUME@7 SHUTDOWN@8", False),  # 1 s
        ("setup STOP@5 device cancelling RESUME@6 SHUTDOWN@9", "setup RESUME@6 STOP@7 SHUTDOWN@9", False),
        ("setup STOP@8 device completed@9", "setup RESUME@5 completed@9", True),  # had run all the time
        ("setup device completed SHUTDOWN@9", "setup RESUME@5 SHUTDOWN@9", False),  # never ran
        ("setup STOP@5 RESUME@6 STOP@7 RESUME@20", "setup RESUME@10 STOP@15 RESUME@16 SHUTDOWN@30", False),
        ("setup STOP@5 RESUME@6 STOP@7 RESUME@20 SHUTDOWN@30", "setup RESUME@10 SHUTDOWN@30", True),
        ("setup STOP@4 RESUME@5 STOP@20", "setup RESUME@4 STOP@6 RESUME@10 SHUTDOWN@15", True),
        ("setup STOP@4 RESUME@5 STOP@20", "setup RESUME@4 STOP@6 RESUME@20 SHUTDOWN@25", False),
        ("setup STOP@1 RESUME@20 STOP@30", "setup RESUME@3 STOP@5 RESUME@6 STOP@8 RESUME@22 STOP@29", True),
        ("setup STOP@1 RESUME@20 STOP@30", "setup RESUME@3 STOP@5 RESUME@6 STOP@8 RESUME@30 STOP@39", False),
    ],
)
def test_both_ends_at_once(source: str, target: str, both: bool, tmp_path: Path) -> None:
    assert ("OC-4" in ids(told(tmp_path, source=source, target=target))) is both


def capture_with(tmp_path: Path, resume_after_s: int) -> Report:
    """The good migration, whose target resumes that long before, or after, the end of the stream."""
    script: Script = good(journals=False)
    end = script.find("eof").time_ns
    script.events["target"] = [qmp(end + resume_after_s * SECOND_NS, "RESUME")]
    script.write_folder(tmp_path)
    return check_path(tmp_path)


@pytest.mark.parametrize(("seconds", "early"), [(1, False), (0, False), (-1, False), (-2, True)])
def test_a_target_runs_after_the_end_of_the_stream(seconds: int, early: bool, tmp_path: Path) -> None:
    report = capture_with(tmp_path, seconds)
    assert ("SM-10" in ids(report)) is early
    assert "SM-10" in report.exercised.invariants


def test_a_log_without_times_is_held_against_nothing_else(tmp_path: Path) -> None:
    script = good()
    lend(script)
    for role, lines in script.logs.items():
        script.logs[role] = [line.partition(":")[2] for line in lines]
    script.events.clear()
    script.write_folder(tmp_path)
    report = check_path(tmp_path)
    assert not report.violations
    assert {"SM-4", "SM-9", "OC-5"} <= report.exercised.invariants.keys()
    assert not {"SM-10", "OC-4"} & report.exercised.invariants.keys()
