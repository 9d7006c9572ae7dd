# SPDX-License-Identifier: GPL-2.0-or-later
"""What the target says to the source: the return path, read in a thread of its own."""

from __future__ import annotations

import threading

from mockdev.errors import RemoteProtocolError
from mockdev.runtime.reader import Reader, frames
from mockdev.runtime.session import Session
from mockdev.runtime.transports import Connection, PeerGoneError
from mockdev.wire.frames import ReturnPathItem
from mockdev.wire.returnpath import return_path
from mockdev.wire.structs import ReturnPath

PING = 1
_VERDICT_WAIT_S = 1.0  # what a target that failed gets to say so, once it has closed a connection


class Replies:
    """The return path of a source. shut: the value of SHUT once it came; ended: nothing more will come.

    refused: the target has said, or shown by closing, that it does not run the VM.
    """

    def __init__(self, session: Session, connection: Connection) -> None:
        self._session = session
        self._connection = connection
        self._changed = threading.Condition()
        self.shut: int | None = None
        self._acks = 0
        self.ended = False
        self.refused = False
        self._started = False
        session.at_stop.append(self._wake)

    def run(self) -> None:
        """Read until SHUT. RemoteProtocolError: the target failed, closed or talks nonsense."""
        self._started = True
        try:
            self._read()
        except PeerGoneError:
            pass  # the connection broke: the same as an end, unless it was we who broke it
        finally:
            with self._changed:
                closed = self.shut is None and not self._session.stopped.is_set()
                self.refused = bool(self.shut) or closed
                self.ended = True
                self._changed.notify_all()
        if self.shut:
            raise RemoteProtocolError(
                f"the target says that it failed (SHUT {self.shut})", channel="return-path", field="SHUT"
            )
        if self.shut is None:
            self._session.check()
            raise RemoteProtocolError(
                "the target closed the main channel without a verdict", channel="return-path", field="SHUT"
            )

    def wait_shut(self) -> None:
        """Wait for SHUT 0; its absence ends the session from `run`."""
        with self._changed:
            self._session.wait_for(
                self._changed, lambda: self.shut is not None, lambda: "the target never sent SHUT"
            )

    def wait_acks(self, count: int) -> None:
        """Wait until SWITCHOVER_ACK has come this many times."""
        with self._changed:
            self._session.wait_for(
                self._changed,
                lambda: self._acks >= count,
                lambda: f"the target sent {self._acks} of {count} SWITCHOVER_ACKs",
            )

    def verdict(self) -> None:
        """After a connection broke: give what the target says of it a moment to arrive."""
        with self._changed:
            if self._started:
                self._changed.wait_for(lambda: self.ended or self._session.stopped.is_set(), _VERDICT_WAIT_S)

    def _read(self) -> None:
        for item in frames(Reader(self._connection, 512), return_path()):
            if not isinstance(item, ReturnPathItem):
                raise RemoteProtocolError(
                    "a dirty bitmap, which nobody asked for", channel="return-path", field="RECV_BITMAP"
                )
            self._take(item)
            if self.shut is not None:
                return

    def _take(self, item: ReturnPathItem) -> None:
        value = int.from_bytes(item.data, "big")
        if item.type == ReturnPath.SHUT:
            if len(item.data) != 4:
                raise self._wrong(item, f"SHUT with {len(item.data)} bytes", "length")
            self._session.mark("shut", value)
            with self._changed:
                self.shut = value
                self._changed.notify_all()
        elif item.type == ReturnPath.PONG:
            if item.data != PING.to_bytes(4, "big"):
                raise self._wrong(item, f"PONG {value} for PING {PING}", "PONG")
            self._session.mark("pong", value)
        elif item.type == ReturnPath.SWITCHOVER_ACK:
            self._session.mark("switchover-ack")
            with self._changed:
                self._acks += 1
                self._changed.notify_all()
        else:
            raise self._wrong(item, f"message of type {item.type} in a precopy migration", "type")

    def _wrong(self, item: ReturnPathItem, message: str, field: str) -> RemoteProtocolError:
        return RemoteProtocolError(message, channel="return-path", offset=item.offset, field=field)

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()
