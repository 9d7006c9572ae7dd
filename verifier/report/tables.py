# SPDX-License-Identifier: GPL-2.0-or-later
"""The tables of the benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TextIO

from rich.table import Table

from verifier.report.console import open_console
from verifier.report.sizes import rate_text, size_text


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
