# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory for device state and guest RAM: huge pages, touched before anything is timed."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from contextlib import suppress

_PAGE = mmap.PAGESIZE
_PIECE = 16 << 20


def allocate(size: int, check: Callable[[], None] = lambda: None) -> memoryview:
    """`size` zero bytes (1 or more) of anonymous memory that has its pages already; see `touch`."""
    view = reserve(size)
    touch(view, check)
    return view


def reserve(size: int) -> memoryview:
    """`size` zero bytes (1 or more) of anonymous memory, in huge pages that come as they are touched."""
    area = mmap.mmap(-1, max(size, 1), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError, AttributeError):  # a kernel without them gives small pages: slower, not wrong
        area.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(area)[:size]


def touch(view: memoryview, check: Callable[[], None] = lambda: None) -> None:
    """Take the page faults of reserved memory in advance: a fresh page costs five times a copy into it.

    check: called every few MiB, for it can take seconds; what it raises ends the work.
    """
    for start in range(0, len(view), _PIECE):
        check()
        piece = view[start : start + _PIECE]
        piece[::_PAGE] = bytes(len(range(0, len(piece), _PAGE)))
