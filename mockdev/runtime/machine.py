# SPDX-License-Identifier: GPL-2.0-or-later
"""What a source plays besides its devices' state: a machine's sections in their order.

Our own machine is as small as one can be; that of a QEMU comes from a template.

Source: QEMU migration/savevm.c: qemu_savevm_state_setup, qemu_savevm_state_complete_precopy
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import msgspec

from mockdev.runtime.config import MigrationConfig
from mockdev.wire import writer
from mockdev.wire.mainstream import is_vfio
from mockdev.wire.structs import Tag

RAM = "ram"
RAM_VERSION = 4
VFIO_VERSION = 1
EMPTY_PARTS_MAX = 64  # of a device in a row

U32 = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
Uuid = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
Name = Annotated[str, msgspec.Meta(pattern=r"\A[ -~]{1,255}\Z")]


class Section(msgspec.Struct, frozen=True):
    """One section of the main channel. payload: None for RAM and for VFIO devices, which is made anew."""

    tag: Annotated[int, msgspec.Meta(ge=int(Tag.SECTION_START), le=int(Tag.SECTION_FULL))]
    id: U32
    idstr: Name
    instance_id: U32
    version_id: U32
    payload: bytes | None = None


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """A machine as its main channel shows it.

    type: versioned machine type. uuid: 16 bytes, None: it was not said; uuid_validated: the configuration
    section has it too.
    capabilities: those that this section names. sections: in their order, but for the PARTs of RAM and of
    VFIO devices, of which there are as many as it takes. flush_per_section: one SYNC per section of RAM
    and no MULTIFD_FLUSH; None: as the type's default is. config_load_ready: VFIO's FULL sections say so.
    configs: the PCI state of each VFIO device by idstr, as QEMU presents the device. description: of the
    VM, JSON; b"" to make one.
    """

    type: Name
    uuid: Uuid | None = None
    uuid_validated: bool = False
    capabilities: tuple[Name, ...] = ()
    switchover_start: bool = True
    flush_per_section: bool | None = None
    config_load_ready: bool = False
    sections: tuple[Section, ...] = ()
    configs: dict[str, bytes] = {}
    description: bytes = b""

    @property
    def devices(self) -> tuple[str, ...]:
        """The idstr of each VFIO device, in the order of their sections."""
        return tuple(
            section.idstr
            for section in self.sections
            if section.tag == Tag.SECTION_START and is_vfio(section.idstr)
        )

    @property
    def phases(self) -> Phases:
        """The sections by the phase that they belong to."""
        before = [s for s in self.sections if s.tag in (Tag.SECTION_PART, Tag.SECTION_END)]
        setup = self.sections.index(before[0]) if before else len(self.sections)
        rest = self.sections[setup:]
        return Phases(
            setup=self.sections[:setup],
            parts=tuple(s for s in rest if s.tag == Tag.SECTION_PART),
            ends=tuple(s for s in rest if s.tag == Tag.SECTION_END),
            devices=tuple(s for s in rest if s.tag == Tag.SECTION_FULL),
        )


class Phases(NamedTuple):
    """setup: STARTs and early FULLs; parts: PARTs that are played as they were; ends; devices: FULLs."""

    setup: tuple[Section, ...]
    parts: tuple[Section, ...]
    ends: tuple[Section, ...]
    devices: tuple[Section, ...]


def own_machine(migration: MigrationConfig) -> Machine:
    """Ours: RAM, the devices, and globalstate so that a target runs."""
    iterables = [(RAM, RAM_VERSION), *((name, VFIO_VERSION) for name in migration.devices)]
    numbered = [(number, name, version) for number, (name, version) in enumerate(iterables, 1)]
    last = len(numbered) + 1
    return Machine(
        type=migration.machine,
        uuid=migration.uuid_bytes,
        flush_per_section=False,
        sections=(
            *(Section(Tag.SECTION_START, n, name, 0, version) for n, name, version in numbered),
            *(Section(Tag.SECTION_END, n, name, 0, version) for n, name, version in numbered),
            *(Section(Tag.SECTION_FULL, n, name, 0, version) for n, name, version in numbered[1:]),
            Section(Tag.SECTION_FULL, last, "globalstate", 0, 1, writer.globalstate("running")),
        ),
    )
