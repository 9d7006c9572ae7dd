# SPDX-License-Identifier: GPL-2.0-or-later
"""Seccomp user notification: system calls of another process that wait for our answer.

Source: Linux include/uapi/linux/seccomp.h; seccomp_unotify(2)
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import struct
from typing import NamedTuple

_RECV = 0xC0502100  # _IOWR('!', 0, struct seccomp_notif)
_SEND = 0xC0182101  # _IOWR('!', 1, struct seccomp_notif_resp)
_ADDFD = 0x40182103  # _IOW('!', 3, struct seccomp_notif_addfd)
_SET_FLAGS = 0x40082104  # _IOW('!', 4, __u64)

_CALL = struct.Struct("=QIIiIQ6Q")  # struct seccomp_notif with its struct seccomp_data
_ANSWER = struct.Struct("=QqiI")
_ADD = struct.Struct("=QIIII")

_CONTINUE = 1  # SECCOMP_USER_NOTIF_FLAG_CONTINUE
_SETFD = 1  # SECCOMP_ADDFD_FLAG_SETFD
_SYNC_WAKE_UP = 1  # SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP


class Call(NamedTuple):
    """One waiting call. pid: of the thread that made it; number: of the call; args: six 64-bit arguments."""

    id: int
    pid: int
    number: int
    args: tuple[int, int, int, int, int, int]

    @property
    def fd(self) -> int:
        """The descriptor that it is on."""
        return self.args[0] & 0xFFFFFFFF


class GoneError(Exception):
    """The process that made the call is no more, or does not wait for it any more."""


class Listener:
    """The receiving end. Answers may come from any thread and in any order."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        try:
            # Whoever waits and whoever answers take turns: let them share a processor.
            fcntl.ioctl(fd, _SET_FLAGS, _SYNC_WAKE_UP)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTTY):  # older than Linux 6.6: slower, not wrong
                raise

    def receive(self) -> Call | None:
        """The next waiting call; None: there is none. GoneError: nobody is left who could make one."""
        for _, events in self._poll.poll(0):
            if not events & select.POLLIN:
                raise GoneError
            buffer = bytearray(_CALL.size)
            try:
                fcntl.ioctl(self.fd, _RECV, buffer)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.EINTR):  # killed between our poll and now
                    return None
                raise
            number, pid, _flags, call, _arch, _ip, *args = _CALL.unpack(buffer)
            return Call(number, pid, call, tuple(args))
        return None

    def answer(self, call: Call, value: int) -> None:
        """Let the call return `value`; a negative one is an errno."""
        self._send(_ANSWER.pack(call.id, max(value, 0), min(value, 0), 0))

    def pass_on(self, call: Call) -> None:
        """Let the kernel carry the call out."""
        self._send(_ANSWER.pack(call.id, 0, 0, _CONTINUE))

    def give_fd(self, call: Call, ours: int, theirs: int) -> None:
        """Before the answer: make our descriptor `ours` the caller's `theirs`, closed on exec.

        OSError: EMFILE and what else dup3 gives. GoneError as for an answer.
        """
        try:
            fcntl.ioctl(self.fd, _ADDFD, _ADD.pack(call.id, _SETFD, ours, theirs, os.O_CLOEXEC))
        except OSError as error:
            if error.errno == errno.ENOENT:
                raise GoneError from None
            raise

    def close(self) -> None:
        """From now on the kernel answers ENOSYS in our place."""
        os.close(self.fd)

    def _send(self, answer: bytes) -> None:
        try:
            fcntl.ioctl(self.fd, _SEND, answer)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EBADF):
                raise GoneError from None
            raise
