# SPDX-License-Identifier: GPL-2.0-or-later
"""A capture that is still being written, read as far as its packets are whole.

The file is mapped once, over more address space than it will need: pages that it grows into can be read
at the same place, so that ranges of the bytes stay good. Nothing behind the last whole block is looked at:
a file may be made ahead (zeros), or its last block may be in the middle of being written.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from verifier.capture import pcap
from verifier.capture.opening import GZIP_MAGIC, ZSTD_MAGIC, CaptureError, open_file
from verifier.capture.pcapng import BLOCK_BYTES_MIN, ORDERS, SECTION_MAGIC, Capture

_SPACES = (1 << 40, 1 << 36, 1 << 32)  # bytes of address space, tried in turn
_STEP_BYTES = 8 << 20  # of a file that has much more, so that others get their turn
_BLOCK_BYTES_MAX = 1 << 29
_DOUBTS_MAX = 50
_MAP_FIXED = 0x10


def open_growing(path: Path, turn: Callable[[bool], None]) -> GrowingCapture | None:
    """Open a plain pcap or pcapng file that somebody writes; None while its first header is not there.

    turn: called with True, to wait a little, whenever all that is there was read, and with False after every
    few megabytes; what it raises ends the reading. Raises CaptureError: the file is no such capture.
    """
    with open_file(path) as file:
        head = file.read(pcap.HEADER_BYTES)
        if len(head) < pcap.HEADER_BYTES:
            return None
        if head.startswith(GZIP_MAGIC) or head[:4] == ZSTD_MAGIC:
            raise CaptureError(f"{path} is compressed: it can be read once it is whole")
        if head[:4] == SECTION_MAGIC:
            return GrowingCapture(path, file, "pcapng", turn)
        if not pcap.byte_order(head[:4]):
            raise CaptureError(f"{path} is not a capture: it begins with {head[:4].hex()}")
        return GrowingCapture(path, file, "pcap", turn)


class GrowingCapture(Capture):
    """As Capture, of a file that may grow: `size` is that of its whole blocks so far.

    Nobody may shorten the file below that: who reads then is killed (SIGBUS).
    """

    grows = True

    def __init__(self, path: Path, file: IO[bytes], kind: str, turn: Callable[[bool], None]) -> None:
        self._file = os.dup(file.fileno())
        self._turn = turn
        self._order = "<"
        self._doubts = 0  # looks in a row at a block that makes no sense
        super().__init__(path, _map_ahead(path, self._file), kind, "")
        self.size = 0 if kind == "pcapng" else pcap.HEADER_BYTES
        if kind == "pcap":
            self._order = pcap.byte_order(self.data[:4])

    def packets(self) -> Iterator[pcap.Packet]:
        """As Capture.packets, without an end: once the first block is there."""
        if not self.size:
            self.more()
        yield from super().packets()

    def close(self) -> None:
        """As Capture.close."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        super().close()

    @property
    def behind(self) -> int:
        """Bytes of the file that are not part of a whole block, or not yet looked at."""
        return os.fstat(self._file).st_size - self.size

    def more(self) -> int:
        """Waits until there is more."""
        self._turn(False)
        while not self._advance():
            self._turn(True)
        return self.size

    def _advance(self) -> bool:
        """Count the blocks that have become whole; whether there are any."""
        there = os.fstat(self._file).st_size
        if there > len(self.data):
            raise CaptureError(f"{self.path} is over {len(self.data)} bytes, which is all that was mapped")
        step = self._block if self.format == "pcapng" else self._record
        end = self.size
        doubts = self._doubts
        while end < min(there, self.size + _STEP_BYTES) and (length := step(end, there)):
            end += length
        grown = end > self.size
        self.size = end
        if self._doubts == doubts:
            self._doubts = 0
        return grown

    def _block(self, at: int, there: int) -> int:
        """The length of the pcapng block at `at`, 0 when it is not whole."""
        if at + BLOCK_BYTES_MIN > there:
            return 0
        if self.data[at : at + 4] == SECTION_MAGIC:
            self._order = ORDERS.get(self.data[at + 8 : at + 12], self._order)
        length: int = struct.unpack_from(self._order + "I", self.data, at + 4)[0]
        if not length:
            return 0
        if not BLOCK_BYTES_MIN <= length <= _BLOCK_BYTES_MAX or length % 4:
            return self._doubt(at, length)
        if at + length > there:
            return 0
        trailer: int = struct.unpack_from(self._order + "I", self.data, at + length - 4)[0]
        return length if trailer == length else 0

    def _record(self, at: int, there: int) -> int:
        """The length of the pcap packet at `at`, with its header; 0 when it is not whole."""
        if at + pcap.RECORD_BYTES > there:
            return 0
        captured: int = struct.unpack_from(self._order + "I", self.data, at + 8)[0]
        if captured > pcap.PACKET_BYTES_MAX:
            return self._doubt(at, captured)
        length = pcap.RECORD_BYTES + captured
        return length if at + length <= there else 0

    def _doubt(self, at: int, length: int) -> int:
        """A length that makes no sense, unless it is just being written: then it soon will."""
        self._doubts += 1
        if self._doubts > _DOUBTS_MAX:
            raise CaptureError(f"{self.path}: what is at offset {at} claims a length of {length}: nonsense")
        return 0


def _map_ahead(path: Path, file: int) -> mmap.mmap:
    """Map the file and what it may grow into.

    Python maps no more of a file than there is; so it gets address space, and the file is put there.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64]
    why = ""
    for space in _SPACES:
        try:
            data = mmap.mmap(-1, space, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ)
        except OSError as error:
            why = str(error.strerror)
            continue
        place = _address(data)
        if libc.mmap(place, space, mmap.PROT_READ, mmap.MAP_SHARED | _MAP_FIXED, file, 0) == place:
            return data
        why = os.strerror(ctypes.get_errno())
        data.close()
    raise CaptureError(f"{path} cannot be mapped: {why}")


def _address(data: mmap.mmap) -> int:
    """Where read-only memory lies, which ctypes gives of writable memory only."""
    python = ctypes.PyDLL(None)  # of our own: others may have said how they call these functions
    buffer = (ctypes.c_void_p * 16)()  # a Py_buffer, whose first field is the address
    python.PyObject_GetBuffer(ctypes.py_object(data), buffer, 0)
    address = buffer[0]
    python.PyBuffer_Release(buffer)
    assert address is not None
    return address
