# SPDX-License-Identifier: GPL-2.0-or-later
"""The signals by which a person or a system asks the command to end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def once() -> Iterator[None]:
    """The first of these signals raises KeyboardInterrupt; more of them do not disturb the tidying up."""

    def first(_number: int, _frame: FrameType | None) -> None:
        for number in taken:
            signal.signal(number, _nothing)
        raise KeyboardInterrupt

    taken = {}
    if threading.current_thread() is threading.main_thread():
        # What is ignored from outside (nohup, a shell's background) stays so.
        taken = {n: old for n in ENDING if (old := signal.getsignal(n)) != signal.SIG_IGN}
    for number in taken:
        signal.signal(number, first)
    try:
        yield
    finally:
        for number, old in taken.items():
            signal.signal(number, old)


def _nothing(_number: int, _frame: FrameType | None) -> None:
    """Not SIG_IGN, which the processes that we start would inherit."""
