# SPDX-License-Identifier: GPL-2.0-or-later
"""The device as a whole: arcs in time, failing arcs, reset, config, and calls that meet each other."""

from __future__ import annotations

import errno

import pytest

from mockdev.device.device import Device
from mockdev.device.faults import NO_FAULTS, ArcFault, Faults
from mockdev.device.files import NotYet
from mockdev.device.resuming import ResumeFile
from mockdev.device.saving import Plan, SaveFile
from mockdev.device.timing import CONNECTX7, UNLIMITED, Firmware, Profile
from mockdev.errors import DeviceError, RemoteProtocolError
from mockdev.vfio.uapi import MigrationFlags, State

MS = 1_000_000
PRECOPY = Plan(precopy_bytes=64, initial_bytes=64)


def device(profile: Profile = UNLIMITED, faults: Faults = NO_FAULTS, plan: Plan | None = None) -> Device:
    return Device("vf0", bytearray(1 << 20), Firmware(profile), faults=faults, plan=plan)


def failed(mock: Device, target: State) -> int:
    with pytest.raises(DeviceError) as caught:
        mock.set_state(0, target)
    return caught.value.errno


def touch(file: object) -> None:
    if isinstance(file, SaveFile):
        file.read(0, 1)
    if isinstance(file, ResumeFile):
        file.write(0, memoryview(b"x"))


def test_arcs_cost_their_halves() -> None:
    mock, seen = device(CONNECTX7), []
    mock.on_arc = lambda at_ns, here, there: seen.append((at_ns // MS, here.name, there.name))
    assert mock.set_state(0, State.STOP) == NotYet(7 * MS)
    assert seen == []
    assert mock.set_state(7 * MS, State.STOP) == NotYet(17 * MS)
    assert seen == [(7, "RUNNING", "RUNNING_P2P")]
    assert mock.set_state(17 * MS, State.STOP) is None
    assert mock.set_state(17 * MS, State.RUNNING) == NotYet(21 * MS)
    assert mock.set_state(80 * MS, State.RUNNING) is None  # no arc waits for being looked at
    assert seen[2:] == [(21, "STOP", "RUNNING_P2P"), (27, "RUNNING_P2P", "RUNNING")]
    assert mock.get_state(80 * MS) is State.RUNNING


def test_the_session_opens_at_the_end_of_the_walk() -> None:
    mock = device(CONNECTX7)
    now = 0
    while isinstance(file := mock.set_state(now, State.STOP_COPY), NotYet):
        now = file.ready_ns
    assert isinstance(file, SaveFile)
    assert now == 17 * MS + MS // 5
    assert mock.state is State.STOP_COPY


def test_calls_wait_for_the_one_in_progress() -> None:
    mock = device(CONNECTX7)
    mock.set_state(0, State.RUNNING_P2P)
    assert mock.get_state(1) == NotYet(7 * MS)
    assert mock.data_size(1) == NotYet(7 * MS)
    assert mock.reset(1) == NotYet(7 * MS)
    assert mock.data_size(7 * MS) == NotYet(7 * MS + MS // 5)
    assert mock.set_state(8 * MS, State.RUNNING_P2P) is None  # its result was kept
    assert mock.data_size(8 * MS) == 1 << 20


def test_a_call_that_was_given_up_does_not_answer_a_later_one() -> None:
    mock = device(CONNECTX7)
    assert isinstance(mock.set_state(0, State.STOP_COPY), NotYet)
    now = 0
    while isinstance(answer := mock.reset(now), NotYet):
        now = answer.ready_ns
    assert mock.state is State.RUNNING
    assert mock.firmware.sessions == 0
    while isinstance(file := mock.set_state(now, State.STOP_COPY), NotYet):
        now = file.ready_ns
    assert isinstance(file, SaveFile)
    assert file.read(now, 24) != []
    assert mock.firmware.sessions == 1


def test_reset_kills_both_kinds_of_session() -> None:
    for state in (State.STOP_COPY, State.RESUMING):
        mock = device()
        file = mock.set_state(0, state)
        mock.pci.write_config(4, b"\x06")
        assert mock.reset(0) is None
        assert mock.state is State.RUNNING
        assert mock.pci.read_config(4, 1) == b"\0"
        with pytest.raises(DeviceError) as caught:
            touch(file)
        assert caught.value.errno == errno.ENODEV


def test_a_reader_that_waits_learns_of_the_end() -> None:
    mock = device(Profile("slow", save_fixed_ns=100))
    file = mock.set_state(0, State.STOP_COPY)
    assert isinstance(file, SaveFile)
    file.read(0, 24)
    assert file.read(0, 1) == NotYet(100)
    mock.close(50)
    with pytest.raises(DeviceError) as caught:
        file.read(50, 1)
    assert caught.value.errno == errno.ENODEV
    mock.firmware.advance(1000)  # the SAVE that was under way tells nobody


def test_old_and_new_file_exist_side_by_side() -> None:
    mock = device()
    old = mock.set_state(0, State.STOP_COPY)
    mock.set_state(0, State.STOP)
    new = mock.set_state(0, State.STOP_COPY)
    assert isinstance(old, SaveFile)
    assert isinstance(new, SaveFile)
    mock.release(0, old)
    assert new.read(0, 1) != []
    mock.release(0, new)
    with pytest.raises(DeviceError):
        new.read(0, 1)
    assert mock.state is State.STOP_COPY
    assert mock.set_state(0, State.RUNNING) is None


def test_leaving_pre_copy_a_hundred_times_leaves_nothing_behind() -> None:
    mock = device(plan=PRECOPY)
    for _ in range(100):
        assert isinstance(mock.set_state(0, State.PRE_COPY), SaveFile)
        assert mock.set_state(0, State.RUNNING) is None
    assert mock.firmware.sessions == 0


# -- failing arcs --------------------------------------------------------------------------------------


def test_an_arc_that_fails_leaves_the_device_where_it_was() -> None:
    mock = device(faults=Faults(arcs=(ArcFault(State.STOP_COPY, errno.EIO),)))
    assert failed(mock, State.STOP_COPY) == errno.EIO
    assert mock.state is State.STOP
    assert mock.firmware.sessions == 0
    assert mock.set_state(0, State.RUNNING) is None


def test_an_arc_that_fails_afterwards_has_changed_the_state_and_lost_the_file() -> None:
    mock = device(faults=Faults(arcs=(ArcFault(State.STOP_COPY, errno.EMFILE, after=True),)))
    assert failed(mock, State.STOP_COPY) == errno.EMFILE
    assert mock.state is State.STOP_COPY
    assert mock.firmware.sessions == 0
    assert mock.set_state(0, State.RUNNING) is None


def test_in_error_everything_is_refused_until_reset() -> None:
    mock = device(faults=Faults(arcs=(ArcFault(State.STOP, errno.EIO, to_error=True),)))
    seen: list[str] = []
    mock.on_arc = lambda _at_ns, _here, there: seen.append(there.name)
    assert failed(mock, State.STOP) == errno.EIO
    assert mock.state is State.ERROR
    assert [failed(mock, state) for state in State] == [errno.EINVAL] * len(State)
    assert mock.get_state(0) is State.ERROR
    mock.reset(0)
    assert mock.set_state(0, State.RUNNING_P2P) is None
    assert seen == ["RUNNING_P2P", "ERROR", "RUNNING", "RUNNING_P2P"]


def test_a_way_that_fails_in_the_middle_keeps_what_was_reached() -> None:
    mock = device(faults=Faults(arcs=(ArcFault(State.STOP, errno.EBUSY),)))
    assert failed(mock, State.RESUMING) == errno.EBUSY
    assert mock.state is State.RUNNING_P2P


@pytest.mark.parametrize("flags", [1, 3, 5, 7])
def test_states_that_the_device_lacks(flags: int) -> None:
    mock = Device("vf0", bytearray(9), Firmware(UNLIMITED), flags=MigrationFlags(flags), plan=Plan(4))
    lacks = {State.RUNNING_P2P: 2, State.PRE_COPY: 4, State.PRE_COPY_P2P: 6}
    for state, needed in lacks.items():
        if flags & needed != needed:
            assert failed(mock, state) == errno.EINVAL
        else:
            mock.set_state(0, state)
            mock.set_state(0, State.RUNNING)
    assert isinstance(mock.set_state(0, State.STOP_COPY), SaveFile)


def test_pre_copy_is_told_when_the_plan_has_a_share_for_it() -> None:
    assert device().flags == 3
    assert device(plan=PRECOPY).flags == 7


def test_a_device_without_p2p_stops_both_halves_in_one_arc() -> None:
    mock = Device("vf0", bytearray(9), Firmware(CONNECTX7), flags=MigrationFlags(5), plan=Plan(4))
    assert mock.set_state(0, State.STOP) == NotYet(17 * MS)


def test_pre_copy_from_stop_copy_is_refused_and_nothing_changes() -> None:
    mock = device(plan=PRECOPY)
    file = mock.set_state(0, State.STOP_COPY)
    assert failed(mock, State.PRE_COPY) == errno.EINVAL
    assert mock.state is State.STOP_COPY
    assert isinstance(file, SaveFile)
    assert file.read(0, 1) != []


# -- config --------------------------------------------------------------------------------------------


def test_config_goes_over_and_costs_for_each_function_of_the_pf() -> None:
    source, firmware = device(), Firmware(CONNECTX7)
    source.pci.write_config(4, b"\x06")
    targets = [Device(f"vf{i}", bytearray(9), firmware) for i in range(4)]
    assert targets[0].load_config(0, source.save_config()) == NotYet(70 * MS)
    assert targets[0].pci.read_config(4, 1) == b"\0"
    assert targets[0].load_config(70 * MS, source.save_config()) is None
    assert targets[0].pci.read_config(4, 1) == b"\x06"


def test_config_that_is_wrong_or_made_to_fail() -> None:
    mock = device()
    with pytest.raises(RemoteProtocolError):
        mock.load_config(0, b"\0" * 10)
    assert mock.load_config(0, mock.save_config()) is None
    with pytest.raises(DeviceError) as caught:
        device(faults=Faults(config=errno.EIO)).load_config(0, mock.save_config())
    assert caught.value.errno == errno.EIO
