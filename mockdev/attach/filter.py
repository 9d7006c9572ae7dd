# SPDX-License-Identifier: GPL-2.0-or-later
"""The seccomp filter: which of QEMU's system calls come to us. A classic BPF program, as bytes.

Those on a descriptor of the reserved range, and one KVM request on any descriptor (it names a VFIO file in
its argument). All others go to the kernel at the cost of the filter alone.

Source: Linux include/uapi/linux/seccomp.h, include/uapi/linux/filter.h
"""

from __future__ import annotations

import platform
import struct
from typing import NamedTuple

from mockdev.errors import VfmigError
from mockdev.wire.layout import LITTLE, U32, U64, Layout


class AttachError(VfmigError):
    """This machine, or this QEMU, cannot be lent a device."""

    environment = True


class Calls(NamedTuple):
    """System call numbers of one architecture, and its AUDIT_ARCH value."""

    arch: int
    read: int
    write: int
    close: int
    ioctl: int
    pread64: int
    pwrite64: int
    openat: int
    seccomp: int
    pidfd_getfd: int


_CALLS = {
    "x86_64": Calls(0xC000003E, 0, 1, 3, 16, 17, 18, 257, 317, 438),
    "aarch64": Calls(0xC00000B7, 63, 64, 57, 29, 67, 68, 56, 277, 438),
}

KVM_SET_DEVICE_ATTR = 0x4018AEE1


class KvmDeviceAttr(NamedTuple):
    """struct kvm_device_attr. addr: of what is set, here of a descriptor (s32)."""

    flags: U32
    group: U32
    attr: U64
    addr: U64


KVM_DEVICE_ATTR = Layout(
    KvmDeviceAttr,
    c_name="kvm_device_attr",
    order=LITTLE,
    source="Linux include/uapi/linux/kvm.h: kvm_device_attr",
)

ALLOW = 0x7FFF0000
USER_NOTIF = 0x7FC00000

_LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_JUMP_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_JUMP_AT_LEAST = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_RETURN = 0x06  # BPF_RET | BPF_K
_INSTRUCTION = struct.Struct("=HBBI")

# Offsets in struct seccomp_data; of 64-bit arguments the low half, which is all that the kernel looks at.
_NUMBER = 0
_ARCH = 4
_FIRST_ARGUMENT = 16
_SECOND_ARGUMENT = 24


def calls() -> Calls:
    """This machine's numbers. AttachError: an architecture that we have none for."""
    machine = platform.machine()
    if machine not in _CALLS:
        raise AttachError(f"mock devices cannot be lent to a QEMU on {machine}, only on {', '.join(_CALLS)}")
    return _CALLS[machine]


def program(first: int, count: int, numbers: Calls, *, opens: bool = False) -> bytes:
    """The filter for descriptors `first` to `first + count - 1`, as an array of struct sock_filter.

    opens: every openat comes to us as well, whose path a filter cannot see.

    close(-1) is not in any such range: a descriptor is compared without a sign.
    """
    plain = (numbers.read, numbers.write, numbers.close, numbers.pread64, numbers.pwrite64)
    # Every step: (code, operand, label if true, label if false); "" is the next one.
    steps: list[tuple[int, int, str, str]] = [
        (_LOAD, _ARCH, "", ""),
        (_JUMP_EQUAL, numbers.arch, "", "allow"),
        (_LOAD, _NUMBER, "", ""),
        (_JUMP_EQUAL, numbers.ioctl, "ioctl", ""),
        *([(_JUMP_EQUAL, numbers.openat, "notify", "")] if opens else []),
        *((_JUMP_EQUAL, number, "descriptor", "") for number in plain[:-1]),
        (_JUMP_EQUAL, plain[-1], "descriptor", "allow"),
    ]
    labels = {"ioctl": len(steps)}
    steps += [
        (_LOAD, _SECOND_ARGUMENT, "", ""),
        (_JUMP_EQUAL, KVM_SET_DEVICE_ATTR, "notify", ""),
    ]
    labels["descriptor"] = len(steps)
    steps += [
        (_LOAD, _FIRST_ARGUMENT, "", ""),
        (_JUMP_AT_LEAST, first, "", "allow"),
        (_JUMP_AT_LEAST, first + count, "allow", "notify"),
    ]
    labels["allow"] = len(steps)
    steps.append((_RETURN, ALLOW, "", ""))
    labels["notify"] = len(steps)
    steps.append((_RETURN, USER_NOTIF, "", ""))

    def distance(at: int, label: str) -> int:
        return labels[label] - at - 1 if label else 0

    return b"".join(
        _INSTRUCTION.pack(code, distance(at, yes), distance(at, no), operand)
        for at, (code, operand, yes, no) in enumerate(steps)
    )
