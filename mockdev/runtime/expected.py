# SPDX-License-Identifier: GPL-2.0-or-later
"""What a target takes for its machine: exactly our own, or whatever a QEMU's stream says it is.

Both hold the peer to what they expect: each call that looks at something raises RemoteProtocolError, with
channel, offset and field, for what may not be.

Source: QEMU migration/savevm.c: configuration_post_load; migration/ram.c: parse_ramblocks
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from mockdev.device.image import PAGE_SIZE
from mockdev.errors import RemoteProtocolError
from mockdev.runtime.config import MigrationConfig
from mockdev.runtime.machine import RAM, RAM_VERSION, VFIO_VERSION
from mockdev.runtime.ram import GuestRam, RamBlock, own_ram, untouched
from mockdev.wire.frames import ConfigurationItem, RamBlocksItem, SectionItem
from mockdev.wire.mainstream import is_vfio
from mockdev.wire.structs import Tag

_GLOBALSTATE_BYTES = 104
_OPAQUE_BYTES_MAX = 64 << 20  # of one section of a QEMU's machine
_IGNORE_SHARED = "x-ignore-shared"
_PAGES_LEFT_OUT = ("virtio-balloon", "virtio-mem")  # devices that let a source leave out unused pages


class Expected(ABC):
    """A target's machine. ram: its RAM, as far as known. opaque_bytes_max: of a payload of unknown length.

    strict: nothing that our own source would not say.
    """

    strict: bool
    opaque_bytes_max: int

    def __init__(self, migration: MigrationConfig, ram: GuestRam) -> None:
        self.migration = migration
        self.ram = ram

    @abstractmethod
    def uuid(self, uuid: bytes) -> str:
        """The uuid that a multifd channel names: "" or what is wrong with it."""

    @abstractmethod
    def configuration(self, item: ConfigurationItem) -> None:
        """The configuration section."""

    @abstractmethod
    def ram_blocks(self, item: RamBlocksItem) -> None:
        """The list of RAM blocks; `ram` has them afterwards."""

    @abstractmethod
    def missing(self) -> str:
        """What of the RAM never came, though it should have, as a sentence; "" when nothing."""

    def section(self, item: SectionItem) -> None:
        """The head of a section."""
        if not item.bound:
            raise _fail(f"section {item.section_id} was never started", item.offset, "section_id")
        if is_vfio(item.idstr):
            here = self.migration.devices
            known = item.idstr in here and item.instance_id == 0 and item.version_id == VFIO_VERSION
        elif item.idstr == RAM:
            known = item.instance_id == 0 and item.version_id == RAM_VERSION and item.tag != Tag.SECTION_FULL
        else:
            known = self._other_section(item)
        if not known:
            raise _fail(
                f"no section {item.idstr!r}, instance {item.instance_id}, version {item.version_id} here",
                item.offset,
                "idstr",
            )

    @abstractmethod
    def _other_section(self, item: SectionItem) -> bool:
        """Whether a section that is neither RAM nor a VFIO device has a place here."""


class OwnMachine(Expected):
    """The machine of our own source, nothing more and nothing less."""

    strict = True
    opaque_bytes_max = _GLOBALSTATE_BYTES

    def __init__(self, migration: MigrationConfig) -> None:
        super().__init__(migration, own_ram(migration.ram_bytes, migration.seed, filled=False))

    def uuid(self, uuid: bytes) -> str:
        return "" if uuid == self.migration.uuid_bytes else f"the uuid {uuid.hex()} of another VM"

    def configuration(self, item: ConfigurationItem) -> None:
        expected = self.migration.machine
        if item.machine != expected:
            raise _fail(f"machine type {item.machine!r}, here it is {expected!r}", item.offset, "name")
        for name, _, value in item.subsections:
            if name == "configuration/uuid" and value != self.migration.uuid_bytes:
                raise _fail("the uuid of another VM", item.offset, "uuid")

    def ram_blocks(self, item: RamBlocksItem) -> None:
        theirs = [(name, size) for name, size, _ in item.blocks]
        if theirs != self.ram.sizes:
            raise _fail(f"RAM blocks {theirs}, here they are {self.ram.sizes}", item.offset, "mem_size")

    def missing(self) -> str:
        return "; ".join(filter(None, (block.missing() for block in self.ram.blocks.values())))

    def _other_section(self, item: SectionItem) -> bool:
        return item.idstr == "globalstate" and item.tag == Tag.SECTION_FULL


class AnyMachine(Expected):
    """The machine that the stream of a QEMU shows, with our devices in it.

    machine, capabilities, uuid_bytes: as the stream says, uuid_bytes None while it said none.
    uuid_validated: the configuration section has it. addresses: of the RAM blocks, with x-ignore-shared.
    """

    strict = False
    opaque_bytes_max = _OPAQUE_BYTES_MAX

    def __init__(self, migration: MigrationConfig) -> None:
        super().__init__(migration, GuestRam())
        self.machine = ""
        self.capabilities: tuple[str, ...] = ()
        self.uuid_bytes: bytes | None = None
        self.uuid_validated = False
        self.addresses: tuple[int, ...] = ()
        self._listed = False
        self._pages_left_out = False

    def uuid(self, uuid: bytes) -> str:
        if self.uuid_bytes is None:
            self.uuid_bytes = uuid
        return "" if uuid == self.uuid_bytes else f"the uuid {uuid.hex()}, after {self.uuid_bytes.hex()}"

    def configuration(self, item: ConfigurationItem) -> None:
        self.machine = item.machine
        for name, _, value in item.subsections:
            if name == "configuration/capabilities" and isinstance(value, tuple):
                self.capabilities = value
            elif name == "configuration/uuid" and isinstance(value, bytes):
                self.uuid_validated = True
                wrong = self.uuid(value)
                if wrong:
                    raise _fail(wrong, item.offset, "uuid")
            elif value != PAGE_SIZE.bit_length() - 1:
                raise _fail(f"{value} page bits, only pages of {PAGE_SIZE} bytes", item.offset, "page_bits")
        for name in self.capabilities:
            if name != _IGNORE_SHARED:
                raise _fail(f"the capability {name} is on, and off here", item.offset, "capabilities")

    def ram_blocks(self, item: RamBlocksItem) -> None:
        limit = self.migration.ram_bytes_max
        if self._listed:
            raise _fail("a second list of RAM blocks", item.offset, "mem_size")
        if item.total > limit:
            raise _fail(f"{item.total} bytes of RAM, at most {limit} are taken", item.offset, "mem_size")
        blocks = []
        for name, size, _ in item.blocks:
            if size % PAGE_SIZE:
                raise _fail(f"{size} bytes of RAM block {name!r} are no pages", item.offset, "used_length")
            blocks.append(RamBlock(name, untouched(size)))
        self.ram = GuestRam(*blocks)
        if len(self.ram.blocks) != len(blocks):
            raise _fail("two RAM blocks of one name", item.offset, "idstr")
        self.addresses = tuple(address for _, _, address in item.blocks if address is not None)
        self._listed = True

    def missing(self) -> str:
        if self._pages_left_out:
            return ""
        absent = []
        for block in self.ram.blocks.values():
            shared = _IGNORE_SHARED in self.capabilities and 1 not in block.came
            if not shared:
                absent.append(block.missing())
        return "; ".join(filter(None, absent))

    def _other_section(self, item: SectionItem) -> bool:
        if any(name in item.idstr for name in _PAGES_LEFT_OUT):
            self._pages_left_out = True
        return bool(item.idstr)


def expected(migration: MigrationConfig) -> Expected:
    """What a target of this migration takes for its machine, its own RAM made."""
    return AnyMachine(migration) if migration.peer == "qemu" else OwnMachine(migration)


def _fail(message: str, offset: int, field: str) -> RemoteProtocolError:
    return RemoteProtocolError(message, channel="main", offset=offset, field=field)
