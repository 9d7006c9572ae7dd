# SPDX-License-Identifier: GPL-2.0-or-later
"""Drives a capture, and the same run's journals and logs, through decoders to who judges each migration."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import Protocol, cast

from verifier.capture.flows import Directory, Lane
from verifier.capture.pcapng import Capture
from verifier.capture.reassembly import Accounting, reassemble
from verifier.capture.stream import Flow
from verifier.history.decode import FlowDecoder
from verifier.history.facts import Facts
from verifier.history.image import Image, Room
from verifier.history.merge import Lines
from verifier.history.observation import FlowEnd, Observation, Said, Seen
from verifier.history.record import RunRecord

Data = mmap.mmap | bytes | bytearray


class Observer(Protocol):
    """Takes the observations of one migration, after its facts did."""

    def on(self, seen: Observation, /) -> None:
        """One observation."""


class Case:
    """One migration and who watches it."""

    def __init__(self, facts: Facts, observer: Observer) -> None:
        self.facts = facts
        self.observer = observer

    def take(self, seen: Observation) -> None:
        """First the facts, then the observer."""
        self.facts.take(seen)
        self.observer.on(seen)


class History:
    """Everything that one input holds. make(facts): who watches a migration that was found.

    one_target: see `flows.Directory`. record: of the run, whose migration is that of number 0. digests:
    whether images will be asked for theirs.
    decoders: one per flow, in order of first sight. cases: the migrations by number.
    """

    def __init__(
        self,
        make: Callable[[Facts], Observer],
        lines: Lines | None = None,
        *,
        one_target: bool = False,
        record: RunRecord | None = None,
        digests: bool = True,
    ) -> None:
        self.directory = Directory(one_target=one_target)
        self.decoders: list[FlowDecoder] = []
        self.cases: dict[int, Case] = {}
        self.accounting: Accounting | None = None
        self._make = make
        self._lines = lines or Lines()
        self.record = record
        self._digests = digests
        self._room = Room()
        self._homeless: list[Seen] = []
        self._data: mmap.mmap | bytes = b""
        self._view = memoryview(b"")

    def read_capture(self, capture: Capture) -> None:
        """Read a whole capture. What a digest rests on must be asked for before the capture is closed."""
        self.open(capture.data)
        self.accounting = reassemble(capture, self.sink)
        self.end_capture()

    def open(self, data: Data) -> None:
        """The bytes that the sinks' ranges will be of. A bytearray may grow meanwhile."""
        if isinstance(data, bytearray):  # which cannot grow while there is a view of it
            self._data, self._view = cast(bytes, data), cast(memoryview, data)
        else:
            self._data, self._view = data, memoryview(data)

    def sink(self, flow: Flow) -> FlowDecoder:
        """Where a flow's bytes go."""
        lane = self.directory.meet(flow)
        decoder = FlowDecoder(lane, self.directory, self._data, self._view, self._observe, self._image)
        self.decoders.append(decoder)
        return decoder

    def end_capture(self) -> None:
        """All flows have ended."""
        self.directory.close()
        for seen in self._homeless:
            if seen.lane.migration is not None:
                self._case(seen.lane.migration).take(seen)

    def tell(self, said: Said) -> None:
        """A line that was said now, in a run that is watched as it happens."""
        self._case(0).take(said)

    def finish(self) -> None:
        """Read what lines are left."""
        for said in self._lines.rest():
            self._case(0).take(said)

    def close(self) -> None:
        """Give the memory of the capture back, and what refers to this in a circle."""
        if isinstance(self._view, memoryview):
            self._view.release()
        self.decoders.clear()
        self.cases.clear()

    def _observe(self, seen: Seen) -> None:
        lane = seen.lane
        if lane.migration is None:
            if type(seen.event) is FlowEnd and lane.foreign:
                self._homeless.append(seen)
            return
        if seen.time_ns >= self._lines.next_ns:
            for said in self._lines.until(seen.time_ns):
                self._case(0).take(said)
        case = self.cases.get(lane.migration) or self._case(lane.migration)
        if lane not in case.facts.lanes:
            case.facts.join(lane)
        case.facts.take(seen)
        case.observer.on(seen)

    def _case(self, number: int) -> Case:
        case = self.cases.get(number)
        if case is None:
            facts = Facts(number)
            facts.record = None if number else self.record
            case = self.cases[number] = Case(facts, self._make(facts))
        return case

    def _image(self, lane: Lane, device: str) -> Image:
        assert lane.migration is not None, "state comes only on flows of a migration"
        facts = self._case(lane.migration).facts
        return facts.image(device, lambda: Image(self._view, self._room, digested=self._digests))
