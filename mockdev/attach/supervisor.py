# SPDX-License-Identifier: GPL-2.0-or-later
"""Lends mock devices to one unmodified QEMU: starts it, answers its calls, ends with it.

One thread does all: it waits for the next call, for the time at which a waiting one can go on, for a
request on the control socket and for QEMU's end. So devices that share a firmware need no lock, and the
order of what happens is the order of the journal. QEMU does not outlive this process, whatever ends it.

Run as `python -m mockdev.attach.supervisor` it reads an AttachConfig as a line of JSON, and prints lines
of JSON: {"event": "started", "pid": n}, {"event": "result", "status": n, "error": ""}.
"""

from __future__ import annotations

import ctypes
import errno
import heapq
import json
import os
import select
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import msgspec

from mockdev.attach.config import AttachConfig
from mockdev.attach.control import Control
from mockdev.attach.filter import KVM_DEVICE_ATTR, KVM_SET_DEVICE_ATTR, calls
from mockdev.attach.iommu import IommuFd
from mockdev.attach.launcher import Child, base_fd, launch, placeholder
from mockdev.attach.legacy import PATH_BYTES_MAX, Fds, Legacy, make_sysfs
from mockdev.attach.lent import Answer, LentDevice
from mockdev.attach.mappings import Mappings
from mockdev.attach.memory import ProcessMemory
from mockdev.attach.notify import Call, GoneError, Listener
from mockdev.clock import Clock, cpu_ns
from mockdev.device.device import Device
from mockdev.device.faults import device_faults, with_fault
from mockdev.device.image import Pattern
from mockdev.device.saving import Plan
from mockdev.device.timing import PROFILES, Firmware
from mockdev.errors import DeviceError, VfmigError
from mockdev.faultspec import FaultSpec, parse
from mockdev.journal import Begin, End, Failure, Journal, JournalError, Unanswered
from mockdev.memory import reserve, touch

_FDS_PER_DEVICE = 3  # its own, and two data files in turn
_WAIT_S = 60.0  # nothing depends on it: every event wakes the wait
_PASSED_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_KVM_VFIO_FILE = 1  # struct kvm_device_attr's group KVM_DEV_VFIO_FILE
_PR_SET_PDEATHSIG = 1
_PAGE = 4096
_FILL_BYTES = 1 << 20  # made at once: longer, and a call would wait for it
EXIT_BEGIN = 4


class _Waiting(NamedTuple):
    """A call that goes on at ready_ns. order: tells equal times apart."""

    ready_ns: int
    order: int
    call: Call
    answer: Answer


class Supervisor:
    """One QEMU with its devices: make it, then `run`."""

    def __init__(self, config: AttachConfig) -> None:
        config.check()
        self.config = config
        self.clock = Clock(config.clock_offset_ns)
        self.mappings = Mappings()
        self.iommu = IommuFd(self.mappings)
        self.legacy: Legacy | None = None
        self.devices: list[LentDevice] = []
        self.child: Child | None = None
        self.calls = 0  # answered so far
        self.unanswered = 0  # ioctls on what is no device that nobody knows
        self._numbers = calls()
        self._heap: list[_Waiting] = []
        self._order = 0
        self._by_fd: dict[int, LentDevice] = {}
        self._status: int | None = None
        self._memories: list[memoryview] = []
        self._filled = threading.Event()

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        assert self.child is not None
        return self.child.pid

    def device_fd(self, index: int) -> int:
        """The descriptor of device `index` in QEMU."""
        assert self.child is not None
        return self.child.first_fd + 1 + index

    def run(self, on_started: Callable[[int], None] = lambda _pid: None) -> int:
        """Start QEMU and answer until it has ended; its exit status, 128 + the signal that killed it.

        on_started: called with its pid once its program runs. AttachError: this machine cannot do it, or
        QEMU cannot be run. Before this there may be no other thread, for the child is forked.
        """
        config = self.config
        with ExitStack() as stack:
            log = None
            if config.log is not None:
                log = os.open(config.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
                stack.callback(os.close, log)
            self.journal = _journal(config.journal)
            stack.callback(self.journal.close)
            folder = None
            if config.route == "legacy":
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vfmig-sysfs-")))
            self.child = child = self._launch(log, folder)
            stack.callback(self._end_child)
            listener = Listener(child.listener)
            stack.callback(listener.close)
            self.journal.write(
                Begin(t=self.clock.now_ns(), role=config.role, config=msgspec.to_builtins(config))
            )
            self._make_devices()
            control = stack.enter_context(Control(config.control, self._asked)) if config.control else None
            stack.enter_context(_Signals(child.pid, self.config))
            child.start()
            filling = threading.Thread(target=self._fill, name="fill", daemon=True)
            filling.start()
            on_started(child.pid)
            try:
                self._serve(listener, control)
                status = self._wait_child()
            except BaseException as error:
                self.journal.write(Failure(t=self.clock.now_ns(), message=f"{type(error).__name__}: {error}"))
                raise
            self._finish(status)
            return status

    # -- the loop ------------------------------------------------------------------------------------

    def _serve(self, listener: Listener, control: Control | None) -> None:
        """Answer calls until there is nobody left who could make one."""
        pidfd = os.pidfd_open(self.pid)
        try:
            while True:
                sockets = control.sockets if control is not None else []
                readable, _, _ = select.select([listener.fd, pidfd, *sockets], [], [], self._timeout_s())
                self._go_on(listener)
                if listener.fd in readable:
                    call = listener.receive()
                    if call is not None:
                        self._begin(listener, call)
                for ready in readable[:]:
                    if control is not None and ready not in (listener.fd, pidfd):
                        control.hear(ready)
                if pidfd in readable and listener.fd not in readable:
                    return
        except GoneError:
            return
        finally:
            os.close(pidfd)

    def _timeout_s(self) -> float:
        if not self._heap:
            return _WAIT_S
        return max(0.0, (self._heap[0].ready_ns - self.clock.now_ns()) / 1e9)

    def _go_on(self, listener: Listener) -> None:
        """Resume the calls whose time has come."""
        while self._heap and self._heap[0].ready_ns <= self.clock.now_ns():
            waiting = heapq.heappop(self._heap)
            self._resume(listener, waiting.call, waiting.answer)

    def _begin(self, listener: Listener, call: Call) -> None:
        self.calls += 1
        try:
            answer = self._answer(listener, call)
        except DeviceError as error:
            answer = -error.errno
        except GoneError:
            return
        if isinstance(answer, int):
            _send(listener, call, answer)
        elif answer is None:
            with suppress(GoneError):
                listener.pass_on(call)
        else:
            self._resume(listener, call, answer)

    def _resume(self, listener: Listener, call: Call, answer: Answer) -> None:
        try:
            ready_ns = next(answer)
        except StopIteration as stop:
            _send(listener, call, stop.value)
        except DeviceError as error:
            _send(listener, call, -error.errno)
        except GoneError:
            pass
        else:
            self._order += 1
            heapq.heappush(self._heap, _Waiting(ready_ns, self._order, call, answer))

    # -- which call means what -----------------------------------------------------------------------

    def _answer(self, listener: Listener, call: Call) -> int | Answer | None:
        """What a call is answered with; None: the kernel is to do it."""
        numbers, fd = self._numbers, call.fd
        memory = ProcessMemory(call.pid)
        assert self.child is not None
        if call.number == numbers.openat:
            return self._open(listener, call, memory)
        if call.number == numbers.ioctl and not self._is_ours(fd):
            return self._kvm(call, memory)
        if call.number == numbers.close:
            self._close(fd, call.pid)
            return 0  # the placeholder stays, so that the number can be given out again
        if self.legacy is not None and self.legacy.holds(fd):
            return self._asked_of("the container or a group", call, memory)
        if fd == self.child.first_fd:
            return self._asked_of("iommufd", call, memory)
        device = self._by_fd.get(fd)
        if device is None:
            raise DeviceError(errno.EBADF, f"descriptor {fd} was not given out")
        address, size, offset = call.args[1], call.args[2], call.args[3]
        if device.holds(fd):
            if call.number == numbers.read:
                return device.read(fd, address, size, memory)
            if call.number == numbers.write:
                return device.write(fd, address, size, memory)
            if call.number == numbers.ioctl:
                return device.file_ioctl(fd, address & 0xFFFFFFFF, call.args[2], memory)
            raise DeviceError(errno.ESPIPE, "a data file has no offsets")
        if fd >= self.device_fd(len(self.devices)):
            raise DeviceError(errno.EBADF, f"the data file {fd} was closed")
        if call.number == numbers.ioctl:
            request = address & 0xFFFFFFFF
            return device.ioctl(request, call.args[2], memory, self._putter(listener, call, device))
        if call.number == numbers.pread64:
            return device.pread(address, size, offset, memory)
        if call.number == numbers.pwrite64:
            return device.pwrite(address, size, offset, memory)
        raise DeviceError(errno.EINVAL, "a device has offsets")

    def _is_ours(self, fd: int) -> bool:
        assert self.child is not None
        return 0 <= fd - self.child.first_fd < self._fd_count

    def _asked_of(self, what: str, call: Call, memory: ProcessMemory) -> int:
        """An ioctl on the iommufd, or on the container or a group."""
        if call.number != self._numbers.ioctl:
            raise DeviceError(errno.EINVAL, "it is asked by ioctl only")
        request, argument = call.args[1] & 0xFFFFFFFF, call.args[2]
        try:
            if self.legacy is not None:
                return self.legacy.ioctl(call.fd, request, argument, memory)
            return self.iommu.ioctl(request, argument, memory)
        except DeviceError as error:
            if error.errno == errno.ENOTTY:
                self.unanswered += 1
                self.journal.write(Unanswered(t=self.clock.now_ns(), on=what, request=request))
            raise

    def _open(self, listener: Listener, call: Call, memory: ProcessMemory) -> int | None:
        """A file is opened: one of ours, or the kernel's business."""
        address = call.args[1]
        size = min(PATH_BYTES_MAX, _PAGE - address % _PAGE)
        assert self.legacy is not None
        try:
            fd = self.legacy.path(memory.read(address, size))
        except DeviceError:  # a path that is not there: EFAULT, but by the kernel
            return None
        if fd is None:
            return None
        self._give(listener, call, fd)
        return fd

    def _kvm(self, call: Call, memory: ProcessMemory) -> int | None:
        """KVM is told of a VFIO file. Of ours it must not hear: it would look into it and refuse."""
        if call.args[1] & 0xFFFFFFFF != KVM_SET_DEVICE_ATTR:
            return None
        attribute = KVM_DEVICE_ATTR.unpack(memory.read(call.args[2], KVM_DEVICE_ATTR.size))
        if attribute.group != _KVM_VFIO_FILE:
            return None
        fd = int.from_bytes(memory.read(attribute.addr, 4), "little")
        return 0 if self._is_ours(fd) else None

    def _close(self, fd: int, thread: int) -> None:
        device = self._by_fd.get(fd)
        if device is None or _process_of(thread) != self.pid:  # a helper that QEMU forked
            return
        if device.holds(fd):
            device.file_closed(fd)
        elif device.opened:
            device.closed()

    def _putter(self, listener: Listener, call: Call, device: LentDevice) -> Callable[[int], None]:
        def put(fd: int) -> None:
            self._give(listener, call, fd)
            self._by_fd[fd] = device

        return put

    def _give(self, listener: Listener, call: Call, fd: int) -> None:
        """Make this number a new file of the caller's. DeviceError: EMFILE and its like."""
        try:
            with placeholder() as inert:
                listener.give_fd(call, inert.fileno(), fd)
        except OSError as error:
            raise DeviceError(error.errno or errno.EIO, f"no file for descriptor {fd}") from None

    # -- what the control socket asks ----------------------------------------------------------------

    def _asked(self, request: dict[str, Any]) -> dict[str, Any]:
        what = request["ask"]
        if what == "status":
            return self.status()
        if what == "verify":
            config = self.config
            equal = [device.verify(config.seed, config.state_bytes) for device in self.devices]
            return {"equal": all(equal)}
        if what == "fault":
            return self._inject(parse(request["spec"], self.config.role))
        if what == "dma":
            device = self.devices[request["device"]]
            device.dma(request["iova"], bytes.fromhex(request["hex"]), ProcessMemory(self.pid))
            return {}
        raise VfmigError(f"nothing to ask: {what!r}; there are status, fault, dma and verify")

    def _inject(self, spec: FaultSpec) -> dict[str, Any]:
        """Let a device go wrong from now on."""
        if not spec.place.startswith("vfN") or spec.role != self.config.role:
            raise VfmigError(f"{spec}: here only the devices of this {self.config.role} can go wrong")
        if spec.number is None or spec.number >= len(self.devices):
            raise VfmigError(f"{spec}: there are devices 0 to {len(self.devices) - 1}")
        device = self.devices[spec.number].device
        device.faults = with_fault(device.faults, spec)
        return {}

    def status(self) -> dict[str, Any]:
        """What each device is in and has done."""
        devices = [
            {
                "name": device.name,
                "fd": self.device_fd(index),
                "plugged": device.opened,
                "state": device.device.state.name,
                "state_bytes": device.device.state_bytes,
                "read_bytes": device.read_bytes,
                "written_bytes": device.written_bytes,
            }
            for index, device in enumerate(self.devices)
        ]
        return {
            "role": self.config.role,
            "pid": self.pid,
            "calls": self.calls,
            "unanswered": self.unanswered + sum(device.unanswered for device in self.devices),
            "complaint": self.journal.lost,
            "devices": devices,
        }

    # -- making and ending ---------------------------------------------------------------------------

    def _launch(self, log: int | None, folder: Path | None) -> Child:
        """folder: where sysfs is to be played, with groups; else None."""
        devices = len(self.config.names)
        first = base_fd(self._fd_count)
        words = {"{iommufd}": str(first)}
        words |= {f"{{vf{n}}}": str(first + 1 + n) for n in range(devices)}
        if folder is not None:
            words |= {f"{{sysfs{n}}}": str(path) for n, path in enumerate(make_sysfs(folder, devices))}
            own = range(first + 1, first + 1 + devices)
            groups = range(first + self._fd_count - devices, first + self._fd_count)
            fds = Fds(first, tuple(groups), tuple(own))
            self.legacy = Legacy(fds, self.mappings, lambda number: self.devices[number].bound())
        command = [_filled(word, words) for word in self.config.command]
        return launch(command, first, self._fd_count, log, opens=folder is not None)

    @property
    def _fd_count(self) -> int:
        """Descriptors that are reserved: iommufd or container, per device some, with groups one more each."""
        per_device = _FDS_PER_DEVICE + (self.config.route == "legacy")
        return 1 + per_device * len(self.config.names)

    def _make_devices(self) -> None:
        config = self.config
        firmware = Firmware(PROFILES[config.profile])
        plan = Plan(precopy_bytes=config.precopy_bytes, chunk_bytes=config.chunk_bytes)
        specs = [parse(text, config.role) for text in config.faults]
        assert self.child is not None
        first_data = self.child.first_fd + 1 + len(config.names)
        for index, name in enumerate(config.names):
            memory = reserve(config.state_bytes)
            self._memories.append(memory)
            faults = device_faults(specs, config.role, index)
            device = Device(name, memory, firmware, plan=plan, faults=faults)
            data_fds = (first_data + 2 * index, first_data + 2 * index + 1)
            lent = LentDevice(device, index + 1, self.mappings, self.journal, self.clock, data_fds)
            lent.prepared = self._filled.is_set
            self.devices.append(lent)
            self._by_fd[self.device_fd(index)] = lent

    def _fill(self) -> None:
        """Make the devices' state. QEMU starts meanwhile, and waits only if it is to be saved or loaded."""
        config = self.config
        for name, memory in zip(config.names, self._memories, strict=True):
            pattern = Pattern(config.seed, name) if config.filled else None
            for at in range(0, len(memory), _FILL_BYTES):
                if self._status is not None:  # QEMU has ended
                    return
                piece = memory[at : at + _FILL_BYTES]
                touch(piece)
                if pattern is not None:
                    pattern.fill(piece, at)
        self._filled.set()

    def _wait_child(self) -> int:
        if self._status is None:
            self._status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._status if self._status >= 0 else 128 - self._status

    def _end_child(self) -> None:
        if self._status is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self._wait_child()

    def _finish(self, status: int) -> None:
        for device in self.devices:
            if self.config.role == "target" and device.written_bytes:
                device.verify(self.config.seed, self.config.state_bytes)
        outcome = "completed" if status == 0 else "failed"
        moved = sum(device.read_bytes + device.written_bytes for device in self.devices)
        self.journal.write(
            End(t=self.clock.now_ns(), outcome=outcome, runs=False, bytes=moved, cpu_ns=cpu_ns())
        )


class _Signals:
    """While in it, what ends or asks a process goes to QEMU; Ctrl-C it gets from the terminal itself.

    An orphan's QEMU is killed: one that hangs hears no signal, and nobody is left who would end it.
    """

    def __init__(self, pid: int, config: AttachConfig) -> None:
        self._pid = pid
        self._config = config
        self._old: dict[int, object] = {}

    def __enter__(self) -> None:
        def pass_on(number: int, _frame: FrameType | None) -> None:
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL if _is_orphan(self._config) else number)

        for number in _PASSED_SIGNALS:
            self._old[number] = signal.signal(number, pass_on)
        alone = os.getpgrp() != os.getpgid(self._pid) or not sys.stdin.isatty()
        self._old[signal.SIGINT] = signal.signal(signal.SIGINT, pass_on if alone else signal.SIG_IGN)

    def __exit__(self, *_: object) -> None:
        for number, old in self._old.items():
            signal.signal(number, old)  # type: ignore[arg-type]


def _journal(path: str | None) -> Journal:
    """JournalError: it cannot be written."""
    try:
        return Journal(None if path is None else Path(path))
    except OSError as error:
        raise JournalError(f"the journal {path} cannot be written: {error.strerror}") from None


def _send(listener: Listener, call: Call, value: int) -> None:
    with suppress(GoneError):  # killed meanwhile
        listener.answer(call, value)


def _filled(word: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        word = word.replace(name, value)
    return word


def _process_of(thread: int) -> int:
    """The process that a thread belongs to; 0 when it is gone."""
    with suppress(OSError, ValueError), open(f"/proc/{thread}/status") as file:
        for line in file:
            if line.startswith("Tgid:"):
                return int(line.split()[1])
    return 0


def _say(event: str, **fields: object) -> None:
    with suppress(OSError):  # nobody reads any more: the journal has it all
        print(json.dumps({"event": event, **fields}), flush=True)


def _is_orphan(config: AttachConfig) -> bool:
    """Whether whoever started this supervisor, and was to end it, is gone."""
    return bool(config.parent) and os.getppid() != config.parent


@contextmanager
def _orphaned_too(config: AttachConfig) -> Iterator[None]:
    """Not for an orphan; and if it becomes one meanwhile, remove what its parent cannot any more."""
    try:
        if _is_orphan(config):  # the parent died before its death could be told
            raise VfmigError("whoever started this supervisor is gone")
        yield
    finally:
        if _is_orphan(config) and config.scratch is not None:
            shutil.rmtree(config.scratch, ignore_errors=True)


def main() -> None:
    """The process's entry."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    try:
        config = msgspec.json.decode(sys.stdin.buffer.readline(), type=AttachConfig)
        with _orphaned_too(config):
            status = Supervisor(config).run(lambda pid: _say("started", pid=pid))
    except (msgspec.MsgspecError, VfmigError, OSError) as error:
        _say("result", status=EXIT_BEGIN, error=str(error))
        sys.exit(EXIT_BEGIN)
    _say("result", status=status, error="")
    sys.exit(status)


if __name__ == "__main__":
    main()
