# SPDX-License-Identifier: GPL-2.0-or-later
"""One timed call on a device at a time, as under the driver's state lock.

A timed call is a generator: it yields the time before which it cannot go on and returns its result.
Whoever calls the device moves it on; its result waits for the one who made it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, NamedTuple, TypeVar

from mockdev.device.files import NotYet
from mockdev.errors import VfmigError

T = TypeVar("T")
Key = tuple[str, object]  # what kind of call, and what tells it from others of its kind
Steps = Generator[int, int, T]  # yields a time in ns, is sent that time once it has come


class Result(NamedTuple):
    """What a call came to: a value, or the error it raised."""

    value: Any
    error: VfmigError | None


class StateLock:
    """Runs at most one timed call; remembers results that nobody has fetched."""

    def __init__(self) -> None:
        self._key: Key = ("", None)
        self._steps: Steps[Any] | None = None
        self._until_ns = 0
        self._results: dict[Key, Result] = {}

    def run(self, now_ns: int, key: Key, begin: Callable[[int], Steps[T]]) -> T | NotYet:
        """Begin or go on with the call that `key` names; its result or error, or when to come back."""
        if (wait := self.busy(now_ns)) is not None:
            return wait
        if key not in self._results:
            self.forget(key[0])
            self._key = key
            self._steps = begin(now_ns)
            self._until_ns = now_ns
            self._resume(None)
            if (wait := self.busy(now_ns)) is not None:
                return wait
        value, error = self._results.pop(key)
        if error is not None:
            raise error
        result: T = value
        return result

    def busy(self, now_ns: int) -> NotYet | None:
        """Move the call that holds the lock on; NotYet when it holds it still."""
        while self._steps is not None and self._until_ns <= now_ns:
            self._resume(self._until_ns)
        return None if self._steps is None else NotYet(self._until_ns)

    def forget(self, kind: str) -> None:
        """Drop results of this kind (a key's first part) that nobody fetched: their callers gave up."""
        for key in [key for key in self._results if key[0] == kind]:
            del self._results[key]

    def _resume(self, at_ns: int | None) -> None:
        steps = self._steps
        assert steps is not None
        try:
            self._until_ns = next(steps) if at_ns is None else steps.send(at_ns)
        except StopIteration as end:
            self._end(Result(end.value, None))
        except VfmigError as error:
            self._end(Result(None, error))

    def _end(self, result: Result) -> None:
        self._steps = None
        self._results[self._key] = result
