# SPDX-License-Identifier: GPL-2.0-or-later
"""Feeds a syntax of mockdev.wire from a connection."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mockdev.errors import RemoteProtocolError
from mockdev.runtime.transports import Connection
from mockdev.wire.frames import Frame, Payload, Syntax, Want

# Never more than a device-state packet's heads are read ahead: a payload then begins at the first byte not
# yet read and is received where it is to lie. RAM and SYNC packets are longer than that.
CHANNEL_AHEAD_BYTES = 288
MAIN_AHEAD_BYTES = 64 << 10


class Reader:
    """Input of one connection with a little read ahead.

    offset: bytes consumed. RemoteProtocolError when the stream ends inside something.
    """

    def __init__(self, connection: Connection, ahead_bytes: int) -> None:
        self.connection = connection
        self.offset = 0
        self._ahead = ahead_bytes
        self._buffer = bytearray(max(ahead_bytes, 4096))
        self._start = 0
        self._end = 0

    def read_ahead(self, size: int) -> None:
        """From now on read up to this many bytes ahead."""
        self._ahead = size

    def peek(self, size: int, what: str) -> memoryview:
        """All that is buffered, at least `size` bytes but for the end of the stream."""
        self._fill(size, what, self._ahead)
        return memoryview(self._buffer)[self._start : self._end]

    def want(self, want: Want) -> bytes | memoryview:
        """The bytes that a syntax waits for."""
        size = want.size
        if want.peek:
            if self._end - self._start < size:
                # Who peeks for one byte more each time gets many: a search stays near linear.
                self._fill(size, want.what, max(self._ahead, size + size // 4))
            return bytes(memoryview(self._buffer)[self._start : self._end])
        end = self._start + size
        if end > self._end:
            self._fill(size, want.what, self._ahead)
            end = self._start + size
            if end > self._end:
                have = self._end - self._start
                if have == 0 and want.may_end:
                    return b""
                raise self._cut(want.what, size, have)
        data = bytes(self._buffer[self._start : end])
        self._start = end
        self.offset += size
        observer = self.connection.observer
        if observer is not None:
            observer.received((data,), ())
        return data

    def payload(self, view: memoryview, what: str) -> None:
        """Fill `view` with the bytes that come next."""
        self.part(view, what)
        self.whole((view,))

    def part(self, view: memoryview, what: str) -> None:
        """As payload, for one part of it: then comes the next, or `whole`."""
        size = len(view)
        have = min(size, self._end - self._start)
        if have:
            view[:have] = memoryview(self._buffer)[self._start : self._start + have]
            self._start += have
        if have < size:
            have += self.connection.recv_into(view[have:] if have else view, what, whole=True)
            if have < size:
                raise self._cut(what, size, have)
        self.offset += size

    def whole(self, parts: Sequence[memoryview]) -> None:
        """These parts were a payload."""
        observer = self.connection.observer
        if observer is not None:
            observer.received((), parts)

    def skip(self, size: int, what: str) -> None:
        """Take `size` bytes and forget them."""
        scratch = memoryview(bytearray(min(size, 1 << 16)))
        while size:
            part = min(size, len(scratch))
            self.payload(scratch[:part], what)
            size -= part

    def _fill(self, size: int, what: str, ahead: int) -> None:
        """Have `size` bytes in the buffer, and up to `ahead` if they have come."""
        if self._start == self._end:
            self._start = self._end = 0
        if self._start + max(size, ahead) > len(self._buffer):
            rest = self._buffer[self._start : self._end]
            self._buffer = rest + bytearray(2 * max(size, ahead))
            self._start, self._end = 0, len(rest)
        while self._end - self._start < size:
            limit = self._start + max(size, ahead)
            count = self.connection.recv_into(memoryview(self._buffer)[self._end : limit], what)
            if not count:
                return
            self._end += count

    def _cut(self, what: str, size: int, have: int) -> RemoteProtocolError:
        return RemoteProtocolError(
            f"the stream ends after {have} of {size} bytes",
            channel=self.connection.name,
            offset=self.offset + have,
            field=what,
        )


def frames(reader: Reader, syntax: Syntax) -> Iterator[Frame | Payload]:
    """What a syntax reads. After a Payload the caller takes its bytes from the reader, then goes on."""
    try:
        step = next(syntax)
        while True:
            if isinstance(step, Want):
                step = syntax.send(reader.want(step))
            else:
                yield step
                step = next(syntax)
    except StopIteration:
        return
