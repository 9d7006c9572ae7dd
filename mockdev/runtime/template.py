# SPDX-License-Identifier: GPL-2.0-or-later
"""A template: the machine of a QEMU, as a target of ours received it, in a file that a source can play.

The file is a zip archive, format vfmig.template/1:

    machine.json      {"format": ..., "machine": ..., "blocks": [...]}: the sections in their order with
                      their payloads (base64), the PCI state of each VFIO device, and the RAM blocks, whose
                      pages are runs [first page, number of pages]: `came`, those that are sent; `data`, those
                      of them that are not zero
    description.json  the VM description that the QEMU sent
    ram.bin           the `data` pages of all blocks, one after the other

The state of the VFIO devices is not in it: who plays a template has devices of its own.
"""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Annotated, NamedTuple

import msgspec

from mockdev.device.image import PAGE_SIZE
from mockdev.errors import RemoteProtocolError, VfmigError
from mockdev.runtime.expected import AnyMachine
from mockdev.runtime.machine import RAM, Machine, Name, Section
from mockdev.runtime.ram import GuestRam, RamBlock, untouched
from mockdev.wire.frames import SectionItem
from mockdev.wire.mainstream import is_vfio
from mockdev.wire.structs import Tag

FORMAT = "vfmig.template/1"
PAYLOAD_BYTES_MAX = 256 << 20  # of all sections together
_MEMBERS = ("machine.json", "description.json", "ram.bin")
_MACHINE_BYTES_MAX = 2 * PAYLOAD_BYTES_MAX  # of machine.json
_PIECE_PAGES = 256
_ZIP_ERRORS = (  # what zipfile raises for a file that is none, was cut or has changed
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    KeyError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
    ValueError,
)

Number = Annotated[int, msgspec.Meta(ge=0, lt=1 << 52)]
Runs = tuple[tuple[Number, Number], ...]


class TemplateError(VfmigError):
    """A template that cannot be read or written."""

    environment = True


class Template(NamedTuple):
    """A machine to play, and its RAM."""

    machine: Machine
    ram: GuestRam
    addresses: tuple[int, ...]


class _Block(msgspec.Struct, frozen=True):
    """A RAM block as the file describes it. address: guest-physical, with x-ignore-shared."""

    name: Name
    size: Number
    address: int | None
    came: Runs
    data: Runs


class _File(msgspec.Struct, frozen=True):
    format: str
    machine: Machine
    blocks: tuple[_Block, ...]


class _Described(msgspec.Struct, frozen=True):
    name: str


class _Description(msgspec.Struct, frozen=True):
    """What a VM description has at least."""

    devices: tuple[_Described, ...]


# --- keeping ---------------------------------------------------------------------------------------


class Recorder:
    """Keeps the sections of a main channel as they come."""

    def __init__(self) -> None:
        self.switchover_start = False
        self.flush_per_section: bool | None = None
        self.config_load_ready = False
        self.description = b""
        self._sections: list[Section] = []
        self._kept_bytes = 0

    def section(self, item: SectionItem, payload: bytes | None) -> None:
        """A whole section. payload: None for RAM and VFIO devices. RemoteProtocolError: too much to keep."""
        if item.tag == Tag.SECTION_PART and payload is None:
            return
        self._kept_bytes += len(payload or b"")
        if self._kept_bytes > PAYLOAD_BYTES_MAX:
            raise RemoteProtocolError(
                f"the sections have more than {PAYLOAD_BYTES_MAX} bytes, which a template does not keep",
                channel="main",
                offset=item.offset,
                field="payload",
            )
        self._sections.append(
            Section(item.tag, item.section_id, item.idstr, item.instance_id, item.version_id, payload)
        )

    def machine(self, shown: AnyMachine, configs: dict[str, bytes]) -> Machine:
        """All that was kept. configs: the PCI state of each VFIO device by idstr."""
        return Machine(
            type=shown.machine,
            uuid=shown.uuid_bytes,
            uuid_validated=shown.uuid_validated,
            capabilities=shown.capabilities,
            switchover_start=self.switchover_start,
            flush_per_section=self.flush_per_section,
            config_load_ready=self.config_load_ready,
            sections=tuple(self._sections),
            configs=configs,
            description=self.description,
        )


def save(path: Path, template: Template) -> None:
    """Write a template, whole or not at all. TemplateError: it cannot be written."""
    partial = path.with_name(path.name + ".partial")
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            _write(archive, template)
        os.replace(partial, path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise TemplateError(f"{path}: the template cannot be written: {error.strerror or error}") from None


def _write(archive: zipfile.ZipFile, template: Template) -> None:
    machine, ram, addresses = template
    blocks = []
    with archive.open("ram.bin", "w", force_zip64=True) as pages:
        for number, block in enumerate(ram.blocks.values()):
            data = _runs(_data_pages(block))
            for first, count in data:
                for view in _pieces(block, first, count):
                    pages.write(view)
            came = _runs(page for page, came in enumerate(block.came) if came)
            address = addresses[number] if addresses else None
            blocks.append(_Block(block.name, block.size, address, came, data))
    without = msgspec.structs.replace(machine, description=b"")
    archive.writestr("machine.json", msgspec.json.encode(_File(FORMAT, without, tuple(blocks))))
    archive.writestr("description.json", machine.description)


def _data_pages(block: RamBlock) -> Iterator[int]:
    for page, came in enumerate(block.came):
        if came and not block.is_zero(page * PAGE_SIZE):
            yield page


def _runs(pages: Iterator[int]) -> Runs:
    runs: list[tuple[int, int]] = []
    start = end = -1
    for page in pages:
        if page != end:
            if end > start:
                runs.append((start, end - start))
            start = page
        end = page + 1
    if end > start:
        runs.append((start, end - start))
    return tuple(runs)


# --- playing ---------------------------------------------------------------------------------------


def load(path: Path, ram_bytes_max: int) -> Template:
    """Read a template, its RAM in memory. TemplateError: no template, or a damaged or too large one."""
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(path, archive, ram_bytes_max)
    except OSError as error:
        raise TemplateError(f"{path}: the template cannot be read: {error.strerror or error}") from None
    except _ZIP_ERRORS as error:
        raise TemplateError(f"{path} is no template, or a damaged one: {error}") from None


def _read(path: Path, archive: zipfile.ZipFile, ram_bytes_max: int) -> Template:
    sizes = {name: archive.getinfo(name).file_size for name in _MEMBERS}
    if max(sizes["machine.json"], sizes["description.json"]) > _MACHINE_BYTES_MAX:
        raise TemplateError(f"{path}: a machine of {sizes['machine.json']} bytes is no template")
    try:
        file = msgspec.json.decode(_whole(archive, "machine.json"), type=_File)
    except msgspec.MsgspecError as error:
        raise TemplateError(f"{path}, machine.json: {error}") from None
    if file.format != FORMAT:
        raise TemplateError(f"{path} has format {file.format!r}; this release reads {FORMAT}")
    problem = _problem(file, sizes["ram.bin"], ram_bytes_max)
    if problem:
        raise TemplateError(f"{path}, machine.json: {problem}")
    ram = GuestRam(*(RamBlock(block.name, untouched(block.size)) for block in file.blocks))
    with archive.open("ram.bin") as pages:
        for block in file.blocks:
            _fill(path, pages, ram.blocks[block.name], block)
        pages.read(1)  # the checksum is compared at the end
    description = _whole(archive, "description.json")
    try:
        msgspec.json.decode(description, type=_Description)
    except msgspec.MsgspecError as error:
        raise TemplateError(f"{path}, description.json: {error}") from None
    machine = msgspec.structs.replace(file.machine, description=description)
    addresses = tuple(block.address for block in file.blocks if block.address is not None)
    return Template(machine, ram, addresses)


def _whole(archive: zipfile.ZipFile, name: str) -> bytes:
    """A member; what it unpacks to is no longer than the archive says."""
    with archive.open(name) as member:
        return member.read(archive.getinfo(name).file_size + 1)


def _problem(file: _File, data_bytes: int, ram_bytes_max: int) -> str:
    """What makes the described machine impossible, "" when nothing does."""
    machine, blocks = file.machine, file.blocks
    total = sum(block.size for block in blocks)
    if total > ram_bytes_max:
        return f"{total} bytes of RAM, at most {ram_bytes_max} are taken"
    if len({block.name for block in blocks}) != len(blocks):
        return "two RAM blocks of one name"
    if len({block.address is None for block in blocks}) > 1:
        return "not all RAM blocks have an address"
    for block in blocks:
        if block.size % PAGE_SIZE or not (_in_order(block, block.came) and _in_order(block, block.data)):
            return f"the pages of RAM block {block.name} are not in order, or not in it"
    if data_bytes != PAGE_SIZE * sum(count for block in blocks for _, count in block.data):
        return f"the pages with data are not the {data_bytes} bytes of ram.bin"
    started = {section.idstr for section in machine.sections if section.tag == Tag.SECTION_START}
    if RAM not in started:
        return "no section of RAM"
    for section in machine.sections:
        if section.tag == Tag.SECTION_END and section.idstr not in started:
            return f"section {section.idstr} ends without having started"
        live = section.idstr == RAM or is_vfio(section.idstr)
        if live is (section.payload is not None):
            return f"section {section.idstr} has {'a' if live else 'no'} payload"
    without = set(machine.devices) - set(machine.configs)
    return f"no PCI state of {', '.join(sorted(without))}" if without else ""


def _in_order(block: _Block, runs: Runs) -> bool:
    end = 0
    for first, count in runs:
        if first < end or not count:
            return False
        end = first + count
    return end <= block.size // PAGE_SIZE


def _fill(path: Path, pages: IO[bytes], block: RamBlock, described: _Block) -> None:
    for first, count in described.came:
        block.came[first : first + count] = b"\1" * count
    for first, count in described.data:
        for view in _pieces(block, first, count):
            data = pages.read(len(view))
            if len(data) < len(view):
                raise TemplateError(f"{path}: ram.bin ends early")
            view[:] = data


def _pieces(block: RamBlock, first: int, count: int) -> Sequence[memoryview]:
    """A run of pages as views of a bounded size."""
    end = (first + count) * PAGE_SIZE
    step = _PIECE_PAGES * PAGE_SIZE
    return [block.memory[at : min(at + step, end)] for at in range(first * PAGE_SIZE, end, step)]
