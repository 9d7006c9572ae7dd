# SPDX-License-Identifier: GPL-2.0-or-later
"""Logs of QEMU's, line by line: what stands in them besides events may be of any length."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from verifier.capture.opening import open_file


def whole_lines(path: Path, size_max: int) -> Iterator[tuple[bytes, int]]:
    """Each whole line of up to size_max bytes, and its offset; no more than one is in memory.

    CaptureError as open_file.
    """
    offset = 0
    inside = False  # an overlong line
    with open_file(path) as file:
        while raw := file.readline(size_max):
            whole = raw.endswith(b"\n")
            if whole and not inside:
                yield raw, offset
            inside = not whole
            offset += len(raw)
