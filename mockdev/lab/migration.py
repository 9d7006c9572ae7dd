# SPDX-License-Identifier: GPL-2.0-or-later
"""One run: source and target started, watched and ended; whatever happens, no process stays behind."""

from __future__ import annotations

import contextlib
import queue
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from mockdev.clock import Clock, wall_offset_ns
from mockdev.errors import CancelledError, VfmigError
from mockdev.faultspec import parse_all
from mockdev.lab.endpoint import EXIT_BEGIN
from mockdev.lab.ends import End, InsideEnd, ProcessEnd, Progress, Reports
from mockdev.lab.outcome import EndpointStatus, Outcome, summarise
from mockdev.lab.qemu import QemuError
from mockdev.lab.qemu_end import QemuEnd, Vm
from mockdev.lab.relay import RelayConfig, RelayProcess
from mockdev.runtime.config import EndpointConfig, MigrationConfig
from mockdev.runtime.transports import MemoryNet

if TYPE_CHECKING:
    from mockdev.lab.netns import TwoHosts

ROLES = ("target", "source")
_CANCEL_S = 10.0  # what endpoints get to end after a cancel or the other's end, over their own deadline
_RECORDED_BYTES = 1 << 20  # of each device's state when a machine is recorded: a template keeps none of it
_RECORDINGS_MAX = 4  # a source of QEMU 10.0 whose devices do not use multifd may abort: docs/qemu.md
_LOOK_S = 0.005  # between two looks at the time while a fault waits for its own
_TIMED_FAULTS = ("process", "supervisor", "link")
_CARRIED_FAULTS = ("channel.N", "main", "return-path")
_AFTER_SWITCHOVER = ("switchover", "wait for the target")  # phases of a source of ours
_GRACE_S = 3.0  # what a QEMU gets to notice that the other end has failed
_BEGIN_S = 300.0  # what they get to make their memory


class Cancel:
    """Calls a run off from another thread, or from a signal handler."""

    def __init__(self) -> None:
        self.asked: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.called_off = False  # ever

    def cancel(self) -> None:
        """Call it off; the run then ends by itself."""
        self.called_off = True
        self.asked.put(None)

    @property
    def wanted(self) -> bool:
        """Whether it was called off since the last look."""
        with contextlib.suppress(queue.Empty):
            self.asked.get_nowait()
            return True
        return False


class Hosts(msgspec.Struct, frozen=True, kw_only=True):
    """Two hosts with a link between them, as in lab/netns.py."""

    rate_bytes_per_s: int | None = None
    delay_ns: int = 0


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """Who stands at either end: a QEMU, or (None) an endpoint of ours.

    relay: whether a relay between them records (else endpoints of ours do); a fault of a connection needs
    one as well. hosts: None: both ends are on this host.
    """

    source: Vm | None = None
    target: Vm | None = None
    relay: bool = False
    hosts: Hosts | None = None

    def vm(self, role: str) -> Vm | None:
        """Who stands at this end."""
        return self.source if role == "source" else self.target

    @property
    def mocks(self) -> bool:
        """Whether both ends are ours."""
        return self.source is None and self.target is None


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
    cancel = cancel or Cancel()
    with ExitStack() as stack:
        hosts = stack.enter_context(_two_hosts(pair.hosts)) if pair.hosts is not None else None
        template = ""
        if pair.source is None and pair.target is not None:
            template = str(
                Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vfmig-"))) / "template"
            )
            record_template(config, pair.target, Path(template), cancel)
        return _run(config, folder, on_progress or (lambda _: None), cancel, pair, template, hosts)


def _two_hosts(hosts: Hosts) -> TwoHosts:
    from mockdev.lab.netns import TwoHosts  # pyroute2 is slow to import

    return TwoHosts(hosts.rate_bytes_per_s, hosts.delay_ns)


def record_template(config: MigrationConfig, vm: Vm, path: Path, cancel: Cancel) -> None:
    """Keep a QEMU's machine as a template, by having it migrate to a target of ours; see runtime/template.py.

    This is not what is to be tested, so a QEMU that crashes meanwhile is asked again. VfmigError: that
    migration failed, or was called off.
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
    quiet = msgspec.structs.replace(vm, trace=False, keep_state=False)
    for _ in range(_RECORDINGS_MAX):
        with tempfile.TemporaryDirectory(prefix="vfmig-") as folder:
            outcome = _run(small, Path(folder), lambda _: None, cancel, Pair(source=quiet), str(path))
        if cancel.called_off:
            raise CancelledError("called off while the machine was recorded")
        if outcome.source.outcome != "crashed":
            break
    if outcome.outcome != "completed" or not path.exists():
        ends = [outcome.target, outcome.source]
        # Who could not begin, or crashed, ended the other, too.
        ends.sort(key=lambda end: end.exit_status != EXIT_BEGIN and end.outcome != "crashed")
        why = ends[0].error or ends[1].error
        raise QemuError(f"the machine of {vm.binary} could not be recorded, so a mock cannot play it: {why}")


def _run(
    config: MigrationConfig,
    folder: Path,
    on_progress: Callable[[Progress], None],
    cancel: Cancel,
    pair: Pair,
    template: str,
    hosts: TwoHosts | None = None,
) -> Outcome:
    run = _Run(config, folder, on_progress, cancel, pair, template, hosts)
    try:
        run.begin()
        run.watch()
    except KeyboardInterrupt:
        run.call_off()
        run.watch()
        raise
    finally:
        run.close()
    return summarise(*run.statuses(), folder, run.complaint)


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
        hosts: TwoHosts | None,
    ) -> None:
        self.complaint = ""
        self._hosts = hosts
        self._relay: RelayProcess | None = None
        self._pair = pair
        self._template = template
        self._config = config
        self._folder = folder
        self._on_progress = on_progress
        self._cancel = cancel
        self._clock = Clock(wall_offset_ns())
        self._reports: Reports = queue.SimpleQueue()
        self._ends: dict[str, End] = {}
        self._settled: dict[str, str] = {}  # how an end came out, by its role
        self._ended: set[str] = set()
        self._release_ns: int | None = None
        specs = parse_all(config.faults, config.vfs, config.channels)
        self._timed = [spec for spec in specs if spec.place in _TIMED_FAULTS]
        self._carried = [spec for spec in specs if spec.place in _CARRIED_FAULTS]
        if self._carried and config.transport == "memory":
            raise VfmigError(f"{self._carried[0]}: within one process there is no connection to disturb")
        if hosts is None and any(spec.place == "link" for spec in specs):
            raise VfmigError("a fault of the link needs two hosts: --netns")
        self._switched_ns: int | None = None
        self._called_off = False
        self._deadline_ns: int | None = None

    def begin(self) -> None:
        """Start both; connect them once both are ready."""
        if self._config.transport == "memory":
            net = MemoryNet()
            for role in ROLES:
                self._ends[role] = InsideEnd(self._endpoint(role), net, self._reports)
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
            address = ready["target"]
            if self._pair.relay or self._carried:
                address = self._begin_relay(address)
            self._ends["source"].tell(address)
        if not self._called_off and not self._ended:
            self._deadline_ns = None

    def watch(self) -> None:
        """Until both have ended: hand reports on; give one that outlives the other a deadline."""
        while self._going():
            self._next()

    def call_off(self) -> None:
        """Cancel both."""
        self._called_off = True
        for end in self._ends.values():
            end.cancel()
        self._extend(_CANCEL_S)

    def close(self) -> None:
        """Whatever still runs is killed."""
        for end in self._ends.values():
            end.close()
        if self._relay is not None:
            result = self._relay.close(at_once=self._called_off)
            self.complaint = str(result.get("complaint", "the relay ended without a word"))
            self._relay = None

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
            if spec.place == "link" and self._hosts is not None:
                self._on_progress({"role": "link", "event": "fault", "spec": str(spec)})
                self._hosts.strike(spec)
                continue
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

    def _begin_relay(self, target: str) -> str:
        """Put a relay between the ends; where the source is to connect."""
        config = self._config
        kept = config.capture if self._records else "none"
        relay = RelayConfig(
            target=target,
            listen=f"{self._hosts.target.address}:0" if self._hosts is not None else "",
            transport="unix" if config.transport == "unix" else "tcp",
            capture="" if kept == "none" else str(self._folder / "capture.pcapng"),
            mode="headers" if kept == "headers" else "full",
            clock_offset_ns=self._clock.offset_ns,
            faults=tuple(map(str, self._carried)),
            watch_switchover=bool(self._timed),
        )
        if config.transport == "unix":
            relay = msgspec.structs.replace(relay, listen=str(self._folder / "relay"))
        self._relay = RelayProcess(relay, self._hear_relay, self._inside("target"))
        return self._relay.address

    def _hear_relay(self, event: Progress) -> None:
        if event.get("event") == "fault":
            self._reports.put(("relay", {"event": "fault", "spec": event["fault"]}))
        elif event.get("event") == "switchover":
            self._reports.put(("relay", {"event": "switchover"}))

    @property
    def _records(self) -> bool:
        """Whether a relay keeps the capture, and not an endpoint of ours."""
        return self._config.capture != "none" and (self._pair.relay or bool(self._carried))

    def _inside(self, role: str) -> Sequence[str]:
        """What goes before the command of this end, to have it on its own host."""
        if self._hosts is None:
            return ()
        return (self._hosts.source if role == "source" else self._hosts.target).inside

    def _address(self, role: str) -> str:
        """Where an end is to listen; "": anywhere."""
        if role == "source":
            return ""
        if self._config.transport == "unix":
            return str(self._folder / "socket")
        return f"{self._hosts.target.address}:0" if self._hosts is not None else ""

    def _make(self, role: str) -> End:
        vm = self._pair.vm(role)
        if vm is None:
            return ProcessEnd(self._endpoint(role), self._reports, self._inside(role))
        return QemuEnd(
            "source" if role == "source" else "target",
            vm,
            self._config,
            self._folder,
            self._clock.offset_ns,
            self._reports,
            address=self._address(role),
            inside=self._inside(role),
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
        if self._records:
            config = msgspec.structs.replace(config, capture="none")
        return EndpointConfig(
            role="source" if role == "source" else "target",
            migration=config,
            folder=str(self._folder),
            address=self._address(role),
            template=self._template,
            clock_offset_ns=self._clock.offset_ns,
        )
