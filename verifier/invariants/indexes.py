# SPDX-License-Identifier: GPL-2.0-or-later
"""A set of numbers that should come to 0..n-1, in any order, kept small."""

from __future__ import annotations

from verifier.history.facts import Facts


class IndexSet:
    """Numbers seen so far: all below a mark, and some above it.

    overflowed: so many came out of order that the set was given up; it then says of nothing that it is
    new or missing. How many may wait is counted over all sets of a migration (`Facts.waiting_room`).
    """

    def __init__(self, facts: Facts) -> None:
        self.overflowed = False
        self._facts = facts
        self._next = 0
        self._above: set[int] = set()

    def add(self, number: int) -> bool:
        """Take a number; False when it was there already."""
        if number == self._next:
            self._next += 1
            while self._next in self._above:
                self._above.remove(self._next)
                self._facts.waiting_room += 1
                self._next += 1
            return True
        if self.overflowed:
            return True
        if number < self._next or number in self._above:
            return False
        self._above.add(number)
        self._facts.waiting_room -= 1
        if self._facts.waiting_room < 0:
            self.overflowed = True
            self._facts.waiting_room += len(self._above)
            self._above.clear()
        return True

    @property
    def gap(self) -> int | None:
        """The lowest number that is missing below the highest, or None."""
        return self._next if self._above else None
