# SPDX-License-Identifier: GPL-2.0-or-later
"""The records of a device's state, followed from header to header without looking at what they hold.

Only a state that opens as mlx5's save stream does is followed; of any other nothing is known. Legal is
what the driver writes: one STOP_COPY_SIZE, then firmware data. A record of a tag that is not known yet,
marked as one that a reader may skip, is let pass.

Source: Linux drivers/vfio/pci/mlx5/main.c: mlx5vf_add_stop_copy_header; cmd.c: add_buf_header
"""

from __future__ import annotations

from array import array

from mockdev.vfio.mlx5_stream import (
    FLAG_OPTIONAL,
    LOAD_SIZE_MAX,
    RECORD_HEADER,
    RecordHeader,
    Tag,
    stop_copy_size_record,
)

_OPENING = RECORD_HEADER.unpack(stop_copy_size_record(0))
_KNOWN = frozenset(Tag)


class Records:
    """One image's records. take() its bytes in order, as ranges of `view`.

    recognised: it opens as mlx5's stream does. problem: what is wrong with a header, "" so far; nothing
    is read after it. problem_idx: the buffer (-1: of the main channel) that this header ends in.
    """

    def __init__(self, view: memoryview) -> None:
        self.recognised = False
        self.problem = ""
        self.problem_idx = -1
        self._view = view
        self._at = 0
        self._left = 0  # bytes of the current record that have not come
        self._head = bytearray()  # what has come of the next header
        self._firmware = 0
        self._over = False

    def take(self, ranges: array[int], size: int, idx: int) -> None:
        """The next `size` bytes, which buffer `idx` (-1: the main channel) brought."""
        if self._left >= size:  # most buffers lie within a record
            self._left -= size
            self._at += size
            return
        flat = iter(ranges)
        for start, stop in zip(flat, flat, strict=True):
            while start < stop:
                if self._over:
                    return
                start += self._skip(stop - start) if self._left else self._read(start, stop, idx)

    @property
    def unfinished(self) -> str:
        """What is wrong with an image that has no more bytes than came; "" when it may end here."""
        if self._left:
            return f"it ends {self._left} bytes before its last record does"
        if self._head:
            return f"it ends {RECORD_HEADER.size - len(self._head)} bytes before a record's header does"
        return "" if self._firmware else "it holds no firmware data"

    def _skip(self, size: int) -> int:
        skipped = min(size, self._left)
        self._left -= skipped
        self._at += skipped
        return skipped

    def _read(self, start: int, stop: int, idx: int) -> int:
        """Read what there is of a header; how many bytes that were."""
        stop = min(stop, start + RECORD_HEADER.size - len(self._head))
        self._head += self._view[start:stop]
        self._at += stop - start
        if len(self._head) == RECORD_HEADER.size:
            self._header(RECORD_HEADER.unpack(self._head), idx)
            self._head.clear()
        return stop - start

    def _header(self, record: RecordHeader, idx: int) -> None:
        if not self.recognised:
            self.recognised = record == _OPENING
            self._over = not self.recognised
        elif not _legal(record):
            size, flags, tag = record
            place = self._at - RECORD_HEADER.size
            self.problem = f"at byte {place} there is no record: size {size}, flags {flags:#x}, tag {tag:#x}"
            self.problem_idx = idx
            self._over = True
        if not self._over:
            self._left = record.record_size
            self._firmware += record.tag == Tag.FW_DATA


def _legal(record: RecordHeader) -> bool:
    """Whether a record may stand after the first."""
    size, flags, tag = record
    if tag == Tag.FW_DATA:
        return not flags and 0 < size <= LOAD_SIZE_MAX
    return tag not in _KNOWN and flags == FLAG_OPTIONAL and size <= LOAD_SIZE_MAX
