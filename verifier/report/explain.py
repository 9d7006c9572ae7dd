# SPDX-License-Identifier: GPL-2.0-or-later
"""Shows a violation's witnesses: what each is, its first bytes, and the fields of the struct they are.

A capture is read once more for it, and only where a witness lies in one: until all is judged nobody knows
which frames will be witnesses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mockdev.errors import VfmigError
from mockdev.wire.frames import (
    CommandItem,
    DeviceStateFrame,
    FooterItem,
    HeaderItem,
    InitFrame,
    RamFrame,
    ReturnPathItem,
    SectionItem,
    VfioItem,
)
from mockdev.wire.layout import Layout
from mockdev.wire.structs import (
    MULTIFD_DEVICE_STATE,
    MULTIFD_HEAD,
    MULTIFD_INIT,
    MULTIFD_RAM,
    NUMBER64,
    SECTION_REF,
    STREAM_HEADER,
    TYPE_LENGTH,
    VFIO_DEVICE_STATE,
    Tag,
)
from verifier.capture.flows import Lane, Role
from verifier.capture.opening import open_file
from verifier.capture.pcapng import open_capture
from verifier.capture.reassembly import reassemble
from verifier.capture.stream import Flow
from verifier.history.decode import FlowDecoder
from verifier.history.history import History
from verifier.history.listing import entry_of
from verifier.history.observation import Broken, BufferDone, Observation, Seen, text
from verifier.report.text import fields_text
from verifier.verdict import Violation, Witness

VIOLATIONS_SHOWN = 60
_OF_ONE_SHOWN = 4  # of one invariant: one cause often breaks one thing many times
WITNESSES_SHOWN = 5
_DUMP_BYTES = 352  # a device-state packet's head with what VFIO begins its payload with, and some of that
_LINE_BYTES = 600
_ROW = 16
_FOLDED_ROWS = 3  # as many like rows or more are shown as one


class Field(NamedTuple):
    """A field of a struct in a witness. offset, size: bytes from the witness's first."""

    struct: str
    name: str
    offset: int
    size: int
    value: str


class Sight(NamedTuple):
    """What a witness shows. told: what it is, in words; data: its first bytes (of a line: its text).

    fields: what the bytes mean; missing: why bytes are not there, "" when they are.
    """

    witness: Witness
    told: str
    data: bytes = b""
    fields: tuple[Field, ...] = ()
    line: str = ""
    missing: str = ""


def shown_of(violations: Sequence[Violation]) -> list[Violation]:
    """Those that a page has room for: the first few of each invariant."""
    counts: Counter[str] = Counter()
    shown = []
    for violation in violations:
        counts[violation.id] += 1
        if counts[violation.id] <= _OF_ONE_SHOWN:
            shown.append(violation)
    return shown[:VIOLATIONS_SHOWN]


def sights_of(violations: Sequence[Violation], *, one_target: bool) -> list[list[Sight]]:
    """The sights of each violation's first witnesses. one_target: as the history that judged them had it."""
    shown = [violation.witnesses[:WITNESSES_SHOWN] for violation in violations]
    asked: dict[str, dict[Witness, _Ask]] = {}
    for witness in (witness for witnesses in shown for witness in witnesses):
        if not _is_line(witness):
            asked.setdefault(witness.file, {}).setdefault(witness, _Ask(witness))
    problems = {file: _look(Path(file), asks.values(), one_target) for file, asks in asked.items()}
    return [
        [
            _sight_of_line(witness)
            if _is_line(witness)
            else asked[witness.file][witness].sight(problems[witness.file])
            for witness in witnesses
        ]
        for witnesses in shown
    ]


def ends_of(witness: Witness) -> str:
    """The two ends of a witness's flow, as `str(lane)` has them."""
    flow = witness.flow
    return flow[flow.rindex(" (") + 2 : -1] if flow.endswith(")") and " (" in flow else flow


def dump(data: bytes, fields: Sequence[Field] = ()) -> Iterator[str]:
    """Lines of 16 bytes, each with the names of the fields that begin in it; like rows become one."""
    rows = range(0, len(data), _ROW)
    at = 0
    while at < len(rows):
        row = data[rows[at] :][:_ROW]
        same = 1
        while (
            at + same < len(rows)
            and data[rows[at + same] :][:_ROW] == row
            and not _names(fields, rows[at + same])
        ):
            same += 1
        text_ = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in row)
        names = ", ".join(_names(fields, rows[at]))
        yield f"{rows[at]:6x}  {row[:8].hex(' '):<23}  {row[8:].hex(' '):<23}  {text_:<16}  {names}".rstrip()
        if same >= _FOLDED_ROWS:
            yield f"{'*':>6}  the same {same - 1} times more"
        at += same if same >= _FOLDED_ROWS else 1


def _names(fields: Sequence[Field], offset: int) -> list[str]:
    return [field.name for field in fields if offset <= field.offset < offset + _ROW]


# --- witnesses in a capture -------------------------------------------------------------------------


class _Ask:
    """What is asked of one witness, and what was found. It takes the stream's bytes as they come."""

    def __init__(self, witness: Witness) -> None:
        self.witness = witness
        self.start = witness.offset
        self.stop = witness.offset + min(witness.size, _DUMP_BYTES)
        self.data = b""
        self.seen: Seen | None = None

    def take(self, at: int, data: memoryview) -> None:
        """Bytes of the flow at `at`. What follows a hole is not taken."""
        next_ = self.start + len(self.data)
        if at <= next_ < min(self.stop, at + len(data)):
            self.data += data[next_ - at : self.stop - at]

    def sight(self, problem: str) -> Sight:
        """What came of it."""
        if self.seen is None:
            return Sight(self.witness, "", self.data, missing=problem or "it is not found there again")
        entry = entry_of(self.seen)
        device = f" of {self.seen.device}" if self.seen.device else ""
        told = f"{_WORDS.get(entry['kind'], entry['kind'])}{device}: {fields_text(entry)}"
        missing = "" if len(self.data) == self.stop - self.start else "the rest of it is not in the capture"
        return Sight(self.witness, told, self.data, tuple(_fields(self.seen, self.data)), missing=missing)


class _Tee:
    """A decoder that lets some of the bytes that pass be kept."""

    def __init__(self, decoder: FlowDecoder, asks: list[_Ask], view: memoryview) -> None:
        self._decoder = decoder
        self._asks = sorted(asks, key=lambda ask: ask.start)
        self._view = view
        self._at = 0

    def data(self, start: int, stop: int, time_ns: int, /) -> None:
        end = self._at + stop - start
        for ask in self._asks:
            if ask.start >= end:
                break
            ask.take(self._at, self._view[start:stop])
        while self._asks and self._asks[0].stop <= end:
            del self._asks[0]
        self._at = end
        self._decoder.data(start, stop, time_ns)

    def hole(self, size: int, reason: str, time_ns: int, note: str, /) -> None:
        self._at += size
        self._decoder.hole(size, reason, time_ns, note)

    def end(self, kind: str, time_ns: int, /) -> None:
        self._decoder.end(kind, time_ns)


def _look(path: Path, asks: Iterable[_Ask], one_target: bool) -> str:
    """Read the capture again for what is asked; "" or why it could not be."""
    by_ends: dict[str, list[_Ask]] = {}
    for ask in asks:
        by_ends.setdefault(ends_of(ask.witness), []).append(ask)
    places: dict[tuple[str, int], list[_Ask]] = {}
    for ends, some in by_ends.items():
        for ask in some:
            places.setdefault((ends, ask.start), []).append(ask)
    names: dict[Lane, str] = {}

    class Finder:
        def on(self, seen: Observation) -> None:
            if not isinstance(seen, Seen):
                return
            lane = seen.lane
            name = names.get(lane)
            if name is None:
                name = names[lane] = str(lane)
            for ask in places.get((name, seen.event.offset), ()):
                witness = ask.witness
                same = (seen.event.size, seen.time_ns) == (witness.size, witness.time_ns)
                if same and (ask.seen is None or type(ask.seen.event) not in _PLACES):
                    ask.seen = seen

    history = History(lambda _: Finder(), one_target=one_target)
    try:
        with open_capture(path) as capture:
            history.open(capture.data)
            view = memoryview(capture.data)

            def sink(flow: Flow) -> FlowDecoder | _Tee:
                wanted = by_ends.get(f"{flow.source} > {flow.destination}")
                decoder = history.sink(flow)
                return _Tee(decoder, wanted, view) if wanted else decoder

            reassemble(capture, sink)
            history.end_capture()
            view.release()
            history.close()
    except (VfmigError, OSError) as error:
        return str(error)
    return ""


_WORDS = {
    "InitFrame": "the first packet of a multifd channel",
    "RamFrame": "a RAM packet",
    "DeviceStateFrame": "a device-state packet",
    "BufferDone": "the end of a device-state packet",
    "HeaderItem": "the stream's header",
    "ConfigurationItem": "the configuration section",
    "SectionItem": "the head of a section",
    "FooterItem": "the end of a section",
    "CommandItem": "a command",
    "VfioItem": "a VFIO tag",
    "RamRecordItem": "a RAM record",
    "RamBlocksItem": "the list of RAM blocks",
    "ReturnPathItem": "a message of the return path",
    "EofItem": "the end of the stream",
    "DescriptionItem": "the stream's description",
    "TrailingItem": "bytes behind the end of the stream",
    "Broken": "bytes that cannot be read",
    "Hole": "bytes that are not in the capture",
    "FlowEnd": "the end of the flow",
}

_TAG = "tag"
_Place = tuple[int, Layout[Any] | str]
_PLACES: dict[type, tuple[_Place, ...]] = {
    InitFrame: ((0, MULTIFD_INIT),),
    RamFrame: ((0, MULTIFD_RAM),),
    DeviceStateFrame: ((0, MULTIFD_DEVICE_STATE), (MULTIFD_DEVICE_STATE.size, VFIO_DEVICE_STATE)),
    BufferDone: ((0, MULTIFD_DEVICE_STATE), (MULTIFD_DEVICE_STATE.size, VFIO_DEVICE_STATE)),
    HeaderItem: ((0, STREAM_HEADER),),
    CommandItem: ((0, _TAG), (1, TYPE_LENGTH)),
    SectionItem: ((0, _TAG), (1, SECTION_REF)),
    FooterItem: ((0, _TAG), (1, SECTION_REF)),
    VfioItem: ((0, NUMBER64),),
    ReturnPathItem: ((0, TYPE_LENGTH),),
}


def _fields(seen: Seen, data: bytes) -> Iterator[Field]:
    """The fields of a frame's head that are whole in `data`."""
    places = _PLACES.get(type(seen.event), ())
    if isinstance(seen.event, Broken) and seen.lane.role is Role.CHANNEL:
        places = ((0, MULTIFD_HEAD),)
    for at, layout in places:
        if isinstance(layout, str):
            if data:
                known = data[0] in Tag._value2member_map_
                yield Field("", layout, 0, 1, f"{data[0]:#04x} {Tag(data[0]).name if known else ''}".strip())
            continue
        if len(data) < at + layout.size:
            return
        record = layout.unpack(data, at)
        for place, value in zip(layout.fields, record, strict=True):
            yield Field(layout.c_name, place.name, at + place.offset, place.size, _value(value))


def _value(value: object) -> str:
    if isinstance(value, int):
        return f"{value} ({value:#x})" if value > 9 else str(value)
    assert isinstance(value, bytes)
    shown = value.rstrip(b"\0")
    if not shown:
        return f"{len(value)} zero bytes"
    return f'"{text(value)}"' if shown.isascii() and shown.decode().isprintable() else shown.hex(" ")


# --- witnesses in journals, logs and the record -----------------------------------------------------


def _is_line(witness: Witness) -> bool:
    return " > " not in witness.flow


def _sight_of_line(witness: Witness) -> Sight:
    """The line itself; of a run.json nothing, for its text is all of it."""
    if witness.flow.endswith("run record"):
        role = witness.flow.partition(" ")[0]
        return Sight(witness, f"what the run's record says of the {role}")
    told = f"a line of the {witness.flow}"
    try:
        with open_file(Path(witness.file)) as file:
            file.seek(witness.offset)
            raw = file.read(min(witness.size, _LINE_BYTES))
    except (VfmigError, OSError) as error:
        return Sight(witness, told, missing=str(error))
    line = raw.decode("utf-8", "backslashreplace").rstrip("\n")
    return Sight(witness, told, line=line + (" ..." if witness.size > _LINE_BYTES else ""))
