# SPDX-License-Identifier: GPL-2.0-or-later
"""How an invariant is declared: its passport, its partition, and the two calls that judge.

One invariant is one small class. Its docstring is two sentences, `Sound:` and `Misses:` (see Limits). The
engine (`judge`) makes one object per partition, so the state of an object is about one channel, one device,
one migration; it feeds `on` what the class asked for in `kinds` and calls `at_end` once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

from verifier.history.facts import Facts
from verifier.history.observation import Observation, Said, Seen


class Severity(StrEnum):
    """What the user loses when the invariant is broken."""

    CORRUPTS = "CORRUPTS"
    ABORTS = "ABORTS"
    STALLS = "STALLS"
    SLOWS = "SLOWS"


class Need(StrEnum):
    """What must have been seen for an invariant to *hold* (it can be violated without)."""

    MAIN = "the whole main channel"
    CHANNELS = "all multifd channels whole, of a migration that completed"
    RAM = "all multifd channels whole, of a source that ended its stream"
    RETURN_PATH = "the whole return path"
    COMPLETED = "a migration that completed"
    SOURCE = "the source's journal"
    TARGET = "the target's journal"
    ENDS = "what became of the VM at both ends"


class Source(NamedTuple):
    """Where the statement was read. symbol: function or struct."""

    project: str
    release: str
    file: str
    symbol: str

    def __str__(self) -> str:
        return f"{self.project} {self.release} {self.file}: {self.symbol}"


def qemu(file: str, symbol: str, release: str = "10.0") -> Source:
    """A place in QEMU."""
    return Source("QEMU", release, file, symbol)


def linux(file: str, symbol: str, release: str = "6.7") -> Source:
    """A place in Linux."""
    return Source("Linux", release, file, symbol)


@dataclass(frozen=True)
class Scope:
    """The partition. name: as the catalogue says it; key: of an observation, None when it is in none."""

    name: str
    key: Callable[[Any], Hashable]


def _lane(seen: Seen) -> Hashable:
    return seen.lane


def _device_on_channel(seen: Seen) -> Hashable:
    return seen.device, seen.lane


def _side_device(said: Said) -> Hashable:
    return said.role, said.line.device  # type: ignore[union-attr]


def _side_traced(said: Said) -> Hashable:
    return said.role, said.line.name  # type: ignore[union-attr]


def _side(said: Said) -> Hashable:
    return said.role


def _side_log(said: Said) -> Hashable:
    return said.role, said.where


def _channel_number(seen: Observation) -> Hashable:
    number = seen.lane.channel if type(seen) is Seen else seen.line.channel  # type: ignore[union-attr]
    return f"channel {number}"


def _any_device(seen: Observation) -> Hashable:
    return seen.device if type(seen) is Seen else seen.line.device  # type: ignore[union-attr]


MIGRATION = Scope("migration", lambda _: "migration")
FLOW = Scope("flow", _lane)
CHANNEL = Scope("channel", _lane)
DEVICE = Scope("device", _any_device)
DEVICE_ON_CHANNEL = Scope("device on one channel", _device_on_channel)
SIDE_DEVICE = Scope("device at one end", _side_device)
SIDE = Scope("one end", _side)
SIDE_LOG = Scope("one log of one end", _side_log)
SIDE_TRACED = Scope("device in one trace log", _side_traced)
CHANNEL_NUMBER = Scope("channel, in capture and logs", _channel_number)


@dataclass(frozen=True)
class Passport:
    """What an invariant says. id: family and number, never reused. statement: one sentence."""

    id: str
    statement: str
    severity: Severity
    source: Source
    scope: Scope
    needs: tuple[Need, ...] = ()


class Finding(NamedTuple):
    """A violation without its passport. witnesses: the least that shows it."""

    message: str
    witnesses: tuple[Observation, ...]


class Limits(NamedTuple):
    """How far an invariant is to be believed, from its docstring.

    sound: why a violation accuses nobody falsely, and on what that rests. misses: what breaks the statement
    unseen, and where it would show.
    """

    sound: str
    misses: str


_LIMITS = re.compile(r"Sound: (.+?)\s+Misses: (.+)", re.DOTALL)


def limits(invariant: type[Invariant[Any]]) -> Limits:
    """The two sentences. ValueError: the class does not say them."""
    found = _LIMITS.fullmatch((invariant.__dict__.get("__doc__") or "").strip())
    if found is None:
        raise ValueError(f"{invariant.__name__} does not say how far it is sound, and what it misses")
    return Limits(*(" ".join(part.split()) for part in found.groups()))


E = TypeVar("E")


class Invariant(Generic[E]):
    """One partition of one invariant. unknown: why this partition could not be judged, "" when it could.

    exercised: False when there was nothing in the input that the statement speaks of, so that it says as
    little about it as if it had not been asked. complete: whether all that the passport needs was there,
    which is known at the end.
    """

    passport: ClassVar[Passport]
    kinds: ClassVar[tuple[type, ...]]
    unknown: str = ""
    exercised: bool = True
    complete: bool = False

    def __init__(self, facts: Facts) -> None:
        self.facts = facts

    def on(self, seen: Any, event: E) -> Iterator[Finding]:
        """Weigh one observation; `event` is its frame, event or line."""
        raise NotImplementedError

    def at_end(self) -> Iterator[Finding]:
        """Weigh what can only be told when no more observations come."""
        return iter(())


def unmet(needs: Iterable[Need], facts: Facts) -> list[Need]:
    """Those that the facts do not meet."""
    return [need for need in needs if not _MET[need](facts)]


_MET: dict[Need, Callable[[Facts], bool]] = {
    Need.MAIN: lambda facts: facts.main_whole,
    Need.CHANNELS: lambda facts: facts.channels_whole,
    Need.RAM: lambda facts: facts.ram_whole,
    Need.RETURN_PATH: lambda facts: facts.whole(facts.return_path),
    Need.COMPLETED: lambda facts: bool(facts.completed),
    Need.SOURCE: lambda facts: "source" in facts.journals,
    Need.TARGET: lambda facts: "target" in facts.journals,
    Need.ENDS: lambda facts: None not in (facts.endings.of("source"), facts.endings.of("target")),
}
