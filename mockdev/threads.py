# SPDX-License-Identifier: GPL-2.0-or-later
"""The one owner of threads: named, joined, and the first error stops all of them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any


class ThreadGroup:
    """Threads that live and die together.

    `on_stop` is called once, from the thread that failed first (or by `stop`), and must wake every thread
    of the group: close its sockets, notify its conditions. Leaving the `with` block joins all threads and
    raises the first error, which is the cause; later ones are mostly its echoes and kept in `errors`.
    """

    def __init__(self, on_stop: Callable[[BaseException | None], None]) -> None:
        self._on_stop = on_stop
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._stopped = False
        self.errors: list[BaseException] = []

    def start(self, name: str, run: Callable[..., Any], *args: Any) -> threading.Thread:
        """Run `run(*args)` in a new thread called `name`."""
        thread = threading.Thread(target=self._guard, args=(run, args), name=name, daemon=True)
        with self._lock:
            self._threads.append(thread)
        thread.start()
        return thread

    def stop(self, error: BaseException | None = None) -> None:
        """Make all threads come to an end; the first `error` given is the one that `join` raises."""
        with self._lock:
            if error is not None:
                self.errors.append(error)
            if self._stopped:
                return
            self._stopped = True
        self._on_stop(error)

    def join(self) -> None:
        """Wait for all threads, also those started meanwhile, then raise the first error if there was one."""
        for thread in self._threads:  # grows while we iterate when a thread starts another
            thread.join()
        if self.errors:
            raise self.errors[0]

    @property
    def stopped(self) -> bool:
        """Whether the group has been told to stop."""
        return self._stopped

    def _guard(self, run: Callable[..., Any], args: tuple[Any, ...]) -> None:
        try:
            run(*args)
        except BaseException as error:
            self.stop(error)

    def __enter__(self) -> ThreadGroup:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.stop(error)
            for thread in self._threads:
                thread.join()
            return
        self.join()
