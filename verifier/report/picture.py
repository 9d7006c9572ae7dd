# SPDX-License-Identifier: GPL-2.0-or-later
"""What there is to draw of a time line: its lanes in order, and the time that they show."""

from __future__ import annotations

from typing import NamedTuple

from verifier.capture.flows import Lane, Role
from verifier.report.lanes import (
    LANES_MAX,
    LOADS,
    MIGRATION,
    QUEUE,
    SAVES,
    SOURCE,
    STATES,
    TARGET,
    THREADS,
    WIRE,
    Key,
    Lanes,
    Word,
)
from verifier.report.timeline import Moments, Timeline
from verifier.report.tracks import Bands, Bars, Curve, Marks, Track

_FAR_NS = 7 * 86_400 * 10**9  # what is further away than this from the rest is off the time line
_QUEUED = "bytes that wait to be loaded"
_ABOUT = {
    SAVES: "buffers read from the device",
    LOADS: "buffers loaded into the device: from when it could begin until it was taken",
}


class Row(NamedTuple):
    """One lane of a picture. about: what its items are, for a person; cap: of a queue, in `unit`."""

    key: Key
    track: Track
    about: str
    cap: int | None = None
    unit: str = "bytes"
    lane: Lane | None = None


class Picture(NamedTuple):
    """What there is to draw. first_ns, last_ns: its time; focus: the part of it that is the migration.

    rows: lanes in the order of GROUPS. quantum_ns: what began within so short a time on one lane is drawn as
    one, 0: nothing is. left_out: sentences.
    """

    first_ns: int
    last_ns: int
    focus: tuple[int, int]
    rows: list[Row]
    words: list[Word]
    quantum_ns: int
    left_out: list[str]


def picture_of(timeline: Timeline, items_max: int) -> Picture:
    """What there is to draw, in at most `items_max` bars and steps, or one a lane and cell of time."""
    lanes = timeline.lanes
    timeline.flush()
    lanes.fit(items_max)
    first, last, focus = _span(lanes, timeline.moments)
    rows = [_marks_row(lanes, role) for role in (SOURCE, TARGET) if role in lanes.marks]
    rows += [*_end_rows(timeline, SOURCE), *_wire_rows(lanes), *_end_rows(timeline, TARGET)]
    kept: list[Row] = []
    off = 0
    for row in rows:
        track = _within(row.track, first, last)
        off += len(row.track) - len(track)
        if len(track):
            kept.append(row._replace(track=track))
    left_out = [f"{count} {what}" for what, count in lanes.dropped.items()]
    if off:
        left_out.append(f"{off} items whose time lies more than a week from the rest")
    if len(kept) > LANES_MAX:
        left_out.append(f"{len(kept) - LANES_MAX} lanes")
    return Picture(
        first,
        last,
        focus,
        kept[:LANES_MAX],
        [Word(*word) for word in lanes.words],
        lanes.quantum,
        left_out,
    )


def _span(lanes: Lanes, moments: Moments) -> tuple[int, int, tuple[int, int]]:
    """The whole time, and that of the migration."""
    wire = [t for bars in lanes.flows.values() for t in (bars.starts[0], max(bars.ends))]
    said = [t for bands in _bands_shown(lanes).values() for t in bands.starts]
    said += [t for marks in lanes.marks.values() for t in marks.times]
    said += [t for bars in lanes.bars.values() if len(bars) for t in (min(bars.starts), max(bars.ends))]
    said += [t for curve in lanes.curves.values() if len(curve) for t in (min(curve.times), max(curve.times))]
    if not wire and not said:
        return 0, 1, (0, 1)
    anchor = min(wire) if wire else sorted(said)[len(said) // 2]
    near = [t for t in (*wire, *said) if abs(t - anchor) <= _FAR_NS]
    first, last = min(near), max(near)
    inner = [t for t in wire if abs(t - anchor) <= _FAR_NS]
    inner += [t for t in (moments.stop, moments.resume) if t is not None and first <= t <= last]
    low, high = (min(inner), max(inner)) if wire else (first, last)
    margin = max(1, (high - low) // 50)
    return (
        first,
        max(last, first + 1),
        (max(first, low - margin), min(max(last, first + 1), high + margin)),
    )


def _bands_shown(lanes: Lanes) -> dict[tuple[str, str], Bands]:
    """States by journals; those of a QEMU's log only at an end that has no journal of them."""
    told = {role for role, _ in lanes.states}
    return lanes.states | {key: bands for key, bands in lanes.traced.items() if key[0] not in told}


def _marks_row(lanes: Lanes, role: str) -> Row:
    about = f"what the {role} says of the migration"
    return Row(Key(MIGRATION, role, "marks"), lanes.marks[role], about)


def _end_rows(timeline: Timeline, role: str) -> list[Row]:
    """A device's lanes together, its states first; then threads."""
    lanes = timeline.lanes
    begin = timeline.facts.begins.get(role)
    cap = begin.queue_cap if begin is not None else None
    bands = {device: bands for (end, device), bands in _bands_shown(lanes).items() if end == role}
    keys = [Key(*key) for key in (*lanes.bars, *lanes.curves) if key[0] == role]
    rows: list[Row] = []
    for device in sorted({*bands, *(key.name for key in keys if key.what != THREADS)}):
        if device in bands:
            rows.append(Row(Key(role, device, STATES), bands[device], "the device's migration state"))
        for what, about in _ABOUT.items():
            key = Key(role, device, what)
            if key in lanes.bars:
                rows.append(Row(key, lanes.bars[key], about))
        key = Key(role, device, QUEUE)
        if key in lanes.curves:
            by_log = device in lanes.counted
            about = "buffers that wait to be loaded, by the trace log" if by_log else _QUEUED
            curve, unit = lanes.curves[key], "buffers" if by_log else "bytes"
            rows.append(Row(key, curve, about, None if by_log else cap, unit))
    threads = sorted((key for key in keys if key.what == THREADS), key=_natural)
    return rows + [Row(key, lanes.bars[key], "the life of a thread, by the trace log") for key in threads]


def _wire_rows(lanes: Lanes) -> list[Row]:
    order = {Role.MAIN: 0, Role.RETURN_PATH: 1, Role.CHANNEL: 2}
    flows = sorted(
        lanes.flows,
        key=lambda lane: (order.get(lane.role, 3), -1 if lane.channel is None else lane.channel),
    )
    about = "frames; a buffer from its header to its last byte"
    return [Row(Key(WIRE, lane.name, "frames"), lanes.flows[lane], about, lane=lane) for lane in flows]


def _natural(key: Key) -> tuple[str, int]:
    text, _, number = key.name.rpartition(" ")
    return text, int(number)


def _within(track: Track, first: int, last: int) -> Track:
    """What of a track lies in the given time, in order."""
    if isinstance(track, Bars | Curve):
        return track.within(first, last)
    if isinstance(track, Bands):
        bands = Bands()
        for start, word in zip(track.starts, track.words, strict=True):
            if first <= start <= last:
                bands.add(start, word)
        return bands
    marks = Marks()
    for time_ns, text in sorted(zip(track.times, track.texts, strict=True), key=lambda mark: mark[0]):
        if first <= time_ns <= last:
            marks.add(time_ns, text)
    return marks
