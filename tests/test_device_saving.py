# SPDX-License-Identifier: GPL-2.0-or-later
"""The save file: what is readable when, two chunks in turn, PRE_COPY's sizes, and how a session dies."""

from __future__ import annotations

import errno
import struct

import pytest

from mockdev.device.device import Device, Precopy
from mockdev.device.faults import NO_FAULTS, ByteFault, Faults, SaveFault
from mockdev.device.files import POLL_IN, POLL_RDHUP, NotYet
from mockdev.device.saving import Plan, SaveFile
from mockdev.device.timing import CONNECTX7, MIB, OPAQUE, UNLIMITED, Firmware, Profile
from mockdev.errors import DeviceError
from mockdev.vfio.uapi import State

STATE = bytes(range(256)) * 4
CHUNK_NS = 1000
SLOW = Profile("slow", save_fixed_ns=CHUNK_NS)


def device(
    profile: Profile = UNLIMITED, plan: Plan | None = None, faults: Faults = NO_FAULTS, state: bytes = STATE
) -> Device:
    return Device("vf0", bytearray(state), Firmware(profile), plan=plan, faults=faults)


def opened(device: Device, state: State = State.STOP_COPY, now_ns: int = 0) -> SaveFile:
    file = device.set_state(now_ns, state)
    assert isinstance(file, SaveFile)
    return file


def read(file: SaveFile, now_ns: int = 0, size_max: int = 1 << 20) -> bytes:
    views = file.read(now_ns, size_max)
    assert not isinstance(views, NotYet)
    assert sum(map(len, views)) <= size_max
    return b"".join(views)


def failed(file: SaveFile, now_ns: int = 0) -> int:
    with pytest.raises(DeviceError) as caught:
        file.read(now_ns, 100)
    return caught.value.errno


def size_record(value: int) -> bytes:
    return struct.pack("<QIIQ", 8, 1, 1, value)


def record(payload: bytes) -> bytes:
    return struct.pack("<QII", len(payload), 0, 0) + payload


def test_the_stream_is_a_size_record_and_a_record_per_chunk() -> None:
    file = opened(device(plan=Plan(chunk_bytes=500)))
    assert read(file) == size_record(4096) + record(STATE[:500]) + record(STATE[500:1000]) + record(
        STATE[1000:]
    )
    assert read(file) == b""
    assert file.poll(0) & POLL_IN


def test_the_told_size_is_that_of_a_chunks_buffer() -> None:
    state = bytes(20 * MIB)
    assert read(opened(device(state=state)), size_max=24) == size_record(8 * MIB)
    assert read(opened(device(state=state[:5000])), size_max=24) == size_record(8192)


def test_an_opaque_device_gives_bare_bytes() -> None:
    file = opened(device(OPAQUE, Plan(chunk_bytes=300)))
    assert read(file) == STATE
    assert read(file) == b""


def test_views_are_the_memory_itself_and_read_only() -> None:
    mock = device()
    views = opened(mock).read(0, 1 << 20)
    assert isinstance(views, list)
    assert [len(view) for view in views] == [24, 16, len(STATE)]
    assert views[2].readonly
    mock.memory[0] = 99
    assert views[2][0] == 99


def test_the_size_record_is_readable_before_any_chunk() -> None:
    file = opened(device(SLOW, Plan(chunk_bytes=500)))
    assert read(file) == size_record(4096)
    assert file.poll(0) == 0
    assert file.read(0, 10) == NotYet(CHUNK_NS)
    assert file.read(CHUNK_NS - 1, 10) == NotYet(CHUNK_NS)
    assert read(file, CHUNK_NS) == record(STATE[:500])


def test_never_more_than_two_chunks_ahead_of_the_reader() -> None:
    chunk = 64
    file = opened(device(SLOW, Plan(chunk_bytes=chunk)))
    read(file)
    assert file.chunks_ahead == 1
    file.poll(50 * CHUNK_NS)  # an age: only two are there
    assert file.chunks_ahead == 2
    assert file.saved_bytes == 2 * chunk
    now = 50 * CHUNK_NS
    assert len(read(file, now, 16 + chunk - 1)) == 16 + chunk - 1
    assert file.saved_bytes == 2 * chunk  # one byte short of the first: its buffer is not free
    assert len(read(file, now, 1)) == 1
    assert file.saved_bytes == 3 * chunk
    assert file.chunks_ahead == 2
    assert len(read(file, now)) == 16 + chunk  # the second; the third runs since `now`
    assert file.read(now, 1) == NotYet(now + CHUNK_NS)
    total = 24 + 2 * (16 + chunk)
    while data := file.read(now, 7):
        if isinstance(data, NotYet):
            assert data.ready_ns > now
            now = data.ready_ns
        else:
            total += sum(map(len, data))
        assert file.chunks_ahead <= 2
    assert total == 24 + len(STATE) // chunk * (16 + chunk)


def test_a_fast_reader_pays_for_each_chunk_and_a_slow_one_for_two() -> None:
    fast = opened(device(SLOW, Plan(chunk_bytes=128)))
    now = 0
    while data := fast.read(now, 1 << 20):
        now = data.ready_ns if isinstance(data, NotYet) else now
    assert now == len(STATE) // 128 * CHUNK_NS
    slow, waits, now = opened(device(SLOW, Plan(chunk_bytes=128))), 0, 0
    while data := slow.read(now, 16 + 128):
        waits += isinstance(data, NotYet)
        now += 5 * CHUNK_NS
    assert waits == 0


def test_two_functions_of_one_pf_slow_each_other() -> None:
    firmware = Firmware(Profile("shared", save_fixed_ns=CHUNK_NS, gamma=1.0, eta=0.5))
    first, second = (
        Device(name, bytearray(64), firmware, plan=Plan(chunk_bytes=64)) for name in ("vf0", "vf1")
    )
    a, b = opened(first), opened(second)
    read(a), read(b)
    # k = 2 commands at 1/2 each, n = 2 sessions: divided by 1.5 again.
    assert a.read(0, 1) == NotYet(3 * CHUNK_NS)
    assert b.read(0, 1) == NotYet(3 * CHUNK_NS)
    second.set_state(CHUNK_NS, State.STOP)  # done so far: a third; alone from here on
    ready = a.read(CHUNK_NS, 1)
    assert isinstance(ready, NotYet)
    assert ready.ready_ns == pytest.approx(CHUNK_NS + 2 / 3 * CHUNK_NS, abs=1)


def test_the_published_reading_of_the_default_profile() -> None:
    """One function alone 840 MiB/s; four at once 680 for their PF; one of four read alone 340."""

    def mib_per_s(functions: int, read_at_once: int) -> float:
        firmware, memory = Firmware(CONNECTX7), bytearray(160 * MIB)
        files = [opened_late(Device(f"vf{i}", memory, firmware)) for i in range(functions)]
        start = now = 10**9
        for file in files:  # all have their two chunks and wait
            file.poll(now)
        reading = files[:read_at_once]
        while any(waits := [drain(file, now) for file in reading]):
            now = min(wait.ready_ns for wait in waits if wait)
        size = read_at_once * (len(memory) - 16 * MIB)  # two chunks each were there before
        return size / MIB / (now - start) * 1e9

    assert mib_per_s(1, 1) == pytest.approx(840, rel=0.01)
    assert mib_per_s(4, 4) == pytest.approx(675, rel=0.01)
    assert mib_per_s(4, 1) == pytest.approx(337, rel=0.01)


def opened_late(device: Device) -> SaveFile:
    now = 0
    while isinstance(file := device.set_state(now, State.STOP_COPY), NotYet):
        now = file.ready_ns
    assert isinstance(file, SaveFile)
    return file


def drain(file: SaveFile, now_ns: int) -> NotYet | None:
    while views := file.read(now_ns, MIB):
        if isinstance(views, NotYet):
            return views
    return None


# -- PRE_COPY ------------------------------------------------------------------------------------------

PRECOPY = Plan(precopy_bytes=700, initial_bytes=400, increment_bytes=200, chunk_bytes=128)


def test_pre_copy_gives_its_share_and_the_rest_comes_after_the_stop() -> None:
    mock = device(plan=PRECOPY)
    file = opened(mock, State.PRE_COPY)
    first = 24 + 16 + 400
    assert mock.precopy_info(0, file) == Precopy(first, 0, False)
    assert read(file, size_max=100) == (size_record(4096) + record(STATE[:400]))[:100]
    assert mock.precopy_info(0, file) == Precopy(first - 100, 0, False)
    assert len(read(file)) == first - 100
    assert failed(file) == errno.ENOMSG
    assert failed(file) == errno.ENOMSG
    assert file.poll(0) == 0
    # The question starts the increment; what it tells leaves out the record's header.
    assert mock.precopy_info(0, file) == Precopy(0, 200, False)
    assert mock.precopy_info(0, file) == Precopy(0, 216 + 100, False)
    assert read(file) == record(STATE[400:600])
    assert mock.precopy_info(0, file) == Precopy(0, 100, False)
    assert read(file) == record(STATE[600:700])
    assert mock.precopy_info(0, file) == Precopy(0, 0, False)
    assert failed(file) == errno.ENOMSG
    assert mock.set_state(0, State.PRE_COPY_P2P) is None
    assert mock.precopy_info(0, file) == Precopy(0, 0, False)
    assert mock.set_state(0, State.STOP_COPY) is None
    assert read(file) == record(STATE[700:828]) + record(STATE[828:956]) + record(STATE[956:])
    assert read(file) == b""
    assert mock.data_size(0) == len(STATE)


def test_the_second_version_counts_the_header_and_tells_of_a_new_beginning() -> None:
    mock = device(plan=PRECOPY)
    mock.precopy_v2 = True
    file = opened(mock, State.PRE_COPY)
    read(file)
    told = mock.precopy_info(0, file)
    assert told == Precopy(0, 216, False)
    assert len(read(file, size_max=6)) == 6
    mock.reinitialise()
    assert mock.precopy_info(0, file) == Precopy(210 + 16 + 100, 0, True)
    assert mock.precopy_info(0, file) == Precopy(210 + 16 + 100, 0, False)
    assert len(read(file)) == 210 + 16 + 100


def test_an_increment_is_not_started_while_something_is_unread_or_the_device_is_stopped() -> None:
    mock = device(plan=PRECOPY)
    file = opened(mock, State.PRE_COPY_P2P)
    read(file)
    assert mock.precopy_info(0, file) == Precopy(0, 0, False)
    assert failed(file) == errno.ENOMSG


def test_the_sizes_wait_for_a_running_save() -> None:
    mock = device(SLOW, PRECOPY)
    file = opened(mock, State.PRE_COPY)
    assert mock.precopy_info(0, file) == NotYet(CHUNK_NS)
    assert mock.set_state(1, State.PRE_COPY_P2P) == NotYet(CHUNK_NS)
    assert mock.get_state(1) == NotYet(CHUNK_NS)
    assert mock.precopy_info(CHUNK_NS, file) == Precopy(440, 0, False)


def test_leaving_pre_copy_ends_the_session() -> None:
    mock = device(plan=PRECOPY)
    file = opened(mock, State.PRE_COPY)
    mock.set_state(0, State.RUNNING)
    assert failed(file) == errno.ENODEV
    assert file.poll(0) & POLL_RDHUP
    again = opened(mock, State.PRE_COPY)
    assert len(read(again)) == 440
    assert failed(file) == errno.ENODEV
    with pytest.raises(DeviceError) as caught:
        mock.precopy_info(0, file)
    assert caught.value.errno == errno.ENODEV


# -- how a session dies --------------------------------------------------------------------------------


def test_a_read_fails_at_its_byte_and_for_good() -> None:
    file = opened(device(faults=Faults(read=ByteFault(50, errno.EIO))))
    assert len(read(file)) == 50
    assert failed(file) == errno.EIO
    assert failed(file) == errno.ENODEV


def test_a_save_that_fails_kills_the_session_while_a_reader_waits() -> None:
    mock = device(SLOW, Plan(chunk_bytes=256), Faults(save=SaveFault(300)))
    file = opened(mock)
    read(file)
    assert file.read(0, 10) == NotYet(CHUNK_NS)
    assert len(read(file, CHUNK_NS)) == 272
    assert failed(file, 2 * CHUNK_NS) == errno.ENODEV
    assert mock.set_state(2 * CHUNK_NS, State.STOP) is None


def test_a_dead_session_cannot_be_stopped_and_leaving_pre_copy_tells_so() -> None:
    mock = device(plan=PRECOPY, faults=Faults(save=SaveFault(10)))
    file = opened(mock, State.PRE_COPY)
    assert failed(file) == errno.ENODEV
    with pytest.raises(DeviceError) as caught:
        mock.set_state(0, State.STOP_COPY)
    assert caught.value.errno == errno.ENODEV
    assert mock.state is State.PRE_COPY_P2P
    with pytest.raises(DeviceError) as caught:
        mock.set_state(0, State.RUNNING_P2P)
    assert caught.value.errno == errno.EIO
    assert mock.set_state(0, State.RUNNING) is None


def test_after_a_bad_resource_in_pre_copy_the_stop_saves_everything() -> None:
    mock = device(plan=PRECOPY, faults=Faults(save=SaveFault(450, bad_resource=True)))
    file = opened(mock, State.PRE_COPY)
    read(file)
    assert mock.precopy_info(0, file) == Precopy(0, 200, False)
    assert failed(file) == errno.ENOMSG
    assert mock.precopy_info(0, file) == Precopy(0, 0, False)
    mock.set_state(0, State.STOP_COPY)
    assert read(file) == b"".join(record(STATE[at : at + 128]) for at in range(0, len(STATE), 128))


def test_a_session_stays_dead_though_a_save_had_ended_unseen_before() -> None:
    """Nobody asked since: the SAVE's end, and the beginning of the next one, are made up for when it dies."""
    mock = device(SLOW, Plan(chunk_bytes=256))
    file = opened(mock)
    mock.release(CHUNK_NS + 1, file)
    mock.firmware.advance(9 * CHUNK_NS)
    assert failed(file, 9 * CHUNK_NS) == errno.ENODEV
    assert file.chunks_ahead == 0


def test_a_session_whose_read_failed_stays_dead_when_the_save_under_way_ends() -> None:
    file = opened(device(SLOW, Plan(chunk_bytes=512), Faults(read=ByteFault(0, errno.EIO))))
    assert failed(file, CHUNK_NS) == errno.EIO
    for now in (CHUNK_NS, 2 * CHUNK_NS, 9 * CHUNK_NS):  # the second of two chunks, and the last, is saved
        assert failed(file, now) == errno.ENODEV


def test_a_plan_and_a_device_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError):
        Plan(chunk_bytes=0)
    with pytest.raises(ValueError, match="bytes in 10 of memory"):
        Device("vf0", bytearray(10), Firmware(UNLIMITED), state_bytes=11)
    with pytest.raises(ValueError, match="PRE_COPY needs a share"):
        Device("vf0", bytearray(1), Firmware(UNLIMITED), plan=PRECOPY)
