# SPDX-License-Identifier: GPL-2.0-or-later
"""Targets that load wrongly: order, indexes, the end of a device's state, wake-ups and locks."""

from __future__ import annotations

from typing import Any

import msgspec

from mockdev.device.image import PAGE_SIZE
from mockdev.multifd.assembly import Assembly, Buffer
from mockdev.multifd.receiver import LoadJob, LoadPlan
from mockdev.runtime.ram import RamBlock
from mockdev.wire.frames import CommandItem, DeviceStateFrame, VfioItem
from mockdev.wire.structs import Command
from verifier.simulation.link import GoneError, Link
from verifier.simulation.migration import Parts
from verifier.simulation.target import Job, Target
from verifier.simulation.world import Steps
from verifier.simulation.zoo.bug import Bug, target_with

_MULTIFD = {"transfer": "multifd"}
_PRECOPY = {"precopy_bytes": 100, "state_bytes": 600}
_LATE = ("late", "stall", "slow")


def _assembling(assembly: type[Assembly[Any]]) -> Parts:
    class _Plan(LoadPlan[Any]):
        assembly_type = assembly

    return target_with(_Plan)


class _LowestKept(Assembly[Any]):
    """Gaps are not waited for."""

    @property
    def ready(self) -> bool:
        return bool(self._kept)

    def take(self) -> Buffer[Any]:
        idx = min(self._kept)
        self.next_idx = max(self.next_idx, idx + 1)
        return self._kept.pop(idx)


class _AsTheyCome(Assembly[Any]):
    @property
    def ready(self) -> bool:
        return bool(self._kept)

    def take(self) -> Buffer[Any]:
        self.next_idx += 1
        return self._kept.pop(next(iter(self._kept)))

    def check(self, idx: int, *, config: bool) -> None:
        pass


class _ConfigOutOfTurn(Assembly[Any]):
    """The config state is taken as soon as it is there."""

    @property
    def ready(self) -> bool:
        return super().ready or self.config_idx in self._kept

    def take(self) -> Buffer[Any]:
        config = self._kept.pop(self.config_idx, None) if self.config_idx is not None else None
        return config or super().take()

    @property
    def complete(self) -> bool:
        return self.config_idx is not None and self.next_idx >= self.config_idx and not self._kept


class _CompleteEarly(Assembly[Any]):
    @property
    def complete(self) -> bool:
        return self.config_idx is not None and self.next_idx >= self.config_idx


class _CompleteEarlyPlan(LoadPlan[Any]):
    assembly_type = _CompleteEarly

    def loaded(self, job: LoadJob[Any]) -> None:
        if not job.buffer.config or not self._intakes[job.device].done:
            super().loaded(job)


class _AnyCompletePlan(LoadPlan[Any]):
    @property
    def complete(self) -> bool:
        return self._left < len(self._intakes)


class _TwoLoadersPlan(LoadPlan[Any]):
    """A device in which something is being loaded is given to the next loader."""

    def _list(self, device: int) -> None:
        intake = self._intakes[device]
        if self.started and not intake.listed and intake.assembly.ready:
            intake.listed = True
            self._ready.append(device)

    def take(self, device: int | None = None) -> LoadJob[Any] | None:
        job = super().take(device)
        if job is not None:
            self._list(job.device)
        return job

    def loaded(self, job: LoadJob[Any]) -> None:
        intake = self._intakes[job.device]
        intake.loading = job.buffer
        if intake.done or (intake.assembly.complete and not job.buffer.config):
            return
        super().loaded(job)


class _EagerPlan(LoadPlan[Any]):
    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.started = True

    def start(self) -> None:
        pass


class _LostWakeUp(Target):
    """A loader that waits is not told of a buffer that has come while no other waited."""

    def receive(self, frame: DeviceStateFrame, link: Link, channel: int) -> Steps:
        changed, self.changed = self.changed, type(self.changed)(self.world)
        try:
            yield from super().receive(frame, link, channel)
        finally:
            self.changed = changed


class _LockOverLoad(Target):
    """Whoever loads keeps the lock until that device has all."""

    holder: int | None = None

    def load(self, job: Job) -> Steps:
        while self.holder not in (None, job.device):
            yield self.changed
        self.holder = job.device
        yield from super().load(job)
        if job.buffer.config:
            self.holder = None
            self.changed.give()


class _EndIsAll(Target):
    """The end of the stream is taken as the end of every device's state."""

    def wait_devices(self) -> Steps:
        yield from ()


class _ClosedPlan(LoadPlan[Any]):
    closed = False

    @property
    def complete(self) -> bool:
        return self.closed or self._left == 0


class _CloseIsEnd(Target):
    """A channel that ends has brought all that it had to bring."""

    plan_type = _ClosedPlan

    def channel_gone(self, error: GoneError) -> None:  # noqa: ARG002
        assert isinstance(self.plan, _ClosedPlan)
        self.plan.closed = True


class _NamesExchanged(Target):
    def device_of(self, frame: DeviceStateFrame) -> int | None:
        device = super().device_of(frame)
        return None if device is None else 1 - device


class _SyncIgnored(Target):
    def arrive(self, number: int) -> Steps:  # noqa: ARG002
        yield from ()

    def flush(self) -> Steps:
        yield from ()


class _PagesShifted(Target):
    def page(self, block: RamBlock, offset: int, data: memoryview) -> None:
        super().page(block, 0 if offset + PAGE_SIZE >= block.size else offset, data)


class _PongReversed(Target):
    def command(self, item: CommandItem) -> None:
        if item.command == Command.PING:
            item = msgspec.structs.replace(item, data=item.data[::-1])
        super().command(item)


class _ShutTwice(Target):
    def say_shut(self, value: int) -> None:
        super().say_shut(value)
        super().say_shut(value)


class _AckForEach(Target):
    """Each device that is ready is acknowledged, as newer machine types want it."""

    def vfio(self, item: VfioItem, size: int) -> Steps:
        self.ack_each = True
        yield from super().vfio(item, size)


class _LastLeftBehind(Target):
    """The loop that starts the devices ends one too early."""

    def finish_load(self) -> Steps:
        slots, self.slots = self.slots, self.slots[:-1]
        yield from super().finish_load()
        self.slots = slots


LOADING = (
    Bug(
        "gap-passed-over",
        "The target loads the lowest index that it has, without waiting for those before it.",
        "QEMU hw/vfio/migration-multifd.c: vfio_load_state_buffer_get waits for exactly load_buf_idx",
        _assembling(_LowestKept),
        ("DS-13",),
        "target's journal",
        kinds=_LATE,
        fixed={"transfer": "multifd", "channels": 4},
    ),
    Bug(
        "loaded-as-they-come",
        "The target loads buffers in the order in which they come.",
        "QEMU hw/vfio/migration-multifd.c: channels have no order among them",
        _assembling(_AsTheyCome),
        ("DS-13",),
        "target's journal",
        kinds=_LATE,
        fixed={"transfer": "multifd", "channels": 4},
    ),
    Bug(
        "config-loaded-first",
        "The target loads the config state as soon as it has it.",
        "QEMU 10.1, x-migration-load-config-after-iter: the config was loaded before what it rests on",
        _assembling(_ConfigOutOfTurn),
        ("DS-13",),
        "target's journal",
        kinds=_LATE,
        fixed={"transfer": "multifd", "channels": 4},
    ),
    Bug(
        "config-not-awaited",
        "A device counts as loaded when all but its config state is.",
        "QEMU hw/vfio/migration-multifd.c: load_buf_idx_last is the index of the config state",
        target_with(_CompleteEarlyPlan),
        ("ST-11",),
        "target's journal",
        kinds=("few-loaders", "costs"),
        fixed=_MULTIFD,
    ),
    Bug(
        "first-device-is-all",
        "The target goes on when the first device has all.",
        "QEMU hw/vfio/migration-multifd.c: load_bufs_thread_running is waited for device by device",
        target_with(_AnyCompletePlan),
        ("DS-14",),
        "target's journal",
        kinds=("few-loaders",),
        fixed={"transfer": "multifd", "vfs": 3},
    ),
    Bug(
        "two-loaders",
        "Two threads load the same device at the same time.",
        "QEMU hw/vfio/migration-multifd.c: one load thread a device",
        target_with(_TwoLoadersPlan),
        ("DS-13",),
        "target's journal",
        kinds=("costs", "stalls"),
        fixed={"transfer": "multifd", "vfs": 2, "load_threads": 2},
    ),
    Bug(
        "loaded-before-switchover",
        "The target loads before it has read SWITCHOVER_START.",
        "QEMU 10.0 hw/vfio/migration-multifd.c: vfio_multifd_switchover_start starts the load thread",
        target_with(_EagerPlan),
        ("DS-18",),
        "target's journal",
        kinds=("uneven",),
        fixed=_MULTIFD,
    ),
    Bug(
        "lost-wake-up",
        "A loader that waits is not woken when a buffer comes.",
        "mlx5 chunk series, 2023, 2/9: a blocked reader was not woken when its file was disabled",
        Parts(target=_LostWakeUp),
        ("LV-1",),
        "target's journal",
        kinds=("few-loaders",),
        fixed=_MULTIFD,
    ),
    Bug(
        "lock-over-load",
        "A lock is held from a device's first load to its last.",
        "QEMU hw/vfio/migration-multifd.c: the load thread drops load_bufs_mutex while it writes",
        Parts(target=_LockOverLoad),
        ("OC-3",),
        "both journals",
        fixed={"transfer": "multifd", "vfs": 4, "channels": 2},
    ),
    Bug(
        "end-of-stream-is-all",
        "The end of the main channel is taken as the end of what the other channels bring.",
        "QEMU 10.0 migration/savevm.c: nothing counts at the end whether all has come",
        Parts(target=_EndIsAll),
        ("RP-8",),
        "target's journal",
        kinds=_LATE,
        fixed=_MULTIFD,
    ),
    Bug(
        "early-close-is-end",
        "A channel that breaks off is taken to have brought all that it had.",
        "QEMU 10.0 migration/multifd.c: the end of a connection ends its thread without an error",
        Parts(target=_CloseIsEnd),
        ("MP-15",),
        kinds=("break",),
        fixed={"transfer": "multifd", "channels": 4},
    ),
    Bug(
        "names-exchanged",
        "The target takes the buffers of two devices for each other's.",
        "QEMU migration/savevm.c: qemu_loadvm_load_state_buffer finds the handler by idstr and instance",
        Parts(target=_NamesExchanged),
        ("EQ-2",),
        "target's journal",
        fixed={"transfer": "multifd", "vfs": 2},
    ),
    Bug(
        "sync-ignored",
        "The target takes pages of the next round while some of this one are on their way.",
        "QEMU migration/multifd.c: multifd_recv_sync_main",
        Parts(target=_SyncIgnored),
        ("EQ-2",),
        "target's journal",
        kinds=(*_LATE, "guest"),
        fixed={**_PRECOPY, "channels": 3},  # with more rounds a page is sent more often
    ),
    Bug(
        "page-shifted",
        "The last page of a block lands in the first.",
        "QEMU, 2020: a hole in the address space was not counted",
        Parts(target=_PagesShifted),
        ("EQ-2",),
        "target's journal",
    ),
    Bug(
        "pong-reversed",
        "A PONG has the bytes of its PING in the other order.",
        "QEMU migration/savevm.c: the value is converted from the wire and back",
        Parts(target=_PongReversed),
        ("RP-3",),
    ),
    Bug(
        "shut-twice",
        "The target says SHUT twice.",
        "QEMU migration/savevm.c: migration_incoming_state_destroy runs once",
        Parts(target=_ShutTwice),
        ("RP-4",),
    ),
    Bug(
        "ack-for-each-device",
        "The target acknowledges each device, to a source that waits for one acknowledgement.",
        "QEMU 11.1: acknowledgements are counted; before, one was sent for all devices",
        Parts(target=_AckForEach),
        ("RP-5",),
        fixed={**_PRECOPY, "switchover_ack": True, "dialect": "10.0", "vfs": 2},
    ),
    Bug(
        "last-device-left-behind",
        "The target starts all devices but the last.",
        "QEMU hw/vfio/migration.c: each device has its own vfio_vmstate_change handler",
        Parts(target=_LastLeftBehind),
        ("ST-5",),
        "target's journal",
    ),
)
