# SPDX-License-Identifier: GPL-2.0-or-later
"""`vfmig report`: a page and a trace of a capture, an evidence folder, a journal or a trace log."""

from __future__ import annotations

from pathlib import Path

import click

from verifier.cli.output import printing


@click.command("report")
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Where to.  [default: the evidence folder itself; of a file, PATH.report]",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object (vfmig.report/1) on stdout.")
def command(path: Path, output: Path | None, as_json: bool) -> int:
    """Judge PATH as check does, and write report.html and trace.json, for a browser and for Perfetto."""
    from verifier.check import check_path
    from verifier.report import text
    from verifier.report.pages import PageError, Pages

    pages = Pages()
    report = check_path(path, watch=pages.watch)
    written = []
    if not (report.unreadable and pages.empty):
        one_target = path.is_dir()
        folder = output or (path if one_target else path.with_name(f"{path.name}.report"))
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PageError(f"{folder} cannot be made: {error.strerror}") from None
        written = pages.write(folder, report, str(path), one_target=one_target)
    for row in report.unreadable:
        click.echo(f"vfmig: {text.plain(row.error)}", err=True)
    with printing():
        if as_json:
            text.write_json(report)
        elif written:
            click.echo(f"{report.standing.value}: {' and '.join(map(str, written))}")
    return report.exit_code
