# SPDX-License-Identifier: GPL-2.0-or-later
"""`vfmig doctor`: what this machine can do, and how to get what is missing."""

from __future__ import annotations

import sys

import click

from verifier.cli import ENVIRONMENT, HOLDS
from verifier.cli.output import printing


@click.command("doctor")
@click.option("--qemu", metavar="PATH", help="The QEMU to ask about.  [default: qemu-system-x86_64]")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def command(qemu: str | None, as_json: bool) -> int:
    """What this machine can do, found out by trying it, and how to get what is missing (on Debian).

    The exit code is 4 when something is missing that `vfmig run` needs, with mock ends or with QEMUs.
    """
    from verifier.cli.abilities import JOBS, abilities, missing
    from verifier.report import tables, text

    found = abilities(qemu)
    jobs = {job: missing(found, job) for job in JOBS}
    with printing():
        if as_json:
            text.write_json({"schema": "vfmig.doctor/1", "abilities": found, "missing": jobs})
        else:
            tables.print_abilities(found, jobs, sys.stdout)
    return ENVIRONMENT if any(jobs.values()) else HOLDS
