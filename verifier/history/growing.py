# SPDX-License-Identifier: GPL-2.0-or-later
"""Journals and logs of QEMU that are still being written, as the lines of one time line."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from mockdev.errors import VfmigError
from verifier.capture.opening import CaptureError, open_file
from verifier.history.journals import JournalReader
from verifier.history.merge import Lines
from verifier.history.observation import Said

_PIECE_BYTES = 1 << 20  # read at once; a longer line is none
_LINES_MAX = 1 << 14  # of one file, that wait for their turn


class Reader(Protocol):
    """What makes lines out of bytes."""

    def read(self, raw: bytes, offset: int) -> Said | None: ...


class GrowingFile:
    """One file, from its start; it need not be there yet. problem: why it is read no further, or "".

    read: what makes a reader of its lines when it is there. A journal must have nothing but lines of a
    journal; of a log, whatever is no event is passed over.
    """

    def __init__(self, path: Path, read: Callable[[Path], Reader] = JournalReader) -> None:
        self.path = path
        self.problem = ""
        self.waiting: deque[Said] = deque()
        self._read = read
        self._strict = read is JournalReader
        self._file = -1
        self._offset = 0
        self._reader: Reader | None = None

    def poll(self) -> bool:
        """Read what has come, or a piece of it; whether anything had."""
        if self.problem or len(self.waiting) >= _LINES_MAX:
            return False
        try:
            return self._poll()
        except VfmigError as error:
            self.problem = str(error)
        except OSError as error:
            self.problem = f"{self.path} cannot be read: {error.strerror}"
        return False

    def close(self) -> None:
        """Read no more."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _poll(self) -> bool:
        if self._file < 0:
            with suppress(FileNotFoundError):
                if not self.path.stat().st_size:
                    return False
                with open_file(self.path) as file:
                    self._file = os.dup(file.fileno())
            if self._file < 0:
                return False
        if self._reader is None:
            self._reader = self._read(self.path)
        before = self._offset
        for raw, offset in self._whole_lines(os.pread(self._file, _PIECE_BYTES, before)):
            said = self._reader.read(raw, offset)
            if said is not None:
                self.waiting.append(said)
        return self._offset > before

    def _whole_lines(self, data: bytes) -> Iterator[tuple[bytes, int]]:
        """Each line with its offset; one that is longer than all data is passed over."""
        start = 0
        while stop := data.find(b"\n", start) + 1:
            raw = data[start:stop]
            # A journal is written into zeros, and the bytes of a line may become visible in any order.
            if self._strict and b"\0" in raw:
                break
            yield raw, self._offset
            self._offset += len(raw)
            start = stop
        if not start and len(data) == _PIECE_BYTES and b"\n" not in data and b"\0" not in data:
            if self._strict:
                raise CaptureError(f"{self.path}, at byte {self._offset}: not a journal line: it has no end")
            self._offset += len(data)


class GrowingLines(Lines):
    """The lines of several growing files by time, as far as they have been polled."""

    def __init__(self, files: Sequence[GrowingFile]) -> None:
        super().__init__()
        self.files = files
        self._first: GrowingFile | None = None  # whose line is next

    def poll(self) -> bool:
        """Look for new lines; whether any file had."""
        found = [file.poll() for file in self.files]
        self._settle()
        return any(found)

    def close(self) -> None:
        """Close the files."""
        for file in self.files:
            file.close()

    def until(self, time_ns: int) -> Iterator[Said]:
        """As Lines.until."""
        while self.next_ns <= time_ns:
            yield self._take()

    def rest(self) -> Iterator[Said]:
        """All that were polled."""
        while self._first is not None:
            yield self._take()

    def _take(self) -> Said:
        assert self._first is not None
        said = self._first.waiting.popleft()
        self._settle()
        return said

    def _settle(self) -> None:
        heads = [file for file in self.files if file.waiting]
        self._first = min(heads, key=lambda file: file.waiting[0].time_ns, default=None)
        self.next_ns = 1 << 63 if self._first is None else self._first.waiting[0].time_ns
