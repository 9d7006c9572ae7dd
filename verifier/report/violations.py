# SPDX-License-Identifier: GPL-2.0-or-later
"""Violations in prose, each with its witnesses: where they are on the time line, and their bytes."""

from __future__ import annotations

from collections.abc import Sequence

from verifier.history.observation import RUN_RECORD
from verifier.report.drawing import WitnessMark
from verifier.report.elements import PASSPORTS, at, more_of, table
from verifier.report.explain import WITNESSES_SHOWN, Sight, dump, ends_of
from verifier.report.lanes import MIGRATION
from verifier.report.markup import Markup, lines, tag
from verifier.report.picture import Picture, Row
from verifier.verdict import Report, Violation, Witness


class Marked:
    """Which picture and lane each witness belongs to. number: "2.1" is the first witness of violation 2."""

    def __init__(
        self, violations: Sequence[Violation], sights: Sequence[Sequence[Sight]], pictures: Sequence[Picture]
    ) -> None:
        self.sights = sights
        self._pictures = pictures
        self._marks: dict[int, list[WitnessMark]] = {}
        self.placed: dict[str, int] = {}  # the number of a witness -> that of its picture
        for place, (violation, seen) in enumerate(zip(violations, sights, strict=True), 1):
            for index, sight in enumerate(seen, 1):
                self._place(f"{place}.{index}", violation, sight.witness)

    def first_ns(self, chapter: int) -> int:
        """When a picture begins."""
        return self._pictures[chapter].first_ns

    def of(self, chapter: int) -> list[WitnessMark]:
        """Those on one picture, by time."""
        return sorted(self._marks.get(chapter, ()), key=lambda mark: mark.time_ns)

    def _place(self, number: str, violation: Violation, witness: Witness) -> None:
        if witness.flow.endswith(RUN_RECORD):
            return  # written when all was over
        for chapter, picture in enumerate(self._pictures):
            for row, lane in enumerate(picture.rows):
                if not _belongs(witness, violation, lane, picture):
                    continue
                at = min(max(witness.time_ns, picture.first_ns), picture.last_ns)
                mark = WitnessMark(number, row, at, f"{violation.id}: {violation.message}")
                self._marks.setdefault(chapter, []).append(mark)
                self.placed[number] = chapter
                return


def _belongs(witness: Witness, violation: Violation, row: Row, picture: Picture) -> bool:
    """Whether a witness is shown on this lane: a frame on its flow's; a line on that of the device that the
    violation is about, else on that of the end that wrote it."""
    if row.lane is not None:
        inside = picture.first_ns <= witness.time_ns <= picture.last_ns
        return inside and str(row.lane) == ends_of(witness)
    if " > " in witness.flow:
        return False
    role = witness.flow.partition(" ")[0]
    devices = [r for r in picture.rows if r.key.group == role and r.key.name in violation.scope]
    if devices:
        return row in devices
    return (row.key.group, row.key.name) == (MIGRATION, role)


def violations(report: Report, shown: Sequence[Violation], marks: Marked) -> Markup | None:
    """The section of them all; None when there is none."""
    if not shown:
        return None
    told = zip(shown, marks.sights, strict=True)
    return tag(
        "section",
        tag("h2", "Violations"),
        [_violation(number, *violation, marks) for number, violation in enumerate(told, 1)],
        more_of(len(report.violations) - len(shown), "violations, which vfmig check --json tells"),
        id="violations",
        tabindex=-1,
    )


def _violation(number: int, violation: Violation, sights: Sequence[Sight], marks: Marked) -> Markup:
    passport = PASSPORTS.get(violation.id)
    return tag(
        "article",
        tag(
            "h3",
            tag("span", number, class_="number"),
            f" {violation.id} ",
            tag("span", violation.severity, class_="severity"),
        ),
        tag("p", tag("b", _capital(violation.message)), Markup(" &mdash; "), f"on {violation.scope}."),
        tag(
            "p",
            "What must hold: ",
            tag("q", violation.statement),
            f" Source: {passport.source}." if passport is not None else "",
        ),
        tag(
            "ol",
            [_witness(f"{number}.{i}", sight, marks) for i, sight in enumerate(sights, 1)],
            class_="witnesses",
        ),
        more_of(len(violation.witnesses) - WITNESSES_SHOWN, "witnesses"),
        id=f"violation-{number}",
        class_="violation",
        tabindex=-1,
    )


def _witness(number: str, sight: Sight, marks: Marked) -> Markup:
    witness = sight.witness
    where = f"{witness.flow}, byte {witness.offset:,}, {witness.size:,} bytes, in {witness.file}"
    there = marks.placed.get(number)
    if there is not None:
        where = f"at {at(witness.time_ns, marks.first_ns(there))}, {where}"
    button = None
    if there is not None:
        label = f"Show witness {number} on the time line"
        button = tag("button", "on the time line", type="button", data_witness=number, aria_label=label)
    return tag(
        "li",
        tag("p", tag("span", number, class_="mark"), " ", _capital(sight.told or "a frame"), " ", button),
        tag("p", where, class_="where"),
        tag("p", f"Its bytes are not shown: {sight.missing}.", class_="note") if sight.missing else None,
        tag("pre", sight.line, tabindex=0, aria_label=f"Text of witness {number}") if sight.line else None,
        _bytes(number, sight) if sight.data else None,
    )


def _bytes(number: str, sight: Sight) -> Markup:
    cut = f" of {sight.witness.size:,}" if sight.witness.size > len(sight.data) else ""
    fields = [
        (field.struct, tag("code", field.name), field.offset, field.size, field.value)
        for field in sight.fields
    ]
    return tag(
        "details",
        tag("summary", f"{len(sight.data)}{cut} bytes and their fields"),
        tag(
            "pre",
            lines("\n".join(dump(sight.data, sight.fields))),
            class_="dump",
            tabindex=0,
            aria_label=f"Bytes of witness {number}",
        ),
        table(
            ("Struct", "Field", "Offset", "Size", "Value"),
            fields,
            f"Fields of witness {number}",
            numeric=(2, 3),
        )
        if fields
        else None,
        open=True,
    )


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]
