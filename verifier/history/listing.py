# SPDX-License-Identifier: GPL-2.0-or-later
"""Decodes a capture, or journals and trace logs, to one JSON-ready object per frame, to the last byte.

    list_capture(path, print)

The keys are the field names of the layouts in `mockdev.wire.structs`. What cannot be decoded becomes an
entry too, so the sizes of a flow's entries and their payloads add up to the flow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import msgspec

from mockdev.journal import JournalError, Line
from mockdev.wire.frames import (
    CommandItem,
    DeviceStateFrame,
    FooterItem,
    InitFrame,
    RamFrame,
    RamRecordItem,
    ReturnPathItem,
    SectionItem,
    VfioItem,
)
from mockdev.wire.structs import Command, RamFlag, ReturnPath, Tag, VfioTag
from verifier.capture.pcapng import open_capture
from verifier.history.history import History
from verifier.history.journals import read_journal
from verifier.history.merge import Lines
from verifier.history.observation import Broken, Observation, Said, Seen, text
from verifier.history.qmp import read_events
from verifier.history.traces import read_traces

Entry = dict[str, Any]
_SHOWN_BYTES_MAX = 64


def list_capture(path: str | PathLike[str], emit: Callable[[Entry], None]) -> None:
    """Call `emit` with an entry for everything that is seen in a capture. CaptureError as open_capture."""

    class Emitter:
        def on(self, seen: Observation) -> None:
            if isinstance(seen, Seen):
                emit(entry_of(seen))

    history = History(lambda _: Emitter())
    with open_capture(path) as capture:
        history.read_capture(capture)
        for decoder in history.decoders:
            if decoder.undecodable or decoder.lost:
                emit(
                    {
                        "flow": decoder.lane.name,
                        "kind": "Rest",
                        "lost_bytes": decoder.lost,
                        "undecodable_bytes": decoder.undecodable,
                        "why": decoder.why or decoder.lane.why,
                    }
                )
        if capture.truncated:
            emit({"flow": "", "kind": "Truncated", "why": capture.truncated})
        history.close()


def list_journals(paths: Iterable[str | PathLike[str]], emit: Callable[[Entry], None]) -> None:
    """Call `emit` with an entry for every line of some journals, by time.

    JournalError as read_journal, and on one without any whole line.
    """
    list_lines(paths, {}, emit)


def list_lines(
    journals: Iterable[str | PathLike[str]],
    logs: Mapping[str, str | PathLike[str]],
    emit: Callable[[Entry], None],
    events: Mapping[str, str | PathLike[str]] | None = None,
) -> None:
    """Call `emit` with an entry for every line of some journals, trace logs and QMP logs, by time.

    logs, events: trace logs, QMP logs by the end that wrote them, "" where only the log itself can tell. A
    log without times comes first. Errors as list_journals.
    """
    readers = [_some(Path(path)) for path in journals]
    readers += [read_traces(Path(path), role) for role, path in logs.items()]
    readers += [read_events(Path(path), role) for role, path in (events or {}).items()]
    for said in Lines(readers).rest():
        line = said.line
        fields = msgspec.to_builtins(line) if isinstance(line, Line) else line._asdict()
        emit({"flow": f"{said.role} {said.where}", "offset": said.offset, "size": said.size, **fields})


def _some(path: Path) -> Iterator[Said]:
    said = None
    for said in read_journal(path):
        yield said
    if said is None:
        raise JournalError(f"{path} holds no whole line of a journal")


def entry_of(seen: Seen) -> Entry:
    """One observation as plain values."""
    event = seen.event
    entry: Entry = {
        "flow": seen.lane.name,
        "time_ns": seen.time_ns,
        "offset": event.offset,
        "size": event.size,
        "kind": type(event).__name__,
    }
    if isinstance(event, Broken):
        return entry | {"field": event.error.field, "message": event.error.message}
    for name in event.__struct_fields__:
        value = getattr(event, name)
        if name in ("offset", "size"):
            continue
        if isinstance(value, tuple) and hasattr(value, "_asdict"):
            entry |= {f"{name}.{field}": _plain(inner) for field, inner in value._asdict().items()}
        else:
            entry[name] = _plain(value)
    return entry | _names(event)


def _names(event: object) -> Entry:
    """What the numbers of an event are called."""
    if isinstance(event, SectionItem | FooterItem):
        return {"tag_name": Tag(event.tag).name}
    if isinstance(event, CommandItem):
        known = event.command in Command._value2member_map_
        return {"command_name": Command(event.command).name if known else "?"}
    if isinstance(event, RamRecordItem):
        return {"flags_name": "|".join(flag.name for flag in RamFlag if event.flags & flag)}
    if isinstance(event, VfioItem):
        return {"tag_name": VfioTag(event.tag).name}
    if isinstance(event, ReturnPathItem):
        return {"type_name": ReturnPath(event.type).name}
    if isinstance(event, RamFrame):
        return {"head.ramblock": text(event.head.ramblock)}
    if isinstance(event, DeviceStateFrame):
        return {"head.idstr": text(event.head.idstr)}
    if isinstance(event, InitFrame):
        return {"head.uuid": event.head.uuid.hex()}
    return {}


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        shown = value.rstrip(b"\0")
        return shown[:_SHOWN_BYTES_MAX].hex() + ("..." if len(shown) > _SHOWN_BYTES_MAX else "")
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value
