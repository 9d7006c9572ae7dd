# SPDX-License-Identifier: GPL-2.0-or-later
"""The transition tables, and the dialects beside them."""

from __future__ import annotations

import re
from itertools import product

import pytest

from mockdev.errors import LocalProtocolError, RemoteProtocolError
from mockdev.wire.channel import MAIN, MULTIFD, Course, Event, Phase, Table
from mockdev.wire.dialect import DIALECTS, dialect, dialect_of_machine
from mockdev.wire.frames import EofItem


@pytest.mark.parametrize("table", [MULTIFD, MAIN])
def test_every_phase_can_be_reached_and_closes(table: Table) -> None:
    reached = {Phase.NEW}
    while True:
        more = reached | {after for phase in reached for after in table[phase].values()}
        if more == reached:
            break
        reached = more
    assert reached == set(table)
    assert all(Event.CLOSE in table[p] for p in reached - {Phase.CLOSED})


# What a channel may carry, as regular expressions: any beginning of it, and a close.
LETTERS = {
    Event.INIT: "i",
    Event.SYNC: "y",
    Event.RAM: "r",
    Event.DEVICE_STATE: "d",
    Event.HEADER: "h",
    Event.CONFIGURATION: "c",
    Event.COMMAND: "m",
    Event.SWITCHOVER: "w",
    Event.START: "s",
    Event.PART: "p",
    Event.END: "e",
    Event.FULL: "f",
    Event.EOF: "o",
    Event.DESCRIPTION: "v",
    Event.CLOSE: "x",
}
GRAMMARS = [
    (MULTIFD, r"(i(y[yrd]*)?)?x?"),
    # header, configuration; set-up; iterations; the switch; ends, devices; the end mark, its description
    (MAIN, r"(h(c[msf]*(p[mp]*)?w?(e+f*(ov?)?)?)?)?x?"),
]


def accepts(table: Table, way: tuple[Event, ...]) -> bool:
    """Whether a channel may carry that."""
    course = Course(table, "main", local=False)
    try:
        for event in way:
            course.take(event)
    except RemoteProtocolError:
        return False
    return True


def ways_to_phases(table: Table) -> dict[Phase, tuple[Event, ...]]:
    """A shortest way to each phase."""
    ways: dict[Phase, tuple[Event, ...]] = {Phase.NEW: ()}
    waiting = [Phase.NEW]
    for phase in waiting:
        for event, after in table[phase].items():
            if after not in ways:
                ways[after] = (*ways[phase], event)
                waiting.append(after)
    return ways


@pytest.mark.parametrize(("table", "grammar"), GRAMMARS)
def test_the_table_says_what_the_grammar_says(table: Table, grammar: str) -> None:
    for way in ways_to_phases(table).values():
        for one, other in product(Event, [None, *Event]):
            longer = (*way, one) if other is None else (*way, one, other)
            letters = "".join(LETTERS[event] for event in longer)
            assert accepts(table, longer) == bool(re.fullmatch(grammar, letters)), letters


def test_pages_before_the_first_sync_are_refused_at_both_ends() -> None:
    for local, kind in ((True, LocalProtocolError), (False, RemoteProtocolError)):
        course = Course(MULTIFD, "channel 0", local=local)
        course.take(Event.INIT)
        with pytest.raises(kind, match="before its first SYNC"):
            course.take(Event.RAM)


def test_a_precopy_stream_takes_its_course() -> None:
    course = Course(MAIN, "main", local=False)
    for event in (
        *(Event.HEADER, Event.CONFIGURATION, Event.COMMAND, Event.START, Event.START, Event.PART),
        *(Event.SWITCHOVER, Event.END, Event.END, Event.FULL, Event.EOF, Event.DESCRIPTION, Event.CLOSE),
    ):
        course.take(event)
    assert course.phase is Phase.CLOSED


@pytest.mark.parametrize("late", [Event.PART, Event.START, Event.SWITCHOVER, Event.COMMAND])
def test_nothing_iterates_after_the_switch(late: Event) -> None:
    course = Course(MAIN, "main", local=False)
    for event in (Event.HEADER, Event.CONFIGURATION, Event.START, Event.SWITCHOVER, Event.END):
        course.take(event)
    with pytest.raises(RemoteProtocolError) as caught:
        course.take(late, 77)
    assert (caught.value.channel, caught.value.offset, caught.value.field) == ("main", 77, "order")


def test_a_frame_out_of_place_is_named_by_its_offset() -> None:
    course = Course(MAIN, "main", local=False)
    assert course.phase is Phase.NEW
    with pytest.raises(RemoteProtocolError) as caught:
        course.take_frame(EofItem(13, 1))
    assert caught.value.offset == 13
    assert course.phase is Phase.NEW


@pytest.mark.parametrize(
    ("machine", "name"),
    [
        ("pc-i440fx-10.0", "10.0"),
        ("pc-q35-11.1", "11.1"),
        ("pc-i440fx-9.2", "9.2"),
        ("virt-12.3", "11.1"),
        ("pc-i440fx-2.12", None),
        ("microvm", None),
    ],
)
def test_dialect_of_machine(machine: str, name: str | None) -> None:
    found = dialect_of_machine(machine)
    assert (found.name if found else None) == name


def test_dialects_only_ever_gain_device_state() -> None:
    flags = [d.device_state for d in DIALECTS]
    assert flags == sorted(flags)
    assert dialect("10.0").device_state
    assert not dialect("9.2").switchover_start
    with pytest.raises(KeyError, match=r"known: 8\.0"):
        dialect("7.2")
