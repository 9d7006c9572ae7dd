# SPDX-License-Identifier: GPL-2.0-or-later
"""SM: the switchover, as the main channel shows it."""

from __future__ import annotations

from collections.abc import Iterator

from mockdev.wire.frames import CommandItem, SectionItem, VfioItem
from mockdev.wire.structs import Command, Tag, VfioTag
from verifier.history.facts import Facts
from verifier.history.observation import Seen, StateDone
from verifier.invariants.passport import (
    DEVICE,
    MIGRATION,
    Finding,
    Invariant,
    Need,
    Passport,
    Severity,
    qemu,
)

_RUN_STATE_BYTES = 32
_RUN_STATES = frozenset(
    b"debug inmigrate internal-error io-error paused postmigrate prelaunch finish-migrate restore-vm running "
    b"save-vm shutdown suspended watchdog guest-panicked colo preconfig".split()
)


class SwitchoverOnce(Invariant[SectionItem | CommandItem]):
    """Sound: twice is wrong in any stream; its absence only where device state came over multifd, for the
    property may be off elsewhere (then unknown).

    Misses: a SWITCHOVER_START that the machine type should not send at all; a target of that age refuses the
    command.
    """

    passport = Passport(
        "SM-1",
        "SWITCHOVER_START comes at most once, and it does come where device state travels over multifd.",
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
        if self.first is not None:
            yield Finding("SWITCHOVER_START comes twice", (self.first, seen))
        self.first = self.first or seen

    def at_end(self) -> Iterator[Finding]:
        if not self.complete or self.first is not None or self.last is None:
            return
        facts = self.facts
        if any(image.index_last is not None for image in facts.images.values()):
            yield Finding("the stream ends without SWITCHOVER_START", (self.last,))
        elif facts.dialect is None:
            self.unknown = f"no SWITCHOVER_START; whether machine type {facts.machine!r} has it is not known"
        elif facts.dialect.switchover_start:
            self.unknown = f"no SWITCHOVER_START; send-switchover-start may be off for {facts.machine!r}"


class SwitchoverPlace(Invariant[SectionItem | CommandItem]):
    """Sound: the order of items in one stream is exact, and a stream in which postcopy was begun is not
    judged.

    Misses: whether the VM was stopped by then: SM-9.
    """

    passport = Passport(
        "SM-2",
        "In precopy SWITCHOVER_START stands after every START and PART, and the next item is the first END.",
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
        if isinstance(event, SectionItem) and event.tag == Tag.SECTION_END:
            self.first_end = self.first_end or seen
        elif isinstance(event, CommandItem) and event.command == Command.SWITCHOVER_START:
            if self.switch is None and self.first_end is not None:
                self._keep("SWITCHOVER_START comes after an END", self.first_end, seen)
            self.switch = self.switch or seen
        elif self.switch is not None and self.first_end is None:
            what = Tag(event.tag).name if isinstance(event, SectionItem) else f"command {event.command}"
            self._keep(f"{what} stands between SWITCHOVER_START and the first END", self.switch, seen)
        return iter(())

    def _keep(self, message: str, *witnesses: Seen) -> None:
        self.finding = self.finding or Finding(message, witnesses)

    def at_end(self) -> Iterator[Finding]:
        if self.finding is not None and not self.facts.postcopy:
            yield self.finding


class IterablesFirst(Invariant[SectionItem]):
    """Sound: the order of sections in one stream is exact; early FULL sections, before any END, are allowed,
    and postcopy is not judged.

    Misses: the order of the FULL sections among themselves: FR-11.
    """

    passport = Passport(
        "SM-3",
        "In precopy no END follows a FULL section that itself follows an END.",
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
    """Sound: judged only for machine types that are known to have a single acknowledgement.

    Misses: a second one from a machine type that is not known, and one that comes before the initial data are
    through.
    """

    passport = Passport(
        "SM-6",
        "A device sends INIT_DATA_SENT at most once, unless acknowledgements are counted (machine types "
        "from 11.1).",
        Severity.ABORTS,
        qemu("hw/vfio/migration.c, migration/savevm.c", "vfio_load_state, qemu_loadvm_approve_switchover"),
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
    """Sound: a target refuses the second in every release that knows it; a machine type that has it off by
    default leaves the first unknown.

    Misses: one that never comes while the target waits for it: LV-5.
    """

    passport = Passport(
        "SM-8",
        "A device sends CONFIG_LOAD_READY at most once.",
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
            self.unknown = f"CONFIG_LOAD_READY, which machine type {self.facts.machine!r} has off by default"
        self.first = self.first or seen


class KnownRunState(Invariant[StateDone]):
    """Sound: the list is every RunState of QAPI from 9.0 to 11.1; a name that is not in it is refused by all
    of them.

    Misses: a known name that is not what the VM was doing; the ends' QMP events would tell (STOP, RESUME).
    """

    passport = Passport(
        "SM-7",
        "The run state in the section globalstate is one that QEMU knows, and its length is said rightly.",
        Severity.ABORTS,
        qemu("migration/global_state.c, qapi/run-state.json", "global_state_post_load, RunState"),
        MIGRATION,
        (Need.MAIN,),
    )
    kinds = (StateDone,)

    def on(self, seen: Seen, event: StateDone) -> Iterator[Finding]:
        size, field = int.from_bytes(event.data[:4], "big"), event.data[4 : 4 + _RUN_STATE_BYTES]
        name = field.partition(b"\0")[0]
        if name not in _RUN_STATES:
            yield Finding(f"the run state is {name.decode('ascii', 'backslashreplace')!r}", (seen,))
        elif size != len(name) + 1:
            yield Finding(f"the run state {name.decode()!r} has its length as {size}", (seen,))


SWITCHOVER = (
    SwitchoverOnce,
    SwitchoverPlace,
    IterablesFirst,
    InitDataOnce,
    ConfigLoadReady,
    KnownRunState,
)
