# SPDX-License-Identifier: GPL-2.0-or-later
"""What lies on one lane of a time line, in columns: bars, a curve, bands of states, marks.

Bars and curves are bounded: items that begin in the same cell of time (a power of two of nanoseconds,
the quantum) become one when there are too many. Times are ns since the epoch.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left


class Bars:
    """Things that take a while. words: number of what each is; indexes: of a buffer or packet, else -1;
    offsets: in the flow, else -1; counts: how many things one bar stands for (its word and index are those
    of the largest and of the first).
    """

    def __init__(self) -> None:
        self.starts = array("q")
        self.ends = array("q")
        self.sizes = array("q")
        self.words = array("l")
        self.indexes = array("q")
        self.offsets = array("q")
        self.counts = array("q")
        self._largest = array("q")

    def __len__(self) -> int:
        return len(self.starts)

    def add(
        self,
        start: int,
        end: int,
        size: int,
        word: int,
        index: int,
        offset: int,
        quantum: int,
        count: int = 1,
    ) -> bool:
        """One more; False when it became part of the last one, whose cell of time it begins in."""
        end = max(start, end)
        if quantum and self.starts and self.starts[-1] // quantum == start // quantum:
            self.ends[-1] = max(self.ends[-1], end)
            self.sizes[-1] += size
            self.counts[-1] += count
            if size > self._largest[-1]:
                self._largest[-1], self.words[-1] = size, word
            return False
        self.starts.append(start)
        self.ends.append(end)
        self.sizes.append(size)
        self.words.append(word)
        self.indexes.append(index)
        self.offsets.append(offset)
        self.counts.append(count)
        self._largest.append(size)
        return True

    def coarser(self, quantum: int) -> Bars:
        """The same in cells of `quantum` ns."""
        return self._rebuilt(range(len(self)), quantum)

    def within(self, first_ns: int, last_ns: int) -> Bars:
        """Those that lie in the given time, in the order of their start."""
        kept = [i for i in range(len(self)) if self.starts[i] >= first_ns and self.ends[i] <= last_ns]
        kept.sort(key=self.starts.__getitem__)
        return self._rebuilt(kept, 0)

    def _rebuilt(self, kept: range | list[int], quantum: int) -> Bars:
        out = Bars()
        for i in kept:
            start, end, size = self.starts[i], self.ends[i], self.sizes[i]
            out.add(
                start, end, size, self.words[i], self.indexes[i], self.offsets[i], quantum, self.counts[i]
            )
        return out

    @property
    def total(self) -> int:
        """How many things all bars stand for."""
        return sum(self.counts)


class Curve:
    """A value that changes in steps. tops: the highest in a cell; lasts: the value at the cell's end."""

    def __init__(self) -> None:
        self.times = array("q")
        self.tops = array("q")
        self.lasts = array("q")

    def __len__(self) -> int:
        return len(self.times)

    def add(self, time_ns: int, top: int, last: int, quantum: int) -> bool:
        """From now on; False when it became part of the last step, whose cell of time it lies in."""
        if quantum and self.times and self.times[-1] // quantum == time_ns // quantum:
            self.tops[-1] = max(self.tops[-1], top)
            self.lasts[-1] = last
            return False
        self.times.append(time_ns)
        self.tops.append(top)
        self.lasts.append(last)
        return True

    def coarser(self, quantum: int) -> Curve:
        """The same in cells of `quantum` ns."""
        out = Curve()
        for values in zip(self.times, self.tops, self.lasts, strict=True):
            out.add(*values, quantum)
        return out

    def within(self, first_ns: int, last_ns: int) -> Curve:
        """The steps that lie in the given time, in their order."""
        out = Curve()
        steps = zip(self.times, self.tops, self.lasts, strict=True)
        for values in sorted(steps, key=lambda step: step[0]):
            if first_ns <= values[0] <= last_ns:
                out.add(*values, 0)
        return out

    @property
    def highest(self) -> int:
        """The highest value, 0 when there is none."""
        return max(self.tops, default=0)


class Bands:
    """States, each from its start until the next one's. words: their names."""

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.words: list[str] = []

    def __len__(self) -> int:
        return len(self.starts)

    def add(self, start: int, word: str) -> None:
        """From now on it is in this state."""
        at = bisect_left(self.starts, start + 1)
        self.starts.insert(at, start)
        self.words.insert(at, word)


class Marks:
    """Moments with a sentence each."""

    def __init__(self) -> None:
        self.times: list[int] = []
        self.texts: list[str] = []

    def __len__(self) -> int:
        return len(self.times)

    def add(self, time_ns: int, text: str) -> None:
        """One more."""
        self.times.append(time_ns)
        self.texts.append(text)


Track = Bars | Curve | Bands | Marks
