# SPDX-License-Identifier: GPL-2.0-or-later
"""`vfmig doctor`: what it says of this machine, of one that lacks things, and without privileges."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.confined import FEW_FILES, LISTENED, WITHOUT_MEMORY
from verifier.cli.abilities import JOBS, QEMU, RUN, Ability

VFMIG = [sys.executable, "-c", "from verifier.cli import main; main()"]
NEEDED = {
    "Python", "free memory", "open files", "kernel", "seccomp user notification", "memory of a child",
    "pidfd", "QEMU", "vfio-pci in QEMU", "iommufd in QEMU",
}  # fmt: skip
OTHERS = {"second QEMU", "/dev/kvm", "tshark", "raw sockets", "network namespaces"}

# Everything is imported before the privileges go: an interpreter may lie where others cannot read.
AS_NOBODY = """
import contextlib, io, os, sys
from verifier.cli.group import execute
with contextlib.redirect_stdout(io.StringIO()):
    execute(["doctor"])
    execute(["doctor", "--json"])
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
sys.exit(execute(["doctor", *sys.argv[1:]]))
"""


def doctor(*arguments: str, command: list[str] | None = None, **how: Any) -> tuple[int, dict[str, Any]]:
    """Exit code and the JSON object, the abilities by their names. In a process of its own: it forks."""
    done = subprocess.run(
        [*(command or [*VFMIG, "doctor"]), "--json", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
        **how,
    )
    assert "Traceback" not in done.stderr
    said = json.loads(done.stdout)
    assert said["schema"] == "vfmig.doctor/1"
    said["abilities"] = {row["name"]: row for row in said["abilities"]}
    return done.returncode, said


def fake(path: Path, version: str, *more: str) -> str:
    """A program that calls itself a QEMU of this release, and does so much more."""
    lines = ["#!/bin/sh", f'[ "$1" = --version ] && echo "QEMU emulator version {version}" && exit', *more]
    path.write_text("\n".join(lines) + "\n")
    path.chmod(0o755)
    return str(path)


def test_this_machine_can_do_the_main_jobs() -> None:
    code, said = doctor()
    assert said["missing"] == {job: [] for job in JOBS}
    assert code == 0
    assert said["abilities"].keys() == NEEDED | OTHERS
    for name, row in said["abilities"].items():
        assert row.keys() == set(Ability.__struct_fields__)
        assert bool(row["needed_by"]) == (name in NEEDED)
        assert bool(row["remedy"]) == (not row["there"])
        assert row["found"]
        assert row["purpose"]


def test_without_privileges_devices_can_be_lent_and_nothing_is_sniffed() -> None:
    code, said = doctor(command=[sys.executable, "-c", AS_NOBODY])
    there = {name for name, row in said["abilities"].items() if row["there"]}
    assert there >= NEEDED
    assert code == 0
    assert not there & {"raw sockets", "network namespaces"}
    assert "cap_net_raw" in said["abilities"]["raw sockets"]["remedy"]
    assert "root" in said["abilities"]["network namespaces"]["remedy"]


def test_a_person_is_told_line_by_line() -> None:
    done = subprocess.run([*VFMIG, "doctor"], capture_output=True, text=True, timeout=120, check=True)
    lines = [line for line in done.stdout.splitlines() if not line.startswith("    ")]
    assert len(lines) == len(NEEDED | OTHERS) + len(JOBS)
    assert all(line.startswith(("yes  ", "no   ")) for line in lines[: -len(JOBS)])
    assert lines[-2:] == [f"{RUN}: ready", f"{QEMU}: ready"]


@pytest.mark.parametrize(
    ("binary", "found"),
    [
        ("/nowhere/qemu", "there is no /nowhere/qemu"),
        ("/etc/passwd", "not executable"),
        ("/tmp", "not executable"),
        ("no-such-qemu", "no-such-qemu is not installed"),
        ("/bin/true", "is no QEMU"),
        ("{tmp}/old", "old is QEMU 9.2.4; device state over multifd came with 10.0"),
    ],
)
def test_a_qemu_that_cannot_do_it(binary: str, found: str, tmp_path: Path) -> None:
    fake(tmp_path / "old", "9.2.4")
    code, said = doctor("--qemu", binary.format(tmp=tmp_path))
    assert code == 4
    assert said["missing"] == {RUN: [], QEMU: ["QEMU", "vfio-pci in QEMU", "iommufd in QEMU"]}
    row = said["abilities"]["QEMU"]
    assert found in row["found"]
    assert "apt install" not in row["found"]
    assert "apt install" in row["remedy"]


def test_a_qemu_without_vfio(tmp_path: Path) -> None:
    echo = 'echo "name \\"x-vfio-pci-base\\"" && echo "  iommufd-like" && echo "  iommufd2"'
    code, said = doctor("--qemu", fake(tmp_path / "qemu", "10.1.0", echo))
    assert code == 4
    assert said["missing"][QEMU] == ["vfio-pci in QEMU", "iommufd in QEMU"]
    assert said["abilities"]["vfio-pci in QEMU"]["found"] == "not in -device help"
    code, said = doctor(
        "--qemu", fake(tmp_path / "qemu", "10.1.0", 'echo "name \\"vfio-pci\\", bus PCI"; echo iommufd')
    )
    assert (code, said["missing"][QEMU]) == (0, [])


def test_a_second_qemu_is_looked_for_where_make_puts_it(tmp_path: Path) -> None:
    (tmp_path / ".qemu").mkdir()
    fake(tmp_path / ".qemu" / "qemu-system-x86_64", "11.1.3")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    _, said = doctor(cwd=tmp_path, env=environment)
    assert said["abilities"]["second QEMU"]["found"] == "11.1.3, .qemu/qemu-system-x86_64"
    (tmp_path / ".qemu" / "qemu-system-x86_64").unlink()
    _, said = doctor(cwd=tmp_path, env=environment)
    assert "make qemu" in said["abilities"]["second QEMU"]["remedy"]


@pytest.mark.parametrize(
    ("confined", "name", "found", "remedy"),
    [
        (FEW_FILES, "open files", "260", "ulimit -Hn"),
        (LISTENED, "seccomp user notification", "already has a listener", "container"),
        (WITHOUT_MEMORY, "memory of a child", "refused (EPERM)", "ptrace_scope"),
    ],
)
def test_what_a_container_may_take_away(confined: list[str], name: str, found: str, remedy: str) -> None:
    code, said = doctor(command=[*confined, *VFMIG, "doctor"])
    assert code == 4
    unknown = ["memory of a child"] if confined is LISTENED else []
    assert said["missing"] == {RUN: [], QEMU: [name, *unknown]}
    assert found in said["abilities"][name]["found"]
    assert remedy in said["abilities"][name]["remedy"]
    assert all(said["abilities"][other]["found"] == "not tried: no call came" for other in unknown)
