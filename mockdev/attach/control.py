# SPDX-License-Identifier: GPL-2.0-or-later
"""The control socket of a supervisor: a Unix socket on which each line of JSON asks, and one answers.

    {"ask": "status"}                                 -> {"pid": ..., "devices": [...], ...}
    {"ask": "fault", "spec": "vf0.load:eio@2MiB"}      -> {}
    {"ask": "dma", "device": 0, "iova": n, "hex": ""}  -> {} ; the device writes there, and says so if logged
    {"ask": "verify"}                                 -> {"equal": true | false}, images against the pattern

What cannot be done is answered with {"error": "a sentence"}. `ask` is the other end.
"""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from mockdev.errors import VfmigError

LINE_BYTES_MAX = 1 << 20
_CLIENTS_MAX = 16
_ANSWER_S = 30.0

Handler = Callable[[dict[str, Any]], dict[str, Any]]


class ControlError(VfmigError):
    """A supervisor cannot be reached, or says no."""

    environment = True


class Control:
    """The listening end, served by whoever waits on `sockets`. handler: takes a request, gives the answer.

    ControlError: the socket cannot be made.
    """

    def __init__(self, path: str, handler: Handler) -> None:
        self._path = path
        self._handler = handler
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            _remove_dead(path)
            self._listener.bind(path)
            os.chmod(path, 0o600)
            self._listener.listen(_CLIENTS_MAX)
        except OSError as error:
            self._listener.close()
            raise ControlError(
                f"the control socket {path} cannot be made: {error.strerror or error}"
            ) from None
        self._clients: dict[int, tuple[socket.socket, bytearray]] = {}

    @property
    def sockets(self) -> list[int]:
        """Descriptors to wait for."""
        return [self._listener.fileno(), *self._clients]

    def hear(self, fd: int) -> None:
        """One of the descriptors is readable."""
        if fd == self._listener.fileno():
            try:
                client, _ = self._listener.accept()
            except OSError:  # gone again, or no descriptor left
                return
            client.settimeout(1.0)  # for an answer that nobody reads
            if len(self._clients) >= _CLIENTS_MAX:
                client.close()
            else:
                self._clients[client.fileno()] = (client, bytearray())
            return
        client, line = self._clients[fd]
        data = b""
        with suppress(OSError):
            data = client.recv(65536)
        line += data
        while b"\n" in line:
            asked, _, rest = bytes(line).partition(b"\n")
            line[:] = rest
            try:
                client.sendall(json.dumps(self._answer(asked)).encode() + b"\n")
            except OSError:  # who does not read is not waited for again
                data = b""
                break
        if not data or len(line) > LINE_BYTES_MAX:
            del self._clients[fd]
            client.close()

    def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            asked = json.loads(line)
            if not isinstance(asked, dict):
                raise VfmigError("a request is a JSON object")
            return self._handler(asked)
        except VfmigError as error:
            return {"error": str(error)}
        except Exception as error:  # whatever was asked, QEMU must not die of it
            return {"error": f"not a request: {type(error).__name__}: {error}"}

    def __enter__(self) -> Control:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        for client, _line in self._clients.values():
            client.close()
        with suppress(OSError):
            os.unlink(self._path)


def ask(path: str | Path, **request: Any) -> dict[str, Any]:
    """Put one request to a supervisor. ControlError: nobody answers there, or the answer is an error."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        line.settimeout(_ANSWER_S)
        try:
            line.connect(os.fspath(path))
            line.sendall(json.dumps(request).encode() + b"\n")
            with line.makefile("rb") as answers:
                answer = answers.readline(LINE_BYTES_MAX)
        except OSError as error:
            raise ControlError(f"no supervisor answers at {path}: {error.strerror or error}") from None
    if not answer:
        raise ControlError(f"the supervisor at {path} closed without an answer")
    try:
        told = json.loads(answer)
    except ValueError:
        told = None
    if not isinstance(told, dict):
        raise ControlError(f"who answers at {path} is no supervisor")
    if "error" in told:
        raise ControlError(str(told["error"]))
    return told


def answers(path: str | Path) -> bool:
    """Whether somebody who may be asked listens there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(os.fspath(path))
        except OSError:
            return False
    return True


def _remove_dead(path: str) -> None:
    """Remove a socket that nobody listens on any more; what is no socket stays. OSError."""
    if os.path.lexists(path) and stat.S_ISSOCK(os.lstat(path).st_mode) and not answers(path):
        os.unlink(path)
