# SPDX-License-Identifier: GPL-2.0-or-later
"""MP: a multifd connection is packets from its first byte to its last."""

from __future__ import annotations

from collections.abc import Iterator

from mockdev.wire.structs import MULTIFD_INIT
from verifier.capture.flows import Role
from verifier.history.facts import Facts
from verifier.history.observation import Broken, FlowEnd, Seen
from verifier.invariants.passport import (
    CHANNEL,
    Finding,
    Invariant,
    Need,
    Passport,
    Severity,
    qemu,
)


class PacketBoundary(Invariant[FlowEnd]):
    """Sound: only a connection that was closed or reset inside a packet counts, in a migration that the
    target said it completed; the end of a capture does not.

    Misses: a packet whose last bytes never left the source while the connection stayed open: LV-5, or the
    target's own failure.
    """

    passport = Passport(
        "MP-15",
        "When the migration has completed, no multifd connection has ended inside a packet.",
        Severity.STALLS,
        qemu("migration/multifd.c", "multifd_recv_thread"),
        CHANNEL,
        (Need.COMPLETED,),
    )
    kinds = (FlowEnd,)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.cut: Seen | None = None

    def on(self, seen: Seen, event: FlowEnd) -> Iterator[Finding]:
        if event.inside and event.kind != "cut":
            self.cut = seen
        return iter(())

    def at_end(self) -> Iterator[Finding]:
        if self.cut is not None and self.complete:
            inside = self.cut.event.inside  # type: ignore[union-attr]
            yield Finding(f"the connection ends inside a packet ({inside})", (self.cut,))


class PacketMagic(Invariant[FlowEnd | Broken]):
    """Sound: after the init packet a target expects a packet head at exactly this place, and checks these two
    fields first.

    Misses: a payload of a wrong length that ends before something which looks like a head; MP-9 and EQ-3
    measure payloads.
    """

    passport = Passport(
        "MP-1",
        "Every packet of a multifd connection begins with the magic 0x11223344 and version 1.",
        Severity.ABORTS,
        qemu("migration/multifd.c", "multifd_recv_unfill_packet_header"),
        CHANNEL,
    )
    kinds = (FlowEnd, Broken)

    def on(self, seen: Seen, event: FlowEnd | Broken) -> Iterator[Finding]:
        mine = isinstance(event, Broken) and event.offset >= MULTIFD_INIT.size
        if mine and seen.lane.role is Role.CHANNEL and isinstance(event, Broken):
            yield Finding(event.error.message, (seen,))


BOUNDARIES = (
    PacketBoundary,
    PacketMagic,
)
