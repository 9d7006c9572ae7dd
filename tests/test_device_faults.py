# SPDX-License-Identifier: GPL-2.0-or-later
"""Each fault of the menu happens where and when it is said to, also when given while the device runs."""

from __future__ import annotations

import errno
from contextlib import suppress
from dataclasses import replace

import pytest

from mockdev.device.calls import device_ioctl
from mockdev.device.device import Device, Precopy
from mockdev.device.dirty import Range
from mockdev.device.faults import NO_FAULTS, ArcFault, Faults, Index, device_faults
from mockdev.device.files import DataFile, NotYet
from mockdev.device.resuming import ResumeFile
from mockdev.device.saving import Plan, SaveFile
from mockdev.device.timing import CONNECTX7, UNLIMITED, Firmware, Profile
from mockdev.errors import DeviceError
from mockdev.faultspec import parse
from mockdev.vfio.uapi import State

STATE = bytes(range(251)) * 40
PLAN = Plan(chunk_bytes=1000)
PRECOPY = Plan(precopy_bytes=300, initial_bytes=200, increment_bytes=50, chunk_bytes=1000)
HEADS = 24 + 16  # of the stream, before the first byte of the state
MS = 10**6


def faults(*texts: str) -> Faults:
    return device_faults([parse(text, here="source") for text in texts], "source", 0)


def device(*texts: str, plan: Plan = PLAN, profile: Profile = UNLIMITED) -> Device:
    return Device("vf0", bytearray(STATE), Firmware(profile), plan=plan, faults=faults(*texts))


def opened(mock: Device, state: State, now_ns: int = 0) -> DataFile:
    file = mock.set_state(now_ns, state)
    assert isinstance(file, SaveFile | ResumeFile)
    return file


def stream() -> bytes:
    return drain(opened(device(), State.STOP_COPY))


def drain(file: DataFile, size_max: int = 1 << 20) -> bytes:
    found = b""
    while (views := file.read(0, size_max)) != []:
        assert not isinstance(views, NotYet)
        found += b"".join(views)
    return found


def number(call: object, *arguments: object) -> int:
    """The errno that a call fails with."""
    assert callable(call)
    with pytest.raises(DeviceError) as caught:
        call(*arguments)
    return caught.value.errno


# -- the save file -------------------------------------------------------------------------------------


def read_to_error(file: DataFile, size_max: int = 4096) -> tuple[bytes, int]:
    """All that can be read, and the errno that ends it."""
    found = b""
    try:
        while (views := file.read(0, size_max)) != []:
            assert not isinstance(views, NotYet)
            found += b"".join(views)
    except DeviceError as error:
        return found, error.errno
    return found, 0


def test_an_errno_at_a_byte_of_the_stream() -> None:
    file = opened(device("vf0.save:enodata@3KiB"), State.STOP_COPY)
    assert read_to_error(file) == (stream()[:3072], errno.ENODATA)
    assert number(file.read, 0, 1) == errno.ENODEV


def test_an_errno_at_a_buffer_counts_reads_after_the_stop() -> None:
    file = opened(device("vf0.save:eio@#2"), State.STOP_COPY)
    assert read_to_error(file, 100) == (stream()[:200], errno.EIO)
    mock = device("vf0.save:eio@#2", plan=PRECOPY)
    file = opened(mock, State.PRE_COPY)
    for _ in range(4):
        assert file.read(0, 10)
    mock.set_state(0, State.STOP_COPY)
    assert len(read_to_error(file, 10)[0]) == 20


def test_short_reads_begin_at_a_byte() -> None:
    file = opened(device("vf0.save:short=1@30"), State.STOP_COPY)
    sizes = []
    found = b""
    while views := file.read(0, 4096):
        assert not isinstance(views, NotYet)
        sizes.append(sum(map(len, views)))
        found += b"".join(views)
    assert sizes == [30, *[1] * (len(found) - 30)]
    assert found == stream()


def test_a_false_end() -> None:
    file = opened(device("vf0.save:eof@1000"), State.STOP_COPY)
    assert drain(file) == stream()[:1000]
    assert file.read(0, 100) == []


def test_nothing_can_be_read_for_a_while_and_only_once() -> None:
    file = opened(device("vf0.save:stall=5ms@100"), State.STOP_COPY)
    views = file.read(7, 4096)
    assert not isinstance(views, NotYet)
    assert sum(map(len, views)) == 100
    assert file.read(8, 4096) == NotYet(8 + 5 * MS)
    assert file.read(9, 4096) == NotYet(8 + 5 * MS)
    views = file.read(8 + 5 * MS, 4096)
    assert not isinstance(views, NotYet)
    assert b"".join(views) == stream()[100:4196]


@pytest.mark.parametrize(("text", "expected"), [("fail", errno.ENODEV), ("bad-resource", errno.ENOMSG)])
def test_a_save_command_fails(text: str, expected: int) -> None:
    file = opened(device(f"vf0.save:{text}@10", plan=PRECOPY), State.PRE_COPY)
    read = read_to_error(file)
    assert read == ((b"", expected) if text == "fail" else (stream()[:24], expected))


# -- loading -------------------------------------------------------------------------------------------


def write(file: DataFile, now_ns: int, data: bytes) -> int:
    """Write until it waits; how much was taken."""
    done = 0
    view = memoryview(data)
    while True:
        taken = file.write(now_ns, view[done:])
        done += taken.consumed
        if taken.ready_ns > now_ns or done == len(data):
            return done


@pytest.mark.parametrize(("when", "record"), [("", 0), ("@999", 0), ("@1000", 1), ("@#3", 3)])
def test_a_load_fails(when: str, record: int) -> None:
    file = opened(device(f"vf0.load:enomem{when}"), State.RESUMING)
    assert number(write, file, 0, stream()) == errno.ENOMEM
    assert isinstance(file, ResumeFile)
    assert file.loads == record
    assert number(write, file, 0, b"x") == errno.ENODEV


@pytest.mark.parametrize("profile", [UNLIMITED, CONNECTX7], ids=lambda profile: profile.name)
def test_a_load_takes_longer(profile: Profile) -> None:
    plain, slow = (device(*texts, profile=profile) for texts in ((), ("vf0.load:stall=5ms@1500",)))
    ends = []
    for mock in (plain, slow):
        now_ns = 0
        while isinstance(file := mock.set_state(now_ns, State.RESUMING), NotYet):
            now_ns = file.ready_ns
        assert isinstance(file, ResumeFile)
        begin_ns = now_ns
        view = memoryview(stream())
        while True:
            taken = file.write(now_ns, view)
            view = view[taken.consumed :]
            if taken.ready_ns <= now_ns and not view:
                break
            now_ns = max(now_ns, taken.ready_ns)
        assert file.loaded_bytes == len(STATE)
        ends.append(now_ns - begin_ns)
    assert ends[1] - ends[0] == 5 * MS


# -- arcs ----------------------------------------------------------------------------------------------


def test_arcs_fail_before_after_and_to_error() -> None:
    mock = device("vf0.arc.STOP_COPY:eio")
    assert number(mock.set_state, 0, State.STOP_COPY) == errno.EIO
    assert mock.get_state(0) is State.STOP
    mock = device("vf0.arc.STOP_COPY:after=emfile")
    assert number(mock.set_state, 0, State.STOP_COPY) == errno.EMFILE
    assert mock.get_state(0) is State.STOP_COPY
    mock = device("vf0.arc.STOP_COPY:error=eio")
    assert number(mock.set_state, 0, State.STOP_COPY) == errno.EIO
    assert mock.get_state(0) is State.ERROR
    assert number(mock.set_state, 0, State.RUNNING) == errno.EINVAL
    mock.reset(0)
    assert mock.get_state(0) is State.RUNNING


def test_an_arc_takes_longer_and_may_fail_then() -> None:
    mock = device("vf0.arc.RESUMING:stall=2s")
    assert mock.set_state(0, State.RESUMING) == NotYet(2000 * MS)
    assert isinstance(mock.set_state(2000 * MS, State.RESUMING), ResumeFile)
    mock = device("vf0.arc.RESUMING:stall=2s", "vf0.arc.RESUMING:eio")
    assert mock.faults.arcs == (ArcFault(State.RESUMING, errno.EIO, stall_ns=2000 * MS),)
    assert mock.set_state(0, State.RESUMING) == NotYet(2000 * MS)
    assert number(mock.set_state, 2000 * MS, State.RESUMING) == errno.EIO


# -- answers -------------------------------------------------------------------------------------------


def test_the_config_cannot_be_loaded_or_takes_longer() -> None:
    mock = device("vf0.config:eio")
    assert number(mock.load_config, 0, mock.save_config()) == errno.EIO
    mock = device("vf0.config:stall=3ms")
    assert mock.load_config(0, mock.save_config()) == NotYet(3 * MS)
    assert mock.load_config(3 * MS, mock.save_config()) is None


def test_the_data_size_fails_or_is_a_lie() -> None:
    assert number(device("vf0.data-size:eio").data_size, 0) == errno.EIO
    assert device("vf0.data-size:says=0").data_size(0) == 0
    assert device("vf0.data-size:says=4TiB").data_size(0) == 4 << 40


def test_precopy_never_converges_and_still_ends_whole() -> None:
    mock = device("vf0.precopy:endless", plan=PRECOPY)
    file = opened(mock, State.PRE_COPY)
    assert isinstance(file, SaveFile)
    found = b""
    for _ in range(20):
        found += read_to_error(file)[0]
        told = mock.precopy_info(0, file)
        assert told == Precopy(0, len(STATE), False)
    mock.set_state(0, State.STOP_COPY)
    found += drain(file)
    target = Device("vf0", bytearray(len(STATE)), Firmware(UNLIMITED))
    write(opened(target, State.RESUMING), 0, found)
    target.set_state(0, State.RUNNING)
    assert target.image == STATE


def test_precopy_fails_or_begins_anew_each_time() -> None:
    mock = device("vf0.precopy:eio", plan=PRECOPY)
    file = opened(mock, State.PRE_COPY)
    assert isinstance(file, SaveFile)
    assert number(mock.precopy_info, 0, file) == errno.EIO
    mock = device("vf0.precopy:reinit", plan=PRECOPY)
    mock.precopy_v2 = True
    file = opened(mock, State.PRE_COPY)
    assert isinstance(file, SaveFile)
    answers = [mock.precopy_info(0, file) for _ in range(3)]
    assert all(isinstance(answer, Precopy) and answer.reinit for answer in answers)
    told = [answer.initial_bytes for answer in answers if isinstance(answer, Precopy)]
    assert told[0] < told[1]  # initial_bytes grows


def test_the_tracker_fails() -> None:
    mock = device("vf0.tracker:eio")
    mock.dirty.start(0, 4096, [Range(0, 4096)])
    assert number(mock.dirty.report, 0, 0, 4096, 4096) == errno.EIO
    mock.faults = NO_FAULTS
    assert mock.dirty.report(0, 0, 4096, 4096) == []


TOLD = [
    "vf0:reset@2000",
    "vf0:detach@2000",
    "vf0.save:eio@3KiB",
    "vf0.save:eio@#1",
    "vf0.save:eof@3KiB",
    "vf0.save:fail@3KiB",
    "vf0.save:bad-resource",
    "vf0.load:eio@3KiB",
    "vf0.arc.STOP_COPY:eio",
    "vf0.arc.RESUMING:after=eio",
    "vf0.config:eio",
    "vf0.precopy:eio",
    "vf0.data-size:eio",
    "vf0.data-size:says=0",
    "vf0.tracker:eio",
]
UNTOLD = [
    "vf0.save:stall=1ms",
    "vf0.save:short=1000",
    "vf0.load:stall=1ms",
    "vf0.arc.STOP:stall=1ms",
    "vf0.config:stall=1ms",
    "vf0.precopy:endless",
    "vf0.precopy:reinit",
    "vf0.save:eio@1MiB",  # where the state has ended
]


def try_all(mock: Device) -> None:
    """Save and load, with every question on the way; each may fail, and the next is asked all the same."""
    file: DataFile | None = None
    walk = (State.PRE_COPY, State.STOP_COPY, State.RUNNING, State.RESUMING, State.RUNNING)
    for now_ns, state in zip(range(0, 50 * MS, 10 * MS), walk, strict=True):
        with suppress(DeviceError):
            came = mock.set_state(now_ns, state)
            file = file if came is None or isinstance(came, NotYet) else came
        with suppress(DeviceError):
            mock.data_size(now_ns)
        with suppress(DeviceError):
            mock.load_config(now_ns, mock.save_config())
        with suppress(DeviceError):
            mock.dirty.start(now_ns, 4096, [Range(0, 4096)])
        with suppress(DeviceError):
            mock.dirty.report(now_ns, 0, 4096, 4096)
        with suppress(DeviceError):
            if isinstance(file, SaveFile):
                mock.precopy_info(now_ns, file)
        with suppress(DeviceError):
            if isinstance(file, SaveFile):
                while file.read(now_ns, 1000):
                    now_ns += 2 * MS
        with suppress(DeviceError):
            if isinstance(file, ResumeFile):
                write(file, now_ns, stream())


@pytest.mark.parametrize("text", [*TOLD, *UNTOLD])
def test_a_fault_that_no_sound_device_has_is_told_once(text: str) -> None:
    told: list[int] = []
    mock = device(text, plan=PRECOPY)
    mock.on_fault = told.append

    try_all(mock)
    assert len(told) == (text in TOLD)
    mock.faults = faults(text)
    try_all(mock)
    again = "detach" not in text  # what is gone is gone
    assert len(told) == (1 + again) * (text in TOLD)


# -- the whole device ----------------------------------------------------------------------------------


def test_a_reset_in_the_middle_of_saving_and_of_loading() -> None:
    arcs: list[tuple[int, State, State]] = []
    mock = device("vf0:reset@2000")
    file = opened(mock, State.STOP_COPY)
    mock.on_arc = lambda *arc: arcs.append(arc)
    assert read_to_error(file) == (stream()[:2000], errno.ENODEV)
    assert mock.get_state(0) is State.RUNNING
    assert arcs == [(0, State.STOP_COPY, State.RUNNING)]
    file = opened(mock, State.RESUMING)
    assert number(write, file, 0, stream()) == errno.ENODEV
    assert isinstance(file, ResumeFile)
    assert file.written_bytes == 2000
    assert mock.get_state(0) is State.RUNNING


def test_a_detached_device_answers_no_command_until_a_reset_and_not_after() -> None:
    mock = device("vf0:detach@50")
    mock.dirty.start(0, 4096, [Range(0, 4096)])
    file = opened(mock, State.STOP_COPY)
    assert read_to_error(file) == (stream()[:50], errno.ENODEV)
    assert mock.get_state(0) is State.STOP_COPY
    assert number(mock.data_size, 0) == errno.ENOTCONN
    assert number(mock.dirty.report, 0, 0, 4096, 4096) == errno.EINVAL  # its tracker is gone
    assert number(mock.dirty.start, 0, 4096, [Range(0, 4096)]) == errno.ENOTCONN
    assert number(mock.set_state, 0, State.RUNNING) == errno.ENOTCONN
    assert mock.get_state(0) is State.STOP  # which takes no command
    assert number(mock.set_state, 0, State.STOP_COPY) == errno.ENOTCONN
    assert number(mock.set_state, 0, State.RESUMING) == errno.ENOTCONN
    mock.reset(0)
    assert mock.get_state(0) is State.RUNNING
    assert number(mock.set_state, 0, State.STOP) == errno.ENOTCONN


def test_a_blow_at_a_time_counts_from_the_stop_or_the_first_write() -> None:
    mock = device("vf0:detach@+1ms", plan=PRECOPY)
    file = opened(mock, State.PRE_COPY)
    assert file.read(5 * MS, 10)  # before the stop the time does not run
    mock.set_state(10 * MS, State.STOP_COPY)
    assert file.read(11 * MS - 1, 10)
    assert number(file.read, 11 * MS, 10) == errno.ENODEV
    assert number(mock.data_size, 11 * MS) == errno.ENOTCONN
    mock = device("vf0:reset@+1ms")
    file = opened(mock, State.RESUMING, 20 * MS)
    assert file.write(30 * MS, memoryview(stream())[:10]).consumed == 10
    assert file.write(31 * MS - 1, memoryview(stream())[10:20]).consumed == 10
    assert number(file.write, 31 * MS, memoryview(stream())[20:30]) == errno.ENODEV
    assert mock.get_state(31 * MS) is State.RUNNING


def test_a_reset_waits_for_the_arcs_that_are_under_way() -> None:
    mock = device("vf0:reset@+1ms", profile=CONNECTX7)
    now_ns = 0
    while isinstance(file := mock.set_state(now_ns, State.STOP_COPY), NotYet):
        now_ns = file.ready_ns
    assert now_ns > CONNECTX7.suspend_initiator_ns + MS
    assert mock.get_state(now_ns) is State.RUNNING
    assert file is not None
    assert number(file.read, now_ns, 10) == errno.ENODEV


def test_faults_given_while_a_session_is_open() -> None:
    mock = device()
    file = opened(mock, State.STOP_COPY)
    assert file.read(0, 100)
    mock.faults = faults("vf0.save:eio@200")
    assert read_to_error(file) == (stream()[100:200], errno.EIO)
    mock = device()
    file = opened(mock, State.RESUMING)
    write(file, 0, stream()[:500])
    mock.faults = faults("vf0.load:eio@#0")
    assert number(write, file, 0, stream()[500:]) == errno.EIO
    mock.faults = faults("vf0.arc.RUNNING_P2P:eio")
    assert number(mock.set_state, 0, State.RUNNING) == errno.EIO
    mock.faults = NO_FAULTS
    mock.set_state(0, State.RUNNING)
    assert mock.get_state(0) is State.RUNNING


def test_the_same_at_the_level_of_ioctls() -> None:
    mock = device("vf0.data-size:eio")
    argument = (16).to_bytes(4, "little") + (0x10009).to_bytes(4, "little") + bytes(8)
    assert number(device_ioctl, mock, 0, 0x3B75, argument) == errno.EIO


def test_only_the_named_device_at_the_named_end() -> None:
    specs = [parse(text) for text in ("source.vf0.save:eio", "target.vf0.load:eio", "source.vf1:reset")]
    assert device_faults(specs, "source", 0) == faults("vf0.save:eio")
    assert device_faults(specs, "target", 1) == NO_FAULTS
    assert device_faults(specs, "source", 1).strikes
    twice = faults("vf0.save:eio@1", "vf0.save:enomem@#7")
    assert twice.read is not None
    assert (twice.read.offset, twice.read.errno) == (Index(7), errno.ENOMEM)
    assert replace(twice, read=None) == NO_FAULTS
