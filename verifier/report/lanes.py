# SPDX-License-Identifier: GPL-2.0-or-later
"""The lanes of a time line while it is collected: what is kept is bounded, and what is not is counted."""

from __future__ import annotations

from typing import Any, NamedTuple

from verifier.capture.flows import Lane
from verifier.history.observation import Seen
from verifier.report.tracks import Bands, Bars, Curve, Marks

ITEMS_MAX = 90_000  # bars and steps of one page
LANES_MAX = 640
STATES_MAX = 20_000  # of all devices
MARKS_MAX = 512  # of one lane
WORDS_MAX = 4096
_QUANTUM_NS = 1 << 13
LAST_NS = 1 << 62
_SIZE_MAX = 1 << 40  # what a hostile journal may say of one buffer: sums of it stay within 64 bits
TEXT_MAX = 300

MIGRATION, SOURCE, WIRE, TARGET = "migration", "source", "wire", "target"
GROUPS = (MIGRATION, SOURCE, WIRE, TARGET)
STATES, SAVES, LOADS, QUEUE, THREADS = "states", "saves", "loads", "queue", "threads"


class Key(NamedTuple):
    """A lane. group: one of GROUPS; name: of a device, a flow or an end; what: one of STATES and so on, or
    "marks" or "frames"."""

    group: str
    name: str
    what: str


class Word(NamedTuple):
    """What a bar is. style: ram, sync, control, buffer, config, thread or bad; device: whose, "" of none."""

    style: str
    text: str
    device: str = ""


class Lanes:
    """All lanes of one migration. bars, curves: by a Key's fields; marks: by end; flows: frames by flow.

    states: of devices, by end and device; traced: those that only a QEMU's log tells. words: what bars are (a
    Word's fields), with their numbers. counted: devices whose queue counts buffers, not bytes. quantum: cell
    of time within which items become one, 0: none do. dropped: what is left out, and how often.
    """

    def __init__(self) -> None:
        self.words: dict[tuple[str, str, str], int] = {}
        self.bars: dict[tuple[str, str, str], Bars] = {}
        self.curves: dict[tuple[str, str, str], Curve] = {}
        self.marks: dict[str, Marks] = {}
        self.states: dict[tuple[str, str], Bands] = {}
        self.traced: dict[tuple[str, str], Bands] = {}
        self.flows: dict[Lane, Bars] = {}
        self.dropped: dict[str, int] = {}
        self.counted: set[str] = set()
        self.quantum = 0
        self._items = 0
        self._states_kept = 0

    def room(self, lanes: dict[Any, Any]) -> bool:
        """Whether there may be one more lane of this kind."""
        if len(lanes) < LANES_MAX:
            return True
        self.drop("lanes beyond the first of a kind")
        return False

    def drop(self, what: str) -> None:
        """One thing that is left out."""
        self.dropped[what] = self.dropped.get(what, 0) + 1

    def word(self, style: str, text: str, device: str = "") -> int:
        """The number of what a bar is."""
        word = style, text, device[:TEXT_MAX]
        number = self.words.get(word)
        if number is None:
            if len(self.words) >= WORDS_MAX:
                word = style, "other", ""
            number = self.words.setdefault(word, len(self.words))
        return number

    def bar(
        self, group: str, name: str, what: str, start: int, end: int, size: int, word: int, index: int = -1
    ) -> None:
        """Something that an end did. name: of a device or thread; what: SAVES, LOADS or THREADS."""
        key = group, name[:TEXT_MAX], what
        bars = self.bars.get(key)
        if bars is None:
            if not self.room(self.bars):
                return
            bars = self.bars[key] = Bars()
        size, index = max(0, min(size, _SIZE_MAX)), max(-1, min(index, _SIZE_MAX))
        if bars.add(start, end, size, word, index, -1, self.quantum):
            self._grew()

    def frame(self, seen: Seen, end: int, word: int, index: int = -1) -> None:
        """An event of a flow, which begins when it was seen."""
        self.frame_at(seen.lane, seen.time_ns, end, seen.event.size, word, index, seen.event.offset)

    def frame_at(
        self, lane: Lane, start: int, end: int, size: int, word: int, index: int, offset: int
    ) -> None:
        """A frame of a flow."""
        bars = self.flows.get(lane)
        if bars is None:
            if not self.room(self.flows):
                return
            bars = self.flows[lane] = Bars()
        if bars.add(start, end, size, word, min(index, LAST_NS), offset, self.quantum):
            self._grew()

    def step(self, role: str, name: str, time_ns: int, value: int) -> None:
        """A queue of a device, from now on."""
        key = role, name[:TEXT_MAX], QUEUE
        curve = self.curves.get(key)
        if curve is None:
            if not self.room(self.curves):
                return
            curve = self.curves[key] = Curve()
        value = max(0, min(value, _SIZE_MAX))
        if curve.add(time_ns, value, value, self.quantum):
            self._grew()

    def _grew(self) -> None:
        self._items += 1
        if self._items > 2 * ITEMS_MAX:
            self.fit(ITEMS_MAX)

    def fit(self, items_max: int) -> None:
        """Make the cells of time larger until there are few enough items."""
        while self._items > items_max:
            self.quantum = max(_QUANTUM_NS, 2 * self.quantum)
            if self.quantum >= 1 << 62:
                return
            q = self.quantum
            self.bars = {key: bars.coarser(q) for key, bars in self.bars.items()}
            self.flows = {lane: bars.coarser(q) for lane, bars in self.flows.items()}
            self.curves = {key: curve.coarser(q) for key, curve in self.curves.items()}
            tracks = (self.bars.values(), self.flows.values(), self.curves.values())
            self._items = sum(len(track) for kind in tracks for track in kind)

    def say(self, role: str, time_ns: int, text: str) -> None:
        """A moment of one end."""
        marks = self.marks.setdefault(role, Marks())
        if len(marks) >= MARKS_MAX:
            self.drop("marks")
        else:
            marks.add(time_ns, text[:TEXT_MAX])

    def bands(self, states: dict[tuple[str, str], Bands], role: str, device: str) -> Bands | None:
        """The states of a device, with room for one more; None: there is none."""
        key = role, device[:TEXT_MAX]
        bands = states.get(key)
        if bands is None:
            if not self.room(states):
                return None
            bands = states[key] = Bands()
        if self._states_kept >= STATES_MAX:
            self.drop("states of devices")
            return None
        self._states_kept += 1
        return bands
