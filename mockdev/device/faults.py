# SPDX-License-Identifier: GPL-2.0-or-later
"""What is to go wrong in a device, as a value: given when it is made, or later as `device.faults`.

A fault stays: whatever hits its place fails, each time. errno: positive Linux numbers. A place in a stream
is a byte, or an Index: the how-manieth of what the fault counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum
from typing import NamedTuple

from mockdev.faultspec import FaultSpec
from mockdev.vfio.uapi import State


class Index(NamedTuple):
    """A place by its number, from 0."""

    number: int


Place = int | Index


@dataclass(frozen=True)
class ArcFault:
    """The single arc that leads to `to` fails. errno 0: it only takes longer.

    after: the arc's work is done and the state has changed, but its file is lost (as when no fd is free).
    to_error: the device ends in ERROR, which the interface allows and mlx5 never does.
    stall_ns: it takes this much longer, whether it fails or not.
    """

    to: State
    errno: int
    after: bool = False
    to_error: bool = False
    stall_ns: int = 0


@dataclass(frozen=True)
class ByteFault:
    """Something fails at a byte. offset: see where it is used."""

    offset: Place
    errno: int


@dataclass(frozen=True)
class SaveFault:
    """The SAVE command whose image holds byte `offset` of the state fails.

    bad_resource: with firmware's "bad resource state", and only before the stop: the device can still be
    saved in STOP_COPY, as a whole.
    """

    offset: int
    bad_resource: bool = False


@dataclass(frozen=True)
class Stall:
    """Something takes `stall_ns` longer at a place, once in a session."""

    offset: Place
    stall_ns: int


@dataclass(frozen=True)
class ShortReads:
    """From a place on, no read gives more than `size` bytes (1 or more)."""

    offset: Place
    size: int


class Blow(Enum):
    """What can befall a device as a whole."""

    RESET = "reset"
    DETACH = "detach"


@dataclass(frozen=True)
class Strike:
    """A blow while state is saved or loaded: at a byte of the stream, or at a time.

    after_ns, when given, counts instead of the byte: from when the device was stopped to be saved, or from
    the first write of its state.
    """

    blow: Blow
    offset: int = 0
    after_ns: int | None = None


@dataclass(frozen=True)
class Faults:
    """All faults of one device.

    Of the save file, by offset in its stream or by the number of a read after the stop: read (what lies
    before can be read), eof (a false end), read_stall, short_reads.
    Of loading, by offset in the state or by the number of a LOAD: load, load_stall.
    config: errno of loading the PCI config. precopy: errno of the question for PRE_COPY's sizes;
    precopy_endless: its answer never shrinks; precopy_reinit: it always says "begun anew".
    data_size: errno of MIG_DATA_SIZE; data_size_says: its answer. tracker: errno of a report of dirty pages.
    """

    arcs: tuple[ArcFault, ...] = ()
    read: ByteFault | None = None
    save: SaveFault | None = None
    load: ByteFault | None = None
    config: int | None = None
    precopy: int | None = None
    eof: Place | None = None
    read_stall: Stall | None = None
    short_reads: ShortReads | None = None
    load_stall: Stall | None = None
    config_stall_ns: int = 0
    precopy_endless: bool = False
    precopy_reinit: bool = False
    data_size: int | None = None
    data_size_says: int | None = None
    tracker: int | None = None
    strikes: tuple[Strike, ...] = ()

    def arc(self, to: State) -> ArcFault | None:
        """The fault of the arc that leads to this state."""
        return next((fault for fault in self.arcs if fault.to is to), None)


NO_FAULTS = Faults()


def device_faults(specs: Iterable[FaultSpec], role: str, number: int) -> Faults:
    """The faults that these specs have for device `number` at this end; a later one replaces its like."""
    faults = NO_FAULTS
    for spec in specs:
        if spec.place.startswith("vfN") and spec.role == role and spec.number == number:
            faults = with_fault(faults, spec)
    return faults


def with_fault(faults: Faults, spec: FaultSpec) -> Faults:
    """`faults` and one more, whose place begins with vfN; it replaces its like."""
    value = spec.value
    match spec.place, spec.what:
        case "vfN", what:
            strike = Strike(Blow(what), _byte(spec))
            if spec.when is not None and spec.when.kind == "time":
                strike = Strike(Blow(what), after_ns=spec.when.value)
            others = tuple(other for other in faults.strikes if other.blow is not strike.blow)
            return replace(faults, strikes=(*others, strike))
        case "vfN.save", "stall":
            return replace(faults, read_stall=Stall(_place(spec), value))
        case "vfN.save", "short":
            return replace(faults, short_reads=ShortReads(_place(spec), value))
        case "vfN.save", "eof":
            return replace(faults, eof=_place(spec))
        case "vfN.save", "fail" | "bad-resource":
            return replace(faults, save=SaveFault(_byte(spec), spec.what == "bad-resource"))
        case "vfN.save", _:
            return replace(faults, read=ByteFault(_place(spec), value))
        case "vfN.load", "stall":
            return replace(faults, load_stall=Stall(_place(spec), value))
        case "vfN.load", _:
            return replace(faults, load=ByteFault(_place(spec), value))
        case "vfN.arc.STATE", _:
            return _with_arc(faults, spec)
        case "vfN.config", "stall":
            return replace(faults, config_stall_ns=value)
        case "vfN.config", _:
            return replace(faults, config=value)
        case "vfN.precopy", "endless":
            return replace(faults, precopy_endless=True)
        case "vfN.precopy", "reinit":
            return replace(faults, precopy_reinit=True)
        case "vfN.precopy", _:
            return replace(faults, precopy=value)
        case "vfN.data-size", "says":
            return replace(faults, data_size_says=value)
        case "vfN.data-size", _:
            return replace(faults, data_size=value)
        case "vfN.tracker", _:
            return replace(faults, tracker=value)
    raise ValueError(f"{spec} is not a device's fault")


def _with_arc(faults: Faults, spec: FaultSpec) -> Faults:
    to = State[spec.state]
    old = faults.arc(to) or ArcFault(to, 0)
    if spec.what == "stall":
        new = replace(old, stall_ns=spec.value)
    else:
        new = replace(old, errno=spec.value, after=spec.what == "after", to_error=spec.what == "error")
    return replace(faults, arcs=(*(arc for arc in faults.arcs if arc.to is not to), new))


def _place(spec: FaultSpec) -> Place:
    if spec.when is None:
        return 0
    return Index(spec.when.value) if spec.when.kind == "index" else spec.when.value


def _byte(spec: FaultSpec) -> int:
    return spec.when.value if spec.when is not None and spec.when.kind == "byte" else 0
