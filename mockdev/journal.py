# SPDX-License-Identifier: GPL-2.0-or-later
"""What an endpoint did and when, as typed lines: the published schema `vfmig.journal/1`.

A journal is a file of JSON objects, one a line, told apart by `event`. Times (`t`) are ns since the
epoch on the run's clock. A line is written when the thing has happened, so a killed process leaves a
readable journal. `device` is the section's idstr ("0000:00:02.0/vfio"); `channel` is
"main" or the multifd channel's number as a string.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, final

import msgspec

from mockdev.errors import DeviceError, RemoteProtocolError, VfmigError, describe_error

SCHEMA = "vfmig.journal/1"
LINE_BYTES_MAX = 1 << 20
_WINDOW_BYTES = 256 << 10


class JournalError(VfmigError):
    """A file is not a journal that we can read."""

    environment = True


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


@final
class State(Line, frozen=True, kw_only=True):
    """A device took one arc. errno: 0, or why the arc failed: it then stayed in `old`, or `new` is ERROR."""

    device: str
    old: str
    new: str
    errno: int = 0


class Reset(Line, frozen=True, kw_only=True):
    """An unmodified QEMU reset a device; the line of a state that it thereby left comes next."""

    device: str


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


class Read(Line, frozen=True, kw_only=True):
    """An unmodified QEMU read `size` bytes from a device's save file; offset: stream bytes before them.

    size 0: the end was read. Which buffer they became only QEMU knows.
    """

    device: str
    offset: int
    size: int


class Wrote(Line, frozen=True, kw_only=True):
    """An unmodified QEMU wrote `size` bytes to a device's resume file; offset: stream bytes before them."""

    device: str
    offset: int
    size: int


class Unanswered(Line, frozen=True, kw_only=True):
    """An unmodified QEMU made an ioctl that we have no answer for, and got ENOTTY.

    on: the device, or "iommufd". request: its number.
    """

    on: str
    request: int


class Image(Line, frozen=True, kw_only=True):
    """All of a device's state passed here. digest: "xxh3-128:<hex>" over it in order, config aside.

    An endpoint of ours makes it once the migration is over: a source of what it read, a target of what the
    device then holds and the headers that came with it; a lent device as the bytes pass.
    """

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
    """A step of the migration: stop, switchover-start, precopy, end-of-stream, ping, pong, switchover-ack,
    shut, resume; or fault: one that was asked for struck."""

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
    Begin
    | Connected
    | State
    | Reset
    | Saved
    | Sent
    | Received
    | Loaded
    | Read
    | Wrote
    | Unanswered
    | Image
    | Verified
    | Mark
    | Failure
    | End
)

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(AnyLine).decode


def failed_arc(t: int, device: str, *, old: str, asked: str, now: str, errno: int) -> list[State]:
    """The lines of a single arc that failed. now: where it left the device: it may fail when it is done."""
    if now == "ERROR":
        return [State(t=t, device=device, old=old, new=now, errno=errno)]
    done = [State(t=t, device=device, old=old, new=now)] if now != old else []
    return [*done, State(t=t, device=device, old=now, new=asked, errno=errno)]


def failure_line(time_ns: int, error: BaseException) -> Failure:
    """What ended a migration, as its end's journal has it."""
    if isinstance(error, RemoteProtocolError):
        return Failure(
            t=time_ns, message=error.message, channel=error.channel, offset=error.offset, field=error.field
        )
    device = error.device if isinstance(error, DeviceError) else ""
    return Failure(t=time_ns, message=describe_error(error), device=device)


class Journal:
    """A journal being written; safe from any thread. A path of None keeps nothing.

    Lines are copied into a mapping of the file, whose space is reserved a window at a time: no system call
    and no wait a line, and what was written is in the file even if the process is killed (behind it then
    lie zero bytes, which `close` cuts off and `read` ignores).
    """

    def __init__(self, path: Path | None) -> None:
        self._lock = threading.Lock()
        self._fd: int | None = None
        self._window: mmap.mmap | None = None
        self._start = 0  # of the window in the file
        self._at = 0  # in the window
        self._room_end = 0  # of the window; 0: nothing is kept (any more), or not yet
        self.lost = ""  # why lines were lost (a full disk), "" when none was
        if path is not None:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)

    def write(self, line: Line) -> None:
        """Append one line. A full disk ends the journal, not the migration; `lost` then says so."""
        data = _encode(line) + b"\n"
        with self._lock:
            end = self._at + len(data)
            if end > self._room_end:
                if not self._advance(len(data)):
                    return
                end = self._at + len(data)
            self._window[self._at : end] = data  # type: ignore[index]
            self._at = end

    def close(self) -> None:
        """No more lines."""
        with self._lock:
            if self._fd is not None:
                if self._window is not None:
                    self._window.close()
                    self._window = None
                    self._room_end = 0
                os.ftruncate(self._fd, self._start + self._at)
                os.close(self._fd)
                self._fd = None

    def _advance(self, size: int) -> bool:
        """Map a window with room for `size` bytes, from the page being written; whether that could be."""
        if self._fd is None or self.lost:
            return False
        here = self._start + self._at
        start = here - here % mmap.ALLOCATIONGRANULARITY
        window_bytes = max(_WINDOW_BYTES, mmap.ALLOCATIONGRANULARITY + size)
        try:
            # Reserved, not only sized: a page that finds the disk full would kill the process.
            os.posix_fallocate(self._fd, start, window_bytes)
            window = mmap.mmap(self._fd, window_bytes, offset=start)
        except OSError as error:
            self.lost = f"the journal could not be written: {error.strerror}"
            self._room_end = 0
            return False
        if self._window is not None:
            self._window.close()
        self._window, self._start, self._at, self._room_end = window, start, here - start, window_bytes
        return True


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
