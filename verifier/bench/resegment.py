# SPDX-License-Identifier: GPL-2.0-or-later
"""The same streams in segments of another size, with checksums or without: what the judge's speed depends on
most.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any

from mockdev.runtime.pcap_writer import PcapngWriter, Tap
from mockdev.wire.seal import SEAL_BYTES
from verifier.capture.checksums import FIELD_AT, MODULUS, pseudo, summed
from verifier.capture.packets import segment
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


def resegment(path: Path, out: Path, segment_bytes: int, *, offloaded: bool) -> None:
    """Write the streams of the capture `path` to `out` in segments of at most `segment_bytes`, as tcpdump
    would have recorded them: without a seal, and with whole checksums or, `offloaded`, those of loopback.
    """
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
    with out.open("r+b") as file:
        file.truncate(out.stat().st_size - SEAL_BYTES)
        with mmap.mmap(file.fileno(), 0) as data:
            _fill(out, data, offloaded)


def _fill(path: Path, data: mmap.mmap, offloaded: bool) -> None:
    """Write the checksums of all segments; `offloaded`, of the pseudo-header alone."""
    with open_capture(path) as capture:
        for start, stop, original, _, interface, _ in capture.packets():
            found = segment(data, start, stop, original, capture.interfaces[interface].link_type)
            assert not isinstance(found, str), "nothing else was written"
            key, end, tcp = found[0], found[5], found[8]
            total = pseudo(key) + end - tcp
            if not offloaded:
                total = -(total + (summed(data, tcp, end) << 8))
            struct.pack_into(">H", data, tcp + FIELD_AT, total % MODULUS or MODULUS)
