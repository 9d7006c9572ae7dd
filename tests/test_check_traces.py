# SPDX-License-Identifier: GPL-2.0-or-later
"""Traces of real QEMUs accuse nobody who did no wrong, and show what captures alone cannot."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mockdev.journal import Image, Unanswered
from tests.canaries.lent import NAMES, lend, line_of
from tests.canaries.script import Script, good
from tests.examples import examples
from verifier.check import check_path
from verifier.invariants.judge import FINDINGS_MAX
from verifier.report.text import print_report
from verifier.verdict import Report, Standing

CORPORA = Path(__file__).parent.parent / "corpora"
TRACES = CORPORA / "traces"
LOST, SPLIT = {"OC-2", "OC-3", "RP-8"}, {"OC-1"}
BROKEN = {"q100-1vf-load-eio": LOST, "q111-1vf-load-eio": LOST, "q111-1vf-cancel-late": SPLIT}
RUNS = sorted({path.name.split(".")[0] for path in TRACES.iterdir()})


def unpack(name: str, folder: Path) -> Path:
    """An evidence folder of a real migration: its capture and both traces."""
    (folder / "capture.pcapng.gz").write_bytes((CORPORA / f"{name}.pcapng.gz").read_bytes())
    for role in ("source", "target"):
        (folder / f"{role}.log").write_bytes(gzip.decompress((TRACES / f"{name}.{role}.log.gz").read_bytes()))
    return folder


def ids(report: Report) -> set[str]:
    """What is violated."""
    return {violation.id for violation in report.violations}


def of(script: Script, folder: Path) -> Report:
    """The report on a script."""
    script.write_folder(folder)
    return check_path(folder)


def lent() -> Script:
    """The good migration between two QEMUs."""
    script = good()
    lend(script)
    return script


@pytest.mark.parametrize("name", RUNS)
def test_capture_and_traces_of_real_qemus(name: str, tmp_path: Path) -> None:
    report = check_path(unpack(name, tmp_path))
    assert ids(report) == BROKEN.get(name, set()), report.violations
    if name not in BROKEN:
        assert (report.standing, report.outcome) == (Standing.HOLDS, "completed"), report.unknown
        assert report.exercised.invariants["OC-3"].standing is Standing.HOLDS
        if report.transfer == "multifd":
            for invariant in ("TR-1", "TR-2", "TR-3", "TR-4"):
                assert report.exercised.invariants[invariant].standing is Standing.HOLDS
    else:
        assert report.outcome == ("split-brain" if BROKEN[name] is SPLIT else "lost")
        (witnesses,) = {len(v.witnesses) for v in report.violations if v.id not in ("OC-2", "RP-8")}
        assert witnesses >= 2
        flows = {w.flow for v in report.violations for w in v.witnesses if w.size}
        assert all("trace log" in flow or flow.startswith("return-path") for flow in flows)


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("role", ["source", "target"])
def test_a_log_alone_is_judged_as_far_as_it_goes(name: str, role: str, tmp_path: Path) -> None:
    report = check_path(unpack(name, tmp_path) / f"{role}.log")
    assert not report.violations
    assert not report.unreadable
    assert report.exercised.log_lines > 100
    good_one = role == "target" and BROKEN.get(name) is not LOST
    assert report.standing is (Standing.HOLDS if good_one else Standing.UNKNOWN)
    if role == "source":
        assert report.outcome is None  # what it was told may not be so


@pytest.mark.parametrize("roles", [("source",), ("target",), ("source", "target")])
def test_mixed_pairs_hold(roles: tuple[str, ...], tmp_path: Path) -> None:
    script = good()
    lend(script, *roles)
    report = of(script, tmp_path)
    assert report.standing is Standing.HOLDS, (report.violations, report.unknown)
    assert [row.equal for row in report.devices] == [True, True]
    assert all(row.saved_digest == row.loaded_digest == row.wire_digest for row in report.devices)
    assert report.exercised.invariants["EQ-6"].standing is Standing.HOLDS
    assert report.exercised.invariants["EQ-4"].standing is Standing.HOLDS
    assert ("EQ-5" in report.exercised.invariants) is ("source" not in roles)
    assert report.run is not None
    assert report.run.endpoints == {
        role: "QEMU 10.0.2" if role in roles else "mock" for role in ("source", "target")
    }
    assert report.timing.downtime_ms == 12.5 or roles != ("source", "target")


@pytest.mark.parametrize("known", ["capture", "journals"])
def test_supervisors_without_the_other_evidence(known: str, tmp_path: Path) -> None:
    script = lent()
    script.logs.clear()
    script.events.clear()
    if known == "capture":
        script.lines.clear()
    else:
        script.pieces.clear()
    report = of(script, tmp_path)
    assert report.standing is Standing.HOLDS, (report.violations, report.unknown)
    assert [row.payload_bytes for row in report.devices] == [168, 80]


def test_supervisors_who_say_nothing_of_the_vm_are_not_believed_to(tmp_path: Path) -> None:
    script = lent()
    script.logs.clear()
    script.events.clear()
    script.record.clear()
    report = of(script, tmp_path)
    assert not report.violations
    assert report.standing is Standing.UNKNOWN
    assert {"OC-1", "OC-2", "OC-3"} <= {unknown.id for unknown in report.unknown}


@pytest.mark.parametrize("role", ["source", "target"])
def test_a_trace_that_was_switched_on_late_accuses_nobody(role: str, tmp_path: Path) -> None:
    whole = lent().logs[role]
    for skipped in range(0, len(whole), 3):
        script = lent()
        del script.logs[role][:skipped]
        report = of(script, tmp_path / str(skipped))
        assert not report.violations, (skipped, report.violations)


@pytest.mark.parametrize("role", ["source", "target"])
def test_a_trace_that_breaks_off_accuses_nobody(role: str, tmp_path: Path) -> None:
    whole = lent().logs[role]
    for kept in range(1, len(whole), 3):
        script = lent()
        del script.logs[role][kept:]
        report = of(script, tmp_path / str(kept))
        assert not report.violations, (kept, report.violations)


def test_untimed_traces_are_compared_all_the_same(tmp_path: Path) -> None:
    script = lent()
    for role, log in script.logs.items():
        script.logs[role] = [line.partition(":")[2] for line in log]
    assert of(script, tmp_path / "good").standing is Standing.HOLDS
    number = line_of(script, "target", "multifd_recv_unfill channel 1 packet_num 3")
    script.logs["target"][number] = script.logs["target"][number].replace("size ", "size 1")
    assert ids(of(script, tmp_path / "bad")) == {"TR-3"}


def test_what_both_ends_trace_wrongly_is_told_in_one_order(tmp_path: Path) -> None:
    """Of the source first, however Python's hashes fall: both wait for the one captured packet."""
    script = lent()
    for role, log in script.logs.items():
        script.logs[role] = [line.partition(":")[2] for line in log]
        number = line_of(script, role, "packet_num 3 flags 0x0")
        script.logs[role][number] = script.logs[role][number].replace("size ", "size 1")
    script.write_folder(tmp_path)
    code = "import sys; from verifier.check import check_path as check\n"
    code += "print(*(violation.message for violation in check(sys.argv[1]).violations), sep='\\n')"
    for seed in range(6):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)],
            env=os.environ | {"PYTHONHASHSEED": str(seed), "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        )
        told = [line.split(",")[0] for line in done.stdout.splitlines()]
        assert [line.split()[1] for line in told] == ["source", "target"], (seed, told)


@pytest.mark.parametrize("name", BROKEN)
def test_a_run_that_real_qemus_lost_is_violated_with_its_log_lines(name: str, tmp_path: Path) -> None:
    """The record that the lab would have left: the QEMUs' words over QMP, the exit of the one that died."""
    split = BROKEN[name] is SPLIT
    record = {
        "outcome": {
            "outcome": "split-brain" if split else "lost",
            "source": {"outcome": "cancelled" if split else "completed", "runs": split, "kind": "qemu"},
            "target": {
                "outcome": "completed" if split else "failed",
                "runs": split,
                "kind": "qemu",
                "error": "" if split else "writing state buffer 2 failed: 5",
            },
        }
    }
    folder = unpack(name, tmp_path)
    (folder / "run.json").write_text(json.dumps(record))
    report = check_path(folder)
    assert (report.standing, report.exit_code) == (Standing.VIOLATED, 1)
    assert report.outcome == ("split-brain" if split else "lost")
    assert ids(report) == BROKEN[name]
    for violation in report.violations:
        if violation.id != "RP-8":  # of one end
            assert {w.flow for w in violation.witnesses} >= {
                "source run record",
                "source trace log",
                "target run record",
                "target trace log",
            }
        for witness in violation.witnesses:
            said = Path(witness.file).read_bytes()[witness.offset : witness.offset + witness.size]
            if "trace log" in witness.flow:
                assert said.startswith((b"migrate_set_state new state", b"vfio_vmstate_change"))
                assert said.endswith(b"\n")


def test_the_config_state_of_a_qemu_is_not_what_its_device_holds(tmp_path: Path) -> None:
    script = lent()
    script.edit("source", Image, config_digest="xxh3-128:" + 32 * "0")
    assert of(script, tmp_path).standing is Standing.HOLDS


def test_calls_without_an_answer_are_counted(tmp_path: Path) -> None:
    script = lent()
    script.say("source", Unanswered, on="iommufd", request=0x3B99)
    report = of(script, tmp_path)
    assert (report.exercised.unanswered, report.standing) == (1, Standing.HOLDS)
    out = io.StringIO()
    print_report(report, out)
    assert "\ncalls of a QEMU without an answer: 1 " in out.getvalue()


@settings(max_examples=examples(60))
@given(st.data())
def test_no_disorder_of_a_log_breaks_the_judge(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    script = lent()
    role = data.draw(st.sampled_from(("source", "target")))
    lines = script.logs[role]
    for _ in range(data.draw(st.integers(1, 6))):
        one, other = (data.draw(st.integers(0, len(lines) - 1)) for _ in range(2))
        what = data.draw(st.sampled_from(("drop", "double", "swap", "cut")))
        if what == "drop":
            lines.pop(one)
        elif what == "double":
            lines.insert(other, lines[one])
        elif what == "swap":
            lines[one], lines[other] = lines[other], lines[one]
        else:
            lines[one] = lines[one][: other % len(lines[one]) if lines[one] else 0]
    report = of(script, tmp_path_factory.mktemp("d"))
    assert ids(report) <= {"TR-1", "TR-2", "TR-3", "TR-4", "SM-4", "SM-9", "OC-5"}
    assert not report.unreadable


def test_two_migrations_in_one_log_are_not_taken_for_one(tmp_path: Path) -> None:
    script = lent()
    script.logs["target"] = script.logs["target"] * 2
    report = of(script, tmp_path)
    assert not ids(report) & {"TR-3", "TR-4"}, report.violations
    assert {"TR-3", "TR-4"} <= {unknown.id for unknown in report.unknown}


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        (f"load_end  ({NAMES[0]}) idx 1", f"load_end  ({NAMES[0]}) idx 2", {"TR-1"}),
        (f"load_start  ({NAMES[1]}) idx 1", f"load_start  ({NAMES[1]}) idx 0", {"TR-1", "TR-2"}),
        (f"incoming  ({NAMES[1]}) idx 1", f"incoming  ({NAMES[1]}) idx 0", {"TR-2"}),
        ("thread_end channel 0 packets ", "thread_end channel 0 packets 1", {"TR-4"}),
    ],
)
def test_what_traces_contradict_is_found(old: str, new: str, found: set[str], tmp_path: Path) -> None:
    script = lent()
    number = line_of(script, "target", old)
    script.logs["target"][number] = script.logs["target"][number].replace(old, new)
    report = of(script, tmp_path)
    assert ids(report) == found
    assert len(report.violations) < FINDINGS_MAX


def test_a_packet_that_only_one_side_knows(tmp_path: Path) -> None:
    script = lent()
    del script.logs["source"][line_of(script, "source", "packet_num 8")]
    report = of(script, tmp_path)
    assert "TR-3" in ids(report)
