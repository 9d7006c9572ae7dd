# SPDX-License-Identifier: GPL-2.0-or-later
"""The sections of a page that are folded: what few ask for, and the pictures in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

from verifier.report.elements import NS_PER_MS, PASSPORTS, SIGNS, at, folded, more_of, table
from verifier.report.lanes import MIGRATION, SOURCE, TARGET, WIRE
from verifier.report.markup import Markup, tag
from verifier.report.picture import Picture, Row
from verifier.report.sizes import duration_text, size_text
from verifier.report.tracks import Bands, Bars, Curve, Marks
from verifier.verdict import Report, Standing

_UNKNOWN_SHOWN = 200
_STATES_SHOWN = 400
_FLOWS_SHOWN = 600
_GROUP_WORDS = {MIGRATION: "Migration", SOURCE: "Source", WIRE: "Wire", TARGET: "Target"}


def unknown(report: Report) -> Markup | None:
    """What could not be judged, by its reason."""
    if not report.unknown:
        return None
    reasons: dict[str, list[str]] = {}
    for unknown in report.unknown:
        ids = reasons.setdefault(unknown.why, [])
        if unknown.id not in ids:
            ids.append(unknown.id)
    body = [(why, ", ".join(ids)) for why, ids in list(reasons.items())[:_UNKNOWN_SHOWN]]
    return folded(
        "unknown",
        "Unknown",
        f"{len(report.unknown)} that could not be judged, for {len(reasons)} reasons",
        table(("Why", "What"), body, "Unknown"),
        more_of(len(reasons) - _UNKNOWN_SHOWN, "reasons"),
    )


def exercised(report: Report) -> Markup | None:
    """All invariants that were put to the test."""
    rows = report.exercised.invariants
    if not rows:
        return None
    body = [
        (
            tag("code", name),
            _standing(row.standing),
            row.partitions,
            f"{row.observations:,}",
            PASSPORTS[name].statement if name in PASSPORTS else "",
        )
        for name, row in rows.items()
    ]
    return folded(
        "exercised",
        "Exercised",
        f"{len(rows)} invariants, and how much each was put to the test",
        table(
            ("Id", "Standing", "Partitions", "Observations", "What must hold"),
            body,
            "Exercised",
            numeric=(2, 3),
        ),
    )


def _standing(standing: Standing) -> Markup:
    return tag("span", f"{SIGNS[standing]} {standing.value}", class_=standing.value)


def in_words(drawn: Sequence[tuple[int, Picture]]) -> Markup | None:
    """What the pictures show."""
    if not drawn:
        return None
    content = [_lanes(number, picture, len(drawn) > 1) for number, picture in drawn]
    return folded("words", "The picture in words", "lanes, moments and states", *content)


def _lanes(number: int, picture: Picture, several: bool) -> Markup:
    first = picture.first_ns
    of = f" of migration {number + 1}" if several else ""
    lanes = [
        (
            _GROUP_WORDS[row.key.group],
            tag("code", row.key.name),
            row.key.what,
            row.about,
            *_measures(row),
            at(min(_times(row)), first),
            at(max(_times(row)), first),
        )
        for row in picture.rows
    ]
    marks = sorted(
        (time_ns, row.key.name, text)
        for row in picture.rows
        if isinstance(row.track, Marks)
        for time_ns, text in zip(row.track.times, row.track.texts, strict=True)
    )
    states = list(chain.from_iterable(_states(picture, row) for row in picture.rows))
    heads = ("Part", "Name", "Lane", "What", "Items", "How much", "First", "Last")
    return tag(
        "div",
        tag("h3", f"Lanes{of}"),
        table(heads, lanes, f"Lanes{of}", numeric=(4, 5, 6, 7)),
        tag("h3", f"Moments{of}"),
        table(
            ("When", "End", "What"),
            [(at(t, first), role, text) for t, role, text in marks],
            "Moments",
            numeric=(0,),
        ),
        tag("h3", f"States of devices{of}"),
        table(("End", "Device", "State", "From", "For"), states[:_STATES_SHOWN], "States", numeric=(3, 4)),
        more_of(len(states) - _STATES_SHOWN, "states"),
    )


def _times(row: Row) -> Sequence[int]:
    track = row.track
    return track.starts if isinstance(track, Bars | Bands) else track.times


def _measures(row: Row) -> tuple[str, str]:
    """How many items a lane has, and what they come to."""
    track = row.track
    if isinstance(track, Bars):
        size = sum(track.sizes)
        return f"{track.total:,}", size_text(size) if size else ""
    if isinstance(track, Curve):
        show = size_text if row.unit == "bytes" else (lambda value: f"{value} {row.unit}")
        cap = "" if row.cap is None else f", at most {show(row.cap)} allowed"
        return f"{len(track):,}", f"at most {show(track.highest)}{cap}"
    return f"{len(track):,}", ""


def _states(picture: Picture, row: Row) -> Iterator[tuple[object, ...]]:
    track = row.track
    if isinstance(track, Bands):
        ends = [*track.starts[1:], picture.last_ns]
        for start, end, word in zip(track.starts, ends, track.words, strict=True):
            took = duration_text((end - start) / NS_PER_MS)
            yield row.key.group, tag("code", row.key.name), word, at(start, picture.first_ns), took


def inputs(report: Report) -> Markup:
    """The files that were read, and the flows of a capture."""
    body = [
        (tag("code", row.path), size_text(row.size), tag("code", row.digest), row.error)
        for row in report.inputs
    ]
    flows = [
        (
            tag("code", flow.flow),
            flow.role if flow.channel is None else f"channel {flow.channel}",
            f"{flow.frames:,}",
            f"{flow.total_bytes:,}",
            f"{flow.decoded_bytes:,}",
            f"{flow.lost_bytes:,}",
            f"{flow.undecodable_bytes:,}",
            flow.ended,
            flow.why,
        )
        for capture in report.exercised.accounting
        for flow in capture.flows
    ]
    heads = ("Flow", "Role", "Frames", "Bytes", "Decoded", "Lost", "Undecodable", "Ended", "Why")
    return folded(
        "inputs",
        "Inputs",
        f"{len(report.inputs)} files, {len(flows)} flows",
        table(("File", "Size", "Digest", "Error"), body, "Inputs", numeric=(1,)),
        table(heads, flows[:_FLOWS_SHOWN], "Flows", numeric=range(2, 7)) if flows else None,
        more_of(len(flows) - _FLOWS_SHOWN, "flows"),
    )
