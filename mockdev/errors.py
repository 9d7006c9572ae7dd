# SPDX-License-Identifier: GPL-2.0-or-later
"""The errors that the making half raises, by who is to blame."""

from __future__ import annotations

import errno
import os


class VfmigError(Exception):
    """Anything this project raises on purpose; the message is a sentence for a person.

    environment: whether the machine or an input file is to blame, rather than this program.
    """

    environment = False


class LocalProtocolError(VfmigError):
    """We asked our own endpoint for something the protocol forbids: a defect on our side."""


class RemoteProtocolError(VfmigError):
    """The peer (or a capture of it) broke the protocol.

    channel: "main", "return-path", or "channel 3"; offset: bytes from the start of that
    channel's direction; field: the C name of the field that is wrong, or what was being read.
    """

    def __init__(self, message: str, *, channel: str = "", offset: int = -1, field: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.channel = channel
        self.offset = offset
        self.field = field

    def __str__(self) -> str:
        where = ", ".join(
            part
            for part in (
                self.channel,
                f"offset {self.offset}" if self.offset >= 0 else "",
                self.field,
            )
            if part
        )
        return f"{where}: {self.message}" if where else self.message


class DeviceError(VfmigError):
    """A VFIO call on a device failed.

    errno: the positive Linux number that the caller would see. device: its section's idstr, "" if not said.
    """

    def __init__(self, number: int, message: str = "", *, device: str = "") -> None:
        name = errno.errorcode.get(number, str(number))
        super().__init__(f"{name}: {message or os.strerror(number)}")
        self.errno = number
        self.device = device


class CancelledError(VfmigError):
    """The migration was called off on this side before it completed."""


def describe_error(error: BaseException) -> str:
    """One sentence about what ended a migration."""
    if isinstance(error, VfmigError):
        return str(error)
    return f"{type(error).__name__}: {error}"
