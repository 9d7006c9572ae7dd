# SPDX-License-Identifier: GPL-2.0-or-later
"""The engine: gives every observation to the invariants that asked for its kind, one object a partition."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any

from verifier.capture.flows import Lane
from verifier.history.facts import Facts
from verifier.history.observation import Observation, Said, Seen
from verifier.invariants.passport import Finding, Invariant, Need, unmet
from verifier.verdict import InvariantRow, Standing, Unknown, Violation, Witness

PARTITIONS_MAX = 4096
_SPOKEN = {Need.SOURCE, Need.TARGET}
_CAPTURED = {Need.MAIN, Need.CHANNELS, Need.RETURN_PATH}
FINDINGS_MAX = 16  # of one invariant; more say nothing new


class Judge:
    """Judges one migration. file: the capture's path, for witnesses."""

    def __init__(self, facts: Facts, file: str, invariants: Iterable[type[Invariant[Any]]]) -> None:
        self.facts = facts
        self.file = file
        self.violations: list[Violation] = []
        self.unknown: list[Unknown] = []
        self.rows: dict[str, InvariantRow] = {}
        self._courts = [_Court(self, kind) for kind in invariants]
        self._by_kind: dict[type, tuple[_Court, ...]] = {}
        for court in self._courts:
            for kind in court.invariant.kinds:
                self._by_kind[kind] = (*self._by_kind.get(kind, ()), court)

    def on(self, seen: Observation) -> None:
        """Weigh one observation. The facts know of it already."""
        event = seen.event if isinstance(seen, Seen) else seen.line
        for court in self._by_kind.get(type(event), ()):
            court.take(seen, event)

    def at_end(self) -> None:
        """No more observations come: fill `rows` and `unknown`."""
        for court in self._courts:
            if court.partitions and court.relevant:
                court.close()
                if court.exercised and not court.moot:
                    self.rows[court.invariant.passport.id] = court.row()


class _Court:
    """One invariant with all its partitions."""

    def __init__(self, judge: Judge, invariant: type[Invariant[Any]]) -> None:
        self.judge = judge
        self.invariant = invariant
        self.partitions: dict[Hashable, Invariant[Any]] = {}
        self.observations = 0
        self.found = 0
        self.moot = False  # see close
        self.why: list[str] = []
        self._key = invariant.passport.scope.key

    @property
    def relevant(self) -> bool:
        """Whether the input is of the kind that this is about: where there is no journal at all, or no
        capture at all, nothing is missing from it."""
        needs, facts = set(self.invariant.passport.needs), self.judge.facts
        return bool(facts.journals or not needs & _SPOKEN) and bool(facts.lanes or not needs & _CAPTURED)

    @property
    def exercised(self) -> bool:
        """Whether any partition had something to judge."""
        return any(partition.exercised for partition in self.partitions.values())

    def take(self, seen: Observation, event: object) -> None:
        key = self._key(seen)
        partition = self.partitions.get(key)
        if partition is None:
            if len(self.partitions) >= PARTITIONS_MAX:
                self.why = self.why or [f"more than {PARTITIONS_MAX} partitions; the rest was not judged"]
                return
            partition = self.partitions[key] = self.invariant(self.judge.facts)
        self.observations += 1
        for finding in partition.on(seen, event):
            self._record(key, finding)

    def close(self) -> None:
        whole = not self.why
        for key, partition in self.partitions.items():
            for finding in partition.at_end():
                self._record(key, finding)
            if partition.unknown:
                self.why.append(f"{_scope(key)}: {partition.unknown}")
        missing = unmet(self.invariant.passport, self.judge.facts)
        if missing and self.exercised:
            self.why.append("it needs " + ", ".join(missing))
        # What a migration was made to break off before it can be judged is not missing.
        self.moot = whole and bool(self.why) and not self.found and self.judge.facts.failed_as_injected
        if self.moot:
            return
        if self.why and not self.found:
            self.judge.unknown.append(Unknown(id=self.invariant.passport.id, why="; ".join(self.why[:4])))

    def row(self) -> InvariantRow:
        standing = Standing.VIOLATED if self.found else Standing.UNKNOWN if self.why else Standing.HOLDS
        return InvariantRow(
            standing=standing, partitions=len(self.partitions), observations=self.observations
        )

    def _record(self, key: Hashable, finding: Finding) -> None:
        self.found += 1
        if self.found > FINDINGS_MAX:
            return
        passport = self.invariant.passport
        self.judge.violations.append(
            Violation(
                id=passport.id,
                severity=passport.severity.value,
                statement=passport.statement,
                scope=_scope(key),
                message=finding.message,
                witnesses=[self._witness(seen) for seen in finding.witnesses],
            )
        )

    def _witness(self, seen: Observation) -> Witness:
        if isinstance(seen, Said):
            return Witness(
                file=seen.file,
                flow=f"{seen.role} {seen.where}",
                offset=seen.offset,
                size=seen.size,
                time_ns=seen.time_ns,
            )
        return Witness(
            file=self.judge.file,
            flow=f"{seen.lane.name} ({seen.lane})" if seen.lane.name != str(seen.lane) else str(seen.lane),
            offset=seen.event.offset,
            size=seen.event.size,
            time_ns=seen.time_ns,
        )


def _scope(key: Hashable) -> str:
    if isinstance(key, Lane):
        return key.name
    if isinstance(key, tuple):
        return " on ".join(part.name if isinstance(part, Lane) else str(part) for part in key)
    return str(key)
