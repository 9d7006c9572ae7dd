# SPDX-License-Identifier: GPL-2.0-or-later
"""Whole runs, judged: what must hold does, and what goes wrong on the way is said in the report."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mockdev.errors import CancelledError
from mockdev.lab.outcome import EndpointStatus, Outcome
from mockdev.runtime.config import MigrationConfig
from verifier import evidence
from verifier.check import check_path
from verifier.cli.interrupts import once
from verifier.evidence import FolderError, RunRecord
from verifier.verdict import Report, Standing

MIB = 1 << 20
QUICK = MigrationConfig(
    vfs=2, state_bytes=MIB + 777, channels=3, ram_bytes=MIB, profile="unlimited", transport="memory", seed=5
)


def run(folder: Path, **changes: Any) -> Report:
    """A run in this process unless a transport is given."""
    return evidence.run(folder, msgspec.structs.replace(QUICK, **changes), lambda *_: None)


def record(folder: Path) -> RunRecord:
    return msgspec.json.decode((folder / "run.json").read_bytes(), type=RunRecord)


# Every value of every axis, with the edges of each beside the edges of another.
MATRIX: list[dict[str, Any]] = [
    {"vfs": 1, "channels": 1},
    {"vfs": 1, "channels": 25, "precopy_bytes": 12_345},
    {"vfs": 2, "channels": 2, "queue_cap_bytes": 64 * MIB, "load_threads": 1},
    {"vfs": 4, "channels": 6, "precopy_bytes": MIB, "load_threads": 2},
    {"vfs": 8, "channels": 25, "queue_cap_bytes": 64 * MIB, "precopy_bytes": 1},
    {"vfs": 8, "channels": 1, "load_threads": 1},
    {"vfs": 30, "channels": 255, "state_bytes": 4096},
    {"vfs": 1, "channels": 0, "transfer": "main"},
    {"vfs": 2, "channels": 0, "transfer": "main", "ram_bytes": 0, "state_bytes": 1},
    {"vfs": 8, "channels": 6, "transfer": "main", "precopy_bytes": 12_345},
    {"vfs": 4, "channels": 25, "transfer": "main", "load_threads": 1},
    {"profile": "connectx7"},
    {"profile": "connectx7", "transfer": "main", "precopy_bytes": 4096},
    {"profile": "opaque", "precopy_bytes": 4096},
    {"transport": "tcp", "capture": "full"},
    {"transport": "unix", "capture": "headers", "load_threads": 1},
    {"transport": "tcp", "capture": "none", "profile": "connectx7"},
    {"capture": "headers", "zero_pages": "legacy"},
    {"capture": "none", "zero_pages": "none", "transfer": "main"},
    {"dialect": "11.1", "precopy_bytes": 4096},
    {"state_bytes": 1},
]


@pytest.mark.parametrize("changes", MATRIX, ids=lambda c: ",".join(f"{k}={v}" for k, v in c.items()))
def test_it_holds_and_the_states_are_equal(changes: dict[str, Any], tmp_path: Path) -> None:
    report = run(tmp_path, **changes)
    assert report.standing is Standing.HOLDS, (report.violations[:3], report.unknown[:3])
    assert (report.outcome, report.exit_code) == ("completed", 0)
    assert report.transfer == changes.get("transfer", "multifd")
    assert len(report.devices) == changes.get("vfs", QUICK.vfs)
    for row in report.devices:
        assert row.equal is True
        assert row.saved_digest == row.loaded_digest
    kept = record(tmp_path)
    assert kept.seed == report.seed == 5
    assert kept.outcome is not None
    assert kept.outcome.verified is True
    assert kept.report == report


@pytest.mark.parametrize("changes", [{}, {"load_threads": 1, "profile": "connectx7", "state_bytes": 8 * MIB}])
def test_a_cap_that_is_too_small_fails_and_says_so(changes: dict[str, Any], tmp_path: Path) -> None:
    report = run(tmp_path, queue_cap_bytes=1000, **changes)
    assert (report.standing, report.outcome, report.exit_code) == (Standing.UNKNOWN, "failed-clean", 5)
    assert any("over the cap of 1000" in unknown.why for unknown in report.unknown[:2])
    assert not any(row.equal for row in report.devices)
    assert all(row.loaded_digest is None for row in report.devices)
    outcome = record(tmp_path).outcome
    assert outcome is not None
    assert (outcome.source.runs, outcome.target.runs) == (True, False)


# --- no room -----------------------------------------------------------------------------------------

FILE_BYTES_MAX = 3 * MIB
VFMIG = [sys.executable, "-c", "from verifier.cli import main; main()"]


@pytest.fixture(name="small_disk")
def _small_disk(tmp_path: Path) -> Iterator[tuple[Path, Callable[[], None]]]:
    """A folder in which not much can be written, and what a process does first to be held to that.

    A file system of its own where we may mount one, else the kernel's limit on the size of files.
    """
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={FILE_BYTES_MAX}", "vfmig-test", str(place)]
    if os.geteuid() == 0 and subprocess.run(mount, stderr=subprocess.DEVNULL).returncode == 0:
        yield place, lambda: None
        subprocess.run(["umount", str(place)], check=True)
    else:
        yield place, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES_MAX, FILE_BYTES_MAX))


@pytest.mark.parametrize("options", ["", "--transport memory"])
def test_a_disk_that_fills_up_while_capturing(
    options: str, small_disk: tuple[Path, Callable[[], None]]
) -> None:
    place, limit = small_disk
    arguments = ["run", "--profile", "unlimited", "--vfs", "2", "--state-size", "4MiB", "--ram", "1MiB"]
    done = subprocess.run(
        [*VFMIG, *arguments, *options.split(), "-o", str(place / "out")],
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=limit,
    )
    assert (done.returncode, done.stderr) == (5, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("unknown: ")
    assert "invariants judged on" in lines[0]
    assert "outcome completed" in lines[1]
    assert "capture.pcapng: the capture stops after " in done.stdout
    rows = [line.split() for line in lines if line.startswith("0000:00:")]
    assert len(rows) == 2
    assert "violated" not in done.stdout
    assert all("no" not in row[-2:] for row in rows), "a part of a state is not another state"
    assert json.loads((place / "out/run.json").read_bytes())["report"]["standing"] == "unknown"


def test_a_record_that_cannot_be_written_does_not_hide_the_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = check_path

    def judge_and_lose_the_folder(folder: Path, **watched: Any) -> Report:
        report = judge(folder, **watched)
        (folder / "run.json").unlink()
        (folder / "run.json").mkdir()
        return report

    monkeypatch.setattr(evidence, "check_path", judge_and_lose_the_folder)
    report = run(tmp_path)
    assert [row.equal for row in report.devices] == [True, True]
    assert (report.standing, report.exit_code) == (Standing.UNKNOWN, 5)
    assert "run.json cannot be written: Is a directory" in report.unknown[0].why
    assert not list(tmp_path.glob(".*"))


def test_a_folder_that_takes_nothing_is_refused_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "run.json").mkdir()
    with pytest.raises(FolderError, match=r"run\.json cannot be written"):
        run(tmp_path)
    assert not (tmp_path / "source.jsonl").exists()


# --- interrupted -------------------------------------------------------------------------------------


def test_interrupted_while_judging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def press(_: Path, **_watched: Any) -> Report:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)  # again, impatiently: it must not disturb the tidying up
        raise AssertionError("it went on")

    monkeypatch.setattr(evidence, "check_path", press)
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with once(), pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before
    kept = record(tmp_path)
    assert kept.report is None
    assert kept.outcome is not None
    assert kept.outcome.outcome == "completed"


def test_interrupted_while_migrating(tmp_path: Path) -> None:
    config = msgspec.structs.replace(
        QUICK, profile="connectx7", transport="tcp", vfs=1, state_bytes=128 * MIB
    )

    def press(phase: str, *_: int) -> None:
        if phase == "switchover":
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        evidence.run(tmp_path, config, press)
    kept = record(tmp_path)
    assert kept.outcome is not None
    assert kept.outcome.outcome == "cancelled"
    assert kept.report is None


def test_what_fails_of_being_interrupted_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Outcome:
        os.kill(os.getpid(), signal.SIGINT)
        raise CancelledError("called off")

    monkeypatch.setattr(evidence, "run_migration", fail)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)


def test_interrupted_after_the_dump_no_dump_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dump(_config: object, folder: Path, *_: object) -> Outcome:
        (folder / "source.core").write_bytes(b"RAM")
        os.kill(os.getpid(), signal.SIGINT)
        status = EndpointStatus(outcome="cancelled")
        return Outcome(outcome="cancelled", source=status, target=status)

    monkeypatch.setattr(evidence, "run_migration", dump)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    assert not list(tmp_path.glob("*.core"))


# --- folders -----------------------------------------------------------------------------------------


def test_new_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (one,) = evidence.new_folders(None)
    assert one.parent == Path("runs")
    several = evidence.new_folders(None, 3)
    assert [folder.name for folder in several] == ["0000", "0001", "0002"]
    assert len({folder.parent for folder in several}) == 1
    assert all(folder.is_dir() for folder in [one, *several])
    with pytest.raises(FolderError, match="is not empty"):
        evidence.new_folders(several[0].parent, 2)
