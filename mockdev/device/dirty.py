# SPDX-License-Identifier: GPL-2.0-or-later
"""The log of a device's DMA writes, as asked for with the DMA_LOGGING features.

What the device writes comes from a source that the owner sets; the log keeps ranges of pages, not
pages, so that a large write costs no more than a small one.

Source: Linux drivers/vfio/vfio_main.c: vfio_ioctl_device_feature_logging_start, _logging_report;
drivers/vfio/iova_bitmap.c
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple, Protocol

from mockdev.device.files import Struck
from mockdev.errors import DeviceError

PAGE_SIZE_MIN = 4096
RANGES_MAX = 256  # what fits one page of the caller's
_ADDRESS_MAX = 2**64 - 1
_BITMAP_PIECE = 1 << 16  # bytes of a bitmap changed at once


class Range(NamedTuple):
    """Bytes of I/O address space."""

    iova: int
    length: int


DirtySource = Callable[[int], Iterable[Range]]
"""Called with now_ns: what the device wrote since the last call."""


class UserMemory(Protocol):
    """The caller's memory, for ioctls whose argument points to more."""

    def read(self, address: int, size: int) -> bytes:
        """DeviceError(EFAULT): not readable."""

    def write(self, address: int, data: bytes) -> None:
        """DeviceError(EFAULT): not writable."""


def no_writes(_now_ns: int) -> Iterable[Range]:
    """A device that writes nothing."""
    return ()


def _span(iova: int, length: int) -> tuple[int, int]:
    if iova + length > _ADDRESS_MAX:
        raise DeviceError(errno.EOVERFLOW, f"{length} bytes from {iova:#x} wrap around")
    return iova, iova + length


class DirtyLog:
    """One device's log. source: where its writes come from; may be replaced at any time.

    start_errno, report_errno: what beginning, or a report of a log that is on, fails with; 0: it does not.
    """

    def __init__(self, source: DirtySource = no_writes) -> None:
        self.source = source
        self.active = False
        self.start_errno = 0
        self.report_errno = 0
        self.on_fault: Struck = lambda _now_ns: None
        self._logged: list[tuple[int, int]] = []  # address spaces that are watched
        self._dirty: list[tuple[int, int]] = []  # [start, end), sorted and apart after _merge

    def start(self, now_ns: int, page_size: int, ranges: Sequence[Range]) -> int:
        """Begin; returns the page size that the device uses.

        DeviceError: EINVAL (no range, already on, not aligned to page_size, overlapping), E2BIG (more
        than 256 ranges), EOVERFLOW (a range wraps).
        """
        check_range_count(len(ranges))
        if page_size < 1 or page_size & (page_size - 1):
            raise DeviceError(errno.EINVAL, f"a page of {page_size} bytes")
        spans = []
        for iova, length in ranges:
            if not length or iova % page_size or length % page_size:
                raise DeviceError(errno.EINVAL, f"range {iova:#x}+{length:#x} is not made of whole pages")
            spans.append(_span(iova, length))
        spans.sort()
        if any(after[0] < before[1] for before, after in pairwise(spans)):
            raise DeviceError(errno.EINVAL, "ranges overlap")
        if self.active:
            raise DeviceError(errno.EINVAL, "the log is on")
        if self.start_errno:
            raise DeviceError(self.start_errno, "no tracker can be had")
        for _ in self.source(now_ns):  # what was written before does not count
            pass
        self.active = True
        self._logged = spans
        self._dirty = []
        return max(page_size, PAGE_SIZE_MIN)

    def stop(self) -> None:
        """End and forget; no error when it is off."""
        self.active = False
        self._logged = []
        self._dirty = []

    def report(self, now_ns: int, iova: int, length: int, page_size: int) -> list[tuple[int, int]]:
        """Pages written since last reported, as [first, after) numbers from `iova`; the log forgets them.

        DeviceError: EINVAL (log off, page size below 4096 or no power of two), EOVERFLOW (wraps).
        """
        if page_size < PAGE_SIZE_MIN or page_size & (page_size - 1):
            raise DeviceError(errno.EINVAL, f"a page of {page_size} bytes")
        start, end = _span(iova, length)
        if not self.active:
            raise DeviceError(errno.EINVAL, "the log is off")
        if self.report_errno:
            self.on_fault(now_ns)
            raise DeviceError(self.report_errno, "the tracker has failed")
        self._collect(now_ns)
        pages: list[tuple[int, int]] = []
        kept: list[tuple[int, int]] = []
        for low, high in self._dirty:
            inside_low, inside_high = max(low, start), min(high, end)
            if inside_low >= inside_high:
                kept.append((low, high))
                continue
            pages.append(((inside_low - start) // page_size, -((start - inside_high) // page_size)))
            kept += [part for part in ((low, inside_low), (inside_high, high)) if part[0] < part[1]]
        self._dirty = kept
        return _merge(pages)

    def _collect(self, now_ns: int) -> None:
        new = []
        for iova, length in self.source(now_ns):
            low = iova - iova % PAGE_SIZE_MIN
            high = iova + length + -(iova + length) % PAGE_SIZE_MIN
            for logged_low, logged_high in self._logged:
                if (start := max(low, logged_low)) < (end := min(high, logged_high)):
                    new.append((start, end))
        self._dirty = _merge(self._dirty + new)


def check_range_count(count: int) -> None:
    """DeviceError: EINVAL (none), E2BIG (too many): asked before the ranges themselves are read."""
    if not count:
        raise DeviceError(errno.EINVAL, "no range to log")
    if count > RANGES_MAX:
        raise DeviceError(errno.E2BIG, f"{count} ranges to log")


def set_bits(user: UserMemory, bitmap: int, pages: Iterable[tuple[int, int]]) -> None:
    """Set the bits of [first, after) page numbers in a bitmap of 64-bit little-endian words; clear none."""
    for first, after in pages:
        at = first
        while at < after:
            start = at // 8
            size = min(_BITMAP_PIECE, (after + 7) // 8 - start)
            end = min(after, (start + size) * 8)
            old = int.from_bytes(user.read(bitmap + start, size), "little")
            ones = (1 << (end - at)) - 1 << (at - start * 8)
            user.write(bitmap + start, (old | ones).to_bytes(size, "little"))
            at = end


def _merge(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged
