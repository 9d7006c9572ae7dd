# SPDX-License-Identifier: GPL-2.0-or-later
"""OC: what became of the VM. In the end one side can run it, and only one.

Who says so: the run's record, the journals of mock endpoints, or the QEMUs' own logs (`endings`). A run
that hung, or whose source crashed, is not judged: of one that was killed nobody knows what it would have
done, and a source that dies takes its VM along whatever the migration does. A target that crashed runs
nothing; where the source has given the VM up by then, it is lost.
"""

from __future__ import annotations

from collections.abc import Iterator

from mockdev.journal import End
from verifier.history.endings import Ending
from verifier.history.facts import Facts
from verifier.history.observation import EndRecord, QmpEvent, Said, StatusTrace, VmTrace
from verifier.invariants.passport import (
    MIGRATION,
    Finding,
    Invariant,
    Need,
    Passport,
    Severity,
    qemu,
)

Word = End | EndRecord | StatusTrace | VmTrace | QmpEvent


class _AtBothEnds(Invariant[Word]):
    """Judged once all is said."""

    kinds = (End, EndRecord, StatusTrace, VmTrace, QmpEvent)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.exercised = False

    def on(self, _seen: Said, _event: Word) -> Iterator[Finding]:
        return iter(())

    def at_end(self) -> Iterator[Finding]:
        source, target = self.facts.endings.of("source"), self.facts.endings.of("target")
        self.exercised = bool(self.facts.journals or self.facts.record) or None not in (source, target)
        if self.facts.record is not None and self.facts.record.stopped:
            self.unknown = "the run was stopped at a violation, so its end is not its own"
        elif source is not None and target is not None:
            for message in self.weigh(source, target):
                yield Finding(message, (*source.said, *target.said))

    def weigh(self, source: Ending, target: Ending) -> Iterator[str]:
        """What is wrong with these two, a sentence each."""
        raise NotImplementedError

    def doubt(self, source: Ending, target: Ending) -> None:
        """Say whose fate is not known."""
        for role, end in (("source", source), ("target", target)):
            if end.runs is None or not end.own_word:
                self.unknown = f"the {role} {end.outcome}, and nobody knows what became of the VM there"


class OneSideRuns(_AtBothEnds):
    """Sound: each end's own word counts, or that of the run that watched it; of an end that hung or whose
    word is missing nothing is said.

    Misses: a VM that runs twice for a while and not in the end: OC-4.
    """

    passport = Passport(
        "OC-1",
        "The VM may run on at most one side in the end.",
        Severity.CORRUPTS,
        qemu("migration/migration.c", "migration_completion, process_incoming_migration_bh"),
        MIGRATION,
        (Need.ENDS,),
    )

    def weigh(self, source: Ending, target: Ending) -> Iterator[str]:
        if source.runs and target.runs:
            yield (
                f"split-brain: the source {source.outcome}, the target {target.outcome}, and the VM may run "
                "on both sides"
            )
        elif source.runs is not False and target.runs is not False:
            self.doubt(source, target)


class SidesAgree(_AtBothEnds):
    """Sound: both ends' last words are taken; a target that crashed without one leaves it unknown.

    Misses: a source that says failed when the target completed: EN-6, OC-1.
    """

    passport = Passport(
        "OC-2",
        "The source says that the migration completed only when the target does.",
        Severity.CORRUPTS,
        qemu("migration/migration.c", "migration_completion"),
        MIGRATION,
        (Need.ENDS,),
    )

    def weigh(self, source: Ending, target: Ending) -> Iterator[str]:
        if source.outcome == "completed" != target.outcome:
            if target.runs is None or not target.own_word:
                self.doubt(source, target)
            else:
                yield f"the source completed, the target {target.outcome}"


class SomeSideRuns(_AtBothEnds):
    """Sound: the source must have said so itself, and the target must be known not to run; what hung is not
    judged.

    Misses: a VM that runs and is not what it was: EQ-1, EQ-7.
    """

    passport = Passport(
        "OC-3",
        "The VM may run on at least one side in the end.",
        Severity.CORRUPTS,
        qemu("migration/migration.c", "migration_completion, process_incoming_migration_co"),
        MIGRATION,
        (Need.ENDS,),
    )

    def weigh(self, source: Ending, target: Ending) -> Iterator[str]:
        if source.runs is False and target.runs is False and source.own_word:
            why = target.error and f" ({target.error})"
            yield (
                f"lost: the source {source.outcome} and gave the VM up, the target {target.outcome}{why}, "
                "and no side can run it"
            )
        elif not source.runs and not target.runs:
            self.doubt(source, target)


OUTCOME = (OneSideRuns, SidesAgree, SomeSideRuns)
