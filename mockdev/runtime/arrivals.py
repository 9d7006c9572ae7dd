# SPDX-License-Identifier: GPL-2.0-or-later
"""Accepting a source's connections, in any order, each told apart by its first bytes.

Every connection has a thread from the start, so a silent one keeps nobody waiting.

Source: QEMU migration/migration.c: migration_ioc_process_incoming; migration/multifd.c:
multifd_recv_initial_packet
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from mockdev.errors import RemoteProtocolError
from mockdev.runtime.reader import CHANNEL_AHEAD_BYTES, MAIN_AHEAD_BYTES, Reader
from mockdev.runtime.session import Session
from mockdev.runtime.transports import AnyListener, Connection, describe, set_buffers
from mockdev.wire.frames import InitFrame
from mockdev.wire.structs import MULTIFD_INIT, MULTIFD_MAGIC, STREAM_MAGIC


class Arrivals:
    """The connections of one source.

    wrong_uuid: what is wrong with a channel's uuid, "" when nothing; called for one channel after the other.
    run_channel: the rest of a channel's thread, with its reader.
    """

    def __init__(
        self,
        session: Session,
        channels: int,
        wrong_uuid: Callable[[bytes], str],
        run_channel: Callable[[Reader], None],
    ) -> None:
        self._session = session
        self._channels = channels
        self._wrong_uuid = wrong_uuid
        self._run_channel = run_channel
        self._changed = threading.Condition()
        self._named: set[int] = set()
        self._main: Reader | None = None
        session.at_stop.append(self._wake)

    def accept_all(self, listener: AnyListener, buffer_bytes: int) -> Reader:
        """Accept the main channel and all others; the main channel, when every one has said who it is."""
        accepted = 0
        activity = self._session.activity
        activity.touch()
        while accepted < self._channels + 1:
            self._session.check()
            sock = listener.accept()
            if sock is not None:
                set_buffers(sock, buffer_bytes)
                connection = self._session.adopt(sock, accepted=True)
                connection.name = f"connection {accepted} from {describe(connection.peer) or 'this process'}"
                self._session.group.start(connection.name, self._identify, connection)
                accepted += 1
                activity.touch()
            elif activity.silent:
                raise RemoteProtocolError(
                    f"{self._state()}; nothing more came for {activity.timeout_s:g} s", field="connections"
                )
        with self._changed:
            self._session.wait_for(self._changed, self._complete, self._state)
            assert self._main is not None
            return self._main

    def name_channel(self, frame: InitFrame, reader: Reader) -> int:
        """Take a channel's init packet; its number. RemoteProtocolError: not one of ours."""
        head = frame.head
        with self._changed:
            wrong, field = self._wrong_uuid(head.uuid), "uuid"
            if head.id >= self._channels:
                wrong, field = f"channel number {head.id}, of {self._channels} channels", "id"
            elif head.id in self._named:
                wrong, field = f"channel number {head.id} came a second time", "id"
            if not wrong:
                self._named.add(head.id)
                self._session.connected(reader.connection, str(head.id))
                self._changed.notify_all()
        if wrong:
            offset = frame.offset + MULTIFD_INIT.place(field).offset
            raise RemoteProtocolError(wrong, channel=reader.connection.name, offset=offset, field=field)
        return head.id

    def _identify(self, connection: Connection) -> None:
        reader = Reader(connection, CHANNEL_AHEAD_BYTES)
        first = bytes(reader.peek(4, "the first four bytes")[:4])
        if len(first) < 4:
            raise RemoteProtocolError(
                f"closed after {len(first)} bytes", channel=connection.name, offset=len(first), field="magic"
            )
        magic = int.from_bytes(first, "big")
        if magic == MULTIFD_MAGIC:
            self._run_channel(reader)
        elif magic == STREAM_MAGIC:
            reader.read_ahead(MAIN_AHEAD_BYTES)
            self._take_main(reader)
        else:
            raise RemoteProtocolError(
                f"begins with {first.hex()}: neither a main channel nor a multifd channel",
                channel=connection.name,
                offset=0,
                field="magic",
            )

    def _take_main(self, reader: Reader) -> None:
        with self._changed:
            if self._main is not None:
                raise RemoteProtocolError(
                    "a second main channel", channel=reader.connection.name, offset=0, field="magic"
                )
            self._session.connected(reader.connection, "main")
            self._main = reader
            self._changed.notify_all()

    def _complete(self) -> bool:
        return self._main is not None and len(self._named) == self._channels

    def _state(self) -> str:
        absent = [] if self._main is not None else ["the main channel"]
        absent += [f"channel {n}" for n in range(self._channels) if n not in self._named]
        shown = ", ".join(absent[:6]) + (" and more" if len(absent) > 6 else "")
        return f"not all of {self._channels + 1} connections came: without {shown}"

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()
