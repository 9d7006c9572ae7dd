# SPDX-License-Identifier: GPL-2.0-or-later
"""The resume file at a device: where bytes go, when a LOAD holds it up, and how it fails."""

from __future__ import annotations

import errno
import struct

import pytest

from mockdev.device.device import Device
from mockdev.device.faults import NO_FAULTS, ByteFault, Faults
from mockdev.device.files import POLL_OUT, NotYet, Written
from mockdev.device.resuming import ResumeFile
from mockdev.device.timing import OPAQUE, UNLIMITED, Firmware, Profile
from mockdev.errors import DeviceError
from mockdev.vfio.uapi import State

LOAD_NS = 1000
SLOW = Profile("slow", load_fixed_ns=LOAD_NS)
A, B = bytes(range(100)), bytes(range(100, 200))


def record(payload: bytes) -> bytes:
    return struct.pack("<QII", len(payload), 0, 0) + payload


STREAM = struct.pack("<QIIQ", 8, 1, 1, 4096) + record(A) + record(B)
FIRST_END = 24 + 16 + len(A)


def resuming(
    profile: Profile = UNLIMITED, size: int = 300, faults: Faults = NO_FAULTS
) -> tuple[Device, ResumeFile]:
    device = Device("vf0", bytearray(size), Firmware(profile), faults=faults)
    file = device.set_state(0, State.RESUMING)
    assert isinstance(file, ResumeFile)
    return device, file


def write_all(file: ResumeFile, data: bytes | memoryview) -> None:
    """What a blocking write does."""
    rest, now = memoryview(data), 0
    while True:
        wrote = file.write(now, rest)
        rest = rest[wrote.consumed :]
        if not rest and wrote.ready_ns <= now:
            return
        now = wrote.ready_ns


def failed(file: ResumeFile, data: bytes, now_ns: int = 0) -> int:
    with pytest.raises(DeviceError) as caught:
        file.write(now_ns, memoryview(data))
    return caught.value.errno


def test_images_lie_one_after_another_in_the_devices_memory() -> None:
    device, file = resuming()
    assert file.write(0, memoryview(STREAM)) == Written(len(STREAM), 0)
    assert (file.loads, file.loaded_bytes, file.written_bytes) == (2, 200, len(STREAM))
    device.set_state(0, State.STOP)
    assert device.image == A + B
    assert device.state_bytes == 200
    assert failed(file, b"x") == errno.ENODEV


@pytest.mark.parametrize("cut", range(len(STREAM) + 1))
def test_a_span_tells_where_the_bytes_to_come_will_lie(cut: int) -> None:
    device, file = resuming()
    file.write(0, memoryview(STREAM)[:cut])
    span = file.span
    write_all(file, STREAM[cut:])
    device.set_state(0, State.STOP)
    inside = [start for start in (40, 156) if start <= cut < start + 100]
    assert inside == ([] if span is None else [span.start])
    if span is not None:
        stream = STREAM[span.start : span.start + span.size]
        assert device.image[span.image_at : span.image_at + span.size] == stream


def test_an_opaque_device_takes_bare_bytes() -> None:
    device, file = resuming(OPAQUE)
    file.write(0, memoryview(A))
    file.write(0, memoryview(b""))
    file.write(0, memoryview(B))
    device.set_state(0, State.STOP)
    assert device.image == A + B
    assert failed(resuming(OPAQUE, size=99)[1], A) == errno.ENOMEM


def test_a_load_holds_the_file_and_the_device_up() -> None:
    device, file = resuming(SLOW)
    assert file.write(0, memoryview(STREAM)) == Written(FIRST_END, LOAD_NS)
    rest = memoryview(STREAM)[FIRST_END:]
    assert file.write(LOAD_NS - 1, rest) == Written(0, LOAD_NS)
    assert device.get_state(1) == NotYet(LOAD_NS)
    assert device.set_state(1, State.STOP) == NotYet(LOAD_NS)
    assert file.loads == 0
    assert file.write(LOAD_NS, rest) == Written(len(rest), 2 * LOAD_NS)
    assert file.write(2 * LOAD_NS, memoryview(b"")) == Written(0, 2 * LOAD_NS)
    assert file.loads == 2
    assert file.poll(0) & POLL_OUT
    assert device.get_state(2 * LOAD_NS) is State.RESUMING


@pytest.mark.parametrize("profile", [UNLIMITED, SLOW])
@pytest.mark.parametrize(("offset", "loads"), [(0, 0), (99, 0), (100, 1), (199, 1)])
def test_a_load_fails_at_its_byte_and_for_good(profile: Profile, offset: int, loads: int) -> None:
    _, file = resuming(profile, faults=Faults(load=ByteFault(offset, errno.EIO)))
    with pytest.raises(DeviceError) as caught:
        write_all(file, STREAM)
    assert caught.value.errno == errno.EIO
    assert file.loads == loads
    assert failed(file, b"x", 9 * LOAD_NS) == errno.ENODEV


def test_more_state_than_the_device_holds_is_refused_before_it_comes() -> None:
    _, file = resuming(size=150)
    assert file.write(0, memoryview(STREAM)[:FIRST_END]) == Written(FIRST_END, 0)
    assert failed(file, STREAM[FIRST_END : FIRST_END + 16]) == errno.ENOMEM
    assert failed(file, STREAM[FIRST_END:]) == errno.ENODEV
    assert file.received_bytes == 100


def test_a_wrong_record_ends_the_session_though_bytes_were_taken() -> None:
    _, file = resuming()
    assert failed(file, STREAM + struct.pack("<QII", 1, 0, 9)) == errno.EOPNOTSUPP
    assert file.loads == 2
    assert failed(file, STREAM) == errno.ENODEV


@pytest.mark.parametrize("cut", [0, 10, 30, 60, FIRST_END, FIRST_END + 3, len(STREAM) - 1])
def test_a_cut_stream_is_not_noticed_by_leaving_but_can_be_asked(cut: int) -> None:
    device, file = resuming()
    file.write(0, memoryview(STREAM)[:cut])
    assert file.inside_record is (cut not in (0, FIRST_END))
    assert device.set_state(0, State.RUNNING) is None
    assert file.loaded_bytes == (0 if cut < FIRST_END else 100)


@pytest.mark.parametrize("size", [1, 7, 90, len(STREAM)])
@pytest.mark.parametrize("ask_after", [1, 3, 1000])
def test_what_passed_can_be_read_back_in_order(size: int, ask_after: int) -> None:
    _, file = resuming()
    skipped = struct.pack("<QII", 40, 1, 7) + bytes(range(40))  # kept nowhere else
    stream = memoryview(STREAM + skipped + record(B))
    told = b""
    for number, at in enumerate(range(0, len(stream), size), 1):
        write_all(file, stream[at : at + size])
        if not number % ask_after:
            told += b"".join(file.passed())
            assert (len(told), file.aside_bytes) == (min(at + size, len(stream)), 0)
    assert told + b"".join(file.passed()) == stream
    assert b"".join(file.passed()) == b""


def test_what_passed_is_the_state_as_the_device_has_it_now() -> None:
    device, file = resuming()
    file.write(0, memoryview(STREAM))
    device.memory[len(A)] ^= 1
    wrong = bytearray(STREAM)
    wrong[FIRST_END + 16] ^= 1
    assert b"".join(file.passed()) == wrong


def test_each_file_goes_one_way() -> None:
    device, file = resuming()
    with pytest.raises(DeviceError) as caught:
        file.read(0, 1)
    assert caught.value.errno == errno.EBADF
    save = device.set_state(0, State.STOP_COPY)
    assert save is not None
    assert not isinstance(save, NotYet)
    with pytest.raises(DeviceError) as caught:
        save.write(0, memoryview(b"x"))
    assert caught.value.errno == errno.EBADF
