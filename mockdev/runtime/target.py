# SPDX-License-Identifier: GPL-2.0-or-later
"""The target of a migration: reads the main channel and the multifd channels, loads, and says how it went.

Source: QEMU migration/savevm.c: qemu_loadvm_state; migration/ram.c: ram_load_precopy;
migration/multifd.c: multifd_recv_thread; hw/vfio/migration.c: vfio_load_state
"""

from __future__ import annotations

from contextlib import suppress

from mockdev.device.timing import PROFILES
from mockdev.errors import RemoteProtocolError, VfmigError
from mockdev.journal import Verified
from mockdev.runtime.arrivals import Arrivals
from mockdev.runtime.config import EndpointConfig
from mockdev.runtime.gate import SyncGate
from mockdev.runtime.inbound import MainInput
from mockdev.runtime.intake import Intake
from mockdev.runtime.ram import BLOCK, GuestRam
from mockdev.runtime.reader import Reader, frames
from mockdev.runtime.session import Result, Session, StoppedError
from mockdev.runtime.slot import Slot, is_free, make_slots
from mockdev.runtime.transports import AnyListener, PeerGoneError, listen, socket_buffer_bytes
from mockdev.vfio.uapi import State
from mockdev.wire import writer
from mockdev.wire.channel import MULTIFD, Event
from mockdev.wire.framer import multifd_channel
from mockdev.wire.frames import DeviceStateFrame, InitFrame, RamFrame
from mockdev.wire.structs import MultifdFlag

_GOODBYE_S = 5.0  # what the source gets to close its connections after SHUT


class Target:
    """One target. It listens from its making on, at `address`.

    memory: where the source connects, for transport "memory". VfmigError: the address cannot be had.
    """

    def __init__(self, config: EndpointConfig, memory: AnyListener | None = None) -> None:
        migration = config.migration
        migration.check()
        self._buffer_bytes = socket_buffer_bytes(migration.channels, migration.socket_buffer_bytes)
        self._listener = memory or listen(migration.transport, config.address, self._buffer_bytes)
        try:
            self.session = Session(config)
        except VfmigError:
            self._listener.close()
            raise
        self._migration = migration
        self._slots: list[Slot] = []
        self._done = False
        self._runs = False
        self._main: Reader | None = None

    @property
    def address(self) -> str:
        """What the source connects to."""
        return self._listener.address

    def run(self) -> Result:
        """Take one migration; never raises for what goes wrong in it."""
        cause = self.session.run(self._body)
        self._listener.close()
        if cause is not None and self._main is not None:
            self._say_failed(self._main)
        if cause is None:
            self._verify()
        return self.session.finish(cause, runs=self._runs)

    # -- the whole -----------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make devices and RAM, all memory touched. Before the source connects, if it is to be timed."""
        if not self._slots:
            self._slots = make_slots(self.session, filled=False)
            self._ram = GuestRam(self._migration.ram_bytes, self._migration.seed, filled=False)

    def _body(self) -> None:
        session = self.session
        migration = self._migration
        self.prepare()
        free = is_free(PROFILES[migration.profile])
        multifd = migration.transfer == "multifd"
        inline = free and migration.load_threads is None
        self._intake = Intake(session, self._slots if multifd else (), inline=inline)
        self._gate = SyncGate(session, migration.channels)
        self._arrivals = Arrivals(session, migration.channels, self._channel)
        session.phase = "connect"
        self._main = self._arrivals.accept_all(self._listener, self._buffer_bytes)
        self._listener.close()
        session.phase = "load"
        for slot in self._slots:
            slot.set_state(State.RESUMING)
        if multifd and not inline:
            self._intake.start_loaders(min(migration.load_threads or migration.vfs, migration.vfs))
        MainInput(session, self._main, self._slots, self._ram, self._gate, self._intake).run()
        self._finish_load()
        session.phase = "goodbye"
        self._intake.wait_closed(_GOODBYE_S)

    def _finish_load(self) -> None:
        """All has come: start the devices, and tell the source."""
        session = self.session
        missing = self._ram.missing()
        if missing:
            raise RemoteProtocolError(missing, channel="main", field="ram")
        for slot in self._slots:
            slot.set_state(State.RUNNING_P2P)
        session.commit()
        for slot in self._slots:
            slot.set_state(State.RUNNING)
        self._runs = True
        session.mark("resume")
        assert self._main is not None
        self._done = True
        session.mark("shut", 0)
        with suppress(PeerGoneError):  # it may have given up: that cannot change what is true here
            self._main.connection.send((writer.shut(0),))
        session.timed_end()

    def _say_failed(self, main: Reader) -> None:
        with suppress(VfmigError, OSError):
            self.session.mark("shut", 1)
            main.connection.send((writer.shut(1),))
        main.connection.finish()

    def _verify(self) -> None:
        """Compare everything with what it must be; outside of anything timed."""
        session = self.session
        session.phase = "verify"
        for slot in self._slots:
            slot.verify(self._migration.seed, self._migration.state_bytes)
        wrong_at = self._ram.verify()
        session.journal.write(
            Verified(t=session.clock.now_ns(), device=BLOCK, equal=wrong_at is None, wrong_at=wrong_at)
        )

    # -- one channel ---------------------------------------------------------------------------------

    def _channel(self, reader: Reader) -> None:
        """A multifd channel's thread, from its init packet to its end."""
        name = reader.connection.name
        try:
            self._read_channel(reader)
        except (PeerGoneError, StoppedError):
            if not self._done:
                raise
        except RemoteProtocolError as error:
            if error.channel == name:  # from before the channel had told its number
                error.channel = reader.connection.name
            raise
        self._intake.channel_ended()

    def _read_channel(self, reader: Reader) -> None:
        course = self.session.remote_course(MULTIFD, reader.connection)
        number = -1
        intake = self._intake
        for frame in frames(reader, multifd_channel(reader.connection.name)):
            if type(frame) is DeviceStateFrame:
                course.take(Event.DEVICE_STATE, frame.offset)
                intake.receive(frame, reader, str(number))
            elif type(frame) is RamFrame:
                course.take_frame(frame)
                if frame.head.flags & MultifdFlag.SYNC:
                    self._sync(frame, number)
                else:
                    self._pages(frame, reader)
            elif type(frame) is InitFrame:
                course.take(Event.INIT, frame.offset)
                number = self._arrivals.name_channel(frame, reader)
                course.name = reader.connection.name
            # a Payload step: its bytes were taken with the frame before it
        course.take(Event.CLOSE, reader.offset)
        self._gate.end(number)

    def _sync(self, frame: RamFrame, number: int) -> None:
        head = frame.head
        if head.flags != MultifdFlag.SYNC or head.normal_pages or head.zero_pages or head.next_packet_size:
            raise RemoteProtocolError(
                f"a SYNC with flags {head.flags:#x}, {head.normal_pages} and {head.zero_pages} pages, "
                f"{head.next_packet_size} bytes",
                channel=f"channel {number}",
                offset=frame.offset,
                field="flags",
            )
        self._gate.arrive(number)

    def _pages(self, frame: RamFrame, reader: Reader) -> None:
        ram = self._ram
        ram.check_packet(frame, reader.connection.name)
        for run in ram.runs(frame.normal):
            reader.payload(run, "RAM pages")
        ram.came(frame.normal)
        for offset in frame.zero:
            ram.came_zero(offset)
