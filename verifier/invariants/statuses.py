# SPDX-License-Identifier: GPL-2.0-or-later
"""SM, OC: the status of a migration and whether the VM runs, as QEMUs and mock endpoints say themselves.

A QEMU says it twice: in its trace (migrate_set_state, vfio_vmstate_change) and by QMP events (MIGRATION,
STOP, RESUME). Each log is held against itself, where its own order is exact; between logs, and against the
capture, only time decides, with slack. A trace log without times is not held against anything else.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from mockdev.journal import Mark
from mockdev.wire.frames import EofItem, VfioItem
from mockdev.wire.structs import VfioTag
from verifier.history.facts import Facts
from verifier.history.observation import OtherTrace, QmpEvent, Said, Seen, StatusTrace, VmTrace
from verifier.invariants.passport import (
    MIGRATION,
    SIDE_LOG,
    Finding,
    Invariant,
    Passport,
    Severity,
    qemu,
)
from verifier.invariants.return_path import SLACK_NS

# What may follow a status. A status that is not here (of postcopy, COLO, snapshots) is passed over, and what
# follows it is not judged. A cancel may come at any time, and may find the migration complete.
_FOLLOWING: dict[str, frozenset[str]] = {
    "setup": frozenset(("active", "failing", "failed", "cancelling", "cancelled")),
    "active": frozenset(("pre-switchover", "device", "completed", "failing", "failed", "cancelling")),
    "pre-switchover": frozenset(("device", "failing", "failed", "cancelling")),
    "device": frozenset(("completed", "failing", "failed", "cancelling")),
    "failing": frozenset(("failed", "cancelling", "cancelled")),
    "cancelling": frozenset(("cancelled", "failing", "failed", "completed")),
    "completed": frozenset(("setup",)),
    "failed": frozenset(("setup",)),
    "cancelled": frozenset(("setup",)),
}
_ACKED = "source_return_path_thread_switchover_acked"
_LISTENS = "source_return_path_thread_loop_top"  # a log that has this one has the other, too
_SWITCHES_MAX = 1 << 16  # of the VM between running and not, that are kept of one end


def _status(event: object) -> str:
    """The status that a line tells, "" when it tells none."""
    if isinstance(event, StatusTrace):
        return event.status
    return event.value if isinstance(event, QmpEvent) and event.event == "MIGRATION" else ""


def _running(event: object) -> bool | None:
    """Whether a line says that the VM runs from now on; None when it says nothing of that."""
    if isinstance(event, QmpEvent):
        if event.event == "RESUME":
            return True
        return False if event.event in ("STOP", "SHUTDOWN") else None
    if isinstance(event, VmTrace) and event.event == "vfio_vmstate_change":
        return bool(event.running)
    return None


class StatusOrder(Invariant[StatusTrace | QmpEvent]):
    """Sound: one QEMU's log keeps the order of its own changes, if tracing was not switched off in between;
    statuses of other ways to migrate are passed over, and that a source left out `device` is only said of one
    that migrates VFIO devices.

    Misses: a status that was never told (a log cut at its start or end), and how long each lasted.
    """

    passport = Passport(
        "SM-4",
        "By its own log, a QEMU's migration goes from setup to active, at the source on to device (by way of "
        "pre-switchover if that was asked for), and to completed, failed or cancelled, which nothing follows "
        "but a new setup.",
        Severity.ABORTS,
        qemu("migration/migration.c", "migrate_set_state"),
        SIDE_LOG,
    )
    kinds = (StatusTrace, QmpEvent)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.exercised = False
        self.status = ""
        self.last: Said | None = None
        self.skipped: tuple[Said, Said] | None = None

    def on(self, seen: Said, event: StatusTrace | QmpEvent) -> Iterator[Finding]:
        status = _status(event)
        if not status or status == self.status:
            return
        before, last = self.status, self.last
        self.status, self.last = status, seen
        following = _FOLLOWING.get(before)
        if last is None or following is None or status not in _FOLLOWING:
            return
        self.exercised = True
        if status not in following:
            yield Finding(f"{status} follows {before}", (last, seen))
        elif before == "active" and status == "completed" and seen.role == "source":
            self.skipped = last, seen

    def at_end(self) -> Iterator[Finding]:
        if self.skipped is not None and self.facts.started:  # a background snapshot has no such status
            yield Finding("completed follows active, without device", self.skipped)


class AckFirst(Invariant[Mark | OtherTrace | StatusTrace | VmTrace | VfioItem]):
    """Sound: one end's own lines, in their order; a QEMU whose VM was not running (no stop for
    finish-migrate) is passed over, for it need not wait.

    Misses: with acknowledgements counted (11.1), a source that waits for fewer than it should; the number of
    INIT_DATA_SENT and of SWITCHOVER_ACK in the capture shows that.
    """

    passport = Passport(
        "SM-5",
        "Where devices say INIT_DATA_SENT, the source of a running VM switches over only after a "
        "SWITCHOVER_ACK (by its own journal, or its trace).",
        Severity.SLOWS,
        qemu("migration/migration.c", "migration_can_switchover", "8.1"),
        MIGRATION,
    )
    kinds = (Mark, OtherTrace, StatusTrace, VmTrace, VfioItem)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.exercised = False
        self.asked = False
        self.acked = False
        self.listened = False  # the trace tells of the return path
        self.stopped = False  # by the migration, so that it ran
        self.switched: Said | None = None
        self.early = False

    def on(
        self, seen: Said | Seen, event: Mark | OtherTrace | StatusTrace | VmTrace | VfioItem
    ) -> Iterator[Finding]:
        if isinstance(event, VfioItem):
            self.asked |= event.tag == VfioTag.DEV_INIT_DATA_SENT
        elif isinstance(seen, Said) and seen.role == "source":
            self._source(seen, event)
        return iter(())

    def _source(self, seen: Said, event: Mark | OtherTrace | StatusTrace | VmTrace) -> None:
        if isinstance(event, OtherTrace):
            self.acked |= event.event == _ACKED
            self.listened |= event.event == _LISTENS
        elif isinstance(event, Mark):
            self.acked |= event.name == "switchover-ack"
            if event.name == "switchover-start":
                self._switch(seen)
        elif isinstance(event, VmTrace):
            self.stopped |= event.reason == "finish-migrate"
        elif event.status == "device" and self.stopped and self.listened:
            self._switch(seen)

    def _switch(self, seen: Said) -> None:
        if self.switched is None:
            self.switched = seen
            self.early = not self.acked

    def at_end(self) -> Iterator[Finding]:
        self.exercised = self.asked and self.switched is not None
        if self.exercised and self.early and self.switched is not None:
            yield Finding("the source switches over before any SWITCHOVER_ACK", (self.switched,))


class StoppedForItsState(Invariant[StatusTrace | VmTrace | QmpEvent]):
    """Sound: one QEMU's log keeps its own order; a VM whose start is not in the log counts as stopped until
    it is seen to stop.

    Misses: a VM that the log does not show running or stopping at all; a write to guest RAM after the last
    round would show as a difference in EQ-7.
    """

    passport = Passport(
        "SM-9",
        "By its own log, a QEMU has stopped its VM before its migration is in status device.",
        Severity.CORRUPTS,
        qemu("migration/migration.c", "migration_completion_precopy, migration_stop_vm"),
        SIDE_LOG,
    )
    kinds = (StatusTrace, VmTrace, QmpEvent)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.exercised = False
        self.runs: Said | None = None  # the line that shows it
        self.device: Said | None = None  # the status, since which the VM was not resumed

    def on(self, seen: Said, event: StatusTrace | VmTrace | QmpEvent) -> Iterator[Finding]:
        status = _status(event)
        if status == "device":
            self.exercised = True
            self.device = seen
            if self.runs is not None:
                yield Finding("the VM runs in status device", (self.runs, seen))
        elif status:
            self.device = None if status in ("setup", "completed", "failed", "cancelled") else self.device
        elif (running := _running(event)) is not None:
            # QEMU says STOP of a VM that ran until now, and of no other.
            late = self.device is not None and self.runs is None
            if late and isinstance(event, QmpEvent) and event.event == "STOP" and self.device is not None:
                yield Finding("the VM is stopped in status device", (self.device, seen))
            self.runs, self.device = (seen if running else None), None


class RunsLast(Invariant[Mark | VmTrace | QmpEvent | EofItem]):
    """Sound: within a journal the order is exact; between a QEMU's log and the capture 1 s of slack stands
    for different clocks, and postcopy, where the VM runs sooner, is not judged.

    Misses: a VM that starts too early by less than the slack, and devices started without it (ST-10).
    """

    passport = Passport(
        "SM-10",
        "In precopy the VM runs at the target only after the end of the stream has come (by the target's "
        "journal, or by its log and capture time, with 1 s of slack).",
        Severity.CORRUPTS,
        qemu("migration/migration.c", "process_incoming_migration_co, process_incoming_migration_bh"),
        MIGRATION,
    )
    kinds = (Mark, VmTrace, QmpEvent, EofItem)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.exercised = False
        self.ended = False
        self.early: Said | None = None  # ran before the mark of the end, in the same journal
        self.runs: Said | None = None
        self.eof: Seen | None = None

    def on(self, seen: Said | Seen, event: Mark | VmTrace | QmpEvent | EofItem) -> Iterator[Finding]:
        if isinstance(seen, Seen):
            self.eof = self.eof or seen
        elif seen.role != "target":
            pass
        elif isinstance(event, Mark):
            if event.name == "end-of-stream":
                self.ended = True
            elif event.name == "resume":
                self.exercised = True
                self.early = None if self.ended else seen
        elif self.runs is None and seen.time_ns and _running(event):
            self.runs = seen
        return iter(())

    def at_end(self) -> Iterator[Finding]:
        if self.facts.postcopy:
            self.exercised = False
            return
        if self.early is not None:
            yield Finding("the VM runs before the end of the stream was read", (self.early,))
        if self.runs is None or self.eof is None:
            return
        self.exercised = True
        if self.eof.time_ns - self.runs.time_ns > SLACK_NS:
            yield Finding("the VM runs before the end of the stream was sent", (self.runs, self.eof))


class NeverBothRun(Invariant[VmTrace | QmpEvent]):
    """Sound: both logs carry times of their QEMUs' clocks, which may differ by up to the slack of 1 s.

    Misses: an overlap shorter than that, and one that only begins where the logs end: OC-1 judges the end.
    """

    passport = Passport(
        "OC-4",
        "The VM never runs at both ends at once for longer than 1 s (by the ends' own logs).",
        Severity.CORRUPTS,
        qemu("migration/migration.c", "migration_completion, process_incoming_migration_bh"),
        MIGRATION,
    )
    kinds = (VmTrace, QmpEvent)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.exercised = False
        self.spans: dict[str, list[tuple[Said, int]]] = {"source": [], "target": []}  # with their ends
        self.open: dict[str, Said] = {}
        self.first: dict[str, Said] = {}
        self.last_ns: dict[str, int] = {}  # who was killed says no more: it ran until its last line

    def on(self, seen: Said, event: VmTrace | QmpEvent) -> Iterator[Finding]:
        if not seen.time_ns:
            return iter(())
        role, running = seen.role, _running(event)
        self.last_ns[role] = seen.time_ns
        first = self.first.setdefault(role, seen)
        if running:
            self.open.setdefault(role, seen)
        elif running is False:
            begun = self.open.pop(role, None)
            if (
                begun is None
                and not self.spans[role]
                and isinstance(event, QmpEvent)
                and event.event == "STOP"
            ):
                begun = first  # it had run since before the log
            if begun is not None and len(self.spans[role]) < _SWITCHES_MAX:
                self.spans[role].append((begun, seen.time_ns))
        return iter(())

    def at_end(self) -> Iterator[Finding]:
        for role, begun in self.open.items():
            self.spans[role].append((begun, self.last_ns[role]))
        sources, targets = self.spans["source"], self.spans["target"]
        self.exercised = bool(sources and targets)
        at = 0
        for source, source_end in sources:
            while at < len(targets) and targets[at][1] < source.time_ns:
                at += 1
            for target, target_end in islice(targets, at, None):
                if target.time_ns > source_end:
                    break
                if min(source_end, target_end) - max(source.time_ns, target.time_ns) > SLACK_NS:
                    yield Finding("the VM runs at both ends", (source, target))
                    return


class RanToTheEnd(Invariant[StatusTrace | VmTrace | QmpEvent]):
    """Sound: one QEMU's log keeps its own order; a new setup, or any status of postcopy, ends the statement.

    Misses: a target that crashes once its VM runs, which leaves no status; the run's record has it as
    crashed.
    """

    passport = Passport(
        "OC-5",
        "By its own log, a target whose VM runs after precopy does not say afterwards that the migration "
        "failed.",
        Severity.CORRUPTS,
        qemu("migration/migration.c", "process_incoming_migration_bh"),
        SIDE_LOG,
    )
    kinds = (StatusTrace, VmTrace, QmpEvent)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.exercised = False
        self.incoming = False
        self.runs: Said | None = None

    def on(self, seen: Said, event: StatusTrace | VmTrace | QmpEvent) -> Iterator[Finding]:
        if seen.role != "target":
            return
        status = _status(event)
        if status in ("setup", "active"):
            self.incoming, self.runs = True, None
        elif status in ("failing", "failed"):
            if self.runs is not None:
                yield Finding("the VM runs, and then the migration fails", (self.runs, seen))
            self.runs = None
        elif status and status != "completed":
            self.incoming, self.runs = False, None
        elif self.incoming and _running(event) and self.runs is None:
            self.exercised = True
            self.runs = seen


STATUSES = (StatusOrder, AckFirst, StoppedForItsState, RunsLast, NeverBothRun, RanToTheEnd)
