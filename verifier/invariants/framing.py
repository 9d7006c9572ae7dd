# SPDX-License-Identifier: GPL-2.0-or-later
"""FR: the main channel can be read as what it claims to be, item by item."""

from __future__ import annotations

from collections.abc import Iterator

from mockdev.wire.frames import (
    CommandItem,
    ConfigurationItem,
    FooterItem,
    HeaderItem,
    SectionItem,
    VfioItem,
)
from mockdev.wire.structs import COMMAND_LENGTHS, Command, Tag
from verifier.capture.flows import Role
from verifier.history.facts import Facts
from verifier.history.observation import Broken, Seen
from verifier.invariants.passport import (
    MIGRATION,
    Finding,
    Invariant,
    Need,
    Passport,
    Severity,
    qemu,
)
from verifier.invariants.sections import (
    FullOnce,
    IterableOnce,
    OnlyDevicesAtTheEnd,
    Phases,
    SectionBound,
    SectionIdentity,
    SectionsDescribed,
    SectionVersions,
)

_NAMED = (Tag.SECTION_START, Tag.SECTION_FULL)


def refusal(seen: Seen, event: Broken, *fields: str) -> Iterator[Finding]:
    """The finding that the syntax refused one of these fields of the main channel."""
    if seen.lane.role is Role.MAIN and event.error.field in fields:
        yield Finding(event.error.message, (seen,))


class StreamHeader(Invariant[HeaderItem | Broken]):
    """Sound: a main channel is known by its magic, so what is judged is what a target reads first and
    refuses.

    Misses: a connection with another magic, which is no main channel here at all: CH-1 has it.
    """

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
    """Sound: a stream without the section, to a target that did not answer with success, would have been
    refused; one that was taken (SHUT 0) may have send-configuration off and is left undecided.

    Misses: a name that is not the target's own: the target compares it, and its refusal (SHUT 1, its log)
    shows it.
    """

    passport = Passport(
        "FR-2",
        "The stream header is followed by a configuration section with the name of the machine type.",
        Severity.ABORTS,
        qemu("migration/savevm.c", "qemu_loadvm_state_header, configuration_post_load"),
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
        if not self.complete or self.facts.configuration is not None:
            return
        if self.facts.shut == 0:
            self.unknown = "the stream has no configuration section; send-configuration may be off"
        else:
            yield Finding("the stream has no configuration section", (self.header,))


class ConfigurationContent(Invariant[ConfigurationItem | Broken]):
    """Sound: the three subsections and the two capabilities are all that any release sends or compares, up to
    11.1.

    Misses: a subsection whose content is not what it should be, a capability that one end has and the other
    lacks: the target's refusal shows it.
    """

    passport = Passport(
        "FR-3",
        "The subsections of the configuration are target-page-bits, capabilities and uuid, each at most "
        "once, and the capabilities named there are of those that a target compares: x-ignore-shared and "
        "mapped-ram.",
        Severity.ABORTS,
        qemu("migration/savevm.c", "vmstate_configuration, configuration_validate_capabilities"),
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
    """Sound: a target reads exactly these tags at this place; a tag is judged only where the syntax was in
    step until there.

    Misses: a wrong length before it that ends on a byte that happens to be a tag; FR-11 compares lengths with
    the description.
    """

    passport = Passport(
        "FR-4",
        "Every item of the main channel begins with EOF, one of the four SECTION tags, or COMMAND.",
        Severity.ABORTS,
        qemu("migration/savevm.c", "qemu_loadvm_state_main"),
        MIGRATION,
    )
    kinds = (SectionItem, CommandItem, Broken)

    def on(self, seen: Seen, event: SectionItem | CommandItem | Broken) -> Iterator[Finding]:
        if isinstance(event, Broken) and self.facts.eof is None:
            yield from refusal(seen, event, "tag")


class SectionFooter(Invariant[FooterItem | Broken]):
    """Sound: that a stream has footers is learnt from its first section's, and a stream without any is read
    as such.

    Misses: a first section whose footer is wrong in such a way that the stream is taken for one without
    footers: the next tag then fails FR-4.
    """

    passport = Passport(
        "FR-8",
        "Where sections have footers, every section ends with one, which repeats its id.",
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
    """Sound: an idstr of length 0 has no handler in any release.

    Misses: a name that the target does not know, which only the target can tell (SHUT 1, its error).
    """

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


class Commands(Invariant[CommandItem]):
    """Sound: the numbers and lengths are those of 11.1, to which releases have only added; a command whose
    length may vary is not measured.

    Misses: a command that is known and out of place: FR-13, FR-14 and SM-2 judge the places of some.
    """

    passport = Passport(
        "FR-12",
        "The number of a command is a known one, and its data has the length that belongs to it.",
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
    """Sound: a source opens the return path before it does anything else, and a target refuses a PING without
    one.

    Misses: a return path that is needed and never opened; RP-1 finds answers without one.
    """

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


class VfioTags(Invariant[VfioItem | Broken]):
    """Sound: the set of tags is that of 11.1; a tag that is not in it, or a length that leads out of the
    section, is refused by every target.

    Misses: a known tag in the wrong section: DS-11.
    """

    passport = Passport(
        "FR-15",
        "A VFIO section of the main channel consists of known tags, DEV_DATA_STATE with that many bytes "
        "after it.",
        Severity.ABORTS,
        qemu("hw/vfio/migration.c", "vfio_load_state"),
        MIGRATION,
    )
    kinds = (VfioItem, Broken)

    def on(self, seen: Seen, event: VfioItem | Broken) -> Iterator[Finding]:
        if isinstance(event, Broken):
            yield from refusal(seen, event, "VFIO tag")


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
    Phases,
)
