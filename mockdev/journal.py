# SPDX-License-Identifier: GPL-2.0-or-later
"""What an endpoint did and when, as typed lines: the published schema `vfmig.journal/1`.

A journal is a file of JSON objects, one a line, told apart by `event`. Times (`t`) are ns since the
epoch on the run's clock. A line is written when the thing has happened, in one write, so a killed
process leaves a readable journal. `device` is the section's idstr ("0000:00:02.0/vfio"); `channel` is
"main" or the multifd channel's number as a string.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from mockdev.errors import VfmigError

SCHEMA = "vfmig.journal/1"
LINE_BYTES_MAX = 1 << 20


class JournalError(VfmigError):
    """A file is not a journal that we can read."""


class Line(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag=str.lower):
    """Common to all lines. t: ns since the epoch."""

    t: int


class Begin(Line, frozen=True, kw_only=True):
    """First line. role: source or target; config: the endpoint's configuration."""

    role: str
    schema: str = SCHEMA
    version: str = ""
    uuid: str = ""
    queue_cap: int | None = None
    config: dict[str, Any] = {}


class Connected(Line, frozen=True, kw_only=True):
    """A connection stands. local, peer: "address:port" or a path."""

    channel: str
    local: str
    peer: str


class State(Line, frozen=True, kw_only=True):
    """A device took one arc. errno: 0, or why the arc failed (it then stayed in `old`)."""

    device: str
    old: str
    new: str
    errno: int = 0


class Saved(Line, frozen=True, kw_only=True):
    """The source read one buffer. idx: its index, -1 on the main channel. config: it is the config state."""

    device: str
    idx: int
    size: int
    config: bool = False


class Sent(Line, frozen=True, kw_only=True):
    """The last byte of a buffer was handed to the transport."""

    device: str
    idx: int
    size: int
    channel: str
    config: bool = False


class Received(Line, frozen=True, kw_only=True):
    """The target holds a whole buffer. queued_bytes: of this device after it was queued."""

    device: str
    idx: int
    size: int
    channel: str
    queued_bytes: int
    config: bool = False


class Loaded(Line, frozen=True, kw_only=True):
    """The target's device took a whole buffer. queued_bytes: of this device afterwards."""

    device: str
    idx: int
    size: int
    queued_bytes: int
    config: bool = False


class Image(Line, frozen=True, kw_only=True):
    """All of a device's state passed here. digest: "xxh3-128:<hex>" over it in order, config aside."""

    device: str
    size: int
    digest: str
    config_digest: str = ""


class Verified(Line, frozen=True, kw_only=True):
    """The target compared a loaded image with what its seed says it must be. wrong_at: first wrong byte."""

    device: str
    equal: bool
    wrong_at: int | None = None


class Mark(Line, frozen=True, kw_only=True):
    """A step of the migration: stop, switchover-start, precopy, end-of-stream, ping, pong, shut, resume."""

    name: str
    value: int = 0


class Failure(Line, frozen=True, kw_only=True):
    """Something ended the migration on this side; where it was seen, as far as known."""

    message: str
    channel: str = ""
    offset: int = -1
    field: str = ""
    device: str = ""


class End(Line, frozen=True, kw_only=True):
    """Last line. outcome: completed, failed or cancelled. runs: whether the VM may run on this side."""

    outcome: str
    runs: bool
    bytes: int = 0
    cpu_ns: int = 0


AnyLine = (
    Begin | Connected | State | Saved | Sent | Received | Loaded | Image | Verified | Mark | Failure | End
)

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(AnyLine).decode


class Journal:
    """A journal being written; safe from any thread. A path of None keeps nothing."""

    def __init__(self, path: Path | None) -> None:
        self._fd: int | None = None
        if path is not None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
            self._fd = os.open(path, flags, 0o644)
        self._lock = threading.Lock()
        self.lost = ""  # why lines were lost (a full disk), "" when none was

    def write(self, line: Line) -> None:
        """Append one line. A full disk ends the journal, not the migration; `lost` then says so."""
        data = _encode(line) + b"\n"
        with self._lock:
            if self._fd is None or self.lost:
                return
            try:
                os.write(self._fd, data)
            except OSError as error:
                self.lost = f"the journal could not be written: {error.strerror}"

    def close(self) -> None:
        """No more lines."""
        with self._lock:
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None


def read(path: Path) -> Iterator[AnyLine]:
    """The lines of a journal. JournalError on the first line that is none; a cut last line ends it."""
    with path.open("rb") as file:
        number = 0
        while raw := file.readline(LINE_BYTES_MAX):
            number += 1
            if not raw.endswith(b"\n"):
                return
            try:
                line = _decode(raw)
            except msgspec.MsgspecError as error:
                raise JournalError(f"{path}, line {number}: not a journal line: {error}") from None
            if number == 1 and not (isinstance(line, Begin) and line.schema == SCHEMA):
                raise JournalError(f"{path}: not a journal of schema {SCHEMA}")
            yield line
