# SPDX-License-Identifier: GPL-2.0-or-later
"""Which buffer of which device is loaded next, by whoever asks: `LoadPlan`.

Every device's buffers are loaded strictly in the order of their index, the config buffer last, and by one
loader at a time. Loading begins with SWITCHOVER_START; what came before is kept.

Source: QEMU hw/vfio/migration-multifd.c: vfio_multifd_load_state_buffer, vfio_load_bufs_thread
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from mockdev.errors import LocalProtocolError, RemoteProtocolError
from mockdev.multifd.assembly import AHEAD_MAX, Assembly, Buffer
from mockdev.multifd.budget import Budget

B = TypeVar("B")


class LoadJob(NamedTuple, Generic[B]):
    """Load this buffer into this device (its number), then say `loaded`."""

    device: int
    buffer: Buffer[B]


class _Intake(Generic[B]):
    """One device: what has come, what is queued, and whether someone loads it now."""

    def __init__(self, name: str, assembly: Assembly[B], budget: Budget) -> None:
        self.name = name
        self.assembly = assembly
        self.budget = budget
        self.loading: Buffer[B] | None = None
        self.listed = False  # in the plan's list of devices that can go on
        self.done = False


class LoadPlan(Generic[B]):
    """The intake of several devices. devices: their idstrs; cap: queued bytes per device, or None.

    late: no device is loaded before all buffers of all devices have come, as if every load thread were late:
    nothing queues more. total, total_max: queued bytes of all devices, now and at most.
    assembly_type, budget_type: what keeps and counts one device's buffers.
    Not safe from several threads at once; its owner locks it.
    """

    assembly_type: type[Assembly[Any]] = Assembly
    budget_type: type[Budget] = Budget

    def __init__(
        self,
        devices: Sequence[str],
        cap: int | None = None,
        ahead_max: int = AHEAD_MAX,
        *,
        late: bool = False,
    ) -> None:
        self._intakes: list[_Intake[B]] = [
            _Intake(name, self.assembly_type(name, ahead_max), self.budget_type(name, cap))
            for name in devices
        ]
        self._late = late
        self.total = 0
        self.total_max = 0
        self._ready: deque[int] = deque()  # devices with a next buffer and no loader
        self._left = len(self._intakes)
        self.started = False

    def start(self) -> None:
        """SWITCHOVER_START was read. RemoteProtocolError when it was read before."""
        if self.started:
            raise RemoteProtocolError("SWITCHOVER_START came a second time", channel="main", field="command")
        self.started = True
        self._list_all()

    def announce(self, device: int, idx: int, size: int, *, config: bool) -> int | None:
        """The heads of a buffer were read, its payload comes next.

        The bytes of the device's buffers before it, or None while one of them is not announced. It may be
        received to where it will be loaded. RemoteProtocolError when such a buffer may not come.
        """
        return self._intakes[device].assembly.announce(idx, size, config=config)

    def received(self, device: int, buffer: Buffer[B]) -> int:
        """A whole buffer is here; the device's queued bytes with it.

        RemoteProtocolError: an index that may not come (see Assembly), or over the cap.
        """
        intake = self._intakes[device]
        queued = intake.budget.add(buffer.idx, buffer.size)
        intake.assembly.insert(buffer)
        self.total += buffer.size
        self.total_max = max(self.total_max, self.total)
        if not self._late:
            self._list(device)
        elif all(other.assembly.whole for other in self._intakes):
            self._late = False
            self._list_all()
        return queued

    def take(self, device: int | None = None) -> LoadJob[B] | None:
        """The next buffer to load, of `device` or of any; None when there is none (yet).

        The device has a loader from now until it was `written` and `loaded`.
        """
        if device is None:
            if not self._ready:
                return None
            device = self._ready.popleft()
        elif self._intakes[device].listed:
            self._ready.remove(device)
        else:
            return None
        intake = self._intakes[device]
        intake.listed = False
        intake.loading = intake.assembly.take()
        return LoadJob(device, intake.loading)

    def written(self, job: LoadJob[B]) -> int:
        """The device took the whole buffer; its queued bytes then. Its loader keeps it until `loaded`."""
        left = self._intakes[job.device].budget.remove(job.buffer.size)
        self.total -= job.buffer.size
        return left

    def loaded(self, job: LoadJob[B]) -> None:
        """The loader is done with a buffer that was `written`: the device's next one may be loaded."""
        intake = self._intakes[job.device]
        if intake.loading is not job.buffer:
            raise LocalProtocolError(f"{intake.name}: buffer {job.buffer.idx} was not being loaded")
        intake.loading = None
        if intake.assembly.complete:
            intake.done = True
            self._left -= 1
        self._list(job.device)

    @property
    def complete(self) -> bool:
        """Whether every device has all its buffers, the config buffer included."""
        return self._left == 0

    @property
    def can_load(self) -> bool:
        """Whether a load is going on or could begin."""
        return bool(self._ready) or any(intake.loading is not None for intake in self._intakes)

    def missing(self) -> str:
        """What never came, one sentence per device; "" when nothing is missing."""
        return "; ".join(filter(None, (intake.assembly.missing() for intake in self._intakes)))

    def reorder_max(self, device: int) -> int:
        """How far ahead of the next one a buffer of this device was when it came."""
        return self._intakes[device].assembly.reorder_max

    def queued_max(self, device: int) -> int:
        """Most bytes that this device had queued."""
        return self._intakes[device].budget.queued_max

    def _list_all(self) -> None:
        for device in range(len(self._intakes)):
            self._list(device)

    def _list(self, device: int) -> None:
        intake = self._intakes[device]
        if self._late or not self.started or intake.listed or intake.loading is not None:
            return
        if intake.assembly.ready:
            intake.listed = True
            self._ready.append(device)
