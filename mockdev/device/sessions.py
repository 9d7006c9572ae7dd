# SPDX-License-Identifier: GPL-2.0-or-later
"""What the single arcs do: halves of the device that stop or start, sessions that begin and end.

Each is a timed call's part (see lock.py): it takes the time, yields when it must wait, and returns the
time after it.

Source: Linux drivers/vfio/pci/mlx5/main.c: mlx5vf_pci_step_device_state_locked
"""

from __future__ import annotations

import errno

from mockdev.device.faults import Faults
from mockdev.device.files import DataFile, Passes, Struck
from mockdev.device.lock import Steps
from mockdev.device.resuming import ResumeFile
from mockdev.device.saving import Plan, SaveFile, SaveState
from mockdev.device.timing import Firmware
from mockdev.errors import DeviceError
from mockdev.vfio.fsm import FileKind, closes, opens
from mockdev.vfio.uapi import State

PRECOPY_STATES = (State.PRE_COPY, State.PRE_COPY_P2P)

# Which halves of the device run in a state: the one that starts transfers, the one that answers.
_RUNS = {
    State.RUNNING: (True, True),
    State.PRE_COPY: (True, True),
    State.RUNNING_P2P: (False, True),
    State.PRE_COPY_P2P: (False, True),
    State.STOP: (False, False),
    State.STOP_COPY: (False, False),
    State.RESUMING: (False, False),
}


def spend(now_ns: int, cost_ns: int) -> Steps[int]:
    """Let time pass."""
    if cost_ns:
        now_ns = yield now_ns + cost_ns
    return now_ns


class Sessions:
    """The sessions of one device, at most one of each kind, and the memory that they save or load.

    state_bytes: how much of the memory is state; a resume session sets it to what was loaded. passes: asked
    before bytes are read or written. detached: the PF is gone, commands fail with ENOTCONN.
    save_type, resume_type: the data files.
    """

    save_type: type[SaveFile] = SaveFile
    resume_type: type[ResumeFile] = ResumeFile

    def __init__(
        self,
        memory: memoryview,
        state_bytes: int,
        plan: Plan,
        firmware: Firmware,
        faults: Faults,
        passes: Passes,
        struck: Struck,
    ) -> None:
        self.memory = memory
        self.state_bytes = state_bytes
        self.plan = plan
        self.firmware = firmware
        self.faults = faults
        self.detached = False
        self.save: SaveFile | None = None
        self.resume: ResumeFile | None = None
        self._passes = passes
        self._struck = struck

    def set_faults(self, faults: Faults) -> None:
        """Use these from now on, in open sessions too."""
        self.faults = faults
        for file in (self.save, self.resume):
            if file is not None:
                file.faults = faults

    def check_attached(self) -> None:
        """Asked before a command. DeviceError(ENOTCONN): there is no PF that would carry it out."""
        if self.detached:
            raise DeviceError(errno.ENOTCONN, "the PF is detached")

    def switch(self, now_ns: int, here: State, there: State) -> Steps[int]:
        """Suspend or resume the halves of the device that run in one of the two states only."""
        profile = self.firmware.profile
        initiates, responds = _RUNS[here]
        will_initiate, will_respond = _RUNS[there]
        if (initiates, responds) != (will_initiate, will_respond):
            self.check_attached()
        if initiates > will_initiate or responds > will_respond:
            now_ns = yield from self.wait_for_save(now_ns)
        cost_ns = 0
        if initiates is not will_initiate:
            cost_ns += profile.resume_initiator_ns if will_initiate else profile.suspend_initiator_ns
        if responds is not will_respond:
            cost_ns += profile.resume_responder_ns if will_respond else profile.suspend_responder_ns
        return (yield from spend(now_ns, cost_ns))

    def change(self, now_ns: int, here: State, there: State) -> Steps[tuple[int, DataFile | None]]:
        """End, begin or carry on the session as the arc demands; with the new file, if there is one."""
        ends = closes(here, there)
        if ends is FileKind.RESUME:
            self.end_resume(now_ns)
        elif ends is FileKind.SAVE:
            now_ns = yield from self._leave_saving(now_ns, here)
        begins = opens(here, there)
        if begins is not None or there is State.STOP_COPY:
            self.check_attached()
        if begins is FileKind.RESUME:
            return now_ns, self._open_resume(now_ns)
        if begins is FileKind.SAVE:
            now_ns = yield from spend(now_ns, self.firmware.profile.query_ns)
            return now_ns, self._open_save(now_ns, track=there is not State.STOP_COPY)
        if there is State.STOP_COPY:
            now_ns = yield from self._stop_saving(now_ns)
        return now_ns, None

    def wait_for_save(self, now_ns: int) -> Steps[int]:
        """Let the running SAVE end."""
        while self.save is not None and (wait := self.save.busy(now_ns)) is not None:
            now_ns = yield wait.ready_ns
        return now_ns

    def end_save(self, now_ns: int) -> None:
        """Kill the save session, if there is one."""
        if self.save is not None:
            self.save.kill(now_ns)
            self.save = None
            self.firmware.leave(now_ns)

    def end_resume(self, now_ns: int) -> None:
        """Kill the resume session, if there is one; whether the state is whole is not looked at."""
        if self.resume is not None:
            self.resume.kill(now_ns)
            if self.resume.loaded_bytes:
                self.state_bytes = self.resume.loaded_bytes
            self.resume = None
            self.firmware.leave(now_ns)

    def _stop_saving(self, now_ns: int) -> Steps[int]:
        file = self.save
        if file is None:
            raise DeviceError(errno.ENODEV, "the save session is gone")
        now_ns = yield from self.wait_for_save(now_ns)
        now_ns = yield from spend(now_ns, self.firmware.profile.query_ns)
        file.stop(now_ns)
        return now_ns

    def _leave_saving(self, now_ns: int, here: State) -> Steps[int]:
        """Leaving PRE_COPY also tells the firmware; or the caller, when the session had failed."""
        failed = self.save is not None and self.save.state is SaveState.ERROR
        if here in PRECOPY_STATES and not failed:
            now_ns = yield from self.wait_for_save(now_ns)
            profile = self.firmware.profile
            now_ns = yield from spend(now_ns, profile.query_ns + profile.save_ns(0))
        self.end_save(now_ns)
        if here in PRECOPY_STATES and failed:
            raise DeviceError(errno.EIO, "the save session had failed")
        return now_ns

    def _open_save(self, now_ns: int, *, track: bool) -> SaveFile:
        self.save = self.save_type(
            self.memory[: self.state_bytes],
            self.plan,
            self.firmware,
            self.faults,
            self._passes,
            self._struck,
        )
        self.firmware.enter(now_ns)
        self.save.open(now_ns, track=track)
        return self.save

    def _open_resume(self, now_ns: int) -> ResumeFile:
        self.resume = self.resume_type(self.memory, self.firmware, self.faults, self._passes, self._struck)
        self.firmware.enter(now_ns)
        return self.resume
