# SPDX-License-Identifier: GPL-2.0-or-later
"""The evidence folder of a run: made, filled by the migration, judged, and described in `run.json`."""

from __future__ import annotations

import json
import os
import platform
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec

from mockdev.errors import VfmigError
from mockdev.lab.endpoint import EXIT_BEGIN
from mockdev.lab.migration import Cancel, Pair, run_migration
from mockdev.lab.outcome import Outcome
from mockdev.runtime.config import MigrationConfig
from verifier.capture.sniff import Sniffer
from verifier.check import Watch, check_path
from verifier.guest_ram import GuestRamError, compare_dumps
from verifier.history.record import GuestRam, PciState
from verifier.invariants.reporting import standing_of
from verifier.online import Online
from verifier.verdict import Report, Unknown, Violation

SCHEMA = "vfmig.run/1"
CAPTURE = "capture.pcapng"
_SEED_BITS = 32
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# phase in words, bytes so far, bytes in all (0: not known)
OnProgress = Callable[[str, int, int], None]
OnViolation = Callable[[Violation], None]


class FolderError(VfmigError):
    """The evidence folder cannot be made or written."""

    environment = True


class BeginError(VfmigError):
    """An endpoint could not take up its work: the machine lacks something."""

    environment = True


class RunRecord(msgspec.Struct, kw_only=True):
    """`run.json`. arguments: the migration's configuration; pair: its ends; machine: what it ran on.

    stopped_at: the violation at which the run was stopped while it went on.
    """

    schema: str = SCHEMA
    arguments: dict[str, Any]
    pair: Pair
    seed: int
    sniffed: str | None
    versions: dict[str, str]
    machine: dict[str, Any]
    outcome: Outcome | None = None
    struck: list[str] = []
    called_off: bool = False
    guest_ram: GuestRam | None = None
    pci: PciState | None = None
    stopped_at: Violation | None = None
    report: Report | None = None


def new_seed() -> int:
    """A seed for a run that was given none."""
    return secrets.randbits(_SEED_BITS)


def new_folders(wanted: Path | None, runs: int = 1) -> list[Path]:
    """Make the folder of each run: `wanted`, or a new one in runs/; of several runs, numbered ones in it.

    FolderError when one cannot be made, or holds something already.
    """
    if wanted is None:
        wanted = Path("runs", time.strftime("%Y%m%d-%H%M%S-") + secrets.token_hex(2))
    folders = [wanted / f"{number:04d}" for number in range(runs)] if runs > 1 else [wanted]
    try:
        os.fspath(wanted).encode()
        wanted.mkdir(parents=True, exist_ok=True)
        if any(wanted.iterdir()):
            raise FolderError(f"{wanted} is not empty; give -o a folder that is new")
        for folder in folders:
            folder.mkdir(exist_ok=True)
    except UnicodeEncodeError:
        raise FolderError("the evidence folder's name is not UTF-8; give -o another one") from None
    except (FileExistsError, NotADirectoryError):
        raise FolderError(f"{wanted} cannot be made: there is a file of that name on the way") from None
    except OSError as error:
        raise FolderError(f"{wanted} cannot be made: {error.strerror}") from None
    return folders


def run(
    folder: Path,
    config: MigrationConfig,
    on_progress: OnProgress,
    *,
    sniff: str | None = None,
    pair: Pair | None = None,
    watch: Watch | None = None,
    on_violation: OnViolation | None = None,
) -> Report:
    """Run the migration into `folder`, judge what it left there, and keep `run.json` there up to date.

    pair: who stands at the ends, by default endpoints of ours. sniff: the interface to capture on instead of
    the endpoint's tap. watch: who listens along while it is judged. on_violation: judge while the run goes
    on as well, and stop it at the first violation, of which this hears at once, in another thread.
    Interrupted (SIGINT, SIGTERM, SIGHUP), it leaves the folder readable and raises KeyboardInterrupt.
    FolderError: nothing can be written there at the start; later on that becomes part of the report.
    BeginError: an endpoint could not begin.
    """
    record = _record(config, sniff, pair or Pair())
    why = _write(record, folder)
    if why:
        raise FolderError(why)
    try:
        with ExitStack() as stack:
            cancel = Cancel()
            online = None
            if on_violation is not None:
                online = stack.enter_context(_stopping(folder, record, cancel, on_violation))
            complaints = _migrate(folder, config, on_progress, record, cancel)
        if cancel.wanted:  # asked for when both ends were over
            record.stopped_at = None
        _write(record, folder)  # whoever is killed while judging leaves the outcome
        on_progress("judging", 0, 0)
        assert record.outcome is not None
        report = record.report = _judge(folder, record.outcome, complaints, watch)
        doubts = _doubts_of_online(online, record, report)
        if doubts:
            _doubt(report, doubts)
    except BaseException:
        _write(record, folder)  # what is known; why it is no more is told by the exception
        raise
    why = _write(record, folder)
    if why:
        _doubt(report, [Unknown(id="evidence", why=why)])
    return report


def _stopping(folder: Path, record: RunRecord, cancel: Cancel, on_violation: OnViolation) -> Online:
    """Judges the folder as it fills, and calls the run off at the first violation."""

    def hear(violation: Violation) -> None:
        if record.stopped_at is None:
            record.stopped_at = violation
            cancel.cancel()
            on_violation(violation)

    return Online(folder, hear)


def _doubts_of_online(online: Online | None, record: RunRecord, report: Report) -> list[Unknown]:
    """What judging while the run went on could not do, or found and the whole evidence does not show."""
    if online is None:
        return []
    why = [f"what was judged while the run went on: {online.complaint}"] if online.complaint else []
    first = record.stopped_at
    if first is not None and all((v.id, v.scope) != (first.id, first.scope) for v in report.violations):
        why.append(f"it was stopped at {first.id} ({first.message}), which the whole evidence does not show")
    return [Unknown(id="online", why=sentence) for sentence in why]


def _migrate(
    folder: Path, config: MigrationConfig, on_progress: OnProgress, record: RunRecord, cancel: Cancel
) -> list[str]:
    """Put the outcome into the record; gives why evidence is not whole (a full disk, say)."""
    sniff = record.sniffed
    expected = config.vfs * config.state_bytes + config.ram_bytes
    sniffers: list[Sniffer] = []
    with _asking(cancel.cancel) as asked, ExitStack() as stack:

        def watch(message: dict[str, Any]) -> None:
            event = message.get("event")
            if sniff and event == "ready" and message.get("role") == "target":
                port = int(message["address"].rpartition(":")[2])
                sniffer = Sniffer(sniff, folder / CAPTURE, ports=[port], expected_bytes=expected * 11 // 10)
                sniffers.append(stack.enter_context(sniffer))
            elif event == "fault":
                record.struck.append(message["spec"])
            elif event == "progress" and message.get("role") == "source":
                on_progress(message["phase"], message["moved_bytes"], expected)

        try:
            outcome = record.outcome = run_migration(config, folder, watch, cancel, record.pair)
        except VfmigError:
            if asked:  # what was called off may have failed of it
                raise KeyboardInterrupt from None
            raise
    try:
        record.called_off = bool(asked)
        if asked:
            raise KeyboardInterrupt
        record.guest_ram = _guest_ram(folder)
        record.pci = _pci(folder)
    finally:
        _remove_dumps(folder)
    for role, end in (("source", outcome.source), ("target", outcome.target)):
        if end.exit_status == EXIT_BEGIN:
            raise BeginError(f"the {role} could not begin: {end.error}")
    complaints = [outcome.source.complaint, outcome.target.complaint, outcome.complaint]
    complaints += [sniffer.report.complaint for sniffer in sniffers]
    return [complaint for complaint in complaints if complaint]


def _guest_ram(folder: Path) -> GuestRam | None:
    """Compare the dumps that both ends left."""
    dumps = _dumps(folder)
    try:
        if not all(dump.is_file() for dump in dumps):
            return None
        found = compare_dumps(*dumps)
        return GuestRam(equal=found.equal, pages=found.pages, difference="" if found.equal else str(found))
    except GuestRamError as error:
        return GuestRam(difference=str(error))


def _remove_dumps(folder: Path) -> None:
    """They are large, and of no use once compared."""
    for dump in _dumps(folder):
        dump.unlink(missing_ok=True)


def _dumps(folder: Path) -> list[Path]:
    return [folder / f"{role}.core" for role in ("source", "target")]


def _pci(folder: Path) -> PciState | None:
    """Compare what the guest saw of its devices on either side."""
    try:
        sides = [json.loads((folder / f"{role}.pci.json").read_bytes()) for role in ("source", "target")]
    except (OSError, ValueError):
        return None
    wrong = [
        f"{name}: {what}"
        for name, state in sides[0].items()
        for what in ("config", "msix")
        if state[what] != sides[1].get(name, {}).get(what)
    ]
    return PciState(equal=not wrong, devices=len(sides[0]), difference=", ".join(wrong))


@contextmanager
def _asking(cancel: Callable[[], None]) -> Iterator[list[int]]:
    """While in it, a signal to end calls `cancel` instead of breaking in anywhere; gives those that came."""
    came: list[int] = []

    def hear(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        cancel()

    taken = {}
    if threading.current_thread() is threading.main_thread():
        taken = {n: old for n in _ENDING if (old := signal.getsignal(n)) != signal.SIG_IGN}
    for number in taken:
        signal.signal(number, hear)
    try:
        yield came
    finally:
        for number, old in taken.items():
            signal.signal(number, old)


def _judge(folder: Path, outcome: Outcome, complaints: list[str], watch: Watch | None) -> Report:
    """What the folder shows, and what the run itself knows of it."""
    report = check_path(folder, watch=watch)
    report.outcome = outcome.outcome
    why = [Unknown(id="evidence", why=complaint) for complaint in complaints]
    for row in report.unreadable:  # our own evidence: not an input that somebody should have given
        why.append(Unknown(id="evidence", why=row.error))
        row.error = ""
    for role, end in (("target", outcome.target), ("source", outcome.source)):
        if end.outcome != "completed" and not (report.run and report.run.failed_as_injected):
            why.append(Unknown(id="outcome", why=f"the {role} {end.outcome}: {end.error}"))
    _doubt(report, why)
    return report


def _doubt(report: Report, why: list[Unknown]) -> None:
    """The report cannot say that all holds any more. The nearest reason comes first."""
    said = {unknown.why for unknown in why}
    report.unknown = why + [unknown for unknown in report.unknown if unknown.why not in said]
    report.standing = standing_of(report)


def _record(config: MigrationConfig, sniff: str | None, pair: Pair) -> RunRecord:
    return RunRecord(
        arguments=msgspec.to_builtins(config),
        pair=pair,
        seed=config.seed,
        sniffed=sniff,
        versions={"vfmig": version("vfmig"), "python": platform.python_version()},
        machine={
            "kernel": platform.release(),
            "architecture": platform.machine(),
            "cpus": len(os.sched_getaffinity(0)),
        },
    )


def _write(record: RunRecord, folder: Path) -> str:
    """Put the record in the place of the last one, whole or not at all; "" or why it could not be."""
    path = folder / "run.json"
    new = folder / ".run.json.new"
    try:
        new.write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n")
        new.replace(path)
    except OSError as error:
        return f"{path} cannot be written: {error.strerror}"
    finally:
        new.unlink(missing_ok=True)
    return ""


def config_of(options: Mapping[str, Any]) -> MigrationConfig:
    """The configuration that the command's options ask for; a new seed when they hold none."""
    seed = options["seed"]
    return MigrationConfig(
        vfs=options["vfs"],
        state_bytes=options["state_size"],
        channels=options["channels"],
        transfer=options["transfer"],
        profile=options["profile"],
        precopy_bytes=options["precopy"],
        queue_cap_bytes=options["queue_cap"],
        load_threads=options["load_threads"],
        ram_bytes=options["ram"],
        zero_pages=options["zero_pages"],
        capture="none" if options["sniff"] else options["capture"],
        transport=options["transport"],
        seed=new_seed() if seed is None else seed,
        dialect=options["dialect"],
        faults=options["faults"],
    )
