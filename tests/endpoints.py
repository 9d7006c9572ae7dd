# SPDX-License-Identifier: GPL-2.0-or-later
"""Endpoints of ours for the tests of the runtime: small migrations, and a source written by hand."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from pathlib import Path

from mockdev.clock import wall_offset_ns
from mockdev.journal import AnyLine, read
from mockdev.lab.migration import run_migration
from mockdev.lab.outcome import Outcome
from mockdev.runtime.config import EndpointConfig, MigrationConfig
from mockdev.runtime.session import Result
from mockdev.runtime.source import Source
from mockdev.runtime.target import Target
from mockdev.wire import writer
from mockdev.wire.structs import Command, RamFlag, Tag, VfioTag

SMALL = {
    "profile": "unlimited",
    "transport": "memory",
    "ram_bytes": 1 << 20,
    "capture": "none",
    "idle_timeout_s": 20.0,
}


def migrate(folder: Path, **changes: object) -> Outcome:
    """A small migration within this process."""
    return run_migration(MigrationConfig(**{**SMALL, **changes}), folder)  # type: ignore[arg-type]


def lines(folder: Path, role: str) -> list[AnyLine]:
    """An endpoint's journal."""
    return list(read(folder / f"{role}.jsonl"))


class TargetAlone:
    """A real target that listens on loopback, for whatever a test connects to it."""

    def __init__(self, folder: Path, **changes: object) -> None:
        config = MigrationConfig(**{**SMALL, "transport": "tcp", **changes})  # type: ignore[arg-type]
        self.config = config
        self.target = Target(EndpointConfig(role="target", migration=config, folder=str(folder)))
        self.result: Result | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        self.result = self.target.run()

    def connect(self) -> socket.socket:
        """One connection to it."""
        host, _, port = self.target.address.rpartition(":")
        sock = socket.create_connection((host, int(port)))
        sock.settimeout(20)
        return sock

    def end(self) -> Result:
        """Its result."""
        self._thread.join(30)
        if self._thread.is_alive():
            self.target.session.cancel("the test waits no longer")
            self._thread.join()
            raise AssertionError("the target did not end by itself")
        assert self.result is not None
        return self.result


class HandSource:
    """A source that sends what a test tells it to."""

    def __init__(self, alone: TargetAlone, *, channels_first: bool = False) -> None:
        self.config = alone.config
        if channels_first:
            self.channels = [alone.connect() for _ in range(self.config.channels)]
        self.main = alone.connect()
        if not channels_first:
            self.channels = [alone.connect() for _ in range(self.config.channels)]

    def open(self, *, named: bool = False) -> None:
        """Everything up to SWITCHOVER_START, without RAM. named: the channels have been opened before."""
        for number, channel in enumerate(() if named else self.channels):
            channel.sendall(writer.init_packet(number, bytes(16)) + writer.sync_packet(number))
        self.main.sendall(
            writer.stream_header()
            + writer.configuration(self.config.machine)
            + writer.command(Command.OPEN_RETURN_PATH)
            + writer.ping(1)
            + writer.section_head(Tag.SECTION_START, 1, "ram", 0, 4)
            + writer.ram_blocks([("pc.ram", self.config.ram_bytes)] if self.config.ram_bytes else [])
            + writer.ram_mark(RamFlag.MULTIFD_FLUSH)
            + writer.ram_mark(RamFlag.EOS)
            + writer.section_footer(1)
        )
        for number, name in enumerate(self.config.devices, 2):
            self.main.sendall(
                writer.section_head(Tag.SECTION_START, number, name, 0, 1)
                + writer.vfio_tag(VfioTag.DEV_SETUP_STATE)
                + writer.vfio_tag(VfioTag.END_OF_STATE)
                + writer.section_footer(number)
            )

    def switch(self) -> None:
        """SWITCHOVER_START."""
        self.main.sendall(writer.command(Command.SWITCHOVER_START))

    def buffer(self, channel: int, idx: int, data: bytes, *, config: bool = False, device: int = 0) -> None:
        """One device-state packet."""
        head = writer.device_state_packet(self.config.devices[device], 0, idx, len(data), config=config)
        self.channels[channel].sendall(head + data)

    def finish(self) -> None:
        """The end of the stream, all devices in multifd mode."""
        parts = [
            writer.section_head(Tag.SECTION_END, 1),
            writer.ram_mark(RamFlag.EOS),
            writer.section_footer(1),
        ]
        for number in range(2, 2 + self.config.vfs):
            parts += [
                writer.section_head(Tag.SECTION_END, number),
                writer.vfio_tag(VfioTag.END_OF_STATE),
                writer.section_footer(number),
            ]
        self.main.sendall(b"".join(parts) + writer.end_of_stream([]))

    def replies(self) -> bytes:
        """All that the target says until it closes the main channel."""
        said = b""
        try:
            while data := self.main.recv(4096):
                said += data
        except ConnectionError:
            pass
        return said

    def close(self) -> None:
        """Close everything."""
        for sock in (self.main, *self.channels):
            sock.close()


class SourceAlone:
    """A real source that migrates to a target written by hand; run: what that does with its sockets."""

    def __init__(self, folder: Path, accept: Callable[[socket.socket], None], **changes: object) -> None:
        config = MigrationConfig(**{**SMALL, "transport": "tcp", **changes})  # type: ignore[arg-type]
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._accept = accept
        self._thread = threading.Thread(target=self._run)
        host, port = self._listener.getsockname()
        endpoint = EndpointConfig(
            role="source",
            migration=config,
            folder=str(folder),
            address=f"{host}:{port}",
            clock_offset_ns=wall_offset_ns(),
        )
        self.source = Source(endpoint)

    def run(self) -> Result:
        """Its result."""
        self._thread.start()
        result = self.source.run()
        self._thread.join()
        self._listener.close()
        return result

    def _run(self) -> None:
        self._accept(self._listener)
