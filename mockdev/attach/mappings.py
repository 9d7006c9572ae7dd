# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a QEMU has mapped its guest's RAM for its devices: I/O addresses to addresses of its own."""

from __future__ import annotations

import errno
from bisect import bisect_right
from collections.abc import Iterator

from mockdev.errors import DeviceError

ADDRESS_BITS = 48


class Mappings:
    """The mappings of one I/O address space; they do not overlap."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._maps: dict[int, tuple[int, int]] = {}  # (length, address of the caller's) by iova

    def add(self, iova: int, length: int, address: int) -> None:
        """Map. address 0: memory that no DMA of ours reaches. DeviceError: EINVAL, EEXIST."""
        if not length or iova + length > 1 << ADDRESS_BITS:
            raise DeviceError(errno.EINVAL, f"{length} bytes at I/O address {iova:#x}")
        if any(start < iova + length and iova < start + self._maps[start][0] for start in self._starts):
            raise DeviceError(errno.EEXIST, f"I/O address {iova:#x} is mapped")
        self._maps[iova] = (length, address)
        self._starts = sorted(self._maps)

    def remove(self, iova: int, length: int) -> int:
        """Unmap what lies wholly in a range; bytes unmapped."""
        after = iova + length
        inside = [start for start in self._starts if iova <= start and start + self._maps[start][0] <= after]
        removed = sum(self._maps.pop(start)[0] for start in inside)
        self._starts = sorted(self._maps)
        return removed

    def translate(self, iova: int, size: int) -> Iterator[tuple[int, int]]:
        """Where the caller has `size` bytes of I/O address space: (address, bytes), piece by piece.

        DeviceError(EFAULT): some of it is not mapped.
        """
        while size:
            at = bisect_right(self._starts, iova) - 1
            start = self._starts[at] if at >= 0 else 0
            length, address = self._maps.get(start, (0, 0))
            inside = iova - start
            if inside >= length or not address:
                raise DeviceError(errno.EFAULT, f"I/O address {iova:#x} is not mapped to memory")
            piece = min(size, length - inside)
            yield address + inside, piece
            iova, size = iova + piece, size - piece
