# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads journals line by line, each line with its place in the file, and tells what is no journal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from mockdev.journal import LINE_BYTES_MAX, SCHEMA, AnyLine, Begin, JournalError
from verifier.history.observation import Said

_decode = msgspec.json.Decoder(AnyLine).decode


def is_journal(head: bytes) -> bool:
    """Whether a file that begins so may be a journal."""
    return head.lstrip()[:1] == b"{"


class JournalReader:
    """Makes lines of a journal out of bytes; the first one tells whose it is."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._role = ""

    def read(self, raw: bytes, offset: int) -> Said:
        """The line that stands at `offset`. JournalError: it is none."""
        try:
            line: AnyLine = _decode(raw)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise JournalError(f"{self._path}, at byte {offset}: not a journal line: {error}") from None
        if not self._role:
            if not isinstance(line, Begin) or line.schema != SCHEMA:
                raise JournalError(f"{self._path}: not a journal of schema {SCHEMA}")
            if line.role not in ("source", "target"):
                raise JournalError(
                    f"{self._path}: a journal of role {line.role!r}, neither source nor target"
                )
            self._role = line.role
        return Said(self._role, line, str(self._path), offset, len(raw))


def read_journal(path: Path) -> Iterator[Said]:
    """The lines of a journal. JournalError on the first that is none; a cut last line ends it."""
    reader = JournalReader(path)
    offset = 0
    with path.open("rb") as file:
        while raw := file.readline(LINE_BYTES_MAX):
            if not raw.endswith(b"\n"):
                return
            yield reader.read(raw, offset)
            offset += len(raw)
