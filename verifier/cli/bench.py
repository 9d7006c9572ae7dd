# SPDX-License-Identifier: GPL-2.0-or-later
"""`vfmig bench`: how fast, as ratios within one run or beside published figures."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from verifier.cli import HOLDS, UNKNOWN
from verifier.cli.options import machine, profile, qemu, target_qemu
from verifier.cli.output import OutputError, printing
from verifier.cli.values import Size

if TYPE_CHECKING:
    from mockdev.lab.migration import Pair


@click.group("bench")
def command() -> None:
    """Measure this machine: how fast state moves, and how fast captures are judged."""


def _say(line: str) -> None:
    if sys.stderr.isatty():
        click.echo(f"\r\x1b[K{line}", nl=False, err=True)


def _counts(option: str, words: str, most: int) -> list[int]:
    """Numbers with commas between. A usage error: they are none, or not 1 to `most`."""
    try:
        counts = [int(word) for word in words.split(",")]
    except ValueError:
        raise click.UsageError(f"{option} takes numbers with commas between, not {words!r}") from None
    if not all(1 <= count <= most for count in counts):
        raise click.UsageError(f"{option} takes numbers from 1 to {most}")
    return counts


@command.command("throughput")
@click.option("--vfs", default=4, show_default=True, type=click.IntRange(1, 30))
@click.option("--state-size", default="256MiB", show_default=True, type=Size(1 << 20))
@click.option("--channels", default="4,6,8", show_default=True, help="Counts of channels, with commas.")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1))
@click.option("--capture/--no-capture", default=True, show_default=True, help="Also with the tap.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def throughput(vfs: int, state_size: int, channels: str, rounds: int, capture: bool, as_json: bool) -> int:
    """Device state from source to target, beside a bare loop and real QEMU in the same rounds."""
    from verifier.bench.throughput import measure
    from verifier.report import tables, text

    counts = _counts("--channels", channels, 255)
    rows, missing = measure(
        vfs=vfs,
        state_bytes=state_size,
        channels=counts,
        rounds=rounds,
        capture=capture,
        on_progress=_say,
    )
    _say("")
    if as_json:
        text.write_json({"schema": "vfmig.bench.throughput/1", "rows": rows, "missing": missing})
    else:
        tables.print_throughput(rows, missing, sys.stdout)
    return 0


@command.command("check")
@click.option(
    "--size", default="512MiB", show_default=True, type=Size(1 << 20), help="Device state in the capture."
)
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1))
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def check(size: int, rounds: int, as_json: bool) -> int:
    """The judge on captures in page cache, beside tshark listing the conversations of the same file."""
    from verifier.bench.checker import measure
    from verifier.report import tables, text

    rows, missing = measure(size=size, rounds=rounds, on_progress=_say)
    _say("")
    if as_json:
        text.write_json({"schema": "vfmig.bench.check/1", "rows": rows, "missing": missing})
    else:
        tables.print_check(rows, missing, sys.stdout)
    return 0


@command.command("attach")
@click.option("--size", default="512MiB", show_default=True, type=Size(64 << 20), help="State of the device.")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1))
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def attach(size: int, rounds: int, as_json: bool) -> int:
    """What it costs to lend a device: a call, state through it, a profile's rate, QEMU's start."""
    from verifier.bench.attach import measure
    from verifier.report import tables, text

    rows, missing = measure(size=size, rounds=rounds, on_progress=_say)
    _say("")
    if as_json:
        text.write_json({"schema": "vfmig.bench.attach/1", "rows": rows, "missing": missing})
    else:
        tables.print_attach(rows, missing, sys.stdout)
    return 0


@command.command("downtime")
@click.option("--runs", default=10, show_default=True, type=click.IntRange(1), help="Of each cell.")
@click.option("--vfs", default="1,2,4", show_default=True, help="Counts of VFs, with commas.")
@click.option("--state-size", default="100MiB", show_default=True, type=Size(1), help="State of each VF.")
@click.option(
    "--channels", default=6, show_default=True, type=click.IntRange(1, 255), help="Multifd connections."
)
@profile
@qemu
@target_qemu
@click.option(
    "--accel", type=click.Choice(["tcg", "kvm"]), help="Of the QEMUs.  [default: kvm where there is /dev/kvm]"
)
@machine
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Also draw it: an SVG file.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def downtime(
    runs: int,
    vfs: str,
    state_size: int,
    channels: int,
    profile: str,
    plot: Path | None,
    as_json: bool,
    **who: Any,
) -> int:
    """QEMU's own downtime with mock VFs, main channel and multifd, beside published figures.

    A real QEMU stands at both ends. How near the figures come is calibration, not validation.
    """
    from mockdev.runtime.config import VFS_MAX, MigrationConfig
    from verifier.bench.downtime import CALIBRATION, cells, measure
    from verifier.bench.published import SERIES, TALK
    from verifier.cli.room import check_room
    from verifier.report import tables, text
    from verifier.report.downtime_plot import downtime_svg
    from verifier.report.sizes import size_text

    counts = _counts("--vfs", vfs, VFS_MAX)
    if plot is not None and not os.access(plot.parent, os.W_OK):
        raise OutputError(f"{plot} cannot be written: {plot.parent} is no folder that we may write to")
    pair, endpoints = _qemus(**who)
    config = MigrationConfig(
        vfs=max(counts), state_bytes=state_size, channels=channels, profile=profile, capture="none"
    )
    check_room(config)
    rows = measure(config, pair, counts, runs, _say)
    _say("")
    made = cells(rows, endpoints)
    failures = [f"{row.what}, {why}" for row in rows for why in row.failures]
    setup = f"{endpoints}, profile {profile}, {size_text(state_size)} of state each, {channels} channels"
    with printing():
        if as_json:
            text.write_json(
                {
                    "schema": "vfmig.bench.downtime/1",
                    "setup": setup,
                    "cells": made,
                    "measured": rows,
                    "note": CALIBRATION,
                }
            )
        else:
            notes = [f"talk: {TALK}", f"series: {SERIES}", CALIBRATION]
            tables.print_downtime(made, setup, failures, notes, sys.stdout)
    if plot is not None:
        try:
            plot.write_text(downtime_svg(rows, made, setup))
        except OSError as error:
            raise OutputError(f"{plot} cannot be written: {error.strerror}") from None
    return UNKNOWN if failures else HOLDS


def _qemus(qemu: str | None, target_qemu: str | None, accel: str | None, machine: str) -> tuple[Pair, str]:
    """Two QEMUs that write no traces, and what they are in words. QemuError: as check_vm."""
    from mockdev.lab.migration import Pair
    from mockdev.lab.qemu import BINARY
    from mockdev.lab.qemu_end import Vm, check_vm, versioned

    chosen = accel or ("kvm" if os.access("/dev/kvm", os.R_OK | os.W_OK) else "tcg")
    binaries = [qemu or BINARY, target_qemu or qemu or BINARY]
    common = versioned(machine, binaries)
    source, target = (
        Vm(binary=binary, accel="kvm" if chosen == "kvm" else "tcg", machine=common, trace=False)
        for binary in binaries
    )
    words = f"QEMU {check_vm(source)} to QEMU {check_vm(target)}, {chosen.upper()}"
    return Pair(source=source, target=target), words
