# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether two machines have the same RAM: compares what QEMU's dump-guest-memory wrote of each, page by page.

Taken with paging=false at the source after it stopped and at the target before it runs, the two must be
equal. Nothing is left out: memory that a guest or a device has changed since, or that one side alone
has, is in the result.

Source: QEMU dump/dump.c: write_elf64_load, get_offset_range
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, NamedTuple

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from mockdev.errors import VfmigError

PAGE_BYTES = 4096
RANGES_MAX = 64
SEGMENTS_MAX = 1 << 16
_PIECE_BYTES = 1 << 18  # compared at once: two of them stay in a processor's cache
_ADDRESS_END = 1 << 64


class GuestRamError(VfmigError):
    """A dump that cannot be compared; the message is a sentence."""

    environment = True


class Range(NamedTuple):
    """Guest physical addresses, in bytes."""

    start: int
    size: int

    def __str__(self) -> str:
        return f"{self.start:#x}-{self.start + self.size - 1:#x}"


class Ranges:
    """Bytes of guest RAM. size_bytes: of all; first: the first RANGES_MAX ranges, neighbours as one."""

    def __init__(self) -> None:
        self.size_bytes = 0
        self.first: list[Range] = []
        self.count = 0
        self._end = -1

    def add(self, start: int, size: int) -> None:
        """One more range, at a higher address than all before."""
        self.size_bytes += size
        if start != self._end:
            self.count += 1
            if self.count <= RANGES_MAX:
                self.first.append(Range(start, size))
        elif self.count <= RANGES_MAX:
            self.first[-1] = Range(self.first[-1].start, self.first[-1].size + size)
        self._end = start + size

    def __str__(self) -> str:
        more = ", ..." if self.count > len(self.first) else ""
        return f"{self.size_bytes} bytes ({', '.join(map(str, self.first))}{more})"


class Comparison:
    """What came of it. pages: that both sides have. differing: those of them that are not equal."""

    def __init__(self) -> None:
        self.pages = 0
        self.differing = Ranges()
        self.source_only = Ranges()
        self.target_only = Ranges()

    @property
    def equal(self) -> bool:
        """Whether both sides have the same addresses with the same content."""
        return not (self.differing.count or self.source_only.count or self.target_only.count)

    def __str__(self) -> str:
        said = [f"{self.pages} pages equal"] if self.equal else [f"of {self.pages} pages"]
        for ranges, what in (
            (self.differing, "differ"),
            (self.source_only, "only at the source"),
            (self.target_only, "only at the target"),
        ):
            if ranges.count:
                said.append(f"{ranges} {what}")
        return "; ".join(said)


def compare_dumps(source: Path, target: Path) -> Comparison:
    """Compare two ELF64 dumps of guest memory. GuestRamError: one is none, cut, odd or of another machine."""
    with ExitStack() as stack:
        left, right = (stack.enter_context(_Dump(path)) for path in (source, target))
        if left.machine != right.machine:
            raise GuestRamError(f"{source} is of {left.machine}, {target} of {right.machine}")
        found = Comparison()
        for start, stop, here, there in _overlay(left.segments, right.segments):
            if here is None or there is None:
                (found.target_only if here is None else found.source_only).add(start, stop - start)
            else:
                found.pages += -(-stop // PAGE_BYTES) - start // PAGE_BYTES
                _compare(found, left.data, here, right.data, there, start, stop)
        return found


class _Segment(NamedTuple):
    """Memory at [start, stop) that the dump has at `offset`."""

    start: int
    stop: int
    offset: int


class _Dump:
    """A dump, mapped while in its block. machine: the processor, as ELF names it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> _Dump:
        if not self._path.is_file():
            raise GuestRamError(f"{self._path}: there is no such file")
        try:
            with self._path.open("rb") as file:
                self._read(file)
                self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise GuestRamError(f"{self._path} cannot be read: {error.strerror or error}") from None
        return self

    def __exit__(self, *_: object) -> None:
        self.data.close()

    def _read(self, file: IO[bytes]) -> None:
        size = file.seek(0, 2)
        file.seek(0)
        if file.read(4) != b"\x7fELF":
            raise self._odd("is no ELF file; dump-guest-memory writes one when it is given no format")
        try:
            elf = ELFFile(file)
            if elf.elfclass != 64 or elf["e_type"] != "ET_CORE":
                raise self._odd(f"is no 64-bit core but ELF{elf.elfclass} of type {elf['e_type']}")
            self.machine = f"{elf['e_machine']} ({'little' if elf.little_endian else 'big'}-endian)"
            if elf.num_segments() > SEGMENTS_MAX:
                raise self._odd(f"has {elf.num_segments()} segments; at most {SEGMENTS_MAX} are read")
            loads = [segment.header for segment in elf.iter_segments("PT_LOAD")]
        except (ELFError, OverflowError, ValueError, AttributeError) as error:
            raise self._odd(f"has a broken ELF header, or is cut in it: {error}") from None
        self.segments = sorted(self._segment(load, size) for load in loads if load["p_filesz"])
        if not self.segments:
            raise self._odd("holds no memory")
        for low, high in pairwise(self.segments):
            if high.start < low.stop:
                raise self._odd(f"has {high.start:#x} twice; was it taken with paging=true?")

    def _segment(self, load: Any, file_size: int) -> _Segment:
        start, size, offset = load["p_paddr"], load["p_filesz"], load["p_offset"]
        if offset + size > file_size:
            raise self._odd(f"is cut: memory at {start:#x} should end at byte {offset + size} of {file_size}")
        if size > load["p_memsz"] or start + size > _ADDRESS_END:
            raise self._odd(f"says that there are {size} bytes of memory at {start:#x}")
        return _Segment(start, start + size, offset)

    def _odd(self, what: str) -> GuestRamError:
        return GuestRamError(f"{self._path} {what}")


def _overlay(
    left: Sequence[_Segment], right: Sequence[_Segment]
) -> Iterator[tuple[int, int, _Segment | None, _Segment | None]]:
    """All addresses of either, in order, each with the segment of each side that has it."""
    edges = sorted({edge for segment in (*left, *right) for edge in segment[:2]})
    at = [0, 0]
    for start, stop in pairwise(edges):
        here: list[_Segment | None] = [None, None]
        for side, segments in enumerate((left, right)):
            while at[side] < len(segments) and segments[at[side]].stop <= start:
                at[side] += 1
            if at[side] < len(segments) and segments[at[side]].start <= start:
                here[side] = segments[at[side]]
        if here != [None, None]:
            yield start, stop, here[0], here[1]


def _compare(
    found: Comparison,
    left: mmap.mmap,
    here: _Segment,
    right: mmap.mmap,
    there: _Segment,
    start: int,
    stop: int,
) -> None:
    """Compare [start, stop) of both; pieces that differ page by page."""
    ours, theirs = here.offset - here.start, there.offset - there.start  # from address to place in the file
    for low in range(start - start % _PIECE_BYTES, stop, _PIECE_BYTES):
        a, b = max(low, start), min(low + _PIECE_BYTES, stop)
        if left[ours + a : ours + b] == right[theirs + a : theirs + b]:
            continue
        for page in range(a - a % PAGE_BYTES, b, PAGE_BYTES):
            c, d = max(page, a), min(page + PAGE_BYTES, b)
            if left[ours + c : ours + d] != right[theirs + c : theirs + d]:
                found.differing.add(c, d - c)
