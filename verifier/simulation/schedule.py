# SPDX-License-Identifier: GPL-2.0-or-later
"""Schedules as values: recorded while a scene is played, played again, and told in words.

A schedule is the list of choices: at each step at which more than one task could go on, the place of the one
that did in the list of those that could. Behind its end the first goes on, so the schedule of no choices is
(), and fewer of them are a simpler story.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from verifier.simulation.chance import Chance
from verifier.simulation.world import Group, Steps, Task, Wait, World


class Late(NamedTuple):
    """A task that could have gone on and did not. frames: that passed on all connections until it did."""

    task: Task
    frames: int


class ScheduledWorld(World):
    """A world whose choices are kept, and given if there are some; else drawn just as World draws them.

    made: the choices so far. frames: says how many frames have passed on all connections. passed_over: the
    tasks that did not go on though they were first, each with the frames that passed until it did.
    """

    def __init__(self, chance: Chance, *, ranked: bool = False, choices: Sequence[int] | None = None) -> None:
        super().__init__(chance, ranked=True)  # so that we are asked
        self.made: list[int] = []
        self.passed_over: list[Late] = []
        self.frames: Callable[[], int] = lambda: 0
        self._by_rank = ranked
        self._given = choices
        self._waiting: dict[Task, int] = {}  # passed over, and how many frames there were

    def spawn(self, name: str, steps: Steps, group: Group | None = None) -> Task:
        """As World's."""
        noted = _Noted(steps)
        if self._by_rank and self._given is None:
            task = super().spawn(name, noted, group)  # type: ignore[arg-type]
        else:
            task = Task(name, noted, group)  # type: ignore[arg-type]
            self.ready.append(task)
        noted.before = lambda: self._runs(task)
        return task

    def _highest(self, ready: list[Task]) -> int:
        at = self._choose(ready)
        self.made.append(at)
        if at:
            self._waiting.setdefault(ready[0], self.frames())
        return at

    def _choose(self, ready: list[Task]) -> int:
        if self._given is not None:
            number = len(self.made)
            # A schedule that was shortened may lead to where fewer can go on.
            return min(self._given[number], len(ready) - 1) if number < len(self._given) else 0
        return super()._highest(ready) if self._by_rank else self._chance.below(len(ready))

    def _runs(self, task: Task) -> None:
        since = self._waiting.pop(task, None)
        if since is not None:
            self.passed_over.append(Late(task, self.frames() - since))


class _Noted:
    """A task's steps, with a word before each."""

    def __init__(self, steps: Steps) -> None:
        self.before: Callable[[], None] = lambda: None
        self._steps = steps

    def __iter__(self) -> _Noted:
        return self

    def __next__(self) -> Wait:
        self.before()
        return next(self._steps)

    def throw(self, error: BaseException) -> Wait:
        self.before()
        return self._steps.throw(error)


def trimmed(choices: Sequence[int]) -> tuple[int, ...]:
    """The same schedule without the first choices at its end, which need not be said."""
    end = len(choices)
    while end and not choices[end - 1]:
        end -= 1
    return tuple(choices[:end])
