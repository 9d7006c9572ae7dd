# SPDX-License-Identifier: GPL-2.0-or-later
"""Devices that save, load or log wrongly. They are the same at both ends."""

from __future__ import annotations

from typing import Any

from mockdev.device.chunks import Piece
from mockdev.device.device import Device
from mockdev.device.dirty import DirtyLog
from mockdev.device.files import Written
from mockdev.device.resuming import ResumeFile
from mockdev.device.saving import SaveFile, SaveState
from mockdev.device.sessions import Sessions
from mockdev.vfio.mlx5_stream import RECORD_HEADER, image_header
from mockdev.wire.structs import Tag
from verifier.simulation.migration import Parts
from verifier.simulation.source import Source
from verifier.simulation.world import Steps
from verifier.simulation.zoo.bug import Bug

_MLX5 = "Linux drivers/vfio/pci/mlx5"


def _saves(file: type[SaveFile]) -> Parts:
    class _Sessions(Sessions):
        save_type = file

    return _with_sessions(_Sessions)


def _loads(file: type[ResumeFile]) -> Parts:
    class _Sessions(Sessions):
        resume_type = file

    return _with_sessions(_Sessions)


def _with_sessions(sessions: type[Sessions]) -> Parts:
    class _Device(Device):
        sessions_type = sessions

    return Parts(device=_Device)


def _logs(log: type[DirtyLog]) -> Parts:
    class _Device(Device):
        dirty_type = log

    return Parts(device=_Device)


class _EndsEarly(SaveFile):
    def _saved(self, end_ns: int, start: int, piece: Piece) -> None:
        super()._saved(end_ns, start, piece)
        if piece.is_chunk and self.state is SaveState.STOP_COPY_CHUNK:
            self._stashed = 0
            self.state = SaveState.COMPLETE


class _SkipsChunk(SaveFile):
    def _chunk_read(self, now_ns: int) -> None:
        if self._stashed and self.saved_bytes + 2 * self._stashed <= len(self._source):
            self.saved_bytes += self._stashed
        super()._chunk_read(now_ns)


class _StaleChunk(SaveFile):
    """The buffer of the first chunk is read again before the third is in it."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.chunks: list[memoryview] = []

    def _saved(self, end_ns: int, start: int, piece: Piece) -> None:
        if piece.is_chunk:
            self.chunks.append(piece.view)
            if len(self.chunks) == 3 and len(self.chunks[0]) == len(piece.view):
                piece = Piece(self.chunks[0], True)
        super()._saved(end_ns, start, piece)


class _HeaderCounted(SaveFile):
    """A record's size has its header in it."""

    def _saved(self, end_ns: int, start: int, piece: Piece) -> None:
        first = self._ready.end
        super()._saved(end_ns, start, piece)
        pieces = self._ready._pieces
        for at, ready in enumerate(pieces):
            if len(ready.view) == RECORD_HEADER.size and at + 1 < len(pieces) and self._ready.end > first:
                size = len(pieces[at + 1].view) + RECORD_HEADER.size
                pieces[at] = Piece(memoryview(image_header(size)), False)


class _NotWrittenBack(SaveFile):
    """What the device had in its cache is not in the memory that is saved."""

    def _saved(self, end_ns: int, start: int, piece: Piece) -> None:
        if start + len(piece.view) == len(self._source):
            piece = Piece(memoryview(bytes(len(piece.view))), piece.is_chunk)
        super()._saved(end_ns, start, piece)


class _AlwaysAtZero(ResumeFile):
    """Each write lands where the first did."""

    def _receive(self, piece: memoryview) -> None:
        received = self.received_bytes
        self.received_bytes = 0
        super()._receive(piece)
        self.received_bytes += received


class _SaysAllTaken(ResumeFile):
    """Takes at most 100 bytes, and says that it took all."""

    def write(self, now_ns: int, data: memoryview) -> Written:
        written = super().write(now_ns, data[:100])
        return Written(len(data), written.ready_ns)


class _HalvesSwapped(ResumeFile):
    """The halves of the first 16 bytes are put together the wrong way round."""

    def _receive(self, piece: memoryview) -> None:
        if not self.received_bytes and len(piece) >= 16:
            piece = memoryview(b"".join((piece[8:16], piece[:8], piece[16:])))
        super()._receive(piece)


class _DoneSurvives(ResumeFile):
    """Checks that were made for one image are not made again for the next, nor is its data taken."""

    def _receive(self, piece: memoryview) -> None:
        if self.loads:
            self.received_bytes += len(piece)
        else:
            super()._receive(piece)


class _NothingLogged(DirtyLog):
    def report(self, now_ns: int, iova: int, length: int, page_size: int) -> list[tuple[int, int]]:
        super().report(now_ns, iova, length, page_size)
        return []


class _NextPage(DirtyLog):
    def report(self, now_ns: int, iova: int, length: int, page_size: int) -> list[tuple[int, int]]:
        pages = super().report(now_ns, iova, length, page_size)
        last = length // page_size - 1
        return [(min(first + 1, last), min(after + 1, last + 1)) for first, after in pages]


class _FirstRunOnly(DirtyLog):
    def report(self, now_ns: int, iova: int, length: int, page_size: int) -> list[tuple[int, int]]:
        return super().report(now_ns, iova, length, page_size)[:1]


class _LastPageOut(DirtyLog):
    """The last page of what is asked for is left out of the bitmap."""

    def report(self, now_ns: int, iova: int, length: int, page_size: int) -> list[tuple[int, int]]:
        return super().report(now_ns, iova, length - page_size, page_size)


class _AskedBeforeStop(Source):
    """The last question for dirty pages comes before the devices are stopped."""

    last: list[int] | None = None

    def stop(self) -> Steps:
        self.last = self.dirty_pages()
        yield from super().stop()

    def dirty_pages(self) -> list[int]:
        return super().dirty_pages() if self.last is None else self.last


class _NotAskedAtEnd(Source):
    """What was written since the last round is not sent."""

    def ram_section(self, tag: Tag, offsets: Any) -> Steps:
        yield from super().ram_section(tag, () if tag == Tag.SECTION_END else offsets)


class _AskedTwice(Source):
    """Asks, and asks again when it is to send: the first answer has cleared the log."""

    def dirty_pages(self) -> list[int]:
        super().dirty_pages()
        return super().dirty_pages()


class _FirstDeviceOnly(Source):
    def dirty_pages(self) -> list[int]:
        slots, self.slots = self.slots, self.slots[:1]
        try:
            return super().dirty_pages()
        finally:
            self.slots = slots


_DIRTY: dict[str, Any] = {"kinds": ("guest", "costs"), "needs": "target's journal", "by": ("EQ-2",)}

DEVICES = (
    Bug(
        "state-ends-early",
        "The device says that its state has ended when its first chunk is saved.",
        f"{_MLX5}/cmd.c: mlx5vf_save_callback, remaining_total_size: false ends",
        _saves(_EndsEarly),
        ("EQ-2",),
        "target's journal",
    ),
    Bug(
        "chunk-skipped",
        "A chunk that had to wait for room is left out.",
        f"{_MLX5}/cmd.c: a chunk that is stashed because both buffers are full",
        _saves(_SkipsChunk),
        ("EQ-2",),
        "target's journal",
        fixed={"state_bytes": 1200, "chunk_bytes": 100},
    ),
    Bug(
        "chunk-stale",
        "The third chunk is read from its buffer before it is in it: the first comes again.",
        f"{_MLX5}/main.c: two buffers in turn, each used again when it has been read",
        _saves(_StaleChunk),
        ("EQ-2",),
        "target's journal",
        fixed={"state_bytes": 1200, "chunk_bytes": 100},
    ),
    Bug(
        "record-size-with-header",
        "A record's size counts its own header.",
        "mlx5 series of 2026: PRECOPY_INFO was wrong by one record header",
        _saves(_HeaderCounted),
        ("DS-15",),
    ),
    Bug(
        "cache-not-written-back",
        "The last part of the state is saved before it is written back, and is empty.",
        "hisi_acc e63c46639873: the cache was written back in the copy phase, too late",
        _saves(_NotWrittenBack),
        ("EQ-2",),
        "target's journal",
    ),
    Bug(
        "write-at-zero",
        "Every write to the resume file begins at its first byte.",
        "hisi_acc be12ad45e15b: the data pointer was not moved on",
        _loads(_AlwaysAtZero),
        ("EQ-2",),
        "target's journal",
    ),
    Bug(
        "short-write-as-whole",
        "The device takes part of a write and says that it took it all.",
        "hisi_acc be12ad45e15b: a state that took more than one call was corrupted",
        _loads(_SaysAllTaken),
        ("EQ-2",),
        "target's journal",
    ),
    Bug(
        "halves-swapped",
        "The device puts two halves of a field together the wrong way round.",
        "hisi_acc, 2025 (Fixes b0eed085903e): the DMA addresses of EQE and AEQE",
        _loads(_HalvesSwapped),
        ("EQ-2",),
        "target's journal",
    ),
    Bug(
        "later-images-ignored",
        "After the first image a device takes no more of the data.",
        "hisi_acc 8c6ac1730a97: a flag that outlived its image let the next one's data be skipped",
        _loads(_DoneSurvives),
        ("EQ-2",),
        "target's journal",
        fixed={"state_bytes": 1200, "chunk_bytes": 100},
    ),
    Bug(
        "dirty-not-reported",
        "The device reports no page that it has written.",
        "QEMU hw/vfio: device and IOMMU tracking were taken for each other, October 2025",
        _logs(_NothingLogged),
        **_DIRTY,
    ),
    Bug(
        "dirty-next-page",
        "The device reports the page after the one that it has written.",
        "Linux iova_bitmap f38044e5ef58: bitmaps that begin inside a page",
        _logs(_NextPage),
        **_DIRTY,
    ),
    Bug(
        "dirty-first-run",
        "The device reports the first run of pages and forgets the others.",
        "Linux iova_bitmap f38044e5ef58, its follow-up: ranges were cut too short",
        _logs(_FirstRunOnly),
        **_DIRTY,
        fixed={"ram_bytes": 20480},
    ),
    Bug(
        "dirty-last-page",
        "The last page of a range is never reported.",
        "Linux iova_bitmap f38044e5ef58, its follow-up: ranges were cut too short",
        _logs(_LastPageOut),
        **_DIRTY,
    ),
    Bug(
        "dirty-asked-before-stop",
        "The source asks for dirty pages for the last time before the devices have stopped.",
        "QEMU migration/ram.c: the last sync of the bitmap comes after the VM has stopped",
        Parts(source=_AskedBeforeStop),
        **_DIRTY,
    ),
    Bug(
        "dirty-not-sent-at-end",
        "What was written since the last round is not sent any more.",
        "QEMU migration/ram.c: ram_save_complete sends what the last sync found",
        Parts(source=_NotAskedAtEnd),
        **_DIRTY,
    ),
    Bug(
        "dirty-asked-twice",
        "The log is asked once too often, and what it said first is dropped.",
        "Linux include/uapi/linux/vfio.h: VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT clears what it reports",
        Parts(source=_AskedTwice),
        **_DIRTY,
    ),
    Bug(
        "dirty-of-first-device",
        "Only the first device is asked for the pages that it has written.",
        "QEMU hw/vfio/container.c: all devices of a container are asked",
        Parts(source=_FirstDeviceOnly),
        **_DIRTY,
        fixed={"vfs": 3},
    ),
)
