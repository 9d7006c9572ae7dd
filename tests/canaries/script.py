# SPDX-License-Identifier: GPL-2.0-or-later
"""A whole migration as labelled pieces of bytes and journal lines, to be edited and then judged.

`good()` breaks nothing. A canary takes it and changes a piece, swaps two, drops or adds one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import xxhash

from mockdev.journal import (
    AnyLine,
    Begin,
    Connected,
    End,
    Image,
    Journal,
    Loaded,
    Mark,
    Received,
    Saved,
    Sent,
    State,
    Verified,
)
from mockdev.runtime.pcap_writer import PcapngWriter, Tap
from mockdev.vfio.mlx5_stream import image_header, stop_copy_size_record
from mockdev.wire import writer
from mockdev.wire.structs import Command, RamFlag, ReturnPath, Tag, VfioTag

UUID = bytes(range(1, 17))
UUID_TEXT = "01020304-0506-0708-090a-0b0c0d0e0f10"
MACHINE = "pc-q35-10.0"
PAGE = 4096
RAM_PAGES = 6
RAM_BYTES = RAM_PAGES * PAGE
DEVICES = ("0000:00:02.0/vfio", "0000:00:03.0/vfio")
BUFFERS = (3, 2)  # multifd data buffers of each device
PRECOPY = 48  # bytes of the first device before the stop
BUFFER = 40
CONFIG = bytes(range(200, 232))
CONFIGURED: dict[str, Any] = {
    "peer": "mock",
    "channels": 2,
    "transfer": "multifd",
    "ram_bytes": RAM_BYTES,
    "zero_pages": "multifd",
    "idle_timeout_s": 30.0,
}
START_NS = 1_700_000_000_000_000_000
STEP_NS = 1_000_000
MAIN, BACK = "main", "back"

S2D, D2S = True, False


@dataclass
class Piece:
    """Bytes of one write. where: "main", "back" (the return path) or a channel's connection ("0", "1")."""

    label: str
    where: str
    data: bytes
    time_ns: int = 0


@dataclass
class Script:
    """A migration. ends: how each connection is closed ("fin", "rst", "cut"), by `where`; default fin.

    closed_ns: when, where not after everything else.
    """

    pieces: list[Piece] = field(default_factory=list)
    lines: dict[str, list[AnyLine]] = field(default_factory=dict)
    logs: dict[str, list[str]] = field(default_factory=dict)  # of QEMU's trace events
    events: dict[str, list[str]] = field(default_factory=dict)  # of QMP
    record: dict[str, Any] = field(default_factory=dict)  # run.json
    ends: dict[str, str] = field(default_factory=dict)
    closed_ns: dict[str, int] = field(default_factory=dict)
    port: int = 4444
    now_ns: int = START_NS

    def add(self, label: str, where: str, *data: bytes) -> None:
        """One more piece, a millisecond after the last."""
        self.now_ns += STEP_NS
        self.pieces.append(Piece(label, where, b"".join(data), self.now_ns))

    def say(self, role: str, kind: Callable[..., AnyLine], /, **fields: Any) -> None:
        """One more journal line."""
        self.now_ns += STEP_NS
        self.lines.setdefault(role, []).append(kind(t=self.now_ns, **fields))

    # --- edits --------------------------------------------------------------------------------------

    def find(self, label: str) -> Piece:
        """The piece of that label."""
        return next(piece for piece in self.pieces if piece.label == label)

    def drop(self, label: str) -> None:
        """Leave a piece out."""
        self.pieces.remove(self.find(label))

    def swap(self, left: str, right: str) -> None:
        """Exchange the contents of two pieces, which stay in their places."""
        one, other = self.find(left), self.find(right)
        one.data, other.data = other.data, one.data

    def after(self, label: str, where: str, *data: bytes) -> None:
        """A piece right after another."""
        piece = self.find(label)
        self.pieces.insert(self.pieces.index(piece) + 1, Piece("new", where, b"".join(data), piece.time_ns))

    def patch(self, label: str, offset: int, data: bytes) -> None:
        """Overwrite bytes of a piece; a negative offset counts from its end."""
        piece = self.find(label)
        at = offset if offset >= 0 else len(piece.data) + offset
        piece.data = piece.data[:at] + data + piece.data[at + len(data) :]

    def replace(self, label: str, old: bytes, new: bytes) -> None:
        """Replace the first occurrence of `old` in a piece."""
        piece = self.find(label)
        assert old in piece.data, f"{old!r} is not in {label}"
        piece.data = piece.data.replace(old, new, 1)

    def edit(
        self, role: str, kind: type, *, where: Mapping[str, object] | None = None, **changes: Any
    ) -> None:
        """Change fields of the first journal line of that kind whose fields are as in `where`."""
        lines = self.lines[role]
        index = next(
            i
            for i, line in enumerate(lines)
            if isinstance(line, kind) and all(getattr(line, k) == v for k, v in (where or {}).items())
        )
        lines[index] = msgspec.structs.replace(lines[index], **changes)

    def streams(self) -> Iterable[str]:
        """The connections, by `where`, in the order of their first piece; the main one first."""
        return dict.fromkeys([MAIN, *(p.where for p in self.pieces if p.where != BACK)])

    # --- writing ------------------------------------------------------------------------------------

    def write_capture(self, path: Path) -> None:
        """As a pcapng file."""
        out = PcapngWriter(path, ["script"])
        self.write_to(out)
        out.close()

    def write_to(self, out: PcapngWriter) -> None:
        """As connections of a capture that is being written."""
        taps: dict[str, Tap] = {}
        for number, where in enumerate(self.streams()):
            ends = ("127.0.0.1", 40000 + number), ("127.0.0.1", self.port)
            taps[where] = out.connection(*ends, START_NS)
        for piece in self.pieces:
            if piece.where == BACK:
                taps[MAIN].received([piece.data], piece.time_ns)
            elif piece.where.startswith("-"):  # against the direction of a channel
                taps[piece.where[1:]].received([piece.data], piece.time_ns)
            else:
                taps[piece.where].sent([piece.data], piece.time_ns)
        for where, tap in taps.items():
            kind = self.ends.get(where, "fin")
            if kind != "cut":
                tap.close(self.closed_ns.get(where, self.now_ns + STEP_NS), reset=kind == "rst")

    def write_folder(self, folder: Path) -> None:
        """As an evidence folder: the capture, if there are pieces, the journals, logs and record."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.pieces:
            self.write_capture(folder / "capture.pcapng")
        for role, lines in self.lines.items():
            journal = Journal(folder / f"{role}.jsonl")
            for line in lines:
                journal.write(line)
            journal.close()
        for name, logs in (("log", self.logs), ("qmp.jsonl", self.events)):
            for role, log in logs.items():
                (folder / f"{role}.{name}").write_text("".join(f"{line}\n" for line in log))
        if self.record:
            (folder / "run.json").write_bytes(msgspec.json.encode(self.record))


# --- the good migration ----------------------------------------------------------------------------


def _content(size: int) -> bytes:
    """Firmware data."""
    return bytes((5 * i + 1) & 0xFF for i in range(size))


def records() -> bytes:
    """The first device's state, as mlx5's. After the stop, buffers end elsewhere than records do."""
    sizes = 8, 50, 38
    return stop_copy_size_record(4096) + b"".join(image_header(size) + _content(size) for size in sizes)


def buffer(device: int, idx: int) -> bytes:
    """The content of a data buffer."""
    if device == 0:
        return records()[PRECOPY + idx * BUFFER :][:BUFFER]
    return bytes((17 * device + 31 * idx + 7 * i) & 0xFF for i in range(BUFFER))


def precopy() -> bytes:
    """What the first device sends before the stop."""
    return records()[:PRECOPY]


def config_payload() -> bytes:
    """A config buffer, the same for both devices."""
    return writer.vfio_tag(VfioTag.DEV_CONFIG_STATE) + CONFIG + writer.vfio_tag(VfioTag.END_OF_STATE)


def packet(device: int, idx: int, data: bytes, *, config: bool = False) -> bytes:
    """A whole device-state packet."""
    return writer.device_state_packet(DEVICES[device], 0, idx, len(data), config=config) + data


def image(device: int) -> bytes:
    """All of a device's state in order."""
    first = precopy() if device == 0 else b""
    return first + b"".join(buffer(device, idx) for idx in range(BUFFERS[device]))


def _section(tag: Tag, number: int, *payload: bytes, name: str = "", version: int = 0) -> bytes:
    return (
        writer.section_head(tag, number, name, 0, version) + b"".join(payload) + writer.section_footer(number)
    )


def pages(*numbers: int) -> bytes:
    """The data of those pages."""
    return b"".join(bytes([0x40 + number]) * PAGE for number in numbers)


def good(*, journals: bool = True) -> Script:
    """Two devices over two channels, the first with PRE_COPY, return path open, six pages of RAM."""
    s = Script()
    if journals:
        for role in ("source", "target"):
            s.say(role, Begin, role=role, uuid=UUID_TEXT, queue_cap=1000, config=dict(CONFIGURED))
            for name in ("main", "0", "1"):
                s.say(role, Connected, channel=name, local="", peer="")
    end = writer.vfio_tag(VfioTag.END_OF_STATE)
    eos, flush = writer.ram_mark(RamFlag.EOS), writer.ram_mark(RamFlag.MULTIFD_FLUSH)
    s.add("header", MAIN, writer.stream_header())
    s.add("configuration", MAIN, writer.configuration(MACHINE))
    s.add("open", MAIN, writer.command(Command.OPEN_RETURN_PATH))
    s.add("ping", MAIN, writer.ping(1))
    s.add("pong", BACK, writer.pong(b"\0\0\0\1"))
    for channel in (0, 1):
        s.add(f"init{channel}", str(channel), writer.init_packet(channel, UUID))
        s.add(f"sync{channel}.0", str(channel), writer.sync_packet(channel))
    blocks = writer.ram_blocks([("pc.ram", RAM_BYTES)])
    s.add("ram.start", MAIN, _section(Tag.SECTION_START, 2, blocks, flush, eos, name="ram", version=4))
    for device, name in enumerate(DEVICES):
        if journals and device == 0:
            s.say("source", State, device=name, old="RUNNING", new="PRE_COPY")
        setup = writer.vfio_tag(VfioTag.DEV_SETUP_STATE)
        s.add(
            f"vf{device}.start",
            MAIN,
            _section(Tag.SECTION_START, 3 + device, setup, end, name=name, version=1),
        )
        if journals:
            s.say("target", State, device=name, old="RUNNING", new="RUNNING_P2P")
            s.say("target", State, device=name, old="RUNNING_P2P", new="STOP")
            s.say("target", State, device=name, old="STOP", new="RESUMING")
    s.add("ram0", "0", writer.ram_packet(2, "pc.ram", [0, PAGE], [2 * PAGE]), pages(0, 1))
    s.add("ram1", "1", writer.ram_packet(3, "pc.ram", [3 * PAGE], [4 * PAGE, 5 * PAGE]), pages(3))
    for channel in (0, 1):
        s.add(f"sync{channel}.1", str(channel), writer.sync_packet(4 + channel))
    s.add("ram.part", MAIN, _section(Tag.SECTION_PART, 2, flush, eos))
    data = precopy()
    if journals:
        s.say("source", Saved, device=DEVICES[0], idx=-1, size=PRECOPY)
        s.say("source", Sent, device=DEVICES[0], idx=-1, size=PRECOPY, channel="main")
    s.add("vf0.part", MAIN, _section(Tag.SECTION_PART, 3, writer.vfio_data(len(data)), data, end))
    if journals:
        s.say(
            "target", Received, device=DEVICES[0], idx=-1, size=PRECOPY, channel="main", queued_bytes=PRECOPY
        )
        s.say("target", Loaded, device=DEVICES[0], idx=-1, size=PRECOPY, queued_bytes=0)
    sent = writer.vfio_tag(VfioTag.DEV_INIT_DATA_SENT)
    s.add("vf0.sent", MAIN, _section(Tag.SECTION_PART, 3, sent))
    s.add("ack", BACK, writer.return_path_message(ReturnPath.SWITCHOVER_ACK))
    if journals:
        s.say("source", Mark, name="switchover-ack")
        s.say("source", Mark, name="stop")
        s.say("source", State, device=DEVICES[0], old="PRE_COPY", new="PRE_COPY_P2P")
        s.say("source", State, device=DEVICES[1], old="RUNNING", new="RUNNING_P2P")
        s.say("source", State, device=DEVICES[0], old="PRE_COPY_P2P", new="STOP_COPY")
        s.say("source", State, device=DEVICES[1], old="RUNNING_P2P", new="STOP")
        s.say("source", State, device=DEVICES[1], old="STOP", new="STOP_COPY")
        s.say("source", Mark, name="switchover-start")
    s.add("switchover", MAIN, writer.command(Command.SWITCHOVER_START))
    if journals:
        s.say("target", Mark, name="switchover-start")
    _device_buffers(s, journals)
    s.add("ram2", "0", writer.ram_packet(6, "pc.ram", [PAGE], []), pages(1))
    for channel in (0, 1):
        s.add(f"sync{channel}.2", str(channel), writer.sync_packet(7 + channel))
    s.add("ram.end", MAIN, _section(Tag.SECTION_END, 2, flush, eos))
    for device in (0, 1):
        s.add(f"vf{device}.end", MAIN, _section(Tag.SECTION_END, 3 + device, end))
    for device, name in enumerate(DEVICES):
        s.add(f"vf{device}.full", MAIN, _section(Tag.SECTION_FULL, 3 + device, end, name=name, version=1))
    state = writer.globalstate("running")
    s.add("globalstate", MAIN, _section(Tag.SECTION_FULL, 5, state, name="globalstate", version=1))
    described = [writer.opaque_description(name, 0, 8) for name in DEVICES]
    s.add("eof", MAIN, writer.end_of_stream([*described, writer.globalstate_description()]))
    _farewell(s, journals)
    return s


def _device_buffers(s: Script, journals: bool) -> None:
    for device, count in enumerate(BUFFERS):
        for idx in range(count + 1):
            config = idx == count
            data = config_payload() if config else buffer(device, idx)
            channel = str((device + idx) % 2)
            name, size = DEVICES[device], len(data)
            if journals:
                s.say("source", Saved, device=name, idx=idx, size=size, config=config)
            s.add(f"vf{device}.{idx}", channel, packet(device, idx, data, config=config))
            if journals:
                where: dict[str, Any] = {"device": name, "idx": idx, "size": size, "config": config}
                s.say("source", Sent, channel=channel, **where)
                s.say("target", Received, channel=channel, queued_bytes=size, **where)
                s.say("target", Loaded, queued_bytes=0, **where)


def _farewell(s: Script, journals: bool) -> None:
    if journals:
        for device, name in enumerate(DEVICES):
            whole = image(device)
            digest = "xxh3-128:" + xxhash.xxh3_128_hexdigest(whole)
            config = "xxh3-128:" + xxhash.xxh3_128_hexdigest(CONFIG)
            for role in ("source", "target"):
                s.say(role, Image, device=name, size=len(whole), digest=digest, config_digest=config)
        s.say("target", Mark, name="end-of-stream")
        for name in DEVICES:
            s.say("target", State, device=name, old="RESUMING", new="STOP")
            s.say("target", State, device=name, old="STOP", new="RUNNING_P2P")
        for name in DEVICES:
            s.say("target", State, device=name, old="RUNNING_P2P", new="RUNNING")
        s.say("target", Mark, name="resume")
        s.say("target", Mark, name="shut")
    s.add("shut", BACK, writer.shut(0))
    if journals:
        s.say("source", Mark, name="shut")
        for name in DEVICES:
            s.say("target", Verified, device=name, equal=True)
            s.say("source", State, device=name, old="STOP_COPY", new="STOP")
        s.say("source", End, outcome="completed", runs=False)
        s.say("target", End, outcome="completed", runs=True)
