# SPDX-License-Identifier: GPL-2.0-or-later
"""Where tables and colours go."""

from __future__ import annotations

from typing import TextIO

from rich.console import Console

_WIDTH_OF_A_FILE = 200  # a file or pipe has no width: do not fold tables in it


class _Console(Console):
    """Leaves it to the caller what a reader that left means; rich would end the process with status 1."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def open_console(out: TextIO) -> Console:
    """A console on `out`: colours only on a terminal, never with NO_COLOR; elsewhere nothing is folded."""
    width = None if out.isatty() else _WIDTH_OF_A_FILE
    return _Console(file=out, width=width, highlight=False, soft_wrap=True)
