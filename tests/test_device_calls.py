# SPDX-License-Identifier: GPL-2.0-or-later
"""The device as an unmodified user asks it: ioctl numbers and bytes, and the number of every misuse."""

from __future__ import annotations

import errno
import struct

import pytest

from mockdev.device.calls import Reply, data_ioctl, device_ioctl
from mockdev.device.device import Device
from mockdev.device.dirty import Range
from mockdev.device.faults import NO_FAULTS, Faults
from mockdev.device.files import DataFile, NotYet
from mockdev.device.resuming import ResumeFile
from mockdev.device.saving import Plan, SaveFile
from mockdev.device.timing import CONNECTX7, UNLIMITED, Firmware, Profile
from mockdev.errors import DeviceError
from mockdev.vfio.uapi import MigrationFlags, State

FEATURE, RESET, GET_INFO, GET_REGION, GET_IRQ = 0x3B75, 0x3B6F, 0x3B6B, 0x3B6C, 0x3B6D
PRECOPY_INFO = 0x3B79
GET, SET, PROBE = 0x10000, 0x20000, 0x40000
BASE = 0x7F0000000000


class Memory:
    """The caller's memory at BASE."""

    def __init__(self, data: bytes) -> None:
        self.data = bytearray(data)

    def read(self, address: int, size: int) -> bytes:
        at = address - BASE
        if not 0 <= at <= at + size <= len(self.data):
            raise DeviceError(errno.EFAULT)
        return bytes(self.data[at : at + size])

    def write(self, address: int, data: bytes) -> None:
        self.read(address, len(data))
        self.data[address - BASE : address - BASE + len(data)] = data


def device(
    flags: int = 7, profile: Profile = UNLIMITED, state: State = State.RUNNING, faults: Faults = NO_FAULTS
) -> Device:
    plan = Plan(precopy_bytes=300, initial_bytes=200, increment_bytes=50)
    mock = Device(
        "vf0", bytearray(1000), Firmware(profile), plan=plan, flags=MigrationFlags(flags), faults=faults
    )
    if state is not State.RUNNING:
        mock.set_state(0, state)
    return mock


def feature(index: int, op: int, payload: bytes = b"", argsz: int | None = None) -> bytes:
    return struct.pack("<II", 8 + len(payload) if argsz is None else argsz, op | index) + payload


def ask(mock: Device, argument: bytes, request: int = FEATURE, user: Memory | None = None) -> Reply:
    reply = device_ioctl(mock, 0, request, argument, user or Memory(b""))
    assert not isinstance(reply, NotYet)
    assert len(reply.data) == len(argument)
    return reply


def refused(mock: Device, argument: bytes, request: int = FEATURE, user: Memory | None = None) -> int:
    before = mock.state
    with pytest.raises(DeviceError) as caught:
        ask(mock, argument, request, user)
    assert mock.state is before
    return caught.value.errno


def state_of(reply: Reply) -> tuple[int, int]:
    state, fd = struct.unpack("<Ii", reply.data[8:])
    return state, fd


def set_state(mock: Device, state: int) -> Reply:
    return ask(mock, feature(2, SET, struct.pack("<Ii", state, 77)))


# -- the checks that come first ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "argument", "number"),
    [
        (7, b"\0" * 7, errno.EFAULT),
        (7, feature(1, GET, b"\0" * 8, argsz=7), errno.EINVAL),
        (7, feature(1, GET | 0x80000, b"\0" * 8), errno.EINVAL),
        (7, feature(2, GET | SET, b"\0" * 8), errno.EINVAL),
        (7, feature(99, GET | SET, b"\0" * 8), errno.EINVAL),  # before the feature is looked for
        (7, feature(99, GET, b"\0" * 8), errno.ENOTTY),
        (7, feature(0, SET, b"\0" * 16), errno.ENOTTY),
        (7, feature(3, SET), errno.ENOTTY),
        (0, feature(1, GET, b"\0" * 8), errno.ENOTTY),
        (0, feature(2, GET, b"\0" * 8), errno.ENOTTY),
        (0, feature(6, SET | PROBE), errno.ENOTTY),
        (0, feature(9, GET, b"\0" * 8), errno.ENOTTY),
        (3, feature(12, SET), errno.EINVAL),
        (7, feature(1, SET, b"\0" * 8), errno.EINVAL),
        (7, feature(1, SET | PROBE), errno.EINVAL),
        (7, feature(9, SET, b"\0" * 8), errno.EINVAL),
        (7, feature(12, GET), errno.EINVAL),
        (7, feature(1, 0, b"\0" * 8), errno.EINVAL),
        (7, feature(1, GET, b"\0" * 7), errno.EINVAL),
        (7, feature(8, GET, b"\0" * 31), errno.EINVAL),
        (7, feature(1, GET, b"\0" * 7, argsz=16), errno.EFAULT),
    ],
)
def test_generic_checks(flags: int, argument: bytes, number: int) -> None:
    assert refused(device(flags), argument) == number


def test_probe_needs_no_payload_and_does_nothing() -> None:
    mock = device()
    for argument in (feature(6, PROBE), feature(2, PROBE | GET | SET), feature(12, PROBE | SET)):
        assert ask(mock, argument).data == argument
    assert not mock.precopy_v2
    assert not mock.dirty.active


def test_other_requests_are_not_ours() -> None:
    for request in (0, 0x3B6E, 0x3B76, PRECOPY_INFO, 0xFFFFFFFF):
        assert refused(device(), b"\0" * 64, request) == errno.ENOTTY


# -- states --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [1, 3, 5, 7])
def test_migration_flags_are_told(flags: int) -> None:
    assert ask(device(flags), feature(1, GET, b"\xff" * 8)).data[8:] == struct.pack("<Q", flags)


@pytest.mark.parametrize(
    ("flags", "start", "wanted"),
    [
        (7, State.RUNNING, 0),
        (7, State.RUNNING, 8),
        (7, State.RUNNING, 2**32 - 1),
        (5, State.RUNNING, State.RUNNING_P2P),
        (3, State.RUNNING, State.PRE_COPY),
        (5, State.RUNNING, State.PRE_COPY_P2P),
        (7, State.STOP_COPY, State.PRE_COPY),
        (7, State.STOP_COPY, State.PRE_COPY_P2P),
    ],
)
def test_states_that_cannot_be_asked_for(flags: int, start: State, wanted: int) -> None:
    argument = feature(2, SET, struct.pack("<Ii", wanted, 0))
    assert refused(device(flags, state=start), argument) == errno.EINVAL


def test_the_state_already_there_is_fine_and_gives_no_file() -> None:
    mock = device(state=State.STOP_COPY)
    reply = set_state(mock, State.STOP_COPY)
    assert state_of(reply) == (State.STOP_COPY, -1)
    assert reply.file is None


def test_files_come_with_the_arcs_that_open_them() -> None:
    mock = device()
    for state, kind in (
        (State.PRE_COPY, SaveFile),
        (State.PRE_COPY_P2P, None),
        (State.STOP_COPY, None),
        (State.STOP, None),
        (State.STOP_COPY, SaveFile),
        (State.RESUMING, ResumeFile),
        (State.RUNNING, None),
        (State.PRE_COPY_P2P, SaveFile),
    ):
        reply = set_state(mock, state)
        assert state_of(reply) == (state, -1)
        assert isinstance(reply.file, kind) if kind else reply.file is None
        assert state_of(ask(mock, feature(2, GET, b"\0" * 8))) == (state, -1)


def test_a_call_that_takes_time_is_made_again() -> None:
    mock = device(profile=CONNECTX7)
    argument = feature(2, SET, struct.pack("<Ii", State.RUNNING_P2P, 0))
    wait = device_ioctl(mock, 0, FEATURE, argument)
    assert wait == NotYet(CONNECTX7.suspend_initiator_ns)
    assert isinstance(device_ioctl(mock, wait.ready_ns, FEATURE, argument), Reply)
    assert isinstance(device_ioctl(mock, wait.ready_ns, RESET, b""), NotYet)


@pytest.mark.parametrize("state", [s for s in State if s is not State.ERROR])
def test_the_data_size_is_told_in_every_state(state: State) -> None:
    assert ask(device(state=state), feature(9, GET, b"\0" * 8)).data[8:] == struct.pack("<Q", 1000)


def test_reset_runs_the_device_again() -> None:
    mock = device(state=State.RESUMING)
    ask(mock, b"", RESET)
    assert mock.state is State.RUNNING


# -- the data file -------------------------------------------------------------------------------------


def precopy(mock: Device, file: DataFile, argument: bytes, request: int = PRECOPY_INFO) -> tuple[int, ...]:
    reply = data_ioctl(mock, file, 0, request, argument)
    assert isinstance(reply, Reply)
    return struct.unpack("<IIQQ", reply.data)


ASK = struct.pack("<IIQQ", 24, 0xDEAD, 1, 2)


def save_file(mock: Device, state: State) -> SaveFile:
    file = mock.set_state(0, state)
    assert isinstance(file, SaveFile)
    return file


def precopy_refused(mock: Device, file: DataFile, argument: bytes = ASK, request: int = PRECOPY_INFO) -> int:
    with pytest.raises(DeviceError) as caught:
        precopy(mock, file, argument, request)
    return caught.value.errno


def test_pre_copy_sizes_echo_the_flags_unless_the_second_version_is_wanted() -> None:
    mock = device()
    file = save_file(mock, State.PRE_COPY)
    assert precopy(mock, file, ASK) == (24, 0xDEAD, 24 + 16 + 200, 0)
    ask(mock, feature(12, SET))
    assert precopy(mock, file, ASK) == (24, 0, 24 + 16 + 200, 0)
    mock.reinitialise()
    assert precopy(mock, file, ASK) == (24, 1, 24 + 16 + 200 + 16 + 50, 0)
    mock.close(0)
    file = save_file(mock, State.PRE_COPY)
    assert precopy(mock, file, ASK)[1] == 0xDEAD


def test_what_the_data_file_refuses() -> None:
    mock = device()
    file = save_file(mock, State.PRE_COPY)
    assert precopy_refused(mock, file, request=FEATURE) == errno.ENOTTY
    assert precopy_refused(mock, file, struct.pack("<I", 23) + ASK[4:]) == errno.EINVAL
    assert precopy_refused(mock, file, ASK[:20]) == errno.EFAULT
    assert precopy_refused(mock, file, b"") == errno.EFAULT
    mock.set_state(0, State.STOP_COPY)
    assert precopy_refused(mock, file) == errno.EINVAL
    mock.set_state(0, State.RUNNING)
    assert precopy_refused(mock, file) == errno.EINVAL  # the state is looked at before the dead session
    mock.set_state(0, State.PRE_COPY)
    assert precopy_refused(mock, file) == errno.ENODEV
    mock.set_state(0, State.PRE_COPY_P2P)
    assert precopy_refused(mock, file) == errno.ENODEV
    resume = mock.set_state(0, State.RESUMING)
    assert isinstance(resume, ResumeFile)
    assert precopy_refused(mock, resume) == errno.ENOTTY
    broken = device(faults=Faults(precopy=errno.EIO))
    assert precopy_refused(broken, save_file(broken, State.PRE_COPY)) == errno.EIO


# -- dirty logging -------------------------------------------------------------------------------------


def start(page_size: int, count: int, pointer: int = BASE) -> bytes:
    return feature(6, SET, struct.pack("<QIIQ", page_size, count, 0, pointer))


def test_logging_from_start_to_stop() -> None:
    mock = device()
    writes = [Range(0x3000, 0x2000), Range(0x80000000, 1)]
    user = Memory(struct.pack("<4Q", 0, 1 << 30, 1 << 31, 1 << 20) + b"\x01" + bytes(99))
    reply = ask(mock, start(512, 2), user=user)
    assert struct.unpack("<QIIQ", reply.data[8:]) == (4096, 2, 0, BASE)
    mock.dirty.source = lambda _now_ns: writes
    report = feature(8, GET, struct.pack("<4Q", 0x1000, 0x10000, 4096, BASE + 32))
    ask(mock, report, user=user)
    assert user.data[32] == 0b1101  # pages 3 and 4 count from the range's start; the 1 was there
    writes.clear()
    mock.dirty.source = lambda _now_ns: ()
    ask(mock, feature(8, GET, struct.pack("<4Q", 0x80000000, 0x1000, 4096, BASE + 40)), user=user)
    assert user.data[40] == 1
    assert refused(mock, start(4096, 2), user=user) == errno.EINVAL
    ask(mock, feature(7, SET))
    ask(mock, feature(7, SET))
    assert refused(mock, report, user=user) == errno.EINVAL


def test_what_logging_refuses() -> None:
    mock = device()
    user = Memory(struct.pack("<2Q", 2**64 - 4096, 4096))
    assert refused(mock, start(4096, 0), user=user) == errno.EINVAL
    assert refused(mock, start(4096, 257), user=user) == errno.E2BIG
    assert refused(mock, start(4096, 1, pointer=0), user=user) == errno.EFAULT
    assert refused(mock, start(4096, 1), user=user) == errno.EOVERFLOW
    with pytest.raises(DeviceError) as caught:
        device_ioctl(mock, 0, FEATURE, start(4096, 1))  # a caller without memory
    assert caught.value.errno == errno.EFAULT


# -- what the device is --------------------------------------------------------------------------------


def test_device_regions_and_interrupts_are_told_as_qemu_needs_them() -> None:
    mock = device()
    info = struct.pack("<6I", 24, 0, 0, 0, 0, 0)
    assert struct.unpack("<6I", ask(mock, info, GET_INFO).data) == (24, 3, 9, 5, 0, 0)
    short = struct.pack("<4I", 16, 0, 0, 0)
    assert struct.unpack("<4I", ask(mock, short, GET_INFO).data) == (16, 3, 9, 5)
    assert refused(mock, struct.pack("<6I", 15, 0, 0, 0, 0, 0), GET_INFO) == errno.EINVAL
    sizes = {}
    for index in range(8):
        reply = ask(mock, struct.pack("<4I2Q", 32, 0, index, 0, 0, 0), GET_REGION)
        _, flags, told, cap, size, offset = struct.unpack("<4I2Q", reply.data)
        assert (told, cap, offset, flags) == (index, 0, index << 40, 3 if size else 0)
        sizes[index] = size
    assert sizes == {0: 1 << 20, 1: 0, 2: 0, 3: 0, 4: 0, 5: 0, 6: 0, 7: 4096}
    for index in (8, 9, 2**32 - 1):
        argument = struct.pack("<4I2Q", 32, 0, index, 0, 0, 0)
        assert refused(mock, argument, GET_REGION) == errno.EINVAL
    counts = [
        struct.unpack("<4I", ask(mock, struct.pack("<4I", 16, 0, index, 0), GET_IRQ).data)[3]
        for index in range(5)
    ]
    assert counts == [0, 0, 12, 1, 1]
    assert refused(mock, struct.pack("<4I", 16, 0, 5, 0), GET_IRQ) == errno.EINVAL
