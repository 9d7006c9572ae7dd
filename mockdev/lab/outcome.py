# SPDX-License-Identifier: GPL-2.0-or-later
"""How a whole run came out: both ends' words, and the times from their journals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from mockdev.errors import VfmigError
from mockdev.journal import AnyLine, Image, Loaded, Mark, Verified, read

_MS = 1e6


class Ended(Protocol):
    """What of an end decides how the whole came out."""

    @property
    def outcome(self) -> str:
        """completed, failed, cancelled, crashed or killed."""

    @property
    def runs(self) -> bool:
        """Whether the VM may run there."""


class EndpointStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How one endpoint ended. outcome: completed, failed, cancelled, crashed (no last word) or killed (it did
    not end and was killed). exit_status: of its process, None within ours. cpu_s: see session.Result.

    kind: mock, or qemu with its version. Of a QEMU also: run_state, its own word; downtime_ms and total_ms,
    its own figures.
    """

    outcome: str
    kind: str = "mock"
    version: str = ""
    run_state: str = ""
    downtime_ms: float | None = None
    total_ms: float | None = None
    error: str = ""
    runs: bool = False
    moved_bytes: int = 0
    cpu_s: float = 0.0
    complaint: str = ""
    exit_status: int | None = None


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How a run came out.

    outcome: completed, failed-clean (one side can run the VM), cancelled, lost (neither), split-brain
    (both), crashed or hung. verified: whether all images and the RAM are as they must be; None when
    nobody looked. downtime_ms: stop at the source to resume at the target. device_state_ms: from
    SWITCHOVER_START to the last load. device_bytes: of device state, loaded, configs aside. complaint:
    why the capture of what stood between the ends is not whole, "" when it is.
    """

    outcome: str
    source: EndpointStatus
    target: EndpointStatus
    verified: bool | None = None
    downtime_ms: float | None = None
    device_state_ms: float | None = None
    device_bytes: int = 0
    complaint: str = ""


def summarise(source: EndpointStatus, target: EndpointStatus, folder: Path, complaint: str = "") -> Outcome:
    """The outcome, with what the journals in `folder` tell."""
    ours = _lines(folder / "source.jsonl")
    theirs = _lines(folder / "target.jsonl")
    stop = _mark(ours, "stop")
    switchover = _mark(ours, "switchover-start")
    resume = _mark(theirs, "resume")
    loads = [line.t for line in theirs if isinstance(line, Loaded)]
    checks = [line.equal for line in theirs if isinstance(line, Verified)]
    return Outcome(
        outcome=overall(source, target),
        source=source,
        target=target,
        verified=all(checks) if checks else None,
        downtime_ms=(resume - stop) / _MS if stop and resume else None,
        device_state_ms=(loads[-1] - switchover) / _MS if loads and switchover else None,
        device_bytes=sum(line.size for line in theirs if isinstance(line, Image)),
        complaint=complaint,
    )


def overall(source: Ended, target: Ended) -> str:
    """The word of `Outcome.outcome` for two ends."""
    ends = {source.outcome, target.outcome}
    if "killed" in ends:
        return "hung"
    if "crashed" in ends:
        return "crashed"
    if ends == {"completed"}:
        return "completed"
    if source.runs and target.runs:
        return "split-brain"
    if not source.runs and not target.runs:
        return "lost"
    return "cancelled" if "cancelled" in ends else "failed-clean"


def _lines(path: Path) -> Sequence[AnyLine]:
    try:
        return list(read(path))
    except (VfmigError, OSError):
        return ()


def _mark(lines: Sequence[AnyLine], name: str) -> int | None:
    return next((line.t for line in lines if isinstance(line, Mark) and line.name == name), None)
