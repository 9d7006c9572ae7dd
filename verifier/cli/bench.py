# SPDX-License-Identifier: GPL-2.0-or-later
"""`vfmig bench`: how fast, as ratios within one run."""

from __future__ import annotations

import sys

import click

from verifier.cli.values import Size


@click.group("bench")
def command() -> None:
    """Measure this machine: how fast state moves, and how fast captures are judged."""


def _say(line: str) -> None:
    if sys.stderr.isatty():
        click.echo(f"\r\x1b[K{line}", nl=False, err=True)


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

    try:
        counts = [int(word) for word in channels.split(",")]
    except ValueError:
        raise click.UsageError(f"--channels takes numbers with commas between, not {channels!r}") from None
    if not all(1 <= count <= 255 for count in counts):
        raise click.UsageError("--channels takes numbers from 1 to 255")
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
