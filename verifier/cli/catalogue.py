# SPDX-License-Identifier: GPL-2.0-or-later
"""`vfmig catalogue`: every invariant with its passport, or some of them in full."""

from __future__ import annotations

import sys

import click

from verifier.cli.output import printing


@click.command("catalogue")
@click.argument("ids", metavar="[ID]...", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def command(ids: tuple[str, ...], as_json: bool) -> int:
    """List every invariant: id, statement, severity, source, needs.

    With IDs (like DS-10) only these, each in full: also why a violation accuses nobody falsely, and what
    breaks the statement unseen. With --json also the rules that are not judged, and why.
    """
    from verifier.invariants import INVARIANTS
    from verifier.invariants.unjudged import UNJUDGED
    from verifier.report import text

    by_id = {invariant.passport.id: invariant for invariant in INVARIANTS}
    wanted = [name.upper() for name in ids]
    reasons = {rule.id: rule.why for rule in UNJUDGED}
    for name in wanted:
        if name in reasons:
            raise click.BadParameter(f"{name} is not judged: {reasons[name]}", param_hint="ID")
        if name not in by_id:
            families = ", ".join(dict.fromkeys(known.partition("-")[0] for known in by_id))
            why = f"there is no {name}; the families are {families} (vfmig catalogue lists them)"
            raise click.BadParameter(why, param_hint="ID")
    chosen = [by_id[name] for name in wanted] or list(INVARIANTS)
    with printing():
        if as_json:
            told = {"schema": "vfmig.catalogue/1", "invariants": [text.passport(i) for i in chosen]}
            if not ids:
                told["not_judged"] = [rule._asdict() for rule in UNJUDGED]
            text.write_json(told)
        else:
            text.print_catalogue(chosen, sys.stdout, in_full=bool(ids))
    return 0
