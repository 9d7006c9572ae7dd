# SPDX-License-Identifier: GPL-2.0-or-later
"""Sources that number buffers or packets wrongly, or tell the target the wrong end of a state."""

from __future__ import annotations

from collections import Counter
from typing import Any

from mockdev.device.files import NotYet
from mockdev.journal import Saved
from mockdev.multifd.sender import ReadDevice, SendPlan, SendRam, SendSync, Work
from verifier.simulation.migration import Parts
from verifier.simulation.slot import Result, Slot
from verifier.simulation.source import Source
from verifier.simulation.zoo.bug import Bug, source_with

_MULTIFD = {"transfer": "multifd"}


class _SkippingPlan(SendPlan):
    def next_idx(self, device: int) -> int:
        idx = super().next_idx(device)
        return idx + (idx > 0)


class _DoublingPlan(SendPlan):
    def next_idx(self, device: int) -> int:
        return max(0, super().next_idx(device) - 1)


class _FromOnePlan(SendPlan):
    def next_idx(self, device: int) -> int:
        return super().next_idx(device) + 1


class _WrappingPlan(SendPlan):
    def next_idx(self, device: int) -> int:
        return super().next_idx(device) % 4


class _SharedPlan(SendPlan):
    def next_idx(self, device: int) -> int:  # noqa: ARG002
        return sum(self._next_idx)


class _LastTwicePlan(SendPlan):
    """A device has ended when its last buffer was claimed for the second time."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.lasts: Counter[int] = Counter()

    def claim(self, channel: int, *, last: bool = False) -> int:
        work = self._work[channel]
        assert isinstance(work, ReadDevice)
        self.lasts[work.device] += last
        return super().claim(channel, last=self.ends(work.device, last=last))

    def ends(self, device: int, *, last: bool) -> bool:
        return last and self.lasts[device] == 2


class _OvertakenPlan(_LastTwicePlan):
    def ends(self, device: int, *, last: bool) -> bool:
        return not last and self.lasts[device] == 1


class _ConfigEarly(Source):
    """Reads one buffer ahead, and takes the end that it then finds for its turn."""

    plan_type = _OvertakenPlan

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.held: dict[str, list[memoryview]] = {}
        self.at_end: set[str] = set()

    def read_buffer(self, slot: Slot) -> list[memoryview] | NotYet:
        while slot.name not in self.at_end:
            views = super().read_buffer(slot)
            if isinstance(views, NotYet):
                return views
            if not views:
                self.at_end.add(slot.name)
                return []
            before = self.held.get(slot.name)
            self.held[slot.name] = views
            if before is not None:
                return before
        return self.held[slot.name]


class _FlaglessConfig(Source):
    def buffer_head(self, slot: Slot, idx: int, size: int, *, config: bool) -> bytes:  # noqa: ARG002
        return super().buffer_head(slot, idx, size, config=False)


class _LateNumberPlan(SendPlan):
    """The turn ends before the number is taken."""

    def claim(self, channel: int, *, last: bool = False) -> int:
        device = self._end_turn(channel)
        if last:
            self._ended[device] = True
        else:
            self._ready.append(device)
        return -1

    def number(self, device: int) -> int:
        idx = self._next_idx[device]
        self._next_idx[device] = idx + 1
        return idx


class _LateNumber(Source):
    plan_type = _LateNumberPlan

    def claim(self, number: int, device: int, size: int, *, config: bool) -> Result[int]:
        plan = self.plan
        assert isinstance(plan, _LateNumberPlan)
        plan.claim(number, last=config)
        self.work.give()
        self.progress.give()
        yield None
        idx = plan.number(device)
        self.say(
            Saved(t=self.world.now_ns, device=self.slots[device].name, idx=idx, size=size, config=config)
        )
        return idx


class _ShortDropped(Source):
    def read_buffer(self, slot: Slot) -> list[memoryview] | NotYet:
        views = super().read_buffer(slot)
        if isinstance(views, list) and sum(map(len, views)) < self.config.buffer_bytes:
            return []
        return views


class _ShortIsEnd(Source):
    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.short: set[str] = set()

    def read_buffer(self, slot: Slot) -> list[memoryview] | NotYet:
        if slot.name in self.short:
            return []
        views = super().read_buffer(slot)
        if isinstance(views, list) and sum(map(len, views)) < self.config.buffer_bytes:
            self.short.add(slot.name)
        return views


class _WaitIsEnd(Source):
    def read_buffer(self, slot: Slot) -> list[memoryview] | NotYet:
        views = super().read_buffer(slot)
        return [] if isinstance(views, NotYet) else views


class _PerChannelPlan(SendPlan):
    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.sent: Counter[int] = Counter()

    def take(self, channel: int) -> Work | None:
        work = super().take(channel)
        if not isinstance(work, SendRam | SendSync):
            return work
        self.sent[channel] += 1
        return work._replace(packet_num=self.sent[channel] - 1)


class _FallingPlan(SendPlan):
    def take(self, channel: int) -> Work | None:
        work = super().take(channel)
        if not isinstance(work, SendRam | SendSync):
            return work
        return work._replace(packet_num=(1 << 32) - 1 - work.packet_num)


NUMBERS = (
    Bug(
        "index-skipped",
        "The source leaves out the index after a device's first buffer.",
        "QEMU hw/vfio/migration-multifd.c: an index is claimed, then its buffer is dropped on an error path",
        source_with(_SkippingPlan),
        ("DS-17",),
        "source's journal",
        fixed=_MULTIFD,
    ),
    Bug(
        "index-doubled",
        "The source gives a device's first two buffers the same index.",
        "QEMU hw/vfio/migration-multifd.c: a counter that is not atomic, as the bytes counter before v3",
        source_with(_DoublingPlan),
        ("DS-5",),
        fixed=_MULTIFD,
    ),
    Bug(
        "index-from-one",
        "The source numbers buffers from 1.",
        "QEMU hw/vfio/migration-multifd.c: idx starts at 0 by a cleared allocation only",
        source_with(_FromOnePlan),
        ("DS-17",),
        "source's journal",
        fixed=_MULTIFD,
    ),
    Bug(
        "index-reused-after-wrap",
        "The index has two bits, and is used again when they wrap.",
        "QEMU hw/vfio/migration-multifd.c: idx is 32 bits wide",
        source_with(_WrappingPlan),
        ("DS-5",),
        fixed=_MULTIFD,
    ),
    Bug(
        "index-shared",
        "All devices draw their indexes from one counter.",
        "QEMU hw/vfio/migration-multifd.c: idx belongs to one device's thread",
        source_with(_SharedPlan),
        ("DS-17",),
        "source's journal",
        fixed={"transfer": "multifd", "vfs": 3},
    ),
    Bug(
        "index-late",
        "The device is given up to the next reader before the buffer has its index.",
        "QEMU hw/vfio/migration-multifd.c: idx and data belong to one pass of the save thread's loop",
        Parts(source=_LateNumber),
        ("DS-15",),
        fixed={"transfer": "multifd", "channels": 4},
    ),
    Bug(
        "config-twice",
        "The source sends each device's config state a second time.",
        "QEMU multifd series v2 to v3: the config file was leaked on an error, and the step begun anew",
        source_with(_LastTwicePlan),
        ("DS-6",),
        fixed=_MULTIFD,
    ),
    Bug(
        "config-before-last-buffer",
        "The config state overtakes the last data buffer: data comes after the end.",
        "QEMU hw/vfio/migration-multifd.c: ..._thread_config_state runs after the loop",
        Parts(source=_ConfigEarly),
        ("DS-6",),
        fixed=_MULTIFD,
    ),
    Bug(
        "config-without-flag",
        "The config state is sent as if it were data.",
        "QEMU hw/vfio/migration-multifd.c: VFIO_DEVICE_STATE_CONFIG_STATE",
        Parts(source=_FlaglessConfig),
        ("DS-15",),
        fixed=_MULTIFD,
    ),
    Bug(
        "short-buffer-dropped",
        "A buffer that is shorter than the others is not sent.",
        "hisi_acc be12ad45e15b: reads and writes that split the state otherwise than expected lost data",
        Parts(source=_ShortDropped),
        ("DS-15",),
        fixed=_MULTIFD,
    ),
    Bug(
        "short-read-is-end",
        "A short read is taken as the end of the state.",
        "Linux drivers/vfio/pci/mlx5/main.c: only a read of 0 bytes is the end",
        Parts(source=_ShortIsEnd),
        ("DS-15",),
        fixed=_MULTIFD,
    ),
    Bug(
        "wait-is-end",
        "A device that has nothing ready yet is taken to have nothing more.",
        "mlx5 series of 2026: a read said ENOMSG though data was on its way",
        Parts(source=_WaitIsEnd),
        ("DS-15",),
        kinds=("costs",),
        fixed=_MULTIFD,
    ),
    Bug(
        "packet-number-per-channel",
        "Each channel numbers its RAM and SYNC packets by itself.",
        "QEMU migration/multifd.c: packet_num is the migration's",
        source_with(_PerChannelPlan),
        ("MP-12",),
        fixed={"channels": 3},
    ),
    Bug(
        "packet-number-falls",
        "Packet numbers fall.",
        "QEMU migration/multifd.c: packet_num rises",
        source_with(_FallingPlan),
        ("MP-16",),
    ),
)
