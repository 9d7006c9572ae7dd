# SPDX-License-Identifier: GPL-2.0-or-later
"""FR: the sections of the main channel, as they belong together and to the VM description at its end."""

from __future__ import annotations

import json
from collections.abc import Iterator

from mockdev.wire.frames import CommandItem, DescriptionItem, EofItem, FooterItem, SectionItem
from mockdev.wire.mainstream import is_vfio
from mockdev.wire.structs import Command, Tag
from verifier.history.facts import Facts
from verifier.history.observation import Seen
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


class SectionBound(Invariant[SectionItem]):
    """Sound: ids of START and FULL sections are remembered from the first byte of the stream on, so none can
    have been bound unseen.

    Misses: an id that was bound by a section of another kind than the PART belongs to; FR-7 and the payload's
    own syntax see that.
    """

    passport = Passport(
        "FR-5",
        "The id of a PART or END section is that of an earlier START.",
        Severity.ABORTS,
        qemu("migration/savevm.c", "qemu_loadvm_section_part_end"),
        MIGRATION,
    )
    kinds = (SectionItem,)

    def on(self, seen: Seen, event: SectionItem) -> Iterator[Finding]:
        if not event.bound:
            yield Finding(f"section id {event.section_id} was never started", (seen,))


class IterableOnce(Invariant[SectionItem]):
    """Sound: START, PART and END are counted by section id in the order of the stream; a missing END is only
    said of RAM and VFIO, which always have something to end, in a stream that was read whole.

    Misses: a PART that should have come and did not; for RAM RS-13 finds the pages missing, for devices EQ-1
    the bytes.
    """

    passport = Passport(
        "FR-6",
        "An iterable has one START, then any PARTs, then one END; without END is only one that may have "
        "nothing to send (not RAM, not VFIO).",
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
        if not self.complete:
            return
        for number in self.open.keys() - self.ended.keys():
            # An iterable may find out during START that it has nothing to send (dirty bitmaps of no disk).
            name = self.open[number].event.idstr  # type: ignore[union-attr]
            if name == "ram" or is_vfio(name):
                yield Finding(f"{name!r} is started and never ended", (self.open[number],))


class SectionIdentity(Invariant[SectionItem]):
    """Sound: a source numbers its sections once at their registration, and both directions of the mapping are
    taken from the stream itself.

    Misses: PART and END sections, which carry the id alone, and what comes after 16,384 ids.
    """

    passport = Passport(
        "FR-7",
        "A section id stands for one (idstr, instance) throughout the stream, and no (idstr, instance) has "
        "two ids.",
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


class FullOnce(Invariant[SectionItem]):
    """Sound: a source walks its list of handlers once, and each has a name and instance of its own.

    Misses: a section that was sent twice under two names, and what comes after 16,384 of them.
    """

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
    """Sound: the description is written by the same walk that writes the sections; a device whose lengths it
    does not say in full is passed over.

    Misses: contents that are wrong within the right length, and a stream without description (the judge then
    has nothing to compare).
    """

    passport = Passport(
        "FR-11",
        "The FULL sections of the stream are the devices of the VM description, in its order, and each "
        "payload is as long as the description says.",
        Severity.CORRUPTS,
        qemu("migration/savevm.c", "vmstate_save, vmstate_save_old_style"),
        MIGRATION,
        (Need.MAIN,),
    )
    kinds = (FooterItem, DescriptionItem)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.sections: list[tuple[str, int, Seen]] = []
        self.exercised = False

    def on(self, seen: Seen, event: FooterItem | DescriptionItem) -> Iterator[Finding]:
        if isinstance(event, FooterItem):
            if event.tag == Tag.SECTION_FULL and len(self.sections) < _IDS_MAX:
                self.sections.append((event.idstr, event.payload_size, seen))
            return
        self.exercised = True
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


class OnlyDevicesAtTheEnd(Invariant[SectionItem | CommandItem | EofItem]):
    """Sound: a precopy source writes nothing else there, and a stream in which postcopy was begun is not
    judged.

    Misses: FULL sections that are out of order among themselves (FR-11) and a SWITCHOVER_START there, which
    is SM-2's.
    """

    passport = Passport(
        "FR-14",
        "In precopy only END and FULL sections stand between the first END and the end mark.",
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


class SectionVersions(Invariant[SectionItem | DescriptionItem]):
    """Sound: version 4 of RAM and 1 of VFIO have not changed since 9.0, and for others only the stream's own
    description counts, by position and name.

    Misses: a version that the target does not know though source and description agree: the target refuses it
    (SHUT 1).
    """

    passport = Passport(
        "FR-16",
        "The version of a section is 4 for RAM, 1 for VFIO, and for a device with a VMStateDescription the "
        "one that the VM description names.",
        Severity.ABORTS,
        qemu("migration/savevm.c, migration/ram.c", "qemu_loadvm_section_start_full, ram_load"),
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


class Phases(Invariant[SectionItem]):
    """Sound: a precopy source sets everything up before it iterates and sends devices after all iterables; a
    stream in which postcopy was begun is not judged.

    Misses: a START that comes late and before the first PART, which is where any START belongs.
    """

    passport = Passport(
        "FR-17",
        "In precopy every START stands before the first PART, and no FULL section stands between the "
        "first PART and the first END.",
        Severity.CORRUPTS,
        qemu(
            "migration/savevm.c",
            "qemu_savevm_state_setup, qemu_savevm_state_complete_precopy_non_iterable",
        ),
        MIGRATION,
        (Need.MAIN,),
    )
    kinds = (SectionItem,)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.part: Seen | None = None
        self.ending = False
        self.finding: Finding | None = None

    def on(self, seen: Seen, event: SectionItem) -> Iterator[Finding]:
        if event.tag == Tag.SECTION_PART:
            self.part = self.part or seen
        elif event.tag == Tag.SECTION_END:
            self.ending = True
        elif self.part is not None and not self.ending and self.finding is None:
            what = f"{Tag(event.tag).name} of {event.idstr!r}"
            self.finding = Finding(f"{what} stands among the PARTs", (self.part, seen))
        return iter(())

    def at_end(self) -> Iterator[Finding]:
        if self.finding is not None and not self.facts.postcopy:
            yield self.finding
