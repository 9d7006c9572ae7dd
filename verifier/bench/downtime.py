# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's own downtime with mock VFs, beside what was published for real ones.

Every round migrates each thing once, in turn, so that a machine whose speed drifts moves them alike. A run
starts both QEMUs afresh. The figure is what the source's QEMU reports: from the stop of the VM to the
target's word, on the return path, that all is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import quantiles
from typing import Any, NamedTuple

import msgspec

from mockdev.lab.endpoint import EXIT_BEGIN
from mockdev.lab.migration import Pair, run_migration
from mockdev.lab.outcome import Outcome
from mockdev.runtime.config import MigrationConfig
from verifier.bench.published import Statistic, Transfer, published
from verifier.bench.throughput import scratch
from verifier.evidence import BeginError

TRANSFERS: tuple[Transfer, ...] = ("main", "multifd")
CALIBRATION = (
    "How near this comes to the published figures is calibration, not validation: the connectx7 profile was "
    "fitted to the talk's six figures with as many parameters, others would fit as well, and guest, hosts "
    "and network are not those that were measured. The series' figures were not fitted."
)

OnProgress = Callable[[str], None]


class Measured(msgspec.Struct, kw_only=True):
    """One way of transfer, migrated again and again.

    downtimes_ms: of the runs that completed with equal state, in the order in which they ran; failures: what
    became of each of the others.
    """

    vfs: int
    transfer: Transfer
    channels: int
    downtimes_ms: list[float] = []
    failures: list[str] = []

    @property
    def what(self) -> str:
        """In words."""
        return f"{self.vfs} VF{'s' if self.vfs > 1 else ''}, {self.transfer}"


class Spread(NamedTuple):
    """Of some downtimes, in milliseconds; quartiles between two runs are interpolated."""

    lowest: float
    q25: float
    median: float
    q75: float

    def of(self, statistic: Statistic) -> float:
        """The one of that name."""
        return float(getattr(self, statistic))


class Cell(msgspec.Struct, kw_only=True):
    """One published figure and ours, or ours alone. statistic: which of ours is ours_ms.

    distance_percent: of ours from the published one, which is 100 %; positive: ours is longer. runs: that
    completed; failed: that did not. Times are None when no run completed.
    """

    vfs: int
    transfer: Transfer
    channels: int
    statistic: Statistic
    published_ms: float | None
    published_source: str | None
    ours_ms: float | None
    distance_percent: float | None
    runs: int
    failed: int
    lowest_ms: float | None
    q25_ms: float | None
    median_ms: float | None
    q75_ms: float | None
    endpoints: str


def measure(
    config: MigrationConfig, pair: Pair, vfs: Sequence[int], runs: int, on_progress: OnProgress
) -> list[Measured]:
    """Migrate `runs` times each number of VFs, each way; `config` says the rest.

    BeginError: a QEMU could not even be started in the first round. Later ones count as failures.
    """
    rows = [
        Measured(vfs=count, transfer=transfer, channels=config.channels)
        for count in vfs
        for transfer in TRANSFERS
    ]
    with scratch() as folder:
        for number in range(runs):
            for index, row in enumerate(rows):
                on_progress(f"run {number + 1} of {runs}: {row.what}")
                this = msgspec.structs.replace(config, vfs=row.vfs, transfer=row.transfer)
                outcome = run_migration(this, Path(folder, f"{number}-{index}"), pair=pair)
                if number == 0:
                    _check_begun(outcome)
                _note(row, number, outcome)
    return rows


def _check_begun(outcome: Outcome) -> None:
    for role, end in (("source", outcome.source), ("target", outcome.target)):
        if end.exit_status == EXIT_BEGIN:
            raise BeginError(f"the {role} could not begin: {end.error}")


def _note(row: Measured, number: int, outcome: Outcome) -> None:
    downtime_ms = outcome.source.downtime_ms
    if outcome.outcome != "completed":
        errors = [
            f"{role}: {end.error.splitlines()[0]}"
            for role, end in (("source", outcome.source), ("target", outcome.target))
            if end.error
        ]
        why = "; ".join([outcome.outcome, *errors])
    elif not outcome.verified:
        why = "completed, but the loaded state is not the saved one"
    elif downtime_ms is None:
        why = "completed, but QEMU reported no downtime"
    else:
        row.downtimes_ms.append(downtime_ms)
        return
    row.failures.append(f"run {number + 1}: {why}")


def spread(downtimes_ms: Sequence[float]) -> Spread | None:
    """Lowest and quartiles; None of nothing."""
    if not downtimes_ms:
        return None
    if len(downtimes_ms) == 1:
        return Spread(*[float(downtimes_ms[0])] * 4)
    return Spread(min(downtimes_ms), *quantiles(downtimes_ms, n=4, method="inclusive"))


def cells(rows: Sequence[Measured], endpoints: str) -> list[Cell]:
    """Each of ours beside each figure that was published for it."""
    made = []
    for row in rows:
        figures: list[tuple[Statistic, float | None, str | None]] = [
            (cell.statistic, cell.downtime_ms, cell.source)
            for cell in published(row.vfs, row.transfer, row.channels)
        ]
        for statistic, downtime_ms, source in figures or [("median", None, None)]:
            made.append(_cell(row, statistic, downtime_ms, source, endpoints))
    return made


def _cell(
    row: Measured, statistic: Statistic, published_ms: float | None, source: str | None, endpoints: str
) -> Cell:
    ours = spread(row.downtimes_ms)
    ours_ms = ours.of(statistic) if ours else None
    distance = None
    if ours_ms is not None and published_ms is not None:
        distance = 100 * (ours_ms / published_ms - 1)
    times: dict[str, Any] = dict.fromkeys(("lowest_ms", "q25_ms", "median_ms", "q75_ms"))
    if ours:
        times = {f"{name}_ms": value for name, value in ours._asdict().items()}
    return Cell(
        vfs=row.vfs,
        transfer=row.transfer,
        channels=row.channels,
        statistic=statistic,
        published_ms=published_ms,
        published_source=source,
        ours_ms=ours_ms,
        distance_percent=distance,
        runs=len(row.downtimes_ms),
        failed=len(row.failures),
        endpoints=endpoints,
        **times,
    )
