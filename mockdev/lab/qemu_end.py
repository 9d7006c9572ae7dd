# SPDX-License-Identifier: GPL-2.0-or-later
"""A real QEMU with mock devices as one end of a run: started, driven by QMP, asked what became of its VM.

Source: QEMU qapi/migration.json, qapi/run-state.json; docs/devel/migration/vfio.rst
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from mockdev.attach.commandline import device_words, iommufd_words
from mockdev.attach.config import AttachConfig
from mockdev.attach.control import ask
from mockdev.errors import VfmigError
from mockdev.faultspec import FaultSpec, parse_all
from mockdev.lab.endpoint import EXIT_BEGIN
from mockdev.lab.ends import Reports
from mockdev.lab.outcome import EndpointStatus
from mockdev.lab.qemu import INSTALL, Qemu, QemuError, find_qemu, qemu_version
from mockdev.lab.qtest import Qtest
from mockdev.runtime.config import FIRST_SLOT, MigrationConfig

TRACES = ("vfio_*", "multifd_*", "migrate_*", "migration_*", "savevm_*", "loadvm_*", "source_*")
_LOOK_S = 0.01  # between two looks at a migration
_RUNS_AGAIN_S = 5.0  # for a source that has failed to let its VM run again
_DYING_S = 2.0  # for a QEMU that does not answer any more to end
_DOWNTIME_MS_MAX = 20_000  # what QEMU may take: it must not wait for a better moment to switch over
# What it may assume of the link: an idle guest's trickle of RAM would have it believe that the devices' state
# cannot be sent in time, and it would never switch over.
_SWITCHOVER_BANDWIDTH = 1 << 40
_LEAST_RELEASE = (10, 0, 0)
_MACHINES = {"pc": "pc-i440fx", "q35": "pc-q35"}  # an alias means another machine with every release
_OVER = ("completed", "failed", "cancelled")


class Vm(msgspec.Struct, frozen=True, kw_only=True):
    """A QEMU.

    arguments: more of its command line. trace: write its trace log and QMP's events into the evidence folder.

    keep_state: leave RAM (ROLE.core) and PCI state in the folder when the migration has completed; a target
    stays stopped until then. The guest is then not told of KVM, unless `arguments` have another -cpu.
    """

    binary: str
    accel: Literal["tcg", "kvm"] = "tcg"
    machine: str = "pc"
    arguments: tuple[str, ...] = ()
    trace: bool = True
    keep_state: bool = False


def check_release(binary: str) -> str:
    """The release of a QEMU that devices can be lent to. QemuError: not there, no QEMU, or too old."""
    found = find_qemu(binary)
    release = qemu_version(found)
    named = ".".join(map(str, release))
    if release < _LEAST_RELEASE:
        raise QemuError(f"{found} is QEMU {named}; device state over multifd came with 10.0: {INSTALL}")
    return named


def versioned(machine: str, binaries: Sequence[str]) -> str:
    """A machine type that all these QEMUs have: of `pc` and `q35` that of the oldest release.

    QemuError as check_release.
    """
    if machine not in _MACHINES:
        return machine
    oldest = min(qemu_version(find_qemu(binary)) for binary in binaries)
    return f"{_MACHINES[machine]}-{oldest[0]}.{oldest[1]}"


def check_vm(vm: Vm) -> str:
    """The release of a QEMU that can be an end. QemuError: as check_release, or no such accelerator."""
    named = check_release(vm.binary)
    if vm.accel == "kvm" and not Path("/dev/kvm").exists():
        raise QemuError("--accel kvm, but there is no /dev/kvm here; use --accel tcg")
    if vm.accel == "kvm" and not os.access("/dev/kvm", os.R_OK | os.W_OK):
        raise QemuError(
            "--accel kvm, but /dev/kvm is not open to this user; use --accel tcg, or join the group kvm"
        )
    return named


class Told(NamedTuple):
    """A word from the run: "address" (where to migrate to), "cancel", "release" (all has been seen: end)."""

    what: str
    value: str = ""


class QemuEnd:
    """See the head of this file. Reports go to `reports` as (role, message); status: None until it has ended.

    Messages: ready (address), progress (phase, moved_bytes), switchover, settled (what became of it is known;
    it goes on until `release`), end. address: where a target listens. inside: see Qemu.
    """

    def __init__(
        self,
        role: Literal["source", "target"],
        vm: Vm,
        config: MigrationConfig,
        folder: Path,
        clock_offset_ns: int,
        reports: Reports,
        *,
        address: str = "",
        inside: Sequence[str] = (),
    ) -> None:
        self.status: EndpointStatus | None = None
        self._role = role
        self._vm = vm
        self._config = config
        self._folder = folder
        self._clock_offset_ns = clock_offset_ns
        self._reports = reports
        self._address = address or "127.0.0.1:0"
        self._inside = inside
        self._told: queue.SimpleQueue[Told] = queue.SimpleQueue()
        self._qemu: Qemu | None = None
        self._killed = False
        self._called_off = False
        self._switched = False
        self._info: dict[str, Any] = {}
        self._core = folder / f"{role}.core"
        self._complaint = ""  # why its journal is not whole
        self._thread = threading.Thread(target=self._run, name=role, daemon=True)
        self._thread.start()

    # -- from the run --------------------------------------------------------------------------------

    def tell(self, address: str) -> None:
        """Where the source is to migrate to."""
        self._told.put(Told("address", address))

    def cancel(self) -> None:
        """Call the migration off."""
        self._told.put(Told("cancel"))

    def release(self) -> None:
        """What became of both ends is known: this one may end."""
        self._told.put(Told("release"))

    def kill(self) -> None:
        """End it at once."""
        self._killed = True
        self._told.put(Told("release"))
        if self._qemu is not None:
            self._qemu.kill()

    def die(self) -> None:
        """QEMU is killed, as a fault: its end is to be seen, not called off."""
        if self._qemu is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._qemu.pid, signal.SIGKILL)

    def lose_supervisor(self) -> None:
        """What stands behind its devices is killed, as a fault."""
        if self._qemu is not None:
            self._qemu.kill()

    def close(self) -> None:
        """End it if need be, and wait for its end."""
        if self.status is None:
            self.kill()
        self._thread.join()

    # -- its thread ----------------------------------------------------------------------------------

    def _run(self) -> None:
        status = EndpointStatus(outcome="crashed", error="it never began", kind="qemu")
        try:
            version = check_vm(self._vm)
            arguments = _arguments(self._role, self._vm, self._config, self._folder)
            with Qemu(
                find_qemu(self._vm.binary),
                arguments,
                self._lend(),
                self._inside,
                with_qtest=self._vm.keep_state,
                events=self._folder / f"{self._role}.qmp.jsonl" if self._vm.trace else None,
            ) as qemu:
                self._qemu = qemu
                status = self._migrate(qemu, version)
        except QemuError as error:
            begun = self._qemu is not None
            status = EndpointStatus(
                outcome="killed" if self._killed and begun else "failed",
                error=str(error),
                kind="qemu",
                exit_status=None if begun else EXIT_BEGIN,
            )
            if not begun:
                self._say("result", begun=False)
        except Exception as error:  # a defect of ours must not leave the run waiting
            status = EndpointStatus(outcome="failed", error=f"{type(error).__name__}: {error}", kind="qemu")
        self.status = status
        self._say("end")

    def _migrate(self, qemu: Qemu, version: str) -> EndpointStatus:
        self._prepare(qemu)
        if self._role == "target":
            qemu.execute("migrate-incoming", uri=f"tcp:{self._address}")
            address = qemu.execute("query-migrate")["socket-address"][0]
            self._say("ready", address=f"{address['host']}:{address['port']}")
        else:
            self._say("ready", address="")
            told = self._told.get()
            if told.what != "address":
                return EndpointStatus(outcome="cancelled", runs=True, kind="qemu", version=version)
            qemu.execute("migrate", uri=f"tcp:{told.value}")
        error = self._watch(qemu)
        status = self._settle(qemu, error, version)
        self._say("settled", outcome=status.outcome)
        while self._told.get().what != "release":
            pass
        if qemu.ended is None:
            exit_status = qemu.quit()
            if exit_status and status.outcome == "completed":
                status = msgspec.structs.replace(status, outcome="crashed", error=_died(qemu, exit_status))
        return status

    def _prepare(self, qemu: Qemu) -> None:
        config = self._config
        wanted = {"return-path": True, "events": True, "multifd": config.channels > 0}
        wanted["switchover-ack"] = config.precopy_bytes > 0
        capabilities = [{"capability": name, "state": state} for name, state in wanted.items()]
        qemu.execute("migrate-set-capabilities", capabilities=capabilities)
        qemu.execute(
            "migrate-set-parameters",
            downtime_limit=_DOWNTIME_MS_MAX,
            max_bandwidth=0,
            avail_switchover_bandwidth=_SWITCHOVER_BANDWIDTH,
        )
        if config.channels:
            qemu.execute("migrate-set-parameters", multifd_channels=config.channels)

    def _watch(self, qemu: Qemu) -> str:
        """Until the migration is over, or QEMU; "" or what is wrong."""
        seen: tuple[Any, ...] = ()
        since = time.monotonic()
        while qemu.ended is None and not self._killed:
            try:
                self._info = qemu.execute("query-migrate")
            except QemuError:
                if qemu.wait(_DYING_S) is not None:
                    break
                self._killed = True  # it does not answer any more
                raise
            state = self._info.get("status", "none")
            moved = _moved(self._info)
            if state in _OVER:
                return ""
            if state == "device" and not self._switched:
                self._switched = True
                self._say("switchover")
            now = (state, moved, self._calls(qemu))
            if now != seen:
                seen, since = now, time.monotonic()
                self._say("progress", phase=state, moved_bytes=moved)
            elif time.monotonic() - since > self._config.idle_timeout_s:
                self._killed = True
                return (
                    f"nothing has moved for {self._config.idle_timeout_s:g} s while the migration is {state}"
                )
            with contextlib.suppress(queue.Empty):
                told = self._told.get(timeout=_LOOK_S)
                if told.what == "release":  # the other end is over, and this one will hear of nothing more
                    self._told.put(told)
                    return f"the migration was still {state} when the other end was over"
                if told.what == "cancel" and self._role == "source":
                    qemu.execute("migrate_cancel")
                elif told.what == "cancel":
                    self._called_off = True
                    return "called off"
        return ""

    def _settle(self, qemu: Qemu, error: str, version: str) -> EndpointStatus:
        """What became of the VM on this side."""
        self._calls(qemu)
        common: dict[str, Any] = {"kind": "qemu", "version": version, "moved_bytes": _moved(self._info)}
        common["complaint"] = self._complaint or qemu.events_lost
        state = self._info.get("status", "none")
        run_state: dict[str, Any] = {}
        try:
            if qemu.ended is None and state == "completed" and self._vm.keep_state:
                common["complaint"] = self._keep_state(qemu) or common["complaint"]
            if qemu.ended is None:
                run_state = self._run_state(qemu, state)
        except QemuError:
            if qemu.wait(_DYING_S) is None:
                raise
        if qemu.ended is not None:
            outcome = "killed" if self._killed else "crashed" if qemu.ended < 0 else "failed"
            said = _died(qemu, qemu.ended)
            return EndpointStatus(outcome=outcome, error=said, exit_status=qemu.ended, **common)
        outcome = state if state in _OVER else "killed" if self._killed else "failed"
        if self._called_off and outcome == "failed":
            outcome = "cancelled"
        return EndpointStatus(
            outcome=outcome,
            error=error or (self._info.get("error-desc", "") if outcome != "completed" else ""),
            # A source that has failed before its end was sent, or was called off, goes on running.
            runs=bool(run_state["running"]),
            run_state=run_state["status"],
            downtime_ms=self._info.get("downtime"),
            total_ms=self._info.get("total-time"),
            cpu_s=qemu.cpu_s(),
            **common,
        )

    def _run_state(self, qemu: Qemu, state: str) -> dict[str, Any]:
        """QEMU's answer to query-status, once it is what it stays; a target that was kept stopped is let run.

        A source says failed or cancelled a moment before it lets its VM run again: until then it is in
        finish-migrate, and there for good if it never does.
        """
        target = self._role == "target"
        if target and state == "completed" and self._vm.keep_state:
            qemu.execute("cont")
        deadline = time.monotonic() + (self._config.idle_timeout_s if target else _RUNS_AGAIN_S)
        while True:
            answer: dict[str, Any] = qemu.execute("query-status")
            if target:
                waits = state == "completed" and not answer["running"]
            else:
                waits = state in _OVER and answer["status"] == "finish-migrate"
            if not waits or time.monotonic() > deadline:
                return answer
            time.sleep(_LOOK_S)

    def _keep_state(self, qemu: Qemu) -> str:
        """Keep what the guest has; "" or why that could not be: the migration is as good as it was."""
        try:
            self._write_state(qemu)
        except (VfmigError, OSError) as lack:  # a full disk, say
            self._core.unlink(missing_ok=True)
            return f"what the guest has could not be kept: {lack}"
        return ""

    def _write_state(self, qemu: Qemu) -> None:
        """Write what the guest has into the evidence folder: its RAM, and the PCI state of its devices."""
        qemu.execute("dump-guest-memory", paging=False, protocol=f"file:{self._core.absolute()}")
        with Qtest(qemu.qtest) as qtest:
            states = {
                name: qtest.pci_state(FIRST_SLOT + number) for number, name in enumerate(self._config.devices)
            }
        told = {
            name: {"config": state.config.hex(), "msix": state.msix and state.msix.hex()}
            for name, state in states.items()
        }
        (self._folder / f"{self._role}.pci.json").write_text(json.dumps(told, indent=1) + "\n")

    def _calls(self, qemu: Qemu) -> int:
        with contextlib.suppress(VfmigError):
            status = ask(qemu.control, ask="status")
            self._complaint = status["complaint"]
            return int(status["calls"])
        return 0

    def _lend(self) -> AttachConfig:
        config = self._config
        return AttachConfig(
            command=("filled in later",),
            names=config.devices,
            role=self._role,
            state_bytes=config.state_bytes,
            profile=config.profile,
            precopy_bytes=config.precopy_bytes,
            chunk_bytes=config.chunk_bytes,
            seed=config.seed,
            filled=self._role == "source",
            faults=tuple(map(str, device_specs(config, self._role))),
            journal=str(self._folder / f"{self._role}.jsonl"),
            clock_offset_ns=self._clock_offset_ns,
        )

    def _say(self, event: str, **fields: object) -> None:
        self._reports.put((self._role, {"event": event, **fields}))


def device_specs(config: MigrationConfig, role: str) -> list[FaultSpec]:
    """The faults of this end's devices."""
    specs = parse_all(config.faults, config.vfs, config.channels)
    return [spec for spec in specs if spec.role == role and spec.place.startswith("vfN")]


def _arguments(role: str, vm: Vm, config: MigrationConfig, folder: Path) -> list[str]:
    """The command line: a machine with nothing in it but the mock devices, the same on both sides."""
    words = ["-machine", vm.machine, "-accel", vm.accel, "-m", f"{max(1, config.ram_bytes >> 20)}M"]
    words += ["-nodefaults", "-display", "none", "-uuid", config.uuid]
    if vm.accel == "kvm" and vm.keep_state:
        # Told that it is on KVM, a guest (SeaBIOS, too) asks for a clock that the host writes into its RAM: a
        # target's KVM does so before the VM runs, and then the RAM is rightly not the source's.
        words += ["-cpu", "qemu64,kvm=off"]
    words += iommufd_words()
    for number in range(config.vfs):
        properties = {"addr": f"{FIRST_SLOT + number:#x}"}
        properties["x-migration-multifd-transfer"] = "on" if config.transfer == "multifd" else "off"
        if config.queue_cap_bytes is not None and role == "target":
            properties["x-migration-max-queued-buffers-size"] = str(config.queue_cap_bytes)
        words += device_words(number, properties)
    if vm.trace:
        words += ["-msg", "timestamp=on", "-D", str((folder / f"{role}.log").absolute())]
        for pattern in TRACES:
            words += ["-trace", pattern]
    if role == "target":
        words += ["-incoming", "defer"]
        words += ["-S"] if vm.keep_state else []
    return [*words, *vm.arguments]


def _moved(info: dict[str, Any]) -> int:
    """Bytes that QEMU says it moved: device state is counted as RAM's, too. A target says nothing."""
    return int(info.get("ram", {}).get("transferred", 0))


def _died(qemu: Qemu, status: int) -> str:
    how = f"signal {-status}" if status < 0 else f"exit status {status}"
    lines = qemu.printed.splitlines()
    return f"QEMU ended ({how})" + (f": {lines[-1][:500]}" if lines else "")
