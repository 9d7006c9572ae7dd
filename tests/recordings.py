# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes capture files for the tests and the corpora out of recorded migrations.

    python -m tests.recordings FOLDER OUT.pcapng        raw bytes per connection, see `convert`
    python -m tests.recordings CAPTURE.pcapng OUT.pcapng   a capture again, with its payloads quietened

Quietened: uncompressed page data and device state are replaced by a pattern, byte for byte, so that the
file compresses well and says the same of the protocol. Headers, config states and sections stay.
An OUT that ends in .gz is compressed.
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

from mockdev.runtime.pcap_writer import PcapngWriter, Tap
from mockdev.wire.framer import multifd_channel
from mockdev.wire.frames import DeviceStateFrame, Payload, RamFrame, RamRecordItem, Syntax, VfioItem, Want
from mockdev.wire.mainstream import main_channel
from mockdev.wire.structs import COMPRESSION_MASK, VFIO_DEVICE_STATE_CONFIG, RamFlag
from verifier.capture.flows import CHANNEL_HEAD, MAIN_HEAD
from verifier.capture.pcapng import open_capture
from verifier.capture.reassembly import reassemble
from verifier.capture.stream import Flow

_TARGET = ("127.0.0.1", 4444)
_SOURCE_PORT = 50_000
_START_NS = 1_700_000_000_000_000_000
_STEP_NS = 1_000_000

Step = tuple[int, int, str, bytes]
"""Time in ns, connection, direction ("s2d" or "d2s"), bytes."""


def convert(folder: Path, out: Path, *, quiet: bool = False) -> None:
    """Write a recording as TCP in a pcapng file.

    The folder holds connN.s2d.bin and connN.d2s.bin (bytes of the N-th connection, source to target and
    back; each may end in .gz) with timeline.json (rows [seq, microseconds, connection, event, offset,
    length]), or a single stream.bin. Without a timeline the connections follow one another.
    """
    writer = PcapngWriter(out, ["recording"])
    taps: dict[int, Tap] = {}
    time_ns = _START_NS
    for step_ns, number, direction, data in _steps(folder, quiet=quiet):
        time_ns = _START_NS + step_ns
        if number not in taps:
            taps[number] = writer.connection(("127.0.0.1", _SOURCE_PORT + number), _TARGET, time_ns)
        _write(taps[number], direction, data, time_ns)
    for tap in taps.values():
        tap.close(time_ns + _STEP_NS)
    writer.close()


def repeat(capture: Path, out: Path) -> None:
    """Write a capture's streams again, quietened, at the times and between the ends they had."""
    ends: dict[int, Flow] = {}
    steps: list[Step] = []
    resets: set[int] = set()

    class Sink:
        def __init__(self, flow: Flow) -> None:
            self.flow = flow

        def data(self, start: int, stop: int, time_ns: int, /) -> None:
            direction = "s2d" if self.flow.initiator else "d2s"
            steps.append((time_ns, self.flow.connection, direction, source.data[start:stop]))

        def hole(self, size: int, reason: str, time_ns: int, note: str, /) -> None:
            raise ValueError(f"{reason} {size} {time_ns} {note}")

        def end(self, kind: str, _time_ns: int, /) -> None:
            if kind == "rst":
                resets.add(self.flow.connection)

    def factory(flow: Flow) -> Sink:
        if flow.initiator:
            ends[flow.connection] = flow
        return Sink(flow)

    with open_capture(capture) as source:
        reassemble(source, factory)
    writer = PcapngWriter(out, ["recording"])
    first, last = steps[0][0], steps[-1][0]
    taps = {n: writer.connection(flow.source, flow.destination, first) for n, flow in sorted(ends.items())}
    for time_ns, number, direction, data in _quietened(steps):
        _write(taps[number], direction, data, time_ns)
    for number, tap in taps.items():
        tap.close(last + _STEP_NS, reset=number in resets)
    writer.close()


def raw(folder: Path, name: str) -> bytes:
    """The content of a file or of its gzip; b"" when there is neither."""
    plain, packed = folder / name, folder / (name + ".gz")
    if plain.is_file():
        return plain.read_bytes()
    return gzip.decompress(packed.read_bytes()) if packed.is_file() else b""


def quieten(data: bytes) -> bytes:
    """A stream with its uncompressed payloads replaced by a pattern of the same length."""
    syntax: Syntax
    if data[:4] == MAIN_HEAD:
        syntax = main_channel()
    elif data[:4] == CHANNEL_HEAD:
        syntax = multifd_channel()
    else:
        return data
    out = bytearray(data)
    at = 0
    frame: object = None
    step = next(syntax)
    try:
        while True:
            if isinstance(step, Want):
                if step.peek:
                    step = syntax.send(data[at:])
                    continue
                if at + step.size > len(data):
                    return bytes(out)  # cut, or its end
                at += step.size
                step = syntax.send(data[at - step.size : at])
            elif isinstance(step, Payload):
                size = min(step.size, len(data) - at)
                if _loud(frame):
                    out[at : at + size] = bytes(i & 0x3F for i in range(64)) * (size // 64) + bytes(size % 64)
                at += step.size
                step = next(syntax)
            else:
                frame = step
                step = next(syntax)
    except StopIteration:
        return bytes(out)


def _loud(frame: object) -> bool:
    """Whether a frame's payload says nothing of the protocol."""
    if isinstance(frame, DeviceStateFrame):
        return frame.vfio is not None and not frame.vfio.flags & VFIO_DEVICE_STATE_CONFIG
    if isinstance(frame, RamFrame):
        return not frame.head.flags & COMPRESSION_MASK
    if isinstance(frame, RamRecordItem):
        return bool(frame.flags & RamFlag.PAGE)
    return isinstance(frame, VfioItem)


def _write(tap: Tap, direction: str, data: bytes, time_ns: int) -> None:
    if data:
        (tap.sent if direction == "s2d" else tap.received)([data], time_ns)


def _steps(folder: Path, *, quiet: bool) -> list[Step]:
    """What a recording holds, in the order of its timeline; times from 0."""
    stream = raw(folder, "stream.bin")
    timeline = folder / "timeline.json"
    if stream:
        steps = [(0, 0, "s2d", stream)]
    elif timeline.is_file():
        files: dict[tuple[int, str], bytes] = {}
        steps = []
        for _, micros, number, event, offset, length in json.loads(timeline.read_text()):
            if event == "accept":
                steps.append((micros * 1000, number, "s2d", b""))
            if event not in ("s2d", "d2s"):
                continue
            if (number, event) not in files:
                files[number, event] = raw(folder, f"conn{number}.{event}.bin")
            steps.append((micros * 1000, number, event, files[number, event][offset : offset + length]))
    else:
        steps = _untimed(folder)
    return _quietened(steps) if quiet else steps


def _untimed(folder: Path) -> list[Step]:
    numbers = sorted({int(p.name[4:].split(".")[0]) for p in folder.glob("conn*.bin*")})
    return [
        ((2 * number + back) * _STEP_NS, number, direction, raw(folder, f"conn{number}.{direction}.bin"))
        for number in numbers
        for back, direction in enumerate(("s2d", "d2s"))
    ]


def _quietened(steps: list[Step]) -> list[Step]:
    """The same steps with quiet bytes."""
    whole: dict[tuple[int, str], bytes] = {}
    for _, number, direction, data in steps:
        whole[number, direction] = whole.get((number, direction), b"") + data
    quiet = {key: quieten(data) for key, data in whole.items()}
    out = []
    at = dict.fromkeys(quiet, 0)
    for time_ns, number, direction, data in steps:
        key = (number, direction)
        out.append((time_ns, number, direction, quiet[key][at[key] : at[key] + len(data)]))
        at[key] += len(data)
    return out


def main(source: Path, out: Path) -> None:
    """As the module says."""
    plain = out.with_suffix("") if out.suffix == ".gz" else out
    if source.is_dir():
        convert(source, plain, quiet=plain is not out)
    else:
        repeat(source, plain)
    if plain is not out:
        out.write_bytes(gzip.compress(plain.read_bytes(), 9, mtime=0))
        plain.unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
