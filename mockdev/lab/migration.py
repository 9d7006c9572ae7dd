# SPDX-License-Identifier: GPL-2.0-or-later
"""One run: source and target started, watched and ended; whatever happens, no process stays behind."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import msgspec

import mockdev
from mockdev.clock import Clock, wall_offset_ns
from mockdev.errors import VfmigError
from mockdev.faultspec import parse_all
from mockdev.lab.endpoint import EXIT_BEGIN
from mockdev.lab.outcome import EndpointStatus, Outcome, summarise
from mockdev.lab.qemu import QemuError
from mockdev.lab.qemu_end import QemuEnd, Vm
from mockdev.runtime.config import EndpointConfig, MigrationConfig
from mockdev.runtime.session import Result, describe_error
from mockdev.runtime.source import Source
from mockdev.runtime.target import Target
from mockdev.runtime.transports import MemoryNet

Progress = dict[str, Any]
ROLES = ("target", "source")
_CANCEL_S = 10.0  # what endpoints get to end after a cancel or the other's end, over their own deadline
_RECORDED_BYTES = 1 << 20  # of each device's state when a machine is recorded: a template keeps none of it
_LOOK_S = 0.005  # between two looks at the time while a fault waits for its own
_PROCESS_FAULTS = ("process", "supervisor")
_AFTER_SWITCHOVER = ("switchover", "wait for the target")  # phases of a source of ours
_GRACE_S = 3.0  # what a QEMU gets to notice that the other end has failed
_BEGIN_S = 300.0  # what they get to make their memory


class Cancel:
    """Calls a run off from another thread, or from a signal handler."""

    def __init__(self) -> None:
        self.asked: queue.SimpleQueue[None] = queue.SimpleQueue()

    def cancel(self) -> None:
        """Call it off; the run then ends by itself."""
        self.asked.put(None)

    @property
    def wanted(self) -> bool:
        """Whether it was called off since the last look."""
        with contextlib.suppress(queue.Empty):
            self.asked.get_nowait()
            return True
        return False


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """Who stands at either end: a QEMU, or (None) an endpoint of ours."""

    source: Vm | None = None
    target: Vm | None = None

    def vm(self, role: str) -> Vm | None:
        """Who stands at this end."""
        return self.source if role == "source" else self.target

    @property
    def mocks(self) -> bool:
        """Whether both ends are ours."""
        return self.source is None and self.target is None


class _End(Protocol):
    """A running endpoint. status: None until it has ended."""

    status: EndpointStatus | None

    def tell(self, address: str) -> None: ...
    def cancel(self) -> None: ...
    def release(self) -> None: ...
    def die(self) -> None: ...
    def kill(self) -> None: ...
    def close(self) -> None: ...


def run_migration(
    config: MigrationConfig,
    folder: Path,
    on_progress: Callable[[Progress], None] | None = None,
    cancel: Cancel | None = None,
    pair: Pair | None = None,
) -> Outcome:
    """Run one migration and leave its journals and capture in `folder`.

    pair: who stands at the ends, by default endpoints of ours.

    on_progress: called in this thread with {"role", "event", ...} as endpoints report. Ctrl-C and `cancel`
    end both endpoints cleanly; KeyboardInterrupt is raised again afterwards, with the folder readable.
    VfmigError: the configuration cannot be run, or an endpoint could not begin.
    """
    config.check()
    folder.mkdir(parents=True, exist_ok=True)
    pair = pair or Pair()
    with ExitStack() as stack:
        template = ""
        if pair.source is None and pair.target is not None:
            template = str(
                Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vfmig-"))) / "template"
            )
            record_template(config, pair.target, Path(template))
        return _run(config, folder, on_progress or (lambda _: None), cancel or Cancel(), pair, template)


def record_template(config: MigrationConfig, vm: Vm, path: Path) -> None:
    """Keep a QEMU's machine as a template, by having it migrate to a target of ours; see runtime/template.py.

    VfmigError: that migration failed.
    """
    small = msgspec.structs.replace(
        config,
        state_bytes=_RECORDED_BYTES,
        precopy_bytes=min(config.precopy_bytes, _RECORDED_BYTES // 2),
        profile="unlimited",
        queue_cap_bytes=None,
        capture="none",
        faults=(),
    )
    quiet = msgspec.structs.replace(vm, trace=False, dump_ram=False)
    with tempfile.TemporaryDirectory(prefix="vfmig-") as folder:
        outcome = _run(small, Path(folder), lambda _: None, Cancel(), Pair(source=quiet), str(path))
    if outcome.outcome != "completed" or not path.exists():
        ends = [outcome.target, outcome.source]
        ends.sort(key=lambda end: end.exit_status != EXIT_BEGIN)  # who could not begin ended the other, too
        why = ends[0].error or ends[1].error
        raise QemuError(f"the machine of {vm.binary} could not be recorded, so a mock cannot play it: {why}")


def _run(
    config: MigrationConfig,
    folder: Path,
    on_progress: Callable[[Progress], None],
    cancel: Cancel,
    pair: Pair,
    template: str,
) -> Outcome:
    run = _Run(config, folder, on_progress, cancel, pair, template)
    try:
        run.begin()
        run.watch()
    except KeyboardInterrupt:
        run.call_off()
        run.watch()
        raise
    finally:
        run.close()
    return summarise(*run.statuses(), folder)


class _Run:
    """Both endpoints of a run and what they report: (role, message), message None at the end of one."""

    def __init__(
        self,
        config: MigrationConfig,
        folder: Path,
        on_progress: Callable[[Progress], None],
        cancel: Cancel,
        pair: Pair,
        template: str,
    ) -> None:
        self._pair = pair
        self._template = template
        self._config = config
        self._folder = folder
        self._on_progress = on_progress
        self._cancel = cancel
        self._clock = Clock(wall_offset_ns())
        self._reports: queue.SimpleQueue[tuple[str, Progress]] = queue.SimpleQueue()
        self._ends: dict[str, _End] = {}
        self._settled: dict[str, str] = {}  # how an end came out, by its role
        self._ended: set[str] = set()
        self._release_ns: int | None = None
        specs = parse_all(config.faults, config.vfs, config.channels)
        self._timed = [spec for spec in specs if spec.place in _PROCESS_FAULTS]
        self._switched_ns: int | None = None
        self._deadline_ns: int | None = None

    def begin(self) -> None:
        """Start both; connect them once both are ready."""
        if self._config.transport == "memory":
            net = MemoryNet()
            for role in ROLES:
                self._ends[role] = _Inside(self._endpoint(role), net, self._reports)
            return
        for role in ROLES:
            self._ends[role] = self._make(role)
        self._extend(_BEGIN_S)
        ready: dict[str, str] = {}
        while len(ready) < len(ROLES) and self._going():
            role, report = self._next()
            if report.get("event") == "ready":
                ready[role] = report["address"]
        if len(ready) == len(ROLES):
            self._ends["source"].tell(ready["target"])
        self._deadline_ns = None

    def watch(self) -> None:
        """Until both have ended: hand reports on; give one that outlives the other a deadline."""
        while self._going():
            self._next()

    def call_off(self) -> None:
        """Cancel both."""
        for end in self._ends.values():
            end.cancel()
        self._extend(_CANCEL_S)

    def close(self) -> None:
        """Whatever still runs is killed."""
        for end in self._ends.values():
            end.close()

    def statuses(self) -> tuple[EndpointStatus, EndpointStatus]:
        """(source, target)."""
        crashed = EndpointStatus(outcome="crashed", error="it never began")
        ends = [self._ends[role].status or crashed for role in ("source", "target")]
        return ends[0], ends[1]

    def _next(self) -> tuple[str, Progress]:
        if self._cancel.wanted:
            self.call_off()
        try:
            role, report = self._reports.get(timeout=_LOOK_S if self._timed else 0.1)
        except queue.Empty:
            self._enforce()
            return "", {}
        if report.get("event") == "switchover" or report.get("phase") in _AFTER_SWITCHOVER:
            self._switched_ns = self._switched_ns or self._clock.now_ns()
        if report.get("event") == "settled":
            self._settled[role] = report["outcome"]
        elif report.get("event") == "end":
            self._ended.add(role)
            status = self._ends[role].status
            self._settled.setdefault(role, status.outcome if status is not None else "crashed")
            self._extend(self._config.idle_timeout_s + _CANCEL_S)
        elif report.get("event") == "result" and report.get("begun") is False:
            self.call_off()
        self._on_progress({"role": role, **report})
        self._enforce()
        return role, report

    def _going(self) -> bool:
        """Whether an endpoint has not yet reported its end, which is the last thing it does."""
        return len(self._ended) < len(self._ends)

    def _extend(self, seconds: float) -> None:
        """From now on the endpoints have this long, unless they have less."""
        deadline = self._clock.now_ns() + int(seconds * 1e9)
        self._deadline_ns = min(self._deadline_ns or deadline, deadline)

    def _strike(self) -> None:
        """Carry out the faults that strike a whole end, each at its time after switchover."""
        if self._switched_ns is None:
            return
        for spec in list(self._timed):
            if self._clock.now_ns() < self._switched_ns + (spec.when.value if spec.when is not None else 0):
                continue
            self._timed.remove(spec)
            for role, end in self._ends.items():
                if spec.role in ("", role) and role not in self._settled:
                    self._on_progress({"role": role, "event": "fault", "spec": str(spec)})
                    if spec.what == "cancel":
                        end.cancel()
                    elif spec.place == "supervisor" and isinstance(end, QemuEnd):
                        end.lose_supervisor()
                    else:
                        end.die()

    def _enforce(self) -> None:
        self._strike()
        self._release()
        if self._deadline_ns is None or self._clock.now_ns() < self._deadline_ns:
            return
        for end in self._ends.values():
            if end.status is None:
                end.kill()

    def _release(self) -> None:
        """Let QEMUs end once it is known what became of both sides; the last one soon after a failure."""
        if not self._settled or len(self._ended) == len(self._ends):
            return
        if len(self._settled) < len(self._ends):
            if "completed" in self._settled.values():
                return  # the other one will be, or ends itself, or finds that nothing moves
            now_ns = self._clock.now_ns()
            self._release_ns = self._release_ns or now_ns + int(_GRACE_S * 1e9)
            if now_ns < self._release_ns:
                return
        for end in self._ends.values():
            end.release()

    def _make(self, role: str) -> _End:
        vm = self._pair.vm(role)
        if vm is None:
            return _Process(self._endpoint(role), self._reports)
        return QemuEnd(
            "source" if role == "source" else "target",
            vm,
            self._config,
            self._folder,
            self._clock.offset_ns,
            self._reports,
        )

    def _endpoint(self, role: str) -> EndpointConfig:
        config = self._config
        if not self._pair.mocks:
            config = msgspec.structs.replace(
                config,
                peer="qemu",
                switchover_ack=config.precopy_bytes > 0,
                capture_at="source" if role == "source" else "target",
            )
        address = str(self._folder / "socket") if config.transport == "unix" and role == "target" else ""
        return EndpointConfig(
            role="source" if role == "source" else "target",
            migration=config,
            folder=str(self._folder),
            address=address,
            template=self._template,
            clock_offset_ns=self._clock.offset_ns,
        )


class _Process:
    """An endpoint in a process of its own."""

    def __init__(self, config: EndpointConfig, reports: queue.SimpleQueue[tuple[str, Progress]]) -> None:
        self.status: EndpointStatus | None = None
        self._role = config.role
        self._reports = reports
        self._result: Progress | None = None
        self._killed = False
        self._cancelled = False
        self._log = Path(config.folder) / f"{config.role}.log"
        environment = dict(os.environ)
        package = str(Path(mockdev.__file__).parent.parent)  # also where it is not installed
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (package, environment.get("PYTHONPATH"))))
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mockdev.lab.endpoint", config.role],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                process_group=0,  # Ctrl-C comes to us, and we end it in order
            )
        self.pid = self._process.pid
        self._write(msgspec.json.encode(config))
        self._reader = threading.Thread(target=self._read, name=f"{config.role} output", daemon=True)
        self._reader.start()

    def tell(self, address: str) -> None:
        """Where the source is to connect."""
        self._write(json.dumps(address).encode())

    def release(self) -> None:
        """It ends by itself."""

    def cancel(self) -> None:
        """SIGTERM, unless it has ended."""
        self._cancelled = True
        self._signal(signal.SIGTERM)

    def die(self) -> None:
        """SIGKILL, as a fault: it has crashed."""
        self._signal(signal.SIGKILL)

    def kill(self) -> None:
        """SIGKILL, unless it has ended."""
        self._killed = True
        self._signal(signal.SIGKILL)

    def close(self) -> None:
        """Kill it if need be, and wait for its end."""
        if self.status is None:
            self.kill()
        self._reader.join()
        with contextlib.suppress(OSError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        with contextlib.suppress(OSError):
            if self._log.stat().st_size == 0:
                self._log.unlink()

    def _signal(self, number: signal.Signals) -> None:
        if self.status is None:
            self._process.send_signal(number)  # does nothing once the process has been waited for

    def _write(self, line: bytes) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it has died: its end will be read
            self._process.stdin.write(line + b"\n")
            self._process.stdin.flush()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as output:
            for line in output:
                with contextlib.suppress(ValueError):
                    report = json.loads(line)
                    if report.get("event") == "result":
                        self._result = report
                    self._reports.put((self._role, report))
        self.status = self._judge(self._process.wait())
        self._reports.put((self._role, {"event": "end"}))

    def _judge(self, exit_status: int) -> EndpointStatus:
        result = self._result
        if result is None:
            outcome = "killed" if self._killed else "crashed"
            if self._cancelled and exit_status == -signal.SIGTERM:  # before it could listen for that
                outcome = "cancelled"
            return EndpointStatus(
                outcome=outcome, error=self._last_words(exit_status), exit_status=exit_status
            )
        return EndpointStatus(
            outcome=result["outcome"],
            error=result["error"],
            runs=result.get("runs", False),
            moved_bytes=result.get("moved_bytes", 0),
            cpu_s=result.get("cpu_ns", 0) / 1e9,
            complaint=result.get("complaint", ""),
            exit_status=exit_status,
        )

    def _last_words(self, exit_status: int) -> str:
        how = f"exit status {exit_status}"
        if exit_status < 0:
            how = f"signal {signal.Signals(-exit_status).name}"
        with contextlib.suppress(OSError):
            lines = self._log.read_text(errors="replace").strip().splitlines()
            if lines:
                return f"the {self._role} ended without a word ({how}): {lines[-1][:500]}"
        return f"the {self._role} ended without a word ({how})"


class _Inside:
    """An endpoint in a thread of this process."""

    def __init__(
        self, config: EndpointConfig, net: MemoryNet, reports: queue.SimpleQueue[tuple[str, Progress]]
    ) -> None:
        self.status: EndpointStatus | None = None
        self._role = config.role
        self._reports = reports
        self._endpoint = Source(config, net) if config.role == "source" else Target(config, net)
        self._thread = threading.Thread(target=self._run, name=config.role, daemon=True)
        self._thread.start()

    def tell(self, address: str) -> None:
        """It knows the way."""

    def release(self) -> None:
        """It ends by itself."""

    def cancel(self) -> None:
        """Call it off."""
        self._endpoint.session.cancel()

    def die(self) -> None:
        """A thread cannot be killed."""
        raise VfmigError("an endpoint within this process cannot die alone: take another --transport")

    def kill(self) -> None:
        """There is nothing harder than to call it off."""
        self.cancel()

    def close(self) -> None:
        """Wait for its end."""
        if self.status is None:
            self.cancel()
        self._thread.join()

    def _run(self) -> None:
        try:
            result = self._endpoint.run()
        except Exception as error:  # also a defect of ours must not leave the run waiting
            result = Result("failed", describe_error(error), False, 0, 0, "")
        self.status = EndpointStatus(
            outcome=result.outcome,
            error=result.error,
            runs=result.runs,
            moved_bytes=result.moved_bytes,
            cpu_s=result.cpu_ns / 1e9,
            complaint=result.complaint,
        )
        self._reports.put((self._role, {"event": "end"}))
