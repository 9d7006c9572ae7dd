# SPDX-License-Identifier: GPL-2.0-or-later
"""One measured transfer, and rows made of many."""

from __future__ import annotations

from statistics import median
from typing import NamedTuple

import msgspec

GIGABYTE = 10**9


class Sample(NamedTuple):
    """bytes moved in `seconds`; cpu_s: CPU seconds of all processes that took part, over the same time."""

    size: int
    seconds: float
    cpu_s: float

    @property
    def bytes_per_s(self) -> float:
        """The rate."""
        return self.size / self.seconds


class ThroughputRow(msgspec.Struct, kw_only=True):
    """Medians over rounds, with the lowest and highest beside them; a ratio is taken round by round."""

    what: str
    streams: int
    bytes_per_s: float
    bytes_per_s_lowest: float
    bytes_per_s_highest: float
    cpu_s_per_gb: float
    ratio_to_loopback: float | None
    ratio_to_qemu: float | None
    ratio_to_uncaptured: float | None


def row(
    what: str,
    streams: int,
    samples: list[Sample],
    bare: list[Sample],
    qemu: list[Sample],
    uncaptured: list[Sample],
) -> ThroughputRow:
    """The row of `samples`, one per round, beside those of the same rounds to compare with (or none)."""
    rates = [s.bytes_per_s for s in samples]
    return ThroughputRow(
        what=what,
        streams=streams,
        bytes_per_s=median(rates),
        bytes_per_s_lowest=min(rates),
        bytes_per_s_highest=max(rates),
        cpu_s_per_gb=median(s.cpu_s / (s.size / GIGABYTE) for s in samples),
        ratio_to_loopback=_ratio(samples, bare),
        ratio_to_qemu=_ratio(samples, qemu),
        ratio_to_uncaptured=_ratio(samples, uncaptured),
    )


def _ratio(ours: list[Sample], theirs: list[Sample]) -> float | None:
    if not theirs:
        return None
    return median(a.bytes_per_s / b.bytes_per_s for a, b in zip(ours, theirs, strict=True))
