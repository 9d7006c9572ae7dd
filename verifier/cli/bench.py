# SPDX-License-Identifier: GPL-2.0-or-later
"""`vfmig bench`: how fast, as ratios within one run or beside published figures."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from verifier.cli import HOLDS, UNKNOWN, VIOLATED
from verifier.cli.options import machine, profile, qemu, target_qemu
from verifier.cli.output import OutputError, passing, printing
from verifier.cli.values import Rate, Size

if TYPE_CHECKING:
    from mockdev.lab.migration import Pair
    from verifier.bench.cap import Case
    from verifier.bench.cap_forced import Forced


@click.group("bench")
def command() -> None:
    """Measure this machine: how fast state moves, and how fast captures are judged."""


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
        on_progress=passing,
    )
    passing("")
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

    rows, missing = measure(size=size, rounds=rounds, on_progress=passing)
    passing("")
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

    rows, missing = measure(size=size, rounds=rounds, on_progress=passing)
    passing("")
    if as_json:
        text.write_json({"schema": "vfmig.bench.attach/1", "rows": rows, "missing": missing})
    else:
        tables.print_attach(rows, missing, sys.stdout)
    return 0


@command.command("simulation")
@click.option("--scenes", default=200, show_default=True, type=click.IntRange(1), help="Migrations a round.")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1))
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def simulation(scenes: int, rounds: int, as_json: bool) -> int:
    """Simulated migrations a second of CPU time, judged and not."""
    from verifier.bench.simulation import measure
    from verifier.report import tables, text

    rows = measure(scenes=scenes, rounds=rounds, on_progress=passing)
    passing("")
    if as_json:
        text.write_json({"schema": "vfmig.bench.simulation/1", "rows": rows})
    else:
        tables.print_simulation(rows, sys.stdout)
    return 0


@command.command("zoo")
@click.option("--bugs", multiple=True, metavar="ID", help="This bug only; may be given more than once.")
@click.option(
    "--seeds", default=10_000, show_default=True, type=click.IntRange(1), help="Migrations per bug, at most."
)
@click.option("--jobs", default=2, show_default=True, type=click.IntRange(1, 64), help="Processes.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def zoo(bugs: tuple[str, ...], seeds: int, jobs: int, as_json: bool) -> int:
    """Faulty sources, targets and devices in simulated migrations: which invariants see them."""
    from mockdev.errors import VfmigError
    from verifier.bench.zoo import chosen, measure, score
    from verifier.report import tables, text

    try:
        hunted = chosen(bugs)
    except VfmigError as error:
        raise click.UsageError(str(error)) from None
    rows = measure(hunted, seeds=seeds, jobs=jobs, on_progress=passing)
    passing("")
    percent = score(rows)
    with printing():
        if as_json:
            text.write_json({"schema": "vfmig.bench.zoo/1", "bugs": rows, "score": percent})
        else:
            tables.print_zoo(rows, percent, sys.stdout)
    return HOLDS if all(row.killed for row in rows) else UNKNOWN


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
    rows = measure(config, pair, counts, runs, passing)
    passing("")
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


@command.command("cap")
@click.option("--vfs", default=4, show_default=True, type=click.IntRange(1, 30), help="Devices.")
@click.option(
    "--channels", default=8, show_default=True, type=click.IntRange(1, 255), help="Multifd connections."
)
@click.option(
    "--state-size",
    default="400MiB",
    show_default=True,
    type=Size(1),
    help="What each device's save file gives after the stop.",
)
@click.option("--buffer", default="1MiB", show_default=True, type=Size(1), help="Of one multifd buffer.")
@click.option(
    "--config-size", default="4326", show_default=True, type=Size(1), help="Of a device's config buffer."
)
@click.option(
    "--load-rate",
    default="380MB/s",
    show_default=True,
    type=Rate(1),
    help="At which one device loads, at least.",
)
@click.option(
    "--send-rate", type=Rate(1), help="What the target can receive, over all channels.  [default: no limit]"
)
@click.option(
    "--stall",
    type=click.FloatRange(0, 3_600_000),
    metavar="MS",
    help="The longest that a buffer can be late for its loader, whoever is to blame.  [default: no limit]",
)
@click.option("--queue-cap", type=Size(1), help="Say whether this cap for a device is enough.")
@click.option(
    "--observed",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Put what a run had queued beside it.",
)
@click.option(
    "--force", is_flag=True, help="Reach the worst case by real migrations, and meet the cap there."
)
@click.option(
    "--force-size",
    default="16MiB",
    show_default=True,
    type=Size(1),
    help="State of each device in them, if that is less.",
)
@click.option("--qemu", metavar="PATH", help="With --force: also with this QEMU as the target.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def cap(
    queue_cap: int | None,
    observed: Path | None,
    force: bool,
    force_size: int,
    qemu: str | None,
    as_json: bool,
    **asked: Any,
) -> int:
    """The most that a target can ever have queued, with its proof and a schedule that reaches it.

    Buffers wait at the target when they came out of order, or faster than the device loads. Without
    --send-rate or --stall all of the state can wait at once. With both it is less: the link brings no more
    than the send rate, and no buffer can be loaded later than the stall after it was due. See
    docs/queue-cap.md.
    """
    from mockdev.errors import VfmigError
    from verifier.bench.cap import Case, certify, judge_cap
    from verifier.bench.cap_claim import rule
    from verifier.bench.cap_forced import observe
    from verifier.bench.cap_search import searched
    from verifier.report import text
    from verifier.report.cap_text import print_cap

    if qemu is not None and not force:
        raise click.UsageError("--qemu is for --force")
    case = Case(
        vfs=asked["vfs"],
        channels=asked["channels"],
        state_bytes=asked["state_size"],
        buffer_bytes=asked["buffer"],
        config_bytes=asked["config_size"],
        load_rate=asked["load_rate"],
        send_rate=asked["send_rate"],
        stall_ns=None if asked["stall"] is None else int(asked["stall"] * 1e6),
    )
    try:
        certificate = certify(case, searched())
    except VfmigError as error:
        raise click.UsageError(str(error)) from None
    found = None if observed is None else observe(observed)
    beside, refuted = ("", False) if found is None else found.beside(certificate)
    verdict = None if queue_cap is None else judge_cap(certificate, queue_cap)
    sockets = (case.channels + 1) * _socket_bytes()
    claim = rule(certificate)
    runs = _force(case, force_size, qemu) if force else []
    with printing():
        if as_json:
            text.write_json(
                {
                    "schema": "vfmig.bench.cap/1",
                    **msgspec.structs.asdict(certificate),
                    "queue_cap": verdict,
                    "observed_bytes": None if found is None else found.all_bytes,
                    "observed": found,
                    "socket_bytes": sockets,
                    "claim": claim,
                    "forced": runs,
                }
            )
        else:
            print_cap(certificate, verdict, beside, sockets, claim, runs, sys.stdout)
    if refuted or any(run.late and not run.as_certified for run in runs):
        return VIOLATED
    return HOLDS if all(run.late for run in runs) else UNKNOWN


def _force(case: Case, size: int, qemu: str | None) -> list[Forced]:
    """Forced runs of the case, with less state if it has more. A usage error: they cannot be had."""
    from mockdev.errors import VfmigError
    from mockdev.multifd.assembly import AHEAD_MAX
    from verifier.bench.cap_forced import force, forced_config, unlimited
    from verifier.cli.room import check_room

    small = msgspec.structs.replace(case, state_bytes=min(size, case.state_bytes))
    if small.buffers > AHEAD_MAX:
        raise click.UsageError(f"--force with {small.buffers} buffers a device; {AHEAD_MAX} can be kept")
    config = forced_config(unlimited(small))
    try:
        config.check()
    except VfmigError as error:
        raise click.UsageError(f"--force: {error}") from None
    check_room(config)
    runs = force(small, qemu, passing)
    passing("")
    return runs


def _socket_bytes(path: Path = Path("/proc/sys/net/ipv4/tcp_rmem")) -> int:
    """What the kernel keeps of one connection that is not read, at most; 0 when it does not say."""
    try:
        return int(path.read_text().split()[2])
    except (OSError, ValueError, IndexError):
        return 0
