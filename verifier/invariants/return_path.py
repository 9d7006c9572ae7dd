# SPDX-License-Identifier: GPL-2.0-or-later
"""RP: what the target answers on the main connection."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from mockdev.wire.frames import CommandItem, EofItem, ReturnPathItem
from mockdev.wire.structs import Command, ReturnPath
from verifier.capture.flows import Role
from verifier.history.facts import Facts
from verifier.history.observation import Broken, FlowEnd, Seen
from verifier.invariants.passport import (
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


class AnswersInvited(Invariant[CommandItem | ReturnPathItem]):
    """Sound: one capture point sees a cause and its effect in order but for its own queues, for which the
    slack of 1 s stands; answers without any OPEN_RETURN_PATH need a main channel read whole.

    Misses: an answer that is too early by less than 1 s.
    """

    passport = Passport(
        "RP-1",
        "The target sends nothing on the return path before OPEN_RETURN_PATH (judged by capture time, with "
        "1 s of slack).",
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
    """Sound: types and lengths are those of 11.1, which sources refuse to depart from.

    Misses: values that are of the right length and wrong: RP-3, RP-8.
    """

    passport = Passport(
        "RP-2",
        "A message of the return path has a known type and the length that belongs to it.",
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
    """Sound: both directions must have been read whole, and values are matched by count, not by order, for
    PONGs may overtake each other in postcopy.

    Misses: a PING that is never answered, which QEMU does not mind, and more than 65,536 of them (then
    unknown).
    """

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
    """Sound: the order of messages in one direction of one connection is exact.

    Misses: a SHUT that never comes: then the migration does not count as completed, and which end is at fault
    RP-8, LV-3 and LV-4 say.
    """

    passport = Passport(
        "RP-4",
        "No message follows SHUT on the return path.",
        Severity.SLOWS,
        qemu("migration/migration.c", "source_return_path_thread, migrate_send_rp_shut"),
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
    """Sound: judged only for machine types that are known to have a single acknowledgement.

    Misses: one that comes before the devices are ready: SM-5 judges when the source acts on it.
    """

    passport = Passport(
        "RP-5",
        "SWITCHOVER_ACK comes at most once, unless acknowledgements are counted (machine types from 11.1).",
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
    """Sound: none of these has a use in precopy, and a stream in which postcopy was begun is not judged.

    Misses: nothing of the statement in what was captured.
    """

    passport = Passport(
        "RP-6",
        "In precopy the target sends no REQ_PAGES, REQ_PAGES_ID, RECV_BITMAP or RESUME_ACK.",
        Severity.ABORTS,
        qemu(
            "migration/migration.c",
            "source_return_path_thread, migrate_handle_rp_recv_bitmap, migrate_handle_rp_resume_ack",
        ),
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
    """Sound: as for RP-1, 1 s of slack stands for the capture's own queues.

    Misses: a SHUT 0 that is too early by less than 1 s, or after the end mark and before everything is
    loaded: DS-14 and EQ-4 count what was.
    """

    passport = Passport(
        "RP-7",
        "The target sends SHUT 0 only after the source has sent the end mark (judged by capture time, with "
        "1 s of slack).",
        Severity.CORRUPTS,
        qemu("migration/migration.c", "process_incoming_migration_co, migration_incoming_state_destroy"),
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


RETURN_PATH = (
    AnswersInvited,
    AnswerForm,
    PongEchoes,
    ShutLast,
    SwitchoverAckOnce,
    NoPostcopyAnswers,
    ShutAfterEnd,
)
