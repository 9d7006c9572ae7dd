# SPDX-License-Identifier: GPL-2.0-or-later
"""DS: what a device's state consists of, where it says so itself."""

from __future__ import annotations

from collections.abc import Iterator

from mockdev.wire.frames import VfioItem
from verifier.history.facts import Facts
from verifier.history.image import Image
from verifier.history.observation import BufferDone, Seen
from verifier.invariants.passport import DEVICE, Finding, Invariant, Need, Passport, Severity, linux

_PLACES = 1 << 12  # buffers of one device whose place is kept, for a witness


class WholeRecords(Invariant[VfioItem | BufferDone]):
    """Sound: only a state that opens as mlx5's stream does is read as one; its end is judged when nothing was
    left out and the config buffer tells where it is.

    Misses: states of other devices, and records with the right frame and wrong data: EQ-1.
    """

    passport = Passport(
        "DS-15",
        "A state that opens as mlx5's save stream does, with a STOP_COPY_SIZE record, goes on in records of "
        "firmware data, each with flags 0 and 1 to 2^32-1 bytes, to its exact end.",
        Severity.CORRUPTS,
        linux("drivers/vfio/pci/mlx5/cmd.c, main.c", "add_buf_header, mlx5vf_add_stop_copy_header"),
        DEVICE,
        (Need.CHANNELS,),
    )
    kinds = (VfioItem, BufferDone)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.last: Seen | None = None
        self.block: Seen | None = None  # the last of the main channel
        self.places: dict[int, tuple[int, Seen]] = {}
        self.found = False

    def on(self, seen: Seen, event: VfioItem | BufferDone) -> Iterator[Finding]:
        if self.found:
            return
        self.last = seen
        if type(event) is BufferDone:
            self.places[event.idx % _PLACES] = event.idx, seen
        image = self.facts.images.get(seen.device)
        if image is not None and image.records.problem:
            yield self._broken(image)
        elif type(event) is VfioItem and event.data_size:
            self.block = seen  # its content comes after it

    def at_end(self) -> Iterator[Finding]:
        if self.found or self.last is None:
            return
        image = self.facts.images.get(self.last.device)
        whole = image is not None and image.digest() is not None
        if image is not None and image.records.problem:
            yield self._broken(image)
        self.exercised = image is not None and image.records.recognised
        if self.found or image is None or not self.exercised:
            return
        if image.partial and not self.facts.holes:
            self.exercised = False  # payloads were left out on purpose, so this was not asked
        elif not whole:
            self.unknown = f"its records could not be followed to the end: {image.problem}"
        elif image.index_last is not None and not image.config_seen:
            self.unknown = "without its config buffer, nothing says where the state ends"
        elif self.complete and image.records.unfinished:
            yield Finding(f"the state is not whole records: {image.records.unfinished}", (self.last,))

    def _broken(self, image: Image) -> Finding:
        self.found = True
        idx = image.records.problem_idx
        known, place = self.places.get(idx % _PLACES, (idx, self.last)) if idx >= 0 else (idx, self.block)
        witness = place if known == idx and place is not None else self.last
        assert witness is not None, "the bytes were seen"
        where = f"buffer {idx}" if idx >= 0 else "the main channel"
        return Finding(f"the state breaks off being records in {where}: {image.records.problem}", (witness,))


RECORDS = (WholeRecords,)
