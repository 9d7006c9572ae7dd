# SPDX-License-Identifier: GPL-2.0-or-later
"""`vfmig show`: a capture, a journal, a log of QEMU's or an evidence folder, decoded to the last byte."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from verifier.cli.output import printing


@click.command("show")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="One JSON object per frame, one a line.")
def command(path: Path, as_json: bool) -> int:
    """List every frame of a capture, journal, trace log or QMP log in order of time, with offsets, sizes and
    fields.

    Of an evidence folder: first its capture, then its journals and logs on one time line.
    """
    from verifier.report import text

    def emit(entry: dict[str, Any]) -> None:
        if as_json:
            text.write_json(entry)
        else:
            sys.stdout.write(text.entry_text(entry) + "\n")

    with printing():
        _list(path, emit)
    return 0


def _list(path: Path, emit: Callable[[dict[str, Any]], None]) -> None:
    from verifier.check import evidence_of
    from verifier.history.listing import list_capture, list_lines

    evidence = evidence_of(path)
    for capture in evidence.captures:
        list_capture(capture, emit)
    list_lines(evidence.journals, evidence.logs, emit, evidence.events)
