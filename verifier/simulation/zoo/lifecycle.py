# SPDX-License-Identifier: GPL-2.0-or-later
"""Ends that run the VM or give it up when they may not, and devices that are taken through wrong states."""

from __future__ import annotations

from mockdev.errors import DeviceError
from mockdev.vfio.uapi import State
from mockdev.wire.frames import Frame, OpaqueItem
from verifier.simulation.migration import Parts
from verifier.simulation.source import Source
from verifier.simulation.target import Target
from verifier.simulation.world import Steps
from verifier.simulation.zoo.bug import Bug

_MULTIFD = {"transfer": "multifd"}
_LOAD_FAULT = {"transfer": "multifd", "faults": ("target.vf0.load:eio@40",)}
_PRECOPY = {"precopy_bytes": 100, "state_bytes": 600}


class _VerdictNotAwaited(Source):
    def await_verdict(self) -> Steps:
        self.shut = 0
        yield from ()


class _VerdictIgnored(Source):
    def weigh(self, verdict: int) -> None:
        pass


class _NoPointOfNoReturn(Source):
    """Can be called off at any time, and goes on running then."""

    def end_stream(self) -> Steps:
        yield from super().end_stream()
        self.committed = self.ended = False


class _GivesUp(Source):
    def may_resume(self) -> bool:
        return False


class _LoadErrorUnsaid(Target):
    """What SHUT says is the main channel's."""

    def verdict(self, cause: BaseException) -> int:
        return 0 if isinstance(cause, DeviceError) else super().verdict(cause)


class _LoadErrorSwallowed(Target):
    def load_failed(self, error: DeviceError) -> None:
        pass


class _ShutEarly(Target):
    """The verdict goes out when the stream has ended, before the devices have all."""

    early = False

    def wait_devices(self) -> Steps:
        self.say_shut(0)
        self.early = True
        yield from super().wait_devices()

    def say_shut(self, value: int) -> None:
        if not self.early:
            super().say_shut(value)


class _NoShut(Target):
    def say_shut(self, value: int) -> None:
        pass


class _CloseIsEnd(Target):
    def main_ended(self) -> None:
        pass


class _RunsEarly(Target):
    """Starts the VM at the last section, before the end mark."""

    def item(self, item: Frame, size: int) -> Steps:
        yield from super().item(item, size)
        if isinstance(item, OpaqueItem) and item.idstr == "globalstate":
            for slot in self.slots:
                while not slot.configured:
                    yield self.changed
            yield from super().finish_load()

    def finish_load(self) -> Steps:
        yield from ()


class _OneByOne(Source):
    """Stops each device whole, while others may still write to it."""

    def stop(self) -> Steps:
        self.mark("stop")
        precopy = bool(self.config.precopy_bytes)
        for slot in self.slots:
            yield from slot.set_state(State.STOP_COPY if precopy else State.STOP)


class _StartedOneByOne(Target):
    def make_ready(self) -> Steps:
        for slot in self.slots:
            yield from slot.set_state(State.RUNNING)


class _StraightToStop(Source):
    def stop(self) -> Steps:
        self.mark("stop")
        for slot in self.slots:
            if slot.device.state is State.RUNNING:
                yield from slot.arc(State.STOP)
        yield from super().stop()


class _StraightToResuming(Target):
    def body(self) -> Steps:
        for slot in self.slots:
            yield from slot.arc(State.RESUMING)
        yield from super().body()


class _ThroughRunning(Source):
    """Pauses a device in PRE_COPY with STOP, which the way to leads through RUNNING."""

    def stop(self) -> Steps:
        self.mark("stop")
        for slot in self.slots:
            yield from slot.set_state(State.STOP)


class _AckNotAwaited(Source):
    def must_wait_for_acks(self) -> bool:
        return False


LIFECYCLE = (
    Bug(
        "verdict-not-awaited",
        "The source says that the migration has completed when the last byte is written.",
        "QEMU without return path: the source cannot know; with it close_return_path_on_source waits",
        Parts(source=_VerdictNotAwaited),
        ("OC-3",),
        "both journals",
        kinds=("late",),
        fixed=_LOAD_FAULT,
    ),
    Bug(
        "verdict-ignored",
        "The source takes any SHUT for a good one.",
        "QEMU migration/migration.c: source_return_path_thread marks the error of a SHUT that is not 0",
        Parts(source=_VerdictIgnored),
        ("OC-3",),
        "both journals",
        fixed=_LOAD_FAULT,
    ),
    Bug(
        "cancel-after-end",
        "A cancel that comes after the end of the stream lets the source run on.",
        "QEMU 10.0.2 and 11.1.3: migrate_cancel while device state is saved is carried out afterwards",
        Parts(source=_NoPointOfNoReturn),
        ("OC-1",),
        "both journals",
        kinds=("cancel", "late"),
    ),
    Bug(
        "source-gives-up",
        "After a failure the source does not let its VM run on.",
        "openEuler: in a corner case a failed state change neither stopped the migration nor resumed the VM",
        Parts(source=_GivesUp),
        ("OC-3",),
        "both journals",
        kinds=("break",),
    ),
    Bug(
        "load-error-unsaid",
        "SHUT carries only the main channel's error, not that of a load thread: the VM is lost.",
        "QEMU 10.0.2 and 11.1.3: EIO on a write in RESUMING, the target exits, the source says completed",
        Parts(target=_LoadErrorUnsaid),
        ("OC-3", "RP-8"),
        "target's journal",
        fixed=_LOAD_FAULT,
    ),
    Bug(
        "load-error-swallowed",
        "A load thread that fails goes on with the next buffer.",
        "QEMU multifd series v2 to v3: errors of load threads had nowhere to go",
        Parts(target=_LoadErrorSwallowed),
        ("EQ-2",),
        "target's journal",
        fixed=_LOAD_FAULT,
    ),
    Bug(
        "shut-before-loaded",
        "The verdict goes out at the end of the stream, while devices are still loaded.",
        "QEMU migration/savevm.c: the load threads are joined before the return path is closed",
        Parts(target=_ShutEarly),
        ("OC-3", "RP-8"),
        "target's journal",
        kinds=("late", "stall", "slow"),
        fixed=_LOAD_FAULT,
    ),
    Bug(
        "no-shut",
        "The target that has taken the VM over says nothing.",
        "QEMU migration/savevm.c: migration_incoming_state_destroy sends SHUT on every way out",
        Parts(target=_NoShut),
        ("OC-1",),
        "both journals",
    ),
    Bug(
        "close-is-end-of-stream",
        "The target takes a main channel that is closed early for one that has ended, and runs the VM.",
        "QEMU 10.0.2: without a completeness check at the end it completes with RAM missing",
        Parts(target=_CloseIsEnd),
        ("OC-1", "RP-8"),
        "target's journal",
        kinds=("cancel", "late"),
    ),
    Bug(
        "runs-before-end",
        "The target runs the VM at the last section, before the end mark.",
        "QEMU migration/migration.c: process_incoming_migration_co starts the VM after qemu_loadvm_state",
        Parts(target=_RunsEarly),
        ("SM-10",),
        "target's journal",
    ),
    Bug(
        "stopped-one-by-one",
        "The source stops one device while another may still write to it.",
        "Linux include/uapi/linux/vfio.h: RUNNING_P2P, all devices first",
        Parts(source=_OneByOne),
        ("ST-9",),
        "source's journal",
        fixed={"vfs": 3},
    ),
    Bug(
        "started-one-by-one",
        "The target lets one device run while another cannot be written to yet.",
        "Linux include/uapi/linux/vfio.h: RUNNING_P2P, all devices first",
        Parts(target=_StartedOneByOne),
        ("ST-10",),
        "target's journal",
        fixed={"vfs": 3},
    ),
    Bug(
        "p2p-left-out",
        "The source asks a device that runs for STOP as if there were nothing between.",
        "Linux drivers/vfio/vfio_main.c: RUNNING to STOP is two arcs where there is P2P",
        Parts(source=_StraightToStop),
        ("ST-1",),
        "source's journal",
    ),
    Bug(
        "straight-to-resuming",
        "The target asks a device that runs for RESUMING as if there were nothing between.",
        "Linux drivers/vfio/vfio_main.c: RUNNING to RESUMING is three arcs",
        Parts(target=_StraightToResuming),
        ("ST-1",),
        "target's journal",
    ),
    Bug(
        "stop-through-running",
        "A device in PRE_COPY is stopped with STOP, which leads through RUNNING and ends its session.",
        "Linux drivers/vfio/vfio_main.c: PRE_COPY to STOP goes by way of RUNNING",
        Parts(source=_ThroughRunning),
        ("ST-12", "DS-15"),
        fixed=_PRECOPY,
    ),
    Bug(
        "ack-not-awaited",
        "The source switches over without the acknowledgement that it asked for.",
        "QEMU 8.1: switchover-ack, so that devices have loaded what takes long",
        Parts(source=_AckNotAwaited),
        ("SM-5",),
        "source's journal",
        kinds=("late",),
        fixed={**_PRECOPY, "switchover_ack": True},
    ),
)
