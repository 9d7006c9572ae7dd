# SPDX-License-Identifier: GPL-2.0-or-later
"""The syntax of the return path: the direction from target to source of the main connection.

Source: QEMU migration/migration.c: source_return_path_thread.
"""

from __future__ import annotations

from mockdev.errors import RemoteProtocolError
from mockdev.wire.frames import Payload, ReturnPathItem, Syntax, Want
from mockdev.wire.structs import NUMBER64, RETURN_PATH_PAYLOAD_MAX, TYPE_LENGTH, ReturnPath

_LAST = max(ReturnPath)
_HEAD = Want(TYPE_LENGTH.size, "return-path message", may_end=True)


def return_path() -> Syntax:
    """Read the messages of a return path."""
    at = 0
    while True:
        raw = yield _HEAD
        if not raw:
            return
        head = TYPE_LENGTH.unpack(raw)
        if head.length > RETURN_PATH_PAYLOAD_MAX or not 1 <= head.type <= _LAST:
            raise RemoteProtocolError(
                f"message of type {head.type} with {head.length} bytes",
                channel="return-path",
                offset=at,
                field="type" if head.length <= RETURN_PATH_PAYLOAD_MAX else "length",
            )
        data: bytes | memoryview | None = b""
        if head.length:
            data = yield Want(head.length, "return-path payload")
        size = TYPE_LENGTH.size + head.length
        bitmap = 0
        if head.type == ReturnPath.RECV_BITMAP:
            raw = yield Want(8, "bitmap size")
            assert raw is not None
            bitmap = NUMBER64.unpack(raw).value + 8
            size += 8 + bitmap
        yield ReturnPathItem(at, size, head.type, bytes(data or b""))
        if bitmap:
            yield Payload(bitmap)
        at += size
