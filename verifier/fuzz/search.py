# SPDX-License-Identifier: GPL-2.0-or-later
"""What a campaign found, made small and kept: `keep`; and a kept scene played again: `replay`."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import msgspec

from verifier.fuzz.campaign import Tally
from verifier.fuzz.entry import Entry, EntryError, read_entry, write_entry
from verifier.fuzz.failure import Failure, Kind, examine
from verifier.fuzz.shrink import Shrunk, shrink
from verifier.simulation.migration import Simulated
from verifier.simulation.scene import draw


class FailureRow(msgspec.Struct, kw_only=True):
    """One way of failing. seed: the first that shows it, of `seeds`. file: the least scene that does, "" when
    none was made. late: who is late in that scene. tries: scenes played to make it small. repeat: a command.
    """

    kind: Kind
    what: tuple[str, ...]
    message: str
    seed: int
    seeds: int
    file: str = ""
    late: tuple[str, ...] = ()
    tries: int = 0
    repeat: str = ""


class FuzzReport(msgspec.Struct, kw_only=True):
    """What `vfmig fuzz` prints with --json. known: failures of which the folder had a scene before."""

    schema: str = "vfmig.fuzz/1"
    tries: int
    seconds: float
    per_second: float
    steps: int
    first_seed: int
    outcomes: dict[str, int]
    kinds: dict[str, int]
    judged: dict[str, int]
    new: list[FailureRow]
    known: list[FailureRow]
    first_failing_seed: int | None


class ReplayReport(msgspec.Struct, kw_only=True):
    """What `vfmig fuzz --replay --json` prints. expected: how it failed once; failure: how now, None: not.

    variation: what it failed in once, if not in the endpoints as they are. folder: of the evidence, or "".
    """

    schema: str = "vfmig.replay/1"
    file: str
    title: str
    variation: str
    expected: Failure
    failure: Failure | None
    outcome: str | None
    late: tuple[str, ...]
    folder: str


def report_of(tally: Tally, first: int, seconds: float, folder: Path) -> FuzzReport:
    """A campaign in figures and rows. folder: where scenes of known failures are."""
    report = FuzzReport(
        tries=tally.tries,
        seconds=round(seconds, 3),
        per_second=round(tally.tries / seconds, 1) if seconds else 0.0,
        steps=tally.steps,
        first_seed=first,
        outcomes=dict(sorted(tally.outcomes.items())),
        kinds=dict(sorted(tally.kinds.items())),
        judged=tally.judged,
        new=[],
        known=[],
        first_failing_seed=min((found.seed for found in tally.found), default=None),
    )
    known = known_failures(folder) if tally.found else {}
    for found in tally.found:
        failure = found.failure
        row = FailureRow(
            kind=failure.kind,
            what=failure.what,
            message=failure.message,
            seed=found.seed,
            seeds=found.seeds,
            repeat=f"vfmig fuzz --simulate --first-seed {found.seed} --seeds 1",
        )
        if failure.key in known:
            _kept(row, known[failure.key])
        (report.known if row.file else report.new).append(row)
    return report


def keep(report: FuzzReport, folder: Path, on_progress: Callable[[str], None]) -> None:
    """Of each new failure, the least scene that shows it goes into `folder`. EntryError: it cannot.

    When KeyboardInterrupt comes out of here, the rows say what is kept.
    """
    for row in report.new:
        failure = Failure(row.kind, row.what, row.message)
        on_progress(f"seed {row.seed}: looking for the least scene that shows {failure}")
        shrunk = shrink(draw(row.seed), failure)
        path = folder / f"{_name(failure)}-{row.seed}.json"
        write_entry(path, entry_of(shrunk))
        row.late, row.tries = shrunk.late, shrunk.tries
        _kept(row, path)


def entry_of(shrunk: Shrunk, title: str = "", variation: str = "") -> Entry:
    """What to keep of a scene that was made small."""
    return Entry(
        title=title, variation=variation, failure=shrunk.failure, late=shrunk.late, scene=shrunk.scene
    )


def known_failures(folder: Path) -> dict[tuple[str, ...], Path]:
    """The failures that scenes in a folder show in the endpoints as they are."""
    known = {}
    for path in sorted(folder.glob("*.json")):
        try:
            entry = read_entry(path)
        except EntryError:
            continue  # something else
        if not entry.variation:
            known[entry.failure.key] = path
    return known


def replay(path: Path, folder: Path | None) -> tuple[ReplayReport, Simulated | None]:
    """Play a kept scene with the endpoints as they are. folder: for its evidence. EntryError: none."""
    entry = read_entry(path)
    failure, came = examine(entry.scene, record=True, folder=folder)
    report = ReplayReport(
        file=str(path),
        title=entry.title,
        variation=entry.variation,
        expected=entry.failure,
        failure=failure,
        outcome=None if came is None else came.outcome,
        late=() if came is None else came.late,
        folder="" if folder is None or came is None else str(folder),
    )
    return report, came


def _name(failure: Failure) -> str:
    """For a file."""
    words = failure.what if failure.kind == "violation" else failure.key
    return re.sub(r"[^A-Za-z0-9-]+", "-", "-".join(words)).strip("-")[:80] or failure.kind


def _kept(row: FailureRow, path: Path) -> None:
    row.file = str(path)
    row.repeat = f"vfmig fuzz --simulate --replay {shlex.quote(row.file)}"
