# SPDX-License-Identifier: GPL-2.0-or-later
"""Starts a program whose calls on a reserved range of descriptors wait for our answer.

The child is forked, not spawned: it has to change its own limits, descriptors and filter before the
program begins. Call `launch` before this process has other threads.

Source: seccomp(2), seccomp_unotify(2)
"""

from __future__ import annotations

import array
import ctypes
import errno
import os
import resource
import select
import signal
import socket
import struct
import sys
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

from mockdev.attach.filter import AttachError, calls, program

BASE_FD = 10_000  # far above what QEMU opens itself

_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_PDEATHSIG = 1
_SET_MODE_FILTER = 1
_NEW_LISTENER = 1 << 3
_WAIT_KILLABLE_RECV = 1 << 5  # since Linux 5.19; without it a periodic signal restarts a call for ever
_PROGRAM = struct.Struct("=H6xQ")  # struct sock_fprog
_INSTRUCTION_BYTES = 8
_EXIT_CHILD = 127
_GO = b"g"


class Child(NamedTuple):
    """A program that waits for `start`. listener: descriptor of its notifications; first_fd: of the range."""

    pid: int
    listener: int
    first_fd: int
    line: socket.socket

    def start(self) -> None:
        """Let the program begin. AttachError: it cannot be run."""
        try:
            self.line.sendall(_GO)
            said = self.line.recv(4096)  # closed on exec; a sentence when that failed
        finally:
            self.line.close()
        if said:
            raise AttachError(said.decode(errors="replace"))


def placeholder() -> select.epoll:
    """A file that can be neither read nor written nor mapped: a call that is not answered by us must not seem
    to succeed."""
    return select.epoll()


def base_fd(count: int) -> int:
    """The first of `count` descriptors to reserve. AttachError: the hard limit leaves no room."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    first = BASE_FD if hard == resource.RLIM_INFINITY else min(BASE_FD, hard - count)
    if first < 256:
        raise AttachError(
            f"the hard limit of open files is {hard}, too low to reserve {count} descriptors: "
            "raise it (ulimit -Hn)"
        )
    return first


def launch(
    argv: Sequence[str], first: int, count: int, log: int | None = None, *, opens: bool = False
) -> Child:
    """Fork a child that will run `argv` with `count` descriptors of ours from `first` on.

    It gets SIGKILL when the calling thread ends. log: descriptor that its output goes to, its input being
    empty then; None: it has ours. opens: files that it opens come to us as well.
    AttachError: no user notification here, and why.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    filter_program = program(first, count, calls(), opens=opens)
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        _child(argv, first, count, filter_program, theirs, parent, log)
    theirs.close()
    try:
        listener = _receive(ours)
    except BaseException:
        ours.close()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    return Child(pid, listener, first, ours)


def _receive(line: socket.socket) -> int:
    said, control, _flags, _address = line.recvmsg(4096, socket.CMSG_SPACE(4))
    for _level, kind, data in control:
        if kind == socket.SCM_RIGHTS:
            return array.array("i", data)[0]
    raise AttachError(said.decode(errors="replace") or "the launcher of QEMU died")


# -- in the child ------------------------------------------------------------------------------------


def _child(
    argv: Sequence[str],
    first: int,
    count: int,
    filter_program: bytes,
    line: socket.socket,
    parent: int,
    log: int | None,
) -> NoReturn:
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(_EXIT_CHILD)
        if log is not None:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(log, 1)
            os.dup2(log, 2)
        _reserve(first, count)
        # From here on a file that is opened may wait for an answer that nobody gives before `start`.
        listener = _install(libc, filter_program)
        line.sendmsg([_GO], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [listener]))])
        os.close(listener)
        if not line.recv(1):  # the supervisor has died or given up
            os._exit(_EXIT_CHILD)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        try:
            os.execvp(argv[0], list(argv))
        except OSError as error:
            line.sendall(f"{argv[0]} cannot be run: {error.strerror}".encode())
    except OSError as error:
        line.sendall((error.strerror or str(error)).encode())
    except BaseException as error:
        line.sendall(f"{type(error).__name__}: {error}".encode())
    finally:
        sys.stderr = None  # nothing of this process is to be flushed twice
        os._exit(_EXIT_CHILD)


def _reserve(first: int, count: int) -> None:
    """Fill the range with placeholders: open files that refuse every call which does not come to us."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < first + count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (first + count, hard))
    with placeholder() as inert:
        for number in range(first, first + count):
            os.dup2(inert.fileno(), number)


def _install(libc: ctypes.CDLL, filter_program: bytes) -> int:
    """Put the filter in place; the descriptor of the notifications."""
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "no_new_privs was refused")
    area = ctypes.create_string_buffer(filter_program, len(filter_program))
    count = len(filter_program) // _INSTRUCTION_BYTES
    head = ctypes.create_string_buffer(_PROGRAM.pack(count, ctypes.addressof(area)), _PROGRAM.size)
    flags = _NEW_LISTENER | _WAIT_KILLABLE_RECV
    listener = libc.syscall(
        ctypes.c_long(calls().seccomp), ctypes.c_ulong(_SET_MODE_FILTER), ctypes.c_ulong(flags), head
    )
    if listener >= 0:
        return int(listener)
    number = ctypes.get_errno()
    why = {
        errno.EBUSY: "this process tree already has a listener for seccomp notifications (a container "
        "runtime's, say): run outside of it, or in a container without one",
        errno.EINVAL: "this kernel has no seccomp notification that waits killably: Linux 5.19 or newer is "
        "needed",
        errno.ENOSYS: "this kernel is built without seccomp filters",
        errno.EPERM: "seccomp filters are forbidden here (by a container's own policy, say)",
        errno.EACCES: "seccomp filters are forbidden here",
    }.get(number, os.strerror(number))
    raise OSError(number, f"QEMU cannot be lent a device: {why}")
