# SPDX-License-Identifier: GPL-2.0-or-later
"""RP, EN: the last words of both ends agree with each other, and with when the connections were closed."""

from __future__ import annotations

from collections.abc import Iterator

from mockdev.journal import End
from mockdev.wire.frames import ReturnPathItem
from mockdev.wire.structs import ReturnPath
from verifier.capture.flows import Role
from verifier.history.facts import Facts
from verifier.history.observation import FlowEnd, QmpEvent, Said, Seen, StatusTrace
from verifier.invariants.passport import (
    MIGRATION,
    Finding,
    Invariant,
    Need,
    Passport,
    Severity,
    qemu,
)
from verifier.invariants.return_path import SLACK_NS

Word = End | StatusTrace | QmpEvent


class ShutTellsTheTruth(Invariant[ReturnPathItem | Word]):
    """Sound: SHUT and the target's last status are the same end's own words; what the lab thought of an end
    that it broke off does not count.

    Misses: a target that died after SHUT without a word of its own; the run's record shows it as crashed.
    """

    passport = Passport(
        "RP-8",
        "The target says SHUT 0 if it completed, and only then (by its own journal, trace or QMP events).",
        Severity.CORRUPTS,
        qemu("migration/migration.c, migration/savevm.c", "migration_incoming_state_destroy"),
        MIGRATION,
        (Need.RETURN_PATH,),
    )
    kinds = (ReturnPathItem, End, StatusTrace, QmpEvent)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.exercised = False
        self.shut: Seen | None = None
        self.value = 0

    def on(self, seen: Seen | Said, event: ReturnPathItem | Word) -> Iterator[Finding]:
        if self.shut is not None or not isinstance(seen, Seen) or not isinstance(event, ReturnPathItem):
            return iter(())
        if event.type == ReturnPath.SHUT and len(event.data) == 4:
            self.shut, self.value = seen, int.from_bytes(event.data, "big")
        return iter(())

    def at_end(self) -> Iterator[Finding]:
        target = self.facts.endings.own_word("target")
        if self.shut is None or target is None or target.outcome not in ("completed", "failed"):
            return
        self.exercised = True
        if (self.value == 0) != (target.outcome == "completed"):
            yield Finding(f"SHUT {self.value}, and the target {target.outcome}", (self.shut, *target.said))


class ClosedAfterShut(Invariant[FlowEnd | ReturnPathItem]):
    """Sound: what passes a capture point on the way of SHUT passes it before its answer, the source's FIN,
    can; the slack of 1 s is for captures that stamp the two directions apart.

    Misses: a source that closes early by less than the slack, or without a FIN in the capture.
    """

    passport = Passport(
        "EN-5",
        "With a return path, the source closes no connection before SHUT has come (judged by capture time, "
        "with 1 s of slack).",
        Severity.ABORTS,
        qemu("migration/migration.c", "close_return_path_on_source, migration_cleanup"),
        MIGRATION,
        (Need.COMPLETED, Need.RETURN_PATH),
    )
    kinds = (FlowEnd, ReturnPathItem)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.exercised = False
        self.first: Seen | None = None
        self.shut: Seen | None = None

    def on(self, seen: Seen, event: FlowEnd | ReturnPathItem) -> Iterator[Finding]:
        if isinstance(event, ReturnPathItem):
            if event.type == ReturnPath.SHUT and self.shut is None:
                self.shut = seen
        elif (
            event.kind != "cut"
            and seen.lane.role in (Role.MAIN, Role.CHANNEL)
            and (self.first is None or seen.time_ns < self.first.time_ns)
        ):
            self.first = seen
        return iter(())

    def at_end(self) -> Iterator[Finding]:
        if self.first is None or self.shut is None or not self.complete or self.facts.postcopy:
            return
        self.exercised = True
        if self.shut.time_ns - self.first.time_ns > SLACK_NS:
            yield Finding(f"the source closes {self.first.lane.name} before SHUT", (self.first, self.shut))


class SourceCompletesToo(Invariant[Word]):
    """Sound: each end's own last word is taken, and only where nobody asked for a fault or called the run
    off; a source that was cancelled, as its user wished, is not one that failed.

    Misses: a source that gave no last word; LV-5 and the run's record show an end that hung or crashed.
    """

    passport = Passport(
        "EN-6",
        "Where nothing was made to fail, the source does not say that the migration failed when the target "
        "completed.",
        Severity.ABORTS,
        qemu("migration/migration.c", "process_incoming_migration_co, migration_completion"),
        MIGRATION,
    )
    kinds = (End, StatusTrace, QmpEvent)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.exercised = False

    def on(self, seen: Said, event: Word) -> Iterator[Finding]:  # noqa: ARG002
        return iter(())

    def at_end(self) -> Iterator[Finding]:
        source, target = (self.facts.endings.own_word(role) for role in ("source", "target"))
        if source is None or target is None or self.facts.disturbed:
            return
        self.exercised = True
        if target.outcome == "completed" and source.outcome == "failed":
            yield Finding("the target completed, the source failed", (*target.said, *source.said))


CLOSING = (ShutTellsTheTruth, ClosedAfterShut, SourceCompletesToo)
