# SPDX-License-Identifier: GPL-2.0-or-later
"""The source's channel threads and save threads: they carry out what the SendPlan decides.

A save thread opens its device and waits for it; the reading itself is done by the channel thread that is
about to send what it reads. A read never waits (it gives views, or a time to come back), so nothing is
lost by that, and no buffer changes hands between threads on its way out.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from mockdev.device.files import NotYet
from mockdev.journal import Saved, Sent
from mockdev.multifd.sender import RamPacket, ReadDevice, SendPlan, SendRam, Work
from mockdev.runtime.ram import GuestRam
from mockdev.runtime.session import Session
from mockdev.runtime.slot import Slot
from mockdev.runtime.transports import Connection, PeerGoneError
from mockdev.vfio.uapi import State
from mockdev.wire import writer
from mockdev.wire.channel import MULTIFD, Course, Event


class SendPump:
    """All channels of a source. `plan` is guarded by one lock, shared by two conditions: `_work` for
    channels that wait for work, `_progress` for everyone else. uuid: of the VM. on_broken: called by a thread
    whose connection broke, before it fails: to wait for a better reason."""

    def __init__(
        self,
        session: Session,
        slots: Sequence[Slot],
        ram: GuestRam,
        connections: Sequence[Connection],
        uuid: bytes,
        on_broken: Callable[[], None],
    ) -> None:
        migration = session.migration
        self._session = session
        self._slots = slots if migration.transfer == "multifd" else ()
        self._ram = ram
        self._connections = connections
        self._uuid = uuid
        self._on_broken = on_broken
        in_flight = migration.in_flight_max or max(1, len(connections))
        names = [slot.idstr for slot in self._slots]
        self._plan = SendPlan(names, len(connections), in_flight_max=in_flight)
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._progress = threading.Condition(self._lock)
        self._idle = 0  # channels that wait for work
        self._paused: dict[int, int] = {}  # device: when it is to be asked again
        self._finished = False
        session.at_stop.append(self._wake)

    # -- the main thread -----------------------------------------------------------------------------

    def start(self) -> None:
        """Start the channel threads."""
        for number in range(len(self._connections)):
            self._session.group.start(f"channel {number}", self._channel_loop, number)

    def start_saving(self) -> None:
        """Start the save threads."""
        for device, slot in enumerate(self._slots):
            self._session.group.start(f"save {slot.idstr}", self._save_loop, device)

    def send_ram(self, packets: Sequence[RamPacket]) -> None:
        """Have these packets sent; returns when they are with the channels, or nearly."""
        for packet in packets:
            with self._lock:
                while not self._plan.queue_ram(packet):
                    self._wait(self._progress)
                self._work.notify()

    def sync(self) -> None:
        """Send a SYNC on every channel and wait until all are written."""
        with self._lock:
            self._plan.request_sync()
            self._work.notify_all()
            while not self._plan.synced:
                self._wait(self._progress)

    def join_devices(self) -> None:
        """Wait until the last buffer of every device is with a channel."""
        with self._lock:
            while not self._plan.devices_sent:
                self._wait(self._progress)

    def finish(self) -> None:
        """Let the channel threads end once they have written all they have."""
        with self._lock:
            self._finished = True
            self._work.notify_all()

    # -- threads -------------------------------------------------------------------------------------

    def _save_loop(self, device: int) -> None:
        slot = self._slots[device]
        slot.set_state(State.STOP_COPY)
        while True:
            with self._lock:
                self._plan.readable(device)
                self._work.notify()
                while device not in self._paused:
                    if self._plan.has_ended(device):
                        return
                    self._wait(self._progress)
                until_ns = self._paused.pop(device)
            self._session.sleep_until(until_ns)

    def _channel_loop(self, number: int) -> None:
        try:
            self._channel_work(number)
        except PeerGoneError:
            self._on_broken()
            raise

    def _channel_work(self, number: int) -> None:
        connection = self._connections[number]
        course = Course(MULTIFD, connection.name, local=True)
        course.take(Event.INIT)
        connection.send((writer.init_packet(number, self._uuid),))
        channel = str(number)
        done = False
        while (work := self._next(number, done)) is not None:
            done = True
            if isinstance(work, ReadDevice):
                done = self._send_buffer(number, channel, connection, course, work.device)
            elif isinstance(work, SendRam):
                self._send_ram(connection, course, work)
            else:
                course.take(Event.SYNC)
                connection.send((writer.sync_packet(work.packet_num),))
        course.take(Event.CLOSE)
        connection.finish()

    def _next(self, number: int, done: bool) -> Work | None:
        """Account for the work just written, and get the next; None: there is no more."""
        plan = self._plan
        with self._lock:
            if done:
                synced = plan.synced
                plan.written(number)
                if plan.synced is not synced:
                    self._progress.notify_all()
            while (work := plan.take(number)) is None:
                if self._finished:
                    return None
                self._idle += 1
                self._wait(self._work)
                self._idle -= 1
            if type(work) is SendRam:
                self._progress.notify_all()
            if self._idle and plan.has_work:
                self._work.notify()
            return work

    def _send_buffer(
        self, number: int, channel: str, connection: Connection, course: Course, device: int
    ) -> bool:
        """Take a device's turn; whether something was sent."""
        slot = self._slots[device]
        session = self._session
        views = slot.try_read(session.migration.buffer_bytes)
        if isinstance(views, NotYet):
            with self._lock:
                self._paused[device] = views.ready_ns
                self._plan.pause(number)
                self._progress.notify_all()
            return False
        config = not views
        payload: Sequence[bytes | memoryview] = views or (slot.config_payload(),)
        size = len(payload[0]) if len(payload) == 1 else sum(map(len, payload))
        idx = self._plan.next_idx(device)
        journal, clock = session.journal, session.clock
        # Within the turn: the journal's lines come in the order of the indices.
        journal.write(Saved(t=clock.now_ns(), device=slot.idstr, idx=idx, size=size, config=config))
        with self._lock:
            self._plan.claim(number, last=config)
            if config:
                self._progress.notify_all()
            elif self._idle and self._plan.has_work:
                self._work.notify()
        course.take(Event.DEVICE_STATE)
        head = writer.device_state_packet(slot.idstr, 0, idx, size, config=config)
        connection.send((head,), payload)
        journal.write(
            Sent(t=clock.now_ns(), device=slot.idstr, idx=idx, size=size, channel=channel, config=config)
        )
        return True

    def _send_ram(self, connection: Connection, course: Course, work: SendRam) -> None:
        course.take(Event.RAM)
        packet = work.packet
        head = writer.ram_packet(work.packet_num, packet.block, packet.normal, packet.zero)
        connection.send((head,), self._ram.send_packet(packet))

    def _wait(self, condition: threading.Condition) -> None:
        self._session.check()
        condition.wait()
        self._session.check()

    def _wake(self) -> None:
        with self._lock:
            self._work.notify_all()
            self._progress.notify_all()
