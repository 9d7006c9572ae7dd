# SPDX-License-Identifier: GPL-2.0-or-later
"""`hunt`: one bug, migration after migration, until the judge sees it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from verifier.invariants import INVARIANTS
from verifier.invariants.passport import Invariant
from verifier.simulation.migration import Parts, simulate
from verifier.simulation.watch import ALL, Evidence
from verifier.simulation.zoo.bug import LEVELS, Bug

CORRECT = Parts()


@dataclass(frozen=True)
class Caught:
    """The first migration in which a bug is seen. by: the invariants that it violates there, those first that
    were to see it; needs: the least of `LEVELS` from which one of these is violated.
    """

    seed: int
    by: tuple[str, ...]
    needs: str


def hunt(
    bug: Bug, seeds: Iterable[int], invariants: Sequence[type[Invariant[Any]]] = INVARIANTS
) -> Caught | None:
    """Play the bug's migrations. None: in none of them all invariants are violated that are to see it, or one
    is where correct programs play the same.
    """
    for seed in seeds:
        by = _violated(bug, seed, bug.parts, ALL, invariants)
        if set(by) >= set(bug.by) and not _violated(bug, seed, CORRECT, ALL, invariants):
            needs = next(
                name
                for name, level in LEVELS.items()
                if set(bug.by).intersection(_violated(bug, seed, bug.parts, level, invariants))
            )
            return Caught(seed, (*bug.by, *(other for other in by if other not in bug.by)), needs)
    return None


def _violated(
    bug: Bug, seed: int, parts: Parts, evidence: Evidence, invariants: Sequence[type[Invariant[Any]]]
) -> tuple[str, ...]:
    report = simulate(bug.scene(seed), parts, invariants=invariants, evidence=evidence).report
    return tuple(dict.fromkeys(violation.id for violation in report.violations))
