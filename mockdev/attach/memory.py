# SPDX-License-Identifier: GPL-2.0-or-later
"""The memory of a process that waits for our answer, through process_vm_readv and process_vm_writev."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Callable, Sequence

from mockdev.errors import DeviceError

_libc = ctypes.CDLL(None, use_errno=True)


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Buffer(ctypes.Structure):
    """Py_buffer: the one way to a read-only view's address."""

    _fields_ = (
        ("address", ctypes.c_void_p),
        ("owner", ctypes.c_void_p),
        ("size", ctypes.c_ssize_t),
        ("rest", ctypes.c_void_p * 8),
    )


_get_buffer = ctypes.pythonapi.PyObject_GetBuffer
_get_buffer.argtypes = (ctypes.py_object, ctypes.POINTER(_Buffer), ctypes.c_int)
_release_buffer = ctypes.pythonapi.PyBuffer_Release
_release_buffer.argtypes = (ctypes.POINTER(_Buffer),)
_release_buffer.restype = None

_Function = Callable[..., int]


for _function in (_libc.process_vm_readv, _libc.process_vm_writev):
    _function.restype = ctypes.c_ssize_t
    _function.argtypes = (
        ctypes.c_int,
        ctypes.POINTER(_Iovec),
        ctypes.c_ulong,
        ctypes.POINTER(_Iovec),
        ctypes.c_ulong,
        ctypes.c_ulong,
    )


class ProcessMemory:
    """One process's memory. pid: of any of its threads.

    DeviceError: EFAULT (not mapped, or not all of it), ESRCH (the process is gone), EPERM.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def read(self, address: int, size: int) -> bytes:
        """`size` bytes from there."""
        buffer = bytearray(size)
        self.read_into(memoryview(buffer), address)
        return bytes(buffer)

    def write(self, address: int, data: bytes) -> None:
        """Put `data` there."""
        self.write_from([memoryview(data)], address)

    def read_into(self, view: memoryview, address: int) -> None:
        """Fill a writable view with what lies there."""
        if view:
            self._move(_libc.process_vm_readv, [view], len(view), address)

    def write_from(self, views: Sequence[memoryview], address: int) -> None:
        """Put these views there, one behind the other."""
        size = sum(map(len, views))
        if size:
            self._move(_libc.process_vm_writev, views, size, address)

    def _move(self, function: _Function, views: Sequence[memoryview], size: int, address: int) -> None:
        buffers = [_Buffer() for _ in views]
        held = 0
        try:
            for view, buffer in zip(views, buffers, strict=True):
                _get_buffer(view, ctypes.byref(buffer), 0)
                held += 1
            ours = (_Iovec * len(buffers))(*(_Iovec(buffer.address, buffer.size) for buffer in buffers))
            theirs = _Iovec(address, size)
            moved = function(self.pid, ours, len(buffers), ctypes.byref(theirs), 1, 0)
        finally:
            for buffer in buffers[:held]:
                _release_buffer(ctypes.byref(buffer))
        if moved != size:
            number = ctypes.get_errno() if moved < 0 else errno.EFAULT
            raise DeviceError(number, f"{size} bytes at {address:#x} of process {self.pid}")
