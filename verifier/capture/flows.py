# SPDX-License-Identifier: GPL-2.0-or-later
"""What each direction of each connection is: main channel, return path, multifd channel, or none of them.

Told by the first bytes alone, whatever the ports: QEMU's own rule. Pure.

Which migration a connection belongs to: all connections of a migration go to one address, the target's;
so connections to one address are one migration until all of them are over, or until a second main
channel comes up: then the next migration begins. (A retry comes to the same address, after the first
try's connections, and a multifd connection of it may speak before its main channel does. Two virtual
machines cannot be loaded at one address at once. The VM's uuid is no part of the rule, for a channel with
a wrong one must be seen as such.) A connection is over when either end has closed or reset it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from mockdev.wire.structs import MULTIFD_MAGIC, STREAM_MAGIC
from verifier.capture.stream import Flow

HEAD_BYTES = 4
MIGRATIONS_MAX = 256
MAIN_HEAD = STREAM_MAGIC.to_bytes(HEAD_BYTES, "big")
CHANNEL_HEAD = MULTIFD_MAGIC.to_bytes(HEAD_BYTES, "big")


class Role(StrEnum):
    """What a direction carries. UNDECIDED: too little was seen so far. NONE: nothing of a migration."""

    UNDECIDED = "undecided"
    MAIN = "main"
    RETURN_PATH = "return-path"
    CHANNEL = "channel"
    REVERSE = "reverse"  # of a multifd connection, where no byte may come
    NONE = "unknown"


_ANSWER = {Role.MAIN: Role.RETURN_PATH, Role.CHANNEL: Role.REVERSE}


@dataclass(eq=False)
class Lane:
    """One direction of a connection and what is known of it. why: for role NONE, a sentence.

    foreign: its first bytes are there and are those of another protocol. headless: they are not there.
    """

    flow: Flow
    role: Role = Role.UNDECIDED
    channel: int | None = None
    migration: int | None = None
    why: str = ""
    foreign: bool = False
    headless: bool = False
    ended: bool = False
    peer: Lane | None = None

    @property
    def name(self) -> str:
        """ "main", "channel 3", "return-path", or the two ends."""
        if self.role is Role.CHANNEL and self.channel is not None:
            return f"channel {self.channel}"
        if self.role in (Role.MAIN, Role.RETURN_PATH):
            return self.role.value
        return str(self)

    def __str__(self) -> str:
        return f"{self.flow.source} > {self.flow.destination}"


@dataclass
class _Target:
    """The connections to one address. current: the migration that a new connection would belong to.

    open: how many of its main and multifd connections are not over.
    """

    current: int | None = None
    has_main: bool = False
    open: int = 0
    strangers: list[Lane] = field(default_factory=list)


class Directory:
    """Sorts lanes into roles and migrations as their first bytes come.

    one_target: all connections go to the same target, whatever their addresses (those of a run that did
    not use TCP are made up).
    """

    def __init__(self, *, one_target: bool = False) -> None:
        self._one_target = one_target
        self.lanes: list[Lane] = []
        self.migrations = 0
        self._by_connection: dict[tuple[int, int], Lane] = {}
        self._targets: dict[tuple[int, str, int], _Target] = {}

    def meet(self, flow: Flow) -> Lane:
        """A direction at first sight."""
        lane = Lane(flow)
        key = (flow.interface, flow.connection)
        other = self._by_connection.get(key)
        if other is not None:
            lane.peer, other.peer = other, lane
            if other.role in _ANSWER:
                self._join(lane, _ANSWER[other.role])
        else:
            self._by_connection[key] = lane
        self.lanes.append(lane)
        return lane

    def decide(self, lane: Lane, head: bytes) -> Role:
        """The role of a lane whose first bytes are `head` (at least HEAD_BYTES, or all there are)."""
        if lane.role is not Role.UNDECIDED:
            return lane.role
        if lane.peer is not None and lane.peer.role in _ANSWER:
            self._join(lane, _ANSWER[lane.peer.role])
        elif head[:HEAD_BYTES] == MAIN_HEAD:
            self._begin(lane, Role.MAIN)
        elif lane.flow.joined_midway:
            lane.headless = True
            self._refuse(lane, "joined midway: its first bytes are not in the capture")
        elif head[:HEAD_BYTES] == CHANNEL_HEAD:
            self._begin(lane, Role.CHANNEL)
        elif lane.flow.initiator is False:
            return Role.UNDECIDED  # the answering side: what it is depends on the side that opened
        elif any(known.startswith(head) for known in (MAIN_HEAD, CHANNEL_HEAD)):
            self._refuse(lane, f"too short to tell: it ended after {len(head)} bytes")
        else:
            shown = head[:HEAD_BYTES].hex(" ")
            self._refuse(lane, f"another protocol: it begins with {shown}, neither main channel nor multifd")
            lane.foreign = True
        return lane.role

    def lost_start(self, lane: Lane) -> None:
        """The first bytes of an undecided lane are known to be missing."""
        if lane.role is Role.UNDECIDED:
            lane.headless = True
            self._refuse(lane, "its first bytes are not in the capture")

    def end(self, lane: Lane) -> None:
        """Nothing more comes on this lane."""
        if lane.ended:
            return
        lane.ended = True
        peer = lane.peer
        if peer is not None and peer.ended:
            return
        if lane.role in _ANSWER:
            self._target(lane).open -= 1
        elif peer is not None and peer.role in _ANSWER:
            self._target(peer).open -= 1

    def close(self) -> None:
        """The capture is over: what is still undecided stays unknown, with the reason."""
        for lane in self.lanes:
            if lane.role is not Role.UNDECIDED:
                continue
            peer = lane.peer
            if peer is not None and peer.role in _ANSWER:
                self._join(lane, _ANSWER[peer.role])
                continue
            lane.role = Role.NONE
            lane.why = "empty or too short to tell"

    def _begin(self, lane: Lane, role: Role) -> None:
        target = self._target(lane)
        if target.current is None or not target.open or (role is Role.MAIN and target.has_main):
            if self.migrations >= MIGRATIONS_MAX:
                lane.role, lane.why = Role.NONE, f"more than {MIGRATIONS_MAX} migrations in one capture"
                return
            target.current = self.migrations
            target.has_main = False
            self.migrations += 1
        target.open += lane.peer is None or not lane.peer.ended
        target.has_main |= role is Role.MAIN
        lane.role = role
        lane.migration = target.current
        for stranger in target.strangers:
            if stranger.migration is None:
                stranger.migration = lane.migration
        if lane.peer is not None and lane.peer.role is Role.UNDECIDED:
            self._join(lane.peer, _ANSWER[role])

    def _join(self, lane: Lane, role: Role) -> None:
        assert lane.peer is not None
        lane.role = role
        lane.migration = lane.peer.migration

    def _refuse(self, lane: Lane, why: str) -> None:
        lane.role = Role.NONE
        lane.why = why
        if lane.flow.initiator is not False:
            target = self._target(lane)
            # One without a head may be a channel of a migration that was over when that showed.
            lane.migration = target.current if target.open or lane.headless else None
            target.strangers.append(lane)

    def _target(self, lane: Lane) -> _Target:
        end = lane.flow.destination
        key = (lane.flow.interface, "", 0) if self._one_target else (lane.flow.interface, end.host, end.port)
        return self._targets.setdefault(key, _Target())
