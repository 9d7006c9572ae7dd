# SPDX-License-Identifier: GPL-2.0-or-later
"""`vfmig run` ended from outside, at any moment: its processes are gone, its folder can be read."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from mockdev.journal import Begin, read
from verifier.check import check_path

VFMIG = [sys.executable, "-c", "from verifier.cli import main; main()", "run"]
SLOW = ["--vfs", "1", "--state-size", "256MiB", "--channels", "2", "--ram", "1MiB", "--profile", "connectx7"]
DEADLINE_S = 30.0
EVIDENCE = {"run.json", "capture.pcapng", "source.jsonl", "target.jsonl", "source.log", "target.log"}
EVIDENCE |= {"source.qmp.jsonl", "target.qmp.jsonl"}


class Command:
    """A running `vfmig run`, in a process group of its own, as a shell would start it."""

    def __init__(self, place: Path, *options: str) -> None:
        self.out = place / "out"
        self.temporary = place / "tmp"
        self.temporary.mkdir()
        self._mark = f"VFMIG_TEST={uuid.uuid4()}".encode()
        name, _, value = self._mark.decode().partition("=")
        self.process = subprocess.Popen(
            [*VFMIG, *SLOW, "-o", str(self.out), *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, name: value, "TMPDIR": str(self.temporary)},
            start_new_session=True,
        )

    def await_(self, condition: Callable[[Command], bool]) -> None:
        """Until a condition is met."""
        deadline = time.monotonic() + DEADLINE_S
        while not condition(self):
            assert time.monotonic() < deadline, "it never came to that"
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.002)

    def alive(self) -> list[int]:
        """Processes of this run that are not gone, by the mark that all of them inherit."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and self._mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:  # it has just gone
                continue
        return found

    def check_ended(self, status: int) -> None:
        """It has ended with this status and a word, and nothing of it lives on."""
        output, errors = self.process.communicate(timeout=DEADLINE_S)
        if status == 130:
            assert self.alive() == []
            assert errors.decode().strip().startswith("vfmig: interrupted")
            assert len(errors.decode().strip().splitlines()) == 1
        else:
            assert errors == b""
            deadline = time.monotonic() + DEADLINE_S
            while self.alive():
                assert time.monotonic() < deadline, "a process has outlived its parent"
                time.sleep(0.01)
        assert (self.process.returncode, output) == (status, b"")

    def check_folder(self) -> None:
        """What it left can be read, and is nothing but evidence."""
        assert not list(self.temporary.iterdir())
        if not self.out.exists():
            return
        names = {path.name for path in self.out.iterdir()}
        assert names <= EVIDENCE
        assert json.loads((self.out / "run.json").read_bytes())["schema"] == "vfmig.run/1"
        for role in ("source", "target"):
            path = self.out / f"{role}.jsonl"
            if path.exists():
                assert all(isinstance(line, Begin) for line in list(read(path))[:1])
        report = check_path(self.out)
        assert report.violations == []
        assert report.exit_code in (4, 5)  # 4: before there was anything to read


def started(command: Command) -> bool:
    """It catches signals."""
    for line in Path(f"/proc/{command.process.pid}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1)
    return False


def allocating(command: Command) -> bool:
    """Both endpoints have begun, and are filling their memory or nearly so."""
    return all((command.out / f"{role}.jsonl").exists() for role in ("source", "target"))


def migrating(command: Command) -> bool:
    """Device state is under way."""
    try:
        return b'"switchover-start"' in (command.out / "source.jsonl").read_bytes()
    except FileNotFoundError:
        return False


def ctrl_c(command: Command) -> None:
    os.killpg(command.process.pid, signal.SIGINT)


def ctrl_c_twice(command: Command) -> None:
    ctrl_c(command)
    ctrl_c(command)


def terminate(command: Command) -> None:
    os.kill(command.process.pid, signal.SIGTERM)


def hang_up(command: Command) -> None:
    os.killpg(command.process.pid, signal.SIGHUP)


@pytest.mark.parametrize(
    ("moment", "how", "options"),
    [
        (started, ctrl_c, ""),
        (started, terminate, ""),
        (allocating, ctrl_c, ""),
        (allocating, terminate, "--transport unix"),
        (migrating, ctrl_c, ""),
        (migrating, ctrl_c_twice, ""),
        (migrating, terminate, ""),
        (migrating, hang_up, "--transport unix"),
        (migrating, ctrl_c, "--transport memory"),
        (started, ctrl_c, "--stop-at-violation"),
        (migrating, terminate, "--stop-at-violation"),
    ],
)
def test_interrupted(
    moment: Callable[[Command], bool], how: Callable[[Command], None], options: str, tmp_path: Path
) -> None:
    command = Command(tmp_path, *options.split())
    command.await_(moment)
    how(command)
    command.check_ended(130)
    command.check_folder()


@pytest.mark.parametrize("options", ["", "--stop-at-violation"])
@pytest.mark.parametrize("moment", [allocating, migrating])
def test_killed(moment: Callable[[Command], bool], options: str, tmp_path: Path) -> None:
    command = Command(tmp_path, *options.split())
    command.await_(moment)
    command.process.kill()
    command.check_ended(-signal.SIGKILL)
    command.check_folder()


def kill(command: Command) -> None:
    command.process.kill()


@pytest.mark.parametrize(("how", "status"), [(ctrl_c, 130), (kill, -signal.SIGKILL)])
def test_the_sniffer_goes_too(how: Callable[[Command], None], status: int, tmp_path: Path) -> None:
    command = Command(tmp_path, "--sniff", "lo")
    if not may_sniff():
        assert b"CAP_NET_RAW" in command.process.communicate(timeout=DEADLINE_S)[1]
        assert command.process.returncode == 4
        return
    command.await_(migrating)
    how(command)
    command.check_ended(status)
    command.check_folder()


def may_sniff() -> bool:
    try:
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close()
    except PermissionError:
        return False
    return True
