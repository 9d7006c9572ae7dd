# SPDX-License-Identifier: GPL-2.0-or-later
"""A device beside a small model of what VFIO promises, through any sequence of calls."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Sequence

from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant

from mockdev.device.device import Device, Precopy
from mockdev.device.faults import NO_FAULTS, ArcFault, ByteFault, Faults
from mockdev.device.files import NotYet
from mockdev.device.profile import Profile
from mockdev.device.resuming import ResumeFile
from mockdev.device.saving import Plan, SaveFile
from mockdev.device.timing import OPAQUE, UNLIMITED, Firmware
from mockdev.errors import DeviceError
from mockdev.vfio.uapi import MigrationFlags, State
from tests.machines import Machine
from tests.test_vfio_fsm import NAMES, SAVING, shortest
from verifier.fuzz.strategies import plans, profiles

STATE = struct.pack(">300H", *range(300))  # no two places of it look alike
OTHER = STATE[::-1]
STATES = {name: state for state, name in NAMES.items()}
BEFORE_STOP = {"pre-copy", "pre-copy-p2p"}


def fine_plans(state_bytes: int) -> st.SearchStrategy[Plan]:
    """Plans with many chunks, and several images before the stop."""
    size = st.integers(20, 150)
    return st.builds(Plan, st.just(0) | st.integers(200, state_bytes - 1), size, size, size)


def arc_faults(states: Sequence[str]) -> st.SearchStrategy[ArcFault]:
    """The arc to one of these states fails: before it, after it or for good; or it takes long."""
    return st.builds(
        lambda there, how: ArcFault(
            STATES[there], errno.EIO if how != "slow" else 0, how == "after", how == "for good", 1000
        ),
        st.sampled_from([name for name in states if name != "error"]),
        st.sampled_from(("slow", "before", "after", "for good")),
    )


class Saving:
    """A save session as its reader knows it. read: all bytes. failed: for good. whole: its end was read."""

    def __init__(self, file: SaveFile, *, records: bool) -> None:
        self.file = file
        self.records = records
        self.read = b""
        self.failed = False
        self.whole = False
        self.initial: int | None = None  # bytes of the first image that were left when it was asked last
        self.asked_at = 0

    @property
    def payload(self) -> bytes:
        """The state in what was read, without the headers of records."""
        if not self.records:
            return self.read
        at, out = 0, b""
        while at + 16 <= len(self.read):
            size, _, tag = struct.unpack_from("<QII", self.read, at)
            if not tag:
                out += self.read[at + 16 : at + 16 + size]
            at += 16 + size
        return out


class DeviceMachine(Machine):
    """Walks, reads, writes, questions, resets and faults in any order, on a device with and without P2P."""

    @initialize(
        plan=plans(len(STATE)) | fine_plans(len(STATE)),
        profile=st.sampled_from((UNLIMITED, OPAQUE)) | profiles(),
        p2p=st.integers(0, 3).map(bool),
    )
    def make(self, plan: Plan, profile: Profile, p2p: bool) -> None:
        self.now = 0
        self.plan = plan
        self.records = profile.records
        flags = MigrationFlags.STOP_COPY
        flags |= MigrationFlags.P2P if p2p else MigrationFlags(0)
        flags |= MigrationFlags.PRE_COPY if plan.precopy_bytes else MigrationFlags(0)
        self.device = Device("vf0", bytearray(STATE), Firmware(profile), plan=plan, flags=flags)
        self.states = [name for name in sorted(STATES) if shortest("running", name, flags) or name == "error"]
        self.state = "running"
        self.walked: list[str] = []  # single arcs of the last walk, as they were told
        self.device.on_arc = lambda _ns, _here, there: self.walked.append(NAMES[there])
        self.saving: Saving | None = None
        self.resume: ResumeFile | None = None
        self.incoming = b""  # what was loaded in this session
        self.image = STATE
        self.old: list[SaveFile | ResumeFile] = []

    def possible(self) -> list[str]:
        steps = ["walk"] * 3
        if self.saving is not None and self.state != "error":
            steps += ["read"] * 6
            steps += ["ask_what_is_left"] * (1 + 2 * (self.state in BEFORE_STOP))
            steps += ["break_the_session"] * (not self.saving.failed and not self.saving.whole)
            steps += ["stop_it"] * 3 * (self.saving.failed and self.state in BEFORE_STOP)
            steps += ["read_to_the_end"] * (self.state == "stop-copy")
        if self.resume is not None and self.state != "error" and len(self.incoming) < len(STATE):
            steps += ["load"] * 3
        steps += ["wait"]
        steps += ["use_an_old_file"] * bool(self.old)
        return [*steps, "ask_for_the_size", "release", "reset"]

    # -- helpers -------------------------------------------------------------------------------------

    def call(self, attempt: Callable[[int], object]) -> object:
        """Make a call again until it is complete, as a caller that waits does."""
        for _ in range(50):
            answer = attempt(self.now)
            if not isinstance(answer, NotYet):
                return answer
            assert answer.ready_ns > self.now
            self.now = answer.ready_ns
        raise AssertionError("it never comes to an end")

    def tried(self, attempt: Callable[[int], object], *, patient: bool = True) -> tuple[int, object]:
        """The errno, 0 for none, and the answer; NotYet only when not patient."""
        try:
            return 0, self.call(attempt) if patient else attempt(self.now)
        except DeviceError as error:
            return error.errno, None

    def leave_file(self) -> None:
        """The sessions of the model are over; what was loaded is the state from now on."""
        if self.saving is not None:
            self.old.append(self.saving.file)
            self.saving = None
        if self.resume is not None:
            self.old.append(self.resume)
            self.resume = None
            self.image = self.incoming or self.image

    # -- walks ---------------------------------------------------------------------------------------

    def expect(self, target: str, fault: ArcFault | None) -> tuple[int, bool, list[str]]:
        """Walk the model: the errno to come, whether the last arc opens a file, and the arcs."""
        ways = shortest(self.state, target, self.device.flags)
        arcs: list[str] = []
        if target == "error" or not ways:
            return errno.EINVAL, False, arcs
        opened = False
        for step in ways[0]:
            here = self.state
            fails = fault is not None and STATES[step] is fault.to and fault.errno
            if fails and fault is not None and not fault.after:
                if fault.to_error:
                    self.state = "error"
                    arcs.append("error")
                return errno.EIO, False, arcs
            if here == "resuming" or (here in SAVING and step not in SAVING):
                failed = self.saving is not None and self.saving.failed and here in BEFORE_STOP
                self.leave_file()
                if failed:  # the driver tells it to whoever leaves PRE_COPY, once
                    return errno.EIO, False, arcs
            dead = self.saving is None or self.saving.failed
            if here in BEFORE_STOP and step == "stop-copy" and dead:
                return errno.ENODEV, False, arcs
            opened = (step in SAVING and here not in SAVING) or step == "resuming"
            self.state = step
            arcs.append(step)
            if fails:
                return errno.EIO, False, arcs
        return 0, opened, arcs

    def walk(self, data: st.DataObject) -> None:
        there = data.draw(st.sampled_from((*self.states, "stop-copy", "stop-copy", "resuming")))
        fault = data.draw(st.none() | st.none() | arc_faults(self.states))
        self.walk_to(there, fault)

    def walk_to(self, there: str, fault: ArcFault | None = None) -> None:
        self.device.faults = Faults(arcs=(fault,) if fault else ())
        expected, opens, arcs = self.expect(there, fault)
        self.walked.clear()
        number, file = self.tried(lambda now: self.device.set_state(now, STATES[there]))
        self.device.faults = NO_FAULTS
        assert number == expected
        assert self.walked == arcs
        assert (file is not None) == opens
        if isinstance(file, SaveFile):
            self.saving = Saving(file, records=self.records)
        elif isinstance(file, ResumeFile):
            self.resume = file
            self.incoming = b""

    def stop_it(self, _data: st.DataObject) -> None:
        self.walk_to("stop-copy")

    def reset(self, _data: st.DataObject) -> None:
        self.call(self.device.reset)
        self.leave_file()
        self.state = "running"

    def release(self, data: st.DataObject) -> None:
        """A data file is closed, or the device with all its files."""
        file = self.saving.file if self.saving is not None else self.resume
        if file is not None and data.draw(st.booleans()):
            self.device.release(self.now, file)
        else:
            self.device.close(self.now)
            self.state = "running"
        self.leave_file()

    # -- reading -------------------------------------------------------------------------------------

    def read(self, data: st.DataObject) -> None:
        size = data.draw(st.integers(1, 400) | st.just(len(STATE)))
        self.read_some(size, patient=data.draw(st.booleans()))

    def read_some(self, size: int, *, patient: bool) -> None:
        saving = self.saving
        assert saving is not None
        number, views = self.tried(lambda now: saving.file.read(now, size), patient=patient)
        if saving.failed:
            assert number == errno.ENODEV
        elif number == errno.EINVAL:  # where one byte is all there is, none of it can go before the stop
            assert self.plan.precopy_bytes
            assert len(self.image) == 1
            saving.failed = True
        elif number:  # the pause: only before the stop, and nothing is lost by it
            assert number == errno.ENOMSG
            assert self.state in BEFORE_STOP
        elif isinstance(views, list) and views:
            assert not saving.whole
            piece = b"".join(views)
            assert 1 <= len(piece) <= size
            saving.read += piece
            assert self.image.startswith(saving.payload)  # each byte once and in order
            if self.state in BEFORE_STOP:
                assert len(saving.payload) <= self.plan.precopy_bytes
        elif views == []:
            assert self.state == "stop-copy"
            assert saving.payload == self.image
            saving.whole = True
        else:
            assert not patient
            assert isinstance(views, NotYet)
            assert views.ready_ns > self.now

    def read_to_the_end(self, _data: st.DataObject) -> None:
        assert self.saving is not None
        for _ in range(3 * len(STATE)):
            self.read_some(len(STATE), patient=True)
            if self.saving.whole or self.saving.failed:
                return
        raise AssertionError("it has no end")

    def break_the_session(self, _data: st.DataObject) -> None:
        saving = self.saving
        assert saving is not None
        self.device.faults = Faults(read=ByteFault(saving.file.position, errno.EIO))
        number, views = self.tried(lambda now: saving.file.read(now, 8))
        self.device.faults = NO_FAULTS
        # Nothing to read, before the stop or at the end: then nothing fails.
        assert number in (errno.EIO, errno.ENOMSG, 0)
        assert number or views == []
        saving.failed = number == errno.EIO

    def ask_what_is_left(self, _data: st.DataObject) -> None:
        saving = self.saving
        assert saving is not None
        number, answer = self.tried(lambda now: self.device.precopy_info(now, saving.file))
        if self.state not in BEFORE_STOP:
            assert number == errno.EINVAL
        elif saving.failed:
            assert number == errno.ENODEV
        else:
            assert isinstance(answer, Precopy)
            assert not answer.reinit
            if saving.initial is not None:  # it goes down by what is read, and never up
                assert answer.initial_bytes == max(0, saving.initial - len(saving.read) + saving.asked_at)
            if self.state == "pre-copy" or saving.initial is not None:  # then it waits for the first image
                saving.initial, saving.asked_at = answer.initial_bytes, len(saving.read)
            # Never more than what is left of the share that may go before the stop, and headers.
            left = max(0, min(self.plan.precopy_bytes, len(self.image)) - len(saving.payload))
            assert 0 <= answer.initial_bytes + answer.dirty_bytes <= left + 24 + 2 * 16

    # -- writing -------------------------------------------------------------------------------------

    def load(self, data: st.DataObject) -> None:
        """The next piece of another image, as a record of its own, in one write or two."""
        size = data.draw(st.integers(1, len(STATE) - len(self.incoming)))
        file = self.resume
        assert file is not None
        piece = OTHER[len(self.incoming) :][:size]
        stream = (struct.pack("<QII", size, 0, 0) if self.records else b"") + piece
        # Without records each write is a LOAD: it is not cut.
        cut = data.draw(st.integers(0, len(stream))) if self.records else 0
        for begin, end in ((0, cut), (cut, len(stream))):
            rest = memoryview(stream)[begin:end]
            while rest:
                wrote = file.write(self.now, rest)
                assert wrote.consumed or wrote.ready_ns > self.now
                rest = rest[wrote.consumed :]
                self.now = max(self.now, wrote.ready_ns)
            assert file.inside_record == (0 < end < len(stream))
        file.write(self.now, memoryview(b""))
        self.incoming += piece
        assert file.loaded_bytes == len(self.incoming)

    # -- at all times, and at the end ----------------------------------------------------------------

    def wait(self, data: st.DataObject) -> None:
        self.now += data.draw(st.integers(0, 2_000_000))

    def use_an_old_file(self, data: st.DataObject) -> None:
        file = self.old[data.draw(st.integers(0, len(self.old) - 1))]
        number, _ = self.tried(
            lambda now: file.read(now, 5) if isinstance(file, SaveFile) else file.write(now, memoryview(b"x"))
        )
        assert number == errno.ENODEV

    def ask_for_the_size(self, _data: st.DataObject) -> None:
        assert self.call(self.device.data_size) == len(self.image)

    @invariant()
    def the_state_is_the_models(self) -> None:
        assert NAMES[self.device.state] == self.state

    @invariant()
    def nothing_but_a_load_changes_the_image(self) -> None:
        if self.resume is None:
            assert self.device.image == self.image

    @invariant()
    def never_more_than_two_chunks_ahead(self) -> None:
        if self.saving is not None and not self.saving.failed:
            assert self.saving.file.chunks_ahead <= 2

    @invariant()
    def sessions_are_counted(self) -> None:
        open_ones = (self.saving is not None) + (self.resume is not None)
        assert self.device.firmware.sessions == open_ones

    def finish(self) -> None:
        """Whatever was done to it: after a reset it can be saved whole, and takes another state."""
        nothing: st.DataObject = None  # type: ignore[assignment]
        self.reset(nothing)
        if self.plan.precopy_bytes and len(self.image) > 1:
            self.walk_to("pre-copy")
            for size in (10, 30, len(STATE), len(STATE)):
                self.ask_what_is_left(nothing)
                self.read_some(size, patient=True)
        self.walk_to("stop-copy")
        self.read_to_the_end(nothing)
        assert self.saving is not None
        assert self.saving.whole
        self.walk_to("running")


TestDevice = DeviceMachine.TestCase


def test_the_models_states_are_vfios() -> None:
    assert set(STATES.values()) == set(State)
