# SPDX-License-Identifier: GPL-2.0-or-later
"""The migration state machine: which arc comes next on the way to a wanted state.

One table for a device that can do everything; a device that can do less skips the states it lacks.
The rules behind the table: the shortest way; no state with a data file lies inside a way, unless the
way starts in the same file; so a file can only be opened by the last arc.

Source: Linux drivers/vfio/vfio_main.c: vfio_mig_get_next_state
"""

from __future__ import annotations

import errno
from enum import Enum
from functools import lru_cache

from mockdev.errors import DeviceError
from mockdev.vfio.uapi import MigrationFlags, State

_S = State.STOP
_R = State.RUNNING
_RP = State.RUNNING_P2P
_P = State.PRE_COPY
_PP = State.PRE_COPY_P2P
_SC = State.STOP_COPY
_RE = State.RESUMING
_E = State.ERROR

TARGETS = (_S, _R, _RP, _P, _PP, _SC, _RE, _E)

# Row: where the device is. Column: where it is to go, in the order of TARGETS. ERROR: not allowed.
NEXT: dict[State, dict[State, State]] = {
    row: dict(zip(TARGETS, cells, strict=True))
    for row, cells in {
        _S: (_S, _RP, _RP, _RP, _RP, _SC, _RE, _E),
        _R: (_RP, _R, _RP, _P, _RP, _RP, _RP, _E),
        _RP: (_S, _R, _RP, _R, _PP, _S, _S, _E),
        _P: (_R, _R, _R, _P, _PP, _PP, _R, _E),
        _PP: (_RP, _RP, _RP, _P, _PP, _SC, _RP, _E),
        _SC: (_S, _S, _S, _E, _E, _SC, _S, _E),
        _RE: (_S, _S, _S, _S, _S, _S, _RE, _E),
        _E: (_E,) * len(TARGETS),
    }.items()
}

_M = MigrationFlags
NEEDS: dict[State, MigrationFlags] = {
    _E: _M(0),
    _S: _M.STOP_COPY,
    _R: _M.STOP_COPY,
    _SC: _M.STOP_COPY,
    _RE: _M.STOP_COPY,
    _RP: _M.STOP_COPY | _M.P2P,
    _P: _M.STOP_COPY | _M.PRE_COPY,
    _PP: _M.STOP_COPY | _M.P2P | _M.PRE_COPY,
}

SAVING = frozenset((_P, _PP, _SC))


class FileKind(Enum):
    """The data file that belongs to a state: one to read the state from, or one to write it to."""

    SAVE = "save"
    RESUME = "resume"


def file_kind(state: State) -> FileKind | None:
    """The kind of data file that is open in `state`."""
    if state in SAVING:
        return FileKind.SAVE
    return FileKind.RESUME if state is _RE else None


def opens(here: State, there: State) -> FileKind | None:
    """The kind of file that the single arc here > there returns, or None (moving inside keeps the file)."""
    kind = file_kind(there)
    return None if kind is file_kind(here) else kind


def closes(here: State, there: State) -> FileKind | None:
    """The kind of file that the single arc here > there ends."""
    kind = file_kind(here)
    return None if kind is file_kind(there) else kind


@lru_cache(maxsize=256)  # a bit of a flag is looked at slowly, and this is asked for every arc
def has_state(flags: MigrationFlags, state: State) -> bool:
    """Whether a device with these flags knows the state."""
    return NEEDS[state] & flags == NEEDS[state]


def next_step(here: State, target: State, flags: MigrationFlags) -> State:
    """The state after the next single arc from `here` towards `target`.

    DeviceError(EINVAL): no such way, or a state that a device with these flags lacks.
    """
    if not has_state(flags, here) or not has_state(flags, target):
        raise DeviceError(errno.EINVAL, f"a device with {flags!r} has no way {here.name} to {target.name}")
    step = NEXT[here][target]
    while not has_state(flags, step):
        step = NEXT[step][target]
    if step is _E:
        raise DeviceError(errno.EINVAL, f"no way from {here.name} to {target.name}")
    return step


def walk(here: State, target: State, flags: MigrationFlags) -> tuple[State, ...]:
    """The states after each arc of the way; empty when here is target.

    DeviceError(EINVAL) as next_step; ERROR cannot be asked for, nor be left.
    """
    next_step(here, target, flags)  # also when nothing is to be done: the states must exist
    states = []
    while here is not target:
        here = next_step(here, target, flags)
        states.append(here)
    return tuple(states)
