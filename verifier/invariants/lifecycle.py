# SPDX-License-Identifier: GPL-2.0-or-later
"""SM, RP, EN: the switchover, what the target answers, and how a migration ends."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator

from mockdev.wire.frames import (
    CommandItem,
    DescriptionItem,
    EofItem,
    ReturnPathItem,
    SectionItem,
    TrailingItem,
    VfioItem,
)
from mockdev.wire.structs import MULTIFD_INIT, PAGE_BYTES, Command, ReturnPath, Tag, VfioTag
from verifier.capture.flows import Role
from verifier.history.facts import Facts
from verifier.history.observation import Broken, FlowEnd, Seen
from verifier.invariants.description import described_devices
from verifier.invariants.framing import refusal
from verifier.invariants.passport import (
    CHANNEL,
    DEVICE,
    MIGRATION,
    Finding,
    Invariant,
    Need,
    Passport,
    Severity,
    qemu,
)

# Capture time is not delivery time, and two flows have no order between them but time: an order across
# flows is only called broken beyond this. What one capture point sees of a cause and its effect differs by
# far less; an endpoint that writes its own log may be late by the time its thread had to wait.
SLACK_NS = 1_000_000_000

_RP_LENGTHS: dict[int, range] = {
    ReturnPath.SHUT: range(4, 5),
    ReturnPath.PONG: range(4, 5),
    ReturnPath.REQ_PAGES_ID: range(13, 13 + 256),
    ReturnPath.REQ_PAGES: range(12, 13),
    ReturnPath.RECV_BITMAP: range(1, 1 + 256),
    ReturnPath.RESUME_ACK: range(4, 5),
    ReturnPath.SWITCHOVER_ACK: range(1),
}
_POSTCOPY_ANSWERS = (
    ReturnPath.REQ_PAGES_ID,
    ReturnPath.REQ_PAGES,
    ReturnPath.RECV_BITMAP,
    ReturnPath.RESUME_ACK,
)
_PINGS_MAX = 65_536


class SwitchoverOnce(Invariant[SectionItem | CommandItem]):
    passport = Passport(
        "SM-1",
        "SWITCHOVER_START comes exactly once where the dialect has it, and never where it has not.",
        Severity.CORRUPTS,
        qemu("migration/savevm.c", "qemu_savevm_maybe_send_switchover_start"),
        MIGRATION,
        (Need.MAIN,),
    )
    kinds = (SectionItem, CommandItem)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.first: Seen | None = None
        self.last: Seen | None = None

    def on(self, seen: Seen, event: SectionItem | CommandItem) -> Iterator[Finding]:
        self.last = seen
        if isinstance(event, SectionItem) or event.command != Command.SWITCHOVER_START:
            return
        dialect = self.facts.dialect
        if self.first is not None:
            yield Finding("SWITCHOVER_START comes twice", (self.first, seen))
        elif dialect is not None and not dialect.switchover_start:
            yield Finding(f"machine type {self.facts.machine} has no SWITCHOVER_START", (seen,))
        self.first = self.first or seen

    def at_end(self) -> Iterator[Finding]:
        dialect = self.facts.dialect
        if dialect is None:
            self.unknown = f"the dialect of machine type {self.facts.machine!r} is not known"
        elif self.complete and dialect.switchover_start and self.first is None and self.last is not None:
            yield Finding("the stream ends without SWITCHOVER_START", (self.last,))


class SwitchoverPlace(Invariant[SectionItem | CommandItem]):
    passport = Passport(
        "SM-2",
        "SWITCHOVER_START lies after the last PART and before the first END.",
        Severity.CORRUPTS,
        qemu("migration/migration.c", "migration_switchover_start"),
        MIGRATION,
        (Need.MAIN,),
    )
    kinds = (SectionItem, CommandItem)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.switch: Seen | None = None
        self.first_end: Seen | None = None
        self.finding: Finding | None = None

    def on(self, seen: Seen, event: SectionItem | CommandItem) -> Iterator[Finding]:
        if isinstance(event, CommandItem):
            if event.command == Command.SWITCHOVER_START and self.switch is None:
                self.switch = seen
                if self.first_end is not None:
                    self._keep("SWITCHOVER_START comes after an END", self.first_end, seen)
        elif event.tag == Tag.SECTION_END:
            self.first_end = self.first_end or seen
        elif event.tag == Tag.SECTION_PART and self.switch is not None and self.first_end is None:
            self._keep("a PART comes after SWITCHOVER_START", self.switch, seen)
        return iter(())

    def _keep(self, message: str, *witnesses: Seen) -> None:
        self.finding = self.finding or Finding(message, witnesses)

    def at_end(self) -> Iterator[Finding]:
        if self.finding is not None and not self.facts.postcopy:
            yield self.finding


class IterablesFirst(Invariant[SectionItem]):
    passport = Passport(
        "SM-3",
        "In precopy all iterables have ended before the first device section that follows an END.",
        Severity.CORRUPTS,
        qemu("migration/savevm.c", "qemu_savevm_state_complete_precopy"),
        MIGRATION,
        (Need.MAIN,),
    )
    kinds = (SectionItem,)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.ending = False
        self.device: Seen | None = None
        self.finding: Finding | None = None

    def on(self, seen: Seen, event: SectionItem) -> Iterator[Finding]:
        if event.tag == Tag.SECTION_END:
            self.ending = True
            if self.device is not None and self.finding is None:
                self.finding = Finding("an iterable ends after a device section", (self.device, seen))
        elif event.tag == Tag.SECTION_FULL and self.ending:
            self.device = self.device or seen
        return iter(())

    def at_end(self) -> Iterator[Finding]:
        if self.finding is not None and not self.facts.postcopy:
            yield self.finding


class InitDataOnce(Invariant[VfioItem]):
    passport = Passport(
        "SM-6",
        "A device says at most once that its initial data was sent, where acknowledgements are not counted.",
        Severity.ABORTS,
        qemu("hw/vfio/migration.c", "vfio_load_state"),
        DEVICE,
        (Need.MAIN,),
    )
    kinds = (VfioItem,)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.first: Seen | None = None

    def on(self, seen: Seen, event: VfioItem) -> Iterator[Finding]:
        if event.tag != VfioTag.DEV_INIT_DATA_SENT:
            return
        dialect = self.facts.dialect
        if self.first is not None and dialect is not None and not dialect.repeated_switchover_ack:
            yield Finding("INIT_DATA_SENT comes twice", (self.first, seen))
        self.first = self.first or seen


class ConfigLoadReady(Invariant[VfioItem]):
    passport = Passport(
        "SM-8",
        "CONFIG_LOAD_READY comes at most once per device, and only in a dialect that has it.",
        Severity.ABORTS,
        qemu("hw/vfio/migration-multifd.c", "vfio_load_state_config_load_ready", "10.1"),
        DEVICE,
        (Need.MAIN,),
    )
    kinds = (VfioItem,)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.first: Seen | None = None

    def on(self, seen: Seen, event: VfioItem) -> Iterator[Finding]:
        if event.tag != VfioTag.DEV_CONFIG_LOAD_READY:
            return
        dialect = self.facts.dialect
        if self.first is not None:
            yield Finding("CONFIG_LOAD_READY comes twice", (self.first, seen))
        elif dialect is not None and not dialect.config_load_ready:
            yield Finding(f"dialect {dialect.name} has no CONFIG_LOAD_READY", (seen,))
        self.first = self.first or seen


class AnswersInvited(Invariant[CommandItem | ReturnPathItem]):
    passport = Passport(
        "RP-1",
        "The target answers only on a return path that was opened (capture times may be 1 s apart).",
        Severity.ABORTS,
        qemu("migration/savevm.c", "loadvm_process_command"),
        MIGRATION,
        (Need.MAIN,),
    )
    kinds = (CommandItem, ReturnPathItem)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.answer: Seen | None = None
        self.opened = False

    def on(self, seen: Seen, event: CommandItem | ReturnPathItem) -> Iterator[Finding]:
        if isinstance(event, ReturnPathItem):
            self.answer = self.answer or seen
        elif event.command == Command.OPEN_RETURN_PATH and not self.opened:
            self.opened = True
            if self.answer is not None and seen.time_ns - self.answer.time_ns > SLACK_NS:
                yield Finding("the target answers before the return path is opened", (self.answer, seen))

    def at_end(self) -> Iterator[Finding]:
        if self.complete and not self.opened and self.answer is not None:
            yield Finding("the target answers though no return path was opened", (self.answer,))


class AnswerForm(Invariant[ReturnPathItem | Broken]):
    passport = Passport(
        "RP-2",
        "A return-path message has a known type and the length that belongs to it.",
        Severity.ABORTS,
        qemu("migration/migration.c", "source_return_path_thread"),
        MIGRATION,
        (Need.RETURN_PATH,),
    )
    kinds = (ReturnPathItem, Broken)

    def on(self, seen: Seen, event: ReturnPathItem | Broken) -> Iterator[Finding]:
        if isinstance(event, Broken):
            if seen.lane.role is Role.RETURN_PATH:
                yield Finding(event.error.message, (seen,))
        elif len(event.data) not in _RP_LENGTHS[event.type]:
            yield Finding(f"{ReturnPath(event.type).name} with {len(event.data)} bytes", (seen,))


class PongEchoes(Invariant[CommandItem | ReturnPathItem]):
    passport = Passport(
        "RP-3",
        "Every PONG echoes a PING, each at most once.",
        Severity.SLOWS,
        qemu("migration/migration.c", "migrate_send_rp_pong"),
        MIGRATION,
        (Need.MAIN, Need.RETURN_PATH),
    )
    kinds = (CommandItem, ReturnPathItem)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.pings: list[bytes] = []
        self.pongs: list[tuple[bytes, Seen]] = []

    def on(self, seen: Seen, event: CommandItem | ReturnPathItem) -> Iterator[Finding]:
        if isinstance(event, CommandItem):
            if event.command == Command.PING and len(self.pings) < _PINGS_MAX:
                self.pings.append(event.data)
        elif event.type == ReturnPath.PONG and len(self.pongs) < _PINGS_MAX:
            self.pongs.append((event.data, seen))
        return iter(())

    def at_end(self) -> Iterator[Finding]:
        if len(self.pings) >= _PINGS_MAX or len(self.pongs) >= _PINGS_MAX:
            self.unknown = f"more than {_PINGS_MAX} of them"
        if not self.complete or self.unknown:
            return
        left = Counter(self.pings)
        for value, seen in self.pongs:
            if not left[value]:
                yield Finding(f"PONG {value.hex()} echoes no PING that is still unanswered", (seen,))
                return
            left[value] -= 1


class ShutLast(Invariant[ReturnPathItem | FlowEnd]):
    passport = Passport(
        "RP-4",
        "A return path ends with one SHUT and nothing after it.",
        Severity.STALLS,
        qemu("migration/migration.c", "migrate_send_rp_shut"),
        MIGRATION,
        (Need.RETURN_PATH, Need.MAIN),
    )
    kinds = (ReturnPathItem, FlowEnd)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.shut: Seen | None = None
        self.end: Seen | None = None

    def on(self, seen: Seen, event: ReturnPathItem | FlowEnd) -> Iterator[Finding]:
        if isinstance(event, FlowEnd):
            if seen.lane.role is Role.RETURN_PATH:
                self.end = seen
            return
        if self.shut is not None:
            yield Finding("a message after SHUT", (self.shut, seen))
        if event.type == ReturnPath.SHUT:
            self.shut = self.shut or seen

    def at_end(self) -> Iterator[Finding]:
        facts = self.facts
        missing = facts.return_path_opened and self.shut is None and self.end is not None
        # A side that dies says no SHUT: that is how a failure looks, and no break of the protocol.
        if missing and self.complete and self.end is not None and self.end.event.kind == "fin":  # type: ignore[union-attr]
            self.unknown = "the return path ends without SHUT: the migration was broken off"
        return iter(())


class SwitchoverAckOnce(Invariant[ReturnPathItem]):
    passport = Passport(
        "RP-5",
        "SWITCHOVER_ACK comes at most once, where acknowledgements are not counted.",
        Severity.SLOWS,
        qemu("migration/savevm.c", "qemu_loadvm_approve_switchover"),
        MIGRATION,
        (Need.RETURN_PATH,),
    )
    kinds = (ReturnPathItem,)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.first: Seen | None = None

    def on(self, seen: Seen, event: ReturnPathItem) -> Iterator[Finding]:
        if event.type != ReturnPath.SWITCHOVER_ACK:
            return
        dialect = self.facts.dialect
        if self.first is not None and dialect is not None and not dialect.repeated_switchover_ack:
            yield Finding("SWITCHOVER_ACK comes twice", (self.first, seen))
        self.first = self.first or seen


class NoPostcopyAnswers(Invariant[ReturnPathItem]):
    passport = Passport(
        "RP-6",
        "In precopy the target asks for no page, sends no bitmap and acknowledges no resume.",
        Severity.CORRUPTS,
        qemu("migration/migration.c", "migrate_handle_rp_req_pages"),
        MIGRATION,
        (Need.RETURN_PATH, Need.MAIN),
    )
    kinds = (ReturnPathItem,)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.first: Seen | None = None

    def on(self, seen: Seen, event: ReturnPathItem) -> Iterator[Finding]:
        if event.type in _POSTCOPY_ANSWERS:
            self.first = self.first or seen
        return iter(())

    def at_end(self) -> Iterator[Finding]:
        if self.first is not None and not self.facts.postcopy and self.complete:
            name = ReturnPath(self.first.event.type).name  # type: ignore[union-attr]
            yield Finding(f"{name} in a precopy migration", (self.first,))


class ShutAfterEnd(Invariant[ReturnPathItem | EofItem]):
    passport = Passport(
        "RP-7",
        "The target says SHUT 0 only when it has read the end mark (capture times may be 1 s apart).",
        Severity.CORRUPTS,
        qemu("migration/migration.c", "migration_incoming_state_destroy"),
        MIGRATION,
        (Need.RETURN_PATH, Need.MAIN),
    )
    kinds = (ReturnPathItem, EofItem)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.shut: Seen | None = None

    def on(self, seen: Seen, event: ReturnPathItem | EofItem) -> Iterator[Finding]:
        if isinstance(event, EofItem):
            if self.shut is not None and seen.time_ns - self.shut.time_ns > SLACK_NS:
                yield Finding("SHUT 0 comes before the end mark", (self.shut, seen))
        elif event.type == ReturnPath.SHUT and not any(event.data):
            self.shut = self.shut or seen


class EndOnce(Invariant[EofItem | TrailingItem | DescriptionItem | Broken]):
    passport = Passport(
        "EN-1",
        "After the end mark comes the VM description, and nothing after that.",
        Severity.STALLS,
        qemu("migration/savevm.c", "qemu_loadvm_state"),
        MIGRATION,
        (Need.MAIN,),
    )
    kinds = (EofItem, TrailingItem, DescriptionItem, Broken)

    def on(self, seen: Seen, event: EofItem | TrailingItem | DescriptionItem | Broken) -> Iterator[Finding]:
        if isinstance(event, TrailingItem):
            yield Finding(f"{event.size} bytes after the VM description", (seen,))
        elif isinstance(event, Broken) and self.facts.eof is not None:
            yield from refusal(seen, event, "tag")

    def at_end(self) -> Iterator[Finding]:
        facts = self.facts
        if self.complete and facts.eof and not facts.described and not facts.postcopy:
            # The machine type may leave the description out; a target that waits for it then stalls.
            self.unknown = "the stream ends without a VM description, which a machine type may suppress"
        return iter(())


class DescriptionReads(Invariant[EofItem | DescriptionItem | Broken]):
    passport = Passport(
        "EN-2",
        "The VM description is JSON that lists devices and names the page size of the stream.",
        Severity.SLOWS,
        qemu("migration/savevm.c", "qemu_savevm_state_complete_precopy_non_iterable"),
        MIGRATION,
        (Need.MAIN,),
    )
    kinds = (DescriptionItem, Broken)

    def on(self, seen: Seen, event: EofItem | DescriptionItem | Broken) -> Iterator[Finding]:
        if isinstance(event, Broken):
            yield from refusal(seen, event, "vmdesc_len")
        elif isinstance(event, DescriptionItem):
            try:
                description = json.loads(event.json)
                described_devices(description)
            except (ValueError, RecursionError) as error:
                yield Finding(f"the VM description cannot be read: {error}", (seen,))
                return
            if description.get("page_size") != PAGE_BYTES:
                yield Finding(f"page size {description.get('page_size')}, not {PAGE_BYTES}", (seen,))


class CoreSections(Invariant[SectionItem | EofItem]):
    passport = Passport(
        "EN-3",
        "A whole stream holds RAM and the VM's run state.",
        Severity.CORRUPTS,
        qemu("migration/savevm.c", "qemu_savevm_state_setup, qemu_savevm_state_complete_precopy"),
        MIGRATION,
        (Need.MAIN,),
    )
    kinds = (SectionItem, EofItem)
    wanted = frozenset(("ram", "globalstate"))

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.found: set[str] = set()
        self.end: Seen | None = None

    def on(self, seen: Seen, event: SectionItem | EofItem) -> Iterator[Finding]:
        if isinstance(event, EofItem):
            self.end = seen
        elif event.idstr in self.wanted:
            self.found.add(event.idstr)
        return iter(())

    def at_end(self) -> Iterator[Finding]:
        missing = sorted(self.wanted - self.found)
        if self.complete and missing and self.end is not None:
            yield Finding(f"the stream ends without section {missing[0]!r}", (self.end,))


class PacketBoundary(Invariant[FlowEnd | Broken]):
    passport = Passport(
        "MP-15",
        "A multifd channel ends between two packets.",
        Severity.STALLS,
        qemu("migration/multifd.c", "multifd_recv_thread"),
        CHANNEL,
        (Need.COMPLETED,),
    )
    kinds = (FlowEnd,)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.cut: Seen | None = None

    def on(self, seen: Seen, event: FlowEnd | Broken) -> Iterator[Finding]:
        if isinstance(event, FlowEnd) and event.inside and event.kind != "cut":
            self.cut = seen
        return iter(())

    def at_end(self) -> Iterator[Finding]:
        if self.cut is not None and self.complete:
            inside = self.cut.event.inside  # type: ignore[union-attr]
            yield Finding(f"the connection ends inside a packet ({inside})", (self.cut,))


class PacketMagic(Invariant[FlowEnd | Broken]):
    passport = Passport(
        "MP-1",
        "Every multifd packet begins with the known magic and version.",
        Severity.ABORTS,
        qemu("migration/multifd.c", "multifd_recv_unfill_packet_header"),
        CHANNEL,
    )
    kinds = (FlowEnd, Broken)

    def on(self, seen: Seen, event: FlowEnd | Broken) -> Iterator[Finding]:
        mine = isinstance(event, Broken) and event.offset >= MULTIFD_INIT.size
        if mine and seen.lane.role is Role.CHANNEL and isinstance(event, Broken):
            yield Finding(event.error.message, (seen,))


LIFECYCLE = (
    SwitchoverOnce,
    SwitchoverPlace,
    IterablesFirst,
    InitDataOnce,
    ConfigLoadReady,
    AnswersInvited,
    AnswerForm,
    PongEchoes,
    ShutLast,
    SwitchoverAckOnce,
    NoPostcopyAnswers,
    ShutAfterEnd,
    EndOnce,
    DescriptionReads,
    CoreSections,
    PacketBoundary,
    PacketMagic,
)
