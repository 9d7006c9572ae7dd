# SPDX-License-Identifier: GPL-2.0-or-later
"""EQ: what was saved is what was sent and what was loaded."""

from __future__ import annotations

from collections.abc import Iterator

from mockdev.journal import Image, Loaded, Read, Received, Saved, Sent, State, Verified, Wrote
from mockdev.wire.frames import DeviceStateFrame, VfioItem
from verifier.history.facts import Facts
from verifier.history.observation import BufferDone, EndRecord, Said, Seen
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
from verifier.invariants.sessions import was_reset

_INDEXES_MAX = 1 << 16  # of one device; of more, only the first are compared
_PASSES = linux(
    "include/uapi/linux/vfio.h", "VFIO_DEVICE_STATE_STOP_COPY, VFIO_DEVICE_STATE_RESUMING", "5.18"
)


class SameImage(Invariant[Image]):
    """Sound: digests are made by each end and by the judge over the bytes in index order; a QEMU's config
    state, of which its device sees little, is left out, and where it broke off only images of the same size
    are compared.

    Misses: a state that was altered before it was first digested, and one known at one place only (then
    unknown).
    """

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
        self.places[seen.role] = seen  # a QEMU may have begun anew
        return iter(())

    def at_end(self) -> Iterator[Finding]:
        images = {role: said.line for role, said in self.places.items() if isinstance(said.line, Image)}
        wire = self.facts.images.get(next(iter(images.values())).device)
        if not self.facts.completed:  # where it broke off, a supervisor digests what there was
            longest = max(image.size for image in images.values())
            images = {role: image for role, image in images.items() if image.size == longest}
        digests = {role: image.digest for role, image in images.items()}
        # The config state of a QEMU is its own, of which its device sees little.
        mine = {role: image for role, image in images.items() if not self.facts.supervised(role)}
        configs = {role: image.config_digest for role, image in mine.items() if image.config_digest}
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
    """Sound: the target compares with what seed and name make; a supervisor's word only counts where the
    migration completed.

    Misses: states that come from elsewhere than a seed, for which nobody writes such a line.
    """

    passport = Passport(
        "EQ-2",
        "What the target loaded is what the source's seed made.",
        Severity.CORRUPTS,
        _PASSES,
        DEVICE,
        (Need.TARGET,),
    )
    kinds = (Verified,)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.verified: Said | None = None

    def on(self, seen: Said, event: Verified) -> Iterator[Finding]:
        self.verified = seen
        if event.equal or self.facts.supervised(seen.role):
            return  # a supervisor compares after a failed migration, too
        yield self._finding(seen, event)

    def at_end(self) -> Iterator[Finding]:
        seen = self.verified
        if seen is None or not self.facts.supervised(seen.role):
            return
        completed, event = self.facts.completed, seen.line
        if isinstance(event, Verified) and not event.equal and completed:
            yield self._finding(seen, event)
        elif completed is None:
            self.unknown = "nothing says whether the migration completed"

    def _finding(self, seen: Said, event: Verified) -> Finding:
        where = "" if event.wrong_at is None else f", first at byte {event.wrong_at}"
        return Finding(f"the loaded image is wrong{where}", (seen,))


class SameSizes(Invariant[Saved | Sent | Received | Loaded | BufferDone]):
    """Sound: sizes are compared index by index, whoever tells first; what only one place tells is not
    compared.

    Misses: contents of the right size: EQ-1; beyond 65,536 indexes nothing is compared.
    """

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
        self.exercised = False
        self.sizes: dict[int, tuple[int, Said | Seen]] = {}

    def on(
        self, seen: Said | Seen, event: Saved | Sent | Received | Loaded | BufferDone
    ) -> Iterator[Finding]:
        if event.idx < 0 or not self.facts.journals:
            return
        size = event.data_size if type(event) is BufferDone else event.size
        known = self.sizes.get(event.idx)
        if known is None:
            if len(self.sizes) < _INDEXES_MAX:
                self.sizes[event.idx] = size, seen
        elif type(seen) is not Seen or type(known[1]) is not Seen:
            self.exercised = True
            if known[0] == size:
                return
            yield Finding(f"buffer {event.idx} has {known[0]} bytes here and {size} there", (known[1], seen))


class SavedIsLoaded(Invariant[Saved | Loaded | Read | Wrote]):
    """Sound: both journals are needed, of a completed migration; config states are left out where a QEMU
    keeps its own to itself, and a new file begins at 0 again.

    Misses: bytes that were exchanged for as many others: the digests of EQ-1 differ then.
    """

    passport = Passport(
        "EQ-4",
        "When the migration has completed, the bytes that the target loaded of a device are as many as the "
        "source saved.",
        Severity.CORRUPTS,
        _PASSES,
        DEVICE,
        (Need.SOURCE, Need.TARGET, Need.COMPLETED),
    )
    kinds = (Saved, Loaded, Read, Wrote)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.saved = 0
        self.loaded = 0
        self.config_saved = 0  # of these
        self.config_loaded = 0
        self.last: Said | None = None

    def on(self, seen: Said, event: Saved | Loaded | Read | Wrote) -> Iterator[Finding]:
        self.last = seen
        if type(event) is Saved:
            self.saved += event.size
            self.config_saved += event.size if event.config else 0
        elif type(event) is Loaded:
            self.loaded += event.size
            self.config_loaded += event.size if event.config else 0
        elif type(event) is Read:  # a new file begins at 0 again
            self.saved = event.offset + event.size
        elif type(event) is Wrote:
            self.loaded = event.offset + event.size
        return iter(())

    def at_end(self) -> Iterator[Finding]:
        saved, loaded = self.saved, self.loaded
        # A QEMU keeps the config state to itself; that an end is one may be read after the other's lines.
        if any(map(self.facts.supervised, self.facts.begins)):
            saved -= self.config_saved
            loaded -= self.config_loaded
        if self.complete and saved != loaded and self.last is not None:
            yield Finding(f"{saved} bytes saved, {loaded} loaded", (self.last,))


class JournalledIsCaptured(Invariant[Sent | DeviceStateFrame]):
    """Sound: judged only where the source is an endpoint of ours and all channels were read to their ends.

    Misses: which buffers are in excess or missing when their number fits: EQ-3 and DS-10.
    """

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
        self.exercised = False
        self.last: Said | Seen | None = None

    def on(self, seen: Said | Seen, event: Sent | DeviceStateFrame) -> Iterator[Finding]:
        if type(event) is Sent:
            self.sent += event.idx >= 0
        else:
            self.captured += 1
        self.last = seen
        return iter(())

    def at_end(self) -> Iterator[Finding]:
        self.exercised = not self.facts.supervised("source")  # who knows no buffers
        if not self.exercised:
            return
        if self.complete and self.sent != self.captured and self.last is not None:
            yield Finding(f"{self.sent} buffers sent, {self.captured} captured", (self.last,))


class StreamIsCaptured(Invariant[Read | Wrote | VfioItem | BufferDone]):
    """Sound: bytes are those of the last data file that each supervisor saw, and of the capture's payloads,
    of a completed migration with all flows whole.

    Misses: the right number of wrong bytes: EQ-1.
    """

    passport = Passport(
        "EQ-6",
        "When the migration has completed, a QEMU has read from a device, and written to one, as many bytes "
        "as the device's state in the capture has.",
        Severity.CORRUPTS,
        qemu("hw/vfio/migration.c, migration-multifd.c", "vfio_save_block, vfio_load_state_buffer_write"),
        DEVICE,
        (Need.MAIN, Need.CHANNELS),
    )
    kinds = (Read, Wrote, VfioItem, BufferDone)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.exercised = False
        self.device = ""
        self.last: dict[str, Said] = {}

    def on(self, seen: Said | Seen, event: Read | Wrote | VfioItem | BufferDone) -> Iterator[Finding]:
        if type(seen) is Said and isinstance(event, Read | Wrote):
            self.exercised = True
            self.device = event.device
            self.last[seen.role] = seen
        return iter(())

    def at_end(self) -> Iterator[Finding]:
        image = self.facts.images.get(self.device)
        if not self.exercised or not self.complete:
            return
        captured = image.payload_bytes if image is not None else 0
        for role, seen in self.last.items():
            passed = self.facts.said[role][self.device].payload_bytes
            if passed != captured:
                verb = "read" if isinstance(seen.line, Read) else "written"
                yield Finding(f"{passed} bytes {verb} at the {role}, {captured} in the capture", (seen,))


class _OfTheRun(Invariant[EndRecord | State]):
    """What was compared once, after the run, and stands in its record.

    reset: the source's devices that were reset when they had been stopped.
    """

    kinds = (EndRecord, State)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.exercised = False
        self.record: Said | None = None
        self.reset: set[str] = set()

    def on(self, seen: Said, event: EndRecord | State) -> Iterator[Finding]:
        if isinstance(event, EndRecord):
            self.record = seen
        elif seen.role == "source" and was_reset(event):
            self.reset.add(event.device)
        return iter(())


class SameGuestRam(_OfTheRun):
    """Sound: the two dumps were taken while neither VM ran, page by page; a run without dumps is not judged.
    Hosts write to a guest's RAM only where it asks KVM for it, and it is not told of KVM.

    Misses: a difference that the devices made afterwards, and RAM of runs that did not complete.
    """

    passport = Passport(
        "EQ-7",
        "When the migration has completed, the guest's RAM at the target, before the VM runs there, is that "
        "of the source after it stopped.",
        Severity.CORRUPTS,
        qemu("migration/ram.c", "ram_save_complete"),
        MIGRATION,
        (Need.COMPLETED,),
    )

    def at_end(self) -> Iterator[Finding]:
        ram = self.facts.record.guest_ram if self.facts.record is not None else None
        if ram is None or ram.equal is None or self.record is None:
            return
        self.exercised = True
        if self.complete and not ram.equal:
            where = ram.difference and f": {ram.difference}"
            yield Finding(f"the guest's RAM differs{where}", (self.record,))


class SamePciState(_OfTheRun):
    """Sound: config space and MSI-X table are read through qtest while neither VM runs; after a reset of the
    source's device they are no more what they were.

    Misses: state of the function behind its BARs: EQ-1 has the device's own.
    """

    passport = Passport(
        "EQ-8",
        "When the migration has completed, the guest sees the PCI config space and the MSI-X table of each "
        "VF at the target, before the VM runs there, as at the source after it stopped.",
        Severity.CORRUPTS,
        qemu("hw/vfio/pci.c", "vfio_pci_save_config, vfio_pci_load_config"),
        MIGRATION,
        (Need.COMPLETED,),
    )

    def at_end(self) -> Iterator[Finding]:
        pci = self.facts.record.pci if self.facts.record is not None else None
        if pci is None or pci.equal is None or self.record is None:
            return
        self.exercised = True
        if not self.complete or pci.equal:
            return
        differs = {part.rpartition(": ")[0] for part in pci.difference.split(", ")}
        if differs <= self.reset:
            self.unknown = f"{', '.join(sorted(differs))} was reset at the source when it had been stopped"
        else:
            yield Finding(f"the VFs' PCI state differs: {pci.difference}", (self.record,))


EQUALITY = (
    SameImage,
    VerifiedEqual,
    SameSizes,
    SavedIsLoaded,
    JournalledIsCaptured,
    StreamIsCaptured,
    SameGuestRam,
    SamePciState,
)
