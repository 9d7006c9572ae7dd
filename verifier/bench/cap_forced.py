# SPDX-License-Identifier: GPL-2.0-or-later
"""The worst case of `cap`, reached by real migrations; and how much a run that was had queued.

An endpoint of ours is made to load nothing before all has come (MigrationConfig.load_late): its plan waits
for that event, not for a time. A QEMU's devices take their first buffer late, by a time: its trace log says
whether that was late enough, and where it was not the run is tried again with more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from mockdev.journal import Loaded, Mark, Received, Saved
from mockdev.lab.migration import Pair, run_migration
from mockdev.lab.outcome import Outcome
from mockdev.lab.qemu import find_qemu, qemu_version
from mockdev.lab.qemu_end import Vm, check_vm, versioned
from mockdev.runtime.config import MigrationConfig
from verifier.bench.cap import CONFIG_BYTES, Case, Certificate
from verifier.bench.throughput import scratch
from verifier.history.journals import read_journal
from verifier.history.observation import LoadTrace
from verifier.history.traces import read_traces

_STALLS_S = (2, 4, 8)  # how late a QEMU's devices take their first buffer, until it is late enough
_MOMENT_S = 8.0
_CAP_RELEASE = (10, 1, 0)  # the first with x-migration-max-queued-buffers-size
_OVER_CAP = (b"would exceed the size max of", b"over the cap of")  # QEMU's words, ours

OnProgress = Callable[[str], None]


class Observed(msgspec.Struct, kw_only=True):
    """What a run had queued at most, of one device and of all; None, and why, where its evidence cannot tell.

    received_bytes: of the device with the most, all in all; received_all_bytes: of all. why: all are None.
    """

    device_bytes: int | None = None
    all_bytes: int | None = None
    received_bytes: int | None = None
    received_all_bytes: int | None = None
    why: str = ""

    @property
    def came_first(self) -> bool:
        """Whether all that came had come before any of it was loaded."""
        return self.all_bytes is not None and self.all_bytes == self.received_all_bytes

    def beside(self, certificate: Certificate) -> tuple[str, bool]:
        """A sentence, and whether the run refutes the certificate."""
        if self.device_bytes is None or self.all_bytes is None or self.received_bytes is None:
            return f"observed: nothing known: {self.why}", False
        said = f"observed: {self.device_bytes} bytes of one device, {self.all_bytes} of all"
        worst = (certificate.worst_device_queued_bytes, certificate.worst_queued_bytes)
        if self.device_bytes <= worst[0] and self.all_bytes <= worst[1]:
            return f"{said}, {self.all_bytes / worst[1]:.1%} of the worst case", False
        if self.received_bytes > certificate.case.device_bytes:
            return f"{said}: another case, a device of that run got {self.received_bytes} bytes", False
        return f"{said}: more than can be, or the run kept to other limits than were given here", True


class Forced(msgspec.Struct, kw_only=True):
    """A run whose schedule was forced. cap_bytes: of each device, None: none.

    late: whether nothing was loaded before all had come: it was the worst schedule. as_certified: with a cap
    below the worst case of a device the target gave up because of that, else the run completed and had
    queued what was certified, to the byte.
    """

    ends: str
    cap_bytes: int | None
    worst_device_bytes: int
    worst_bytes: int
    observed: Observed
    late: bool
    outcome: str
    error: str
    as_certified: bool


# -- what a run had queued ---------------------------------------------------------------------------


def observe(folder: Path) -> Observed:
    """The high-water marks of a run's folder. JournalError, OSError: its journals are none."""
    path = folder / "target.jsonl"
    if not path.is_file():
        return Observed(why=f"{folder} has no target.jsonl: no journal of a target")
    queued: dict[str, int] = {}
    most: dict[str, int] = {}
    received: dict[str, int] = {}
    all_bytes, said = 0, None
    for seen in read_journal(path):
        line = seen.line
        if isinstance(line, Mark) and line.name == "queued-bytes-max":
            said = line.value
        elif isinstance(line, Received | Loaded) and line.idx >= 0:
            queued[line.device] = line.queued_bytes
            most[line.device] = max(most.get(line.device, 0), line.queued_bytes)
            all_bytes = max(all_bytes, sum(queued.values()))
            if isinstance(line, Received):
                received[line.device] = received.get(line.device, 0) + line.size
    if not most:
        return _observe_qemu(folder)
    return Observed(
        device_bytes=max(most.values()),
        all_bytes=all_bytes if said is None else said,
        received_bytes=max(received.values()),
        received_all_bytes=sum(received.values()),
    )


def _observe_qemu(folder: Path) -> Observed:
    """A QEMU's counter is in no trace: it is counted again, in the order of its trace events.

    They come just before a buffer is queued, so that one which the cap refuses is counted as well.
    """
    log = folder / "target.log"
    if not log.is_file():
        return Observed(why="the target is a QEMU (or took no multifd buffers) and left no trace log")
    sizes = _sizes(folder / "source.jsonl")
    if not sizes:
        return Observed(why="the target is a QEMU, and no journal of a mock source tells the buffers' sizes")
    traces = list(_loads(log))
    numbers = {
        name: number for number, name in enumerate(sorted({trace.name for trace in traces}, key=_last))
    }
    if numbers and len(numbers) != len(sizes):
        return Observed(why=f"{len(numbers)} devices in the target's trace log, {len(sizes)} at the source")
    queued, received = [0] * len(sizes), [0] * len(sizes)
    device_bytes = all_bytes = 0
    for trace in traces:
        number, idx = numbers[trace.name], trace.idx
        if idx is None or idx >= len(sizes[number]):
            continue
        if trace.event.endswith("_incoming"):
            queued[number] += sizes[number][idx]
            received[number] += sizes[number][idx]
        elif trace.event.endswith("_load_end"):
            queued[number] -= sizes[number][idx]
        device_bytes = max(device_bytes, queued[number])
        all_bytes = max(all_bytes, sum(queued))
    if not all_bytes:
        return Observed(
            why="the target's trace log has no vfio_load_state_device_buffer_* of multifd buffers"
        )
    return Observed(
        device_bytes=device_bytes,
        all_bytes=all_bytes,
        received_bytes=max(received),
        received_all_bytes=sum(received),
    )


def _sizes(journal: Path) -> list[list[int]]:
    """Sizes of the buffers of each device, by index, as a source of ours saved them."""
    sizes: dict[str, list[int]] = {}
    if journal.is_file():
        for seen in read_journal(journal):
            if isinstance(seen.line, Saved) and seen.line.idx >= 0:
                sizes.setdefault(seen.line.device, []).append(seen.line.size)
    return [sizes[name] for name in sorted(sizes)]


def _loads(log: Path) -> Iterator[LoadTrace]:
    for seen in read_traces(log, "target"):
        if isinstance(seen.line, LoadTrace):
            yield seen.line


def _last(name: str) -> int:
    """The number that a device's name ends with: vf0, or VFIO_FD10001 where a release has no other name."""
    digits = name[len(name.rstrip("0123456789")) :]
    return int(digits[:18] or 0)


# -- forced runs -------------------------------------------------------------------------------------


def force(case: Case, qemu: str | None, on_progress: OnProgress) -> list[Forced]:
    """Migrations at the worst schedule: without a cap, with the least that suffices, with a byte less.

    Between endpoints of ours, and with `qemu` (a binary) to that QEMU. QemuError: it cannot take part.
    """
    worst = unlimited(case)
    caps = (None, worst.device_bytes, worst.device_bytes - 1)
    with scratch() as folder:
        made = []
        for cap in caps:
            on_progress(f"forced run of our own endpoints, cap {cap or 'none'}")
            made.append(_ours(worst, cap, Path(folder, f"ours-{cap}")))
        if qemu is not None:
            vm = Vm(binary=qemu, machine=versioned("pc", [qemu]))
            name = f"mock to QEMU {check_vm(vm)}"
            for cap in caps if qemu_version(find_qemu(qemu)) >= _CAP_RELEASE else caps[:1]:
                on_progress(f"forced run, {name}, cap {cap or 'none'}")
                made.append(_qemu(worst, cap, vm, name, Path(folder, f"qemu-{cap}")))
        return made


def unlimited(case: Case) -> Case:
    """The same with lateness without limit, and with the config buffer that our source and QEMU have."""
    return msgspec.structs.replace(case, config_bytes=CONFIG_BYTES, send_rate=None, stall_ns=None)


def forced_config(worst: Case, cap: int | None = None) -> MigrationConfig:
    """The migration that is forced, but for who is late."""
    return MigrationConfig(
        vfs=worst.vfs,
        channels=worst.channels,
        state_bytes=worst.state_bytes,
        buffer_bytes=worst.buffer_bytes,
        profile="opaque",
        queue_cap_bytes=cap,
        ram_bytes=1 << 20,
        capture="none",
        # Room for all: what is to be met is the cap.
        pool_bytes_max=2 * worst.vfs * worst.buffers * (1 << 20),
    )


def _ours(worst: Case, cap: int | None, folder: Path) -> Forced:
    config = msgspec.structs.replace(forced_config(worst, cap), load_late=True)
    return _forced(worst, cap, "mock to mock", run_migration(config, folder), folder)


def _qemu(worst: Case, cap: int | None, vm: Vm, name: str, folder: Path) -> Forced:
    for stall_s in _STALLS_S:
        this = Path(folder, str(stall_s))
        faults = tuple(f"target.vf{number}.load:stall={stall_s}s@0" for number in range(worst.vfs))
        # A QEMU that gives up may hang: it has the stall and a moment more.
        config = msgspec.structs.replace(
            forced_config(worst, cap), faults=faults, idle_timeout_s=stall_s + _MOMENT_S
        )
        outcome = run_migration(config, this, pair=Pair(target=vm))
        row = _forced(worst, cap, name, outcome, this)
        if row.late:
            break
    return row


def _gave_up(folder: Path, error: str) -> bool:
    """Whether the target refused a buffer for the cap; a QEMU that hangs then has said it in its log only."""
    said = error.encode()
    if (log := folder / "target.log").is_file():
        said += log.read_bytes()
    return any(words in said for words in _OVER_CAP)


def _forced(worst: Case, cap: int | None, ends: str, outcome: Outcome, folder: Path) -> Forced:
    observed = observe(folder)
    worst_bytes = worst.vfs * worst.device_bytes
    error = outcome.target.error.splitlines()[-1] if outcome.target.error else ""
    if cap is not None and cap < worst.device_bytes:
        as_certified = outcome.outcome != "completed" and _gave_up(folder, error)
    else:
        reached = (observed.device_bytes, observed.all_bytes) == (worst.device_bytes, worst_bytes)
        as_certified = outcome.outcome == "completed" and bool(outcome.verified) and reached
    return Forced(
        ends=ends,
        cap_bytes=cap,
        worst_device_bytes=worst.device_bytes,
        worst_bytes=worst_bytes,
        observed=observed,
        late=observed.came_first,
        outcome=outcome.outcome,
        error=error,
        as_certified=as_certified,
    )
