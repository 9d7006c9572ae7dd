# SPDX-License-Identifier: GPL-2.0-or-later
"""A virtual clock and the scheduler: whose turn it is, one step at a time.

A task is a generator. It stands for a thread, and what it does between two yields for what a thread does
under a lock, so every order of steps is one that threads can show. It yields

- None: somebody else may go on first;
- a time in ns: not before that;
- a `Signal`: not before that was given.

A task that waited asks again for what it waited for: others may have been quicker.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from heapq import heappop, heappush

from verifier.simulation.chance import Chance

START_NS = 1_700_000_000_000_000_000
STEPS_MAX = 1_000_000  # more is a livelock


class Signal:
    """What tasks wait for. Giving it wakes all who wait at that moment."""

    __slots__ = ("waiting", "world")

    def __init__(self, world: World) -> None:
        self.world = world
        self.waiting: list[Task] = []

    def give(self) -> None:
        """Wake all who wait."""
        waiting = self.waiting
        if waiting:
            self.world.ready += waiting
            self.waiting = []


Wait = Signal | int | None
Steps = Generator[Wait, None, None]


class StoppedError(Exception):
    """Thrown into a task whose group comes to an end."""


class Task:
    """A thread of the simulation. rank: with ranked scheduling the highest goes first."""

    __slots__ = ("group", "name", "parked", "rank", "steps", "stopped")

    def __init__(self, name: str, steps: Steps, group: Group | None) -> None:
        self.name = name
        self.steps = steps
        self.group = group
        self.rank = 0.0
        self.stopped = False
        self.parked: Signal | int | None = None  # what it waits for


class Group:
    """Tasks that end together: the first error stops all.

    error: that error. ended: given when no task is left. on_stop: called once, when they are told to stop.
    """

    def __init__(self, world: World, on_stop: Callable[[], None]) -> None:
        self.world = world
        self.tasks: list[Task] = []
        self.error: BaseException | None = None
        self.stopped = False
        self.ended = Signal(world)
        self._on_stop = on_stop

    def spawn(self, name: str, steps: Steps) -> None:
        """One more task."""
        task = self.world.spawn(name, steps, self)
        self.tasks.append(task)
        task.stopped = self.stopped

    def stop(self, error: BaseException) -> None:
        """All tasks come to an end; the first error counts."""
        self.error = self.error or error
        if self.stopped:
            return
        self.stopped = True
        for task in self.tasks:
            task.stopped = True
            self.world.unpark(task)
        self._on_stop()

    def leave(self, task: Task) -> None:
        """A task has ended."""
        self.tasks.remove(task)
        if not self.tasks:
            self.ended.give()


class World:
    """See the head of this file.

    ranked: instead of each ready task with the same chance, that of the highest rank goes first, and now and
    then one changes its rank: orders in which somebody is very late.
    """

    def __init__(self, chance: Chance, *, ranked: bool = False) -> None:
        self.now_ns = START_NS
        self.ready: list[Task] = []
        self.steps = 0
        self._chance = chance
        self._ranked = ranked
        self._timers: list[tuple[int, int, Task | Callable[[], None]]] = []
        self._timer_number = 0

    def spawn(self, name: str, steps: Steps, group: Group | None = None) -> Task:
        """One more task, ready."""
        task = Task(name, steps, group)
        if self._ranked:
            task.rank = self._chance.next()
        self.ready.append(task)
        return task

    def at(self, time_ns: int, what: Callable[[], None]) -> None:
        """Have something done at a time."""
        self._timer_number += 1
        heappush(self._timers, (time_ns, self._timer_number, what))

    def run(self) -> None:
        """Until nobody can go on any more."""
        ready = self.ready
        next_number = self._chance.next
        while True:
            if not ready:
                if not self._timers:
                    return
                self._advance()
                continue
            count = len(ready)
            if count == 1:
                task = ready.pop()
            else:
                at = self._highest(ready) if self._ranked else int(next_number() * count)
                task = ready[at]
                last = ready.pop()
                if at < count - 1:
                    ready[at] = last
            self.steps += 1
            if self.steps > STEPS_MAX:
                raise RuntimeError(f"no end after {STEPS_MAX} steps")
            try:
                if task.stopped:
                    task.stopped = False
                    wait = task.steps.throw(StoppedError())
                else:
                    wait = next(task.steps)
            except (StopIteration, StoppedError):
                if task.group is not None:
                    task.group.leave(task)
            except Exception as error:
                if task.group is None:
                    raise
                task.group.stop(error)
                task.group.leave(task)
            else:
                if wait is None or task.stopped:
                    ready.append(task)
                elif isinstance(wait, Signal):
                    task.parked = wait
                    wait.waiting.append(task)
                else:
                    self._timer_number += 1
                    task.parked = self._timer_number
                    heappush(self._timers, (wait, self._timer_number, task))

    def unpark(self, task: Task) -> None:
        """Let a task go on though what it waits for has not come."""
        parked, task.parked = task.parked, None
        if isinstance(parked, Signal):
            if task not in parked.waiting:
                return  # given already
            parked.waiting.remove(task)
        elif parked is None:
            return
        self.ready.append(task)  # a timer finds it gone

    def _advance(self) -> None:
        """On to the next time at which something happens."""
        timers = self._timers
        self.now_ns = max(self.now_ns, timers[0][0])
        while timers and timers[0][0] <= self.now_ns:
            _, number, what = heappop(timers)
            if not isinstance(what, Task):
                what()
            elif what.parked == number:
                what.parked = None
                self.ready.append(what)

    def _highest(self, ready: list[Task]) -> int:
        at = max(range(len(ready)), key=lambda i: ready[i].rank)
        if self._chance.next() < 1 / 32:
            ready[at].rank = self._chance.next()
        return at
