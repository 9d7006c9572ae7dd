# SPDX-License-Identifier: GPL-2.0-or-later
"""Standings and reports merge so that nothing bad is lost and nothing unexercised looks good."""

from __future__ import annotations

from verifier.verdict import (
    Exercised,
    InputRow,
    InvariantRow,
    Report,
    Standing,
    Timing,
    Unknown,
    Violation,
    merge,
    worst,
)

HOLDS = InvariantRow(standing=Standing.HOLDS, partitions=1, observations=2)


def report(standing: Standing, **fields: object) -> Report:
    """A report on a migration."""
    exercised = Exercised(migrations=1, invariants={"X-1": HOLDS})
    return msgspec_replace(Report(standing=standing, exercised=exercised), **fields)


def msgspec_replace(one: Report, **fields: object) -> Report:
    """A changed copy."""
    import msgspec

    return msgspec.structs.replace(one, **fields)


VIOLATION = Violation(id="X-1", severity="ABORTS", statement="s", scope="migration", message="m")


def test_the_worst_counts_and_nothing_is_unknown() -> None:
    assert worst([]) is Standing.UNKNOWN
    assert worst([Standing.HOLDS, Standing.UNKNOWN]) is Standing.UNKNOWN
    assert worst(Standing) is Standing.VIOLATED
    assert merge([]).standing is Standing.UNKNOWN
    assert merge([]).exit_code == 5


def test_exit_codes() -> None:
    bad_input = [InputRow(path="x", error="unreadable")]
    assert report(Standing.HOLDS).exit_code == 0
    assert report(Standing.UNKNOWN).exit_code == 5
    assert report(Standing.VIOLATED, violations=[VIOLATION]).exit_code == 1
    assert report(Standing.UNKNOWN, inputs=bad_input).exit_code == 4
    assert report(Standing.VIOLATED, violations=[VIOLATION], inputs=bad_input).exit_code == 1


def test_merging_keeps_what_is_the_same_and_adds_what_is_counted() -> None:
    one = report(Standing.HOLDS, dialect="10.0", transfer="multifd", channels=2, outcome="completed")
    two = report(Standing.VIOLATED, dialect="11.1", transfer="main", channels=3, violations=[VIOLATION])
    both = merge([one, two])
    assert both.standing is Standing.VIOLATED
    assert (both.dialect, both.transfer, both.channels, both.outcome) == (None, "mixed", 5, None)
    assert both.exercised.invariants["X-1"] == InvariantRow(
        standing=Standing.HOLDS, partitions=2, observations=4
    )
    assert merge([one]) is one


def test_an_unreadable_input_does_not_blur_the_others_facts() -> None:
    one = report(Standing.HOLDS, dialect="10.0", timing=Timing(downtime_ms=1.0))
    bad = Report(inputs=[InputRow(path="x", error="no")], unknown=[Unknown(id="input", why="no")])
    both = merge([one, bad])
    assert (both.dialect, both.timing.downtime_ms, both.standing) == ("10.0", 1.0, Standing.UNKNOWN)
