# SPDX-License-Identifier: GPL-2.0-or-later
"""ST: the VFIO migration state machine, as the endpoints' journals show a device going through it.

The arcs are read from the kernel's documentation of the states, apart from the table that the mock
devices obey, so that the one can catch the other.
"""

from __future__ import annotations

from collections.abc import Iterator

from mockdev.journal import Loaded, Mark, Read, Saved, State, Wrote
from verifier.history.facts import Facts
from verifier.history.observation import Said
from verifier.invariants.passport import (
    SIDE,
    SIDE_DEVICE,
    Finding,
    Invariant,
    Need,
    Passport,
    Severity,
    linux,
    qemu,
)

_UAPI = "include/uapi/linux/vfio.h"
_EVERY = frozenset(
    ("ERROR", "STOP", "RUNNING", "STOP_COPY", "RESUMING", "RUNNING_P2P", "PRE_COPY", "PRE_COPY_P2P")
)


def _pairs(text: str) -> frozenset[tuple[str, str]]:
    out = set()
    for arc in text.split():
        left, right = arc.split(">")
        out.add((left, right))
    return frozenset(out)


# Single arcs of a device that can do everything; then those that replace them in a device without P2P.
_ARCS = _pairs(
    "RUNNING_P2P>STOP STOP>RUNNING_P2P RUNNING>RUNNING_P2P RUNNING_P2P>RUNNING "
    "RUNNING>PRE_COPY PRE_COPY>RUNNING PRE_COPY>PRE_COPY_P2P PRE_COPY_P2P>PRE_COPY "
    "RUNNING_P2P>PRE_COPY_P2P PRE_COPY_P2P>RUNNING_P2P PRE_COPY_P2P>STOP_COPY "
    "STOP>STOP_COPY STOP_COPY>STOP STOP>RESUMING RESUMING>STOP"
)
_ARCS_WITHOUT_P2P = _pairs(
    "RUNNING>STOP STOP>RUNNING PRE_COPY>STOP_COPY RUNNING>PRE_COPY PRE_COPY>RUNNING "
    "STOP>STOP_COPY STOP_COPY>STOP STOP>RESUMING RESUMING>STOP"
)


class LegalArcs(Invariant[State]):
    """Sound: the arcs are those of the kernel's table with and without P2P; a supervised QEMU may reset or
    close a device from any state, which its journal shows as a jump to RUNNING.

    Misses: arcs that are legal and out of place for the migration: ST-3 to ST-11.
    """

    passport = Passport(
        "ST-1",
        "A device changes its state only along arcs of the migration state machine; ERROR only by a failed "
        "arc, and out of it only by a reset.",
        Severity.ABORTS,
        linux("drivers/vfio/vfio_main.c", "vfio_mig_get_next_state", "6.2"),
        SIDE_DEVICE,
    )
    kinds = (State,)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.p2p: Said | None = None
        self.without: Said | None = None

    def on(self, seen: Said, event: State) -> Iterator[Finding]:
        old, new = event.old, event.new
        if old not in _EVERY or new not in _EVERY:
            yield Finding(f"{old} > {new}: no such state", (seen,))
            return
        if new == "ERROR":
            if not event.errno:
                yield Finding(f"{old} > ERROR without a failure", (seen,))
            return
        if event.errno or old == new or (old == "ERROR" and new == "RUNNING"):
            return
        if new == "RUNNING" and old != "RUNNING_P2P" and self.facts.supervised(seen.role):
            return  # QEMU reset or closed the device, from whatever state
        arc = (old, new)
        if arc not in _ARCS and arc not in _ARCS_WITHOUT_P2P:
            yield Finding(f"{old} > {new} is no arc", (seen,))
        elif arc not in _ARCS:
            self.without = self.without or seen
        elif arc not in _ARCS_WITHOUT_P2P:
            self.p2p = self.p2p or seen
        if self.p2p is not None and self.without is not None:
            yield Finding("a device with P2P states skips them", (self.p2p, self.without))
            self.without = None


class StateContinues(Invariant[State]):
    """Sound: one device's lines in one journal are in order, and a failed arc is told with its errno.

    Misses: a change of state that has no line at all and is undone before the next.
    """

    passport = Passport(
        "ST-2",
        "An arc begins where the one before ended; a failed one leaves the device where it was, or in ERROR.",
        Severity.ABORTS,
        linux(_UAPI, "vfio_device_feature_mig_state", "5.18"),
        SIDE_DEVICE,
    )
    kinds = (State,)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.where: str | None = None
        self.last: Said | None = None

    def on(self, seen: Said, event: State) -> Iterator[Finding]:
        if self.where is not None and event.old != self.where and self.last is not None:
            yield Finding(f"it is in {self.where} and leaves {event.old}", (self.last, seen))
        self.where = event.old if event.errno and event.new != "ERROR" else event.new
        self.last = seen


class SavedWhileSaving(Invariant[State | Saved | Read]):
    """Sound: state lines and reads are from the same journal; a supervisor's reads, which do not say where
    the bytes go, are judged by the wider rule.

    Misses: a multifd buffer that a QEMU reads before the stop.
    """

    passport = Passport(
        "ST-3",
        "State is read only from a device that is being saved: multifd buffers in STOP_COPY, blocks of the "
        "main channel, and bytes that may have gone there, in PRE_COPY, PRE_COPY_P2P or STOP_COPY.",
        Severity.CORRUPTS,
        linux(_UAPI, "VFIO_DEVICE_STATE_STOP_COPY, VFIO_DEVICE_STATE_PRE_COPY", "6.2"),
        SIDE_DEVICE,
        (Need.SOURCE,),
    )
    kinds = (State, Saved, Read)
    before_stop = frozenset(("PRE_COPY", "PRE_COPY_P2P", "STOP_COPY"))

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.where: str | None = None
        self.last: Said | None = None

    def on(self, seen: Said, event: State | Saved | Read) -> Iterator[Finding]:
        if type(event) is State:
            if not event.errno:
                self.where, self.last = event.new, seen
            return
        early = type(event) is not Saved or event.idx < 0
        if self.where is None or self.last is None:
            yield Finding("a buffer is read from a device that took no arc", (seen,))
        elif not (self.where == "STOP_COPY" or (early and self.where in self.before_stop)):
            yield Finding(f"a buffer is read in {self.where}", (self.last, seen))


class LoadedWhileResuming(Invariant[State | Loaded | Wrote]):
    """Sound: the state must have been reached by a successful arc in the same journal before the first load.

    Misses: a load after the state was left again: ST-11.
    """

    passport = Passport(
        "ST-4",
        "State is loaded only into a device that has been put into RESUMING.",
        Severity.CORRUPTS,
        linux(_UAPI, "VFIO_DEVICE_STATE_RESUMING", "5.18"),
        SIDE_DEVICE,
        (Need.TARGET,),
    )
    kinds = (State, Loaded, Wrote)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.resumed = False

    def on(self, seen: Said, event: State | Loaded | Wrote) -> Iterator[Finding]:
        if type(event) is State:
            self.resumed |= event.new == "RESUMING" and not event.errno
        elif not self.resumed:
            yield Finding("a buffer is loaded before the device is RESUMING", (seen,))


class NotLeftBehind(Invariant[State]):
    """Sound: judged at the end of a journal that has one, of a migration that completed, at an end that lived
    to see it.

    Misses: a device that was stopped and never started (STOP at the target); OC-1 and OC-3 ask whether the VM
    runs.
    """

    passport = Passport(
        "ST-5",
        "When the migration has completed, no device is left in RESUMING or ERROR.",
        Severity.STALLS,
        qemu("hw/vfio/migration.c", "vfio_vmstate_change"),
        SIDE_DEVICE,
        (Need.COMPLETED,),
    )
    kinds = (State,)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.where = ""
        self.last: Said | None = None

    def on(self, seen: Said, event: State) -> Iterator[Finding]:
        if not event.errno or event.new == "ERROR":
            self.where, self.last = event.new, seen
        return iter(())

    def at_end(self) -> Iterator[Finding]:
        if self.last is None or self.where not in ("RESUMING", "ERROR"):
            return
        role = self.last.role
        end = self.facts.endings.of(role)
        if role not in self.facts.outcomes:
            self.unknown = f"the {role}'s journal has no end"
        elif end is not None and not end.own_word:
            self.unknown = f"the {role} {end.outcome}"
        elif self.complete:
            yield Finding(f"it is in {self.where} at the end", (self.last,))


class StaysStopped(Invariant[State | Saved | Mark]):
    """Sound: a source that lets its devices run again has given the migration up, and neither switches over
    nor reads a multifd buffer after that; its main thread writes these lines in the order of what it does.

    Misses: a device that runs again for a moment in one call, which no line tells.
    """

    passport = Passport(
        "ST-12",
        "Once the source has stopped the VM, none of its devices runs again in a migration that goes on (by "
        "its own journal).",
        Severity.CORRUPTS,
        linux("drivers/vfio/vfio_main.c", "vfio_mig_get_next_state", "6.2"),
        SIDE,
        (Need.SOURCE,),
    )
    kinds = (State, Saved, Mark)
    running = frozenset(("RUNNING", "PRE_COPY"))

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.exercised = False
        self.stop: Said | None = None
        self.ran: Said | None = None

    def on(self, seen: Said, event: State | Saved | Mark) -> Iterator[Finding]:
        if seen.role != "source":
            return
        if isinstance(event, State):
            if self.stop is not None and event.new in self.running and not event.errno:
                self.ran = self.ran or seen
        elif isinstance(event, Mark) and event.name == "stop":
            self.stop = seen
        elif isinstance(event, Mark) and event.name != "switchover-start":
            pass
        elif self.stop is not None:
            self.exercised = True
            if self.ran is not None:
                yield Finding(
                    "a device runs after the stop, and the migration goes on", (self.stop, self.ran, seen)
                )
                self.ran = None


STATES = (LegalArcs, StateContinues, SavedWhileSaving, LoadedWhileResuming, NotLeftBehind, StaysStopped)
