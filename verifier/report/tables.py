# SPDX-License-Identifier: GPL-2.0-or-later
"""The tables of the benchmarks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from rich.markup import escape
from rich.table import Table

from verifier.report.console import open_console
from verifier.report.sizes import rate_text, size_text
from verifier.report.text import plain


def print_throughput(rows: Sequence[Any], missing: str, out: TextIO) -> None:
    """Rows of `bench throughput`."""
    table = _table(
        "what", "channels", "rate", "lowest", "highest", "CPU s/GB", "of bare", "of QEMU", "of uncaptured"
    )
    for row in rows:
        table.add_row(
            row.what,
            str(row.streams),
            rate_text(row.bytes_per_s),
            rate_text(row.bytes_per_s_lowest),
            rate_text(row.bytes_per_s_highest),
            f"{row.cpu_s_per_gb:.2f}",
            *(_ratio(r) for r in (row.ratio_to_loopback, row.ratio_to_qemu, row.ratio_to_uncaptured)),
        )
    _print(table, missing, out)


def print_check(rows: Sequence[Any], missing: str, out: TextIO) -> None:
    """Rows of `bench check`."""
    table = _table(
        "what", "segments", "jobs", "capture", "rate", "of tshark", "of one job", "anonymous memory"
    )
    for row in rows:
        table.add_row(
            row.what,
            str(row.segment_bytes),
            str(row.jobs),
            size_text(row.capture_bytes),
            rate_text(row.bytes_per_s),
            *(_ratio(r) for r in (row.ratio_to_tshark, row.ratio_to_one_job)),
            size_text(row.peak_anonymous_bytes) if row.peak_anonymous_bytes else "",
        )
    _print(table, missing, out)


def print_attach(rows: Sequence[Any], missing: str, out: TextIO) -> None:
    """Rows of `bench attach`."""
    table = _table("what", "median", "lowest", "highest", "unit", "wanted")
    for row in rows:
        figures = (f"{value:.3g}" for value in (row.median, row.lowest, row.highest))
        table.add_row(row.what, *figures, row.unit, row.wanted)
    _print(table, missing, out)


def print_simulation(rows: Sequence[Any], out: TextIO) -> None:
    """Rows of `bench simulation`."""
    table = _table("migrations", "judged", "lowest", "highest", "not judged", "judging takes")
    for row in rows:
        figures = (row.judged_per_s, row.lowest, row.highest, row.unjudged_per_s)
        table.add_row(
            row.what, *(f"{figure:.0f}/s" for figure in figures), f"{row.judging:.2f} of simulating"
        )
    _print(table, "", out)


def print_zoo(rows: Sequence[Any], percent: float, out: TextIO) -> None:
    """Rows of `bench zoo`."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("bug", "what it does", "killed by", "needs"):
        table.add_column(name)
    for name in ("seeds", "CPU s"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row.id,
            escape(row.title),
            ", ".join(row.by) if row.killed else "[red]nobody[/]",
            ", ".join(row.needs),
            str(row.seeds),
            f"{row.cpu_s:.2f}",
        )
    killed = sum(row.killed for row in rows)
    _print(table, f"{percent:.0f} %: {killed} of {len(rows)} bugs killed", out)


def print_downtime(
    cells: Sequence[Any], setup: str, failures: Sequence[str], notes: Sequence[str], out: TextIO
) -> None:
    """Cells of `bench downtime`, those of one transfer in one row; in milliseconds, distances in per cent."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("VFs", "transfer", "lowest", "25 %", "median", "75 %", "runs", "failed"):
        table.add_column(name, justify="left" if name == "transfer" else "right")
    for name in ("talk, lowest", "ours is", "series, 25 %", "ours is"):
        table.add_column(name, justify="right", style="cyan")
    rows: dict[tuple[int, str, int], dict[str, Any]] = {}
    for cell in cells:
        rows.setdefault((cell.vfs, cell.transfer, cell.channels), {})[cell.statistic] = cell
    for (vfs, transfer, _), by_statistic in rows.items():
        ours = next(iter(by_statistic.values()))
        times = (ours.lowest_ms, ours.q25_ms, ours.median_ms, ours.q75_ms)
        table.add_row(
            str(vfs),
            transfer,
            *("-" if ms is None else f"{ms:.0f}" for ms in times),
            str(ours.runs),
            f"[red]{ours.failed}[/]" if ours.failed else "0",
            *_published(by_statistic.get("lowest")),
            *_published(by_statistic.get("q25")),
        )
    console = open_console(out)
    console.print(escape(setup))
    console.print(table)
    for failure in failures:
        console.print(f"[red]failed[/] {escape(plain(failure))}")
    for note in notes:
        console.print(escape(note))


def _published(cell: Any) -> tuple[str, str]:
    """A published figure, and how far ours is from it."""
    if cell is None or cell.published_ms is None:
        return "", ""
    distance = cell.distance_percent
    return f"{cell.published_ms:.0f}", "" if distance is None else f"{distance:+.1f} %"


def print_abilities(found: Sequence[Any], missing: Mapping[str, Sequence[str]], out: TextIO) -> None:
    """Lines of `doctor`: yes or no, what, what for, and the remedy; then what each job lacks."""
    console = open_console(out)
    for ability in found:
        there = "[green]yes[/]" if ability.there else "[red]no [/]" if ability.needed_by else "no "
        about = f"{ability.name} ({ability.found}): {ability.purpose}"
        console.print(f"{there}  {escape(plain(about))}")
        if ability.remedy:
            console.print(f"       remedy: {escape(plain(ability.remedy))}")
    for job, names in missing.items():
        console.print(f"{job}: {'missing ' + escape(', '.join(names)) if names else 'ready'}")


def _table(first: str, *names: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(first)
    for name in names:
        table.add_column(name, justify="right")
    return table


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _print(table: Table, missing: str, out: TextIO) -> None:
    console = open_console(out)
    console.print(table)
    if missing:
        console.print(missing)
