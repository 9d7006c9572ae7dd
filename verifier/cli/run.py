# SPDX-License-Identifier: GPL-2.0-or-later
"""`vfmig run`: one migration, captured and judged; one evidence folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from verifier.cli import ENVIRONMENT, HOLDS, INTERRUPTED
from verifier.cli.options import machine, precopy, profile, qemu, state_size, target_qemu
from verifier.cli.output import printing
from verifier.cli.values import Size

if TYPE_CHECKING:
    from mockdev.lab.migration import Pair
    from verifier.verdict import Violation

_MIB = 1 << 20


def _list_faults(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    """Print every fault with its sentence."""
    if not wanted:
        return
    from mockdev.faultspec import FAULTS

    with printing():
        for fault in FAULTS:
            click.echo(f"{fault.form}\n    {fault.sentence}")
    ctx.exit()


@click.command("run")
@click.option(
    "--source",
    default="mock",
    show_default=True,
    type=click.Choice(["mock", "qemu"]),
    help="Who sends: an endpoint of ours, or a real QEMU with mock devices.",
)
@click.option(
    "--target", default="mock", show_default=True, type=click.Choice(["mock", "qemu"]), help="Who receives."
)
@qemu
@target_qemu
@click.option(
    "--accel", default="tcg", show_default=True, type=click.Choice(["tcg", "kvm"]), help="Of the QEMUs."
)
@machine
@click.option("--vfs", default=4, show_default=True, type=click.IntRange(1, 30), help="Devices.")
@state_size
@click.option(
    "--channels", default=6, show_default=True, type=click.IntRange(0, 255), help="Multifd connections."
)
@click.option(
    "--transfer",
    default="multifd",
    show_default=True,
    type=click.Choice(["multifd", "main"]),
    help="All devices at once over multifd, or one after the other on the main channel.",
)
@profile
@precopy
@click.option(
    "--queue-cap", type=Size(1), help="Bytes a device may have queued at the target.  [default: none]"
)
@click.option(
    "--load-threads", type=click.IntRange(1, 256), help="Loaders at the target.  [default: one a device]"
)
@click.option("--ram", default="16MiB", show_default=True, type=Size(), help="Guest RAM.")
@click.option(
    "--zero-pages",
    default="multifd",
    show_default=True,
    type=click.Choice(["multifd", "legacy", "none"]),
    help="Who finds zero pages, as QEMU's zero-page-detection.",
)
@click.option(
    "--dialect",
    default="10.0",
    show_default=True,
    type=click.Choice(["10.0", "10.1", "10.2", "11.0", "11.1"]),
    help="The release that a mock source speaks to a mock target.",
)
@click.option(
    "--capture",
    default="full",
    show_default=True,
    type=click.Choice(["full", "headers", "none"]),
    help="What the source's tap keeps; headers: no payload, but its digest.",
)
@click.option("--sniff", metavar="IFACE", help="Capture on this interface instead (needs CAP_NET_RAW).")
@click.option(
    "--transport",
    default="tcp",
    show_default=True,
    type=click.Choice(["tcp", "unix", "memory"]),
    help="memory: both ends in one process.",
)
@click.option(
    "--fault",
    "faults",
    multiple=True,
    metavar="SPEC",
    help="What goes wrong, WHERE:WHAT[@WHEN]; repeatable. See --list-faults.",
)
@click.option(
    "--list-faults",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_list_faults,
    help="All faults.",
)
@click.option("--netns", is_flag=True, help="Each end in a network namespace of its own (needs root).")
@click.option("--rate", type=Size(1), help="Bytes a second that the link of --netns carries.")
@click.option("--delay", type=click.FloatRange(0), metavar="MS", help="Of the link, each way.")
@click.option("--runs", default=1, show_default=True, type=click.IntRange(1), help="Repeat.")
@click.option(
    "--stop-at-violation",
    is_flag=True,
    help="Judge while it goes on too, and stop the run, or the series, at the first violation.",
)
@click.option(
    "--seed", type=click.IntRange(0, 2**63 - 1), help="Of every random choice.  [default: a new one]"
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Evidence folder.  [default: new, in runs/]"
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object (vfmig.report/1) on stdout.")
@click.pass_context
def command(
    ctx: click.Context,
    /,
    output: Path | None,
    runs: int,
    stop_at_violation: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Migrate mock VFs from one process to another, capture what passes, and judge it."""
    from mockdev.errors import VfmigError
    from verifier import evidence
    from verifier.cli.progress import Progress
    from verifier.cli.room import check_room
    from verifier.report import text
    from verifier.report.pages import PageError, Pages
    from verifier.verdict import merge

    _check_sniff(ctx, options)
    config = evidence.config_of(options)
    pair = _pair(options)
    try:
        config.check()
    except VfmigError as error:
        raise click.UsageError(str(error)) from None
    check_room(config)
    reports = []
    unwritten = HOLDS
    folders = evidence.new_folders(output, runs)
    for number, folder in enumerate(folders):
        this = msgspec.structs.replace(config, seed=config.seed + number)
        pages = Pages()
        try:
            with Progress(sys.stderr, f"run {number + 1} of {runs}" if runs > 1 else "") as progress:

                def stopped(violation: Violation, progress: Progress = progress) -> None:
                    progress.say(f"vfmig: stopping at {text.in_a_line(violation)}")

                report = evidence.run(
                    folder,
                    this,
                    progress.update,
                    sniff=options["sniff"],
                    pair=pair,
                    watch=pages.watch,
                    on_violation=stopped if stop_at_violation else None,
                )
                progress.update("writing the page", 0, 0)
                pages.write(folder, report, str(folder), one_target=True)
        except PageError as error:  # the verdict stands without it
            click.echo(f"vfmig: {error}", err=True)
            unwritten = ENVIRONMENT
        except KeyboardInterrupt:
            if sys.stderr.isatty():  # which has echoed ^C
                click.echo(err=True)
            click.echo(f"vfmig: interrupted; what there is of the run lies in {folder}", err=True)
            return INTERRUPTED
        reports.append(report)
        if not as_json:
            with printing():
                text.print_report(report, sys.stdout)
                click.echo(f"evidence in {folder}")
        if stop_at_violation and report.violations:
            for unused in folders[number + 1 :]:
                unused.rmdir()
            break
    merged = merge(reports)
    if as_json:
        with printing():
            text.write_json(merged)
    return merged.exit_code or unwritten


def _pair(options: dict[str, Any]) -> Pair:
    """Who stands at the ends. QemuError: a QEMU that is asked for cannot do it."""
    from mockdev.lab.migration import Hosts, Pair
    from mockdev.lab.qemu import BINARY
    from mockdev.lab.qemu_end import Vm, check_vm, versioned

    hosts = None
    if options["netns"]:
        hosts = Hosts(rate_bytes_per_s=options["rate"], delay_ns=int((options["delay"] or 0) * 1e6))
    elif options["rate"] or options["delay"]:
        raise click.UsageError("--rate and --delay shape the link between two hosts: they need --netns")
    paths = {"source": options["qemu"], "target": options["target_qemu"] or options["qemu"]}
    binaries = {role: path or BINARY for role, path in paths.items() if options[role] == "qemu"}
    if not binaries:
        for option, default in (("qemu", None), ("target_qemu", None), ("accel", "tcg"), ("machine", "pc")):
            if options[option] != default:
                name = option.replace("_", "-")
                raise click.UsageError(f"--{name} is for a QEMU: add --source qemu or --target qemu")
        return Pair(hosts=hosts)
    if options["transport"] != "tcp":
        raise click.UsageError("a QEMU migrates over --transport tcp only")
    machine = versioned(options["machine"], list(binaries.values()))
    both = len(binaries) == 2
    vms = {
        role: Vm(binary=binary, accel=options["accel"], machine=machine, keep_state=both)
        for role, binary in binaries.items()
    }
    for vm in vms.values():
        check_vm(vm)
    relay = both and not options["sniff"] and options["capture"] != "none"
    return Pair(source=vms.get("source"), target=vms.get("target"), relay=relay, hosts=hosts)


def _check_sniff(ctx: click.Context, options: dict[str, Any]) -> None:
    """The sniffer sees TCP, and all of it."""
    if not options["sniff"]:
        return
    if options["transport"] != "tcp":
        raise click.UsageError("--sniff needs --transport tcp")
    given = ctx.get_parameter_source("capture") is not click.core.ParameterSource.DEFAULT
    if given and options["capture"] != "full":
        raise click.UsageError(f"--sniff captures everything: no --capture {options['capture']} with it")
