# SPDX-License-Identifier: GPL-2.0-or-later
"""Our endpoints with a real QEMU at the other end: its machine is taken, kept, and played to another QEMU."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest

from mockdev.attach.commandline import device_words, iommufd_words
from mockdev.attach.config import AttachConfig
from mockdev.attach.control import ask
from mockdev.device.image import Pattern
from mockdev.journal import State, Verified, read
from mockdev.lab.qemu import Qemu, find_qemu
from mockdev.runtime.config import EndpointConfig, MigrationConfig
from mockdev.runtime.session import Result
from mockdev.runtime.source import Source
from mockdev.runtime.target import Target
from mockdev.runtime.template import load
from verifier.check import check_paths

DEADLINE_S = 20.0
RAM_MIB = 16
LOADED_AT = 1 << 20
LOADED_BYTES = 3 << 20
STATE_BYTES = 3 << 20
OVER = ("completed", "failed", "cancelled")


class Vm:
    """The machine of a test: QEMU's arguments, the same at both ends."""

    def __init__(self, folder: Path, machine: str, channels: int, *more: str, running: bool = False) -> None:
        self.folder = folder
        self.lent: dict[str, Any] = {}
        self.ours: dict[str, Any] = {}
        data = folder / "data"
        data.write_bytes(Pattern(1, "guest").read(0, LOADED_BYTES))
        self.channels = channels
        self.arguments = ["-accel", "tcg", "-machine", machine, "-m", f"{RAM_MIB}M", "-nodefaults"]
        self.arguments += ["-display", "none", "-vga", "none", *more, *([] if running else ["-S"])]
        # An incoming machine does not load this: its RAM comes with the migration, or not at all.
        self.arguments += ["-device", f"loader,file={data},addr={LOADED_AT},force-raw=on"]
        self.capabilities = ["return-path", *(["multifd"] if channels else [])]

    def lend(self, vfs: int, transfer: str, precopy_bytes: int) -> None:
        """Have devices of ours in it."""
        self.names = tuple(f"0000:00:{slot:02x}.0/vfio" for slot in range(4, 4 + vfs))
        self.lent = {"state_bytes": STATE_BYTES, "profile": "unlimited", "precopy_bytes": precopy_bytes}
        self.ours = {**self.lent, "vfs": vfs, "device_names": self.names, "transfer": transfer}
        self.arguments += iommufd_words()
        multifd = "on" if transfer == "multifd" else "off"
        for number in range(vfs):
            place = {"addr": str(4 + number), "x-migration-multifd-transfer": multifd}
            self.arguments += device_words(number, place)
        if precopy_bytes:
            self.capabilities.append("switchover-ack")
            self.ours["switchover_ack"] = True

    @contextmanager
    def start(self, *more: str) -> Iterator[Qemu]:
        """A QEMU of this machine, told how to migrate."""
        lend = None
        if self.lent:
            role: Literal["source", "target"] = "target" if more else "source"
            lend = AttachConfig(
                command=(),
                names=self.names,
                role=role,
                filled=role == "source",
                journal=str(self.folder / f"lent-{role}.jsonl"),
                **self.lent,
            )
        with Qemu(find_qemu(), [*self.arguments, *more], lend) as qemu:
            on = [{"capability": name, "state": True} for name in self.capabilities]
            qemu.execute("migrate-set-capabilities", capabilities=on)
            qemu.execute("migrate-set-parameters", max_bandwidth=0, downtime_limit=20000)
            if self.channels:
                qemu.execute("migrate-set-parameters", multifd_channels=self.channels)
            yield qemu

    def config(self, role: str, **changes: object) -> MigrationConfig:
        """What our end is told."""
        base = {
            "peer": "qemu",
            "vfs": 0,
            "channels": self.channels,
            "transfer": "multifd" if self.channels else "main",
            "capture_at": role,
            "idle_timeout_s": DEADLINE_S,
        }
        return MigrationConfig(**{**base, **self.ours, **changes})


def until_over(qemu: Qemu) -> dict[str, Any]:
    """What QEMU says of its migration once that has ended."""
    deadline = time.monotonic() + DEADLINE_S
    while (state := qemu.execute("query-migrate")).get("status") not in OVER:
        assert time.monotonic() < deadline, state
        time.sleep(0.005)
    assert isinstance(state, dict)
    return state


def guest_ram(qemu: Qemu, path: Path) -> bytes:
    """The guest's memory."""
    qemu.execute("pmemsave", val=0, size=RAM_MIB << 20, filename=str(path))
    return path.read_bytes()


class TargetThread:
    """A target of ours that a QEMU migrates to. It keeps `template`."""

    def __init__(self, folder: Path, config: MigrationConfig) -> None:
        self.template = folder / "machine.template"
        self.target = Target(
            EndpointConfig(role="target", migration=config, folder=str(folder), template=str(self.template))
        )
        self._results: list[Result] = []
        self._thread = threading.Thread(target=lambda: self._results.append(self.target.run()))
        self._thread.start()

    def result(self) -> Result:
        """How it ended."""
        self._thread.join()
        return self._results[0]

    def __enter__(self) -> TargetThread:
        return self

    def __exit__(self, *_: object) -> None:
        self.target.session.cancel("the test is over")
        self._thread.join()


def record(vm: Vm, folder: Path) -> tuple[Path, bytes]:
    """Migrate a QEMU into a target of ours; the template, and the guest's memory as it was."""
    with ExitStack() as stack:
        ours = stack.enter_context(TargetThread(folder, vm.config("target")))
        qemu = stack.enter_context(vm.start())
        before = guest_ram(qemu, folder / "before")
        qemu.execute("migrate", uri=f"tcp:{ours.target.address}")
        state = until_over(qemu)
        assert state["status"] == "completed", state
        assert qemu.execute("query-status")["status"] == "postmigrate"
        result = ours.result()
    assert (result.outcome, result.error, result.complaint) == ("completed", "", "")
    return ours.template, before


def play(vm: Vm, folder: Path, template: Path, qemu: Qemu, **changes: object) -> Result:
    """Play a template to a QEMU that was started with -incoming defer."""
    qemu.execute("migrate-incoming", uri="tcp:127.0.0.1:0", exit_on_error=False)
    (where,) = qemu.execute("query-migrate")["socket-address"]
    config = EndpointConfig(
        role="source",
        migration=vm.config("source", **changes),
        folder=str(folder),
        template=str(template),
        address=f"{where['host']}:{where['port']}",
    )
    return Source(config).run()


def check_holds(captures: Sequence[Path]) -> None:
    """The judge finds nothing in them."""
    report = check_paths(captures)
    assert (report.standing, report.violations) == ("holds", []), report


@pytest.mark.parametrize("machine", ["pc", "q35", "pc-i440fx-8.0"])
@pytest.mark.parametrize("channels", [0, 3])
def test_a_stopped_machine_there_and_on(tmp_path: Path, machine: str, channels: int) -> None:
    vm = Vm(tmp_path, machine, channels)
    template, before = record(vm, tmp_path)
    assert before[LOADED_AT : LOADED_AT + LOADED_BYTES] == Pattern(1, "guest").read(0, LOADED_BYTES)
    kept = load(template, 1 << 30)
    assert kept.machine.type.startswith("pc-")
    assert kept.ram.blocks["pc.ram"].memory[LOADED_AT : LOADED_AT + LOADED_BYTES] == Pattern(1, "guest").read(
        0, LOADED_BYTES
    )

    (tmp_path / "played").mkdir()
    with vm.start("-incoming", "defer") as qemu:
        result = play(vm, tmp_path / "played", template, qemu)
        assert (result.outcome, result.error, result.runs) == ("completed", "", False)
        assert until_over(qemu)["status"] == "completed"
        assert qemu.execute("query-status")["status"] == "prelaunch"
        assert guest_ram(qemu, tmp_path / "after") == before
    check_holds([tmp_path / "capture.pcapng", tmp_path / "played" / "capture.pcapng"])


def test_what_came_on_one_channel_goes_over_many(tmp_path: Path) -> None:
    uuid = "12345678-1234-5678-9abc-123456789abc"
    template, before = record(Vm(tmp_path, "q35", 0, "-uuid", uuid), tmp_path)
    vm = Vm(tmp_path, "q35", 5, "-uuid", uuid)
    (tmp_path / "played").mkdir()
    with vm.start("-incoming", "defer") as qemu:
        result = play(vm, tmp_path / "played", template, qemu, uuid=uuid)
        assert (result.outcome, result.error) == ("completed", "")
        assert until_over(qemu)["status"] == "completed"
        assert guest_ram(qemu, tmp_path / "after") == before
    for folder, role in ((tmp_path, "target"), (tmp_path / "played", "source")):
        report = check_paths([folder / "capture.pcapng", folder / f"{role}.jsonl"])
        assert (report.transfer, report.violations) == ("main" if role == "target" else "multifd", [])


@pytest.mark.parametrize("machine", ["pc", "q35"])
def test_a_running_guest_runs_on(tmp_path: Path, machine: str) -> None:
    vm = Vm(tmp_path, machine, 2, running=True)
    template, _ = record(vm, tmp_path)
    (tmp_path / "played").mkdir()
    for _ in range(2):  # a template can be played again and again
        with vm.start("-incoming", "defer") as qemu:
            assert play(vm, tmp_path / "played", template, qemu).outcome == "completed"
            assert until_over(qemu)["status"] == "completed"
            assert qemu.execute("query-status")["status"] == "running"
    check_holds([tmp_path / "capture.pcapng", tmp_path / "played" / "capture.pcapng"])


@pytest.mark.parametrize(
    ("machine", "channels", "transfer", "precopy_bytes"),
    [
        ("pc", 3, "multifd", 0),
        ("q35", 3, "multifd", 1 << 20),
        ("q35", 3, "main", 0),
        ("pc", 0, "main", 1 << 20),
    ],
)
def test_devices_there_and_on(
    tmp_path: Path, machine: str, channels: int, transfer: str, precopy_bytes: int
) -> None:
    vm = Vm(tmp_path, machine, channels, running=True)
    vm.lend(2, transfer, precopy_bytes)
    template, _ = record(vm, tmp_path)
    check_devices(vm, tmp_path / "target.jsonl")

    (tmp_path / "played").mkdir()
    with vm.start("-incoming", "defer") as qemu:
        result = play(vm, tmp_path / "played", template, qemu)
        assert (result.outcome, result.error, result.runs) == ("completed", "", False)
        assert until_over(qemu)["status"] == "completed"
        assert qemu.execute("query-status")["status"] == "running"
        assert ask(qemu.control, ask="verify") == {"equal": True}
    check_holds([tmp_path / "capture.pcapng", tmp_path / "played" / "capture.pcapng"])


def check_devices(vm: Vm, journal: Path) -> None:
    """Our target's devices have all of their state, and run."""
    seen = list(read(journal))
    assert {line.device: line.equal for line in seen if isinstance(line, Verified)} == dict.fromkeys(
        vm.names, True
    )
    for name in vm.names:
        assert [line.new for line in seen if isinstance(line, State) and line.device == name][-1] == "RUNNING"


def test_a_qemu_hears_that_our_device_refused(tmp_path: Path) -> None:
    vm = Vm(tmp_path, "pc", 2, running=True)
    vm.lend(1, "multifd", 0)
    config = vm.config("target", state_bytes=STATE_BYTES // 2)
    with TargetThread(tmp_path, config) as ours, vm.start() as qemu:
        qemu.execute("migrate", uri=f"tcp:{ours.target.address}")
        result = ours.result()
        assert (result.outcome, result.runs) == ("failed", False)
        assert "ENOMEM" in result.error
        assert until_over(qemu)["status"] == "failed"
        assert qemu.execute("query-status")["status"] == "running"
    assert not ours.template.exists()


def test_a_qemu_that_refuses_the_machine(tmp_path: Path) -> None:
    template, _ = record(Vm(tmp_path, "pc", 2), tmp_path)
    other = Vm(tmp_path, "pc", 2)
    other.arguments[other.arguments.index(f"{RAM_MIB}M")] = f"{2 * RAM_MIB}M"
    (tmp_path / "played").mkdir()
    with other.start("-incoming", "defer") as qemu:
        result = play(other, tmp_path / "played", template, qemu)
        assert (result.outcome, result.runs) == ("failed", True)
        assert "return-path" in result.error
        assert until_over(qemu)["status"] == "failed"


def test_a_qemu_that_calls_it_off(tmp_path: Path) -> None:
    vm = Vm(tmp_path, "pc", 2, running=True)
    with TargetThread(tmp_path, vm.config("target")) as ours, vm.start() as qemu:
        qemu.execute("migrate-set-parameters", max_bandwidth=4096)
        qemu.execute("migrate", uri=f"tcp:{ours.target.address}")
        deadline = time.monotonic() + DEADLINE_S
        while ours.target.session.phase != "load":
            assert time.monotonic() < deadline
            time.sleep(0.005)
        qemu.execute("migrate_cancel")
        assert until_over(qemu)["status"] == "cancelled"
        result = ours.result()
        assert (result.outcome, result.runs) == ("failed", False)
        assert qemu.execute("query-status")["status"] == "running"
