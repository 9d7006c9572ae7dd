# SPDX-License-Identifier: GPL-2.0-or-later
"""What may follow what, as tables that both ends obey.

An endpoint of ours feeds every frame that it is about to send, or has just received, to a `Course`;
sender and receiver run on the same table, so neither knows a law that the other does not. The judge
does not use this file: its invariants say the same a second time, and a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from mockdev.errors import LocalProtocolError, RemoteProtocolError
from mockdev.wire.frames import (
    CommandItem,
    ConfigurationItem,
    DescriptionItem,
    DeviceStateFrame,
    EofItem,
    Frame,
    HeaderItem,
    InitFrame,
    RamFrame,
    SectionItem,
)
from mockdev.wire.structs import Command, MultifdFlag, Tag


class Event(Enum):
    """What a frame is, as far as the order of frames is concerned."""

    __hash__ = object.__hash__  # each is one object; the enum's own is slow, and asked for every frame

    INIT = "init packet"
    SYNC = "SYNC packet"
    RAM = "RAM packet"
    DEVICE_STATE = "device-state packet"
    HEADER = "stream header"
    CONFIGURATION = "configuration"
    COMMAND = "command"
    SWITCHOVER = "SWITCHOVER_START"
    START = "section START"
    PART = "section PART"
    END = "section END"
    FULL = "section FULL"
    EOF = "end mark"
    DESCRIPTION = "VM description"
    CLOSE = "close"


class Phase(Enum):
    """Where a channel stands."""

    NEW = "new"
    NAMED = "named, before its first SYNC"
    OPEN = "open"
    CLOSED = "closed"
    BEGUN = "header read"
    SETUP = "setup"
    ITERATE = "iterating"
    SWITCHED = "after SWITCHOVER_START"
    ENDING = "iterables ending"
    DEVICES = "devices"
    ENDED = "ended"
    DESCRIBED = "described"


Table = Mapping[Phase, Mapping[Event, Phase]]

# One multifd connection, from the source. The first packet is a SYNC: pages that arrive before the
# target has set up its RAM crash QEMU's target.
MULTIFD: Table = {
    Phase.NEW: {Event.INIT: Phase.NAMED, Event.CLOSE: Phase.CLOSED},
    Phase.NAMED: {Event.SYNC: Phase.OPEN, Event.CLOSE: Phase.CLOSED},
    Phase.OPEN: {
        Event.SYNC: Phase.OPEN,
        Event.RAM: Phase.OPEN,
        Event.DEVICE_STATE: Phase.OPEN,
        Event.CLOSE: Phase.CLOSED,
    },
    Phase.CLOSED: {},
}

# The main channel, source to target, precopy.
MAIN: Table = {
    Phase.NEW: {Event.HEADER: Phase.BEGUN, Event.CLOSE: Phase.CLOSED},
    Phase.BEGUN: {Event.CONFIGURATION: Phase.SETUP, Event.CLOSE: Phase.CLOSED},
    Phase.SETUP: {
        Event.COMMAND: Phase.SETUP,
        Event.START: Phase.SETUP,
        Event.FULL: Phase.SETUP,  # devices flagged for early set-up
        Event.PART: Phase.ITERATE,
        Event.SWITCHOVER: Phase.SWITCHED,
        Event.END: Phase.ENDING,
        Event.CLOSE: Phase.CLOSED,
    },
    Phase.ITERATE: {
        Event.COMMAND: Phase.ITERATE,
        Event.PART: Phase.ITERATE,
        Event.SWITCHOVER: Phase.SWITCHED,
        Event.END: Phase.ENDING,
        Event.CLOSE: Phase.CLOSED,
    },
    Phase.SWITCHED: {Event.END: Phase.ENDING, Event.CLOSE: Phase.CLOSED},
    Phase.ENDING: {
        Event.END: Phase.ENDING,
        Event.FULL: Phase.DEVICES,
        Event.EOF: Phase.ENDED,
        Event.CLOSE: Phase.CLOSED,
    },
    Phase.DEVICES: {Event.FULL: Phase.DEVICES, Event.EOF: Phase.ENDED, Event.CLOSE: Phase.CLOSED},
    Phase.ENDED: {Event.DESCRIPTION: Phase.DESCRIBED, Event.CLOSE: Phase.CLOSED},
    Phase.DESCRIBED: {Event.CLOSE: Phase.CLOSED},
    Phase.CLOSED: {},
}

SECTIONS = {
    Tag.SECTION_START: Event.START,
    Tag.SECTION_PART: Event.PART,
    Tag.SECTION_END: Event.END,
    Tag.SECTION_FULL: Event.FULL,
}
_BY_TYPE: dict[type[object], Event] = {
    InitFrame: Event.INIT,
    DeviceStateFrame: Event.DEVICE_STATE,
    HeaderItem: Event.HEADER,
    ConfigurationItem: Event.CONFIGURATION,
    EofItem: Event.EOF,
    DescriptionItem: Event.DESCRIPTION,
}


def event_of(frame: Frame) -> Event | None:
    """The event that a frame is, or None when its place is no matter of these tables."""
    if isinstance(frame, RamFrame):
        return Event.SYNC if frame.head.flags & MultifdFlag.SYNC else Event.RAM
    if isinstance(frame, SectionItem):
        return SECTIONS[Tag(frame.tag)]
    if isinstance(frame, CommandItem):
        return Event.SWITCHOVER if frame.command == Command.SWITCHOVER_START else Event.COMMAND
    return _BY_TYPE.get(type(frame))


class Course:
    """One channel's way through its table. name: for messages, "main" or "channel 3"."""

    def __init__(self, table: Table, name: str, *, local: bool) -> None:
        self.table = table
        self.name = name
        self.local = local
        self.phase = Phase.NEW
        self._following = table[Phase.NEW]

    def take(self, event: Event, offset: int = -1) -> None:
        """Go on by `event`. LocalProtocolError when it is we who may not, else RemoteProtocolError."""
        following = self._following.get(event)
        if following is None:
            message = f"{event.value} is not allowed while the channel is {self.phase.value}"
            if self.local:
                raise LocalProtocolError(f"{self.name}: {message}")
            raise RemoteProtocolError(message, channel=self.name, offset=offset, field="order")
        if following is not self.phase:
            self.phase = following
            self._following = self.table[following]

    def take_frame(self, frame: Frame) -> None:
        """`take` for a frame, when its place matters."""
        event = event_of(frame)
        if event is not None:
            self.take(event, frame.offset)
