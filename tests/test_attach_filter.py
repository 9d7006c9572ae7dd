# SPDX-License-Identifier: GPL-2.0-or-later
"""The filter, run by a small interpreter: exactly the calls that are meant come to us."""

from __future__ import annotations

import platform
import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mockdev.attach import filter as bpf
from mockdev.attach.filter import ALLOW, KVM_SET_DEVICE_ATTR, USER_NOTIF, AttachError, calls, program

FIRST, COUNT = 10_000, 13
NUMBERS = bpf._CALLS["x86_64"]
ON_A_DESCRIPTOR = (
    NUMBERS.read,
    NUMBERS.write,
    NUMBERS.close,
    NUMBERS.ioctl,
    NUMBERS.pread64,
    NUMBERS.pwrite64,
)


def run(code: bytes, arch: int, number: int, first: int, second: int) -> int:
    """Classic BPF as the kernel runs it on struct seccomp_data."""
    data = struct.pack("=iIQ6Q", number, arch, 0, first, second, 0, 0, 0, 0)
    steps = list(struct.iter_unpack("=HBBI", code))
    accumulator = at = 0
    while True:
        what, yes, no, operand = steps[at]
        at += 1
        if what == 0x20:
            accumulator = int.from_bytes(data[operand : operand + 4], "little")
        elif what == 0x15:
            at += yes if accumulator == operand else no
        elif what == 0x35:
            at += yes if accumulator >= operand else no
        else:
            assert what == 0x06
            return int(operand)


numbers = st.sampled_from(ON_A_DESCRIPTOR) | st.integers(0, 500)
descriptors = st.integers(FIRST - 2, FIRST + COUNT + 2) | st.integers(0, 2**64 - 1)
requests = st.just(KVM_SET_DEVICE_ATTR) | st.integers(0, 2**64 - 1)


@given(
    number=numbers, fd=descriptors, request=requests, arch=st.just(NUMBERS.arch) | st.integers(0, 2**32 - 1)
)
@example(number=NUMBERS.close, fd=2**32 - 1, request=0, arch=NUMBERS.arch)
@example(number=NUMBERS.ioctl, fd=7, request=KVM_SET_DEVICE_ATTR | 1 << 40, arch=NUMBERS.arch)
def test_what_comes_to_us(number: int, fd: int, request: int, arch: int) -> None:
    verdict = run(program(FIRST, COUNT, NUMBERS), arch, number, fd, request)
    low = fd & 0xFFFFFFFF
    kvm = number == NUMBERS.ioctl and request & 0xFFFFFFFF == KVM_SET_DEVICE_ATTR
    ours = number in ON_A_DESCRIPTOR and FIRST <= low < FIRST + COUNT
    assert verdict == (USER_NOTIF if arch == NUMBERS.arch and (ours or kvm) else ALLOW)


def test_an_architecture_without_numbers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(AttachError, match="riscv64"):
        calls()
