# SPDX-License-Identifier: GPL-2.0-or-later
"""The group of subcommands, and what becomes of their errors."""

from __future__ import annotations

import importlib
import sys
import tempfile
import traceback

import click

from verifier.cli import ENVIRONMENT, HOLDS, INTERRUPTED, OURS, USAGE
from verifier.cli.output import printing

# In the order of the help; each is the function `command` of the module of that name.
SUBCOMMANDS = ("run", "check", "show", "report", "fuzz", "qemu", "catalogue", "bench", "doctor")


class _Subcommands(click.Group):
    """Loads a subcommand's module when it is asked for, so that `--version` is quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(SUBCOMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in SUBCOMMANDS:
            return None
        command: click.Command = importlib.import_module(f"verifier.cli.{cmd_name}").command
        return command


@click.command(cls=_Subcommands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="vfmig")
def vfmig() -> None:
    """Test live migration of VFIO devices over QEMU's multifd channels, without hardware."""


def execute(arguments: list[str]) -> int:
    """Run the command; its exit code. Errors become sentences on stderr."""
    try:
        code = None
        with printing():
            code = vfmig.main(arguments, prog_name="vfmig", standalone_mode=False)
        return code if isinstance(code, int) else HOLDS
    except click.ClickException as error:
        error.show()
        return USAGE
    except (KeyboardInterrupt, click.Abort):
        click.echo("vfmig: interrupted", err=True)
        return INTERRUPTED
    except Exception as error:
        return _explain(error)


def _explain(error: Exception) -> int:
    from mockdev.errors import VfmigError

    if isinstance(error, VfmigError):
        click.echo(f"vfmig: {error}", err=True)
        return ENVIRONMENT if error.environment else OURS
    if isinstance(error, MemoryError):
        click.echo("vfmig: there is not enough memory for this", err=True)
        return ENVIRONMENT
    said = f"vfmig: an error of ours: {type(error).__name__}: {error}"
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="vfmig-error-", suffix=".txt", delete=False, errors="backslashreplace"
        ) as file:
            traceback.print_exception(error, file=file)
        click.echo(f"{said}; more in {file.name}", err=True)
    except OSError:  # no room for it: then here
        traceback.print_exception(error, file=sys.stderr)
        click.echo(said, err=True)
    return OURS
