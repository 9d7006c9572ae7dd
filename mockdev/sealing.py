# SPDX-License-Identifier: GPL-2.0-or-later
"""Seals a capture file that was just written: reads it back and appends the seal (`wire.seal`)."""

from __future__ import annotations

import os
from contextlib import suppress

from mockdev.wire.seal import seal

_PIECE = 1 << 18  # read at once


def append_seal(file: int, end: int) -> None:
    """Seal the `end` bytes of an open file. One without room for a seal, or not to be read, has none."""
    with suppress(OSError):
        block = seal(os.pread(file, _PIECE, at) for at in range(0, end, _PIECE))
        if os.pwrite(file, block, end) != len(block):
            os.ftruncate(file, end)
