# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads the events of a QMP conversation, one JSON object a line as QEMU sends them, one line at a time.

A line that is no event (a greeting, an answer, a command, what a tool wrote between) is passed over.

Source: QEMU docs/interop/qmp-spec.rst; qapi/migration.json: MIGRATION; qapi/run-state.json: STOP, RESUME
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from verifier.history.logs import whole_lines
from verifier.history.observation import QMP_LOG, QmpEvent, Said

LINE_BYTES_MAX = 1 << 20
_LAST_S = 1 << 33  # no time stamp is later: it would be no ns count of 64 bits
_TEXT_MAX = 200
_EVENT = re.compile(
    rb'^(?=[^\n]*"event"\s*:\s*"[A-Z_]+")(?=[^\n]*"timestamp"\s*:\s*\{)|^\{"QMP"', re.MULTILINE
)
_SOURCES = ("pre-switchover", "device", "cancelling")  # statuses that no target has


class _Time(msgspec.Struct):
    seconds: int
    microseconds: int


class _Event(msgspec.Struct):
    event: str
    timestamp: _Time
    data: Any = None


_decode = msgspec.json.Decoder(_Event).decode


def is_qmp_log(head: bytes) -> bool:
    """Whether a file that begins so has an event of QMP in it, or its greeting."""
    return b"\0" not in head and _EVENT.search(head) is not None


def read_events(path: Path, role: str = "") -> Iterator[Said]:
    """The events of a log. role: whose it is; "" finds out from the events, by reading it once more.

    A last line that is cut is none. CaptureError as open_file. No more than one line is in memory.
    """
    reader = QmpReader(path, role)
    for raw, offset in whole_lines(path, LINE_BYTES_MAX):
        said = reader.read(raw, offset)
        if said is not None:
            yield said


class QmpReader:
    """Makes events of a log out of its lines, one after the other. role: as of read_events."""

    def __init__(self, path: Path, role: str = "") -> None:
        self._path = path
        self._role = role or _role_of(path)

    def read(self, raw: bytes, offset: int) -> Said | None:
        """The event in the line that stands at `offset`."""
        event = _parse(raw)
        return None if event is None else Said(self._role, event, str(self._path), offset, len(raw), QMP_LOG)


def _role_of(path: Path) -> str:
    """The end that the first event of a source tells; of none, the target's."""
    for raw, _ in whole_lines(path, LINE_BYTES_MAX):
        event = _parse(raw)
        if event is not None and (event.event == "MIGRATION_PASS" or event.value in _SOURCES):
            return "source"
    return "target"


def _parse(raw: bytes) -> QmpEvent | None:
    try:
        said = _decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    # QEMU says -1 where it could not find out the time.
    if not (0 <= said.timestamp.seconds < _LAST_S and 0 <= said.timestamp.microseconds < 1_000_000):
        return None
    t = said.timestamp.seconds * 1_000_000_000 + said.timestamp.microseconds * 1000
    status = said.data.get("status") if said.event == "MIGRATION" and isinstance(said.data, dict) else None
    return QmpEvent(t, said.event[:_TEXT_MAX], status[:_TEXT_MAX] if isinstance(status, str) else "")
