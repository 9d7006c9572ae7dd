# SPDX-License-Identifier: GPL-2.0-or-later
"""A report on a terminal: the verdict first, then the devices, then what speaks against it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from verifier.invariants.passport import Invariant, limits
from verifier.report.console import open_console
from verifier.report.sizes import duration_text, rate_text, size_text
from verifier.verdict import DeviceRow, Report, Standing, Unknown, Violation

_COLOURS = {Standing.HOLDS: "bold green", Standing.VIOLATED: "bold red", Standing.UNKNOWN: "bold yellow"}
_VIOLATIONS_SHOWN = 3  # of one invariant
_WITNESSES_SHOWN = 4
_IDS_SHOWN = 6
_WIDTH_WITH_DIGEST = 92


def write_json(value: Any, out: TextIO | None = None) -> None:
    """One JSON object and a newline."""
    (out or sys.stdout).write(msgspec.json.encode(value).decode() + "\n")


def print_report(report: Report, out: TextIO) -> None:
    """The whole report. Colours only on a terminal, and never with NO_COLOR."""
    console = open_console(out)
    console.print(_headline(report))
    for line in (_what(report), _run(report), _times(report)):
        if line:
            console.print(line)
    if report.devices:
        console.print(_devices(report.devices, with_digest=console.width >= _WIDTH_WITH_DIGEST))
    if report.exercised.unanswered:
        console.print(f"calls of a QEMU without an answer: {report.exercised.unanswered} (see the journals)")
    _print_violations(console, report.violations)
    said = {row.error for row in report.unreadable}
    for why, ids in _by_reason(report.unknown).items():
        if why not in said:
            console.print(f"[yellow]unknown[/] {_some(ids)}: {_clean(why)}")
    for row in report.unreadable:
        console.print(f"[red]unreadable[/] {_clean(row.error)}")


def _clean(text: str) -> str:
    """Text from outside: no markup of ours, nothing that a terminal would obey."""
    return escape(plain(text))


def plain(text: str) -> str:
    """The text with its unprintable characters escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _headline(report: Report) -> str:
    exercised = report.exercised
    judged = sum(1 for row in exercised.invariants.values() if row.standing is not Standing.UNKNOWN)
    colour = _COLOURS[report.standing]
    counts = (
        f"{judged} of {len(exercised.invariants)} invariants judged on {exercised.frames} frames, "
        f"{size_text(exercised.bytes)} in {exercised.flows} flows"
    )
    return f"[{colour}]{report.standing.value}[/]: {counts}"


def _what(report: Report) -> str:
    return _joined(
        f"outcome {report.outcome}" if report.outcome else "",
        f"QEMU {report.dialect}" if report.dialect else "",
        f"transfer {report.transfer}" if report.transfer else "",
        f"{report.channels} channels" if report.channels else "",
        f"seed {report.seed}" if report.seed is not None else "",
    )


def _run(report: Report) -> str:
    """What the run's record adds."""
    run = report.run
    if run is None:
        return ""
    ends = ", ".join(f"{role} {name}" for role, name in run.endpoints.items())
    pages = "" if run.guest_ram_pages is None else f", {run.guest_ram_pages} pages compared"
    ram = {True: "equal", False: "NOT equal", None: "not compared"}[run.guest_ram_equal]
    return _joined(
        ends,
        f"faults {', '.join(run.faults)}{'' if run.struck else ' (none is known to have struck)'}"
        if run.faults
        else "",
        "failed as it was made to" if run.failed_as_injected else "",
        f"guest RAM {ram}{pages}" if run.guest_ram_equal is not None or pages else "",
    )


def _times(report: Report) -> str:
    timing = report.timing
    downtime, state = timing.downtime_ms, timing.device_state_ms
    rate = timing.throughput_bytes_per_s
    return _joined(
        f"downtime {duration_text(downtime)}" if downtime is not None else "",
        f"device state in {duration_text(state)}" if state is not None else "",
        rate_text(rate) if rate else "",
    )


def _joined(*parts: str) -> str:
    return " · ".join(_clean(part) for part in parts if part)


def _some(ids: Sequence[str]) -> str:
    """A few names; who wants all of them asks for JSON."""
    if len(ids) <= _IDS_SHOWN:
        return _clean(", ".join(ids))
    return _clean(f"{', '.join(ids[:_IDS_SHOWN])} and {len(ids) - _IDS_SHOWN} more")


def _by_reason(unknowns: Sequence[Unknown]) -> dict[str, list[str]]:
    """Many invariants are unknown for one reason; say it once."""
    reasons: dict[str, list[str]] = {}
    for unknown in unknowns:
        ids = reasons.setdefault(unknown.why, [])
        if unknown.id not in ids:
            ids.append(unknown.id)
    return reasons


def _devices(rows: Sequence[DeviceRow], *, with_digest: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("device", no_wrap=True)
    for name in ("buffers", "state", "config", "reordered", "queued", "equal"):
        table.add_column(name, justify="right", no_wrap=True)
    if with_digest:
        table.add_column("digest", no_wrap=True)
    for row in rows:
        digest = row.loaded_digest or row.wire_digest or row.saved_digest or ""
        table.add_row(
            _clean(row.id),
            str(row.buffers),
            size_text(row.payload_bytes),
            "yes" if row.config_seen else "no",
            str(row.reorder_max),
            "?" if row.queued_bytes_max is None else size_text(row.queued_bytes_max),
            {True: "[green]yes[/]", False: "[red]no[/]", None: "?"}[row.equal],
            *([_clean(digest.removeprefix("xxh3-128:")[:16])] if with_digest else []),
        )
    return table


def _print_violations(console: Console, violations: Sequence[Violation]) -> None:
    """A few of each invariant: one cause often breaks one thing a thousand times."""
    by_id: dict[str, list[Violation]] = {}
    for violation in violations:
        by_id.setdefault(violation.id, []).append(violation)
    for name, same in by_id.items():
        for violation in same[:_VIOLATIONS_SHOWN]:
            _print_violation(console, violation)
        if len(same) > _VIOLATIONS_SHOWN:
            console.print(
                f"  ... {name} {len(same) - _VIOLATIONS_SHOWN} times more (all of them with --json)"
            )


def _print_violation(console: Console, violation: Violation) -> None:
    console.print(
        f"[red]violated[/] {_clean(violation.id)} ({_clean(violation.severity)}) "
        f"on {_clean(violation.scope)}: {_clean(violation.message)}"
    )
    console.print(f"  it says: {_clean(violation.statement)}", style="dim")
    for witness in violation.witnesses[:_WITNESSES_SHOWN]:
        console.print(
            f"  {_clean(witness.file)}, {_clean(witness.flow)}, offset {witness.offset}, {witness.size} bytes"
        )


def in_a_line(violation: Violation) -> str:
    """A violation as plain text, while a run goes on."""
    return plain(f"{violation.id} ({violation.severity}) on {violation.scope}: {violation.message}")


# --- catalogue and listing -------------------------------------------------------------------------


def passport(invariant: type[Invariant[Any]]) -> dict[str, Any]:
    """An invariant's passport as plain values."""
    said = invariant.passport
    return {
        "id": said.id,
        "statement": said.statement,
        "severity": said.severity.value,
        "source": str(said.source),
        "scope": said.scope.name,
        "needs": [need.value for need in said.needs],
        **limits(invariant)._asdict(),
    }


def print_catalogue(
    invariants: Iterable[type[Invariant[Any]]], out: TextIO, *, in_full: bool = False
) -> None:
    """Every invariant with its passport, a paragraph each. in_full: also how far it is to be believed."""
    console = open_console(out)
    for invariant in invariants:
        said = passport(invariant)
        console.print(f"[bold]{said['id']}[/]  {escape(said['statement'])}")
        needs = ", ".join(said["needs"]) or "the frames alone"
        console.print(
            f"      a break {said['severity']} · per {said['scope']} · to hold it needs {needs}", style="dim"
        )
        console.print(f"      {escape(said['source'])}", style="dim")
        if in_full:
            console.print(f"      sound: {escape(said['sound'])}")
            console.print(f"      misses: {escape(said['misses'])}")


_HEAD_FIELDS = ("flow", "kind", "event", "offset", "size", "time_ns", "t")


def entry_text(entry: dict[str, Any]) -> str:
    """One line of `vfmig show`: flow, offset, size, kind, and what is not zero or empty of its fields."""
    name = entry.get("kind") or entry.get("event", "")
    head = f"{entry['flow']:<24} {entry.get('offset', ''):>12} {entry.get('size', ''):>9}  {name:<18}"
    return plain(f"{head} {fields_text(entry)}".rstrip())


def fields_text(entry: dict[str, Any]) -> str:
    """What is not zero or empty of an entry's fields, as name=value."""
    return " ".join(
        f"{key.removeprefix('head.')}={_value(value)}" for key, value in entry.items() if _told(key, value)
    )


def _told(key: str, value: object) -> bool:
    if key in _HEAD_FIELDS:
        return False
    if isinstance(value, list):
        return any(value)
    return value not in (None, "", 0) or key.endswith("idx")


def _value(value: object) -> str:
    if isinstance(value, list):
        return f"[{len(value)}: {value[0]}, ...]" if len(value) > 4 else str(value)
    return str(value)
