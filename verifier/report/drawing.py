# SPDX-License-Identifier: GPL-2.0-or-later
"""A picture as the data that the page's script draws, small enough for a hundred thousand frames."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from verifier.report.downtime import Part
from verifier.report.picture import Picture, Row
from verifier.report.tracks import Bands, Bars, Curve


class WitnessMark(NamedTuple):
    """A witness on a picture. row: its lane's number; number: as the prose says it."""

    number: str
    row: int
    time_ns: int
    text: str


def drawing_of(picture: Picture, parts: Sequence[Part], marks: Sequence[WitnessMark]) -> dict[str, Any]:
    """Data of one picture. Times are ns since its first; columns of growing numbers hold differences."""
    first = picture.first_ns
    devices = sorted(
        {row.key.name for row in picture.rows if row.key.what in ("states", "saves", "loads", "queue")}
    )
    devices += sorted({word.device for word in picture.words} - {*devices, ""})
    number = {device: place for place, device in enumerate(devices)}
    downtime = parts[0] if parts else None
    return {
        "span": picture.last_ns - first,
        "focus": [edge - first for edge in picture.focus],
        "downtime": [downtime.start - first, downtime.end - first]
        if downtime is not None and downtime.start is not None and downtime.end is not None
        else None,
        "quantum": picture.quantum_ns,
        "devices": devices,
        "words": [[word.style, word.text, number.get(word.device, -1)] for word in picture.words],
        "parts": [
            [part.name, part.start - first, part.end - first, part.about]
            if part.start is not None and part.end is not None
            else [part.name, None, None, part.about]
            for part in parts
        ],
        "rows": [_row(row, first, number) for row in picture.rows],
        "witnesses": [[mark.number, mark.row, mark.time_ns - first, mark.text] for mark in marks],
    }


def _row(row: Row, first: int, number: dict[str, int]) -> dict[str, Any]:
    track = row.track
    out: dict[str, Any] = {
        "group": row.key.group,
        "name": row.key.name,
        "what": row.key.what,
        "about": row.about,
        "device": number.get(row.key.name, -1),
        "type": type(track).__name__.lower(),
    }
    if isinstance(track, Bars):
        out |= {
            "start": _steps(track.starts, first),
            "took": _column([end - start for start, end in zip(track.starts, track.ends, strict=True)]),
            "size": _column(track.sizes),
            "word": _column(track.words),
            "index": _column(track.indexes),
            "offset": _gaps(track),
            "count": _column(track.counts),
        }
    elif isinstance(track, Curve):
        out |= {"start": _steps(track.times, first), "top": _column(track.tops), "last": _column(track.lasts)}
        out |= {"cap": row.cap, "unit": row.unit}
    elif isinstance(track, Bands):
        out |= {"start": _steps(track.starts, first), "words": track.words}
    else:
        out |= {"start": _steps(track.times, first), "words": track.texts}
    return out


def _steps(times: Iterable[int], first: int) -> list[int]:
    """Each as its distance from the one before."""
    out = []
    for time_ns in times:
        out.append(time_ns - first)
        first = time_ns
    return out


def _gaps(bars: Bars) -> list[int] | int:
    """Offsets, as the distance from where the frame before ended, which is mostly 0. -1: there are none."""
    if not len(bars) or bars.offsets[0] < 0:
        return -1
    out, at = [], 0
    for offset, size in zip(bars.offsets, bars.sizes, strict=True):
        out.append(offset - at)
        at = offset + size
    return out


def _column(values: Sequence[int]) -> list[int] | int:
    """The values, or the one that they all are."""
    distinct = set(values)
    return distinct.pop() if len(distinct) == 1 else list(values)
