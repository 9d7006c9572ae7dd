# SPDX-License-Identifier: GPL-2.0-or-later
"""What the judge says: standings, violations with their witnesses, and the report `vfmig.report/1`.

Reports of several inputs merge into one. Nothing here knows how a verdict is come by.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Any

import msgspec

SCHEMA = "vfmig.report/1"


class Standing(StrEnum):
    """holds: judged and true. violated: a witness shows it false. unknown: it could not be judged."""

    HOLDS = "holds"
    VIOLATED = "violated"
    UNKNOWN = "unknown"


_WORSE = {Standing.HOLDS: 0, Standing.UNKNOWN: 1, Standing.VIOLATED: 2}


def worst(standings: Iterable[Standing]) -> Standing:
    """The worst of them; unknown when there is none, for nothing exercised is never good."""
    return max(standings, key=_WORSE.__getitem__, default=Standing.UNKNOWN)


class Witness(msgspec.Struct, frozen=True, kw_only=True):
    """One thing seen. flow: which direction of which connection, or which journal.

    offset, size: bytes in that flow (in the file, for a journal); time_ns: since the epoch.
    """

    file: str
    flow: str
    offset: int
    size: int
    time_ns: int


class Violation(msgspec.Struct, frozen=True, kw_only=True):
    """An invariant that does not hold. scope: which partition of it (a device, a channel)."""

    id: str
    severity: str
    statement: str
    scope: str
    message: str
    witnesses: list[Witness] = []


class Unknown(msgspec.Struct, frozen=True, kw_only=True):
    """What could not be judged. id: an invariant's, or "input", "flow", "outcome"."""

    id: str
    why: str


class DeviceRow(msgspec.Struct, kw_only=True):
    """One device of one migration.

    buffers, payload_bytes: device state, the config buffer aside, over multifd and the main channel.
    index_last: highest index seen. reorder_max: most whole buffers that waited for an earlier one.
    queued_bytes_max: what the target's journal says. wire_digest: of the payload in the capture.
    equal: False when digests that are known differ, or the target's own comparison did; True when what was
    loaded is what was saved or seen; None when too little is known.
    """

    id: str
    buffers: int = 0
    payload_bytes: int = 0
    config_seen: bool = False
    index_last: int | None = None
    reorder_max: int = 0
    queued_bytes_max: int | None = None
    saved_digest: str | None = None
    wire_digest: str | None = None
    loaded_digest: str | None = None
    equal: bool | None = None


class Timing(msgspec.Struct, kw_only=True):
    """downtime_ms: from the source's stop to the target's resume, as the journals say.

    device_state_ms: from the first byte of device state after the switchover to the last, in the capture.
    """

    downtime_ms: float | None = None
    device_state_ms: float | None = None
    throughput_bytes_per_s: float | None = None


class InvariantRow(msgspec.Struct, kw_only=True):
    """What was done with one invariant."""

    standing: Standing
    partitions: int = 0
    observations: int = 0


class FlowRow(msgspec.Struct, kw_only=True):
    """One direction of a connection: decoded + lost + undecodable = total bytes.

    role: main, return-path, channel or unknown; why: for unknown or undecodable, the reason.
    ended: fin, rst or cut (the capture has no end).
    """

    flow: str
    role: str
    channel: int | None = None
    migration: int | None = None
    total_bytes: int = 0
    decoded_bytes: int = 0
    lost_bytes: int = 0
    undecodable_bytes: int = 0
    frames: int = 0
    ended: str = ""
    why: str = ""


class RunRow(msgspec.Struct, kw_only=True):
    """What a run's own record adds. endpoints: "mock" or a QEMU's version, by end.

    faults: those that were asked for; struck: whether one is known to have happened; failed_as_injected: the
    migration failed because of them, and the VM stayed where it was. guest_ram_equal: whether the guest's RAM
    was the same on both sides; guest_ram_pages: how many pages were compared; both None when nobody looked.
    """

    endpoints: dict[str, str] = {}
    faults: list[str] = []
    struck: bool = False
    failed_as_injected: bool = False
    guest_ram_equal: bool | None = None
    guest_ram_pages: int | None = None


class CaptureRow(msgspec.Struct, kw_only=True):
    """What one capture file held, whether or not it belongs to a migration."""

    path: str
    packets: int = 0
    connections: int = 0
    drops: int | None = None
    unread: dict[str, int] = {}
    truncated: str = ""
    flows: list[FlowRow] = []


class Exercised(msgspec.Struct, kw_only=True):
    """How much the verdict rests on. bytes: decoded ones; migrations: those with flows in a capture;
    log_lines: events of QEMU's trace logs; unanswered: calls of a QEMU that had no answer."""

    frames: int = 0
    bytes: int = 0
    flows: int = 0
    devices: int = 0
    migrations: int = 0
    journal_lines: int = 0
    log_lines: int = 0
    unanswered: int = 0
    invariants: dict[str, InvariantRow] = {}
    accounting: list[CaptureRow] = []


class InputRow(msgspec.Struct, kw_only=True):
    """One file that was read. error: why it could not be, "" when it could."""

    path: str
    size: int = 0
    digest: str = ""
    error: str = ""


class Report(msgspec.Struct, kw_only=True):
    """The verdict on one or several inputs. Fields as the command's documentation says.

    run: of an evidence folder with a run.json, else None.
    """

    schema: str = SCHEMA
    standing: Standing = Standing.UNKNOWN
    outcome: str | None = None
    transfer: str | None = None
    dialect: str | None = None
    channels: int = 0
    devices: list[DeviceRow] = []
    timing: Timing = msgspec.field(default_factory=Timing)
    exercised: Exercised = msgspec.field(default_factory=Exercised)
    violations: list[Violation] = []
    unknown: list[Unknown] = []
    inputs: list[InputRow] = []
    seed: int | None = None
    run: RunRow | None = None

    @property
    def unreadable(self) -> list[InputRow]:
        """Inputs that could not be read at all."""
        return [row for row in self.inputs if row.error]

    @property
    def exit_code(self) -> int:
        """0 all hold; 1 a violation; 4 an input could not be read; 5 nothing exercised, or unknown."""
        if self.violations:
            return 1
        if self.unreadable:
            return 4
        return 0 if self.standing is Standing.HOLDS else 5


def merge(reports: Iterable[Report]) -> Report:
    """One report on all inputs; what differs between them (a dialect, an outcome) becomes None or "mixed"."""
    parts = list(reports)
    if len(parts) == 1:
        return parts[0]
    # An input that has nothing to say (it is unreadable) does not blur what the others say.
    telling = [
        p for p in parts if p.exercised.migrations or p.exercised.journal_lines or p.exercised.log_lines
    ]
    transfers = {p.transfer for p in telling if p.transfer}
    return Report(
        standing=worst(p.standing for p in parts),
        outcome=_same(p.outcome for p in telling),
        transfer=transfers.pop() if len(transfers) == 1 else "mixed" if transfers else None,
        dialect=_same(p.dialect for p in telling),
        channels=sum(p.channels for p in parts),
        devices=[row for p in parts for row in p.devices],
        timing=telling[0].timing if len(telling) == 1 else Timing(),
        exercised=_merge_exercised([p.exercised for p in parts]),
        violations=[v for p in parts for v in p.violations],
        unknown=[u for p in parts for u in p.unknown],
        inputs=[row for p in parts for row in p.inputs],
        seed=_same(p.seed for p in telling),
        run=_same_run([p.run for p in telling]),
    )


def merge_rows(left: dict[str, InvariantRow], right: dict[str, InvariantRow]) -> dict[str, InvariantRow]:
    """Two tables of invariants as one."""
    out = dict(left)
    for name, row in right.items():
        known = out.get(name)
        if known is not None:
            row = InvariantRow(
                standing=worst((known.standing, row.standing)),
                partitions=known.partitions + row.partitions,
                observations=known.observations + row.observations,
            )
        out[name] = row
    return out


def _merge_exercised(parts: list[Exercised]) -> Exercised:
    total = Exercised()
    for part in parts:
        total.frames += part.frames
        total.bytes += part.bytes
        total.flows += part.flows
        total.devices += part.devices
        total.migrations += part.migrations
        total.journal_lines += part.journal_lines
        total.log_lines += part.log_lines
        total.unanswered += part.unanswered
        total.accounting = total.accounting + part.accounting
        total.invariants = merge_rows(total.invariants, part.invariants)
    return total


def _same_run(rows: list[RunRow | None]) -> RunRow | None:
    """What several runs of one kind have in common."""
    known = [row for row in rows if row is not None]
    if not known or len(known) < len(rows) or any(row != known[0] for row in known):
        return None
    return known[0]


def _same(values: Iterable[Any]) -> Any:
    distinct = set(values)
    return distinct.pop() if len(distinct) == 1 else None
