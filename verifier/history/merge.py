# SPDX-License-Identifier: GPL-2.0-or-later
"""One time line of a capture and the journals and trace logs of the same run."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator

from verifier.history.observation import Said


class Lines:
    """The lines of several files by time, given out as the capture's clock reaches them.

    Each file keeps its own order; only between files, and against the capture, time decides.
    """

    def __init__(self, journals: Iterable[Iterable[Said]] = ()) -> None:
        self._merged: Iterator[Said] = iter(heapq.merge(*journals, key=lambda said: said.time_ns))
        self._next: Said | None = None
        self.next_ns = 0  # of the next line; a capture observation before it need not ask
        self._advance()

    def until(self, time_ns: int) -> Iterator[Said]:
        """The lines that were written before `time_ns`, or at it."""
        while self._next is not None and self.next_ns <= time_ns:
            said = self._next
            self._advance()
            yield said

    def rest(self) -> Iterator[Said]:
        """All lines that are left."""
        while self._next is not None:
            said = self._next
            self._advance()
            yield said

    def _advance(self) -> None:
        self._next = next(self._merged, None)
        self.next_ns = 1 << 63 if self._next is None else self._next.time_ns
