# SPDX-License-Identifier: GPL-2.0-or-later
"""The target's side of device state over multifd: receive, put in order, load.

Who loads: when device commands cost nothing, the thread that has just received the next buffer in order
(the buffer is still in its caches), else load threads, one per device or as many as were asked for. In
both cases a device has one loader at a time and gets its buffers in order.

Memory: received buffers come from a pool with a limit. At the limit a channel waits, which slows the source
down, as long as a load is going on or can begin, or another channel is receiving: then room will come. If
neither, every buffer waits for one that cannot come any more, and the migration fails and says which.
A buffer needs none when its place in the device's image is certain as its heads arrive, because those of all
before it have arrived: it is received there, and loading it in its turn then copies nothing. With a queue cap
the pool is at least as large as the cap allows, so the cap is met first.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import NamedTuple

from mockdev.errors import DeviceError, RemoteProtocolError
from mockdev.journal import Loaded, Received
from mockdev.multifd.assembly import Buffer
from mockdev.multifd.receiver import LoadJob, LoadPlan
from mockdev.runtime.config import MigrationConfig
from mockdev.runtime.pool import LARGE_BYTES, BufferPool
from mockdev.runtime.reader import Reader
from mockdev.runtime.session import Session
from mockdev.runtime.slot import Slot
from mockdev.vfio.mlx5_stream import RECORD_HEADER
from mockdev.wire.frames import DeviceStateFrame
from mockdev.wire.structs import (
    MULTIFD_DEVICE_STATE,
    VFIO_BUFFER_BYTES_MAX,
    VFIO_DEVICE_STATE,
    VFIO_DEVICE_STATE_CONFIG,
    VFIO_DEVICE_STATE_VERSION,
)

_READY_MAX = 8  # buffers whose pages are there from the start; more are seldom in use at once


class Held(NamedTuple):
    """Where a received payload lies: in the device's own memory, or in `pooled`, or parts of it in each."""

    parts: tuple[memoryview, ...]
    pooled: memoryview | None


class Intake:
    """All devices of a target. inline: receiving threads load; else call start_loaders.

    config_lock: held while a config is loaded, as QEMU holds its big lock: one at a time.
    """

    def __init__(self, session: Session, slots: Sequence[Slot], *, inline: bool) -> None:
        migration = session.migration
        self._session = session
        self._slots = slots
        self._inline = inline
        self._numbers = {slot.idstr.encode().ljust(256, b"\0"): number for number, slot in enumerate(slots)}
        cap = migration.queue_cap_bytes
        names = [slot.idstr for slot in slots]
        self._plan: LoadPlan[Held] = LoadPlan(names, cap, late=migration.load_late)
        ready = min(migration.channels, _READY_MAX) if slots else 0
        self._pool = BufferPool(_pool_limit(migration), ready)
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._waiting = 0  # threads that wait on _changed
        self._receiving = 0  # channels with a payload on its way
        self._open_channels = migration.channels
        self._bases: list[int] = []  # stream bytes that each device loaded before its first buffer
        self._config_lock = threading.Lock()
        session.at_stop.append(self._wake)

    # -- the main thread -----------------------------------------------------------------------------

    def start(self) -> None:
        """SWITCHOVER_START was read: loading begins."""
        with self._lock:
            self._plan.start()
            self._bases = [slot.bytes_passed for slot in self._slots]
            self._changed.notify_all()
            jobs = [self._plan.take(device) for device in range(len(self._slots) if self._inline else 0)]
        for job in jobs:
            while job is not None:
                job = self._load(job)

    def start_loaders(self, count: int) -> None:
        """Start load threads."""
        for number in range(count):
            self._session.group.start(f"load {number}", self._load_loop)

    def wait_loaded(self) -> None:
        """The stream has ended: wait until all is loaded. RemoteProtocolError: what never came."""
        with self._lock:
            if not self._plan.started:
                raise RemoteProtocolError(
                    "the stream ends without it: no device was loaded",
                    channel="main",
                    field="SWITCHOVER_START",
                )
            self._session.activity.explain = self._plan.missing
            self._waiting += 1
            self._session.wait_for(
                self._changed, self._all_loaded, lambda: "the stream has ended, and not all is loaded"
            )
            self._waiting -= 1
            if self._slots:
                self._session.mark("queued-bytes-max", self._plan.total_max)

    def wait_closed(self, seconds: float) -> None:
        """Give the source this long to close its channels, then stop waiting for it."""
        with self._lock:
            closed = self._changed.wait_for(
                lambda: not self._open_channels or self._session.stopped.is_set(), seconds
            )
        if not closed:
            self._session.group.stop()

    def _all_loaded(self) -> bool:
        if self._plan.complete:
            return True
        if not self._open_channels and not self._receiving and not self._plan.can_load:
            raise RemoteProtocolError(self._plan.missing() + "; all channels have ended", field="idx")
        return False

    # -- channel threads -----------------------------------------------------------------------------

    def channel_ended(self) -> None:
        """The source closed one more channel."""
        with self._lock:
            self._open_channels -= 1
            self._changed.notify_all()

    def receive(self, frame: DeviceStateFrame, reader: Reader, channel: str) -> None:
        """Take a device-state packet whose heads were read; its payload is next on the reader.

        RemoteProtocolError naming channel, offset and field.
        """
        try:
            device, buffer = self._receive(frame, reader)
            job = self._queue(device, buffer, channel)
        except RemoteProtocolError as error:
            raise _located(error, frame, reader.connection.name) from None
        while job is not None:
            job = self._load(job)

    def _receive(self, frame: DeviceStateFrame, reader: Reader) -> tuple[int, Buffer[Held]]:
        device = self._check(frame)
        assert frame.vfio is not None
        idx = frame.vfio.idx
        config = frame.vfio.flags == VFIO_DEVICE_STATE_CONFIG
        size = frame.payload_size
        with self._lock:
            start = self._plan.announce(device, idx, size, config=config)
            held = self._place(device, start, size, config=config)
            self._receiving += 1
        try:
            what = f"buffer {idx} of {self._slots[device].idstr}"
            if len(held.parts) > 1:
                assert start is not None
                held = self._receive_over_header(device, start, held, reader, what)
            elif size:
                reader.payload(held.parts[0], what)
        except BaseException:
            with self._lock:
                self._receiving -= 1
            raise
        return device, Buffer(idx, size, config, held)

    def _receive_over_header(self, device: int, start: int, held: Held, reader: Reader, what: str) -> Held:
        """Receive the end of a record, the header of the next one, and to where that says what follows."""
        slot = self._slots[device]
        end, rest = held.parts
        reader.part(end, what)
        header = rest[: RECORD_HEADER.size]
        reader.part(header, what)
        rest = rest[len(header) :]
        if len(header) == RECORD_HEADER.size:
            with self._lock:
                slot.foresee(header)
                landing = slot.landing(self._bases[device] + start + len(end) + len(header), len(rest))
            if landing is not None and len(landing) == len(rest):
                rest = landing
        if rest:
            reader.part(rest, what)
        parts = tuple(part for part in (end, header, rest) if part)
        reader.whole(parts)
        return Held(parts, held.pooled)

    def _queue(self, device: int, buffer: Buffer[Held], channel: str) -> LoadJob[Held] | None:
        """A whole buffer is here; what its thread is to load now, if receiving threads load."""
        with self._lock:
            self._receiving -= 1
            queued = self._plan.received(device, buffer)
            job = self._plan.take(device) if self._inline else None
            if self._waiting:
                self._changed.notify_all()
        session = self._session
        session.journal.write(
            Received(
                t=session.clock.now_ns(),
                device=self._slots[device].idstr,
                idx=buffer.idx,
                size=buffer.size,
                channel=channel,
                queued_bytes=queued,
                config=buffer.config,
            )
        )
        return job

    def _check(self, frame: DeviceStateFrame) -> int:
        """The number of the device that a packet is for."""
        head = frame.head
        name = head.idstr
        device = self._numbers.get(name)
        if device is None:  # or one with something behind the end of its name
            name = name.partition(b"\0")[0]
            device = self._numbers.get(name.ljust(256, b"\0"))
        if head.idstr[-1]:
            raise RemoteProtocolError("the name is not terminated", field="idstr")
        if device is None:
            shown = name.decode("ascii", "backslashreplace")
            raise RemoteProtocolError(f"no device {shown!r} here that takes multifd buffers", field="idstr")
        if head.instance_id:
            raise RemoteProtocolError(f"instance {head.instance_id} of a device", field="instance_id")
        if frame.vfio is None or head.next_packet_size > VFIO_BUFFER_BYTES_MAX + VFIO_DEVICE_STATE.size:
            raise RemoteProtocolError(
                f"a payload of {head.next_packet_size} bytes, not {VFIO_DEVICE_STATE.size} to "
                f"{VFIO_BUFFER_BYTES_MAX + VFIO_DEVICE_STATE.size}",
                field="next_packet_size",
            )
        if frame.vfio.version != VFIO_DEVICE_STATE_VERSION:
            raise RemoteProtocolError(f"version {frame.vfio.version} of the VFIO header", field="version")
        if frame.vfio.flags & ~VFIO_DEVICE_STATE_CONFIG:
            raise RemoteProtocolError(f"flags {frame.vfio.flags:#x} in the VFIO header", field="flags")
        return device

    def _place(self, device: int, start: int | None, size: int, *, config: bool) -> Held:
        """Where a payload is to be received. The caller holds the lock."""
        if size and not config and start is not None and self._plan.started:
            landing = self._slots[device].landing(self._bases[device] + start, size)
            if landing is not None and len(landing) == size:
                return Held((landing,), None)
            if landing is not None:
                room = self._room(size)
                return Held((landing, room[: size - len(landing)]), room)
        room = self._room(size)
        return Held((room[:size],), room)

    def _room(self, size: int) -> memoryview:
        """A buffer of the pool; waits for one while there is hope. The caller holds the lock."""
        while (memory := self._pool.take(size)) is None:
            if self._plan.started and not self._receiving and not self._plan.can_load:
                raise RemoteProtocolError(
                    f"{self._pool.used} bytes of buffers wait for others that are still behind them, and "
                    f"more are not kept: {self._plan.missing()}",
                    field="idx",
                )
            self._waiting += 1
            self._session.wait_once(self._changed, lambda: "no room for more buffers")
            self._waiting -= 1
        return memory

    # -- loading -------------------------------------------------------------------------------------

    def _load_loop(self) -> None:
        job: LoadJob[Held] | None = None
        while True:
            if job is None:
                with self._lock:
                    self._waiting += 1
                    while (job := self._plan.take()) is None and not self._plan.complete:
                        self._session.check()
                        self._changed.wait()
                    self._waiting -= 1
            if job is None:
                return
            job = self._load(job)

    def _load(self, job: LoadJob[Held]) -> LoadJob[Held] | None:
        """Give a buffer to its device, journal it and account for it; what is to be loaded next.

        Nobody else loads that device meanwhile. A receiving thread stays with its device.
        """
        slot = self._slots[job.device]
        buffer = job.buffer
        if buffer.config:
            with self._config_lock:
                slot.load_config_payload(buffer.data.parts[0])
        elif buffer.size:
            try:
                for part in buffer.data.parts:
                    slot.load(part)
            except DeviceError as error:
                error.args = (f"{error.args[0]} (buffer {buffer.idx})",)
                raise
        session = self._session
        plan = self._plan
        with self._lock:
            queued = plan.written(job)
            session.activity.last_ns = now_ns = session.clock.now_ns()
            session.journal.write(
                Loaded(
                    t=now_ns,
                    device=slot.idstr,
                    idx=buffer.idx,
                    size=buffer.size,
                    queued_bytes=queued,
                    config=buffer.config,
                )
            )
            plan.loaded(job)
            if buffer.data.pooled is not None:
                self._pool.give_back(buffer.data.pooled, buffer.size)
            if self._waiting:
                self._changed.notify_all()
            return plan.take(job.device if self._inline else None)

    def _wake(self) -> None:
        with self._lock:
            self._changed.notify_all()


def _pool_limit(migration: MigrationConfig) -> int:
    """Bytes that may be in use: what was asked for, and never less than a queue cap lets the source send."""
    cap = migration.queue_cap_bytes
    if cap is None:
        return migration.pool_bytes_max
    queued = migration.vfs * min(cap, migration.state_bytes + LARGE_BYTES)
    return max(migration.pool_bytes_max, queued + (migration.vfs + migration.channels + 1) * LARGE_BYTES)


def _located(error: RemoteProtocolError, frame: DeviceStateFrame, channel: str) -> RemoteProtocolError:
    """The same error with the channel, and the offset of the field that it names (or of the packet)."""
    if error.channel:
        return error
    offset = frame.offset
    if error.field in ("idx", "flags", "version"):
        offset += MULTIFD_DEVICE_STATE.size + VFIO_DEVICE_STATE.place(error.field).offset
    elif error.field in ("idstr", "instance_id", "next_packet_size"):
        offset += MULTIFD_DEVICE_STATE.place(error.field).offset
    return RemoteProtocolError(error.message, channel=channel, offset=offset, field=error.field)
