# SPDX-License-Identifier: GPL-2.0-or-later
"""An endpoint's own capture: a copy of what its connections carry, for an observer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import xxhash

from mockdev.clock import Clock
from mockdev.runtime.pcap_writer import Elided, PcapngWriter
from mockdev.runtime.pcap_writer import Tap as FlowWriter
from mockdev.runtime.transports import Buffer, Connection

_ELIDED_BYTES_MIN = 256  # a shorter payload is kept: its digest would be longer than itself


class Tap:
    """The capture of one endpoint. mode: "full", "headers" (payloads as digests) or "none".

    complaint: "" or the sentence that says why the capture is not whole.
    """

    def __init__(self, path: Path, role: str, mode: str, clock: Clock) -> None:
        self._clock = clock
        self._writer = None if mode == "none" else PcapngWriter(path, [role])
        self._elide = mode == "headers"

    def watch(self, connection: Connection, *, accepted: bool) -> None:
        """Capture a connection from now on."""
        if self._writer is not None:
            now_ns = self._clock.now_ns()
            flow = self._writer.connection(connection.local, connection.peer, now_ns, accepted=accepted)
            connection.observer = FlowObserver(flow, self._clock, elide=self._elide)

    @property
    def complaint(self) -> str:
        """Why packets are missing, "" when none is."""
        return "" if self._writer is None else self._writer.complaint

    @property
    def dropped(self) -> int:
        """Packets that are missing."""
        return 0 if self._writer is None else self._writer.dropped

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            self._writer.close()


class FlowObserver:
    """Writes one connection. elide: long payloads are digested and left out."""

    def __init__(self, flow: FlowWriter, clock: Clock, *, elide: bool) -> None:
        self._flow = flow
        self._clock = clock
        self._elide = elide

    def sent(self, head: Sequence[Buffer], payload: Sequence[Buffer], time_ns: int) -> None:
        """See transports.Observer."""
        self._flow.sent(*self._parts(head, payload, time_ns))

    def received(self, head: Sequence[Buffer], payload: Sequence[Buffer]) -> None:
        """See transports.Observer."""
        self._flow.received(*self._parts(head, payload, self._clock.now_ns()))

    def closed(self, *, reset: bool) -> None:
        """See transports.Observer."""
        self._flow.close(self._clock.now_ns(), reset=reset)

    def _parts(
        self, head: Sequence[Buffer], payload: Sequence[Buffer], time_ns: int
    ) -> tuple[Sequence[Buffer], int, Elided | None]:
        size = sum(map(len, payload))
        if not self._elide or size < _ELIDED_BYTES_MIN:
            return [*head, *payload], time_ns, None
        digest = xxhash.xxh3_128()
        for part in payload:
            digest.update(part)
        return head, time_ns, Elided(size, "xxh3-128:" + digest.hexdigest())
