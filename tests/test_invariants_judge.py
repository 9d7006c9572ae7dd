# SPDX-License-Identifier: GPL-2.0-or-later
"""The engine, with invariants made for it: who hears what, what is counted, and when nothing is known."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mockdev.journal import Begin, Loaded, Mark
from verifier.history.facts import Facts
from verifier.history.observation import Said
from verifier.invariants import judge as engine
from verifier.invariants.judge import FINDINGS_MAX, Judge
from verifier.invariants.passport import (
    DEVICE,
    MIGRATION,
    SIDE,
    Finding,
    Invariant,
    Need,
    Passport,
    Scope,
    Severity,
    qemu,
)
from verifier.verdict import Standing


def passport(name: str, scope: Scope, *needs: Need) -> Passport:
    return Passport(name, "It holds.", Severity.STALLS, qemu("file.c", "symbol"), scope, needs)


class Odd(Invariant[Loaded]):
    """Each buffer of odd size is a violation; one of 100 cannot be judged."""

    passport = passport("XX-1", DEVICE)
    kinds = (Loaded,)

    def on(self, seen: Said, event: Loaded) -> Iterator[Finding]:
        if event.size == 100:
            self.unknown = "a hundred"
        if event.size % 2:
            yield Finding(f"{event.size}", (seen,))


class Seldom(Invariant[Loaded]):
    """Exercised by buffers of more than 10; over 20, a violation at the end if everything was there."""

    passport = passport("XX-2", MIGRATION, Need.TARGET, Need.COMPLETED)
    kinds = (Loaded, Mark)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.exercised = False
        self.large: Said | None = None

    def on(self, seen: Said, event: Loaded) -> Iterator[Finding]:
        if isinstance(event, Loaded):
            self.exercised |= event.size > 10
            self.large = seen if event.size > 20 else self.large
        return iter(())

    def at_end(self) -> Iterator[Finding]:
        if self.large is not None and self.complete:
            yield Finding("large", (self.large,))


class OfTheWire(Invariant[Loaded]):
    """About a capture, though it asks for lines."""

    passport = passport("XX-3", SIDE, Need.MAIN)
    kinds = (Loaded,)

    def on(self, seen: Said, event: Loaded) -> Iterator[Finding]:
        if event.size == 5:
            yield Finding("five", (seen,))


LAWS = (OfTheWire, Odd, Seldom)


def loaded(size: int, device: str = "a", role: str = "target") -> Said:
    line = Loaded(t=7, device=device, idx=0, size=size, queued_bytes=0)
    return Said(role, line, f"{role}.jsonl", 40 + size, 9)


def judged(*lines: Said, begun: bool = True, completed: bool = False) -> Judge:
    facts = Facts(0)
    if begun:
        facts.take(Said("target", Begin(t=0, role="target"), "target.jsonl", 0, 1))
    if completed:
        facts.shut = 0
    judge = Judge(facts, "capture", LAWS)
    for line in lines:
        judge.on(line)
    judge.at_end()
    return judge


def test_each_device_is_a_partition_and_its_lines_are_counted() -> None:
    judge = judged(loaded(2), loaded(4), loaded(6, "b"))
    row = judge.rows["XX-1"]
    assert (row.standing, row.partitions, row.observations) == (Standing.HOLDS, 2, 3)
    assert not judge.violations


def test_a_finding_has_its_passport_its_scope_and_its_witness() -> None:
    judge = judged(loaded(3, "b"), loaded(2))
    assert judge.rows["XX-1"].standing is Standing.VIOLATED
    found = judge.violations[-1]
    assert (found.id, found.severity, found.statement) == ("XX-1", "STALLS", "It holds.")
    assert (found.scope, found.message) == ("b", "3")
    (witness,) = found.witnesses
    assert (witness.file, witness.offset, witness.size, witness.time_ns) == ("target.jsonl", 43, 9, 7)
    assert witness.flow == "target journal"


def test_findings_of_one_line_come_in_the_order_of_the_catalogue() -> None:
    judge = judged(loaded(5))
    assert [violation.id for violation in judge.violations] == ["XX-3", "XX-1"]


def test_more_findings_than_enough_are_left_out() -> None:
    judge = judged(*[loaded(2 * n + 1) for n in range(FINDINGS_MAX + 3)])
    assert sum(v.id == "XX-1" for v in judge.violations) == FINDINGS_MAX
    assert judge.rows["XX-1"].observations == FINDINGS_MAX + 3


def test_what_one_partition_could_not_judge_is_unknown_unless_another_found_something() -> None:
    judge = judged(loaded(100), loaded(2, "b"))
    assert [(u.id, u.why) for u in judge.unknown if u.id == "XX-1"] == [("XX-1", "a: a hundred")]
    assert judge.rows["XX-1"].standing is Standing.UNKNOWN
    judge = judged(loaded(100), loaded(3, "b"))
    assert not [u for u in judge.unknown if u.id == "XX-1"]
    assert judge.rows["XX-1"].standing is Standing.VIOLATED


def test_no_more_than_four_reasons_are_given() -> None:
    judge = judged(*[loaded(100, f"d{n}") for n in range(6)])
    (unknown,) = [u for u in judge.unknown if u.id == "XX-1"]
    assert unknown.why == "; ".join(f"d{n}: a hundred" for n in range(4))


def test_what_is_not_exercised_has_no_row_and_no_doubt() -> None:
    judge = judged(loaded(4))
    assert "XX-2" not in judge.rows
    assert not [u for u in judge.unknown if u.id == "XX-2"]


def test_a_need_that_is_not_met_is_told_of_what_was_exercised() -> None:
    judge = judged(loaded(12))
    assert judge.rows["XX-2"].standing is Standing.UNKNOWN
    (unknown,) = [u for u in judge.unknown if u.id == "XX-2"]
    assert unknown.why == f"it needs {Need.COMPLETED}"
    judge = judged(loaded(30))
    assert judge.rows["XX-2"].standing is Standing.UNKNOWN  # its end is not judged


def test_where_there_is_no_journal_or_no_capture_nothing_is_missing_from_it() -> None:
    judge = judged(loaded(12), begun=False)
    assert "XX-2" not in judge.rows  # about journals
    assert "XX-1" in judge.rows
    judge = judged(loaded(12))
    assert "XX-2" in judge.rows
    assert "XX-3" not in judge.rows  # about captures


def test_too_many_partitions_are_not_judged_and_that_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "PARTITIONS_MAX", 2)
    judge = judged(loaded(2, "a"), loaded(2, "b"), loaded(3, "c"), loaded(3, "d"), loaded(4, "a"))
    assert not [v for v in judge.violations if v.id == "XX-1"]
    (unknown,) = [u for u in judge.unknown if u.id == "XX-1"]
    assert unknown.why.startswith("more than 2 partitions")
    assert judge.rows["XX-1"].standing is Standing.UNKNOWN
    assert judge.rows["XX-1"].partitions == 2
    assert judge.rows["XX-1"].observations == 3


def test_invariants_of_two_scopes_hear_of_the_same_line() -> None:
    judge = judged(loaded(30), loaded(30, "b"), Said("target", Mark(t=8, name="x"), "target.jsonl", 1, 1))
    assert judge.rows["XX-1"].observations == 2
    assert judge.rows["XX-2"].observations == 3
    assert judge.rows["XX-2"].partitions == 1
