# SPDX-License-Identifier: GPL-2.0-or-later
"""Every invariant has a canary that rings its bell and no other of its severity."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.canaries.births import CANARIES
from tests.canaries.lent import lend
from tests.canaries.script import good
from verifier.check import check_path
from verifier.invariants import INVARIANTS
from verifier.verdict import Report, Standing

# Of what mock endpoints show nothing.
OF_QEMUS = {
    *("EQ-6", "EQ-7", "EQ-8", "DS-16", "TR-1", "TR-2", "TR-3", "TR-4"),
    *("ST-6", "ST-7", "ST-8", "SM-4", "SM-9", "OC-4", "OC-5", "LV-5"),
}
BY_ID = {invariant.passport.id: invariant for invariant in INVARIANTS}


def rung(report: Report, severity: str) -> set[str]:
    """Ids of the violations of one severity."""
    return {v.id for v in report.violations if v.severity == severity}


def test_every_invariant_has_one_id_and_one_canary() -> None:
    assert len(BY_ID) == len(INVARIANTS)
    assert CANARIES.keys() == BY_ID.keys()


def test_the_good_migration_holds_and_exercises_all_but_compression(tmp_path: Path) -> None:
    good().write_folder(tmp_path)
    report = check_path(tmp_path)
    assert report.standing is Standing.HOLDS, (report.violations, report.unknown)
    assert BY_ID.keys() - report.exercised.invariants.keys() == {"MP-10", *OF_QEMUS}


def test_a_good_migration_between_qemus_holds_and_exercises_the_rest(tmp_path: Path) -> None:
    script = good()
    lend(script)
    script.write_folder(tmp_path)
    report = check_path(tmp_path)
    assert report.standing is Standing.HOLDS, (report.violations, report.unknown)
    assert report.exercised.invariants.keys() >= OF_QEMUS


@pytest.mark.parametrize("name", CANARIES)
def test_the_canary_rings_its_own_bell_alone(name: str, tmp_path: Path) -> None:
    script = good()
    CANARIES[name](script)
    script.write_folder(tmp_path)
    severity = BY_ID[name].passport.severity.value
    report = check_path(tmp_path)
    assert rung(report, severity) == {name}, [(v.id, v.message) for v in report.violations]
    assert report.standing is Standing.VIOLATED
    found = next(v for v in report.violations if v.id == name)
    assert found.message
    assert found.witnesses
    without = check_path(tmp_path, [i for i in INVARIANTS if i.passport.id != name])
    assert not rung(without, severity)
