# SPDX-License-Identifier: GPL-2.0-or-later
"""ST: sessions of a device, and the order among devices, as journals of endpoints and supervisors show them.

A session is a data file's life: it opens on an arc into PRE_COPY, STOP_COPY or RESUMING and ends on the arc
that leaves them. Of several devices every one is made quiet towards its peers (P2P) before any of them stops,
and every one is ready before any of them runs.
"""

from __future__ import annotations

from collections.abc import Iterator

from mockdev.journal import Loaded, Read, Reset, State, Wrote
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
_STOPPED = frozenset(("STOP", "STOP_COPY"))
_QUIET = frozenset(("RUNNING_P2P", "PRE_COPY_P2P"))


def was_reset(line: State) -> bool:
    """Whether no arc of a device with P2P states leads there: somebody reset it."""
    return line.new == "RUNNING" and line.old not in ("RUNNING", "RUNNING_P2P", "PRE_COPY")


class EndOnlyStopped(Invariant[State | Read]):
    """Sound: a supervisor writes both lines from the one thread that answers the device's calls.

    Misses: a mock endpoint's device, whose journal has no line for a read of nothing; and ENOMSG in
    STOP_COPY, which is an error of the read and has no line either.
    """

    passport = Passport(
        "ST-6",
        "A read finds the end of a device's state (0 bytes) only in STOP_COPY; before the stop, what has run "
        "dry for now says ENOMSG.",
        Severity.CORRUPTS,
        linux(_UAPI, "VFIO_MIG_GET_PRECOPY_INFO, VFIO_DEVICE_STATE_PRE_COPY", "6.2"),
        SIDE_DEVICE,
        (Need.SOURCE,),
    )
    kinds = (State, Read)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.exercised = False
        self.where = ""

    def on(self, seen: Said, event: State | Read) -> Iterator[Finding]:
        if isinstance(event, State):
            self.where = self.where if event.errno else event.new
        elif not event.size:
            self.exercised = True
            if self.where in ("PRE_COPY", "PRE_COPY_P2P"):
                yield Finding(f"the state ends in {self.where}", (seen,))


class NothingAfterTheEnd(Invariant[State | Read]):
    """Sound: a supervisor writes its lines in the order of the calls; a new session forgets the end of the
    last.

    Misses: a second session with the same state; EQ-4 and EQ-6 count bytes.
    """

    passport = Passport(
        "ST-7",
        "Once a read has found the end of a device's state, no read of that session gives more.",
        Severity.CORRUPTS,
        linux(_UAPI, "VFIO_DEVICE_STATE_STOP_COPY", "5.18"),
        SIDE_DEVICE,
        (Need.SOURCE,),
    )
    kinds = (State, Read)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.exercised = False
        self.stopped = False
        self.end: Said | None = None

    def on(self, seen: Said, event: State | Read) -> Iterator[Finding]:
        if isinstance(event, State):
            if not event.errno:
                self.stopped = event.new == "STOP_COPY"
                self.end = None
        elif not event.size:
            if self.stopped:  # an end before the stop is ST-6's
                self.exercised = True
                self.end = self.end or seen
        elif self.end is not None:
            yield Finding(f"{event.size} bytes are read after the end", (self.end, seen))
            self.end = None


class ReadToTheEnd(Invariant[State | Read]):
    """Sound: without the read of 0 bytes a QEMU cannot know that it has all; judged only where the migration
    completed and the journal goes on to the device's last session.

    Misses: a QEMU that reads to the end and sends less (EQ-6), and mock endpoints, whose journals have no
    such read (EQ-4 counts their bytes).
    """

    passport = Passport(
        "ST-8",
        "When the migration has completed, the source has read each device's state to its end (0 bytes).",
        Severity.CORRUPTS,
        qemu(
            "hw/vfio/migration.c, migration-multifd.c",
            "vfio_save_block, vfio_multifd_save_complete_precopy_thread",
        ),
        SIDE_DEVICE,
        (Need.SOURCE, Need.COMPLETED),
    )
    kinds = (State, Read)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.exercised = False
        self.last: Said | None = None

    def on(self, seen: Said, event: State | Read) -> Iterator[Finding]:
        if isinstance(event, Read):
            self.exercised = True
            self.last = seen
        return iter(())

    def at_end(self) -> Iterator[Finding]:
        if self.last is None or not self.complete:
            return
        line = self.last.line
        if isinstance(line, Read) and line.size:
            yield Finding(f"the last read is of {line.size} bytes at {line.offset}", (self.last,))


class QuietBeforeStop(Invariant[State]):
    """Sound: one journal's order, of devices that were running when the stop began: that none is plugged in
    while the VM is stopped is assumed, for such a one is made quiet alone. Once an arc has failed or a device
    was reset, each goes its own way, and nothing more is judged.

    Misses: a device that is never made quiet at all (ST-1 sees that it skips the P2P states).
    """

    passport = Passport(
        "ST-9",
        "At the source every device is quiet towards its peers (P2P) before any device is stopped.",
        Severity.CORRUPTS,
        linux(_UAPI, "VFIO_DEVICE_STATE_RUNNING_P2P, VFIO_DEVICE_STATE_PRE_COPY_P2P", "6.2"),
        SIDE,
        (Need.SOURCE,),
    )
    kinds = (State,)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.exercised = False
        self.over = False
        self.stopped: dict[str, Said] = {}
        self.late: dict[str, tuple[Said, Said]] = {}  # made quiet while another was stopped

    def on(self, seen: Said, event: State) -> Iterator[Finding]:
        if seen.role != "source" or self.over:
            return
        name, old, new = event.device, event.old, event.new
        if event.errno or was_reset(event):
            self.over = True
        elif new in _QUIET and old in ("RUNNING", "PRE_COPY"):
            other = next((said for device, said in self.stopped.items() if device != name), None)
            if other is not None:
                self.late[name] = other, seen
        elif new in _STOPPED and old in _QUIET:
            self.exercised = True
            if name in self.late:
                other, quiet = self.late.pop(name)
                yield Finding(f"{name} is made quiet when another is stopped already", (other, quiet, seen))
            self.stopped[name] = seen
        elif new not in _STOPPED:
            self.stopped.pop(name, None)
            self.late.pop(name, None)


class ReadyBeforeRun(Invariant[State]):
    """Sound: one journal's order, of devices that were loaded (RESUMING) in it; one that was reset or closed
    is not, and a migration that failed is not judged.

    Misses: a device that is left behind for good: ST-5 sees it.
    """

    passport = Passport(
        "ST-10",
        "When the migration has completed, no loaded device runs before all of them are in RUNNING_P2P.",
        Severity.CORRUPTS,
        linux(_UAPI, "VFIO_DEVICE_STATE_RUNNING_P2P", "5.18"),
        SIDE,
        (Need.TARGET, Need.COMPLETED),
    )
    kinds = (State,)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.exercised = False
        self.waiting: set[str] = set()  # loaded, and not yet ready to run
        self.running: Said | None = None  # the first that ran while another was waiting
        self.finding: Finding | None = None

    def on(self, seen: Said, event: State) -> Iterator[Finding]:
        if seen.role != "target" or event.errno:
            return iter(())
        name, old, new = event.device, event.old, event.new
        if new == "RESUMING":
            self.waiting.add(name)
        elif name in self.waiting and new == "RUNNING_P2P":
            self.waiting.remove(name)
            if self.running is not None and self.finding is None:
                self.finding = Finding(f"another runs before {name} is ready", (self.running, seen))
        elif old == "RUNNING_P2P" and new == "RUNNING":
            self.exercised = True
            if self.waiting:
                self.running = self.running or seen
        elif new == "RUNNING":  # reset or closed
            self.waiting.discard(name)
        return iter(())

    def at_end(self) -> Iterator[Finding]:
        if self.finding is not None and self.complete:
            yield self.finding


class LoadedIsKept(Invariant[State | Reset]):
    """Sound: a supervisor's one thread writes a reset before whatever comes after it; a device that has run
    since it was loaded is the guest's to reset, unless an arc of it has just failed.

    Misses: a device that loses its state without a reset (EQ-1 compares it), and mock endpoints, which reset
    none.
    """

    passport = Passport(
        "ST-13",
        "When the migration has completed, no device that was loaded is reset before the VM has it running.",
        Severity.CORRUPTS,
        qemu("hw/vfio/migration.c", "vfio_migration_set_state, vfio_vmstate_change"),
        SIDE_DEVICE,
        (Need.TARGET, Need.COMPLETED),
    )
    kinds = (State, Reset)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.exercised = False
        self.loaded = False
        self.last: Said | None = None
        self.finding: Finding | None = None

    def on(self, seen: Said, event: State | Reset) -> Iterator[Finding]:
        if seen.role != "target":
            return iter(())
        if isinstance(event, State):
            self.loaded |= event.old == "RESUMING" and not event.errno
            self.exercised |= self.loaded
            self.last = seen
        elif self.loaded and self.last is not None and isinstance(self.last.line, State):
            line = self.last.line
            if line.errno or line.new != "RUNNING":
                after = f" after {line.old} > {line.new} failed" if line.errno else ""
                message = f"it is reset{after}, and what was loaded is lost"
                self.finding = self.finding or Finding(message, (self.last, seen))
            self.loaded = False
        return iter(())

    def at_end(self) -> Iterator[Finding]:
        if self.finding is not None and self.complete:
            yield self.finding


class LoadedBeforeLeaving(Invariant[State | Loaded | Wrote]):
    """Sound: an endpoint writes Loaded before it counts a buffer as done, and a supervisor has one thread, so
    the lines keep the order of the calls.

    Misses: state that never came to be loaded (DS-14, EQ-4).
    """

    passport = Passport(
        "ST-11",
        "Nothing is loaded into a device once it has left RESUMING.",
        Severity.CORRUPTS,
        linux(_UAPI, "VFIO_DEVICE_STATE_RESUMING", "5.18"),
        SIDE_DEVICE,
        (Need.TARGET,),
    )
    kinds = (State, Loaded, Wrote)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.exercised = False
        self.left: Said | None = None

    def on(self, seen: Said, event: State | Loaded | Wrote) -> Iterator[Finding]:
        if isinstance(event, State):
            if not event.errno:
                self.exercised |= event.old == "RESUMING"
                self.left = (
                    seen if event.old == "RESUMING" else None if event.new == "RESUMING" else self.left
                )
        elif self.left is not None:
            yield Finding("something is loaded into a device that has left RESUMING", (self.left, seen))
            self.left = None


SESSIONS = (
    EndOnlyStopped,
    NothingAfterTheEnd,
    ReadToTheEnd,
    QuietBeforeStop,
    ReadyBeforeRun,
    LoadedIsKept,
    LoadedBeforeLeaving,
)
