# SPDX-License-Identifier: GPL-2.0-or-later
"""A bar on a terminal while a migration runs; nowhere else is there one."""

from __future__ import annotations

from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
from rich.progress import Progress as RichProgress


class Progress:
    """`update(phase, done, total)` moves the bar; phase in words, done and total in bytes."""

    def __init__(self, out: TextIO, title: str) -> None:
        console = Console(file=out)
        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._title = f"{title}: " if title else ""
        self._task = self._bar.add_task(f"{self._title}starting", total=None)

    def update(self, phase: str, done: int, total: int) -> None:
        """Show where the run is."""
        if total:
            self._bar.update(self._task, description=self._title + phase, completed=done, total=total)
        else:  # None as a total would mean: as it was
            self._bar.reset(self._task, description=self._title + phase, total=None)

    def say(self, sentence: str) -> None:
        """Print a line above the bar, or where the bar would be."""
        self._bar.console.print(sentence, markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
