# SPDX-License-Identifier: GPL-2.0-or-later
"""mlx5's save stream: records of a 16-byte header and a payload, and the machine that reads them back.

The machine makes the same choices as the kernel's, with the quirks: flags of known tags are not looked
at, STOP_COPY_SIZE may come anywhere and with any size, nothing marks the end of a stream.

Source: Linux drivers/vfio/pci/mlx5/cmd.h: struct mlx5_vf_migration_header; main.c: mlx5vf_resume_write
"""

from __future__ import annotations

import errno
from enum import Enum, IntEnum
from typing import NamedTuple

from mockdev.errors import DeviceError
from mockdev.wire.layout import LITTLE, U32, U64, Layout


class RecordHeader(NamedTuple):
    """struct mlx5_vf_migration_header. record_size: bytes of payload after the header."""

    record_size: U64
    flags: U32
    tag: U32


RECORD_HEADER = Layout(
    RecordHeader,
    c_name="mlx5_vf_migration_header",
    order=LITTLE,
    source="Linux drivers/vfio/pci/mlx5/cmd.h: mlx5_vf_migration_header",
)


class Tag(IntEnum):
    """What a record's payload is."""

    FW_DATA = 0
    STOP_COPY_SIZE = 1


FLAG_OPTIONAL = 1  # a reader that does not know the tag may skip the record
LOAD_SIZE_MAX = 2**32 - 1  # the LOAD command takes a 32-bit size
_SIZE_FIELD = 8


def image_header(size: int) -> bytes:
    """The header that stands before `size` bytes of firmware data."""
    return RECORD_HEADER.pack(RecordHeader(size, 0, Tag.FW_DATA))


def stop_copy_size_record(size: int) -> bytes:
    """The 24-byte record that opens a stream: how many bytes the reader should keep ready."""
    header = RECORD_HEADER.pack(RecordHeader(_SIZE_FIELD, FLAG_OPTIONAL, Tag.STOP_COPY_SIZE))
    return header + size.to_bytes(_SIZE_FIELD, "little")


class LoadState(Enum):
    """Where the machine is in a record."""

    __hash__ = object.__hash__  # each is one object; the enum's own is slow, and asked for every step

    READ_HEADER = "read header"
    PREP_HEADER_DATA = "prepare header data"
    READ_HEADER_DATA = "read header data"
    PREP_IMAGE = "prepare image"
    READ_IMAGE = "read image"
    LOAD_IMAGE = "load image"


class Step(NamedTuple):
    """What one step did: bytes taken; of these, a piece of image; or that a LOAD of that many is due."""

    consumed: int = 0
    image: memoryview | None = None
    load: int | None = None


_NOTHING = Step()


class ResumeMachine:
    """Reads a stream piece by piece; any split of the bytes gives the same steps in the end.

    step() while there are bytes or `work` is set. It gives image bytes as views of what came in; it
    stores none of them but the first 16 of a header or its data. A record without payload is
    finished by the step after it that has input.

    prep_size: bytes, what the last STOP_COPY_SIZE told (0 before). buffer_size: bytes of the largest
    buffer that a real driver would hold by now. records: FW_DATA records whose last byte came.
    """

    def __init__(self) -> None:
        self.state = LoadState.READ_HEADER
        self.work = False
        self.prep_size = 0
        self.buffer_size = 0
        self.records = 0
        self._record = RecordHeader(0, 0, 0)
        self._got = 0
        # The kernel collects headers and their data in one buffer; what is short keeps stale bytes.
        self._scratch = bytearray(RECORD_HEADER.size)
        self._steps = {
            LoadState.READ_HEADER: self._read_header,
            LoadState.PREP_HEADER_DATA: self._prep_header_data,
            LoadState.READ_HEADER_DATA: self._read_header_data,
            LoadState.PREP_IMAGE: self._prep_image,
            LoadState.READ_IMAGE: self._read_image,
            LoadState.LOAD_IMAGE: self._load_image,
        }

    @property
    def record_size(self) -> int:
        """Payload bytes of the record being read."""
        return self._record.record_size

    @property
    def inside_record(self) -> bool:
        """Whether a record has begun and not ended: a stream that ends here is cut."""
        return self.state is not LoadState.READ_HEADER or self._got > 0

    def step(self, data: memoryview) -> Step:
        """One move of the machine. DeviceError: ENOMEM (too large), EOPNOTSUPP (unknown mandatory tag)."""
        self.work = False
        return self._steps[self.state](data)

    def _read_header(self, data: memoryview) -> Step:
        taken = self._collect(data, RECORD_HEADER.size)
        if self._got < RECORD_HEADER.size:
            return Step(taken)
        self._got = 0
        self.work = True
        self._record = record = RECORD_HEADER.unpack(self._scratch)
        if record.record_size > LOAD_SIZE_MAX:
            raise DeviceError(errno.ENOMEM, f"a record of {record.record_size} bytes")
        if record.tag == Tag.FW_DATA:
            self.state = LoadState.PREP_IMAGE
        elif record.tag == Tag.STOP_COPY_SIZE or record.flags & FLAG_OPTIONAL:
            self.state = LoadState.PREP_HEADER_DATA
        else:
            raise DeviceError(errno.EOPNOTSUPP, f"a mandatory record with unknown tag {record.tag}")
        return Step(taken)

    def _prep_header_data(self, _data: memoryview) -> Step:
        self.state = LoadState.READ_HEADER_DATA
        return _NOTHING

    def _read_header_data(self, data: memoryview) -> Step:
        taken = self._collect(data, self._record.record_size)
        if self._got == self._record.record_size:
            self._got = 0
            self.state = LoadState.READ_HEADER
            if self._record.tag == Tag.STOP_COPY_SIZE:
                told = int.from_bytes(self._scratch[:_SIZE_FIELD], "little")
                self.prep_size = min(told, LOAD_SIZE_MAX)
        return Step(taken)

    def _prep_image(self, _data: memoryview) -> Step:
        self.buffer_size = max(self.buffer_size, self._record.record_size, self.prep_size)
        self.state = LoadState.READ_IMAGE
        return _NOTHING

    def _read_image(self, data: memoryview) -> Step:
        piece = data[: self._record.record_size - self._got]
        self._got += len(piece)
        if self._got == self._record.record_size:
            self._got = 0
            self.work = True
            self.records += 1
            self.state = LoadState.LOAD_IMAGE
        return Step(len(piece), image=piece)

    def _load_image(self, _data: memoryview) -> Step:
        if not self.buffer_size:
            raise DeviceError(errno.EINVAL, "a LOAD without any buffer")
        self.state = LoadState.READ_HEADER
        return Step(load=self._record.record_size)

    def _collect(self, data: memoryview, size: int) -> int:
        """Take up to what is missing of `size` bytes; keep those that fit the scratch buffer."""
        taken = min(len(data), size - self._got)
        keep = min(taken, max(0, len(self._scratch) - self._got))
        self._scratch[self._got : self._got + keep] = data[:keep]
        self._got += taken
        return taken
