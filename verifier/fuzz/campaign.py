# SPDX-License-Identifier: GPL-2.0-or-later
"""Many seeds, in several processes: `campaign`."""

from __future__ import annotations

import gc
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from queue import Empty, SimpleQueue

import msgspec

from mockdev.errors import VfmigError
from verifier import worker
from verifier.fuzz.failure import Failure, examine
from verifier.simulation.scene import draw
from verifier.verdict import Standing

BATCH = 50  # seeds that a process plays before it says what came of them
_TICK_S = 0.2


class WorkerError(VfmigError):
    """A process that played scenes has died."""


class Found(msgspec.Struct):
    """One way of failing: the first seed that shows it, and how many do."""

    failure: Failure
    seed: int
    seeds: int = 1


class Tally(msgspec.Struct):
    """What came of some seeds. kinds: of trouble, how many scenes had them; steps: of the schedulers.

    judged: how many scenes an invariant was judged in, by its id.
    """

    tries: int = 0
    steps: int = 0
    outcomes: dict[str, int] = {}
    kinds: dict[str, int] = {}
    judged: dict[str, int] = {}
    found: list[Found] = []

    def add(self, other: Tally) -> None:
        """Count another's in."""
        self.tries += other.tries
        self.steps += other.steps
        for mine, theirs in (
            (self.outcomes, other.outcomes),
            (self.kinds, other.kinds),
            (self.judged, other.judged),
        ):
            for name, count in theirs.items():
                mine[name] = mine.get(name, 0) + count
        for found in other.found:
            self.find(found)

    def find(self, found: Found) -> None:
        """One more failure."""
        for known in self.found:
            if known.failure.key == found.failure.key:
                known.seeds += found.seeds
                if found.seed < known.seed:
                    known.seed, known.failure = found.seed, found.failure
                return
        self.found.append(found)


def play(first: int, count: int) -> Tally:
    """Play the scenes of so many seeds."""
    # A scene leaves little to the garbage collector: once after many it does the same in less time.
    gc.disable()
    try:
        return _play(first, count)
    finally:
        gc.enable()


def _play(first: int, count: int) -> Tally:
    tally = Tally(tries=count)
    outcomes: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    judged: Counter[str] = Counter()
    for seed in range(first, first + count):
        scene = draw(seed)
        failure, came = examine(scene)
        kinds.update(scene.kinds)
        outcomes["exception" if came is None else came.outcome] += 1
        if came is not None:
            tally.steps += came.steps
            rows = came.report.exercised.invariants
            judged.update(name for name, row in rows.items() if row.standing is not Standing.UNKNOWN)
        if failure is not None:
            tally.find(Found(failure, seed))
    tally.outcomes, tally.kinds, tally.judged = dict(outcomes), dict(kinds), dict(judged)
    return tally


def campaign(
    first: int,
    count: int,
    jobs: int,
    total: Tally,
    on_progress: Callable[[], None] = lambda: None,
    *,
    seconds: float | None = None,
    stop_at_first: bool = False,
) -> None:
    """Play seeds `first` to `first + count - 1` in `jobs` processes, and count what comes of them in `total`.

    `total` is right at any moment, also when KeyboardInterrupt comes out of here. seconds: no new seeds after
    so many. WorkerError: a process died.
    """
    end_s = None if seconds is None else time.monotonic() + seconds
    batches = iter(range(first, first + count, BATCH))
    lock = threading.Lock()

    def following() -> Iterator[tuple[int, int]]:
        while True:
            with lock:
                if (stop_at_first and total.found) or (end_s is not None and time.monotonic() >= end_s):
                    return
                at = next(batches, None)
            if at is None:
                return
            yield at, min(BATCH, first + count - at)

    if jobs == 1:
        for at, size in following():
            total.add(play(at, size))
            on_progress()
    else:
        _in_processes(following, jobs, total, on_progress)
    total.found.sort(key=lambda found: found.seed)


def _in_processes(
    following: Callable[[], Iterator[tuple[int, int]]],
    jobs: int,
    total: Tally,
    on_progress: Callable[[], None],
) -> None:
    workers = [worker.Worker(__name__) for _ in range(jobs)]
    answers: SimpleQueue[Tally | WorkerError | None] = SimpleQueue()

    def drive(mine: worker.Worker) -> None:
        """One process, to the end of the seeds or of itself."""
        for batch in following():
            answer = mine.ask(json.dumps(batch))
            if not answer:
                first = batch[0]
                what = f"the process that played seeds {first} to {first + batch[1] - 1} ended"
                answers.put(WorkerError(f"{what} with status {mine.status}"))
                break
            answers.put(msgspec.json.decode(answer, type=Tally))
        answers.put(None)

    threads = [threading.Thread(target=drive, args=(mine,), daemon=True) for mine in workers]
    try:
        for thread in threads:
            thread.start()
        going = jobs
        while going:
            with suppress(Empty):
                answer = answers.get(timeout=_TICK_S)
                if answer is None:
                    going -= 1
                elif isinstance(answer, Tally):
                    total.add(answer)
                else:
                    raise answer
            on_progress()
    except BaseException:
        for mine in workers:
            mine.kill()
        raise
    finally:
        for thread in threads:
            if thread.is_alive():
                thread.join()
        for mine in workers:
            mine.close()


def serve() -> None:
    """What a worker does: play each batch of seeds that comes as a line."""

    def answer(line: str) -> bytes:
        first, count = json.loads(line)
        return msgspec.json.encode(play(first, count))

    worker.serve(answer)
