# SPDX-License-Identifier: GPL-2.0-or-later
"""Connections between source and target: TCP, Unix sockets, and pairs within one process.

All are blocking stream sockets, so that one call moves a whole buffer without the interpreter; the kernel's
own timeouts wake a call now and then, to see whether everything has gone silent (`Activity`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Protocol

from mockdev.clock import Clock
from mockdev.errors import RemoteProtocolError, VfmigError

Buffer = bytes | bytearray | memoryview
Host = tuple[str, int] | str

_TICK_S = 0.5  # how often a blocked call looks at the deadline
SMALL_SOCKET_BUFFER = 128 << 10  # with several streams: what fits the caches beats what fits the queue
_WHOLE = int(socket.MSG_WAITALL)
_GONE = (errno.EPIPE, errno.ECONNRESET, errno.ECONNABORTED, errno.ENOTCONN, errno.ESHUTDOWN, errno.EBADF)


class Activity:
    """When anything last moved at this endpoint, and how long nothing may.

    explain: gives what is still expected, for the message when the time is over; "" if unknown.
    """

    def __init__(self, clock: Clock, idle_timeout_s: float) -> None:
        self._clock = clock
        self._timeout_ns = int(idle_timeout_s * 1e9)
        self.timeout_s = idle_timeout_s
        self.last_ns = clock.now_ns()
        self.explain: Callable[[], str] = str

    def touch(self) -> None:
        """Something moved."""
        self.last_ns = self._clock.now_ns()

    @property
    def silent(self) -> bool:
        """Whether nothing has moved for too long."""
        return self._clock.now_ns() - self.last_ns > self._timeout_ns

    def over(self, message: str) -> str:
        """The sentence for when it was silent for too long; message: what was waited for."""
        expected = self.explain()
        return f"{message}; silence on all connections for {self.timeout_s:g} s" + (
            expected and f"; {expected}"
        )


class Observer(Protocol):
    """Sees what a connection sends and receives; see runtime/tap.py."""

    def sent(self, head: Sequence[Buffer], payload: Sequence[Buffer], time_ns: int) -> None:
        """These bytes were sent; time_ns: just before."""

    def received(self, head: Sequence[Buffer], payload: Sequence[Buffer]) -> None:
        """These bytes have come."""

    def closed(self, *, reset: bool) -> None:
        """The connection is no more."""


class Connection:
    """One stream to the peer. name: for messages, "main" or "channel 3".

    sent_bytes, received_bytes: moved so far. Errors: RemoteProtocolError when everything is silent for too
    long; PeerGoneError when the peer has closed what we want to send to.
    """

    def __init__(self, sock: socket.socket, activity: Activity, clock: Clock) -> None:
        self._sock = sock
        self._activity = activity
        self._clock = clock
        self.name = "new connection"
        self.local = _host(sock.getsockname())
        self.peer = _host(sock.getpeername())
        self.sent_bytes = 0
        self.received_bytes = 0
        self.observer: Observer | None = None
        self._broken = False
        sock.setblocking(True)
        tick = struct.pack("ll", 0, int(min(_TICK_S, activity.timeout_s / 4) * 1e6))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, tick)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, tick)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, head: Sequence[Buffer], payload: Sequence[Buffer] = ()) -> None:
        """Send all of these buffers; payload: what a tap may leave out."""
        time_ns = self._clock.now_ns()
        buffers = [*head, *payload]
        left = sum(map(len, buffers))
        size = left
        while left:
            try:
                count = self._sock.sendmsg(buffers)
            except BlockingIOError:
                self._check_silence("the peer took no more")
                continue
            except OSError as error:
                raise self._gone(error) from None
            left -= count
            if left:
                buffers = _rest(buffers, count)
        self.sent_bytes += size
        self._activity.last_ns = time_ns
        if self.observer is not None:
            self.observer.sent(head, payload, time_ns)

    def recv_into(self, view: memoryview, what: str, *, whole: bool = False) -> int:
        """Receive into `view`: some bytes, or with `whole` all of it; less (0) only at the end of the stream.

        what: what is waited for, for the message when nothing comes.
        """
        flags = _WHOLE if whole else 0
        have = 0
        size = len(view)
        while True:
            try:
                count = self._sock.recv_into(view[have:] if have else view, 0, flags)
            except BlockingIOError:
                self._check_silence(f"nothing came while waiting for {what}")
                continue
            except OSError as error:
                raise self._gone(error) from None
            self.received_bytes += count
            have += count
            if not count or not whole or have == size:
                self._activity.last_ns = self._clock.now_ns()
                return have

    def shutdown(self) -> None:
        """End both directions now: wakes every call that is blocked on this connection."""
        self._broken = True
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def stop_reading(self) -> None:
        """End the peer's direction only: wakes a blocked receive; we may still send."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RD)

    def finish(self) -> None:
        """Nothing more will be sent; the peer sees the end after what was sent."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Give the socket back. Not while another thread uses it: shut it down and join that first."""
        if self.observer is not None:
            self.observer.closed(reset=self._broken)
            self.observer = None
        self._sock.close()

    def _check_silence(self, message: str) -> None:
        if self._activity.silent:
            raise RemoteProtocolError(
                self._activity.over(message),
                channel=self.name,
                offset=self.received_bytes,
                field="deadline",
            )

    def _gone(self, error: OSError) -> Exception:
        if error.errno in _GONE:
            return PeerGoneError(
                f"the connection broke: {error.strerror}", channel=self.name, offset=self.received_bytes
            )
        return error


class PeerGoneError(RemoteProtocolError):
    """The peer closed a connection, or we shut it down ourselves because something else had failed."""


class Listener:
    """Where a target waits for its source. address: what the source connects to."""

    def __init__(self, sock: socket.socket, path: str = "") -> None:
        self._sock = sock
        self._path = path
        name = sock.getsockname()
        self.address = path or f"{name[0]}:{name[1]}"
        sock.settimeout(_TICK_S)

    def accept(self) -> socket.socket | None:
        """The next connection; None when none came for a moment. OSError once closed."""
        try:
            return self._sock.accept()[0]
        except TimeoutError:
            return None

    def close(self) -> None:
        """No more connections; wakes a blocked accept."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
        if self._path:
            with contextlib.suppress(OSError):
                os.unlink(self._path)


class MemoryNet:
    """Connections between two endpoints in one process; both its listener and its way to connect."""

    def __init__(self) -> None:
        self.address = "memory"
        self._waiting: queue.SimpleQueue[socket.socket] = queue.SimpleQueue()
        self._closed = False

    def connect(self) -> socket.socket:
        """A connection to whoever accepts."""
        if self._closed:
            raise VfmigError("cannot connect to memory: nobody listens")
        ours, theirs = socket.socketpair()
        self._waiting.put(theirs)
        return ours

    def accept(self) -> socket.socket | None:
        """As Listener.accept."""
        if self._closed:
            raise OSError(errno.EINVAL, "closed")
        try:
            return self._waiting.get(timeout=_TICK_S / 10)
        except queue.Empty:
            return None

    def close(self) -> None:
        """No more connections; those that nobody accepted are closed."""
        self._closed = True
        with contextlib.suppress(queue.Empty):
            while True:
                self._waiting.get_nowait().close()


AnyListener = Listener | MemoryNet


def socket_buffer_bytes(channels: int, wanted: int | None) -> int:
    """What to ask the kernel for, 0: its default. With one stream the default is faster, else small."""
    if wanted is not None:
        return wanted
    return SMALL_SOCKET_BUFFER if channels >= 2 else 0


def listen(transport: str, address: str, buffer_bytes: int) -> Listener:
    """Listen at "host:port" (port 0: any free one) or at a path. VfmigError when that cannot be done."""
    sock, where = _socket(transport, address or "127.0.0.1:0", buffer_bytes)
    try:
        sock.bind(where)
        sock.listen(300)
    except OSError as error:
        sock.close()
        raise VfmigError(f"cannot listen at {address}: {error.strerror}") from None
    return Listener(sock, where if isinstance(where, str) else "")


def connect(transport: str, address: str, buffer_bytes: int, timeout_s: float) -> socket.socket:
    """Connect to a listener. VfmigError when nobody answers."""
    sock, where = _socket(transport, address, buffer_bytes)
    try:
        sock.settimeout(timeout_s)
        sock.connect(where)
    except OSError as error:
        sock.close()
        raise VfmigError(f"cannot connect to {address}: {error.strerror or error}") from None
    return sock


def _socket(transport: str, address: str, buffer_bytes: int) -> tuple[socket.socket, tuple[str, int] | str]:
    where: tuple[str, int] | str
    if transport == "unix":
        sock, where = socket.socket(socket.AF_UNIX), address
        if len(os.fsencode(address)) > 107:
            sock.close()
            raise VfmigError(f"the path of a Unix socket has at most 107 bytes: {address}")
    else:
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal() or int(port) > 65535:
            raise VfmigError(f"not an address of the form host:port: {address!r}")
        host = host.strip("[]")
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        where = (host, int(port))
    set_buffers(sock, buffer_bytes)
    return sock, where


def set_buffers(sock: socket.socket, size: int) -> None:
    """Ask for socket buffers of `size` bytes each way; 0 leaves the system's."""
    if size:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)


def describe(host: Host) -> str:
    """An address as text."""
    return host if isinstance(host, str) else f"{host[0]}:{host[1]}"


def _host(name: object) -> Host:
    if isinstance(name, tuple):
        return str(name[0]), int(name[1])
    return name if isinstance(name, str) else ""


def _rest(buffers: Sequence[Buffer], count: int) -> list[Buffer]:
    """What is left of the buffers after their first `count` bytes."""
    left: list[Buffer] = []
    for buffer in buffers:
        if count >= len(buffer):
            count -= len(buffer)
            continue
        left.append(memoryview(buffer)[count:] if count else buffer)
        count = 0
    return left
