# SPDX-License-Identifier: GPL-2.0-or-later
"""CH: the connections of a migration, and how each introduces itself."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mockdev.wire.frames import HeaderItem, InitFrame, RamRecordItem
from mockdev.wire.structs import CHANNELS_MAX, MULTIFD_INIT, RamFlag
from verifier.capture.flows import Role
from verifier.history.facts import Facts
from verifier.history.observation import Answered, Broken, FlowEnd, Seen
from verifier.invariants.passport import (
    CHANNEL,
    FLOW,
    MIGRATION,
    Finding,
    Invariant,
    Need,
    Passport,
    Severity,
    qemu,
)
from verifier.invariants.return_path import SLACK_NS

_UUID = re.compile("[0-9a-fA-F]{32}")


class OneMainChannel(Invariant[HeaderItem | InitFrame | FlowEnd]):
    """Sound: only a connection to the migration's own target, opened during it, whose first four bytes are in
    the capture and are neither magic counts; where postcopy was advised, whose second channel has none, it is
    left undecided.

    Misses: a second main channel, which counts as the next migration (its first one then has no end), and a
    foreign connection that was made after all others were over.
    """

    passport = Passport(
        "CH-1",
        "Of the connections that carry a precopy migration, one begins with the main channel's magic and "
        "every other one with multifd's.",
        Severity.ABORTS,
        qemu("migration/migration.c", "migration_ioc_process_incoming"),
        MIGRATION,
    )
    kinds = (HeaderItem, InitFrame, FlowEnd)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.foreign: list[Seen] = []

    def on(self, seen: Seen, event: HeaderItem | InitFrame | FlowEnd) -> Iterator[Finding]:
        if isinstance(event, FlowEnd) and seen.lane.foreign:
            self.foreign.append(seen)
        return iter(())

    def at_end(self) -> Iterator[Finding]:
        if self.foreign and self.facts.postcopy_advised:
            # Postcopy's second channel (postcopy-preempt) and a recovery's new main channel carry no magic.
            self.unknown = f"{self.foreign[0].lane} may be a channel of postcopy, which has no magic"
            return
        for seen in self.foreign:
            yield Finding(f"{seen.lane}: {seen.lane.why}", (seen,))
        if self.facts.main is None and not self.foreign:
            self.unknown = "no main channel is in the capture"


class InitPacket(Invariant[InitFrame | Broken]):
    """Sound: a target refuses any other magic or version before it reads on, and only bytes that are there
    are judged.

    Misses: an init packet that is cut short by the end of the connection or of the capture; MP-15 and the
    flow's own doubt name that.
    """

    passport = Passport(
        "CH-3",
        "A multifd connection begins with an init packet of the known magic and version.",
        Severity.ABORTS,
        qemu("migration/multifd.c", "multifd_recv_initial_packet"),
        CHANNEL,
    )
    kinds = (InitFrame, Broken)

    def on(self, seen: Seen, event: InitFrame | Broken) -> Iterator[Finding]:
        if isinstance(event, Broken) and seen.lane.role is Role.CHANNEL and event.offset < MULTIFD_INIT.size:
            yield Finding(event.error.message, (seen,))


class ChannelIds(Invariant[InitFrame]):
    """Sound: ids are compared as they stand, twice the same or above 254 is wrong in any capture; that one is
    missing is only said of a completed migration, all of whose channels were read.

    Misses: a whole connection that the capture lacks and whose id was the highest; CH-2 counts against the
    set-up.
    """

    passport = Passport(
        "CH-4",
        "The ids in the init packets of N multifd channels are 0 to N-1, each once.",
        Severity.ABORTS,
        qemu("migration/multifd.c", "multifd_recv_new_channel"),
        MIGRATION,
        (Need.CHANNELS,),
    )
    kinds = (InitFrame,)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.known: dict[int, Seen] = {}

    def on(self, seen: Seen, event: InitFrame) -> Iterator[Finding]:
        number = event.head.id
        if number in self.known:
            yield Finding(f"two connections say they are channel {number}", (self.known[number], seen))
        elif number >= CHANNELS_MAX:
            yield Finding(f"there is no channel {number}", (seen,))
        self.known.setdefault(number, seen)

    def at_end(self) -> Iterator[Finding]:
        last = max(self.known)
        if self.complete and last >= len(self.facts.channels):
            yield Finding(f"channel {last} among {len(self.facts.channels)} channels", (self.known[last],))


class SameUuid(Invariant[InitFrame]):
    """Sound: QEMU sends the VM's UUID on every channel and in the configuration, and a target refuses
    another; a journal counts only where it holds a UUID as text.

    Misses: a UUID that is wrong everywhere alike, and one channel with nothing to compare it with (then it is
    unknown).
    """

    passport = Passport(
        "CH-5",
        "The init packets of all multifd channels hold one and the same UUID, which is that of the "
        "configuration section and of the journals where these name one.",
        Severity.ABORTS,
        qemu("migration/multifd.c", "multifd_recv_initial_packet"),
        MIGRATION,
    )
    kinds = (InitFrame,)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.first: Seen | None = None
        self.uuid = b""
        self.channels = 0

    def on(self, seen: Seen, event: InitFrame) -> Iterator[Finding]:
        self.channels += 1
        if self.first is None:
            self.first, self.uuid = seen, event.head.uuid
        elif event.head.uuid != self.uuid:
            yield Finding(f"uuid {event.head.uuid.hex()} beside {self.uuid.hex()}", (self.first, seen))

    def at_end(self) -> Iterator[Finding]:
        others = self._others()
        for where, uuid in others:
            if uuid != self.uuid and self.first is not None:
                yield Finding(f"the channels say {self.uuid.hex()}, {where} {uuid.hex()}", (self.first,))
                return
        if self.channels < 2 and not others:
            # A VM without a UUID says zero, and there is nothing that this could be compared with.
            self.exercised = any(self.uuid)
            if self.exercised:
                self.unknown = "one channel, and nothing else in the input names the VM's uuid"

    def _others(self) -> list[tuple[str, bytes]]:
        found = []
        configuration = self.facts.configuration
        for name, _, value in configuration.subsections if configuration else ():
            if name == "configuration/uuid" and isinstance(value, bytes):
                found.append(("the configuration", value))
        for role, begin in self.facts.begins.items():
            raw = begin.uuid.replace("-", "")
            if _UUID.fullmatch(raw):
                found.append((f"the {role}'s journal", bytes.fromhex(raw)))
        return found


class InitReserved(Invariant[InitFrame]):
    """Sound: every release clears the packet before it fills it in; no release gives these bytes a meaning.

    Misses: nothing of the statement; that a target does not look at them is why a break only counts as SLOWS.
    """

    passport = Passport(
        "CH-6",
        "The unused bytes of an init packet are zero.",
        Severity.SLOWS,
        qemu("migration/multifd.c", "multifd_send_initial_packet"),
        CHANNEL,
    )
    kinds = (InitFrame,)

    def on(self, seen: Seen, event: InitFrame) -> Iterator[Finding]:
        if any(event.head.unused1) or any(event.head.unused2):
            yield Finding("an unused byte is set", (seen,))


class OneWay(Invariant[FlowEnd | Answered]):
    """Sound: the kernel sends no payload of its own against the direction of a connection, and keep-alives
    and resets carry none that is new.

    Misses: bytes that are not in the capture, or on a channel whose own first bytes are not (its role is then
    not known).
    """

    passport = Passport(
        "CH-7",
        "No byte goes from target to source on a multifd connection.",
        Severity.ABORTS,
        qemu("migration/multifd.c", "multifd_recv_thread"),
        FLOW,
    )
    kinds = (FlowEnd, Answered)

    def on(self, seen: Seen, event: FlowEnd | Answered) -> Iterator[Finding]:
        if isinstance(event, Answered):
            yield Finding("the target sent bytes on a multifd connection", (seen,))


class InitsFirst(Invariant[InitFrame | RamRecordItem]):
    """Sound: FLUSH is written after every channel's init packet, and so little is sent before it on a channel
    that no peer's slowness holds it back; 1 s is left to the capture and to a segment that had to be sent
    again.

    Misses: a channel that is late by less than the slack, or that never comes (CH-2).
    """

    passport = Passport(
        "CH-8",
        "The init packets of all multifd channels come before the first MULTIFD_FLUSH on the main channel "
        "(judged by capture time, with 1 s of slack).",
        Severity.STALLS,
        qemu("migration/multifd.c, migration/ram.c", "multifd_send_setup, ram_save_setup"),
        MIGRATION,
        (Need.MAIN,),
    )
    kinds = (InitFrame, RamRecordItem)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.flush: Seen | None = None
        self.last: Seen | None = None

    def on(self, seen: Seen, event: InitFrame | RamRecordItem) -> Iterator[Finding]:
        if isinstance(event, InitFrame):
            if self.last is None or seen.time_ns > self.last.time_ns:
                self.last = seen
        elif self.flush is None and event.flags == RamFlag.MULTIFD_FLUSH:
            self.flush = seen
        return iter(())

    def at_end(self) -> Iterator[Finding]:
        if self.flush is None or self.last is None:
            self.exercised = False
        elif self.last.time_ns - self.flush.time_ns > SLACK_NS:
            yield Finding("a channel introduces itself after the first FLUSH", (self.flush, self.last))


SETUP = (OneMainChannel, InitPacket, ChannelIds, SameUuid, InitReserved, OneWay, InitsFirst)
