# SPDX-License-Identifier: GPL-2.0-or-later
"""The engine: gives every observation to the invariants that asked for its kind, one object a partition.

A simulator judges many migrations a second, so nothing is done twice: what can be said of the invariants
themselves is said once (`_plan`), and who hears of an observation is looked up once for all invariants of
one scope (`_Panel`). What no observation is about costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

from verifier.capture.flows import Lane
from verifier.history.facts import Facts
from verifier.history.observation import Observation, Said, Seen
from verifier.invariants.passport import Finding, Invariant, Need, unmet
from verifier.verdict import InvariantRow, Standing, Unknown, Violation, Witness

PARTITIONS_MAX = 4096
_SPOKEN = {Need.SOURCE, Need.TARGET}
_CAPTURED = {Need.MAIN, Need.CHANNELS, Need.RAM, Need.RETURN_PATH}
FINDINGS_MAX = 16  # of one invariant; more say nothing new
_PLANS_MAX = 64

Key = Callable[[Any], Hashable]
Weigh = Callable[[Any, Any], Iterator[Finding]]


class Accompanied:
    """A judge, and who listens along: hears each observation when the judge has weighed it."""

    __slots__ = ("_judge", "_listener")

    def __init__(self, judge: Judge, listener: Callable[[Observation], None]) -> None:
        self._judge = judge.on
        self._listener = listener

    def on(self, seen: Observation) -> None:
        """First the judge, then the listener."""
        self._judge(seen)
        self._listener(seen)


class Judge:
    """Judges one migration. file: the capture's path, for witnesses."""

    def __init__(self, facts: Facts, file: str, invariants: Iterable[type[Invariant[Any]]]) -> None:
        self.facts = facts
        self.file = file
        self.violations: list[Violation] = []
        self.unknown: list[Unknown] = []
        self.rows: dict[str, InvariantRow] = {}
        self._plan = _plan(tuple(invariants))
        self._courts: dict[int, _Court] = {}
        self._panels: dict[type, list[tuple[Key, dict[Hashable, _Panel]]]] = {}

    def on(self, seen: Observation) -> None:
        """Weigh one observation. The facts know of it already."""
        event: Any = seen.event if type(seen) is Seen else seen.line  # type: ignore[union-attr]
        kind = type(event)
        by_scope = self._panels.get(kind)
        if by_scope is None:
            by_scope = self._panels[kind] = [(key, {}) for key in self._plan.kinds.get(kind, ())]
        found: list[tuple[_Court, Hashable, Finding]] | None = None
        for key_of, panels in by_scope:
            key = key_of(seen)
            panel = panels.get(key) or self._convene(kind, key_of, key, panels)
            panel.observations += 1
            for weigh in panel.weigh:
                for finding in weigh(seen, event):
                    found = found or []
                    found.append((panel.court_of(weigh), key, finding))
        if found is not None:
            for court, key, finding in sorted(found, key=lambda one: one[0].number):
                court.record(self, key, finding)

    def at_end(self) -> None:
        """No more observations come: fill `rows` and `unknown`."""
        facts = self.facts
        lacking = frozenset(unmet(Need, facts))
        self._count()
        for _, court in sorted(self._courts.items()):
            law = court.law
            # Where there is no journal at all, or no capture at all, nothing is missing from it.
            if court.partitions and (facts.journals or not law.spoken) and (facts.lanes or not law.captured):
                court.close(self, lacking)

    def witness(self, seen: Observation) -> Witness:
        """As a report names it."""
        if isinstance(seen, Said):
            return Witness(
                file=seen.file,
                flow=f"{seen.role} {seen.where}",
                offset=seen.offset,
                size=seen.size,
                time_ns=seen.time_ns,
            )
        return Witness(
            file=self.file,
            flow=f"{seen.lane.name} ({seen.lane})" if seen.lane.name != str(seen.lane) else str(seen.lane),
            offset=seen.event.offset,
            size=seen.event.size,
            time_ns=seen.time_ns,
        )

    def _count(self) -> None:
        """How many observations each court had."""
        for kind, by_scope in self._panels.items():
            for key_of, panels in by_scope:
                numbers = self._plan.kinds[kind][key_of]
                of_all = 0
                for panel in panels.values():
                    if len(panel.courts) == len(numbers):
                        of_all += panel.observations
                        continue
                    for court in panel.courts:
                        court.observations += panel.observations
                if of_all:
                    for number in numbers:
                        self._courts[number].observations += of_all

    def _convene(self, kind: type, key_of: Key, key: Hashable, panels: dict[Hashable, _Panel]) -> _Panel:
        """Who hears of the observations of that kind in that partition."""
        panel = _Panel()
        courts, laws, facts = self._courts, self._plan.laws, self.facts
        for number in self._plan.kinds[kind][key_of]:
            court = courts.get(number)
            if court is None:
                court = courts[number] = _Court(number, laws[number])
            partition = court.partitions.get(key)
            if partition is None:
                if not court.has_room:
                    continue
                partition = court.partitions[key] = court.law.invariant(facts)
            panel.courts.append(court)
            panel.weigh.append(partition.on)
        if panel.courts:  # else there are too many partitions to keep this one in mind
            panels[key] = panel
        return panel


class _Law(NamedTuple):
    """An invariant and what is asked of it more than once.

    ends: it has something to say at the end. spoken, captured: it is about journals, or about captures.
    """

    invariant: type[Invariant[Any]]
    ends: bool
    spoken: bool
    captured: bool


class _Plan(NamedTuple):
    """Some invariants: each by its number, and by kind of event and scope the numbers of those that ask."""

    laws: tuple[_Law, ...]
    kinds: dict[type, dict[Key, tuple[int, ...]]]


@lru_cache(_PLANS_MAX)
def _plan(invariants: tuple[type[Invariant[Any]], ...]) -> _Plan:
    laws = []
    kinds: dict[type, dict[Key, tuple[int, ...]]] = {}
    for number, invariant in enumerate(invariants):
        needs = set(invariant.passport.needs)
        ends = invariant.at_end is not Invariant.at_end
        laws.append(_Law(invariant, ends, bool(needs & _SPOKEN), bool(needs & _CAPTURED)))
        for kind in invariant.kinds:
            by_scope = kinds.setdefault(kind, {})
            key = invariant.passport.scope.key
            by_scope[key] = (*by_scope.get(key, ()), number)
    return _Plan(tuple(laws), kinds)


class _Panel:
    """The courts that hear one kind of event in one partition of one scope, in the order of the catalogue."""

    __slots__ = ("courts", "observations", "weigh")

    def __init__(self) -> None:
        self.courts: list[_Court] = []
        self.weigh: list[Weigh] = []
        self.observations = 0

    def court_of(self, weigh: Weigh) -> _Court:
        """Whose call that is."""
        return self.courts[self.weigh.index(weigh)]


class _Court:
    """One invariant with all its partitions."""

    __slots__ = ("found", "law", "number", "observations", "partitions", "why")

    def __init__(self, number: int, law: _Law) -> None:
        self.number = number
        self.law = law
        self.observations = 0  # known at the end
        self.partitions: dict[Hashable, Invariant[Any]] = {}
        self.found = 0
        self.why: list[str] = []

    @property
    def has_room(self) -> bool:
        """Whether one more partition may be judged; if not, that is said at the end."""
        if len(self.partitions) < PARTITIONS_MAX:
            return True
        self.why = self.why or [f"more than {PARTITIONS_MAX} partitions; the rest was not judged"]
        return False

    def close(self, judge: Judge, lacking: frozenset[Need]) -> None:
        """Judge what can only be judged now, and say how it came out. lacking: needs that are not met."""
        passport = self.law.invariant.passport
        whole = not self.why
        missing = [need for need in passport.needs if need in lacking]
        exercised = False
        for key, partition in self.partitions.items():
            if self.law.ends:
                partition.complete = not missing
                for finding in partition.at_end():
                    self.record(judge, key, finding)
            if partition.unknown:
                self.why.append(f"{_scope(key)}: {partition.unknown}")
            exercised = exercised or partition.exercised
        if missing and exercised:
            self.why.append("it needs " + ", ".join(missing))
        # What a migration was made to break off before it can be judged is not missing.
        if whole and self.why and not self.found and judge.facts.failed_as_injected:
            return
        if self.why and not self.found:
            judge.unknown.append(Unknown(id=passport.id, why="; ".join(self.why[:4])))
        if exercised or self.found:  # any partition had something to judge
            standing = Standing.VIOLATED if self.found else Standing.UNKNOWN if self.why else Standing.HOLDS
            judge.rows[passport.id] = InvariantRow(
                standing=standing, partitions=len(self.partitions), observations=self.observations
            )

    def record(self, judge: Judge, key: Hashable, finding: Finding) -> None:
        """A finding of one partition."""
        self.found += 1
        if self.found > FINDINGS_MAX:
            return
        passport = self.law.invariant.passport
        judge.violations.append(
            Violation(
                id=passport.id,
                severity=passport.severity.value,
                statement=passport.statement,
                scope=_scope(key),
                message=finding.message,
                witnesses=[judge.witness(seen) for seen in finding.witnesses],
            )
        )


def _scope(key: Hashable) -> str:
    if isinstance(key, Lane):
        return key.name
    if isinstance(key, tuple):
        return " on ".join(part.name if isinstance(part, Lane) else str(part) for part in key)
    return str(key)
