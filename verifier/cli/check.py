# SPDX-License-Identifier: GPL-2.0-or-later
"""`vfmig check`: judge captures, evidence folders, journals and trace logs."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from verifier.cli.output import printing


@click.command("check")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...", type=click.Path(path_type=Path))
@click.option(
    "--jobs", default=1, show_default=True, type=click.IntRange(1, 256), help="Inputs judged at once."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object (vfmig.report/1) on stdout.")
def command(paths: tuple[Path, ...], jobs: int, as_json: bool) -> int:
    """Judge captures (pcap, pcapng; plain, gzip or zstd), evidence folders, journals and trace logs."""
    from verifier.check import check_paths
    from verifier.report import text

    report = check_paths(list(paths), jobs=jobs)
    with printing():  # the exit code tells the verdict, whoever reads the text
        if as_json:
            text.write_json(report)
        else:
            text.print_report(report, sys.stdout)
    return report.exit_code
