# SPDX-License-Identifier: GPL-2.0-or-later
"""`vfmig qemu`: an unmodified QEMU with mock VFs, in the foreground; and questions to one that runs."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import click

from verifier.cli.options import precopy, profile, state_size
from verifier.cli.output import printing

_SOCKET = "vfmig-qemu-{}.socket"


@click.command("qemu", context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False})
@click.option("--vfs", default=1, show_default=True, type=click.IntRange(1, 30), help="Devices.")
@click.option(
    "--spare", default=0, show_default=True, type=click.IntRange(0, 30), help="More of them, for hot plug."
)
@state_size
@profile
@precopy
@click.option(
    "--route",
    default="iommufd",
    show_default=True,
    type=click.Choice(["iommufd", "legacy"]),
    help="How QEMU reaches the devices: an iommufd, or groups and a container.",
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, 2**63 - 1), help="Of the state.")
@click.option("--fault", "faults", multiple=True, metavar="SPEC", help="As for run, without the role.")
@click.option("--journal", type=click.Path(path_type=Path), help="What the devices did, as vfmig.journal/1.")
@click.option("--control", type=click.Path(), help="Control socket.  [default: a new one, see status]")
@click.argument("words", nargs=-1, required=True, metavar="-- QEMU ARGUMENT... | status | fault SPEC")
def command(words: tuple[str, ...], control: str | None, **options: Any) -> int:
    """Start an unmodified QEMU with mock ConnectX-7 VFs attached, or ask one that runs.

    \b
    vfmig qemu --vfs 2 -- qemu-system-x86_64 -m 1G ...
    vfmig qemu status                  what each device is in and has done
    vfmig qemu fault vf0.load:eio      let it go wrong from now on

    The devices are added to QEMU's command line, or go where {vf0}, {vf1} ... stand in it; a device for
    hot plug is plugged with the descriptor that status tells: device_add vfio-pci,fd=N,iommufd=vfmig-iommufd.
    With -incoming in it the devices begin empty, else with the state that --seed says. Signals, terminal and
    exit code are QEMU's.
    """
    if words[0] == "status" and len(words) == 1:
        return _status(control)
    if words[0] == "fault" and len(words) == 2:
        return _fault(control, words[1])
    if words[0] in ("status", "fault"):
        raise click.UsageError(
            "write `vfmig qemu status` or `vfmig qemu fault SPEC`; options go before the word"
        )
    return _start(words, control, **options)


def _start(
    words: tuple[str, ...],
    control: str | None,
    vfs: int,
    spare: int,
    state_size: int,
    precopy: int,
    journal: Path | None,
    **same: Any,
) -> int:
    from mockdev.attach.commandline import device_name, with_devices
    from mockdev.attach.config import AttachConfig
    from mockdev.attach.supervisor import Supervisor
    from mockdev.errors import VfmigError
    from mockdev.lab.qemu_end import check_release

    check_release(words[0])
    incoming = any(word in ("-incoming", "--incoming") for word in words)
    config = AttachConfig(
        command=tuple(with_devices(words, vfs, same["route"])),
        names=tuple(device_name(number) for number in range(vfs + spare)),
        role="target" if incoming else "source",
        filled=not incoming,
        state_bytes=state_size,
        precopy_bytes=precopy,
        journal=None if journal is None else str(journal),
        control=control or str(_folder() / _SOCKET.format(os.getpid())),
        **same,
    )
    try:
        config.check()
    except VfmigError as error:
        raise click.UsageError(str(error)) from None
    supervisor = Supervisor(config)
    status = supervisor.run()
    if supervisor.journal.lost:
        click.echo(f"vfmig: {supervisor.journal.lost}", err=True)
    return status


def _status(control: str | None) -> int:
    from mockdev.attach.control import ask
    from verifier.report.sizes import size_text

    told = {path: ask(path, ask="status") for path in _controls(control)}
    with printing():
        for path, status in told.items():
            click.echo(f"QEMU {status['pid']} ({status['role']}), control socket {path}")
            for device in status["devices"]:
                where = "plugged" if device["plugged"] else "free"
                click.echo(
                    f"  {device['name']}  fd {device['fd']}  {where}  {device['state']}  "
                    f"read {size_text(device['read_bytes'])}  written {size_text(device['written_bytes'])}"
                )
            click.echo(f"  {status['calls']} calls answered, {status['unanswered']} not known")
    return 0


def _fault(control: str | None, spec: str) -> int:
    from mockdev.attach.control import ControlError, ask

    paths = _controls(control)
    if len(paths) > 1:
        raise ControlError(f"{len(paths)} QEMUs run here: say which with --control ({', '.join(paths)})")
    with printing():
        click.echo(json.dumps(ask(paths[0], ask="fault", spec=spec)))
    return 0


def _folder() -> Path:
    """Where control sockets lie: of this user alone, if the system has such a place."""
    return Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())


def _controls(control: str | None) -> list[str]:
    """The control sockets of this user's running supervisors. ControlError: there is none."""
    from mockdev.attach.control import ControlError, answers

    if control is not None:
        return [control]
    found = sorted(map(str, _folder().glob(_SOCKET.format("*"))))
    alive = [path for path in found if answers(path)]
    if not alive:
        raise ControlError("no QEMU with mock devices runs here; start one with `vfmig qemu ... -- QEMU ...`")
    return alive
