# SPDX-License-Identifier: GPL-2.0-or-later
"""The state machine against a breadth-first search that knows single arcs and rules, not the table."""

from __future__ import annotations

import errno
from itertools import pairwise, product

import pytest

from mockdev.errors import DeviceError
from mockdev.vfio.fsm import FileKind, closes, has_state, next_step, opens, walk
from mockdev.vfio.uapi import MigrationFlags, State

FLAG_SETS = [MigrationFlags(value) for value in (1, 3, 5, 7)]

# Single arcs that a device may take, by what it can do. Words, so that nothing here is the table's.
BASIC = {("stop", "stop-copy"), ("stop-copy", "stop"), ("stop", "resuming"), ("resuming", "stop")}
WITHOUT_P2P = {("running", "stop"), ("stop", "running")}
WITH_P2P = {("running", "p2p"), ("p2p", "running"), ("p2p", "stop"), ("stop", "p2p")}
PRE_COPY = {("running", "pre-copy"), ("pre-copy", "running")}
PRE_COPY_WITHOUT_P2P = {("pre-copy", "stop-copy")}
PRE_COPY_WITH_P2P = {
    ("p2p", "pre-copy-p2p"),
    ("pre-copy-p2p", "p2p"),
    ("pre-copy", "pre-copy-p2p"),
    ("pre-copy-p2p", "pre-copy"),
    ("pre-copy-p2p", "stop-copy"),
}
SAVING = {"pre-copy", "pre-copy-p2p", "stop-copy"}
NAMES = {
    State.ERROR: "error",
    State.STOP: "stop",
    State.RUNNING: "running",
    State.STOP_COPY: "stop-copy",
    State.RESUMING: "resuming",
    State.RUNNING_P2P: "p2p",
    State.PRE_COPY: "pre-copy",
    State.PRE_COPY_P2P: "pre-copy-p2p",
}


def arcs(flags: MigrationFlags) -> set[tuple[str, str]]:
    p2p = bool(flags & 2)
    found = BASIC | (WITH_P2P if p2p else WITHOUT_P2P)
    if flags & 4:
        found |= PRE_COPY | (PRE_COPY_WITH_P2P if p2p else PRE_COPY_WITHOUT_P2P)
    return found


def shortest(start: str, goal: str, flags: MigrationFlags) -> list[tuple[str, ...]]:
    """All shortest ways in which no saving state lies inside, unless the way stays among them."""
    edges = arcs(flags)
    known = {state for edge in edges for state in edge}
    if start not in known or goal not in known:
        return []
    if start == "stop-copy" and goal in ("pre-copy", "pre-copy-p2p"):
        return []  # a stopped device does not go back to tracking in one request
    if start == goal:
        return [()]
    stays = start in SAVING and goal in SAVING
    ways: list[tuple[str, ...]] = [()]
    for _ in known:
        ways = [
            (*way, there)
            for way in ways
            for here, there in edges
            if here == (way[-1] if way else start)
            and (there in SAVING if stays else there == goal or there not in SAVING)
        ]
        if found := [way for way in ways if way[-1] == goal]:
            return found
    return []


@pytest.mark.parametrize("flags", FLAG_SETS)
def test_all_cells_are_the_shortest_ways(flags: MigrationFlags) -> None:
    exist = 0
    for here, target in product(State, State):
        expected = shortest(NAMES[here], NAMES[target], flags)
        assert len(expected) <= 1, "the rules leave a choice"
        if expected:
            exist += 1
            assert tuple(NAMES[state] for state in walk(here, target, flags)) == expected[0]
        else:
            with pytest.raises(DeviceError) as caught:
                walk(here, target, flags)
            assert caught.value.errno == errno.EINVAL
    states = {1: 4, 3: 5, 5: 5, 7: 7}[flags]
    forbidden = {1: 0, 3: 0, 5: 1, 7: 2}[flags]  # STOP_COPY back to PRE_COPY and PRE_COPY_P2P
    assert exist == states * states - forbidden


@pytest.mark.parametrize("flags", FLAG_SETS)
def test_each_step_is_the_first_of_its_way(flags: MigrationFlags) -> None:
    for here, target in product(State, State):
        ways = shortest(NAMES[here], NAMES[target], flags)
        if ways:
            assert NAMES[next_step(here, target, flags)] == (ways[0][0] if ways[0] else NAMES[here])
        else:  # also where only a later step would find no way
            with pytest.raises(DeviceError):
                next_step(here, target, flags)


@pytest.mark.parametrize("flags", FLAG_SETS)
def test_only_the_last_arc_gives_a_file(flags: MigrationFlags) -> None:
    for here, target in product(State, State):
        if not shortest(NAMES[here], NAMES[target], flags):
            continue
        steps = (here, *walk(here, target, flags))
        assert all(opens(a, b) is None for a, b in list(pairwise(steps))[:-1])


def test_the_arcs_that_open_and_close_files() -> None:
    names = {name: state for state, name in NAMES.items()}
    opened = {(a, b): opens(names[a], names[b]) for a, b in arcs(MigrationFlags(7))}
    assert {arc for arc, kind in opened.items() if kind is FileKind.SAVE} == {
        ("running", "pre-copy"),
        ("p2p", "pre-copy-p2p"),
        ("stop", "stop-copy"),
    }
    assert {arc for arc, kind in opened.items() if kind is FileKind.RESUME} == {("stop", "resuming")}
    closed = {(a, b): closes(names[a], names[b]) for a, b in arcs(MigrationFlags(7))}
    assert {arc for arc, kind in closed.items() if kind} == {
        ("pre-copy", "running"),
        ("pre-copy-p2p", "p2p"),
        ("stop-copy", "stop"),
        ("resuming", "stop"),
    }


def test_an_error_ends_the_file_and_has_none() -> None:
    for state in State:
        assert opens(state, State.ERROR) is None
    assert closes(State.STOP_COPY, State.ERROR) is FileKind.SAVE
    assert closes(State.RESUMING, State.ERROR) is FileKind.RESUME
    assert closes(State.RUNNING, State.ERROR) is closes(State.ERROR, State.RUNNING) is None


def test_a_device_that_cannot_stop_and_copy_has_no_state_but_error() -> None:
    for state in State:
        assert has_state(MigrationFlags(6), state) == (state is State.ERROR)
    assert has_state(MigrationFlags(0), State.ERROR)


def test_a_pause_from_pre_copy_runs_the_device_again() -> None:
    way = walk(State.PRE_COPY, State.STOP, MigrationFlags(7))
    assert way == (State.RUNNING, State.RUNNING_P2P, State.STOP)


def test_one_step_at_a_time_skips_states_that_the_device_lacks() -> None:
    assert next_step(State.STOP, State.PRE_COPY, MigrationFlags(7)) is State.RUNNING_P2P
    assert next_step(State.STOP, State.PRE_COPY, MigrationFlags(5)) is State.RUNNING
