# SPDX-License-Identifier: GPL-2.0-or-later
"""A capture file as bytes in memory: mapped, after unpacking gzip or zstd; every refusal is a sentence."""

from __future__ import annotations

import mmap
import os
import stat
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, NamedTuple

from mockdev.errors import VfmigError

GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
UNPACKED_BYTES_MAX = 32 << 30
_PIECE = 1 << 20
_ZSTD_WINDOW_BYTES_MAX = 1 << 27


class CaptureError(VfmigError):
    """A file that cannot be read as a capture at all, or that cannot be made; the message is a sentence."""

    environment = True


class Mapped(NamedTuple):
    """The bytes of a capture, and a sentence about what unpacking could not recover, or ""."""

    data: mmap.mmap
    damage: str


def map_file(path: Path, unpacked_bytes_max: int = UNPACKED_BYTES_MAX) -> Mapped:
    """Map `path` read-only; gzip and zstd, told by their magic, go to an unlinked temporary file first.

    unpacked_bytes_max: how many bytes a compressed file may unpack to before it is refused.
    Raises CaptureError: no such file, a directory, no permission, empty, too large, no room to unpack.
    """
    with open_file(path) as file:
        try:
            magic = file.read(4)
            file.seek(0)
            if magic.startswith(GZIP_MAGIC) or magic == ZSTD_MAGIC:
                return _unpack(path, file, magic, unpacked_bytes_max)
            return Mapped(_map(path, file), "")
        except OSError as error:
            raise CaptureError(f"{path} cannot be read: {error.strerror or error}") from None


def open_file(path: Path) -> IO[bytes]:
    """Open a regular file, without waiting for the writer of a FIFO.

    Raises CaptureError: no such file, not a regular one, no permission.
    """
    try:
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise CaptureError(f"{path}: there is no such file") from None
    except OSError as error:
        raise CaptureError(f"{path} cannot be read: {error.strerror}") from None
    mode = os.fstat(number).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(number, "rb")
    os.close(number)
    what = "a directory" if stat.S_ISDIR(mode) else "not a regular file"
    raise CaptureError(f"{path} is {what}, so it cannot be read as a capture")


def _map(path: Path, file: IO[bytes]) -> mmap.mmap:
    if os.fstat(file.fileno()).st_size == 0:
        raise CaptureError(f"{path} is empty, so there is no capture in it")
    data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    with suppress(OSError):  # only a hint
        data.madvise(mmap.MADV_SEQUENTIAL)
    return data


def _unpack(path: Path, file: IO[bytes], magic: bytes, bytes_max: int) -> Mapped:
    pieces = _gunzip(file) if magic.startswith(GZIP_MAGIC) else _unzstd(file)
    total = 0
    damage = ""
    with tempfile.TemporaryFile(prefix="vfmig-capture-") as out:
        try:
            for piece in pieces:
                total += len(piece)
                if total > bytes_max:
                    raise CaptureError(f"{path} unpacks to more than {bytes_max} bytes, which is the limit")
                _write(path, out, piece)
        except _Broken as error:
            damage = f"{path}: {error} after {total} unpacked bytes"
        out.flush()
        if total == 0:
            raise CaptureError(damage or f"{path} unpacks to nothing, so there is no capture in it")
        return Mapped(_map(path, out), damage)


def _write(path: Path, out: IO[bytes], piece: bytes) -> None:
    try:
        out.write(piece)
    except OSError as error:
        where = tempfile.gettempdir()
        raise CaptureError(
            f"{path} cannot be unpacked: {error.strerror} in {where} (TMPDIR chooses another place)"
        ) from None


class _Broken(Exception):
    """The compressed data ends early or is damaged."""


def _gunzip(file: IO[bytes]) -> Iterator[bytes]:
    """Each piece is at most _PIECE bytes, whatever the compression ratio; members follow one another."""
    pending = file.read(_PIECE)
    while pending.startswith(GZIP_MAGIC):
        member = zlib.decompressobj(31)
        while not member.eof:
            try:
                piece = member.decompress(pending, _PIECE)
            except zlib.error as error:
                raise _Broken(f"the gzip data is damaged ({error})") from None
            pending = member.unconsumed_tail
            if piece:
                yield piece
            elif not member.eof and not pending:
                pending = file.read(_PIECE)
                if not pending:
                    raise _Broken("the gzip data ends early")
        pending = member.unused_data or file.read(_PIECE)
        if len(pending) == 1:
            pending += file.read(_PIECE)


def _unzstd(file: IO[bytes]) -> Iterator[bytes]:
    """A frame that ends early shows as a capture that ends early: the library does not tell."""
    import zstandard

    unpacker = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES_MAX)
    with unpacker.stream_reader(file, read_across_frames=True, closefd=False) as reader:
        while True:
            try:
                piece = reader.read(_PIECE)
            except zstandard.ZstdError as error:
                raise _Broken(f"the zstd data is damaged ({error})") from None
            if not piece:
                return
            yield piece
