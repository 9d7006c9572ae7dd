# SPDX-License-Identifier: GPL-2.0-or-later
"""The page `report.html`: one file that needs nothing else, and says in words all that its pictures show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from importlib.resources import files
from typing import NamedTuple

from verifier.report.appendix import exercised, in_words, inputs, unknown
from verifier.report.downtime import Part
from verifier.report.drawing import WitnessMark, drawing_of
from verifier.report.elements import NS_PER_MS, SIGNS, at, more_of, table
from verifier.report.explain import Sight, shown_of
from verifier.report.markup import Markup, data_block, tag, trusted
from verifier.report.picture import Picture
from verifier.report.sizes import duration_text, rate_text, size_text
from verifier.report.violations import Marked, violations
from verifier.verdict import DeviceRow, Report, Standing, Violation

_DEVICES_SHOWN = 256
_KEYS = (
    ("← →", "earlier, later"),
    ("+ −", "zoom"),
    ("↑ ↓", "lane above, below"),
    (", .", "item before, after"),
    ("p n", "witness before, after"),
    ("d", "downtime"),
    ("m", "migration"),
    ("0", "everything"),
)


class Chapter(NamedTuple):
    """One migration: its picture, and the parts of its downtime."""

    picture: Picture
    parts: Sequence[Part]


def page_of(
    report: Report,
    title: str,
    chapters: Sequence[Chapter],
    sights: Sequence[Sequence[Sight]],
    left_out: Sequence[str] = (),
) -> str:
    """The whole page. sights: of each shown violation's witnesses (`explain.shown_of`, `explain.sights_of`).

    left_out: what the chapters do not show, besides what their pictures say themselves.
    """
    style, style_source = trusted("style", _asset("page.css"))
    script, script_source = trusted("script", _asset("page.js"))
    policy = f"default-src 'none'; style-src {style_source}; script-src {script_source}; base-uri 'none'"
    shown = shown_of(report.violations)
    marks = Marked(shown, sights, [chapter.picture for chapter in chapters])
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{report.standing.value}: {title} - vfmig"),
        style,
    )
    drawn = [(number, chapter) for number, chapter in enumerate(chapters) if chapter.picture.rows]
    body = tag(
        "body",
        tag("a", "Skip to the time line", href="#time-line", class_="skip"),
        tag("a", "Skip to the violations", href="#violations", class_="skip") if report.violations else None,
        tag(
            "main",
            _verdict(report, title, shown),
            _time_lines(drawn, marks, len(chapters), report.timing.downtime_ms, left_out),
            violations(report, shown, marks),
            _devices(report.devices),
            unknown(report),
            exercised(report),
            in_words([(number, chapter.picture) for number, chapter in drawn]),
            inputs(report),
        ),
        data_block("data", [drawing_of(*chapter, marks.of(number)) for number, chapter in drawn]),
        script,
    )
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


def _asset(name: str) -> str:
    return files("verifier.report").joinpath(name).read_text("utf-8")


# --- the verdict ------------------------------------------------------------------------------------


def _verdict(report: Report, title: str, shown: Sequence[Violation]) -> Markup:
    exercised = report.exercised
    judged = sum(1 for row in exercised.invariants.values() if row.standing is not Standing.UNKNOWN)
    counts = (
        f"{judged} of {len(exercised.invariants)} invariants judged on {exercised.frames:,} frames, "
        f"{size_text(exercised.bytes)} in {exercised.flows} flows"
    )
    if exercised.journal_lines or exercised.log_lines:
        counts += f", {exercised.journal_lines:,} journal lines and {exercised.log_lines:,} trace events"
    standing = report.standing
    return tag(
        "header",
        tag("p", "vfmig · live migration of VFIO devices", class_="kicker"),
        tag(
            "h1",
            tag("span", SIGNS[standing], class_="sign", aria_hidden="true"),
            " ",
            standing.value.capitalize(),
            class_=f"standing {standing.value}",
        ),
        tag("p", title, class_="title"),
        tag("p", counts, class_="counts"),
        _facts(report),
        _short(report, shown),
    )


def _facts(report: Report) -> Markup:
    timing, run = report.timing, report.run
    facts: list[tuple[str, object]] = [
        ("Outcome", report.outcome or "unknown"),
        ("Downtime", "unknown" if timing.downtime_ms is None else duration_text(timing.downtime_ms)),
        (
            "Device state in",
            "unknown" if timing.device_state_ms is None else duration_text(timing.device_state_ms),
        ),
        (
            "Rate",
            "unknown" if not timing.throughput_bytes_per_s else rate_text(timing.throughput_bytes_per_s),
        ),
        ("Transfer", report.transfer or "unknown"),
        ("Channels", report.channels),
        ("Dialect", f"QEMU {report.dialect}" if report.dialect else "unknown"),
    ]
    if run is not None:
        facts += [(role.capitalize(), name) for role, name in run.endpoints.items()]
        if run.guest_ram_equal is not None:
            facts.append(("Guest RAM", "equal" if run.guest_ram_equal else "NOT equal"))
        if run.faults:
            struck = "" if run.struck else " (not known to have struck)"
            facts.append(("Faults", ", ".join(run.faults) + struck))
        if run.failed_as_injected:
            facts.append(("Failed", "as it was made to"))
    if report.exercised.unanswered:
        facts.append(("Unanswered calls", report.exercised.unanswered))
    if report.seed is not None:
        facts.append(("Seed", report.seed))
    return tag("dl", [tag("div", tag("dt", name), tag("dd", value)) for name, value in facts], class_="facts")


def _short(report: Report, shown: Sequence[Violation]) -> Markup | None:
    """One line for each thing that speaks against it."""
    counts = Counter(violation.id for violation in report.violations)
    items = []
    for number, violation in enumerate(shown, 1):
        more = counts.pop(violation.id, 0) - 1  # none the second time
        if more >= 0:
            link = tag("a", tag("b", violation.id), f" {violation.message}", href=f"#violation-{number}")
            items.append(tag("li", link, f" (and {more} more of it)" if more else ""))
    items += [tag("li", "unreadable: ", row.error) for row in report.unreadable]
    if not items and report.unknown:
        items = [tag("li", unknown.why) for unknown in report.unknown[:3]]
        if len(report.unknown) > 3:
            items.append(tag("li", tag("a", f"{len(report.unknown) - 3} more", href="#unknown")))
    return tag("ul", items, class_="short") if items else None


def _devices(rows: Sequence[DeviceRow]) -> Markup | None:
    if not rows:
        return None
    heads = (
        "Device",
        "Buffers",
        "State",
        "Config",
        "Last index",
        "Most reordered",
        "Most queued",
        "Equal",
        "Digest",
    )
    body = [
        (
            tag("code", row.id),
            row.buffers,
            size_text(row.payload_bytes),
            "yes" if row.config_seen else "no",
            "-" if row.index_last is None else row.index_last,
            row.reorder_max,
            "unknown" if row.queued_bytes_max is None else size_text(row.queued_bytes_max),
            {True: "✓ yes", False: tag("b", "✕ no", class_="violated"), None: "unknown"}[row.equal],
            tag(
                "code",
                (row.loaded_digest or row.wire_digest or row.saved_digest or "").removeprefix("xxh3-128:")[
                    :16
                ],
            ),
        )
        for row in rows[:_DEVICES_SHOWN]
    ]
    return tag(
        "section",
        tag("h2", "Devices"),
        table(heads, body, "Devices", numeric=range(1, 7)),
        more_of(len(rows) - _DEVICES_SHOWN, "devices"),
        id="devices",
    )


# --- the time line ----------------------------------------------------------------------------------


def _time_lines(
    drawn: Sequence[tuple[int, Chapter]],
    marks: Marked,
    migrations: int,
    downtime_ms: float | None,
    left_out: Sequence[str],
) -> Markup:
    content: list[object] = []
    for place, (number, chapter) in enumerate(drawn):
        if migrations > 1:
            content.append(tag("h3", f"Migration {number + 1}"))
        content += [_picture(place, chapter, marks.of(number)), _parts(chapter, downtime_ms)]
        content.append(_left_out(chapter.picture))
    if not drawn:
        content.append(tag("p", "Nothing that was read has a time, so there is no picture."))
    content += [tag("p", f"Left out: {sentence}.", class_="note") for sentence in left_out]
    return tag("section", tag("h2", "Time line"), content, id="time-line", tabindex=-1)


def _picture(place: int, chapter: Chapter, marks: Sequence[WitnessMark]) -> Markup:
    picture = chapter.picture
    about = (
        f"Time line of {duration_text((picture.last_ns - picture.first_ns) / NS_PER_MS)} in "
        f"{len(picture.rows)} lanes, with {len(marks)} witnesses of violations. "
        "All that it shows stands below in words."
    )
    buttons: list[tuple[str, str, str]] = [
        ("in", "+", "Zoom in"),
        ("out", "−", "Zoom out"),
        ("migration", "Migration", "Show the migration"),
        ("downtime", "Downtime", "Show the downtime"),
        ("all", "All", "Show everything"),
    ]
    if marks:
        buttons += [("previous", "◂ Witness", "Witness before"), ("next", "Witness ▸", "Witness after")]
    return tag(
        "figure",
        tag(
            "div",
            [
                tag("button", label, type="button", data_do=name, aria_label=words, title=words)
                for name, label, words in buttons
            ],
            class_="tools",
            role="toolbar",
            aria_label="Time line",
        ),
        tag(
            "div",
            tag("canvas", about, aria_hidden="true"),
            tag("div", class_="height"),
            class_="view",
            tabindex=0,
            role="application",
            aria_roledescription="time line",
            aria_label=about,
            aria_describedby=f"keys-{place}",
        ),
        tag("p", class_="readout", role="status", aria_live="polite"),
        tag("noscript", tag("p", "The picture needs JavaScript; all that it shows stands below in words.")),
        tag("div", class_="legend", aria_hidden="true"),
        tag(
            "figcaption",
            [(tag("kbd", keys), f" {words}", Markup(" &nbsp; ")) for keys, words in _KEYS],
            "drag to move, Ctrl and wheel to zoom",
            id=f"keys-{place}",
        ),
        class_="picture",
        data_picture=place,
    )


def _parts(chapter: Chapter, downtime_ms: float | None) -> Markup:
    first = chapter.picture.first_ns
    body = [
        (
            tag("b", part.name) if part.name == "downtime" else part.name,
            "unknown" if part.duration_ns is None else duration_text(part.duration_ns / NS_PER_MS),
            at(part.start, first),
            at(part.end, first),
            part.about,
        )
        for part in chapter.parts
    ]
    note = "Parts overlap (one buffer is loaded while the next is saved), so they need not add up."
    if downtime_ms is not None and duration_text(downtime_ms) != body[0][1]:
        note += f" The verdict's {duration_text(downtime_ms)} are what the source says of itself."
    return tag(
        "div",
        tag("h3", "The downtime and its parts"),
        table(
            ("Part", "Took", "From", "Until", "What it is"),
            body,
            "The downtime and its parts",
            numeric=(1, 2, 3),
        ),
        tag("p", note, class_="note"),
    )


def _left_out(picture: Picture) -> Markup | None:
    said = list(picture.left_out)
    if picture.quantum_ns:
        said.insert(
            0,
            f"details: what began within the same {duration_text(picture.quantum_ns / NS_PER_MS)} "
            "on one lane is drawn as one",
        )
    return tag("p", "Left out: ", "; ".join(said), ".", class_="note left-out") if said else None
