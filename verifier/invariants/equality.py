# SPDX-License-Identifier: GPL-2.0-or-later
"""EQ, OC: what was saved is what was sent and what was loaded, and one side has the VM in the end."""

from __future__ import annotations

from collections.abc import Iterator

from mockdev.journal import End, Image, Loaded, Received, Saved, Sent, Verified
from mockdev.wire.frames import DeviceStateFrame
from verifier.history.facts import Facts
from verifier.history.observation import BufferDone, Said, Seen
from verifier.invariants.passport import (
    DEVICE,
    MIGRATION,
    Finding,
    Invariant,
    Need,
    Passport,
    Severity,
    linux,
    qemu,
)

_INDEXES_MAX = 1 << 16  # of one device; of more, only the first are compared
_PASSES = linux(
    "include/uapi/linux/vfio.h", "VFIO_DEVICE_STATE_STOP_COPY, VFIO_DEVICE_STATE_RESUMING", "5.18"
)


class SameImage(Invariant[Image]):
    passport = Passport(
        "EQ-1",
        "A device's state is byte for byte the same where it was saved, on the wire and where it was loaded.",
        Severity.CORRUPTS,
        _PASSES,
        DEVICE,
    )
    kinds = (Image,)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.places: dict[str, Said] = {}

    def on(self, seen: Said, _: Image) -> Iterator[Finding]:
        self.places.setdefault(seen.role, seen)
        return iter(())

    def at_end(self) -> Iterator[Finding]:
        images = {role: said.line for role, said in self.places.items()}
        digests = {role: image.digest for role, image in images.items() if isinstance(image, Image)}
        configs = {
            role: image.config_digest
            for role, image in images.items()
            if isinstance(image, Image) and image.config_digest
        }
        wire = self.facts.images.get(next(iter(images.values())).device)  # type: ignore[union-attr]
        if wire is not None:
            whole = wire.digest() if self.facts.completed else None
            if whole is not None:
                digests["wire"] = whole
            if wire.config_digest:
                configs["wire"] = wire.config_digest
        for what, found in (("state", digests), ("config state", configs)):
            if len(set(found.values())) > 1:
                told = ", ".join(f"{place} {digest}" for place, digest in found.items())
                yield Finding(f"the {what} differs: {told}", tuple(self.places.values()))
        if len(digests) < 2:
            self.unknown = "its digest is known at one place only"


class VerifiedEqual(Invariant[Verified]):
    passport = Passport(
        "EQ-2",
        "What the target loaded is what the source's seed made.",
        Severity.CORRUPTS,
        _PASSES,
        DEVICE,
        (Need.TARGET,),
    )
    kinds = (Verified,)

    def on(self, seen: Said, event: Verified) -> Iterator[Finding]:
        if not event.equal:
            where = "" if event.wrong_at is None else f", first at byte {event.wrong_at}"
            yield Finding(f"the loaded image is wrong{where}", (seen,))


class SameSizes(Invariant[Saved | Sent | Received | Loaded | BufferDone]):
    passport = Passport(
        "EQ-3",
        "A buffer has the same size where it was saved, sent, captured, received and loaded.",
        Severity.CORRUPTS,
        qemu("hw/vfio/migration-multifd.c", "vfio_multifd_save_complete_precopy_thread"),
        DEVICE,
    )
    kinds = (Saved, Sent, Received, Loaded, BufferDone)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.sizes: dict[int, tuple[int, Said | Seen]] = {}

    def on(
        self, seen: Said | Seen, event: Saved | Sent | Received | Loaded | BufferDone
    ) -> Iterator[Finding]:
        if event.idx < 0 or not self.facts.journals:
            return
        size = event.data_size if isinstance(event, BufferDone) else event.size
        known = self.sizes.get(event.idx)
        if known is None:
            if len(self.sizes) < _INDEXES_MAX:
                self.sizes[event.idx] = size, seen.place() if isinstance(seen, Seen) else seen
        elif known[0] != size and not (isinstance(event, BufferDone) and isinstance(known[1], Seen)):
            yield Finding(f"buffer {event.idx} has {known[0]} bytes here and {size} there", (known[1], seen))


class SavedIsLoaded(Invariant[Saved | Loaded]):
    passport = Passport(
        "EQ-4",
        "When the migration has completed, the bytes that the target loaded of a device are as many as the "
        "source saved.",
        Severity.CORRUPTS,
        _PASSES,
        DEVICE,
        (Need.SOURCE, Need.TARGET, Need.COMPLETED),
    )
    kinds = (Saved, Loaded)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.saved = 0
        self.loaded = 0
        self.last: Said | None = None

    def on(self, seen: Said, event: Saved | Loaded) -> Iterator[Finding]:
        self.last = seen
        if isinstance(event, Saved):
            self.saved += event.size
        else:
            self.loaded += event.size
        return iter(())

    def at_end(self) -> Iterator[Finding]:
        if self.complete and self.saved != self.loaded and self.last is not None:
            yield Finding(f"{self.saved} bytes saved, {self.loaded} loaded", (self.last,))


class JournalledIsCaptured(Invariant[Sent | DeviceStateFrame]):
    passport = Passport(
        "EQ-5",
        "The capture holds every multifd buffer that the source says it sent, and no other.",
        Severity.CORRUPTS,
        qemu("migration/multifd-device-state.c", "multifd_queue_device_state"),
        DEVICE,
        (Need.SOURCE, Need.CHANNELS),
    )
    kinds = (Sent, DeviceStateFrame)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.sent = 0
        self.captured = 0
        self.last: Said | Seen | None = None

    def on(self, seen: Said | Seen, event: Sent | DeviceStateFrame) -> Iterator[Finding]:
        if isinstance(event, Sent):
            self.sent += event.idx >= 0
        else:
            self.captured += 1
        self.last = seen
        return iter(())

    def at_end(self) -> Iterator[Finding]:
        if self.complete and self.sent != self.captured and self.last is not None:
            yield Finding(f"{self.sent} buffers sent, {self.captured} captured", (self.last,))


class OneSideRuns(Invariant[End]):
    passport = Passport(
        "OC-1",
        "The VM may run on at most one side in the end.",
        Severity.CORRUPTS,
        qemu("migration/migration.c", "migration_completion, process_incoming_migration_bh"),
        MIGRATION,
        (Need.SOURCE, Need.TARGET),
    )
    kinds = (End,)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.running: list[Said] = []

    def on(self, seen: Said, event: End) -> Iterator[Finding]:
        if event.runs:
            self.running.append(seen)
        if len(self.running) > 1:
            yield Finding("the VM may run on both sides", tuple(self.running))


class SidesAgree(Invariant[End]):
    passport = Passport(
        "OC-2",
        "The source says that the migration completed only when the target does.",
        Severity.CORRUPTS,
        qemu("migration/migration.c", "migration_completion"),
        MIGRATION,
        (Need.SOURCE, Need.TARGET),
    )
    kinds = (End,)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.ends: dict[str, Said] = {}

    def on(self, seen: Said, _: End) -> Iterator[Finding]:
        self.ends[seen.role] = seen
        return iter(())

    def at_end(self) -> Iterator[Finding]:
        source, target = self.ends.get("source"), self.ends.get("target")
        if source is None or target is None:
            self.unknown = "one side's journal has no end"
        elif source.line.outcome == "completed" != target.line.outcome:  # type: ignore[union-attr]
            said = target.line.outcome  # type: ignore[union-attr]
            yield Finding(f"the source completed, the target {said}", (source, target))


EQUALITY = (
    SameImage,
    VerifiedEqual,
    SameSizes,
    SavedIsLoaded,
    JournalledIsCaptured,
    OneSideRuns,
    SidesAgree,
)
