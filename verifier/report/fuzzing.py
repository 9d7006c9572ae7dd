# SPDX-License-Identifier: GPL-2.0-or-later
"""What `vfmig fuzz` found, on a terminal."""

from __future__ import annotations

from typing import Any, TextIO

from rich.markup import escape

from verifier.report.console import open_console
from verifier.report.text import plain

_LATE_SHOWN = 8


def print_fuzz(report: Any, out: TextIO) -> None:
    """The verdict, what was exercised, and each way of failing with the line that repeats it."""
    console = open_console(out)
    failed = len(report.new) + len(report.known)
    if failed:
        console.print(f"[bold red]{failed} way{'s'[: failed != 1]} of failing[/]")
    elif report.tries:
        console.print("[bold green]nothing failed[/]")
    else:
        console.print("[bold yellow]no seed was played[/]")
    if not report.tries:
        return
    last = report.first_seed + report.tries - 1
    console.print(
        f"{report.tries} seeds in {report.seconds:.1f} s, {report.per_second:.0f} a second "
        f"(from {report.first_seed}{f' to {last}' if not failed else ' on'}); {report.steps} steps of threads"
    )
    console.print("outcomes: " + _counts(report.outcomes))
    console.print("trouble: " + _counts(report.kinds))
    console.print(
        f"{len(report.judged)} invariants judged, the least often: " + _counts(_rarest(report.judged))
    )
    for word, rows in (("new", report.new), ("known", report.known)):
        for row in rows:
            what = escape(", ".join(row.what))
            name = what if row.kind == "violation" else f"{row.kind} ({what})"
            console.print(f"\n[bold red]{name}[/], {word}: {row.seeds} of the seeds, the first is {row.seed}")
            if row.message:
                console.print("  " + escape(plain(row.message)))
            _print_late(console, row.late)
            console.print("  again: " + escape(row.repeat))


def print_replay(report: Any, out: TextIO) -> None:
    """Whether a kept scene fails as it did."""
    console = open_console(out)
    then = f"{report.expected.kind} ({', '.join(report.expected.what)})"
    where = f" with {report.variation}" if report.variation else ""
    if report.title:
        console.print(escape(plain(report.title)))
    if report.failure is None:
        console.print(
            f"[bold green]does not fail[/]; once it did{escape(plain(where))}: {escape(plain(then))}"
        )
    else:
        same = report.failure.shows(report.expected)
        now = f"{report.failure.kind} ({', '.join(report.failure.what)}): {report.failure.message}"
        console.print(f"[bold red]fails{' as it did' if same else ''}[/]: {escape(plain(now))}")
        if not same:
            console.print(f"once it was{escape(plain(where))}: {escape(plain(then))}")
    _print_late(console, report.late)
    if report.folder:
        console.print(f"evidence in {escape(report.folder)}")


def _print_late(console: Any, late: tuple[str, ...]) -> None:
    for line in late[:_LATE_SHOWN]:
        console.print("  " + escape(plain(line)))
    if len(late) > _LATE_SHOWN:
        console.print(f"  and {len(late) - _LATE_SHOWN} more had to wait")


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{escape(name)} {count}" for name, count in counts.items())


def _rarest(counts: dict[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: item[1])[:4])
