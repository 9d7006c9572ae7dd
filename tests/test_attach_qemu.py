# SPDX-License-Identifier: GPL-2.0-or-later
"""Mock VFs on an unmodified QEMU: plugged and unplugged, migrated by anybody, gone with their supervisor."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from mockdev.attach.commandline import device_words, iommufd_words, legacy_words, with_devices
from mockdev.attach.config import AttachConfig
from mockdev.attach.control import ask
from mockdev.journal import State, read
from mockdev.lab.qemu import Qemu, QemuError, find_qemu

DEADLINE_S = 60.0
NOBODY = 65534
SLOT = 2

# Modules first: the interpreter may lie where nobody can read.
AS_NOBODY = f"""
import os, sys, msgspec
from mockdev.attach.config import AttachConfig
from mockdev.attach import supervisor
config = msgspec.json.decode(sys.stdin.buffer.readline(), type=AttachConfig)
for path in (config.control, config.journal):
    os.chown(os.path.dirname(path), {NOBODY}, {NOBODY})
os.setgroups([]), os.setgid({NOBODY}), os.setuid({NOBODY})
assert os.getresuid() == ({NOBODY},) * 3
sys.exit(supervisor.Supervisor(config).run(lambda pid: supervisor._say("started", pid=pid)))
"""


class NobodysQemu(Qemu):
    """A QEMU whose supervisor has dropped its privileges."""

    supervisor = (sys.executable, "-c", AS_NOBODY)


def machine(
    kind: type[Qemu],
    folder: Path,
    role: str,
    *more: str,
    vfs: int = 1,
    spare: int = 0,
    route: Literal["iommufd", "legacy"] = "iommufd",
) -> Qemu:
    names = tuple(f"0000:00:{SLOT + n:02x}.0/vfio" for n in range(vfs + spare))
    words = [
        "-machine",
        "pc",
        "-accel",
        "tcg",
        "-m",
        "16M",
        "-nodefaults",
        "-display",
        "none",
        *iommufd_words(),
    ]
    attach = device_words if route == "iommufd" else legacy_words
    for number in range(vfs):
        words += attach(number, {"addr": f"{SLOT + number:#x}"})
    folder = folder / role
    folder.mkdir()
    config = AttachConfig(
        command=("filled in by Qemu",),
        names=names,
        spare=spare,
        route=route,
        role="target" if role == "target" else "source",
        filled=role != "target",
        state_bytes=1 << 20,
        profile="unlimited",
        journal=str(folder / "journal.jsonl"),
    )
    return kind(find_qemu(), [*words, *more], config)


def wait_for(done: Callable[[], Any]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def vfs_seen(qemu: Qemu) -> list[str]:
    (bus,) = qemu.execute("query-pci")
    return [
        d["qdev_id"] for d in bus["devices"] if (d["id"]["vendor"], d["id"]["device"]) == (0x15B3, 0x101E)
    ]


def test_plug_unplug_and_plug_again(tmp_path: Path) -> None:
    with machine(Qemu, tmp_path, "source", "-S", spare=1) as qemu:
        assert vfs_seen(qemu) == ["vf0"]
        status = ask(qemu.control, ask="status")
        fd = str(status["devices"][1]["fd"])
        for _ in range(3):  # a descriptor serves again after an unplug
            qemu.execute("device_add", driver="vfio-pci", id="vf1", fd=fd, iommufd="vfmig-iommufd", rombar=0)
            assert vfs_seen(qemu) == ["vf0", "vf1"]
            assert ask(qemu.control, ask="status")["devices"][1]["plugged"]
            qemu.execute("device_del", id="vf1")
            qemu.execute("system_reset")  # without a guest nobody lets go of it before
            wait_for(lambda: not ask(qemu.control, ask="status")["devices"][1]["plugged"])
        assert "migration-blockers" not in qemu.execute("query-migrate")
        assert ask(qemu.control, ask="status")["unanswered"] == 0
        assert qemu.quit() == 0


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that others may enter, which pytest's own are not."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.parametrize("route", ["iommufd", "legacy"])
@pytest.mark.parametrize("kind", [Qemu, NobodysQemu])
def test_a_migration_by_root_or_nobody(
    open_folder: Path, kind: type[Qemu], route: Literal["iommufd", "legacy"]
) -> None:
    if os.getuid() != 0:
        kind = Qemu  # whoever runs this is unprivileged already
    with (
        machine(kind, open_folder, "source", route=route) as source,
        machine(kind, open_folder, "target", "-incoming", "defer", route=route) as target,
    ):
        for end in (source, target):
            names = ("multifd", "return-path")
            end.execute(
                "migrate-set-capabilities", capabilities=[{"capability": n, "state": True} for n in names]
            )
        target.execute("migrate-incoming", uri="tcp:127.0.0.1:0")
        port = target.execute("query-migrate")["socket-address"][0]["port"]
        source.execute("migrate", uri=f"tcp:127.0.0.1:{port}")
        wait_for(lambda: source.execute("query-migrate")["status"] == "completed")
        wait_for(lambda: target.execute("query-status")["running"])
        assert ask(target.control, ask="verify") == {"equal": True}
        uids = [Path(f"/proc/{end.pid}").stat().st_uid for end in (source, target)]
        assert uids == [NOBODY if kind is NobodysQemu else os.getuid()] * 2
        assert (source.quit(), target.quit()) == (0, 0)
    arcs = [line for line in read(open_folder / "target" / "journal.jsonl") if isinstance(line, State)]
    assert [line.new for line in arcs if line.old == "RESUMING"] == ["STOP"]


def test_qemu_dies_with_its_supervisor(tmp_path: Path) -> None:
    with machine(Qemu, tmp_path, "source") as qemu:
        pidfd = os.pidfd_open(qemu.pid)
        try:
            qemu.kill()
            assert select.select([pidfd], [], [], DEADLINE_S)[0]
        finally:
            os.close(pidfd)


def test_nothing_is_left_of_a_run_that_was_killed(open_folder: Path) -> None:
    """Whoever started a QEMU is killed: QEMU ends, its supervisor removes the folder that nobody else can.

    Not in pytest's own folder, whose path is longer than that of a Unix socket may be.
    """
    begin = (
        "from pathlib import Path; from mockdev.lab.qemu import Qemu; from tests.test_attach_qemu import *; "
        f"q = machine(Qemu, Path({str(open_folder)!r}), 'source').__enter__(); "
        "print(q.pid, flush=True); input()"
    )
    scratch = open_folder / "scratch"
    scratch.mkdir()
    environment = {**os.environ, "TMPDIR": str(scratch)}
    process = subprocess.Popen(
        [sys.executable, "-c", begin],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parent.parent,
        env=environment,
    )
    with process:
        assert process.stdout is not None
        pidfd = os.pidfd_open(int(process.stdout.readline()))
        try:
            process.kill()
            assert select.select([pidfd], [], [], DEADLINE_S)[0]
        finally:
            os.close(pidfd)
    wait_for(lambda: not list(scratch.iterdir()))


def test_a_qemu_that_refuses_its_command_line_says_so(tmp_path: Path) -> None:
    with pytest.raises(QemuError, match=r"exited with 1.*(?s:.*)no-such-option"):
        machine(Qemu, tmp_path, "source", "-no-such-option").__enter__()


def test_devices_go_where_the_user_placed_them() -> None:
    own = [
        "qemu",
        "-device",
        "vfio-pci,fd={vf1},iommufd=mine,addr=5",
        "-object",
        "iommufd,id=mine,fd={iommufd}",
    ]
    assert with_devices(own, 2) == own + device_words(0)
    assert with_devices(["qemu"], 1, "legacy") == ["qemu", *legacy_words(0)]
    assert with_devices(["qemu"], 1) == ["qemu", *iommufd_words(), *device_words(0)]
