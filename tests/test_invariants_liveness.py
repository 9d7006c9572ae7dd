# SPDX-License-Identifier: GPL-2.0-or-later
"""Who gives up, or hangs, is accused only where nothing else explains it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from mockdev.journal import Begin, End, Failure, Mark, Received, Saved, Sent
from tests.canaries.agreements import hangs, never_loaded, never_says_so, told_and_gives_up
from tests.canaries.lent import lend
from tests.canaries.script import CONFIGURED, Script, good
from verifier.check import check_path
from verifier.verdict import Report

STALLED: dict[str, Callable[[Script], None]] = {
    "LV-1": never_loaded,
    "LV-3": never_says_so,
    "LV-4": told_and_gives_up,
}


def judged(script: Script, folder: Path) -> Report:
    """The report on a script."""
    script.write_folder(folder)
    return check_path(folder)


def ids(report: Report) -> set[str]:
    """What is violated."""
    return {violation.id for violation in report.violations}


def delay(script: Script, role: str, seconds: float) -> None:
    """Let an end give up that much later than its last line."""
    lines = script.lines[role]
    for at, line in enumerate(lines):
        if isinstance(line, Failure | End):
            lines[at] = msgspec.structs.replace(line, t=line.t + int(seconds * 1e9))


@pytest.mark.parametrize("name", STALLED)
def test_an_end_that_was_asked_to_fail_is_not_accused(name: str, tmp_path: Path) -> None:
    script = good()
    STALLED[name](script)
    script.record = {"seed": 1, "arguments": {"faults": ["target.vf1.load:stall=99s"]}}
    assert name not in ids(judged(script, tmp_path))


@pytest.mark.parametrize("name", STALLED)
def test_an_end_whose_fault_struck_is_not_accused(name: str, tmp_path: Path) -> None:
    script = good()
    STALLED[name](script)
    role = "source" if name == "LV-4" else "target"
    script.lines[role].insert(1, Mark(t=script.lines[role][0].t, name="fault"))
    assert name not in ids(judged(script, tmp_path))


@pytest.mark.parametrize("name", STALLED)
@pytest.mark.parametrize(("seconds", "accused"), [(30.5, True), (59.0, True), (90.0, False), (3600.0, False)])
def test_a_machine_that_stood_still_is_not_accused(
    name: str, seconds: float, accused: bool, tmp_path: Path
) -> None:
    script = good()
    STALLED[name](script)
    delay(script, "source" if name == "LV-4" else "target", seconds)
    report = judged(script, tmp_path)
    assert (name in ids(report)) is accused
    assert accused or name in {unknown.id for unknown in report.unknown}


@pytest.mark.parametrize("name", STALLED)
def test_another_failure_is_no_giving_up(name: str, tmp_path: Path) -> None:
    script = good()
    STALLED[name](script)
    role = "source" if name == "LV-4" else "target"
    script.edit(role, Failure, field="idx")
    assert name not in ids(judged(script, tmp_path))


def test_a_target_that_waits_for_what_never_came_is_not_accused(tmp_path: Path) -> None:
    script = good()
    never_loaded(script)
    lines = script.lines["target"]
    lines.remove(next(x for x in lines if isinstance(x, Received) and x.device.startswith("0000:00:03")))
    assert "LV-1" not in ids(judged(script, tmp_path))


def test_a_buffer_that_a_channel_still_holds_is_not_lost(tmp_path: Path) -> None:
    """The last buffer that a channel read: its peer may not read."""
    script = good()
    lines = script.lines["source"]
    last = [x for x in lines if isinstance(x, Sent) and x.channel == "1"][-1]
    lines.remove(last)
    assert any(isinstance(x, Saved) and (x.device, x.idx) == (last.device, last.idx) for x in lines)
    assert "LV-2" not in ids(judged(script, tmp_path))


def test_a_channel_that_has_sent_nothing_may_hold_anything(tmp_path: Path) -> None:
    script = good()
    script.edit("source", Begin, config=CONFIGURED | {"channels": 3})
    lines = script.lines["source"]
    lines.remove(next(x for x in lines if isinstance(x, Sent) and x.idx == 0))
    assert "LV-2" not in ids(judged(script, tmp_path))


@pytest.mark.parametrize(
    "changes", [{"arguments": {"faults": ["source.process:stop@+1ms"]}}, {"called_off": True}]
)
def test_a_run_that_was_made_to_hang_or_called_off_is_not_accused(
    changes: dict[str, object], tmp_path: Path
) -> None:
    script = good()
    hangs(script)
    script.record |= changes
    report = judged(script, tmp_path)
    assert "LV-5" not in ids(report)
    assert "LV-5" not in report.exercised.invariants


def test_ends_that_came_to_an_end_hold(tmp_path: Path) -> None:
    script = good()
    lend(script)
    assert judged(script, tmp_path).exercised.invariants["LV-5"].standing == "holds"
