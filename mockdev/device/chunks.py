# SPDX-License-Identifier: GPL-2.0-or-later
"""What has been saved and not yet read: buffers in stream order, given out as views.

Source: Linux drivers/vfio/pci/mlx5/main.c: mlx5vf_save_read, mlx5vf_get_data_buff_from_pos
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

CHUNKS_MAX = 2  # saved and unread, or being saved


class Piece(NamedTuple):
    """A buffer: its bytes, and whether it is a chunk (reading it up makes room for the next one)."""

    view: memoryview
    is_chunk: bool


class ReadyList:
    """Pieces in order. position: stream bytes read; end: stream bytes ever added."""

    def __init__(self) -> None:
        self.position = 0
        self.end = 0
        self._pieces: deque[Piece] = deque()
        self._at = 0  # read of the first piece

    def __bool__(self) -> bool:
        return bool(self._pieces)

    @property
    def remaining(self) -> int:
        """Bytes that are ready."""
        return self.end - self.position

    @property
    def chunks(self) -> int:
        """Chunks that are ready and not read up."""
        return sum(piece.is_chunk for piece in self._pieces)

    def add(self, pieces: Iterable[Piece]) -> None:
        """Put pieces at the end."""
        for piece in pieces:
            self._pieces.append(piece)
            self.end += len(piece.view)

    def take(self, size_max: int) -> tuple[memoryview, Piece | None]:
        """Up to size_max bytes of the first piece, and that piece if it is now read up."""
        piece = self._pieces[0]
        view = piece.view[self._at : self._at + size_max]
        self._at += len(view)
        self.position += len(view)
        if self._at < len(piece.view):
            return view, None
        self._at = 0
        return view, self._pieces.popleft()

    def clear(self) -> None:
        """Forget everything that is ready."""
        self._pieces.clear()
        self._at = 0
