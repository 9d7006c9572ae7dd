# SPDX-License-Identifier: GPL-2.0-or-later
"""`vfmig check`: judge captures, evidence folders, journals and trace logs."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

import click

from verifier.cli.output import printing


@click.command("check")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...", type=click.Path(path_type=Path))
@click.option(
    "--jobs", default=1, show_default=True, type=click.IntRange(1, 256), help="Inputs judged at once."
)
@click.option(
    "--follow",
    is_flag=True,
    help="Judge PATH while it is being written, and tell of each violation at once; when its migration is "
    "over, or at Ctrl-C, judge the whole.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object (vfmig.report/1) on stdout.")
def command(paths: tuple[Path, ...], jobs: int, follow: bool, as_json: bool) -> int:
    """Judge captures (pcap, pcapng; plain, gzip or zstd), evidence folders, journals and trace logs."""
    from verifier.check import check_paths
    from verifier.report import text

    if follow and len(paths) > 1:
        raise click.UsageError("--follow takes one PATH")
    if follow:
        _follow(paths[0])
    report = check_paths(list(paths), jobs=jobs)
    with printing():  # the exit code tells the verdict, whoever reads the text
        if as_json:
            text.write_json(report)
        else:
            text.print_report(report, sys.stdout)
    return report.exit_code


def _follow(path: Path) -> None:
    """Tell of violations while it grows, on stderr; what was found is judged once more, when it is whole."""
    from verifier.online import Online
    from verifier.report import text
    from verifier.verdict import Violation

    def tell(violation: Violation) -> None:
        click.echo(f"vfmig: {text.in_a_line(violation)}", err=True)

    with Online(path, tell) as online, suppress(KeyboardInterrupt):
        online.wait()
    if online.complaint:
        click.echo(f"vfmig: followed no further: {online.complaint}", err=True)
