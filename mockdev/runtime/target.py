# SPDX-License-Identifier: GPL-2.0-or-later
"""The target of a migration: reads the main channel and the multifd channels, loads, and says how it went.

Source: QEMU migration/savevm.c: qemu_loadvm_state; migration/ram.c: ram_load_precopy;
migration/multifd.c: multifd_recv_thread; hw/vfio/migration.c: vfio_load_state
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from mockdev.device.timing import PROFILES
from mockdev.errors import RemoteProtocolError, VfmigError
from mockdev.journal import Verified
from mockdev.runtime.arrivals import Arrivals
from mockdev.runtime.config import EndpointConfig
from mockdev.runtime.expected import AnyMachine, Expected, expected
from mockdev.runtime.gate import SyncGate
from mockdev.runtime.inbound import MainInput
from mockdev.runtime.intake import Intake
from mockdev.runtime.ram import BLOCK, verify_own_ram
from mockdev.runtime.reader import Reader, frames
from mockdev.runtime.session import Result, Session, StoppedError
from mockdev.runtime.slot import Slot, is_free, make_slots
from mockdev.runtime.template import Recorder, Template, save
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
        config.check()
        self._buffer_bytes = socket_buffer_bytes(migration.channels, migration.socket_buffer_bytes)
        self._listener = memory or listen(migration.transport, config.address, self._buffer_bytes)
        try:
            self.session = Session(config)
        except VfmigError:
            self._listener.close()
            raise
        self._migration = migration
        self._slots: list[Slot] = []
        self._expected: Expected | None = None
        self._recorder = Recorder() if config.template else None
        self._done = False
        self._runs = False
        self._main: Reader | None = None
        self._input: MainInput | None = None

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
        self.session.phase = "verify"
        for slot in self._slots:
            slot.journal_image()
        complaint = ""
        if cause is None:
            self._verify()
            complaint = self._save_template()
        return self.session.finish(cause, runs=self._runs, complaint=complaint)

    # -- the whole -----------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make devices and RAM, all memory touched. Before the source connects, if it is to be timed."""
        if not self._slots:
            self._slots = make_slots(self.session, filled=False)
        if self._expected is None:
            self._expected = expected(self._migration)

    def _body(self) -> None:
        session = self.session
        migration = self._migration
        self.prepare()
        free = is_free(PROFILES[migration.profile])
        multifd = migration.transfer == "multifd"
        inline = free and migration.load_threads is None and not migration.load_late
        self._intake = Intake(session, self._slots if multifd else (), inline=inline)
        self._gate = SyncGate(session, migration.channels)
        assert self._expected is not None
        machine = self._expected
        self._arrivals = Arrivals(session, migration.channels, machine.uuid, self._channel)
        session.phase = "connect"
        self._main = self._arrivals.accept_all(self._listener, self._buffer_bytes)
        self._listener.close()
        session.phase = "load"
        for slot in self._slots:
            slot.set_state(State.RESUMING)
        if multifd and not inline:
            self._intake.start_loaders(min(migration.load_threads or migration.vfs, migration.vfs))
        self._input = MainInput(
            session, self._main, self._slots, machine, self._gate, self._intake, self._recorder
        )
        self._input.run()
        self._finish_load()
        session.phase = "goodbye"
        self._intake.wait_closed(_GOODBYE_S)

    def _finish_load(self) -> None:
        """All has come: start the devices, and tell the source."""
        session = self.session
        assert self._expected is not None
        missing = self._expected.missing()
        if missing:
            raise RemoteProtocolError(missing, channel="main", field="ram")
        for slot in self._slots:
            slot.device.check_state(State.RESUMING)
            slot.set_state(State.RUNNING_P2P)
        session.commit()
        for slot in self._slots:
            slot.set_state(State.RUNNING)
        self._runs = True
        session.mark("resume")
        self._done = True
        assert self._main is not None
        with suppress(PeerGoneError):  # it may have given up: that cannot change what is true here
            self._shut(self._main, 0)
        session.timed_end()

    def _say_failed(self, main: Reader) -> None:
        with suppress(VfmigError, OSError):
            self._shut(main, 1)
        main.connection.finish()

    def _shut(self, main: Reader, value: int) -> None:
        """Say how it went, to a source of ours or to one that opened a return path."""
        if self._migration.peer == "mock" or (self._input is not None and self._input.return_path):
            self.session.mark("shut", value)
            main.connection.send((writer.shut(value),))

    def _verify(self) -> None:
        """Compare everything with what it must be; outside of anything timed."""
        session = self.session
        for slot in self._slots:
            slot.verify(self._migration.seed, self._migration.state_bytes)
        machine = self._expected
        if machine is None or not machine.strict:
            return  # the RAM of a QEMU's machine follows from no seed
        wrong_at = verify_own_ram(machine.ram, self._migration.seed)
        session.journal.write(
            Verified(t=session.clock.now_ns(), device=BLOCK, equal=wrong_at is None, wrong_at=wrong_at)
        )

    def _save_template(self) -> str:
        """Write the template that was asked for; "" or why it could not be written."""
        machine = self._expected
        if self._recorder is None or not isinstance(machine, AnyMachine):
            return ""
        self.session.phase = "template"
        configs = {slot.idstr: slot.config for slot in self._slots}
        kept = Template(self._recorder.machine(machine, configs), machine.ram, machine.addresses)
        try:
            save(Path(self.session.config.template), kept)
        except VfmigError as error:
            return str(error)
        return ""

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
        number, channel = -1, ""
        intake = self._intake
        for frame in frames(reader, multifd_channel(reader.connection.name)):
            if type(frame) is DeviceStateFrame:
                course.take(Event.DEVICE_STATE, frame.offset)
                intake.receive(frame, reader, channel)
            elif type(frame) is RamFrame:
                course.take_frame(frame)
                if frame.head.flags & MultifdFlag.SYNC:
                    self._sync(frame, number)
                else:
                    self._pages(frame, reader)
            elif type(frame) is InitFrame:
                course.take(Event.INIT, frame.offset)
                number = self._arrivals.name_channel(frame, reader)
                channel = str(number)
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
        assert self._expected is not None
        block = self._expected.ram.block_of(frame, reader.connection.name)
        for run in block.runs(frame.normal):
            reader.payload(run, "RAM pages")
        block.take(frame.normal)
        for offset in frame.zero:
            block.take_zero(offset)
