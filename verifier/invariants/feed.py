# SPDX-License-Identifier: GPL-2.0-or-later
"""Judges a migration that is in no file, while it happens: for simulators, and for tests of many variants.

    feed = Feed(on_seen=print)
    main = feed.connection(Address("10.0.0.1", 40000), Address("10.0.0.2", 4444))
    main.sent(header, time_ns)                               # by who opened it: the source
    feed.say(Said("target", line, "target.jsonl", offset, size))
    main.received(pong, time_ns)                             # what came back
    main.close(time_ns)
    report = feed.report()

It is what `check` does with a capture and the journals beside it, from the decoders on: the same bytes and
lines in the same order get the same report, but for what it says of files. Everything comes in the order of
time, as the capture's clock and the journals' would have it. A finished feed leaves no more for the garbage
collector than some small objects for each connection, so who judges thousands may switch it off meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from verifier.capture.packets import Address
from verifier.capture.stream import ENDED_CUT, ENDED_FIN, Flow
from verifier.history.decode import FlowDecoder
from verifier.history.facts import Facts
from verifier.history.history import History, Observer
from verifier.history.observation import Observation, Said, Seen
from verifier.history.record import RunRecord
from verifier.invariants import INVARIANTS
from verifier.invariants.judge import Accompanied, Judge
from verifier.invariants.passport import Invariant
from verifier.invariants.reporting import Found, report_of
from verifier.verdict import Report


class Feed:
    """One history being judged.

    invariants: by which. on_seen: called with each frame and event of a flow, after the invariants weighed
    it; no bytes may be fed before it has returned. file: what witnesses name as the capture.
    record: what a run.json would say.
    """

    def __init__(
        self,
        invariants: Iterable[type[Invariant[Any]]] = INVARIANTS,
        *,
        on_seen: Callable[[Seen], None] | None = None,
        file: str = "feed",
        record: RunRecord | None = None,
    ) -> None:
        judges: dict[int, Judge] = {}

        def listen(seen: Observation) -> None:
            if on_seen is not None and type(seen) is Seen:
                on_seen(seen)

        def make(facts: Facts) -> Observer:
            judge = judges[facts.number] = Judge(facts, file, invariants)
            return judge if on_seen is None else Accompanied(judge, listen)

        self._judges = judges
        self._bytes = bytearray()
        self._history = History(make, record=record)
        self._history.open(self._bytes)
        self._connections: list[Connection] = []

    def connection(self, source: Address, target: Address) -> Connection:
        """A connection that `source` opened."""
        connection = Connection(self._history, self._bytes, len(self._connections), source, target)
        self._connections.append(connection)
        return connection

    def say(self, said: Said) -> None:
        """A line of a journal or a trace log."""
        self._history.tell(said)

    def report(self) -> Report:
        """The verdict on all that came; connections that were not closed break off. Nothing can follow."""
        for connection in self._connections:
            connection.close(connection.last_ns, ENDED_CUT)
        self._history.end_capture()
        if self._history.record is not None:
            for said in self._history.record.ends:
                self._history.tell(said)
        for judge in self._judges.values():
            judge.at_end()
        report = report_of(self._history, self._judges, Found())
        self._history.close()
        return report


class Connection:
    """A TCP connection of a feed. last_ns: when something last passed."""

    __slots__ = ("_back", "_bytes", "_closed", "_forth", "last_ns")

    def __init__(
        self, history: History, data: bytearray, number: int, source: Address, target: Address
    ) -> None:
        self.last_ns = 0
        self._bytes = data
        self._forth = history.sink(Flow(0, number, source, target, True, False))
        self._back = history.sink(Flow(0, number, target, source, False, False))
        self._closed = False

    def sent(self, data: bytes | bytearray | memoryview, time_ns: int) -> None:
        """The next bytes from who opened it."""
        self._pass(self._forth, data, time_ns)

    def received(self, data: bytes | bytearray | memoryview, time_ns: int) -> None:
        """The next bytes in the other direction."""
        self._pass(self._back, data, time_ns)

    def close(self, time_ns: int, kind: str = ENDED_FIN) -> None:
        """Both directions end. kind: see `Sink.end`. Only the first call counts."""
        if not self._closed:
            self._closed = True
            self._forth.end(kind, time_ns)
            self._back.end(kind, time_ns)

    def _pass(self, decoder: FlowDecoder, data: bytes | bytearray | memoryview, time_ns: int) -> None:
        start = len(self._bytes)
        self._bytes += data
        self.last_ns = time_ns
        decoder.data(start, len(self._bytes), time_ns)
