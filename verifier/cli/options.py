# SPDX-License-Identifier: GPL-2.0-or-later
"""Options that several subcommands take, each said once."""

from __future__ import annotations

import click

from verifier.cli.values import Size

state_size = click.option(
    "--state-size", default="100MiB", show_default=True, type=Size(1), help="State of each device."
)
profile = click.option(
    "--profile",
    default="connectx7",
    show_default=True,
    type=click.Choice(["connectx7", "unlimited", "opaque"]),
    help="A card's timing, none, or bytes without mlx5 records.",
)
precopy = click.option(
    "--precopy", default="0", show_default=True, type=Size(), help="Share of each state before the stop."
)
qemu = click.option("--qemu", metavar="PATH", help="The QEMU to use.  [default: qemu-system-x86_64]")
target_qemu = click.option("--target-qemu", metavar="PATH", help="That of the target.  [default: the same]")
machine = click.option("--machine", default="pc", show_default=True, help="Machine type of the QEMUs.")
