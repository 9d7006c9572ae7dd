# SPDX-License-Identifier: GPL-2.0-or-later
"""DS: when buffers are sent, and in which order they are loaded, as the endpoints' journals say."""

from __future__ import annotations

from collections.abc import Iterator

from mockdev.journal import Loaded, Mark, Read, Received, Saved, Sent, State, Wrote
from verifier.history.facts import Facts
from verifier.history.observation import Said
from verifier.invariants.passport import (
    DEVICE,
    MIGRATION,
    SIDE_DEVICE,
    Finding,
    Invariant,
    Need,
    Passport,
    Severity,
    linux,
    qemu,
)


class AfterSwitchover(Invariant[Mark | Sent]):
    """Sound: the source's own journal has both lines in the order in which they were written, after the deed.

    Misses: a QEMU, whose supervisor sees no buffers; capture time cannot tell, for sockets run ahead of each
    other.
    """

    passport = Passport(
        "DS-9",
        "The source sends no multifd buffer before it has sent SWITCHOVER_START (by its own journal).",
        Severity.CORRUPTS,
        qemu("migration/savevm.c", "qemu_savevm_state_complete_precopy_iterable"),
        MIGRATION,
        (Need.SOURCE,),
    )
    kinds = (Mark, Sent)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.early: Said | None = None
        self.switched = False
        self.exercised = False

    def on(self, seen: Said, event: Mark | Sent) -> Iterator[Finding]:
        self.exercised |= isinstance(event, Sent)
        if isinstance(event, Mark):
            if event.name != "switchover-start" or seen.role != "source":
                return
            if self.early is not None and event.t > self.early.line.t:
                yield Finding("a buffer was sent before SWITCHOVER_START", (self.early, seen))
            self.switched = True
        elif event.idx >= 0 and not self.switched and self.early is None:
            self.early = seen


class SavedInOrder(Invariant[Saved]):
    """Sound: a source of ours reads a device under its one turn and writes the line before that ends, so the
    lines of one device stand in the order of its bytes; the last ones are there when it ends the stream.

    Misses: a QEMU, whose journal knows no buffers; DS-5, DS-6 and DS-10 see there what reached the wire.
    """

    passport = Passport(
        "DS-17",
        "The source numbers the multifd buffers that it reads from a device 0, 1, 2 and so on, its config "
        "state last, and has read that before it ends the stream (by its own journal).",
        Severity.CORRUPTS,
        qemu("hw/vfio/migration-multifd.c", "vfio_multifd_save_complete_precopy_thread"),
        DEVICE,
        (Need.SOURCE,),
    )
    kinds = (Saved,)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.exercised = False
        self.next = 0
        self.last: Said | None = None
        self.config: Said | None = None

    def on(self, seen: Said, event: Saved) -> Iterator[Finding]:
        if event.idx < 0:
            return
        self.exercised = True
        if self.config is not None:
            yield Finding("something is read after the config state", (self.config, seen))
        elif event.idx != self.next:
            witnesses = (seen,) if self.last is None else (self.last, seen)
            yield Finding(f"a buffer gets index {event.idx} where {self.next} is next", witnesses)
        self.next = event.idx + 1
        self.last = seen
        if event.config:
            self.config = seen

    def at_end(self) -> Iterator[Finding]:
        ended = ("source", "end-of-stream") in self.facts.marks
        if ended and self.last is not None and self.config is None:
            yield Finding("the source ends the stream and has not read the config state", (self.last,))


class LoadedAfterSwitchover(Invariant[Mark | Loaded]):
    """Sound: a target of ours writes the line about SWITCHOVER_START before it lets loaders begin.

    Misses: a QEMU, whose journal knows no buffers; its trace shows no SWITCHOVER_START either.
    """

    passport = Passport(
        "DS-18",
        "The target loads no multifd buffer before it has read SWITCHOVER_START (by its own journal).",
        Severity.CORRUPTS,
        qemu("hw/vfio/migration-multifd.c", "vfio_multifd_switchover_start"),
        MIGRATION,
        (Need.TARGET,),
    )
    kinds = (Mark, Loaded)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.early: Said | None = None
        self.switched = False
        self.exercised = False

    def on(self, seen: Said, event: Mark | Loaded) -> Iterator[Finding]:
        if isinstance(event, Mark):
            if event.name == "switchover-start" and seen.role == "target":
                if self.early is not None and not self.switched:
                    yield Finding("a buffer was loaded before SWITCHOVER_START was read", (self.early, seen))
                self.switched = True
        elif event.idx >= 0:
            self.exercised = True
            self.early = self.early or seen


class LoadOrder(Invariant[Loaded]):
    """Sound: an endpoint writes Loaded while it still holds the device, so a device's lines are in the order
    of its loads.

    Misses: a QEMU's target, whose supervisor sees writes without indexes: TR-1 by its trace, DS-16 by
    offsets.
    """

    passport = Passport(
        "DS-13",
        "The target loads a device's buffers in index order without gap, the config buffer last.",
        Severity.CORRUPTS,
        qemu("hw/vfio/migration-multifd.c", "vfio_load_bufs_thread"),
        DEVICE,
        (Need.TARGET,),
    )
    kinds = (Loaded,)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.next = 0
        self.last: Said | None = None
        self.config: Said | None = None

    def on(self, seen: Said, event: Loaded) -> Iterator[Finding]:
        if self.config is not None:
            yield Finding("something is loaded after the config buffer", (self.config, seen))
        elif event.idx < 0:
            if self.next and not event.config:
                yield Finding("state of the main channel is loaded after multifd's", (seen,))
        elif event.idx != self.next:
            witnesses = (seen,) if self.last is None else (self.last, seen)
            yield Finding(f"buffer {event.idx} is loaded where {self.next} was next", witnesses)
        if event.idx >= 0:
            self.next = event.idx + 1
        if event.config:
            self.config = seen
        self.last = seen


class LoadedWasReceived(Invariant[Received | Loaded]):
    """Sound: the balance of both kinds of lines is judged, not their order; one that is received and never
    loaded is only said of a completed migration.

    Misses: a buffer loaded with other content: EQ-1; a QEMU, which journals no buffers: EQ-6.
    """

    passport = Passport(
        "DS-14",
        "The target loads each buffer that it received, once, and no other.",
        Severity.CORRUPTS,
        linux("include/uapi/linux/vfio.h", "VFIO_DEVICE_STATE_RESUMING", "5.18"),
        DEVICE,
        (Need.TARGET, Need.COMPLETED),
    )
    kinds = (Received, Loaded)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        # Two threads write these lines, so their order in the journal proves nothing: only the balance does.
        self.balance: dict[int, int] = {}
        self.last: dict[int, Said] = {}

    def on(self, seen: Said, event: Received | Loaded) -> Iterator[Finding]:
        if event.idx >= 0:
            self._count(event.idx, seen, 1 if type(event) is Received else -1)
        return iter(())

    def _count(self, idx: int, seen: Said, change: int) -> None:
        left = self.balance.get(idx, 0) + change
        if left:
            self.balance[idx] = left
            self.last[idx] = seen
        else:
            del self.balance[idx], self.last[idx]

    def at_end(self) -> Iterator[Finding]:
        for idx, left in sorted(self.balance.items()):
            if left < 0:
                yield Finding(f"buffer {idx} is loaded more often than received", (self.last[idx],))
                return
            if self.complete:
                yield Finding(f"buffer {idx} is received and never loaded", (self.last[idx],))
                return


class StreamInOrder(Invariant[State | Read | Wrote]):
    """Sound: a supervisor's lines are in the order of the calls of one thread, and a new data file begins at
    0.

    Misses: what a QEMU did with the bytes between reading and sending: EQ-6 and EQ-1.
    """

    passport = Passport(
        "DS-16",
        "A QEMU reads a device's state, and writes it, from the first byte to the last: each read or write "
        "goes on where the one before ended.",
        Severity.CORRUPTS,
        linux("include/uapi/linux/vfio.h", "VFIO_DEVICE_STATE_STOP_COPY, VFIO_DEVICE_STATE_RESUMING", "5.18"),
        SIDE_DEVICE,
    )
    kinds = (State, Read, Wrote)
    opening = frozenset(("PRE_COPY", "STOP_COPY", "RESUMING"))
    open = frozenset(("PRE_COPY", "PRE_COPY_P2P", "STOP_COPY", "RESUMING"))

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.exercised = False
        self.next = 0
        self.last: Said | None = None

    def on(self, seen: Said, event: State | Read | Wrote) -> Iterator[Finding]:
        if type(event) is State:
            if event.new in self.opening and event.old not in self.open and not event.errno:
                self.next, self.last = 0, None  # a new file
            return
        self.exercised = True
        if event.offset != self.next:
            verb = "read" if isinstance(event, Read) else "written"
            witnesses = (seen,) if self.last is None else (self.last, seen)
            yield Finding(f"byte {event.offset} is {verb} where {self.next} was next", witnesses)
        self.next = event.offset + event.size
        self.last = seen


LOADING = (
    AfterSwitchover,
    SavedInOrder,
    LoadedAfterSwitchover,
    LoadOrder,
    LoadedWasReceived,
    StreamInOrder,
)
