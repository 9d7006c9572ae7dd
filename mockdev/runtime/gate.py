# SPDX-License-Identifier: GPL-2.0-or-later
"""Where channels that have read a SYNC wait for the main channel to read MULTIFD_FLUSH.

Source: QEMU migration/multifd.c: multifd_recv_sync_main
"""

from __future__ import annotations

import threading

from mockdev.errors import RemoteProtocolError
from mockdev.runtime.session import Session


class SyncGate:
    """`channels` channels and the main channel meet here."""

    def __init__(self, session: Session, channels: int) -> None:
        self._session = session
        self._channels = channels
        self._changed = threading.Condition()
        self._waiting: set[int] = set()
        self._ended: set[int] = set()
        self._passed = 0
        session.at_stop.append(self._wake)

    def arrive(self, channel: int) -> None:
        """A channel has read its SYNC; returns when the main channel has read the mark for it."""
        with self._changed:
            self._waiting.add(channel)
            self._changed.notify_all()
            passed = self._passed
            self._session.wait_for(
                self._changed,
                lambda: self._passed != passed,
                lambda: f"channel {channel} has read a SYNC, and no MULTIFD_FLUSH came on the main channel",
            )

    def end(self, channel: int) -> None:
        """A channel has ended: it will not arrive any more."""
        with self._changed:
            self._ended.add(channel)
            self._changed.notify_all()

    def flush(self, offset: int) -> None:
        """The main channel has read MULTIFD_FLUSH: wait for all channels, let them go on."""
        with self._changed:
            self._session.wait_for(self._changed, lambda: self._all_here(offset), self._late)
            self._waiting.clear()
            self._passed += 1
            self._changed.notify_all()

    def _all_here(self, offset: int) -> bool:
        if self._ended:
            raise RemoteProtocolError(
                f"MULTIFD_FLUSH, but channel {min(self._ended)} ended without a SYNC for it",
                channel="main",
                offset=offset,
                field="MULTIFD_FLUSH",
            )
        return len(self._waiting) == self._channels

    def _late(self) -> str:
        absent = [str(n) for n in range(self._channels) if n not in self._waiting]
        return f"MULTIFD_FLUSH was read, and no SYNC on channel {', '.join(absent)}"

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()
