# SPDX-License-Identifier: GPL-2.0-or-later
"""A downtime broken into its parts, each with what it was told from. Parts overlap: a buffer is loaded
while the next one is saved.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from verifier.report.lanes import SOURCE, TARGET
from verifier.report.timeline import Timeline


class Part(NamedTuple):
    """One part. start, end: ns since the epoch, None where the evidence does not say. about: what it is, or,
    where an edge is missing, what is lacking."""

    name: str
    start: int | None
    end: int | None
    about: str

    @property
    def known(self) -> bool:
        """Whether both edges are."""
        return self.start is not None and self.end is not None

    @property
    def duration_ns(self) -> int | None:
        """How long it took, None when that is not known."""
        return None if self.start is None or self.end is None else self.end - self.start


_STOPPING = ("RUNNING_P2P", "PRE_COPY_P2P", "STOP", "STOP_COPY")
_RAN = ("RUNNING", "PRE_COPY")


def parts_of(timeline: Timeline) -> list[Part]:
    """The whole downtime first, then stop, save, transfer, load, config and resume."""
    moments, facts = timeline.moments, timeline.facts
    stop, saving, stopped = _stops(timeline)
    left, running = _resumes(timeline)
    start = moments.stop if moments.stop is not None else stop
    end = moments.resume if moments.resume is not None else running
    first, last = facts.state_first_ns, facts.state_last_ns
    by_capture = first is not None and last is not None
    if not by_capture:
        first, last = moments.sent_first, moments.received_last
    states_of = "the {} tells no states of its devices"
    return [
        _part(
            "downtime", start, end, "from the source's stop to the target's resume", "no stop or no resume"
        ),
        _part(
            "stop",
            start,
            stopped,
            "until the source's last device has stopped",
            states_of.format(SOURCE),
        ),
        _part(
            "save",
            saving,
            moments.saved_last,
            "from the first STOP_COPY until the last buffer was read from a device",
            "no journal of the source tells what was read",
        ),
        _part(
            "transfer",
            first,
            last,
            f"device state after the switchover, from its first byte to its last, by the "
            f"{'capture' if by_capture else 'journals'}",
            "no device state after a switchover in capture or journals",
        ),
        _part(
            "load",
            moments.load_first,
            moments.load_last,
            "from the first buffer given to a device of the target until the last was taken",
            "neither journal nor trace log tells of a buffer that was loaded",
        ),
        _part(
            "config",
            moments.config_first,
            moments.config_last,
            "config states, from the first that could be loaded until the last was",
            "neither journal nor trace log tells of a config state that was loaded",
        ),
        _part(
            "resume",
            left,
            end,
            "from the first device that leaves RESUMING until the target runs",
            "the target tells of no device that left RESUMING and ran",
        ),
    ]


def _part(name: str, start: int | None, end: int | None, about: str, lacking: str) -> Part:
    if start is None or end is None:
        return Part(name, start, end, lacking)
    if end < start:
        return Part(name, None, None, "its end would lie before its start: the clocks do not fit")
    return Part(name, start, end, about)


def _stops(timeline: Timeline) -> tuple[int | None, int | None, int | None]:
    """Of the source's devices: when the first left its last time of running, when the first began to save,
    and when the last one had stopped."""
    begun, saving, stopped = [], [], []
    for starts, words in _states(timeline, SOURCE):
        if "STOP_COPY" not in words:
            continue
        at = words.index("STOP_COPY")
        saving.append(starts[at])
        back = at
        while back and words[back - 1] in _STOPPING:
            back -= 1
        if back and words[back - 1] in _RAN:
            begun.append(starts[back])
        halted = [i for i in range(back, at + 1) if words[i] in ("STOP", "STOP_COPY")]
        stopped.append(starts[halted[0]])
    return min(begun, default=None), min(saving, default=None), max(stopped, default=None)


def _resumes(timeline: Timeline) -> tuple[int | None, int | None]:
    """Of the target's devices: when the first left RESUMING, and when the last ran after that."""
    left, ran = [], []
    for starts, words in _states(timeline, TARGET):
        if "RESUMING" not in words:
            continue
        at = words.index("RESUMING") + 1
        if at < len(words):
            left.append(starts[at])
        if "RUNNING" not in words[at:]:
            return min(left, default=None), None
        ran.append(starts[words.index("RUNNING", at)])
    return min(left, default=None), max(ran, default=None)


def _states(timeline: Timeline, role: str) -> Iterable[tuple[list[int], list[str]]]:
    return ((bands.starts, bands.words) for (end, _), bands in timeline.lanes.states.items() if end == role)
