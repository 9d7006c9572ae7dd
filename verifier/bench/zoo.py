# SPDX-License-Identifier: GPL-2.0-or-later
"""Which bugs of the zoo the judge sees, how soon, by which invariants, and from how little evidence."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import msgspec

from mockdev.errors import VfmigError
from verifier.simulation.zoo import BUGS
from verifier.simulation.zoo.bug import Bug
from verifier.simulation.zoo.hunt import hunt


class BugRow(msgspec.Struct, kw_only=True):
    """One bug. by: the invariants violated in the migration that showed it, those first that are to see it;
    seeds: migrations until then, or all that were tried; cpu_s: of these and what was played to compare;
    needs: the least evidence from which one of the first is violated. history: what the bug is drawn from.
    """

    id: str
    title: str
    history: str
    killed: bool
    by: list[str]
    seeds: int
    cpu_s: float
    needs: list[str]


def chosen(names: Sequence[str]) -> tuple[Bug, ...]:
    """The bugs of these ids, all if there are none. VfmigError: there is no such bug."""
    unknown = set(names) - {bug.id for bug in BUGS}
    if unknown:
        raise VfmigError(f"no such bug in the zoo: {', '.join(sorted(unknown))}")
    return tuple(bug for bug in BUGS if bug.id in names) if names else BUGS


def measure(
    bugs: Sequence[Bug], *, seeds: int, jobs: int, on_progress: Callable[[str], None]
) -> list[BugRow]:
    """A row for each bug. seeds: migrations in which each is looked for at most."""
    one = partial(_row, seeds=seeds)
    rows: list[BugRow] = []

    def collect(found: Iterable[BugRow]) -> list[BugRow]:
        for row in found:
            rows.append(row)
            on_progress(f"{len(rows)} of {len(bugs)} bugs, {sum(row.killed for row in rows)} killed")
        return rows

    names = [bug.id for bug in bugs]
    if jobs == 1:
        return collect(map(one, names))
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        return collect(pool.map(one, names))


def score(rows: Sequence[BugRow]) -> float:
    """Percent of the bugs that were killed."""
    return 100 * sum(row.killed for row in rows) / len(rows)


def _row(name: str, seeds: int) -> BugRow:
    (bug,) = chosen([name])
    start_s = time.process_time()
    caught = hunt(bug, range(seeds))
    return BugRow(
        id=bug.id,
        title=bug.title,
        history=bug.history,
        killed=caught is not None,
        by=list(caught.by) if caught else [],
        seeds=caught.seed + 1 if caught else seeds,
        cpu_s=round(time.process_time() - start_s, 3),
        needs=_evidence(caught.needs) if caught else [],
    )


def _evidence(level: str) -> list[str]:
    """A level's words, for a list."""
    if level == "capture":
        return ["capture"]
    journals = ["source's journal", "target's journal"]
    return [
        "capture",
        *({"both journals": journals, "run record": [*journals, "run record"]}.get(level, [level])),
    ]
