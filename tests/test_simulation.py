# SPDX-License-Identifier: GPL-2.0-or-later
"""Simulated migrations: the same from the same seed, and right when nothing is wrong."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from verifier.check import check_path
from verifier.simulation.migration import simulate
from verifier.simulation.scene import KINDS, draw
from verifier.verdict import Standing

SEEDS = range(400)


@pytest.mark.parametrize("first", SEEDS[::50])
def test_correct_endpoints_break_nothing_whatever_befalls_them(first: int) -> None:
    for seed in range(first, first + 50):
        scene = draw(seed)
        came = simulate(scene)
        assert not came.report.violations, seed
        if not scene.troubled:
            assert came.outcome == "completed", seed
        if came.outcome == "completed":
            assert came.report.standing is Standing.HOLDS, (seed, came.report.unknown)


def test_every_kind_of_trouble_is_drawn_and_every_outcome_that_is_right_comes_about() -> None:
    scenes = [draw(seed) for seed in SEEDS]
    assert {kind for scene in scenes for kind in scene.kinds} == set(KINDS)
    outcomes = Counter(simulate(scene, invariants=()).outcome for scene in scenes[:150])
    assert outcomes.keys() == {"completed", "failed-clean", "cancelled"}


def test_a_seed_is_the_same_history_each_time() -> None:
    for seed in (3, 17, 54):
        first, second = (simulate(draw(seed), keep=True).digest for _ in range(2))
        assert first == second
    assert simulate(draw(1), keep=True).digest != simulate(draw(2), keep=True).digest


def test_the_history_of_a_seed_is_that_of_every_machine_and_version() -> None:
    # Where it differs, something there is in another order.
    assert simulate(draw(5), keep=True).digest == DIGEST_OF_SEED_5


def test_what_a_simulation_leaves_is_judged_as_it_was(tmp_path: Path) -> None:
    for seed in (2, 9, 30):
        came = simulate(draw(seed), folder=tmp_path / str(seed))
        report = check_path(tmp_path / str(seed))
        assert report.standing is came.report.standing
        assert [row.saved_digest for row in report.devices] == [
            row.saved_digest for row in came.report.devices
        ]
        then, now = came.report.exercised.invariants, report.exercised.invariants
        assert {name: row.standing for name, row in now.items()} == {
            name: row.standing for name, row in then.items()
        }


DIGEST_OF_SEED_5 = "xxh3-128:b258dbe74c1070e34fe45d4500e7e925"
