# SPDX-License-Identifier: GPL-2.0-or-later
"""Compressed page data: one running stream a channel, inflated piece by piece and only counted.

Source: QEMU migration/multifd-zlib.c: multifd_zlib_recv; migration/multifd-zstd.c: multifd_zstd_recv.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Any

from mockdev.wire.structs import MultifdFlag

_ZLIB_PIECE = 1 << 16
_ZSTD_PIECE = 1 << 10  # bounds what one call can blow up to: a block of 128 KiB takes 4 bytes
_ZSTD_WINDOW_MAX = 1 << 27


class PageStream:
    """The compressed stream of one channel. method: as in the packet's flags."""

    def __init__(self, method: int) -> None:
        self.method = method
        self._stream: Any = None
        if method == MultifdFlag.ZLIB:
            self._stream = zlib.decompressobj()
        elif method == MultifdFlag.ZSTD:
            import zstandard  # only captures that hold zstd pages pay for it

            self._stream = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_MAX).decompressobj()

    @property
    def readable(self) -> bool:
        """Whether this method can be inflated here at all (qpl, uadk and qatzip cannot)."""
        return self._stream is not None

    def inflate(self, pieces: Iterable[memoryview], size_expected: int) -> tuple[int, str]:
        """Take the data of one packet: (bytes of pages that came out, what is wrong or "")."""
        try:
            if self.method == MultifdFlag.ZLIB:
                return self._zlib(pieces, size_expected)
            return self._zstd(pieces, size_expected)
        except Exception as error:  # zlib.error, zstandard.ZstdError: the library's word is the finding
            if type(error).__name__ not in ("error", "ZstdError"):
                raise
            return 0, f"cannot be inflated: {error}"

    def _zlib(self, pieces: Iterable[memoryview], size_expected: int) -> tuple[int, str]:
        got = 0
        for piece in pieces:
            pending: bytes | memoryview = piece
            while len(pending):
                got += len(self._stream.decompress(pending, _ZLIB_PIECE))
                pending = self._stream.unconsumed_tail
                if got > size_expected:
                    return got, "more comes out than the pages take"
            if self._stream.eof:
                return got, "the stream was ended"
        got += self._rest(size_expected - got)
        return got, _short(got, size_expected)

    def _rest(self, size_max: int) -> int:
        """What zlib still holds back though its input is used up."""
        got = 0
        while got <= size_max:
            piece = len(self._stream.decompress(b"", _ZLIB_PIECE))
            if not piece:
                break
            got += piece
        return got

    def _zstd(self, pieces: Iterable[memoryview], size_expected: int) -> tuple[int, str]:
        got = 0
        for piece in pieces:
            for at in range(0, len(piece), _ZSTD_PIECE):
                got += len(self._stream.decompress(piece[at : at + _ZSTD_PIECE]))
                if got > size_expected:
                    return got, "more comes out than the pages take"
        return got, _short(got, size_expected)


def _short(got: int, expected: int) -> str:
    return "" if got == expected else f"{got} bytes come out, not {expected}"
