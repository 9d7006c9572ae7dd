# SPDX-License-Identifier: GPL-2.0-or-later
"""`vfmig fuzz`: many simulated migrations, each from a seed, until one fails; and one of them again."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

from verifier.cli import HOLDS, INTERRUPTED, UNKNOWN, VIOLATED
from verifier.cli.output import passing, printing

_FOUND = "runs/scenes"


@click.command("fuzz")
@click.option("--simulate", is_flag=True, help="Whole migrations in one thread: the one way there is.")
@click.option("--seeds", default=1000, show_default=True, type=click.IntRange(1, 2**53), help="How many.")
@click.option("--first-seed", default=0, show_default=True, type=click.IntRange(0, 2**62))
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(1, 256), help="Processes.")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), help="No new seeds after so long.")
@click.option("--stop-at-first", is_flag=True, help="No new seeds once one has failed.")
@click.option(
    "--replay",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Play this scene instead (vfmig.scene/1, as a failure leaves it).",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help=f"Where failures go, and are known from.  [default: {_FOUND}]  With --replay: evidence folder.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def command(
    simulate: bool,
    seeds: int,
    first_seed: int,
    jobs: int,
    seconds: float | None,
    stop_at_first: bool,
    replay: Path | None,
    output: Path | None,
    as_json: bool,
) -> int:
    """Search seeds for a migration that goes wrong, and keep the least scene that shows it.

    Each seed draws configuration, links, costs, faults and the order in which threads go on. The endpoints'
    plans and devices are the production ones; the judge watches.
    """
    if not simulate:
        raise click.UsageError("say what to fuzz: --simulate")
    if replay is not None:
        return _replay(replay, output, as_json)
    from verifier.fuzz.campaign import Tally, WorkerError, campaign
    from verifier.fuzz.search import keep, report_of
    from verifier.report import fuzzing, text

    folder = output or Path(_FOUND)
    tally = Tally()
    start_s = time.monotonic()
    died: WorkerError | None = None
    interrupted = False

    def show() -> None:
        passed_s = time.monotonic() - start_s
        failed = sum(found.seeds for found in tally.found)
        passing(f"{tally.tries:,} of {seeds:,} seeds, {tally.tries / passed_s:.0f} a second, {failed} failed")

    try:
        campaign(first_seed, seeds, jobs, tally, show, seconds=seconds, stop_at_first=stop_at_first)
    except KeyboardInterrupt:
        interrupted = True
    except WorkerError as error:
        died = error
    report = report_of(tally, first_seed, time.monotonic() - start_s, folder)
    if not interrupted:
        try:
            keep(report, folder, passing)
        except KeyboardInterrupt:
            interrupted = True
    passing("")
    with printing():
        if as_json:
            text.write_json(report)
        else:
            fuzzing.print_fuzz(report, sys.stdout)
    if died is not None:
        raise died
    if interrupted:
        click.echo("vfmig: interrupted", err=True)
        return INTERRUPTED
    if report.new or report.known:
        return VIOLATED
    return HOLDS if report.tries else UNKNOWN


def _replay(path: Path, output: Path | None, as_json: bool) -> int:
    from verifier import evidence
    from verifier.fuzz.search import replay
    from verifier.report import fuzzing, text

    folder = None if output is None else evidence.new_folders(output, 1)[0]
    report, came = replay(path, folder)
    with printing():
        if as_json:
            text.write_json(report)
        else:
            if came is not None:
                text.print_report(came.report, sys.stdout)
            fuzzing.print_replay(report, sys.stdout)
    return HOLDS if report.failure is None else VIOLATED
