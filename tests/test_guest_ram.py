# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest RAM of two machines is equal only when every page that either has is; real QEMU's dumps, too."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mockdev.lab.qemu import Qemu, find_qemu
from tests.examples import examples
from verifier.guest_ram import (
    PAGE_BYTES,
    RANGES_MAX,
    SEGMENTS_MAX,
    Comparison,
    GuestRamError,
    Range,
    compare_dumps,
)

_EHDR = struct.Struct("<4sBBBB8xHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")
CORE, X86_64, NOTE, LOAD = 4, 62, 4, 1
RAM_BYTES = 16 << 20
MIGRATION_S_MAX = 60.0

Memory = Sequence[tuple[int, bytes]]


def core(memory: Memory, *, kind: int = CORE, machine: int = X86_64, elf_class: int = 2) -> bytes:
    """A dump with that memory at those physical addresses, and a note before it, as QEMU writes one."""
    headers = [_PHDR.pack(NOTE, 0, 0, 0, 0, 0, 0, 0)]
    offset = _EHDR.size + _PHDR.size * (len(memory) + 1)
    for start, data in memory:
        headers.append(_PHDR.pack(LOAD, 0, offset, 0, start, len(data), len(data), 0))
        offset += len(data)
    sizes = (_EHDR.size, _PHDR.size, len(headers), 0, 0, 0)
    head = _EHDR.pack(b"\x7fELF", elf_class, 1, 1, 0, kind, machine, 1, 0, _EHDR.size, 0, 0, *sizes)
    return head + b"".join(headers) + b"".join(data for _, data in memory)


def compare(folder: Path, source: Memory | bytes, target: Memory | bytes) -> Comparison:
    """What comes of two dumps."""
    paths = folder / "source", folder / "target"
    for path, content in zip(paths, (source, target), strict=True):
        path.write_bytes(content if isinstance(content, bytes) else core(content))
    return compare_dumps(*paths)


def pages(count: int, seed: int = 1) -> bytes:
    """Pages that are all different."""
    return b"".join((seed * 1000 + n).to_bytes(8, "little") * (PAGE_BYTES // 8) for n in range(count))


def changed(data: bytes, *at: int) -> bytes:
    """The same with other bytes at those places."""
    out = bytearray(data)
    for place in at:
        out[place] ^= 0x80
    return bytes(out)


def test_the_same_memory_is_equal_however_it_is_cut_and_wherever_it_stands(tmp_path: Path) -> None:
    low, high = pages(300), pages(5, 2)
    cut = 100 * PAGE_BYTES
    found = compare(
        tmp_path,
        [(0, low), (1 << 32, high)],
        [(1 << 32, high), (cut, low[cut:]), (0, low[:cut])],
    )
    assert found.equal
    assert (found.pages, str(found)) == (305, "305 pages equal")


def test_every_page_that_differs_is_found_and_neighbours_are_one_range(tmp_path: Path) -> None:
    low = pages(300)
    bad = changed(low, 0, 5 * PAGE_BYTES - 1, 5 * PAGE_BYTES, 299 * PAGE_BYTES + 7)
    found = compare(tmp_path, [(0x10000, low)], [(0x10000, bad)])
    assert not found.equal
    assert found.differing.size_bytes == 4 * PAGE_BYTES
    assert found.differing.first == [
        Range(0x10000, PAGE_BYTES),
        Range(0x10000 + 4 * PAGE_BYTES, 2 * PAGE_BYTES),
        Range(0x10000 + 299 * PAGE_BYTES, PAGE_BYTES),
    ]
    assert "0x10000-0x10fff, 0x14000-0x15fff" in str(found)


def test_what_one_side_alone_has_is_found(tmp_path: Path) -> None:
    found = compare(tmp_path, [(0, pages(3)), (0x100000, pages(1))], [(0, pages(2)), (0x200000, pages(4))])
    assert not found.equal
    assert found.pages == 2
    assert found.differing.count == 0
    assert found.source_only.first == [Range(2 * PAGE_BYTES, PAGE_BYTES), Range(0x100000, PAGE_BYTES)]
    assert found.target_only.first == [Range(0x200000, 4 * PAGE_BYTES)]
    assert "8192 bytes (0x2000-0x2fff, 0x100000-0x100fff) only at the source" in str(found)


def test_ranges_are_bounded_and_all_are_counted(tmp_path: Path) -> None:
    count = 3 * RANGES_MAX
    data = pages(2 * count)
    found = compare(tmp_path, [(0, data)], [(0, changed(data, *range(0, len(data), 2 * PAGE_BYTES)))])
    assert len(found.differing.first) == RANGES_MAX
    assert (found.differing.count, found.differing.size_bytes) == (count, count * PAGE_BYTES)
    assert str(found).count("-") == RANGES_MAX
    assert "..." in str(found)


def test_memory_off_the_page_grid_is_compared_to_its_ends(tmp_path: Path) -> None:
    data = pages(3)
    assert compare(tmp_path, [(100, data)], [(100, data)]).equal
    found = compare(tmp_path, [(100, data)], [(100, changed(data, 0, len(data) - 1))])
    assert found.differing.first == [
        Range(100, PAGE_BYTES - 100),
        Range(3 * PAGE_BYTES, 100),
    ]


@given(
    places=st.lists(st.integers(0, 3 * (1 << 18) - 1), max_size=8),
    cuts=st.lists(st.integers(1, 191), max_size=4, unique=True),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=examples(30))
def test_any_changes_are_found_at_their_pages(tmp_path: Path, places: list[int], cuts: list[int]) -> None:
    data = pages(192)
    edges = [0, *sorted(cut * PAGE_BYTES for cut in cuts), len(data)]
    segments = [(a, data[a:b]) for a, b in pairwise(edges)]
    found = compare(tmp_path, segments, [(0, changed(data, *set(places)))])
    wrong = {page for r in found.differing.first for page in range(r.start, r.start + r.size, PAGE_BYTES)}
    assert wrong == {place - place % PAGE_BYTES for place in places}
    assert found.pages == 192


# --- dumps that are none ---------------------------------------------------------------------------

GOOD = core([(0, pages(2)), (0x100000, pages(1))])


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (b"", "is no ELF file"),
        (
            b"KDUMP   " + bytes(5000),
            "is no ELF file; dump-guest-memory writes one when it is given no format",
        ),
        (GOOD[:3], "is no ELF file"),
        (GOOD[:40], "has a broken ELF header, or is cut in it"),
        (GOOD[:100], "has a broken ELF header, or is cut in it"),
        (GOOD[:-1], "is cut: memory at 0x100000 should end at byte"),
        (core([(0, pages(1))], kind=2), "is no 64-bit core but ELF64 of type ET_EXEC"),
        (core([]), "holds no memory"),
        (core([(0, pages(2)), (PAGE_BYTES, pages(1))]), "has 0x1000 twice; was it taken with paging=true?"),
        (
            core([((1 << 64) - 4096, pages(2))]),
            "says that there are 8192 bytes of memory at 0xfffffffffffff000",
        ),
        (core([(0, pages(1))], machine=183), "EM_X86_64 (little-endian), "),
    ],
)
def test_a_dump_that_is_none_gets_a_sentence(tmp_path: Path, bad: bytes, why: str) -> None:
    with pytest.raises(GuestRamError) as caught:
        compare(tmp_path, GOOD, bad)
    assert why in str(caught.value)
    assert str(tmp_path / "target") in str(caught.value)


def test_a_dump_that_is_not_there_gets_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(GuestRamError, match="there is no such file"):
        compare_dumps(tmp_path / "a", tmp_path / "b")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(GuestRamError, match="there is no such file"):
        compare_dumps(tmp_path / "fifo", tmp_path / "fifo")


def test_a_flood_of_segments_is_refused(tmp_path: Path) -> None:
    # More than 65535 of them are counted in the first section header.
    head = bytearray(GOOD)
    struct.pack_into("<Q", head, 40, len(GOOD))
    struct.pack_into("<HHHH", head, 56, 0xFFFF, 64, 1, 0)
    section = struct.pack("<IIQQQQIIQQ", 0, 0, 0, 0, 0, 0, 0, SEGMENTS_MAX + 1, 0, 0)
    with pytest.raises(GuestRamError, match="has 65537 segments"):
        compare(tmp_path, GOOD, bytes(head) + section)


@given(st.lists(st.tuples(st.integers(0, 231), st.integers(0, 255)), min_size=1, max_size=6))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=examples(300))
def test_no_header_breaks_it(tmp_path: Path, edits: list[tuple[int, int]]) -> None:
    bad = bytearray(GOOD)
    for place, value in edits:
        bad[place] = value
    with suppress(GuestRamError):
        compare(tmp_path, GOOD, bytes(bad))


# --- QEMU's own ------------------------------------------------------------------------------------


def machine(backend: str, *more: str) -> Qemu:
    """A machine that does not run, with RAM from `backend`."""
    arguments = ["-accel", "tcg", "-machine", "pc,memory-backend=ram", "-m", f"{RAM_BYTES >> 20}M", "-S"]
    arguments += ["-nodefaults", "-display", "none", "-vga", "none", "-net", "none"]
    return Qemu(find_qemu(), [*arguments, "-object", f"{backend},id=ram,size={RAM_BYTES >> 20}M", *more])


def await_completion(qemu: Qemu) -> None:
    """Until its migration has completed."""
    deadline = time.monotonic() + MIGRATION_S_MAX
    while (state := qemu.execute("query-migrate"))["status"] != "completed":
        assert state["status"] not in ("failed", "cancelled"), state
        assert time.monotonic() < deadline, state
        time.sleep(0.005)


def test_ram_that_qemu_migrated_is_equal_and_that_of_another_machine_is_not(tmp_path: Path) -> None:
    content = os.urandom(RAM_BYTES)
    files = tmp_path / "ram", tmp_path / "other ram"
    for path, data in zip(files, (content, changed(content, 0x234567)), strict=True):
        path.write_bytes(data)
    with ExitStack() as stack:
        on_file: Callable[[Path], str] = "memory-backend-file,mem-path={},share=off".format
        source, other = (stack.enter_context(machine(on_file(path))) for path in files)
        target = stack.enter_context(machine("memory-backend-ram", "-incoming", "defer"))
        uri = f"unix:{tmp_path / 'migration'}"
        target.execute("migrate-incoming", uri=uri)
        source.execute("migrate", uri=uri)
        await_completion(source)
        dumps = {name: tmp_path / f"{name}.core" for name in ("source", "target", "other")}
        for qemu, path in zip((source, target, other), dumps.values(), strict=True):
            qemu.execute("dump-guest-memory", paging=False, protocol=f"file:{path}")
    moved = compare_dumps(dumps["source"], dumps["target"])
    assert moved.equal, str(moved)
    assert moved.pages >= RAM_BYTES // PAGE_BYTES
    unmoved = compare_dumps(dumps["source"], dumps["other"])
    assert unmoved.differing.first == [Range(0x234000, PAGE_BYTES)]
