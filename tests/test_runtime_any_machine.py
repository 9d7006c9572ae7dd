# SPDX-License-Identifier: GPL-2.0-or-later
"""Real QEMUs' own bytes, from the corpora, into a target of ours: whatever machine it was, it is taken."""

from __future__ import annotations

import json
import socket
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from mockdev.journal import Failure, Image, State, Verified
from mockdev.runtime.config import EndpointConfig, MigrationConfig
from mockdev.runtime.session import Result
from mockdev.runtime.target import Target
from mockdev.runtime.template import load
from mockdev.vfio.pci import Identity, PciFunction
from mockdev.wire import writer
from mockdev.wire.frames import ReturnPathItem
from mockdev.wire.returnpath import return_path
from mockdev.wire.structs import Command, RamFlag, ReturnPath, Tag
from tests.drive import frames_of
from tests.endpoints import lines
from verifier.capture.flows import MAIN_HEAD
from verifier.capture.pcapng import open_capture
from verifier.capture.reassembly import reassemble
from verifier.capture.stream import Flow
from verifier.check import check_paths

CORPORA = Path(__file__).parent.parent / "corpora"
RECORDED_VF = Identity(vectors=8, subsystem=0x0058)  # what was mocked when the corpora were recorded
MIB = 1 << 20


def sent(capture: Path) -> list[bytes]:
    """What the source sent on each connection, the main channel first."""
    streams: dict[int, bytearray] = {}

    class Sink:
        def __init__(self, flow: Flow) -> None:
            self.kept = streams.setdefault(flow.connection, bytearray()) if flow.initiator else bytearray()

        def data(self, start: int, stop: int, _time_ns: int, /) -> None:
            self.kept += opened.data[start:stop]

        def hole(self, size: int, reason: str, time_ns: int, note: str, /) -> None:
            raise ValueError(f"{reason} {size} {time_ns} {note}")

        def end(self, kind: str, time_ns: int, /) -> None:
            pass

    with open_capture(capture) as opened:
        reassemble(opened, Sink)
    return sorted(map(bytes, streams.values()), key=lambda stream: not stream.startswith(MAIN_HEAD))


class Replay:
    """A target that is told what a QEMU once sent."""

    def __init__(self, folder: Path, streams: list[bytes], **changes: object) -> None:
        base = {
            "peer": "qemu",
            "vfs": 0,
            "channels": len(streams) - 1,
            "transfer": "multifd" if len(streams) > 1 else "main",
            "profile": "opaque",  # the recorded devices' streams have no records
            "state_bytes": 4 * MIB,
            "capture": "none",
            "idle_timeout_s": 20.0,
        }
        config = MigrationConfig(**{**base, **changes})  # type: ignore[arg-type]
        self.template = folder / "machine.template"
        self.target = Target(
            EndpointConfig(role="target", migration=config, folder=str(folder), template=str(self.template))
        )
        self.target.prepare()
        for slot in self.target._slots:
            slot.device.pci = PciFunction(RECORDED_VF)
        self._streams = streams
        self._answers = bytearray()

    def run(self) -> Result:
        """Send everything at once, close when the target has said how it went; its result."""
        result: list[Result] = []
        target = threading.Thread(target=lambda: result.append(self.target.run()))
        target.start()
        host, _, port = self.target.address.rpartition(":")
        socks = [socket.create_connection((host, int(port)), 20) for _ in self._streams]
        senders = [
            threading.Thread(target=self._send, args=(sock, stream))
            for sock, stream in zip(socks, self._streams, strict=True)
        ]
        for sender in senders:
            sender.start()
        try:
            while said := socks[0].recv(4096):
                self._answers += said
                if writer.shut(0) in self._answers:
                    break
        except ConnectionError:
            pass
        for sock in socks:
            sock.close()
        for thread in (*senders, target):
            thread.join()
        return result[0]

    @property
    def answers(self) -> list[str]:
        """What the target said on the return path."""
        said = []
        for item in frames_of(return_path(), bytes(self._answers)):
            assert isinstance(item, ReturnPathItem)
            said.append(ReturnPath(item.type).name)
        return said

    @staticmethod
    def _send(sock: socket.socket, stream: bytes) -> None:
        with suppress(OSError):  # a target that refuses it hangs up
            sock.sendall(stream)
            sock.shutdown(socket.SHUT_WR)


TAKEN: dict[str, tuple[list[str], dict[str, object], str]] = {
    # name: devices, what the target is told besides, what it answers
    "q100-1vf-multifd": (["02"], {}, "PONG SHUT"),
    "q100-4vf-multifd": (["02", "03", "04", "05"], {}, "PONG SHUT"),
    "q100-2vf-q35-multifd": (["02", "01"], {"load_threads": 1}, "PONG SHUT"),
    "q100-2vf-main": (["02", "03"], {"transfer": "main"}, "PONG SHUT"),
    "q111-4vf-multifd": (["02", "03", "04", "05"], {"load_threads": 4}, "PONG SHUT"),
    "q111-2vf-precopy-multifd": (
        ["02", "03"],
        {"precopy_bytes": MIB, "switchover_ack": True},
        "PONG SWITCHOVER_ACK SWITCHOVER_ACK SHUT",
    ),
    "q100-1vf-load-eio": (["02"], {}, "PONG SHUT"),
    "mfd2-machine80": ([], {}, "PONG SHUT"),
    "mfd2-machine92": ([], {}, "PONG SHUT"),
    "mfd2-flush-each-section": ([], {}, "PONG SHUT"),
    "mfd2-uuid-ignoreshared": ([], {}, "PONG SHUT"),
    "mfd2-zpd-none": ([], {}, ""),
    "nomfd-xbzrle": ([], {}, "PONG SHUT"),  # on, and of no use there
    "mfd3-q35-running": ([], {}, "PONG SHUT"),
    "mfd4-rp-switchoverack": ([], {"switchover_ack": True}, "SWITCHOVER_ACK PONG SHUT"),
}


@pytest.mark.parametrize("name", TAKEN)
def test_what_a_qemu_sent_is_taken(tmp_path: Path, name: str) -> None:
    slots, changes, answers = TAKEN[name]
    capture = CORPORA / f"{name}.pcapng.gz"
    names = tuple(f"0000:00:{slot}.0/vfio" for slot in slots)
    streams = sent(capture)
    replay = Replay(tmp_path, streams, **{"vfs": len(names), "device_names": names, **changes})
    result = replay.run()
    assert (result.outcome, result.error, result.complaint, result.runs) == ("completed", "", "", True)
    assert replay.answers == answers.split()

    journal = lines(tmp_path, "target")
    loaded = {line.device: (line.size, line.digest) for line in journal if isinstance(line, Image)}
    judged = {row.id: (row.payload_bytes, row.wire_digest) for row in check_paths([capture]).devices}
    assert loaded == judged
    for device in names:
        states = [line.new for line in journal if isinstance(line, State) and line.device == device]
        assert states[-3:] == ["STOP", "RUNNING_P2P", "RUNNING"]
    assert {line.device for line in journal if isinstance(line, Verified)} == set(names)

    kept = load(replay.template, 1 << 30)
    assert set(kept.machine.devices) == set(names)
    described = json.loads(kept.machine.description)["devices"]
    full = [s for s in kept.machine.sections if s.tag == Tag.SECTION_FULL]
    assert [(s.idstr, s.instance_id) for s in full] == [(d["name"], d["instance_id"]) for d in described]
    for section in full:
        if section.payload is not None:
            assert section.payload in streams[0]


REFUSED: dict[str, tuple[list[str], dict[str, object], str, str]] = {
    # name: devices, what the target is told besides, field, words
    "nomfd-postcopy": ([], {}, "command", "command 3"),
    "nomfd-nofooter": ([], {}, "footer", "None"),
    "mfd2-zlib": ([], {}, "flags", "compressed"),
    "q100-1vf-multifd": (["03"], {}, "idstr", "0000:00:02.0/vfio"),
    "q100-2vf-main": (["02", "03"], {"ram_bytes_max": 64 * MIB}, "mem_size", "at most 67108864"),
    "q111-2vf-precopy-multifd": (["02", "03"], {"precopy_bytes": MIB}, "VFIO tag", "INIT_DATA_SENT"),
    "mfd2-cancel": ([], {}, "section footer", "the stream ends"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_taken_is_named(tmp_path: Path, name: str) -> None:
    slots, changes, field, words = REFUSED[name]
    names = tuple(f"0000:00:{slot}.0/vfio" for slot in slots)
    streams = sent(CORPORA / f"{name}.pcapng.gz")
    replay = Replay(tmp_path, streams, **{"vfs": len(names), "device_names": names, **changes})
    result = replay.run()
    assert (result.outcome, result.runs) == ("failed", False)
    assert words in result.error
    (failure,) = [line for line in lines(tmp_path, "target") if isinstance(line, Failure)]
    assert failure.field == field
    assert not replay.template.exists()


# --- what no QEMU says -----------------------------------------------------------------------------

PAGE = 4096
HEAD = writer.stream_header()
OPENED = writer.command(Command.OPEN_RETURN_PATH) + writer.ping(1)


def machine(name: str = "pc-q35-10.0", **options: Any) -> bytes:
    """Everything before the first section."""
    return HEAD + writer.configuration(name, **options) + OPENED


def section(tag: Tag, number: int, payload: bytes, idstr: str = "", version: int = 1) -> bytes:
    """A section, whole."""
    return writer.section_head(tag, number, idstr, 0, version) + payload + writer.section_footer(number)


def ram(tag: Tag, payload: bytes) -> bytes:
    """A section of RAM."""
    return section(tag, 1, payload + writer.ram_mark(RamFlag.EOS), "ram", 4)


def started(*blocks: tuple[str, int]) -> bytes:
    """A stream up to a START of RAM with these blocks."""
    return machine() + ram(Tag.SECTION_START, writer.ram_blocks(blocks))


ZERO = writer.ram_page(RamFlag.ZERO, 0, "a")
BLOCK = started(("a", PAGE))
END = writer.end_of_stream([])
BAD: dict[str, tuple[bytes, int | None, str, str]] = {
    # name: what the main channel says, offset, field, words
    "a capability": (machine(capabilities=["mapped-ram"]), 8, "capabilities", "mapped-ram"),
    "RAM without end": (started(("a", 1 << 52)), None, "mem_size", "at most"),
    "RAM a page too large": (started(("a", 4 * MIB), ("b", PAGE)), None, "mem_size", "at most"),
    "half a page": (started(("a", 2048), ("b", 2048)), None, "used_length", "2048"),
    "blocks of one name": (started(("a", PAGE), ("a", PAGE)), None, "idstr", "two RAM blocks"),
    "a second list": (
        BLOCK + ram(Tag.SECTION_PART, writer.ram_blocks([("a", PAGE)])), None, "mem_size", "second",
    ),
    "no such block": (BLOCK + ram(Tag.SECTION_PART, ZERO.replace(b"a", b"c")), None, "ram page", "'c'"),
    "no such page": (
        BLOCK + ram(Tag.SECTION_PART, writer.ram_page(RamFlag.PAGE, PAGE, "a") + bytes(PAGE)),
        None, "ram page", "0x1000",
    ),
    "xbzrle": (
        BLOCK + ram(Tag.SECTION_PART, writer.number64(RamFlag.XBZRLE) + b"\1a\1\0\4data"),
        None, "ram flags", "0x40",
    ),
    "filled with ones": (BLOCK + ram(Tag.SECTION_PART, ZERO[:-1] + b"\1"), None, "fill byte", "1"),
    "a page too few": (
        started(("a", PAGE), ("b", PAGE)) + ram(Tag.SECTION_END, ZERO) + END, None, "ram", "1 pages of b",
    ),
    "another version of RAM": (
        machine() + section(Tag.SECTION_START, 1, b"", "ram", 5), None, "idstr", "version 5",
    ),
    "a device that is not here": (
        machine() + section(Tag.SECTION_START, 2, bytes(8), "0000:00:1f.0/vfio"), None, "idstr", "1f.0",
    ),
    "no device": (BLOCK + ram(Tag.SECTION_END, ZERO) + END, None, "idstr", "02.0"),
    "a part of nothing": (machine() + section(Tag.SECTION_PART, 7, b""), None, "section_id", "7"),
    "a flush without channels": (
        BLOCK + ram(Tag.SECTION_PART, writer.ram_mark(RamFlag.MULTIFD_FLUSH)), None, "MULTIFD_FLUSH", "",
    ),
    "a section without end": (
        BLOCK + writer.section_head(Tag.SECTION_FULL, 9, "timer", 0, 1) + bytes(8 * MIB),
        None, "section 'timer'", "ends",
    ),
    "postcopy": (machine() + writer.command(Command.POSTCOPY_LISTEN), None, "command", "4"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_source_gets_a_named_error(tmp_path: Path, name: str) -> None:
    stream, offset, field, words = BAD[name]
    vfs = {} if name == "a page too few" else {"vfs": 1}
    replay = Replay(tmp_path, [stream], ram_bytes_max=4 * MIB, transfer="main", **vfs)
    result = replay.run()
    assert (result.outcome, result.runs) == ("failed", False)
    assert words in result.error
    (failure,) = [line for line in lines(tmp_path, "target") if isinstance(line, Failure)]
    assert (failure.channel, failure.field) == ("main", field)
    if offset is not None:
        assert failure.offset == offset
    assert replay.answers in ([], ["SHUT"], ["PONG", "SHUT"])


def test_all_channels_are_of_one_machine(tmp_path: Path) -> None:
    channels = [writer.init_packet(number, bytes([number]) * 16) for number in range(2)]
    result = Replay(tmp_path, [machine(), *channels]).run()
    assert result.outcome == "failed"
    assert "uuid" in result.error
    assert "after" in result.error


def test_the_configuration_and_the_channels_name_one_machine(tmp_path: Path) -> None:
    channel = writer.init_packet(0, bytes(16)) + writer.sync_packet(0)
    result = Replay(tmp_path, [machine(uuid=b"u" * 16), channel]).run()
    assert result.outcome == "failed"
    assert result.error.startswith("main, offset 8, uuid:")


def test_sections_of_any_size_are_kept_whole(tmp_path: Path) -> None:
    large = bytes(range(251)) * 9000  # far more than is read ahead, in many pieces
    stream = (
        BLOCK
        + ram(Tag.SECTION_END, ZERO)
        + section(Tag.SECTION_FULL, 5, b"", "empty")
        + section(Tag.SECTION_FULL, 6, large, "large")
        + END
    )
    replay = Replay(tmp_path, [stream])
    result = replay.run()
    assert (result.outcome, result.error) == ("completed", "")
    kept = {s.idstr: s.payload for s in load(replay.template, MIB).machine.sections}
    assert (kept["empty"], kept["large"]) == (b"", large)
