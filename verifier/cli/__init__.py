# SPDX-License-Identifier: GPL-2.0-or-later
"""The command `vfmig`: arguments in, calls out, an exit code that can be relied on.

0 all hold · 1 a violation · 2 usage · 3 an error of ours · 4 the environment or an input file cannot do it ·
5 nothing exercised, or unknown · 130 interrupted.
"""

from __future__ import annotations

import os
import signal
import sys

from verifier.cli.interrupts import once

HOLDS, VIOLATED, USAGE, OURS, ENVIRONMENT, UNKNOWN, INTERRUPTED = 0, 1, 2, 3, 4, 5, 130


def main() -> None:
    """The entry point of the installed script. Nothing heavy is imported before Ctrl-C is ours."""
    try:
        _fill_standard_files()
        with once():
            from verifier.cli.group import execute

            status = execute(sys.argv[1:])
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is said: the interpreter's end is no place for it
    except KeyboardInterrupt:
        sys.stderr.write("vfmig: interrupted\n")
        status = INTERRUPTED
    sys.exit(status)


def _fill_standard_files() -> None:
    """A standard file that came closed becomes /dev/null, lest the next file opened takes its number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            mode = os.O_RDONLY if number == 0 else os.O_WRONLY
            os.open(os.devnull, mode)
            setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:  # names of files may hold anything
            reconfigure(errors="backslashreplace")
