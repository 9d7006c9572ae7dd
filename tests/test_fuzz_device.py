# SPDX-License-Identifier: GPL-2.0-or-later
"""A device beside a small model of what VFIO promises, through any sequence of calls."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable

from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from mockdev.device.device import Device, Precopy
from mockdev.device.faults import NO_FAULTS, ArcFault, ByteFault, Faults
from mockdev.device.files import NotYet
from mockdev.device.profile import Profile
from mockdev.device.resuming import ResumeFile
from mockdev.device.saving import Plan, SaveFile
from mockdev.device.timing import OPAQUE, UNLIMITED, Firmware
from mockdev.errors import DeviceError
from mockdev.vfio.uapi import State
from tests.test_vfio_fsm import NAMES, SAVING, shortest
from verifier.fuzz.strategies import plans, profiles

STATE = struct.pack(">300H", *range(300))  # no two places of it look alike
STATES = {name: state for state, name in NAMES.items()}
BEFORE_STOP = {"pre-copy", "pre-copy-p2p"}


class Saving:
    """A save session as its reader knows it. read: all bytes. failed: for good. whole: its end was read."""

    def __init__(self, file: SaveFile, *, records: bool) -> None:
        self.file = file
        self.records = records
        self.read = b""
        self.failed = False
        self.whole = False

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


class DeviceMachine(RuleBasedStateMachine):
    """Walks, reads, writes, questions, resets and faults in any order."""

    @initialize(
        plan=plans(len(STATE)),
        profile=st.sampled_from((UNLIMITED, OPAQUE)) | profiles(),
    )
    def make(self, plan: Plan, profile: Profile) -> None:
        self.now = 0
        self.plan = plan
        self.records = profile.records
        self.device = Device("vf0", bytearray(STATE), Firmware(profile), plan=plan)
        self.state = "running"
        self.saving: Saving | None = None
        self.resume: ResumeFile | None = None
        self.incoming = b""
        self.image = STATE
        self.old: list[SaveFile | ResumeFile] = []

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
        """The sessions of the model are over."""
        if self.saving is not None:
            self.old.append(self.saving.file)
            self.saving = None
        if self.resume is not None:
            self.old.append(self.resume)
            self.resume = None

    # -- walks ---------------------------------------------------------------------------------------

    def expect(self, target: str, faulty: str) -> tuple[int, bool]:
        """Walk the model: the errno to come, and whether the last arc opens a file."""
        ways = shortest(self.state, target, self.device.flags)
        if target == "error" or not ways:
            return errno.EINVAL, False
        opened = False
        for step in ways[0]:
            here = self.state
            if step == faulty:
                return errno.EIO, False
            leaves = here in SAVING and step not in SAVING
            if here == "resuming" or leaves:
                failed = self.saving is not None and self.saving.failed and here in BEFORE_STOP
                if here == "resuming" and self.resume is not None and self.resume.loaded_bytes:
                    self.image = bytes(self.device.memory[: self.resume.loaded_bytes])
                self.leave_file()
                if failed:  # the driver tells it to whoever leaves PRE_COPY, once
                    return errno.EIO, False
            dead = self.saving is None or self.saving.failed
            if here in BEFORE_STOP and step == "stop-copy" and dead:
                return errno.ENODEV, False
            opened = (step in SAVING and here not in SAVING) or step == "resuming"
            self.state = step
        return 0, opened

    @rule(there=st.sampled_from(sorted(STATES)), faulty=st.sampled_from(("", "", "", *sorted(STATES))))
    def walk(self, there: str, faulty: str) -> None:
        if faulty:
            self.device.faults = Faults(arcs=(ArcFault(STATES[faulty], errno.EIO),))
        expected, opens = self.expect(there, faulty)
        number, file = self.tried(lambda now: self.device.set_state(now, STATES[there]))
        self.device.faults = NO_FAULTS
        assert number == expected
        assert (file is not None) == opens
        if isinstance(file, SaveFile):
            self.saving = Saving(file, records=self.records)
        elif isinstance(file, ResumeFile):
            self.resume = file
            self.incoming = b""

    @rule()
    def reset(self) -> None:
        if self.state == "resuming" and self.resume is not None and self.resume.loaded_bytes:
            self.image = bytes(self.device.memory[: self.resume.loaded_bytes])
        self.call(self.device.reset)
        self.leave_file()
        self.state = "running"

    # -- reading -------------------------------------------------------------------------------------

    @precondition(lambda self: self.saving is not None)
    @rule(size=st.integers(1, 400), patient=st.booleans())
    def read(self, size: int, patient: bool) -> None:
        saving = self.saving
        assert saving is not None
        number, views = self.tried(lambda now: saving.file.read(now, size), patient=patient)
        if saving.failed:
            assert number == errno.ENODEV
        elif number:  # the pause: only before the stop, and nothing is lost by it
            assert number == errno.ENOMSG
            assert self.state in BEFORE_STOP
        elif isinstance(views, list) and views:
            assert not saving.whole
            data = b"".join(views)
            assert 1 <= len(data) <= size
            saving.read += data
            assert self.image.startswith(saving.payload)  # each byte once and in order
        elif views == []:
            assert self.state == "stop-copy"
            assert saving.payload == self.image
            saving.whole = True
        else:
            assert isinstance(views, NotYet)
            assert views.ready_ns > self.now

    @precondition(lambda self: self.saving is not None and not self.saving.failed and not self.saving.whole)
    @rule()
    def break_the_session(self) -> None:
        saving = self.saving
        assert saving is not None
        self.device.faults = Faults(read=ByteFault(saving.file.position, errno.EIO))
        number, _ = self.tried(lambda now: saving.file.read(now, 8))
        self.device.faults = NO_FAULTS
        # Nothing to read, before the stop or at the end: then nothing fails.
        assert number in (errno.EIO, errno.ENOMSG, 0)
        saving.failed = number == errno.EIO

    @precondition(lambda self: self.saving is not None)
    @rule()
    def ask_what_is_left(self) -> None:
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
            # Never more than what is left of the share that may go before the stop, and headers.
            left = max(0, self.plan.precopy_bytes - len(saving.payload))
            assert 0 <= answer.initial_bytes + answer.dirty_bytes <= left + 24 + 2 * 16

    # -- writing -------------------------------------------------------------------------------------

    @precondition(lambda self: self.resume is not None and not self.incoming)
    @rule(size=st.integers(1, len(STATE)))
    def load(self, size: int) -> None:
        """A whole image, of one record."""
        file = self.resume
        assert file is not None
        head = struct.pack("<QII", size, 0, 0) if self.records else b""
        self.incoming = head + STATE[::-1][:size]
        rest = memoryview(self.incoming)
        while rest:
            wrote = file.write(self.now, rest)
            rest = rest[wrote.consumed :]
            self.now = max(self.now, wrote.ready_ns)
        file.write(self.now, memoryview(b""))
        assert file.loaded_bytes == size
        assert not file.inside_record

    # -- at all times --------------------------------------------------------------------------------

    @rule(ns=st.integers(0, 2_000_000))
    def wait(self, ns: int) -> None:
        self.now += ns

    @precondition(lambda self: self.old)
    @rule(data=st.data())
    def use_an_old_file(self, data: st.DataObject) -> None:
        file = data.draw(st.sampled_from(self.old))
        number, _ = self.tried(
            lambda now: file.read(now, 5) if isinstance(file, SaveFile) else file.write(now, memoryview(b"x"))
        )
        assert number == errno.ENODEV

    @rule()
    def ask_for_the_size(self) -> None:
        assert self.call(self.device.data_size) == len(self.device.image)

    @invariant()
    def the_state_is_the_models(self) -> None:
        if hasattr(self, "device"):
            assert NAMES[self.device.state] == self.state

    @invariant()
    def never_more_than_two_chunks_ahead(self) -> None:
        saving: Saving | None = getattr(self, "saving", None)
        if saving is not None and not saving.failed:
            assert saving.file.chunks_ahead <= 2

    @invariant()
    def sessions_are_counted(self) -> None:
        if hasattr(self, "device"):
            open_ones = (self.saving is not None) + (self.resume is not None)
            assert self.device.firmware.sessions == open_ones


TestDevice = DeviceMachine.TestCase


def test_the_models_states_are_vfios() -> None:
    assert set(STATES.values()) == set(State)
