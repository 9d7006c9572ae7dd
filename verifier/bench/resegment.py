# SPDX-License-Identifier: GPL-2.0-or-later
"""The same streams in segments of another size: what the speed of the judge depends on most."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mockdev.runtime.pcap_writer import PcapngWriter, Tap
from verifier.capture.pcapng import open_capture
from verifier.capture.reassembly import Flow, reassemble


class _Copy:
    """A sink that writes what it gets to a connection of the new capture."""

    def __init__(self, data: Any, tap: Tap, *, initiator: bool) -> None:
        self._data = memoryview(data)
        self._tap = tap
        self._write = tap.sent if initiator else tap.received

    def data(self, start: int, stop: int, time_ns: int) -> None:
        self._write([self._data[start:stop]], time_ns)

    def hole(self, size: int, reason: str, time_ns: int, note: str) -> None:  # noqa: ARG002
        raise ValueError(f"a capture with holes ({reason}, {size} bytes) cannot be written again")

    def end(self, kind: str, time_ns: int) -> None:  # noqa: ARG002
        self._data.release()
        self._tap.close(time_ns)


def resegment(path: Path, out: Path, segment_bytes: int) -> None:
    """Write the streams of the capture `path` to `out` in segments of at most `segment_bytes`."""
    writer = PcapngWriter(out, ["resegmented"], segment_bytes=segment_bytes)
    taps: dict[int, Tap] = {}
    with open_capture(path) as capture:

        def sink(flow: Flow) -> _Copy:
            if flow.connection not in taps:
                taps[flow.connection] = writer.connection(flow.source, flow.destination, 0)
            return _Copy(capture.data, taps[flow.connection], initiator=bool(flow.initiator))

        reassemble(capture, sink)
    writer.close()
    if writer.complaint:
        raise OSError(writer.complaint)
