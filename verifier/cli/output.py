# SPDX-License-Identifier: GPL-2.0-or-later
"""Standard output when it breaks: a reader that leaves, a disk that is full."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import click

from mockdev.errors import VfmigError


class OutputError(VfmigError):
    """What we had to say could not be written."""

    environment = True


@contextmanager
def printing() -> Iterator[None]:
    """What is printed within has been written behind it.

    A reader that leaves (`| head`) has what it wanted: the rest of the block is skipped, without an error.
    OutputError: it cannot be written for another reason.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        _drop_the_rest()
    except OSError as error:
        if error.filename is not None:
            raise
        _drop_the_rest()
        raise OutputError(f"standard output cannot be written: {error.strerror}") from None


def passing(line: str) -> None:
    """Show on a terminal, and nowhere else, how far we are: a line that the next one is written over."""
    if sys.stderr.isatty():
        click.echo(f"\r\x1b[K{line}", nl=False, err=True)


def _drop_the_rest() -> None:
    """Keep the interpreter from trying again at its end, and from complaining."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
