# SPDX-License-Identifier: GPL-2.0-or-later
"""FR: the main channel can be read as what it claims to be, item by item."""

from __future__ import annotations

import json
from collections.abc import Iterator

from mockdev.wire.frames import (
    CommandItem,
    ConfigurationItem,
    DescriptionItem,
    EofItem,
    FooterItem,
    HeaderItem,
    SectionItem,
    VfioItem,
)
from mockdev.wire.mainstream import is_vfio
from mockdev.wire.structs import COMMAND_LENGTHS, Command, Tag
from verifier.capture.flows import Role
from verifier.history.facts import Facts
from verifier.history.observation import Broken, Seen
from verifier.invariants.description import described_devices, described_versions
from verifier.invariants.passport import (
    MIGRATION,
    Finding,
    Invariant,
    Need,
    Passport,
    Severity,
    qemu,
)

_NAMED = (Tag.SECTION_START, Tag.SECTION_FULL)
_IDS_MAX = 16_384  # of one stream; the largest VMs have some hundreds of sections


def refusal(seen: Seen, event: Broken, *fields: str) -> Iterator[Finding]:
    """The finding that the syntax refused one of these fields of the main channel."""
    if seen.lane.role is Role.MAIN and event.error.field in fields:
        yield Finding(event.error.message, (seen,))


class StreamHeader(Invariant[HeaderItem | Broken]):
    passport = Passport(
        "FR-1",
        "The main channel begins with QEMU's magic and stream version 3.",
        Severity.ABORTS,
        qemu("migration/savevm.c", "qemu_loadvm_state_header"),
        MIGRATION,
    )
    kinds = (HeaderItem, Broken)

    def on(self, seen: Seen, event: HeaderItem | Broken) -> Iterator[Finding]:
        if isinstance(event, Broken):
            yield from refusal(seen, event, "magic", "version")


class ConfigurationPresent(Invariant[HeaderItem | ConfigurationItem | Broken]):
    passport = Passport(
        "FR-2",
        "A configuration section that names the machine type follows the stream header.",
        Severity.ABORTS,
        qemu("migration/savevm.c", "configuration_post_load"),
        MIGRATION,
        (Need.MAIN,),
    )
    kinds = (HeaderItem, ConfigurationItem, Broken)

    def on(self, seen: Seen, event: HeaderItem | ConfigurationItem | Broken) -> Iterator[Finding]:
        if isinstance(event, Broken):
            yield from refusal(seen, event, "configuration name_len")
        elif isinstance(event, HeaderItem):
            self.header = seen
        elif not event.machine:
            yield Finding("the machine type's name is empty", (seen,))

    def at_end(self) -> Iterator[Finding]:
        if self.complete and self.facts.configuration is None:
            yield Finding("the stream has no configuration section", (self.header,))


class ConfigurationContent(Invariant[ConfigurationItem | Broken]):
    passport = Passport(
        "FR-3",
        "The configuration's subsections are of the known three, each at most once; its capabilities are "
        "of those that the target validates.",
        Severity.ABORTS,
        qemu("migration/savevm.c", "configuration_validate_capabilities"),
        MIGRATION,
    )
    kinds = (ConfigurationItem, Broken)
    validated = frozenset(("x-ignore-shared", "mapped-ram"))

    def on(self, seen: Seen, event: ConfigurationItem | Broken) -> Iterator[Finding]:
        if isinstance(event, Broken):
            yield from refusal(seen, event, "configuration", "caps_count")
            return
        names = [name for name, _, _ in event.subsections]
        if len(set(names)) < len(names):
            yield Finding(f"a subsection comes twice: {', '.join(names)}", (seen,))
        for name, _, value in event.subsections:
            if name == "configuration/capabilities" and isinstance(value, tuple):
                unknown = [cap for cap in value if cap not in self.validated]
                if unknown:
                    yield Finding(f"capability {unknown[0]!r} is not validated by any release", (seen,))


class ItemTags(Invariant[SectionItem | CommandItem | Broken]):
    passport = Passport(
        "FR-4",
        "Every item of the main channel begins with a tag that may stand there.",
        Severity.ABORTS,
        qemu("migration/savevm.c", "qemu_loadvm_state_main"),
        MIGRATION,
    )
    kinds = (SectionItem, CommandItem, Broken)

    def on(self, seen: Seen, event: SectionItem | CommandItem | Broken) -> Iterator[Finding]:
        if isinstance(event, Broken) and self.facts.eof is None:
            yield from refusal(seen, event, "tag")


class SectionBound(Invariant[SectionItem]):
    passport = Passport(
        "FR-5",
        "A PART or END section has an id that an earlier START bound.",
        Severity.ABORTS,
        qemu("migration/savevm.c", "qemu_loadvm_section_part_end"),
        MIGRATION,
    )
    kinds = (SectionItem,)

    def on(self, seen: Seen, event: SectionItem) -> Iterator[Finding]:
        if not event.bound:
            yield Finding(f"section id {event.section_id} was never started", (seen,))


class IterableOnce(Invariant[SectionItem]):
    passport = Passport(
        "FR-6",
        "Each iterable has one START, then PARTs, then one END, and nothing after its END.",
        Severity.CORRUPTS,
        qemu("migration/savevm.c", "qemu_savevm_state_iterate, qemu_savevm_state_complete_precopy_iterable"),
        MIGRATION,
        (Need.MAIN,),
    )
    kinds = (SectionItem,)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.open: dict[int, Seen] = {}
        self.ended: dict[int, Seen] = {}

    def on(self, seen: Seen, event: SectionItem) -> Iterator[Finding]:
        if event.tag == Tag.SECTION_FULL or not event.bound:
            return
        name, number = event.idstr, event.section_id
        if number in self.ended:
            yield Finding(f"{name!r} goes on after its END", (self.ended[number], seen))
        elif event.tag == Tag.SECTION_START and number in self.open:
            yield Finding(f"{name!r} is started twice", (self.open[number], seen))
        if event.tag == Tag.SECTION_START and len(self.open) < _IDS_MAX:
            self.open.setdefault(number, seen)
        elif event.tag == Tag.SECTION_END and len(self.ended) < _IDS_MAX:
            self.ended[number] = seen

    def at_end(self) -> Iterator[Finding]:
        if self.complete:
            for number in self.open.keys() - self.ended.keys():
                yield Finding(f"section {number} is started and never ended", (self.open[number],))


class SectionIdentity(Invariant[SectionItem]):
    passport = Passport(
        "FR-7",
        "A section id stands for one (idstr, instance) throughout, and no two ids for the same.",
        Severity.CORRUPTS,
        qemu("migration/savevm.c", "register_savevm_live, vmstate_register_with_alias_id"),
        MIGRATION,
    )
    kinds = (SectionItem,)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.by_id: dict[int, tuple[tuple[str, int], Seen]] = {}
        self.by_name: dict[tuple[str, int], tuple[int, Seen]] = {}

    def on(self, seen: Seen, event: SectionItem) -> Iterator[Finding]:
        if event.tag not in _NAMED or len(self.by_id) >= _IDS_MAX:
            return
        name = (event.idstr, event.instance_id)
        known, first = self.by_id.setdefault(event.section_id, (name, seen))
        number, other = self.by_name.setdefault(name, (event.section_id, seen))
        if known != name:
            yield Finding(
                f"section id {event.section_id} is {known[0]!r} first, {name[0]!r} later", (first, seen)
            )
        elif number != event.section_id:
            yield Finding(
                f"{name[0]!r} instance {name[1]} has section id {number} first, {event.section_id} later",
                (other, seen),
            )


class SectionFooter(Invariant[FooterItem | Broken]):
    passport = Passport(
        "FR-8",
        "Every section ends with a footer that repeats its id.",
        Severity.ABORTS,
        qemu("migration/savevm.c", "check_section_footer"),
        MIGRATION,
    )
    kinds = (FooterItem, Broken)

    def on(self, seen: Seen, event: FooterItem | Broken) -> Iterator[Finding]:
        if isinstance(event, Broken):
            yield from refusal(seen, event, "footer")
        elif event.section_id is not None and event.section_id != event.expected_id:
            yield Finding(
                f"section {event.expected_id} ({event.idstr!r}) ends with footer {event.section_id}",
                (seen,),
            )


class SectionName(Invariant[SectionItem]):
    passport = Passport(
        "FR-9",
        "The idstr of a START or FULL section is not empty.",
        Severity.ABORTS,
        qemu("migration/savevm.c", "qemu_loadvm_section_start_full"),
        MIGRATION,
    )
    kinds = (SectionItem,)

    def on(self, seen: Seen, event: SectionItem) -> Iterator[Finding]:
        if event.tag in _NAMED and not event.idstr:
            yield Finding(f"section {event.section_id} has no name", (seen,))


class FullOnce(Invariant[SectionItem]):
    passport = Passport(
        "FR-10",
        "Each (idstr, instance) has at most one FULL section.",
        Severity.CORRUPTS,
        qemu("migration/savevm.c", "qemu_savevm_state_complete_precopy_non_iterable"),
        MIGRATION,
    )
    kinds = (SectionItem,)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.known: dict[tuple[str, int], Seen] = {}

    def on(self, seen: Seen, event: SectionItem) -> Iterator[Finding]:
        if event.tag != Tag.SECTION_FULL or len(self.known) >= _IDS_MAX:
            return
        key = (event.idstr, event.instance_id)
        if key in self.known:
            yield Finding(f"{key[0]!r} instance {key[1]} is sent twice", (self.known[key], seen))
        self.known.setdefault(key, seen)


class SectionsDescribed(Invariant[FooterItem | DescriptionItem]):
    passport = Passport(
        "FR-11",
        "The FULL sections are those of the VM description, in its order, each as long as it says.",
        Severity.CORRUPTS,
        qemu("migration/savevm.c", "vmstate_save, qemu_savevm_state_vmdesc"),
        MIGRATION,
        (Need.MAIN,),
    )
    kinds = (FooterItem, DescriptionItem)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.sections: list[tuple[str, int, Seen]] = []

    def on(self, seen: Seen, event: FooterItem | DescriptionItem) -> Iterator[Finding]:
        if isinstance(event, FooterItem):
            if event.tag == Tag.SECTION_FULL and len(self.sections) < _IDS_MAX:
                self.sections.append((event.idstr, event.payload_size, seen))
            return
        try:
            described = described_devices(json.loads(event.json))
        except (ValueError, RecursionError):
            return  # that the description can be read at all is EN-2
        for (name, size, section), (said, length) in zip(self.sections, described, strict=False):
            if name != said:
                yield Finding(f"section {name!r} stands where {said!r} is described", (section, seen))
                return
            if length is not None and length != size:
                yield Finding(f"{name!r} takes {size} bytes and is described with {length}", (section, seen))
                return
        if len(self.sections) >= _IDS_MAX:
            self.unknown = f"more than {_IDS_MAX} sections"
        elif len(self.sections) != len(described):
            yield Finding(f"{len(self.sections)} FULL sections, {len(described)} of them described", (seen,))


class Commands(Invariant[CommandItem]):
    passport = Passport(
        "FR-12",
        "A command's number is known and its data has the length that belongs to it.",
        Severity.ABORTS,
        qemu("migration/savevm.c", "loadvm_process_command"),
        MIGRATION,
    )
    kinds = (CommandItem,)

    def on(self, seen: Seen, event: CommandItem) -> Iterator[Finding]:
        if event.command not in COMMAND_LENGTHS:
            yield Finding(f"command {event.command} is none", (seen,))
            return
        lengths = COMMAND_LENGTHS[event.command]
        if lengths is not None and len(event.data) not in lengths:
            yield Finding(f"{Command(event.command).name} with {len(event.data)} bytes of data", (seen,))


class ReturnPathFirst(Invariant[CommandItem | SectionItem]):
    passport = Passport(
        "FR-13",
        "OPEN_RETURN_PATH comes at most once, before any section and any PING.",
        Severity.ABORTS,
        qemu("migration/migration.c", "migration_thread"),
        MIGRATION,
    )
    kinds = (CommandItem, SectionItem)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.before: Seen | None = None

    def on(self, seen: Seen, event: CommandItem | SectionItem) -> Iterator[Finding]:
        opens = isinstance(event, CommandItem) and event.command == Command.OPEN_RETURN_PATH
        pings = isinstance(event, CommandItem) and event.command == Command.PING
        if opens and self.before is not None:
            yield Finding("the return path is opened late, or again", (self.before, seen))
        elif pings and not self.facts.return_path_opened:
            yield Finding("PING without a return path", (seen,))
        if self.before is None and (opens or pings or isinstance(event, SectionItem)):
            self.before = seen


class OnlyDevicesAtTheEnd(Invariant[SectionItem | CommandItem | EofItem]):
    passport = Passport(
        "FR-14",
        "After the first END of a precopy stream come only END and FULL sections, then the end mark.",
        Severity.CORRUPTS,
        qemu("migration/savevm.c", "qemu_savevm_state_complete_precopy"),
        MIGRATION,
        (Need.MAIN,),
    )
    kinds = (SectionItem, CommandItem, EofItem)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.first_end: Seen | None = None
        self.offender: Seen | None = None

    def on(self, seen: Seen, event: SectionItem | CommandItem | EofItem) -> Iterator[Finding]:
        ending = isinstance(event, SectionItem) and event.tag == Tag.SECTION_END
        if ending:
            self.first_end = self.first_end or seen
        late = isinstance(event, SectionItem) and event.tag in (Tag.SECTION_START, Tag.SECTION_PART)
        switch = isinstance(event, CommandItem) and event.command != Command.SWITCHOVER_START  # SM-2's
        if (late or switch) and self.first_end is not None and self.offender is None:
            self.offender = seen
        return iter(())

    def at_end(self) -> Iterator[Finding]:
        if self.offender is not None and self.first_end is not None and not self.facts.postcopy:
            yield Finding(
                "an item that is neither END nor FULL follows an END", (self.first_end, self.offender)
            )


class VfioTags(Invariant[VfioItem | Broken]):
    passport = Passport(
        "FR-15",
        "A VFIO section on the main channel consists of known marks.",
        Severity.ABORTS,
        qemu("hw/vfio/migration.c", "vfio_load_state"),
        MIGRATION,
    )
    kinds = (VfioItem, Broken)

    def on(self, seen: Seen, event: VfioItem | Broken) -> Iterator[Finding]:
        if isinstance(event, Broken):
            yield from refusal(seen, event, "VFIO tag")


class SectionVersions(Invariant[SectionItem | DescriptionItem]):
    passport = Passport(
        "FR-16",
        "A section is sent in the version of its kind: 4 for RAM, 1 for VFIO, what the VM description says "
        "for a described device.",
        Severity.ABORTS,
        qemu("migration/savevm.c", "qemu_loadvm_section_start_full"),
        MIGRATION,
        (Need.MAIN,),
    )
    kinds = (SectionItem, DescriptionItem)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.full: list[tuple[str, int, Seen]] = []

    def on(self, seen: Seen, event: SectionItem | DescriptionItem) -> Iterator[Finding]:
        if isinstance(event, SectionItem):
            if event.tag not in _NAMED:
                return
            wanted = 1 if is_vfio(event.idstr) else 4 if event.idstr == "ram" else event.version_id
            if event.version_id != wanted:
                yield Finding(f"{event.idstr!r} in version {event.version_id}, not {wanted}", (seen,))
            if event.tag == Tag.SECTION_FULL and len(self.full) < _IDS_MAX:
                self.full.append((event.idstr, event.version_id, seen))
            return
        try:
            described = described_versions(json.loads(event.json))
        except (ValueError, RecursionError):
            return
        for (name, version, section), (said, wanted_version) in zip(self.full, described, strict=False):
            if name == said and wanted_version is not None and version != wanted_version:
                yield Finding(
                    f"{name!r} in version {version}, described as {wanted_version}", (section, seen)
                )
                return


FRAMING = (
    StreamHeader,
    ConfigurationPresent,
    ConfigurationContent,
    ItemTags,
    SectionBound,
    IterableOnce,
    SectionIdentity,
    SectionFooter,
    SectionName,
    FullOnce,
    SectionsDescribed,
    Commands,
    ReturnPathFirst,
    OnlyDevicesAtTheEnd,
    VfioTags,
    SectionVersions,
)
