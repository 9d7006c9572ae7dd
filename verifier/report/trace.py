# SPDX-License-Identifier: GPL-2.0-or-later
"""A picture as Chrome trace events, which Perfetto (ui.perfetto.dev) and chrome://tracing open.

A process for each end and for the wire, a thread for each lane, a counter for each queue. Times are us since
the picture's first; what it left out, this leaves out too. Items that begin together, as the sections of one
segment do, stand a ns apart, in their order: Perfetto stacks slices that begin together, however many.

Source: "Trace Event Format" (Chromium); Perfetto src/trace_processor/importers/json/json_trace_parser_impl.cc
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from verifier.report.downtime import Part
from verifier.report.lanes import GROUPS, MIGRATION
from verifier.report.picture import Picture, Row
from verifier.report.tracks import Bands, Bars, Curve, Marks

Event = dict[str, Any]
_NS_PER_US = 1000
_LANES = 10_000  # numbers of threads are never shared, for some readers know a thread by its number alone


def trace_of(pictures: Sequence[tuple[Picture, Sequence[Part]]]) -> dict[str, Any]:
    """The object of the whole file. Several migrations are several sets of processes, each from time 0."""
    events: list[Event] = []
    told: dict[str, Any] = {"producer": "vfmig"}
    for number, (picture, parts) in enumerate(pictures):
        suffix = f" {number + 1}" if len(pictures) > 1 else ""
        events += _events(picture, parts, len(GROUPS) * number + 1, suffix)
        told[f"first_ns{suffix}"] = str(picture.first_ns)
        if picture.quantum_ns:
            told[f"merged within ns{suffix}"] = str(picture.quantum_ns)
        if picture.left_out:
            told[f"left out{suffix}"] = "; ".join(picture.left_out)
    return {"displayTimeUnit": "ns", "otherData": told, "traceEvents": events}


def _events(picture: Picture, parts: Sequence[Part], pid: int, suffix: str) -> Iterator[Event]:
    pids = {group: pid + place for place, group in enumerate(GROUPS)}
    for group, number in pids.items():
        yield _named("process_name", number, number, name=group + suffix)
        yield _named("process_sort_index", number, number, sort_index=number)
    for place, part in enumerate(parts, 1):
        lane = pids[MIGRATION], pid * _LANES + place
        yield _named("thread_name", *lane, name=f"downtime: {part.name}")
        if part.start is not None and part.end is not None:
            yield _slice(picture, lane, part.start, part.end, part.name, {"about": part.about})
    for tid, row in enumerate(picture.rows, pid * _LANES + len(parts) + 1):
        lane = pids[row.key.group], tid
        if not isinstance(row.track, Curve):
            yield _named("thread_name", *lane, name=f"{row.key.name} {row.key.what}")
            yield _named("thread_sort_index", *lane, sort_index=tid)
        yield from _row(picture, row, lane)


def _row(picture: Picture, row: Row, lane: tuple[int, int]) -> Iterator[Event]:
    track = row.track
    if isinstance(track, Bars):
        yield from _bars(picture, track, lane)
    elif isinstance(track, Curve):
        name = f"{row.key.name} queue ({row.unit})"
        for time_ns, top, last in zip(track.times, track.tops, track.lasts, strict=True):
            if top != last:
                yield _counter(picture, lane, name, time_ns, top)
            yield _counter(picture, lane, name, time_ns, last)
    elif isinstance(track, Bands):
        starts = list(_apart(track.starts))
        ends = [*starts[1:], max(starts[-1], picture.last_ns)] if starts else []
        for start, end, word in zip(starts, ends, track.words, strict=True):
            yield _slice(picture, lane, start, end, word, {})
    elif isinstance(track, Marks):
        for time_ns, text in zip(_apart(track.times), track.texts, strict=True):
            yield _event("i", picture, lane, time_ns, text) | {"s": "t"}


def _bars(picture: Picture, bars: Bars, lane: tuple[int, int]) -> Iterator[Event]:
    """Slices of one thread must nest, so none reaches beyond the start of the next."""
    starts = [*_apart(bars.starts)]
    for i, start in enumerate(starts):
        word = picture.words[bars.words[i]]
        args: dict[str, Any] = {"bytes": bars.sizes[i]}
        if bars.counts[i] > 1:
            args["merged"] = bars.counts[i]
        if bars.indexes[i] >= 0:
            args["index"] = bars.indexes[i]
        if bars.offsets[i] >= 0:
            args["offset"] = bars.offsets[i]
        if word.device:
            args["device"] = word.device
        end = max(start, bars.ends[i])
        if i + 1 < len(starts):
            end = min(end, starts[i + 1])
        yield _slice(picture, lane, start, end, word.text, args)


def _apart(starts: Iterable[int]) -> Iterator[int]:
    """Times in order, each later than the one before."""
    at: int | None = None
    for start in starts:
        at = start if at is None else max(start, at + 1)
        yield at


def _slice(
    picture: Picture, lane: tuple[int, int], start: int, end: int, name: str, args: dict[str, Any]
) -> Event:
    event = _event("X", picture, lane, start, name) | {"dur": (end - start) / _NS_PER_US}
    return event | {"args": args} if args else event


def _counter(picture: Picture, lane: tuple[int, int], name: str, time_ns: int, value: int) -> Event:
    return _event("C", picture, lane, time_ns, name) | {"args": {"waiting": value}}


def _event(phase: str, picture: Picture, lane: tuple[int, int], time_ns: int, name: str) -> Event:
    ts = (time_ns - picture.first_ns) / _NS_PER_US
    return {"ph": phase, "name": name, "cat": "vfmig", "pid": lane[0], "tid": lane[1], "ts": ts}


def _named(what: str, pid: int, tid: int, **args: Any) -> Event:
    return {"ph": "M", "name": what, "pid": pid, "tid": tid, "args": args}
