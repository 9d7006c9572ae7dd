# SPDX-License-Identifier: GPL-2.0-or-later
"""Every faulty program of the zoo is seen by the invariants that are to see it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

import verifier.bench.zoo as bench
from verifier.cli import HOLDS, UNKNOWN, USAGE
from verifier.cli.group import execute
from verifier.invariants import INVARIANTS
from verifier.simulation.migration import Parts
from verifier.simulation.zoo import BUGS
from verifier.simulation.zoo.bug import Bug
from verifier.simulation.zoo.hunt import hunt

SEEDS = range(300)  # the rarest bug shows in one of 21: in none of these once in two million times
BY_ID = {invariant.passport.id: invariant for invariant in INVARIANTS}


def test_each_bug_is_another_one() -> None:
    assert len(BUGS) >= 60
    for what in ("id", "title"):
        assert len({getattr(bug, what) for bug in BUGS}) == len(BUGS)
    assert all(bug.by and set(bug.by) <= BY_ID.keys() for bug in BUGS)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.id)
def test_the_judge_sees_it(bug: Bug) -> None:
    caught = hunt(bug, SEEDS)
    assert caught is not None
    assert caught.needs == bug.needs, caught


def test_a_bug_whose_invariants_are_taken_out_is_not_caught() -> None:
    bug = next(bug for bug in BUGS if bug.id == "index-doubled")
    assert hunt(bug, range(3), [i for i in INVARIANTS if i.passport.id not in bug.by]) is None


def test_the_command_names_who_caught_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        execute(["bench", "zoo", "--bugs", "sync-lost", "--seeds", "150", "--jobs", "1", "--json"]) == HOLDS
    )
    told = json.loads(capsys.readouterr().out)
    assert told["score"] == 100
    (row,) = told["bugs"]
    assert row["killed"]
    assert row["by"][0] == "RS-8"
    assert row["needs"] == ["capture"]


def test_what_is_no_bug_is_not_caught(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    innocent = replace(next(bug for bug in BUGS if bug.id == "index-doubled"), parts=Parts())
    monkeypatch.setattr(bench, "BUGS", (innocent,))
    assert execute(["bench", "zoo", "--seeds", "5", "--jobs", "1"]) == UNKNOWN
    said = capsys.readouterr().out
    assert "nobody" in said
    assert "0 %: 0 of 1 bugs killed" in said


def test_an_unknown_bug_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["bench", "zoo", "--bugs", "unheard-of"]) == USAGE
    assert "unheard-of" in capsys.readouterr().err
