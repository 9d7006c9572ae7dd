# SPDX-License-Identifier: GPL-2.0-or-later
"""Our descriptions of the kernel's structs and numbers, held against the headers of this machine.

A small C file that names them all is compiled with debug information; where the compiler has put each
field is then read from DWARF, and each number from the object's data. What could not be compared is a
row of the result, with the reason.
"""

from __future__ import annotations

import platform
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from elftools.common.exceptions import DWARFError, ELFError
from elftools.dwarf.die import DIE
from elftools.dwarf.dwarfinfo import DWARFInfo
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from mockdev.attach import filter as seccomp
from mockdev.vfio import iommufd, type1, uapi
from mockdev.wire.layout import LITTLE, FieldPlace, Layout

COMPILER = "cc"
_COMPILE_S_MAX = 60.0
_NESTED_MAX = 8  # structs in structs
_UAPI = re.compile(r"include/uapi/(linux/\w+\.h)")
_RESERVED = re.compile(r"reserved\d*|pad\d*")
_SIGNED = {5: True, 6: True, 7: False, 8: False}  # DW_ATE_signed, signed_char, unsigned, unsigned_char
_DATA = "vfmig"  # the section with the numbers

LAYOUTS: tuple[Layout[Any], ...] = (*uapi.LAYOUTS, *iommufd.LAYOUTS, *type1.LAYOUTS, seccomp.KVM_DEVICE_ATTR)


class Outcome(StrEnum):
    """What a comparison came to. BEGINS: one is the beginning of the other: an older or newer header."""

    MATCHES = "matches"
    BEGINS = "matches as far as both go"
    DIFFERS = "differs"
    NOT_CHECKED = "not checked"


class Row(NamedTuple):
    """A struct or number by its C name. why: what is different, or what was missing."""

    c_name: str
    outcome: Outcome
    why: str = ""


class Number(NamedTuple):
    """A macro or an enumerator, and the value that we give it."""

    c_name: str
    value: int
    header: str


def _numbers(header: str, pattern: str, values: Mapping[str, int]) -> Iterator[Number]:
    for name, value in values.items():
        yield Number(pattern.format(name), int(value), header)


def _system_calls() -> Iterator[Number]:
    """Those of this machine's processor; on one that QEMU cannot be lent a device on, there are none."""
    with suppress(seccomp.AttachError):
        numbers = seccomp.calls()._asdict()
        yield Number(f"AUDIT_ARCH_{platform.machine().upper()}", numbers.pop("arch"), "linux/audit.h")
        yield from _numbers("asm/unistd.h", "__NR_{}", numbers)


_VFIO, _IOMMUFD = "linux/vfio.h", "linux/iommufd.h"
_FEATURES = {name.replace("INFOV2", "INFOv2"): value for name, value in uapi.Feature.__members__.items()}
NUMBERS: tuple[Number, ...] = (
    *_numbers(_VFIO, "VFIO_{}", uapi.Ioctl.__members__),
    *_numbers(_VFIO, "VFIO_DEVICE_STATE_{}", uapi.State.__members__),
    *_numbers(_VFIO, "VFIO_MIGRATION_{}", uapi.MigrationFlags.__members__),
    *_numbers(_VFIO, "VFIO_DEVICE_FEATURE_{}", _FEATURES),
    *_numbers(_VFIO, "VFIO_PCI_{}_REGION_INDEX", uapi.Region.__members__),
    *_numbers(_VFIO, "VFIO_PCI_{}_IRQ_INDEX", uapi.Irq.__members__),
    Number("VFIO_DEVICE_FEATURE_MASK", uapi.FEATURE_MASK, _VFIO),
    Number("VFIO_DEVICE_FEATURE_GET", uapi.FEATURE_GET, _VFIO),
    Number("VFIO_DEVICE_FEATURE_SET", uapi.FEATURE_SET, _VFIO),
    Number("VFIO_DEVICE_FEATURE_PROBE", uapi.FEATURE_PROBE, _VFIO),
    Number("VFIO_PRECOPY_INFO_REINIT", uapi.PRECOPY_INFO_REINIT, _VFIO),
    Number("VFIO_DEVICE_FLAGS_RESET", uapi.DEVICE_FLAGS_RESET, _VFIO),
    Number("VFIO_DEVICE_FLAGS_PCI", uapi.DEVICE_FLAGS_PCI, _VFIO),
    Number("VFIO_REGION_INFO_FLAG_READ", uapi.REGION_INFO_FLAG_READ, _VFIO),
    Number("VFIO_REGION_INFO_FLAG_WRITE", uapi.REGION_INFO_FLAG_WRITE, _VFIO),
    Number("VFIO_IRQ_INFO_EVENTFD", uapi.IRQ_INFO_EVENTFD, _VFIO),
    Number("VFIO_IRQ_INFO_NORESIZE", uapi.IRQ_INFO_NORESIZE, _VFIO),
    *_numbers(_IOMMUFD, "IOMMU_{}", iommufd.Iommu.__members__),
    Number("KVM_SET_DEVICE_ATTR", seccomp.KVM_SET_DEVICE_ATTR, "linux/kvm.h"),
    Number("SECCOMP_RET_ALLOW", seccomp.ALLOW, "linux/seccomp.h"),
    Number("SECCOMP_RET_USER_NOTIF", seccomp.USER_NOTIF, "linux/seccomp.h"),
    *_system_calls(),
)


def compare(
    layouts: Iterable[Layout[Any]] = LAYOUTS,
    numbers: Iterable[Number] = NUMBERS,
    *,
    compiler: str = COMPILER,
    include: Sequence[Path] = (),
) -> list[Row]:
    """One row for each layout and number, in their order.

    include: folders whose headers come before the system's, such as a kernel's headers_install gave.
    """
    layouts, numbers = tuple(layouts), tuple(numbers)
    headers = {layout.c_name: _header(layout) for layout in layouts}
    known = tuple(layout for layout in layouts if headers[layout.c_name])
    needed = dict.fromkeys([*filter(None, headers.values()), *(n.header for n in numbers)])
    try:
        with _compiled(_probe(known, numbers, needed), compiler, include) as elf:
            found = _read(elf, set(headers))
    except _NoProbe as reason:
        names = [*(layout.c_name for layout in layouts), *(number.c_name for number in numbers)]
        return [Row(name, Outcome.NOT_CHECKED, str(reason)) for name in names]
    rows = []
    for layout in layouts:
        header, theirs = headers[layout.c_name], found.structs.get(layout.c_name)
        if theirs is None:
            why = _absent(found, header) if header else f"it is in no header of user space ({layout.source})"
            rows.append(Row(layout.c_name, Outcome.NOT_CHECKED, why))
        else:
            rows.append(Row(layout.c_name, *_judge(layout, theirs)))
    return rows + [_number_row(number, found) for number in numbers]


# --- the probe -------------------------------------------------------------------------------------


class _NoProbe(Exception):
    """Nothing could be compiled; the message says why."""


class _Member(NamedTuple):
    """A field as the compiler placed it. signed: None where it is no number."""

    name: str
    offset: int
    size: int
    signed: bool | None


class _Struct(NamedTuple):
    size: int
    members: tuple[_Member, ...]


class _Found(NamedTuple):
    """What the object says. headers: marks of those that there are."""

    structs: dict[str, _Struct]
    numbers: dict[str, int]
    headers: frozenset[str]


def _header(layout: Layout[Any]) -> str:
    """The header of user space that a layout was read from, or ""."""
    match = _UAPI.search(layout.source)
    return match[1] if match else ""


def _probe(layouts: Iterable[Layout[Any]], numbers: Iterable[Number], headers: Iterable[str]) -> str:
    """C that compiles whatever is missing: a pointer to a struct that is not there is no error."""
    lines = []
    for header in headers:
        mark = _mark(header)
        lines += [f"#if __has_include(<{header}>)", f"#include <{header}>", f"int {mark};", "#endif"]
    lines += [f"struct {layout.c_name} *of_{layout.c_name};" for layout in layouts]
    place = f'__attribute__((section("{_DATA}")))'
    for number in numbers:
        name = number.c_name  # an enumerator is no macro; it is found in DWARF
        lines += [f"#ifdef {name}", f"const unsigned long long {place} of_{name} = {name};", "#endif"]
    return "\n".join(lines) + "\n"


def _mark(header: str) -> str:
    return "has_" + re.sub(r"\W", "_", header)


@contextmanager
def _compiled(source: str, compiler: str, include: Sequence[Path]) -> Iterator[ELFFile]:
    """The object that comes of it. _NoProbe: none does, or what comes cannot be read."""
    path = shutil.which(compiler)
    if path is None:
        raise _NoProbe(f"there is no C compiler ({compiler})")
    with tempfile.TemporaryDirectory(prefix="vfmig-abi-") as name:
        code, made = Path(name, "probe.c"), Path(name, "probe.o")
        code.write_text(source)
        folders = [f"-I{folder}" for folder in include]
        # Anonymous enums, which nothing can refer to, are described only when asked for.
        options = ["-g", "-fno-eliminate-unused-debug-types", "-c", *folders]
        command = [path, *options, "-o", str(made), str(code)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", timeout=_COMPILE_S_MAX, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise _NoProbe(f"{path} did not run: {error}") from None
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if "error" in line]
            raise _NoProbe(f"{path} does not compile it: {(errors or done.stderr.splitlines() or ['?'])[0]}")
        try:
            with made.open("rb") as file:
                yield ELFFile(file)
        except (ELFError, DWARFError, OSError) as error:
            raise _NoProbe(f"what {path} made cannot be read: {error}") from None


# --- what the compiler made of it ------------------------------------------------------------------


def _read(elf: ELFFile, names: set[str]) -> _Found:
    """The structs of those names, and all numbers."""
    structs: dict[str, _Struct] = {}
    numbers = dict(_data(elf))
    marks = set()
    if not elf.has_dwarf_info():
        raise ELFError("it has no debug information")
    info: DWARFInfo = elf.get_dwarf_info()
    for unit in info.iter_CUs():
        for die in unit.iter_DIEs():
            name = _name(die)
            if die.tag == "DW_TAG_structure_type" and name in names and "DW_AT_byte_size" in die.attributes:
                structs[name] = _Struct(die.attributes["DW_AT_byte_size"].value, tuple(_members(die)))
            elif die.tag == "DW_TAG_enumerator":
                numbers.setdefault(name, die.attributes["DW_AT_const_value"].value)
            elif die.tag == "DW_TAG_variable" and name.startswith("has_"):
                marks.add(name)
    return _Found(structs, numbers, frozenset(marks))


def _data(elf: ELFFile) -> Iterator[tuple[str, int]]:
    """The numbers that are macros, by name."""
    index, symbols = elf.get_section_index(_DATA), elf.get_section_by_name(".symtab")
    if index is None or not isinstance(symbols, SymbolTableSection):
        return
    data = elf.get_section(index).data()
    order = "<Q" if elf.little_endian else ">Q"
    for symbol in symbols.iter_symbols():
        if symbol["st_shndx"] == index and symbol.name.startswith("of_"):
            yield symbol.name.removeprefix("of_"), struct.unpack_from(order, data, symbol["st_value"])[0]


def _members(die: DIE, base: int = 0, depth: int = 0) -> Iterator[_Member]:
    """The fields, those of unnamed structs and unions within it too; an array without a length is none."""
    for child in die.iter_children():
        if child.tag != "DW_TAG_member":
            continue
        attributes = child.attributes
        location = attributes.get("DW_AT_data_member_location")
        offset = base + (location.value if location is not None else 0)
        of, size = _stripped(child)
        name = _name(child).lstrip("_")
        if not name and depth < _NESTED_MAX:
            yield from _members(of, offset, depth + 1)
        elif size:
            encoding = of.attributes.get("DW_AT_encoding")
            yield _Member(name, offset, size, _SIGNED.get(encoding.value) if encoding is not None else None)


def _stripped(die: DIE) -> tuple[DIE, int]:
    """The type of a field behind typedefs and arrays, and the field's size in bytes."""
    count = 1
    while True:
        die = die.get_DIE_from_attribute("DW_AT_type")
        if die.tag == "DW_TAG_array_type":
            for child in die.iter_children():
                count *= _length(child)
        elif die.tag not in ("DW_TAG_typedef", "DW_TAG_const_type", "DW_TAG_volatile_type"):
            size = die.attributes.get("DW_AT_byte_size")
            return die, count * (size.value if size is not None else 0)


def _length(subrange: DIE) -> int:
    """How many elements an array has in one dimension, 0 when it does not say."""
    if "DW_AT_count" in subrange.attributes:
        return int(subrange.attributes["DW_AT_count"].value)
    bound = subrange.attributes.get("DW_AT_upper_bound")
    return int(bound.value) + 1 if bound is not None else 0


def _name(die: DIE) -> str:
    attribute = die.attributes.get("DW_AT_name")
    return attribute.value.decode("utf-8", "replace") if attribute is not None else ""


# --- comparing -------------------------------------------------------------------------------------


def _absent(found: _Found, header: str) -> str:
    there = _mark(header) in found.headers
    return f"{header} of this machine does not have it" if there else f"this machine has no {header}"


def _number_row(number: Number, found: _Found) -> Row:
    theirs = found.numbers.get(number.c_name)
    if theirs is None:
        return Row(number.c_name, Outcome.NOT_CHECKED, _absent(found, number.header))
    if theirs != number.value:
        return Row(number.c_name, Outcome.DIFFERS, f"ours is {number.value:#x}, theirs {theirs:#x}")
    return Row(number.c_name, Outcome.MATCHES)


def _judge(layout: Layout[Any], theirs: _Struct) -> tuple[Outcome, str]:
    """Field by field, by name; a leading underscore of theirs aside."""
    if layout.order != LITTLE:
        return Outcome.DIFFERS, "ours is big-endian"
    members = {member.name: member for member in theirs.members}
    wrong = []
    later = []
    for place in layout.fields:
        if place.offset >= theirs.size:
            later.append(place.name)
        elif not _divided(place, theirs):
            wrong += _difference(place, members.get(place.name), theirs)
    extra = [m for m in theirs.members if not any(_within(m, place) for place in layout.fields)]
    wrong += [f"{m.name} at {m.offset} is not in ours" for m in extra if m.offset < layout.size]
    if wrong:
        return Outcome.DIFFERS, "; ".join(wrong)
    if later:
        return Outcome.BEGINS, f"theirs ends before {', '.join(later)}"
    if extra:
        return Outcome.BEGINS, f"theirs goes on with {', '.join(m.name for m in extra)}"
    if theirs.size != layout.size:
        return Outcome.DIFFERS, f"ours has {layout.size} bytes, theirs {theirs.size}"
    return Outcome.MATCHES, ""


def _difference(ours: FieldPlace, theirs: _Member | None, around: _Struct) -> list[str]:
    if theirs is None:
        there = ", ".join(member.name for member in around.members if member.offset == ours.offset)
        return [f"theirs has no {ours.name}, but {there or 'no field'} at {ours.offset}"]
    if (ours.offset, ours.size) != (theirs.offset, theirs.size):
        at = f"ours at {ours.offset} with {ours.size} bytes, theirs at {theirs.offset} with {theirs.size}"
        return [f"{ours.name}: {at}"]
    if theirs.signed is not None and theirs.signed != ours.spec.code.islower():
        return [f"{ours.name}: {'theirs' if theirs.signed else 'ours'} alone has a sign"]
    return []


def _divided(ours: FieldPlace, theirs: _Struct) -> bool:
    """Whether it is what we call reserved, and nothing of theirs is partly in it: a newer header uses it."""
    end = ours.offset + ours.size
    touched = [m for m in theirs.members if m.offset < end and m.offset + m.size > ours.offset]
    return bool(_RESERVED.fullmatch(ours.name)) and all(_within(m, ours) for m in touched)


def _within(theirs: _Member, ours: FieldPlace) -> bool:
    return ours.offset <= theirs.offset and theirs.offset + theirs.size <= ours.offset + ours.size
