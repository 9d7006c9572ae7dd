# SPDX-License-Identifier: GPL-2.0-or-later
"""Begin a command in a network namespace: `python -m mockdev.lab.enter NAMESPACE COMMAND...`.

NAMESPACE is a file that stands for one, such as /proc/PID/fd/N. The command gets SIGTERM when its parent
dies. Exit status: the command's, or 3 with a line on stderr when it could not begin.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

CLONE_NEWNET = 0x40000000
EXIT_BEGIN = 3
_PR_SET_PDEATHSIG = 1


def enter(namespace: int) -> None:
    """Move the calling thread into a network namespace, given as a file descriptor. OSError: it may not."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def main() -> None:
    """The process's entry."""
    namespace, *command = sys.argv[1:]
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        file = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
        enter(file)
        os.execvp(command[0], command)
    except OSError as error:
        print(f"cannot begin {command[0]} in namespace {namespace}: {error.strerror}", file=sys.stderr)
        sys.exit(EXIT_BEGIN)


if __name__ == "__main__":
    main()
