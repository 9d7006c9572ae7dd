# SPDX-License-Identifier: GPL-2.0-or-later
"""The certificate of `bench cap` for a person."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TextIO

from rich.markup import escape
from rich.table import Table

from verifier.report.console import open_console
from verifier.report.sizes import duration_text, size_text
from verifier.report.text import plain


def print_cap(
    certificate: Any,
    cap: Any,
    observed: str,
    socket_bytes: int,
    claim: Any,
    forced: Sequence[Any],
    out: TextIO,
) -> None:
    """A Certificate, a CapVerdict or None, a sentence about a run ("": none), a Claim, Forced runs."""
    console = open_console(out)

    def say(line: str) -> None:
        console.print(escape(plain(line)))

    proof, schedule = certificate.proof, certificate.schedule
    say(
        f"worst case: {_exactly(certificate.worst_device_queued_bytes)} queued of one device, "
        f"{_exactly(certificate.worst_queued_bytes)} of all {certificate.case.vfs}"
    )
    for line in filter(None, (cap and cap.sentence, observed)):
        say(line)
    say("")
    say(
        "the schedule: loading begins "
        + ("when all has come" if schedule.late_ms is None else f"{duration_text(schedule.late_ms)} late")
        + f"; one of these being late is enough: {'; '.join(schedule.who)}"
    )
    for event in schedule.events:
        say(f"  {duration_text(event.at_ms):>9}  {event.what} ({_exactly(event.queued_bytes)} queued)")
    say("")
    say(f"the proof: {proof.argument}")
    if proof.exact:
        say("  the bound is reached to the byte")
    else:
        say(
            f"  the bound is {_exactly(proof.upper_all_bytes)}, the schedule reaches "
            f"{_exactly(proof.reached_all_bytes)}; of one device {_exactly(proof.upper_device_bytes)} and "
            f"{_exactly(proof.reached_device_bytes)}"
        )
    for row in proof.searched:
        say(
            f"  every schedule of {row.what}: {row.states} states, worst {row.worst_bytes}; "
            f"this schedule {row.schedule_bytes}, bound {row.closed_form_bytes}"
        )
    for assumption in proof.assumptions:
        say(f"  assumed: {assumption}")
    say("")
    say(f"add to the memory limit of a QEMU target: {_exactly(certificate.advice_bytes)}")
    console.print(_advice(certificate.advice))
    say(f"not in it: up to {_exactly(socket_bytes)} that the kernel may need for sockets")
    say("")
    say(f"{claim.claim}. That would be {size_text(claim.allowed_bytes)}.")
    for row in claim.rulings:
        size = "no bound" if row.bytes is None else f"at most {size_text(row.bytes)}"
        say(f"  {row.ruling}: {row.memory}: {size}; {row.why}")
    if forced:
        say("")
        console.print(_forced(forced))
        for row in forced:
            if not row.as_certified:
                say(f"not as certified: {row.ends}, cap {row.cap_bytes}: {row.error or row.observed.why}")


def _exactly(size: int) -> str:
    return f"{size_text(size)} ({size:,})" if size >= 1024 else size_text(size)


def _advice(parts: Sequence[Any]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("what")
    for name in ("QEMU", "ours"):
        table.add_column(name, justify="right")
    for part in parts:
        table.add_row(part.what, size_text(part.qemu_bytes), size_text(part.ours_bytes))
    return table


def _forced(rows: Sequence[Any]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("forced run", "outcome", "as certified"):
        table.add_column(name)
    for name in ("cap", "certified of a device", "observed", "certified of all", "observed"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row.ends,
            row.outcome,
            "yes" if row.as_certified else "[red]no[/]",
            "none" if row.cap_bytes is None else str(row.cap_bytes),
            str(row.worst_device_bytes),
            _known(row.observed.device_bytes),
            str(row.worst_bytes),
            _known(row.observed.all_bytes),
        )
    return table


def _known(size: int | None) -> str:
    return "?" if size is None else str(size)
