# SPDX-License-Identifier: GPL-2.0-or-later
"""What a device's commands cost, and how the functions of one PF share its firmware.

Costs are of one VF alone. `Firmware` slows SAVE and LOAD down by processor sharing: each of k commands
that run at once advances at k**-gamma / (1 + eta * (n - 1)) of full speed, n being the functions of
that PF with a data file open, busy or not.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

from mockdev.device.cards.connectx7 import CONNECTX7 as CONNECTX7
from mockdev.device.profile import MIB as MIB
from mockdev.device.profile import Profile as Profile

_SLACK_NS = 0.001  # what rounding of shared work may leave over at the end of a command

UNLIMITED = Profile("unlimited")
OPAQUE = Profile("opaque", records=False)

PROFILES = {profile.name: profile for profile in (CONNECTX7, UNLIMITED, OPAQUE)}


class Command:
    """One SAVE or LOAD: nanoseconds of work left when alone, and whom to tell at what time it ended."""

    __slots__ = ("done", "left_ns")

    def __init__(self, cost_ns: int, done: Callable[[int], None]) -> None:
        self.left_ns: float = cost_ns
        self.done = done


class Firmware:
    """The command engine of one PF on one side, shared by its functions.

    Ends of commands happen in order of time, each at its own time, whenever someone calls with a later
    one; a command that follows starts at the end of the one before. All calls on the devices of one
    Firmware come from one thread at a time (one lock per PF), unless its profile costs nothing: such a
    command ends inside start() and nothing is shared.
    """

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self.functions = 0  # devices of this PF
        self.sessions = 0  # of these, with a data file open
        self._running: list[Command] = []
        self._at_ns = 0

    def enter(self, now_ns: int) -> None:
        """One more function has a data file."""
        self.advance(now_ns)
        self.sessions += 1

    def leave(self, now_ns: int) -> None:
        """One fewer function has a data file."""
        self.advance(now_ns)
        self.sessions -= 1

    def start(self, now_ns: int, command: Command) -> None:
        """Begin a command; one that costs nothing is done before this returns."""
        if command.left_ns <= 0:
            command.done(now_ns)
            return
        if now_ns > self._at_ns:
            self.advance(now_ns)
        self._running.append(command)

    def cancel(self, now_ns: int, command: Command) -> None:
        """Take a command back; its end is not told. Nothing happens when it has ended."""
        self.advance(now_ns)
        if command in self._running:
            self._running.remove(command)

    def advance(self, now_ns: int) -> None:
        """End everything that is over by now_ns. A time before the last one changes nothing."""
        while self._running:
            speed = self._speed(len(self._running))
            soonest = min(self._running, key=lambda command: command.left_ns)
            end_ns = self._at_ns + max(0, ceil(soonest.left_ns / speed - _SLACK_NS))
            if end_ns > now_ns:
                break
            self._progress(end_ns, speed)
            self._running.remove(soonest)
            soonest.done(end_ns)
        if self._running and now_ns > self._at_ns:
            self._progress(now_ns, self._speed(len(self._running)))
        self._at_ns = max(self._at_ns, now_ns)

    def ready_ns(self, command: Command) -> int:
        """The earliest time at which a running command can end: when no other one starts meanwhile."""
        left_ns = 0.0  # apart from the time, for a float of the epoch's size knows only steps of 256 ns
        served = 0.0
        order = sorted(self._running, key=lambda other: other.left_ns)
        for index, other in enumerate(order):
            left_ns += max(0.0, other.left_ns - served) / self._speed(len(order) - index)
            served = max(served, other.left_ns)
            if other is command:
                break
        return self._at_ns + max(0, ceil(left_ns - _SLACK_NS))

    def _speed(self, running: int) -> float:
        siblings = max(0, self.sessions - 1)
        return float(running**-self.profile.gamma) / (1 + self.profile.eta * siblings)

    def _progress(self, until_ns: int, speed: float) -> None:
        work = (until_ns - self._at_ns) * speed
        for command in self._running:
            command.left_ns -= work
        self._at_ns = until_ns
