# SPDX-License-Identifier: GPL-2.0-or-later
"""EN: how the main channel ends, and what it must have held by then."""

from __future__ import annotations

import json
from collections.abc import Iterator

from mockdev.wire.frames import DescriptionItem, EofItem, SectionItem, TrailingItem
from mockdev.wire.structs import PAGE_BYTES
from verifier.history.facts import Facts
from verifier.history.observation import Broken, Seen
from verifier.invariants.description import described_devices
from verifier.invariants.framing import refusal
from verifier.invariants.passport import (
    MIGRATION,
    Finding,
    Invariant,
    Need,
    Passport,
    Severity,
    qemu,
)


class EndOnce(Invariant[EofItem | TrailingItem | DescriptionItem | Broken]):
    """Sound: bytes after the description are wrong in any stream; a missing description is left unknown, for
    both ends may be told to do without.

    Misses: a source that stops before the end mark: then the main channel is not whole, and the outcome
    unknown.
    """

    passport = Passport(
        "EN-1",
        "The end mark is followed by the VM description, unless both ends do without, and by nothing else.",
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
        missing = self.complete and facts.eof and not facts.described and not facts.postcopy
        if missing and facts.shut != 0:
            # The source may be told to leave the description out; a target that was not waits for it.
            self.unknown = "the stream ends without a VM description; suppress-vmdesc may be on"
        return iter(())


class DescriptionReads(Invariant[EofItem | DescriptionItem | Broken]):
    """Sound: the description is the source's own JSON, and the page size that of every supported target.

    Misses: a description that reads well and does not fit the sections: FR-11, FR-16; and one that does not
    begin with a brace, by which the end of the last section is found (then the stream's end is unknown).
    """

    passport = Passport(
        "EN-2",
        "The VM description is JSON with a list of devices and the target page size of the stream.",
        Severity.SLOWS,
        qemu(
            "migration/savevm.c", "qemu_savevm_state_setup, qemu_savevm_state_complete_precopy_non_iterable"
        ),
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
    """Sound: every VM has RAM, and a stream read to its end mark without it cannot be loaded; without
    globalstate it is only unknown.

    Misses: other sections that should be there, which only the machine knows: FR-11 compares with the
    description, EQ-7 and EQ-8 with the outcome.
    """

    passport = Passport(
        "EN-3",
        "A whole stream holds the section 'ram'.",
        Severity.CORRUPTS,
        qemu("migration/ram.c, migration/savevm.c", "ram_mig_init, qemu_savevm_state_setup"),
        MIGRATION,
        (Need.MAIN,),
    )
    kinds = (SectionItem, EofItem)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.found: set[str] = set()
        self.end: Seen | None = None

    def on(self, seen: Seen, event: SectionItem | EofItem) -> Iterator[Finding]:
        if isinstance(event, EofItem):
            self.end = seen
        elif event.idstr in ("ram", "globalstate"):
            self.found.add(event.idstr)
        return iter(())

    def at_end(self) -> Iterator[Finding]:
        if not self.complete or self.end is None:
            return
        if "ram" not in self.found:
            yield Finding("the stream ends without section 'ram'", (self.end,))
        elif "globalstate" not in self.found:
            self.unknown = "the stream has no section 'globalstate'; store-global-state may be off"


END_OF_STREAM = (
    EndOnce,
    DescriptionReads,
    CoreSections,
)
