# SPDX-License-Identifier: GPL-2.0-or-later
"""Who watches a simulated migration: the production decoders, facts and judge, fed as things happen.

What is written to a link is decoded at once, as the endpoints' own tap would see it; what the endpoints
journal comes between. `keep` also remembers all of it, for an evidence folder.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import xxhash

from mockdev.journal import AnyLine, Journal
from mockdev.runtime.pcap_writer import PcapngWriter, Tap
from verifier.capture.flows import Lane
from verifier.capture.packets import Address
from verifier.capture.stream import Flow
from verifier.history.decode import FlowDecoder
from verifier.history.facts import Facts
from verifier.history.history import History
from verifier.history.observation import Observation, Said, Seen
from verifier.history.record import NAME, record_of
from verifier.invariants import INVARIANTS
from verifier.invariants.judge import Accompanied, Judge
from verifier.invariants.passport import Invariant
from verifier.invariants.reporting import Found, report_of
from verifier.simulation.chance import Chance
from verifier.simulation.world import START_NS, World
from verifier.verdict import Report

_ARENA_BYTES = 32 << 20  # of which only what is written takes memory
TARGET = Address("127.0.0.1", 4444)
FILE = "simulation"


@dataclass(frozen=True)
class Evidence:
    """What the judge is given besides the capture. journals: of which ends; record: the run's record."""

    journals: frozenset[str] = frozenset(("source", "target"))
    record: bool = True


ALL = Evidence()


class Watch:
    """One migration's observers. chance: for the links. evidence: what the judge hears of besides the bytes.
    keep: remember everything for `write_folder`.
    """

    def __init__(
        self,
        world: World,
        chance: Chance,
        *,
        invariants: Sequence[type[Invariant[Any]]] = INVARIANTS,
        evidence: Evidence = ALL,
        keep: bool = False,
    ) -> None:
        self.world = world
        self.chance = chance
        self._arena = mmap.mmap(-1, _ARENA_BYTES)
        self._at = 0
        self._judges: dict[int, Judge] = {}
        self._invariants = invariants
        self._evidence = evidence
        self._history = History(self._make)
        self._history.open(self._arena)
        self._sinks: dict[Lane, FlowDecoder] = {}
        self._listeners: dict[Lane, Callable[[Seen], None]] = {}
        self._keep = keep
        self._passed: list[tuple[int, Lane, bytes | str]] = []  # what was written, and how it ended
        self._lines: dict[str, list[AnyLine]] = {"source": [], "target": []}
        self._connections = 0

    def connection(self) -> tuple[Lane, Lane]:
        """Both directions of one more connection from the source to the target."""
        number = self._connections
        self._connections += 1
        source = Address("127.0.0.1", 40000 + number)
        lanes = []
        for flow in (
            Flow(0, number, source, TARGET, True, False),
            Flow(0, number, TARGET, source, False, False),
        ):
            sink = self._history.sink(flow)
            self._sinks[sink.lane] = sink
            lanes.append(sink.lane)
        return lanes[0], lanes[1]

    def listen(self, lane: Lane, hear: Callable[[Seen], None]) -> None:
        """Who reads this direction, and so wants to know what is in it."""
        self._listeners[lane] = hear

    @property
    def frames(self) -> int:
        """How many frames have passed, on all connections."""
        return sum(sink.frames for sink in self._sinks.values())

    # -- what happens --------------------------------------------------------------------------------

    def wrote(self, lane: Lane, pieces: Sequence[bytes | memoryview]) -> None:
        """Bytes were written to a direction."""
        start = at = self._at
        arena = self._arena
        for piece in pieces:
            end = at + len(piece)
            arena[at:end] = piece
            at = end
        self._at = at
        lane.flow.delivered_bytes += at - start
        if self._keep:
            self._passed.append((self.world.now_ns, lane, arena[start:at]))
        self._sinks[lane].data(start, at, self.world.now_ns)

    def closed(self, lane: Lane, kind: str) -> None:
        """A direction has ended: "fin" or "rst"."""
        if self._keep:
            self._passed.append((self.world.now_ns, lane, kind))
        self._sinks[lane].end(kind, self.world.now_ns)

    def say(self, role: str, line: AnyLine) -> None:
        """An endpoint writes a line of its journal."""
        if self._keep:
            self._lines[role].append(line)
        if role in self._evidence.journals:
            self._history.tell(Said(role, line, role, 0, 0))

    # -- what it came to -----------------------------------------------------------------------------

    def report(self, record: dict[str, Any]) -> Report:
        """Nothing more happens. record: the run's, as run.json has it."""
        run = record_of(record, FILE)
        for said in run.ends if self._evidence.record else ():
            self._history.tell(said)
        self._history.end_capture()
        for number, judge in self._judges.items():
            judge.facts.record = run if self._evidence.record and not number else None
            judge.at_end()
        report = report_of(self._history, self._judges, Found())
        report.seed = run.seed
        return report

    def close(self) -> None:
        """Give the memory back: what refers to this in a circle, too, or the collector would have to."""
        self._history.close()
        self._arena.close()
        self._judges.clear()
        self._sinks.clear()
        self._listeners.clear()

    def digest(self) -> str:
        """Of all that was written and said, and when; only if it was kept."""
        digest = xxhash.xxh3_128()
        for time_ns, lane, data in self._passed:
            digest.update(f"{time_ns} {lane}\n".encode())
            digest.update(data if isinstance(data, bytes) else data.encode())
        for role, lines in self._lines.items():
            digest.update(role.encode())
            digest.update(msgspec.json.encode(lines))
        return f"xxh3-128:{digest.hexdigest()}"

    def write_folder(self, folder: Path, record: dict[str, Any]) -> None:
        """All of it as an evidence folder, if it was kept: `vfmig check` says the same of it."""
        folder.mkdir(parents=True, exist_ok=True)
        out = PcapngWriter(folder / "capture.pcapng", [FILE])
        taps: dict[int, Tap] = {}
        for time_ns, lane, data in self._passed:
            flow = lane.flow
            tap = taps.get(flow.connection)
            if tap is None:
                ends = (flow.source, flow.destination) if flow.initiator else (flow.destination, flow.source)
                local, peer = ((end.host, end.port) for end in ends)
                tap = taps[flow.connection] = out.connection(local, peer, START_NS)
            if isinstance(data, bytes):
                (tap.sent if flow.initiator else tap.received)([data], time_ns)
            elif data == "rst":
                tap.close(time_ns, reset=True)
            else:
                tap.finish(time_ns, local=flow.initiator is not False)
        out.close()
        for role, lines in self._lines.items():
            journal = Journal(folder / f"{role}.jsonl")
            for line in lines:
                journal.write(line)
            journal.close()
        (folder / NAME).write_bytes(msgspec.json.encode(record))

    def _make(self, facts: Facts) -> Accompanied:
        judge = self._judges[facts.number] = Judge(facts, FILE, self._invariants)
        return Accompanied(judge, self._pass_on)

    def _pass_on(self, seen: Observation) -> None:
        """Tell who reads a link what is on it."""
        if type(seen) is Seen:
            hear = self._listeners.get(seen.lane)
            if hear is not None:
                hear(seen)
