# SPDX-License-Identifier: GPL-2.0-or-later
"""LV: who has all that it waits for goes on. An end that gave up had something to wait for, or hung.

An endpoint of ours gives up when nothing has moved on any of its connections, and no load has ended, for as
long as its configuration allows (`idle_timeout_s`): a Failure whose field is "deadline". By its own journal
one can tell whether it had any reason left to wait. Where a fault was asked for, or a run was called off,
nothing is said: a device that stalls on purpose keeps its end waiting. Nor is it where the machine stood
still: then more than twice the allowed time lies between an end's last line and its giving up.
"""

from __future__ import annotations

from collections.abc import Iterator

from mockdev.journal import Failure, Image, Loaded, Mark, Received, Saved, Sent
from verifier.history.facts import Facts
from verifier.history.observation import EndRecord, Said
from verifier.invariants.passport import (
    MIGRATION,
    SIDE,
    Finding,
    Invariant,
    Need,
    Passport,
    Severity,
    qemu,
)

_NS_PER_S = 1_000_000_000
_DEADLINE = "deadline"
_PENDING_MAX = 1 << 16


def _stood_still(facts: Facts, gave_up: Said, last_ns: int) -> bool:
    """Whether an end that waited in vain did so longer than it may, so that the machine did not let it
    run.
    """
    begin = facts.begins.get(gave_up.role)
    allowed = begin.config.get("idle_timeout_s") if begin is not None else None
    return isinstance(allowed, int | float) and gave_up.time_ns - last_ns > 2 * allowed * _NS_PER_S


class _Device:
    """What one device's buffers came to at the target. last: index of the config buffer, -1 before it
    came.
    """

    __slots__ = ("last", "loaded", "received")

    def __init__(self) -> None:
        self.received = 0
        self.loaded = 0
        self.last = -1


class AllCameIsLoaded(Invariant[Received | Loaded | Mark | Failure]):
    """Sound: counts by the target's own journal, of devices of which every buffer up to the config came and
    that no fault slows; a LOAD that takes longer than the whole deadline is taken for a hang.

    Misses: a QEMU (LV-5 sees that it hangs), and a target that waits for what did not come: DS-10 and DS-6
    name it.
    """

    passport = Passport(
        "LV-1",
        "A target that has read SWITCHOVER_START and has every buffer of a device loads them all before its "
        "deadline.",
        Severity.STALLS,
        qemu("hw/vfio/migration-multifd.c", "vfio_load_bufs_thread"),
        MIGRATION,
        (Need.TARGET,),
    )
    kinds = (Received, Loaded, Mark, Failure)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.exercised = False
        self.devices: dict[str, _Device] = {}
        self.started = False
        self.gave_up: Said | None = None
        self.last_ns = 0

    def on(self, seen: Said, event: Received | Loaded | Mark | Failure) -> Iterator[Finding]:
        if seen.role != "target":
            pass
        elif isinstance(event, Failure):
            self.gave_up = seen if event.field == _DEADLINE else None
        elif isinstance(event, Mark):
            self.started |= event.name == "switchover-start"
        elif event.idx >= 0:
            self.last_ns = event.t
            device = self.devices.get(event.device)
            if device is None:
                device = self.devices[event.device] = _Device()
            if isinstance(event, Loaded):
                device.loaded += 1
            else:
                device.received += 1
                if event.config:
                    device.last = event.idx
        return iter(())

    def at_end(self) -> Iterator[Finding]:
        whole = {n: d for n, d in self.devices.items() if d.last >= 0 and d.received == d.last + 1}
        self.exercised = self.started and bool(whole) and not self.facts.disturbed
        if not self.exercised or self.gave_up is None:
            return
        for name, device in whole.items():
            if device.loaded < device.received:
                if _stood_still(self.facts, self.gave_up, self.last_ns):
                    self.unknown = "the machine stood still"
                    return
                yield Finding(
                    f"{name} has all {device.received} buffers and {device.loaded} are loaded",
                    (self.gave_up,),
                )


class SavedIsSent(Invariant[Saved | Sent]):
    """Sound: an endpoint's channel sends what it has read before it reads again, so a buffer that every
    channel has overtaken is in no one's hands; one that a channel still holds (a peer that does not read) is
    not counted.

    Misses: a buffer that is lost when a channel reads nothing after it, and QEMUs, which journal no buffers.
    """

    passport = Passport(
        "LV-2",
        "A buffer that the source has read is sent before every channel has sent one that was read later.",
        Severity.STALLS,
        qemu("migration/multifd-device-state.c", "multifd_queue_device_state"),
        MIGRATION,
        (Need.SOURCE,),
    )
    kinds = (Saved, Sent)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.exercised = False
        self.count = 0
        self.pending: dict[tuple[str, int], tuple[int, Said]] = {}
        self.reached: dict[str, int] = {}  # of each channel, the latest read that it has sent

    def on(self, seen: Said, event: Saved | Sent) -> Iterator[Finding]:
        if event.idx < 0:
            return iter(())
        key = event.device, event.idx
        if isinstance(event, Saved):
            self.count += 1
            if len(self.pending) < _PENDING_MAX:
                self.pending[key] = self.count, seen
        elif (known := self.pending.pop(key, None)) is not None:
            self.reached[event.channel] = max(known[0], self.reached.get(event.channel, 0))
        return iter(())

    def at_end(self) -> Iterator[Finding]:
        begin = self.facts.begins.get("source")
        channels = begin.config.get("channels") if begin is not None else None
        if not isinstance(channels, int) or len(self.reached) < channels:
            return
        self.exercised = bool(self.reached)
        overtaken = min(self.reached.values(), default=0)
        for (device, idx), (number, seen) in self.pending.items():
            if number < overtaken:
                yield Finding(f"buffer {idx} of {device} is read and never sent", (seen,))
                return


class ShutWhenLoaded(Invariant[Loaded | Image | Mark | Failure]):
    """Sound: the target's own journal: each device that it began to load is whole (its config loaded, or its
    image digested), the stream's end was read, and it gave up without SHUT 0; no fault was asked for.

    Misses: a target with devices of which it journals no end, and QEMUs; both hang in LV-5.
    """

    passport = Passport(
        "LV-3",
        "A target that has read the end of the stream and loaded every device says SHUT 0 before its "
        "deadline.",
        Severity.STALLS,
        qemu("migration/migration.c", "process_incoming_migration_co"),
        MIGRATION,
        (Need.TARGET,),
    )
    kinds = (Loaded, Image, Mark, Failure)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.exercised = False
        self.begun: set[str] = set()
        self.whole: set[str] = set()
        self.ended = False
        self.shut = False
        self.gave_up: Said | None = None
        self.last_ns = 0

    def on(self, seen: Said, event: Loaded | Image | Mark | Failure) -> Iterator[Finding]:
        if seen.role != "target":
            pass
        elif isinstance(event, Loaded):
            self.last_ns = event.t
            if event.device not in self.begun:
                self.begun.add(event.device)
            if event.config:
                self.whole.add(event.device)
        elif isinstance(event, Image):
            self.whole.add(event.device)
        elif isinstance(event, Mark):
            self.last_ns = event.t
            self.ended |= event.name == "end-of-stream"
            self.shut |= event.name == "shut" and not event.value
        elif event.field == _DEADLINE and not self.shut:
            self.gave_up = seen
        return iter(())

    def at_end(self) -> Iterator[Finding]:
        loaded = bool(self.begun) and self.begun <= self.whole
        self.exercised = self.ended and loaded and not self.facts.disturbed
        if not self.exercised or self.gave_up is None:
            return
        if _stood_still(self.facts, self.gave_up, self.last_ns):
            self.unknown = "the machine stood still"
            return
        yield Finding("everything is loaded, and the target gives up waiting", (self.gave_up,))


class CompletesWhenTold(Invariant[Mark | Failure]):
    """Sound: the source's own journal has SHUT 0 before it says that it waited in vain; no fault was asked
    for.

    Misses: a source that hangs without a word (LV-5), and QEMUs.
    """

    passport = Passport(
        "LV-4",
        "A source that has read SHUT 0 does not give up waiting.",
        Severity.STALLS,
        qemu("migration/migration.c", "close_return_path_on_source, migration_completion"),
        SIDE,
        (Need.SOURCE,),
    )
    kinds = (Mark, Failure)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.exercised = False
        self.told: Said | None = None
        self.gave_up: Said | None = None

    def on(self, seen: Said, event: Mark | Failure) -> Iterator[Finding]:
        if seen.role != "source":
            pass
        elif isinstance(event, Mark):
            if event.name == "shut" and not event.value and self.told is None:
                self.told = seen
        elif event.field == _DEADLINE and self.told is not None:
            self.gave_up = seen
        return iter(())

    def at_end(self) -> Iterator[Finding]:
        self.exercised = self.told is not None and not self.facts.disturbed
        if not self.exercised or self.told is None or self.gave_up is None:
            return
        if _stood_still(self.facts, self.gave_up, self.told.time_ns):
            self.unknown = "the machine stood still"
            return
        yield Finding("the source was told SHUT 0, and gives up waiting", (self.told, self.gave_up))


class NoneHangs(Invariant[EndRecord]):
    """Sound: the run kills an end only after its own deadline of silence, or after the other end was over and
    a time of grace; what its user called off, or made to fail, is not judged.

    Misses: an end that waits in vain and gives up by itself: it says so, as failed, and LV-1 to LV-4 ask why.
    """

    passport = Passport(
        "LV-5",
        "Where nothing was made to fail, both ends of a run come to an end without being killed.",
        Severity.STALLS,
        qemu("migration/migration.c", "migration_thread, process_incoming_migration_co"),
        SIDE,
    )
    kinds = (EndRecord,)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.exercised = False
        self.end: Said | None = None

    def on(self, seen: Said, event: EndRecord) -> Iterator[Finding]:  # noqa: ARG002
        self.end = seen
        return iter(())

    def at_end(self) -> Iterator[Finding]:
        self.exercised = not self.facts.disturbed
        if not self.exercised or self.end is None or not isinstance(self.end.line, EndRecord):
            return
        if self.end.line.outcome == "killed":
            yield Finding(f"the {self.end.role} did not end: {self.end.line.error}", (self.end,))


LIVENESS = (AllCameIsLoaded, SavedIsSent, ShutWhenLoaded, CompletesWhenTold, NoneHangs)
