# SPDX-License-Identifier: GPL-2.0-or-later
"""One mock device: migration states, data files, reset, PCI config. Pure; the rim around it waits.

How to use it. Every call takes `now_ns`, a monotonic time that all devices of a PF share, and does one of

  - return its result: it is complete;
  - return NotYet(ready_ns): make the same call with the same arguments again at that time, not before
    (it may say NotYet once more: another device slowed this one down). What was begun goes on meanwhile;
    giving up is allowed, the next set_state or reset waits for what was begun and then acts;
  - raise DeviceError(errno): the call failed, with the number that the kernel would return.

Nothing waits and nothing is locked: calls on the devices of one Firmware (one PF of one side) must come
from one thread at a time, unless its profile costs nothing, when only the calls on one device must. A
free profile never answers NotYet.

    device.set_state(now, State)     -> SaveFile | ResumeFile | None (no new file) | NotYet
    device.get_state(now)            -> State | NotYet              (device.state looks without waiting)
    device.data_size(now)            -> bytes of the whole state | NotYet
    device.precopy_info(now, file)   -> Precopy(initial, dirty, reinit) | NotYet
    device.reset(now)                -> None | NotYet
    device.save_config()             -> bytes
    device.load_config(now, data)    -> None | NotYet               (RemoteProtocolError: wrong bytes)
    device.close(now)                ends both sessions, as closing the device does
    device.release(now, file)        as closing a data file does

    SaveFile.read(now, size_max)     -> list[memoryview] of 1 to size_max bytes | [] at the end | NotYet
                                        DeviceError(ENOMSG) at the pause of PRE_COPY
    ResumeFile.write(now, view)      -> Written(consumed, ready_ns): at ready_ns write the rest, or b"" when
                                        all was consumed; done when consumed and ready_ns <= now
    file.poll(now)                   -> POLL_ bits

`device.faults` is what goes wrong (faults.py) and may be replaced at any time, under the lock of whoever
calls; what is under way sees it too.

`device.on_arc`, when set, is called with (ns, from, to) at the end of each single arc, and at a reset or
close that changes the state: for a journal. It must not call the device.

`device.on_fault`, when set, is called with (ns) when one of `faults` has had an effect that a sound device
would not have: once, until others are given. Stalls, short reads and a PRE_COPY that goes on are none.

A file that does not block turns NotYet into EAGAIN. calls.py has the same at the level of ioctl numbers.

A device's state lies in the memory it is made with: `state_bytes` of it are saved, and a resume session
writes to it from its start and sets `state_bytes` to what was loaded. The rim owns the memory and keeps it
alive as long as the device; views that were read stay valid, and true until the next resume session.

Source: Linux drivers/vfio/pci/mlx5/main.c: mlx5vf_pci_set_device_state
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from mockdev.device.config import load_config_state, save_config_state
from mockdev.device.dirty import DirtyLog
from mockdev.device.faults import NO_FAULTS, ArcFault, Blow, Faults, Strike
from mockdev.device.files import DataFile, NotYet, Struck
from mockdev.device.lock import StateLock, Steps
from mockdev.device.saving import Plan, SaveFile, SaveState
from mockdev.device.sessions import PRECOPY_STATES, Sessions, spend
from mockdev.device.timing import Firmware
from mockdev.errors import DeviceError
from mockdev.vfio.fsm import next_step
from mockdev.vfio.pci import CX7_VF, Identity, PciFunction
from mockdev.vfio.uapi import MigrationFlags, State

T = TypeVar("T")
OnArc = Callable[[int, State, State], None]


class Precopy(NamedTuple):
    """What PRE_COPY still has: stream bytes of the first image, bytes that came since; begun anew or not."""

    initial_bytes: int
    dirty_bytes: int
    reinit: bool


class Device:
    """See the head of this file.

    memory: holds the state, written by a resume session. state_bytes: how much of it is state (default:
    all). flags: what it reports; by default PRE_COPY when the plan has a share for it; 0: no migration.
    sessions_type, dirty_type: what it saves and loads with, and what logs its writes.
    """

    sessions_type: type[Sessions] = Sessions
    dirty_type: type[DirtyLog] = DirtyLog

    def __init__(
        self,
        name: str,
        memory: bytearray | memoryview,
        firmware: Firmware,
        *,
        plan: Plan | None = None,
        state_bytes: int | None = None,
        flags: MigrationFlags | None = None,
        identity: Identity = CX7_VF,
        faults: Faults = NO_FAULTS,
    ) -> None:
        self.name = name
        self.memory = memoryview(memory).cast("B")
        self.firmware = firmware
        self.plan = plan or Plan()
        state_bytes = len(self.memory) if state_bytes is None else state_bytes
        if flags is None:
            flags = MigrationFlags.STOP_COPY | MigrationFlags.P2P
            flags |= MigrationFlags.PRE_COPY if self.plan.precopy_bytes else MigrationFlags(0)
        if not 1 <= state_bytes <= len(self.memory):
            raise ValueError(f"{name}: a state of {state_bytes} bytes in {len(self.memory)} of memory")
        if flags & MigrationFlags.PRE_COPY and (not self.plan.precopy_bytes or state_bytes < 2):
            raise ValueError(f"{name}: PRE_COPY needs a share of the state to save before the stop")
        self.flags = flags
        self.pci = PciFunction(identity)
        self.dirty = self.dirty_type()
        self.state = State.RUNNING
        self.on_arc: OnArc | None = None
        self.on_fault: Struck | None = None
        self._told = False
        self.precopy_v2 = False  # asked for with the feature of that name; until the device is closed
        self._reinit = False
        self._lock = StateLock()
        self._switched_ns: int | None = None  # when it was stopped to be saved, or first written to
        self._sessions = self.sessions_type(
            self.memory, state_bytes, self.plan, firmware, faults, self._passes, self._struck
        )
        self.dirty.on_fault = self._struck
        self.faults = faults
        firmware.functions += 1

    @property
    def faults(self) -> Faults:
        """What goes wrong with it."""
        return self._sessions.faults

    @faults.setter
    def faults(self, faults: Faults) -> None:
        self._told = False
        self._sessions.set_faults(faults)
        self.dirty.report_errno = faults.tracker or 0

    @property
    def state_bytes(self) -> int:
        """How much of the memory is state."""
        return self._sessions.state_bytes

    @property
    def image(self) -> memoryview:
        """The state: what is saved, or what has been loaded."""
        return self.memory[: self.state_bytes]

    # -- timed calls ---------------------------------------------------------------------------------

    def set_state(self, now_ns: int, target: State) -> DataFile | NotYet | None:
        """Walk to `target`, arc by arc; the data file when the last arc opened one.

        DeviceError: EINVAL (no such way), ENODEV (the save session is dead), EIO (left PRE_COPY after
        its session failed), ENOTCONN (detached), or an injected one. The device stays where the arc that
        failed began.
        """
        return self._run(now_ns, "state", target, lambda at_ns: self._walk(at_ns, target))

    def get_state(self, now_ns: int) -> State | NotYet:
        """The state, once nobody is changing it."""
        wait = self._busy(now_ns)
        return self.state if wait is None else wait

    def data_size(self, now_ns: int) -> int | NotYet:
        """Bytes that a save of the whole state takes, in any state of the device."""
        return self._run(now_ns, "size", None, self._data_size)

    def precopy_info(self, now_ns: int, file: SaveFile) -> Precopy | NotYet:
        """What PRE_COPY still has to read; begins the next increment when all else is read.

        DeviceError: EINVAL (not in PRE_COPY or PRE_COPY_P2P), ENODEV (the session is dead).
        """
        return self._run(now_ns, "precopy", file, lambda at_ns: self._precopy(at_ns, file))

    def check_state(self, expected: State) -> None:
        """DeviceError(ENODEV): it is in another state, so it was reset behind its owner's back."""
        if self.state is not expected:
            message = f"{self.name} was reset: it is in {self.state.name}, not in {expected.name}"
            raise DeviceError(errno.ENODEV, message, device=self.name)

    def reset(self, now_ns: int) -> NotYet | None:
        """Back to RUNNING with both sessions dead, after what is in progress."""
        return self._run(now_ns, "reset", None, self._reset)

    def load_config(self, now_ns: int, data: bytes | memoryview) -> NotYet | None:
        """Take over another device's PCI state. RemoteProtocolError: not for this device."""
        return self._run(now_ns, "config", None, lambda at_ns: self._load_config(at_ns, bytes(data)))

    def config_written(self, now_ns: int) -> NotYet | None:
        """Somebody who keeps the PCI state himself, as QEMU does, has given the device its part of it.

        It costs what load_config costs. DeviceError: an injected one.
        """
        return self._run(now_ns, "config", None, self._take_config)

    # -- calls that take no time ---------------------------------------------------------------------

    def save_config(self) -> bytes:
        """The device's PCI state, for load_config of a like device."""
        return save_config_state(self.pci)

    def reinitialise(self) -> None:
        """The guest began anew with the device: the next PRE_COPY question may say so."""
        self._reinit = True

    def release(self, now_ns: int, file: DataFile) -> None:
        """The last user of a data file closed it."""
        if file is self._sessions.save:
            self._sessions.end_save(now_ns)
        elif file is self._sessions.resume:
            self._sessions.end_resume(now_ns)

    def close(self, now_ns: int) -> None:
        """The last user of the device closed it: everything per opening is gone."""
        self._lock = StateLock()
        self._sessions.end_save(now_ns)
        self._sessions.end_resume(now_ns)
        self.dirty.stop()
        self.precopy_v2 = False
        self._enter(now_ns, State.RUNNING)

    # -- inside: the lock ----------------------------------------------------------------------------

    def _busy(self, now_ns: int) -> NotYet | None:
        loading = self._sessions.resume and self._sessions.resume.busy(now_ns)
        wait = loading or self._lock.busy(now_ns)
        if wait is None:  # what is under way ends first, as with a reset that finds the lock held
            self._strike_due(now_ns)
        return wait

    def _run(self, now_ns: int, kind: str, what: object, begin: Callable[[int], Steps[T]]) -> T | NotYet:
        wait = self._busy(now_ns)
        return self._lock.run(now_ns, (kind, what), begin) if wait is None else wait

    # -- inside: the arcs ----------------------------------------------------------------------------

    def _walk(self, now_ns: int, target: State) -> Steps[DataFile | None]:
        file = None
        if target is State.ERROR or self.state is State.ERROR:
            raise DeviceError(errno.EINVAL, f"{self.name}: ERROR is not asked for, and is left by reset only")
        while self.state is not target:
            there = next_step(self.state, target, self.flags)
            fault = self.faults.arc(there)
            if fault is not None:
                now_ns = yield from spend(now_ns, fault.stall_ns)
            if fault is not None and fault.errno and not fault.after:
                raise self._injected(now_ns, fault)
            now_ns = yield from self._sessions.switch(now_ns, self.state, there)
            now_ns, file = yield from self._sessions.change(now_ns, self.state, there)
            self._enter(now_ns, there)
            if fault is not None and fault.errno:
                if file is not None:
                    self.release(now_ns, file)
                raise self._injected(now_ns, fault)
        return file

    def _enter(self, now_ns: int, there: State) -> None:
        here, self.state = self.state, there
        if there in (State.RUNNING, State.RESUMING):
            self._switched_ns = None
        elif here in (State.RUNNING, State.PRE_COPY) and there is not State.PRE_COPY:
            self._switched_ns = now_ns
        if self.on_arc is not None and here is not there:
            self.on_arc(now_ns, here, there)

    def _injected(self, now_ns: int, fault: ArcFault) -> DeviceError:
        if fault.to_error:
            self._enter(now_ns, State.ERROR)
        return self._fails(now_ns, fault.errno, f"injected on the arc to {fault.to.name}")

    # -- inside: faults --------------------------------------------------------------------------------

    def _struck(self, now_ns: int) -> None:
        if self.on_fault is not None and not self._told:
            self._told = True
            self.on_fault(now_ns)

    def _fails(self, now_ns: int, number: int, message: str = "injected") -> DeviceError:
        self._struck(now_ns)
        return DeviceError(number, f"{self.name}: {message}")

    # -- inside: blows -------------------------------------------------------------------------------

    def _passes(self, now_ns: int, position: int, size: int) -> int:
        """See files.Passes."""
        if self._switched_ns is None and self.state is State.RESUMING:
            self._switched_ns = now_ns
        if not self._sessions.faults.strikes:
            return size
        if self._lock.busy(now_ns) is None and self._strike_due(now_ns):
            return 0
        for strike in self._sessions.faults.strikes:
            if strike.after_ns is None and position <= strike.offset < position + size:
                size = strike.offset - position
                if not size:
                    self._strike(now_ns, strike)
        return size

    def _strike_due(self, now_ns: int) -> bool:
        """Strike if it is time; whether it was."""
        if self._switched_ns is None:
            return False
        for strike in self.faults.strikes:
            if strike.after_ns is not None and now_ns >= self._switched_ns + strike.after_ns:
                self._switched_ns = None
                self._strike(now_ns, strike)
                return True
        return False

    def _strike(self, now_ns: int, strike: Strike) -> None:
        self._struck(now_ns)
        if self._lock.busy(now_ns) is not None:
            self._lock = StateLock()  # the call that is under way begins anew
        self._sessions.end_save(now_ns)
        self._sessions.end_resume(now_ns)
        if strike.blow is Blow.DETACH:
            self._sessions.detached = True
            self.dirty.stop()
            self.dirty.start_errno = errno.ENOTCONN
        else:
            self.pci.reset()
            self._enter(now_ns, State.RUNNING)

    # -- inside: the other timed calls ---------------------------------------------------------------

    def _data_size(self, now_ns: int) -> Steps[int]:
        self._sessions.check_attached()
        faults = self.faults
        if faults.data_size is not None:
            raise self._fails(now_ns, faults.data_size)
        now_ns = yield from spend(now_ns, self.firmware.profile.query_ns)
        if faults.data_size_says is None:
            return self.state_bytes
        self._struck(now_ns)
        return faults.data_size_says

    def _precopy(self, now_ns: int, file: SaveFile) -> Steps[Precopy]:
        if self.state not in PRECOPY_STATES:
            raise DeviceError(errno.EINVAL, f"{self.name}: no PRE_COPY in {self.state.name}")
        if self.faults.precopy is not None:
            raise self._fails(now_ns, self.faults.precopy)
        increment = 0
        if self.state is State.PRE_COPY and file is self._sessions.save:
            self._sessions.check_attached()
            now_ns = yield from self._sessions.wait_for_save(now_ns)
            now_ns = yield from spend(now_ns, self.firmware.profile.query_ns)
            increment = file.increment()
        elif file.state is SaveState.ERROR:
            raise DeviceError(errno.ENODEV, f"{self.name}: the save session has ended")
        anew = self._reinit or self.faults.precopy_reinit
        reinit = self.precopy_v2 and anew and self.state is State.PRE_COPY
        self._reinit = self._reinit and not reinit
        initial, dirty = file.sizes(now_ns, increment, exact=self.precopy_v2, reinit=reinit)
        if self.faults.precopy_endless and not initial:
            dirty = max(dirty, self.state_bytes)
        return Precopy(initial, dirty, reinit)

    def _reset(self, now_ns: int) -> Steps[None]:
        self._lock.forget("state")
        now_ns = yield from spend(now_ns, self.firmware.profile.reset_ns)
        self._sessions.end_save(now_ns)
        self._sessions.end_resume(now_ns)
        self.pci.reset()
        self._enter(now_ns, State.RUNNING)

    def _load_config(self, now_ns: int, data: bytes) -> Steps[None]:
        yield from self._take_config(now_ns)
        load_config_state(data, self.pci)

    def _take_config(self, now_ns: int) -> Steps[None]:
        if self.faults.config is not None:
            raise self._fails(now_ns, self.faults.config)
        profile = self.firmware.profile
        cost_ns = profile.config_per_function_ns * self.firmware.functions
        yield from spend(now_ns, cost_ns + self.faults.config_stall_ns)
