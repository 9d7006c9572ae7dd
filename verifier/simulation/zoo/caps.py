# SPDX-License-Identifier: GPL-2.0-or-later
"""Targets that count what is queued wrongly, and so hold more than the cap or less than they could."""

from __future__ import annotations

from typing import Any

from mockdev.errors import RemoteProtocolError
from mockdev.multifd.assembly import Buffer
from mockdev.multifd.budget import Budget
from mockdev.multifd.receiver import LoadJob, LoadPlan
from verifier.simulation.migration import Parts
from verifier.simulation.zoo.bug import Bug, target_with

_CONFIG_BYTES = 4326  # of a config buffer


class _OffByOne(Budget):
    def __init__(self, device: str, cap: int | None) -> None:
        super().__init__(device, None if cap is None else cap + 1)


class _AfterInsertion(Budget):
    """Looks at what is queued before the buffer, not with it."""

    def add(self, idx: int, size: int) -> int:
        cap, self.cap = self.cap, None
        if cap is not None and self.queued > cap:
            raise RemoteProtocolError(f"{self.queued} bytes queued, over the cap of {cap}")
        queued = super().add(idx, size)
        self.cap = cap
        return queued


class _None(Budget):
    def __init__(self, device: str, cap: int | None) -> None:  # noqa: ARG002
        super().__init__(device, None)


class _BackTwice(Budget):
    def remove(self, size: int) -> int:
        self.queued = max(0, self.queued - 2 * size)
        return self.queued


class _NeverBack(Budget):
    def remove(self, size: int) -> int:  # noqa: ARG002
        return self.queued


def _with(budget: type[Budget]) -> Parts:
    class _Plan(LoadPlan[Any]):
        budget_type = budget

    return target_with(_Plan)


class _BackAtOncePlan(LoadPlan[Any]):
    """Gives the bytes back when the buffer is in its place, not when the device has it."""

    def received(self, device: int, buffer: Buffer[Any]) -> int:
        queued = super().received(device, buffer)
        self._intakes[device].budget.remove(buffer.size)
        return queued

    def written(self, job: LoadJob[Any]) -> int:
        return self._intakes[job.device].budget.queued


class _SomeNotCountedPlan(LoadPlan[Any]):
    """Does not count each buffer that it keeps."""

    def counts(self, device: int, buffer: Buffer[Any]) -> bool:
        raise NotImplementedError

    def received(self, device: int, buffer: Buffer[Any]) -> int:
        if self.counts(device, buffer):
            return super().received(device, buffer)
        intake = self._intakes[device]
        intake.assembly.insert(buffer)
        self._list(device)
        return intake.budget.queued


class _AheadNotCountedPlan(_SomeNotCountedPlan):
    """Counts a buffer when it can be loaded."""

    def counts(self, device: int, buffer: Buffer[Any]) -> bool:
        return self._intakes[device].assembly.next_idx == buffer.idx

    def written(self, job: LoadJob[Any]) -> int:
        budget = self._intakes[job.device].budget
        return budget.remove(min(job.buffer.size, budget.queued))


class _ConfigNotCountedPlan(_SomeNotCountedPlan):
    def counts(self, device: int, buffer: Buffer[Any]) -> bool:  # noqa: ARG002
        return not buffer.config

    def written(self, job: LoadJob[Any]) -> int:
        return self._intakes[job.device].budget.queued if job.buffer.config else super().written(job)


_SLOW = ("few-loaders",)
_STATE_BYTES, _CHUNK_BYTES = 920, 184
_STREAM_BYTES = 24 + _STATE_BYTES + 16 * (_STATE_BYTES // _CHUNK_BYTES)
_CAPPED: dict[str, Any] = {
    "transfer": "multifd",
    "state_bytes": _STATE_BYTES,
    "chunk_bytes": _CHUNK_BYTES,
    "precopy_bytes": 0,
    "queue_cap_bytes": _CONFIG_BYTES + _STREAM_BYTES - 1,
    "faults": ("target.vf0.load:stall=20ms@0",),  # so that all is queued
}
_TIGHT = {**_CAPPED, "queue_cap_bytes": _CONFIG_BYTES + 400}
_PACED: dict[str, Any] = {
    "transfer": "multifd",
    "state_bytes": 20 * _CHUNK_BYTES,
    "chunk_bytes": _CHUNK_BYTES,
    "precopy_bytes": 0,
    "queue_cap_bytes": _CONFIG_BYTES + 600,
}
_SOURCE = "QEMU 10.1 hw/vfio/migration-multifd.c: vfio_load_state_buffer_insert"

CAPS = (
    Bug(
        "cap-off-by-one",
        "One byte more than the cap may be queued.",
        f"{_SOURCE}: the comparison is with >",
        _with(_OffByOne),
        ("BC-4",),
        "target's journal",
        kinds=_SLOW,
        fixed=_CAPPED,
    ),
    Bug(
        "cap-after-insertion",
        "The cap is held against what was queued before the buffer came.",
        f"{_SOURCE}: the size is added before it is compared",
        _with(_AfterInsertion),
        ("BC-4",),
        "target's journal",
        kinds=_SLOW,
        fixed=_CAPPED,
    ),
    Bug(
        "no-cap",
        "What a device has queued is not bounded.",
        "QEMU 10.0: the queue at the target was unbounded, 300 MiB of state took 300 MiB of memory",
        _with(_None),
        ("BC-4",),
        "target's journal",
        kinds=_SLOW,
        fixed=_CAPPED,
    ),
    Bug(
        "bytes-given-back-twice",
        "What a loaded buffer took is given back twice.",
        f"{_SOURCE}, vfio_load_bufs_thread: one takes away what the other has added",
        _with(_BackTwice),
        ("BC-4",),
        "target's journal",
        kinds=("few-loaders", "costs"),
        fixed=_PACED,
    ),
    Bug(
        "bytes-never-given-back",
        "What a loaded buffer took is not given back.",
        f"{_SOURCE}, vfio_load_bufs_thread: one takes away what the other has added",
        _with(_NeverBack),
        ("BC-7",),
        "target's journal",
        fixed={"transfer": "multifd", "queue_cap_bytes": None},
    ),
    Bug(
        "bytes-given-back-early",
        "What a buffer takes is given back when it has its place, before the device has it.",
        f"{_SOURCE}, vfio_load_bufs_thread: the buffer is freed after the write",
        target_with(_BackAtOncePlan),
        ("BC-4",),
        "target's journal",
        kinds=_SLOW,
        fixed=_TIGHT,
    ),
    Bug(
        "ahead-not-counted",
        "Buffers that came before their turn are not counted.",
        "QEMU 10.1, the cap: a sender may send idx N and after it without idx 0",
        target_with(_AheadNotCountedPlan),
        ("BC-4",),
        "target's journal",
        kinds=(*_SLOW, "late"),
        fixed={**_TIGHT, "channels": 4},
    ),
    Bug(
        "config-not-counted",
        "The config state is not counted.",
        f"{_SOURCE}: the config state is a buffer as any other",
        target_with(_ConfigNotCountedPlan),
        ("BC-4",),
        "target's journal",
        kinds=_SLOW,
        fixed=_TIGHT,
    ),
)
