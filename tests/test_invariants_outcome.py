# SPDX-License-Identifier: GPL-2.0-or-later
"""What became of the VM: lost and split-brain are found, whoever tells of the ends, and nothing else is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mockdev.journal import Begin, End, Mark, Read, State, Verified
from tests.canaries.lent import ended, lend
from tests.canaries.script import DEVICES, Script, good
from verifier.check import check_path
from verifier.verdict import Report, Standing

FAULT = "target.vf0.load:eio@2MiB"
YES, NO = True, False


def of(script: Script, folder: Path) -> Report:
    """The report on a script."""
    script.write_folder(folder)
    return check_path(folder)


def ids(report: Report) -> set[str]:
    """What is violated."""
    return {violation.id for violation in report.violations}


def doubted(report: Report) -> set[str]:
    """Of whose fate nobody knows."""
    return {unknown.id for unknown in report.unknown if unknown.id.startswith("OC")}


def recorded(outcome: str, source: tuple[str, bool], target: tuple[str, bool]) -> Script:
    """The good migration between two QEMUs, with another end in its record."""
    script = good()
    lend(script)
    script.logs.clear()
    script.events.clear()
    script.record["outcome"]["outcome"] = outcome
    ended(script, "source", outcome=source[0], runs=source[1], error="why it did")
    ended(script, "target", outcome=target[0], runs=target[1], error="why it did")
    return script


@pytest.mark.parametrize("found", [{"OC-2", "OC-3"}, set()], ids=["by itself", "stopped"])
def test_a_run_that_was_stopped_is_not_accused_of_its_end(found: set[str], tmp_path: Path) -> None:
    script = recorded("lost", ("completed", NO), ("failed", NO))
    if not found:
        script.record["stopped_at"] = {"id": "CH-6"}
    report = of(script, tmp_path)
    assert ids(report) & {"OC-1", "OC-2", "OC-3"} == found
    assert found or doubted(report) >= {"OC-2", "OC-3"}


@pytest.mark.parametrize(
    ("outcome", "source", "target", "found", "unsure"),
    [
        ("completed", ("completed", NO), ("completed", YES), set(), set()),
        ("failed-clean", ("failed", YES), ("failed", NO), set(), set()),
        ("cancelled", ("cancelled", YES), ("failed", NO), set(), set()),
        ("lost", ("completed", NO), ("failed", NO), {"OC-2", "OC-3"}, set()),
        ("lost", ("failed", NO), ("failed", NO), {"OC-3"}, set()),
        ("split-brain", ("cancelled", YES), ("completed", YES), {"OC-1"}, set()),
        ("split-brain", ("failed", YES), ("completed", YES), {"OC-1"}, set()),
        # A target that dies after the source gave the VM up takes it along; a source takes it anyway.
        ("crashed", ("completed", NO), ("crashed", NO), {"OC-3"}, {"OC-2"}),
        ("crashed", ("failed", YES), ("crashed", NO), set(), set()),
        ("crashed", ("crashed", NO), ("failed", NO), set(), {"OC-3"}),
        ("crashed", ("crashed", NO), ("crashed", NO), set(), {"OC-3"}),
        # Of who hung nobody knows what it would have done.
        ("hung", ("completed", NO), ("killed", NO), {"LV-5"}, {"OC-2", "OC-3"}),
        ("hung", ("killed", NO), ("completed", YES), {"LV-5"}, {"OC-1"}),
        ("hung", ("failed", YES), ("killed", NO), {"LV-5"}, {"OC-1"}),
    ],
)
def test_both_ends_by_the_runs_record(
    outcome: str,
    source: tuple[str, bool],
    target: tuple[str, bool],
    found: set[str],
    unsure: set[str],
    tmp_path: Path,
) -> None:
    report = of(recorded(outcome, source, target), tmp_path)
    assert ids(report) == found, report.violations
    assert doubted(report) == unsure, report.unknown
    assert report.outcome == outcome
    assert report.exit_code == (1 if found else 0 if outcome == "completed" else 5)
    for violation in report.violations:
        flows = [witness.flow for witness in violation.witnesses]
        if violation.id == "LV-5":  # of one end
            assert flows in (["source run record"], ["target run record"])
        else:
            assert flows == ["source run record", "target run record"]
        assert all(w.file.endswith("run.json") and w.size for w in violation.witnesses)
    if "OC-3" in found:
        assert any("why it did" in v.message for v in report.violations)


@pytest.mark.parametrize(
    ("source", "target", "outcome", "found"),
    [
        (("completed", NO), ("completed", YES), "completed", set()),
        (("failed", YES), ("failed", NO), "failed-clean", set()),
        (("failed", NO), ("failed", NO), "lost", {"OC-3"}),
        (("completed", NO), ("failed", NO), "lost", {"OC-2", "OC-3"}),
        (("cancelled", YES), ("completed", YES), "split-brain", {"OC-1"}),
    ],
)
def test_both_ends_by_their_own_journals(
    source: tuple[str, bool], target: tuple[str, bool], outcome: str, found: set[str], tmp_path: Path
) -> None:
    script = good()
    for role, (word, runs) in (("source", source), ("target", target)):
        script.edit(role, End, outcome=word, runs=runs)
    if target[0] == "failed":
        script.patch("shut", -1, b"\1")
    report = of(script, tmp_path)
    assert (ids(report), report.outcome) == (found, outcome), report.violations
    for violation in report.violations:
        assert {w.flow for w in violation.witnesses} == {"source journal", "target journal"}


def test_a_source_that_says_itself_that_it_runs_again_is_not_lost(tmp_path: Path) -> None:
    """QEMU says "failed" a moment before its VM runs again: a record may have been made in between."""
    script = recorded("lost", ("failed", NO), ("failed", NO))
    stamp = {"seconds": 1, "microseconds": 0}
    failed = {"event": "MIGRATION", "data": {"status": "failed"}}
    told = ({"event": "STOP"}, failed, {"event": "RESUME"})
    script.events["source"] = [json.dumps({"timestamp": stamp, **event}) for event in told]
    report = of(script, tmp_path)
    assert "OC-3" not in ids(report)
    assert "OC-3" in doubted(report)
    script.events["source"].pop()
    assert "OC-3" in ids(of(script, tmp_path))


@pytest.mark.parametrize("completed", [YES, NO])
def test_a_target_that_was_called_off_when_it_had_taken_over_is_not_accused(
    completed: bool, tmp_path: Path
) -> None:
    script = recorded("lost", ("completed", NO), ("cancelled", NO))
    status = {"event": "MIGRATION", "data": {"status": "completed" if completed else "failed"}}
    script.events["target"] = [json.dumps({"timestamp": {"seconds": 1, "microseconds": 0}, **status})]
    report = of(script, tmp_path)
    assert ids(report) & {"OC-2", "OC-3"} == (set() if completed else {"OC-2", "OC-3"})
    assert doubted(report) == ({"OC-2", "OC-3"} if completed else set())


def test_a_mock_target_that_is_killed_when_the_vm_ran_has_lost_nothing(tmp_path: Path) -> None:
    """Its journal has no end, and tells that it had let the VM run."""
    script = good()
    script.record = recorded("crashed", ("completed", NO), ("crashed", NO)).record
    script.lines["target"] = [line for line in script.lines["target"] if not isinstance(line, End)]
    assert not ids(of(script, tmp_path)) & {"OC-2", "OC-3"}
    resumed = [line for line in script.lines["target"] if isinstance(line, Mark) and line.name == "resume"]
    script.lines["target"].remove(*resumed)
    assert "OC-3" in ids(of(script, tmp_path))


def test_the_record_is_believed_before_a_journal(tmp_path: Path) -> None:
    script = good()
    script.record = recorded("lost", ("completed", NO), ("crashed", NO)).record
    report = of(script, tmp_path)
    # The target's journal says that it had taken over before it died: that is no fault of the migration.
    assert not report.violations
    assert "OC-3" in doubted(report)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"outcome": 3}', '{"outcome": {"outcome": "lost"}}', '{"arguments": {"faults": "x"}}'],
)
def test_a_record_that_cannot_be_read_leaves_a_doubt(content: str, tmp_path: Path) -> None:
    good().write_folder(tmp_path)
    (tmp_path / "run.json").write_text(content)
    report = check_path(tmp_path)
    assert (report.standing, report.outcome, report.run) == (Standing.UNKNOWN, "completed", None)
    (doubt,) = report.unknown
    assert doubt.id == "input"
    assert "run.json cannot be read as a run's record: " in doubt.why


# --- failures that were asked for -------------------------------------------------------------------


def failed(*, faults: list[str], struck: list[str]) -> Script:
    """A migration that broke off in the middle of device state and left the VM where it was."""
    script = recorded("failed-clean", ("failed", YES), ("failed", NO))
    labels = [piece.label for piece in script.pieces]
    for label in labels[labels.index("vf1.1") :]:
        script.drop(label)
    for role in script.lines:
        script.lines[role] = [line for line in script.lines[role] if not isinstance(line, Verified)]
    script.record["arguments"]["faults"] = faults
    script.record["struck"] = struck
    return script


def test_a_failure_that_was_asked_for_and_came_holds(tmp_path: Path) -> None:
    report = of(failed(faults=[FAULT], struck=[FAULT]), tmp_path)
    assert (report.standing, report.outcome, report.exit_code) == (Standing.HOLDS, "failed-clean", 0)
    assert report.run is not None
    assert report.run.failed_as_injected
    assert report.run.faults == [FAULT]
    assert not report.unknown


def test_an_end_may_say_in_its_journal_that_a_fault_struck(tmp_path: Path) -> None:
    script = failed(faults=[FAULT], struck=[])
    script.say("target", Mark, name="fault", value=0)
    assert of(script, tmp_path).standing is Standing.HOLDS


@pytest.mark.parametrize(
    ("faults", "struck"),
    [([], []), ([FAULT], []), ([], [FAULT])],
    ids=["no fault", "a fault that did not strike", "a fault that nobody asked for"],
)
def test_a_failure_of_another_cause_is_never_green(
    faults: list[str], struck: list[str], tmp_path: Path
) -> None:
    report = of(failed(faults=faults, struck=struck), tmp_path)
    assert (report.standing, report.exit_code) == (Standing.UNKNOWN, 5)
    assert any(unknown.why == "the target failed: why it did" for unknown in report.unknown)
    said = any("that a fault that was asked for struck" in unknown.why for unknown in report.unknown)
    assert said is (bool(faults) and not struck)


@pytest.mark.parametrize(
    ("outcome", "source", "target", "fault", "standing"),
    [
        ("cancelled", ("cancelled", YES), ("failed", NO), "source.process:cancel@+100ms", Standing.HOLDS),
        ("cancelled", ("cancelled", YES), ("failed", NO), FAULT, Standing.UNKNOWN),
        ("crashed", ("failed", YES), ("crashed", NO), "target.process:kill", Standing.HOLDS),
        ("crashed", ("failed", YES), ("crashed", NO), FAULT, Standing.UNKNOWN),
        ("crashed", ("crashed", NO), ("failed", NO), "source.process:kill", Standing.UNKNOWN),
        ("hung", ("failed", YES), ("killed", NO), FAULT, Standing.UNKNOWN),
        ("lost", ("completed", NO), ("failed", NO), FAULT, Standing.VIOLATED),
        ("split-brain", ("cancelled", YES), ("completed", YES), "source.process:cancel", Standing.VIOLATED),
    ],
)
def test_which_ends_a_fault_excuses(
    outcome: str,
    source: tuple[str, bool],
    target: tuple[str, bool],
    fault: str,
    standing: Standing,
    tmp_path: Path,
) -> None:
    script = failed(faults=[fault], struck=[fault])
    script.record["outcome"] = recorded(outcome, source, target).record["outcome"]
    report = of(script, tmp_path)
    assert report.standing is standing, (report.violations, report.unknown)


def test_a_violation_is_not_excused_by_a_fault(tmp_path: Path) -> None:
    script = failed(faults=[FAULT], struck=[FAULT])
    script.swap("vf0.0", "vf0.2")
    assert of(script, tmp_path / "a").standing is Standing.VIOLATED
    script = failed(faults=[FAULT], struck=[FAULT])
    script.edit("source", State, where={"device": DEVICES[0]}, new="STOP_COPY")
    assert of(script, tmp_path / "b").standing is Standing.VIOLATED


# --- supervisors' journals of a failed migration ------------------------------------------------------


def test_what_a_supervisor_compared_after_a_failure_accuses_nobody(tmp_path: Path) -> None:
    script = failed(faults=[FAULT], struck=[FAULT])
    script.say("target", Verified, device=DEVICES[0], equal=False, wrong_at=88)
    assert of(script, tmp_path / "failed").standing is Standing.HOLDS
    script = recorded("completed", ("completed", NO), ("completed", YES))
    script.edit("target", Verified, equal=False, wrong_at=88)
    assert ids(of(script, tmp_path / "completed")) == {"EQ-2"}


def test_a_reset_of_a_lent_device_is_no_arc_and_no_fault(tmp_path: Path) -> None:
    for role, old in (("source", "STOP"), ("target", "RUNNING_P2P")):
        script = good()
        lend(script)
        script.say(role, State, device=DEVICES[0], old=old, new="RUNNING")
        report = of(script, tmp_path / role)
        assert "ST-1" not in ids(report), report.violations
    script = good()
    script.say("source", State, device=DEVICES[0], old="STOP", new="RUNNING")
    assert "ST-1" in ids(of(script, tmp_path / "mock"))  # an endpoint resets nothing


@pytest.mark.parametrize("config", [{}, {"command": ["qemu"]}])
def test_a_supervisor_is_known_by_its_configuration_or_by_what_it_tells(
    config: dict[str, object], tmp_path: Path
) -> None:
    script = recorded("completed", ("completed", NO), ("completed", YES))
    script.edit("source", Begin, config=config)
    if config:
        script.lines["source"] = [line for line in script.lines["source"] if not isinstance(line, Read)]
    report = of(script, tmp_path)
    assert "EQ-5" not in report.exercised.invariants
    assert ids(report) == ({"EQ-4"} if config else set())
