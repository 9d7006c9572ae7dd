# SPDX-License-Identifier: GPL-2.0-or-later
"""Every random choice of a simulation, from one seed.

Only `Random.random()` is used: of Python's generator it alone is promised to give the same numbers in every
version and on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TypeVar

T = TypeVar("T")


class Chance:
    """A stream of choices. Two made from the same seed choose alike."""

    def __init__(self, seed: int) -> None:
        self.next = Random(seed).random  # in [0, 1)

    def below(self, count: int) -> int:
        """A number from 0 to count - 1."""
        return int(self.next() * count)

    def between(self, low: int, high: int) -> int:
        """A number from low to high, both included."""
        return low + int(self.next() * (high - low + 1))

    def one_in(self, count: int) -> bool:
        """True once in `count` times."""
        return self.next() * count < 1

    def of(self, choices: Sequence[T]) -> T:
        """One of them."""
        return choices[int(self.next() * len(choices))]
