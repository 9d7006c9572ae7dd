# SPDX-License-Identifier: GPL-2.0-or-later
"""What a user asks to go wrong, as text: `WHERE:WHAT[@WHEN]`, such as `target.vf0.load:eio@2MiB`.

`FAULTS` says what can go wrong where; the parser, the messages and `--list-faults` read that one table.
Who carries a fault out: a device (device/faults.py), the relay between the ends (lab/relay.py), the link
between two hosts (lab/netns.py), or whoever started the process.

In the table and in messages N is a number from 0, STATE a migration state, ERRNO the name of an error,
TIME such as 500ms, SIZE such as 2MiB. WHEN is a byte (2MiB), a number of something counted from 0 (#3), or
a time after switchover (+100ms); without it a fault strikes as soon as it can.
"""

from __future__ import annotations

import errno as errno_names
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Literal, NamedTuple

from mockdev.errors import VfmigError
from mockdev.vfio.uapi import State

Role = Literal["source", "target", ""]

TIME_NS_MAX = 3600 * 10**9
_NUMBER_MAX = 2**63 - 1
_BYTES, _PACKET, _MESSAGE, _TIME = "SIZE", "#PACKET", "#MESSAGE", "+TIME"
_BUFFER, _RECORD, _ITEM = "#BUFFER", "#RECORD", "#ITEM"


class FaultSpecError(VfmigError):
    """A text that is no fault; the message names it, what is wrong with it, and what is allowed."""


class Ends(Enum):
    """Whether a fault names the end that it strikes."""

    ONE = "source. or target. stands before it"
    ANY = "source. or target. before it; both without"
    NEITHER = "neither source. nor target. before it"


class Fault(NamedTuple):
    """A line of the table. whats: spellings like "eio", "stall=TIME"; whens: kinds of WHEN it may have."""

    where: str
    what: str
    whens: tuple[str, ...]
    ends: Ends
    sentence: str

    @property
    def form(self) -> str:
        """How to write it: "vfN.load:ERRNO[@SIZE|@#RECORD]"."""
        whens = "|".join(f"@{when}" for when in self.whens)
        return f"{self.where}:{self.what}" + (f"[{whens}]" if whens else "")

    @property
    def name(self) -> str:
        """The word of `what`, without its value; "" for the bare name of an errno."""
        return "" if self.what == "ERRNO" else self.what.partition("=")[0]


def _device(place: str, what: str, whens: tuple[str, ...], sentence: str) -> Fault:
    return Fault("vfN" + place, what, whens, Ends.ONE, sentence)


def _carried(place: str, what: str, whens: tuple[str, ...], sentence: str) -> Fault:
    return Fault(
        place, what, whens, Ends.NEITHER if what != "close" or place == "return-path" else Ends.ANY, sentence
    )


_SAVED = (_BYTES, _BUFFER)
_LOADED = (_BYTES, _RECORD)
_ON_CHANNEL = (_BYTES, _PACKET, _TIME)
_ON_MAIN = (_BYTES, _ITEM, _TIME)
_ON_RETURN = (_BYTES, _MESSAGE, _TIME)

FAULTS = (
    _device("", "reset", (_BYTES, _TIME), "The device is reset while its state is saved or loaded."),
    _device("", "detach", (_BYTES, _TIME), "The PF goes away: sessions end, commands fail with ENOTCONN."),
    _device(".save", "ERRNO", _SAVED, "Reading the state fails at this byte of the stream or this buffer."),
    _device(".save", "stall=TIME", _SAVED, "Nothing can be read for a while."),
    _device(".save", "short=SIZE", _SAVED, "From there on a read gives at most this many bytes."),
    _device(".save", "eof", _SAVED, "The stream ends there, as if all had been saved."),
    _device(".save", "fail", (_BYTES,), "The SAVE command whose image holds this byte of the state fails."),
    _device(
        ".save", "bad-resource", (_BYTES,), "A SAVE before the stop fails with firmware's bad resource state."
    ),
    _device(".load", "ERRNO", _LOADED, "The LOAD command that takes this byte of the state or record fails."),
    _device(".load", "stall=TIME", _LOADED, "The LOAD command takes this much longer."),
    _device(".arc.STATE", "ERRNO", (), "The arc that leads to this state fails before it has any effect."),
    _device(".arc.STATE", "after=ERRNO", (), "The arc is done and then fails: its file is lost."),
    _device(".arc.STATE", "error=ERRNO", (), "The arc fails and leaves the device in state ERROR."),
    _device(".arc.STATE", "stall=TIME", (), "The arc takes this much longer."),
    _device(".config", "ERRNO", (), "Loading the PCI config fails."),
    _device(".config", "stall=TIME", (), "Loading the PCI config takes this much longer."),
    _device(".precopy", "ERRNO", (), "The question how much PRE_COPY still has fails."),
    _device(".precopy", "endless", (), "PRE_COPY never converges: it always has a whole state to send."),
    _device(".precopy", "reinit", (), "PRE_COPY begins anew at every question (seen by INFOv2 callers)."),
    _device(".data-size", "ERRNO", (), "MIG_DATA_SIZE fails."),
    _device(".data-size", "says=SIZE", (), "MIG_DATA_SIZE answers with this, 0 or huge as you like."),
    _device(".tracker", "ERRNO", (), "The tracker of dirty pages fails: no report can be had."),
    _carried("channel.N", "close", _ON_CHANNEL, "The connection ends there, at one end or at both."),
    _carried("channel.N", "stall=TIME", _ON_CHANNEL, "Nothing passes for a while."),
    _carried("channel.N", "flip=BIT", _ON_CHANNEL, "A bit is turned; BIT counts from there, lowest first."),
    _carried("channel.N", "drop", _ON_CHANNEL, "The packet that holds this byte is left out."),
    _carried("channel.N", "double", _ON_CHANNEL, "The packet that holds this byte comes twice."),
    _carried("channel.N", "cut", _ON_CHANNEL, "From this byte on the packet is left out; the next follows."),
    _carried("main", "close", _ON_MAIN, "The main connection ends there, at one end or at both."),
    _carried("main", "stall=TIME", _ON_MAIN, "Nothing passes from source to target for a while."),
    _carried("main", "flip=BIT", _ON_MAIN, "A bit is turned; BIT counts from there, lowest first."),
    _carried("main", "drop", _ON_MAIN, "The item (a command, a section's head, a page) there is left out."),
    _carried("main", "double", _ON_MAIN, "The item that holds this byte comes twice."),
    _carried("main", "cut", _ON_MAIN, "From this byte on the item is left out; the next one follows."),
    _carried("return-path", "close", _ON_RETURN, "The return path ends there; the main channel goes on."),
    _carried("return-path", "stall=TIME", _ON_RETURN, "Nothing passes from target to source for a while."),
    _carried("return-path", "flip=BIT", _ON_RETURN, "A bit is turned; BIT counts from there, lowest first."),
    _carried("return-path", "drop", _ON_RETURN, "Whatever the target says from there on is lost."),
    _carried("link", "down", (_TIME,), "The link between two hosts (--netns) is cut."),
    _carried("link", "flap=TIME", (_TIME,), "The link is cut for a while."),
    _carried("link", "rate=SIZE", (_TIME,), "The link carries this many bytes a second from then on."),
    _carried("link", "delay=TIME", (_TIME,), "The link takes this much longer each way from then on."),
    Fault("supervisor", "kill", (_TIME,), Ends.ANY, "The process that stands behind a QEMU's devices dies."),
    Fault("process", "kill", (_TIME,), Ends.ANY, "The endpoint itself, QEMU or mock, dies."),
    Fault("process", "cancel", (_TIME,), Ends.ONE, "The migration is called off at this end."),
)


class When(NamedTuple):
    """kind "byte", "index" (both from 0) or "time" (value in ns after switchover)."""

    kind: Literal["byte", "index", "time"]
    value: int


@dataclass(frozen=True)
class FaultSpec:
    """A parsed fault.

    role: "source", "target" or "" (both, or neither end). place: as in the table, "vfN.load"; number: its N;
    state: its STATE, by name. what: the table's word, "" for a bare errno. value: an errno's positive
    number, nanoseconds, bytes or a bit; 0 when there is none.
    """

    role: Role
    place: str
    number: int | None
    state: str
    what: str
    value: int
    when: When | None
    text: str

    def __str__(self) -> str:
        return self.text


def parse(text: str, here: Role = "") -> FaultSpec:
    """The fault that `text` says. here: the end that is meant when it names none, as for one supervisor.

    FaultSpecError when it is none.
    """
    where, colon, rest = text.strip().partition(":")
    if not colon or not where or not rest:
        raise _wrong(text, "write WHERE:WHAT or WHERE:WHAT@WHEN, such as target.vf0.load:eio@2MiB")
    role, place, number, state = _where(text, where)
    what, at, moment = rest.partition("@")
    fault, value = _what(text, where, place, what)
    if fault.ends is Ends.NEITHER and role:
        raise _wrong(text, f"{fault.form} lies between the two ends: leave out {role!r}")
    if not role and fault.ends is not Ends.NEITHER and place not in _CARRIED:
        role = here
    if fault.ends is Ends.ONE and not role:
        raise _wrong(text, f"at which end? Write source.{text} or target.{text}")
    if here and role and role != here and place not in _CARRIED:
        raise _wrong(text, f"this is the {here}")
    when = _when(text, fault, moment) if at else None
    return FaultSpec(role, place, number, state, fault.name, value, when, text)


def parse_all(texts: Iterable[str], vfs: int, channels: int) -> tuple[FaultSpec, ...]:
    """The faults of a run with that many devices and channels. FaultSpecError: not for this run, or twice."""
    specs = tuple(map(parse, texts))
    seen: dict[tuple[object, ...], FaultSpec] = {}
    for spec in specs:
        name, count = ("vf", vfs) if spec.place.startswith("vf") else ("channel ", channels)
        if spec.number is not None and spec.number >= count:
            known = f"{name}0 to {name}{count - 1}" if count else "none"
            raise _wrong(spec.text, f"there is no {name}{spec.number} in this run; there is {known}")
        key = (spec.role, spec.place, spec.number, spec.state, spec.what)
        if spec.place not in _CARRIED and key in seen:
            raise _wrong(spec.text, f"this place has a fault of this kind already: {seen[key]}")
        seen[key] = spec
    return specs


def _wrong(text: str, why: str) -> FaultSpecError:
    return FaultSpecError(f"fault {text!r}: {why}")


# -- WHERE -------------------------------------------------------------------------------------------

_PLACES = tuple(dict.fromkeys(fault.where for fault in FAULTS))
_CARRIED = tuple(place for place in _PLACES if place in ("channel.N", "main", "return-path", "link"))
_STATES = tuple(state.name for state in State if state is not State.ERROR)


def _where(text: str, where: str) -> tuple[Role, str, int | None, str]:
    """(role, place as in the table, N, STATE)."""
    role: Role = ""
    first, dot, rest = where.partition(".")
    if dot and (first == "source" or first == "target"):
        role, where = ("source" if first == "source" else "target"), rest
    parts = where.split(".")
    number: int | None = None
    state = ""
    if found := re.fullmatch(r"vf(\d{1,3})", parts[0]):
        number, parts[0] = int(found[1]), "vfN"
        if parts[1:2] == ["arc"] and len(parts) == 3:
            state, parts[2] = parts[2].upper(), "STATE"
    elif parts[0] == "channel" and len(parts) == 2 and re.fullmatch(r"\d{1,3}", parts[1]):
        number, parts[1] = int(parts[1]), "N"
    place = ".".join(parts)
    if place not in _PLACES:
        raise _wrong(text, f"no place is called {where!r}; there are {', '.join(_PLACES)}")
    if state and state not in _STATES:
        raise _wrong(text, f"no arc leads to {state!r}; there are {', '.join(_STATES)}")
    return role, place, number, state


# -- WHAT --------------------------------------------------------------------------------------------


def _what(text: str, where: str, place: str, what: str) -> tuple[Fault, int]:
    """The line of the table, and the value."""
    here = [fault for fault in FAULTS if fault.where == place]
    name, equals, value = what.partition("=")
    for fault in here:
        if fault.name == name and fault.name:
            wanted = fault.what.partition("=")[2]
            if bool(wanted) is not bool(equals and value):
                needs = f"{name} needs a value: {fault.what}" if wanted else f"{name} takes no value"
                raise _wrong(text, needs)
            if fault.what == "short=SIZE" and value.strip("0") == "":
                raise _wrong(text, "a read of no bytes would be the end: write short=1 or more, or eof")
            return fault, _VALUES[wanted](text, value) if wanted else 0
    bare = next((fault for fault in here if not fault.name), None)
    if bare is not None and not equals and name.upper() in _ERRNOS:
        return bare, _ERRNOS[name.upper()]
    allowed = ", ".join(fault.what for fault in here)
    raise _wrong(text, f"{where} cannot have {what!r}; it can have {allowed}")


_ERRNOS = {name: number for number, name in errno_names.errorcode.items()} | {
    "EWOULDBLOCK": errno_names.EAGAIN,
    "ENOTSUP": errno_names.EOPNOTSUPP,
}
_SIZE_UNITS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}
_DECIMAL_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_TIME_UNITS = {"us": 10**3, "ms": 10**6, "s": 10**9}


def _errno(text: str, value: str) -> int:
    if value.upper() not in _ERRNOS:
        raise _wrong(text, f"no error is called {value!r}; write a name such as eio, enomem or enodev")
    return _ERRNOS[value.upper()]


def _size(text: str, value: str) -> int:
    found = re.fullmatch(r"(\d{1,19}(?:\.\d{1,9})?)([a-z]*)", value.lower())
    unit = None
    if found:
        unit = _DECIMAL_UNITS.get(found[2]) or (1 << _SIZE_UNITS.get(found[2].removesuffix("ib"), 64))
    if found is None or unit is None or unit > 1 << 40:
        raise _wrong(text, f"{value!r} is no size; write 4096, 64KiB, 2MiB or 1GB")
    return _bounded(text, int(float(found[1]) * unit) if "." in found[1] else int(found[1]) * unit)


def _time(text: str, value: str) -> int:
    found = re.fullmatch(r"(\d{1,12}(?:\.\d{1,9})?)(us|ms|s)", value.lower())
    if found is None:
        raise _wrong(text, f"{value!r} is no time; write 500ms, 2s or 250us")
    time_ns = round(float(found[1]) * _TIME_UNITS[found[2]])
    if time_ns > TIME_NS_MAX:
        raise _wrong(text, f"{value} is more than an hour, which is the most")
    return time_ns


def _number(text: str, value: str) -> int:
    if not re.fullmatch(r"\d{1,19}", value):
        raise _wrong(text, f"{value!r} is no number")
    return _bounded(text, int(value))


def _bounded(text: str, value: int) -> int:
    if value > _NUMBER_MAX:
        raise _wrong(text, f"{value} is more than {_NUMBER_MAX}")
    return value


_VALUES: dict[str, Callable[[str, str], int]] = {
    "ERRNO": _errno,
    "SIZE": _size,
    "TIME": _time,
    "BIT": _number,
}


# -- WHEN --------------------------------------------------------------------------------------------


def _when(text: str, fault: Fault, moment: str) -> When:
    if moment.startswith("#"):
        kind, value = "#", moment[1:]
    elif moment.startswith("+"):
        kind, value = "+", moment[1:]
    else:
        kind, value = "", moment
    if not fault.whens:
        raise _wrong(text, f"{fault.form} strikes every time: leave out '@{moment}'")
    if not any(when.startswith(kind) if kind else when == _BYTES for when in fault.whens):
        raise _wrong(text, f"'@{moment}' is not for this fault; its form is {fault.form}")
    if kind == "#":
        return When("index", _number(text, value))
    if kind == "+":
        return When("time", _time(text, value))
    return When("byte", _size(text, value))
