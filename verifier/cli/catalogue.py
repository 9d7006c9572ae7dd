# SPDX-License-Identifier: GPL-2.0-or-later
"""`vfmig catalogue`: every invariant with its passport."""

from __future__ import annotations

import sys

import click

from verifier.cli.output import printing


@click.command("catalogue")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def command(as_json: bool) -> int:
    """List every invariant: id, statement, severity, source, needs."""
    from verifier.invariants import INVARIANTS
    from verifier.report import text

    with printing():
        if as_json:
            passports = [text.passport(i) for i in INVARIANTS]
            text.write_json({"schema": "vfmig.catalogue/1", "invariants": passports})
        else:
            text.print_catalogue(INVARIANTS, sys.stdout)
    return 0
